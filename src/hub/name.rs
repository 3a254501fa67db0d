//! `ORG/NAME`, the name of a repository on the Hub, with a revision where that is not `main`: `ORG/NAME@REVISION`.

use super::HubError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What a repository holds: the Hub keeps both kinds apart, and one name may be of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RepoKind {
    #[default]
    Model,
    Dataset,
}

impl fmt::Display for RepoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RepoKind::Model => "model",
            RepoKind::Dataset => "data set",
        })
    }
}

/// A repository on the Hub; a name that is read from text is a model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    kind: RepoKind,
    organisation: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

/// The branch that is meant where none is named.
const MAIN: &str = "main";

impl RepoName {
    /// The data set of this name.
    pub fn dataset(self) -> Self {
        RepoName { kind: RepoKind::Dataset, ..self }
    }

    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// Where its page and files are below the endpoint.
    pub(super) fn page(&self) -> String {
        match self.kind {
            RepoKind::Model => self.repository(),
            RepoKind::Dataset => format!("datasets/{}", self.repository()),
        }
    }

    /// Where the endpoint tells of it.
    pub(super) fn api(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        format!("api/{kind}/{}", self.repository())
    }

    /// The same repository at another revision.
    ///
    /// # Errors
    /// A revision that is none.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        match is_revision(revision) {
            true => Ok(RepoName { revision: revision.to_owned(), ..self }),
            false => Err(HubError::BadName { name: format!("{self}@{revision}") }),
        }
    }

    /// `ORG/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Its folder in the folder of all of its kind. Each revision has its own.
    pub fn folder(&self) -> PathBuf {
        let name = match self.revision.as_str() {
            MAIN => self.name.clone(),
            // a slash is a path's, and no name has two dashes
            revision => format!("{}@{}", self.name, revision.replace('/', "--")),
        };
        [&self.organisation, &name].iter().collect()
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl FromStr for RepoName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let bad = || HubError::BadName { name: text.to_owned() };
        let (model, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (organisation, name) = model.split_once('/').ok_or_else(bad)?;
        match is_part(organisation) && is_part(name) && is_revision(revision) {
            true => Ok(RepoName {
                kind: RepoKind::Model,
                organisation: organisation.to_owned(),
                name: name.to_owned(),
                revision: revision.to_owned(),
            }),
            false => Err(bad()),
        }
    }
}

/// As the Hub has it: letters, digits, `-`, `_` and `.`, but not at an end; no `--` or `..`.
fn is_part(part: &str) -> bool {
    let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let edge = |c: char| c == '-' || c == '.';
    plain
        && (1..=96).contains(&part.len())
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= 255 && revision.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (text, folder) in [
            ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
            ("a/b_c.d@main", "a/b_c.d"),
            ("a/b@v1.0", "a/b@v1.0"),
            ("a/b@refs/pr/12", "a/b@refs--pr--12"),
        ] {
            let name: RepoName = text.parse().unwrap();
            assert_eq!(name.folder(), folder.split('/').collect::<PathBuf>());
        }
        for text in [
            "model", "/a/b", "a/b/c", "./a", "../a", "a/..", "a/.b", "a/", "/a", "a b/c", "a/b@", "a/b@../c",
            "a/b--c", "a\\b/c", "~/model",
        ] {
            assert!(text.parse::<RepoName>().is_err(), "{text}");
        }
        let name: RepoName = "a/b@x".parse().unwrap();
        assert_eq!((name.to_string(), name.repository().as_str()), ("a/b@x".into(), "a/b"));
        assert_eq!(name.clone().at("main").unwrap().to_string(), "a/b");
        assert!(name.clone().at("a//b").is_err());
        assert_eq!((name.page().as_str(), name.api().as_str()), ("a/b", "api/models/a/b"));
        let data = name.dataset();
        assert_eq!((data.page().as_str(), data.api().as_str()), ("datasets/a/b", "api/datasets/a/b"));
    }
}
