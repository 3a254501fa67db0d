//! Requests to the Hub.
//!
//! Redirects are followed here rather than by the HTTP client, because large files are redirected to other hosts, which
//! must not see the token.

use super::{HubError, RepoName};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

/// Where the Hub is and who asks.
#[derive(Clone)]
pub struct HubOptions {
    /// `https://huggingface.co` or another server that speaks as it does.
    pub endpoint: String,
    pub token: Option<String>,
    /// Tries in a row that bring nothing before a download fails.
    pub tries: u32,
    /// Tries of what comes first that get no answer at all; where a name may be a misspelt path, nobody waits for many.
    pub unanswered: u32,
    /// Before the second try; doubled before each further one.
    pub pause: Duration,
    /// What is not on this machine is not asked for.
    pub offline: bool,
}

impl Default for HubOptions {
    fn default() -> Self {
        HubOptions {
            endpoint: "https://huggingface.co".into(),
            token: None,
            tries: 6,
            unanswered: 6,
            pause: Duration::from_secs(1),
            offline: false,
        }
    }
}

impl HubOptions {
    /// As `HF_ENDPOINT`, `HF_TOKEN` (or the file that `hf auth login` writes) and `HF_HUB_OFFLINE` say.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub fn from_environment() -> Result<Self, HubError> {
        let mut options = HubOptions { token: token(), ..HubOptions::default() };
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(HubError::BadEndpoint { endpoint });
            }
            options.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        let yes = |word: String| ["1", "on", "yes", "true"].contains(&word.to_ascii_lowercase().as_str());
        options.offline = variable("HF_HUB_OFFLINE").is_some_and(yes);
        Ok(options)
    }
}

/// The token is nobody's business.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn token() -> Option<String> {
    let file = || match variable("HF_TOKEN_PATH") {
        Some(file) => Some(PathBuf::from(file)),
        None => match variable("HF_HOME") {
            Some(home) => Some(PathBuf::from(home).join("token")),
            None => Some(dirs::home_dir()?.join(".cache/huggingface/token")),
        },
    };
    let stored = || std::fs::read_to_string(file()?).ok().map(|token| token.trim().to_owned());
    variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(stored).filter(|token| {
        // what cannot be a header cannot be a token
        !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// Redirects that one request may follow.
const REDIRECTS: usize = 10;

/// Asks the Hub.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    options: HubOptions,
}

impl Client {
    pub fn new(options: HubOptions) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("engraft/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // a connection that says nothing for so long is gone
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Client { agent: config.into(), options }
    }

    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// The address of a file of a repository at one commit.
    pub(super) fn address(&self, name: &RepoName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.options.endpoint, name.page())
    }

    /// The body of `url`, from byte `from` on where the server can; a status of 200 or 206. `name` is the repository that
    /// messages blame, where the address is one of the Hub's.
    pub(super) fn get(
        &self,
        name: Option<&RepoName>,
        url: &str,
        from: u64,
    ) -> Result<Response<Body>, HubError> {
        self.ask(false, name, url, from)
    }

    /// What `url` says of itself, without its body.
    pub(super) fn head(&self, url: &str) -> Result<Response<Body>, HubError> {
        self.ask(true, None, url, 0)
    }

    fn ask(
        &self,
        head: bool,
        name: Option<&RepoName>,
        url: &str,
        from: u64,
    ) -> Result<Response<Body>, HubError> {
        let hub = origin(&self.options.endpoint);
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let network = |reason: String| HubError::Network { url: host(&at), reason };
            let request = if head { self.agent.head(&at) } else { self.agent.get(&at) };
            let mut request = request.header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.options.token.as_ref().filter(|_| origin(&at) == hub) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| network(error.to_string()))?;
            match response.status().as_u16() {
                200 | 206 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    let location = header(&response, "Location").and_then(|location| resolve(&at, &location));
                    at = location.ok_or_else(|| HubError::BadAnswer {
                        url: host(&at),
                        reason: "a redirect to nowhere".into(),
                    })?;
                }
                status => return Err(self.refusal(name, url, status, &response)),
            }
        }
        Err(HubError::BadAnswer { url: host(&at), reason: format!("more than {REDIRECTS} redirects") })
    }

    /// What a status means. The Hub says 401 of a repository that is not there, unless the token shows otherwise.
    fn refusal(
        &self,
        name: Option<&RepoName>,
        url: &str,
        status: u16,
        response: &Response<Body>,
    ) -> HubError {
        let message = header(response, "X-Error-Message").unwrap_or_default();
        let seconds = header(response, "Retry-After").and_then(|text| text.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let Some(name) = name.cloned() else {
            return HubError::Status { url: host(url), status, message, retry_after };
        };
        let endpoint = self.options.endpoint.clone();
        let token = self.options.token.is_some();
        let code = header(response, "X-Error-Code").unwrap_or_default();
        match (code.as_str(), status) {
            ("GatedRepo", _) => HubError::Gated { name, endpoint, token },
            ("RepoNotFound", _) => HubError::NotFound { name, endpoint, token },
            ("RevisionNotFound", _) => HubError::NoRevision { name },
            ("", 401) if token && message.contains("Invalid") => HubError::BadToken,
            ("", 401 | 404) if message.is_empty() || message.contains("Repository not found") => {
                HubError::NotFound { name, endpoint, token }
            }
            _ => HubError::Status { url: url.to_owned(), status, message, retry_after },
        }
    }
}

pub(super) fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Scheme and host with its port: who sees what is sent.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// What messages show of an address: signatures in its query are no one's business.
fn host(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

/// The address that a `Location` means; `None` where it is not HTTP, or would go on without TLS.
fn resolve(base: &str, location: &str) -> Option<String> {
    let (scheme, authority) = origin(base)?;
    let url = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    let (to, _) = origin(&url)?;
    (to == "https" || to == "http" && scheme == "http").then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_go_where_browsers_would_but_not_without_tls() {
        let from = "https://hub.example:8443/a/b?c";
        let to = |location| resolve(from, location);
        assert_eq!(to("/x?y").as_deref(), Some("https://hub.example:8443/x?y"));
        assert_eq!(to("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to("https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        for nowhere in ["http://cdn.example/x", "ftp://cdn.example/x", "x/y", ""] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
        assert_eq!(resolve("http://a/b", "http://c/d").as_deref(), Some("http://c/d"));
        assert_ne!(origin("http://a:1/x"), origin("http://a:2/x"));
        assert_eq!(origin("HTTPS://A/x"), origin("https://a/y"));
    }

    #[test]
    fn the_token_is_not_shown() {
        let options = HubOptions { token: Some("hf_secret".into()), ..HubOptions::default() };
        assert!(!format!("{options:?} {:?}", Client::new(options.clone())).contains("secret"));
    }
}
