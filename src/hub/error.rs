//! What can go wrong between here and the Hub, and what to do about it.

use super::RepoName;
use crate::memory_size::memory_text;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum HubError {
    #[error(
        "{name:?} is no folder here and no name of a model on the Hub: those are ORG/NAME, such as \
         meta-llama/Llama-3.2-1B, or ORG/NAME@REVISION"
    )]
    BadName { name: String },
    #[error(
        "{} is no folder{}; is it spelled as there? (`engraft download` takes a model of that name from the Hub)",
        model.display(), beside(near)
    )]
    Misspelt { model: PathBuf, near: Vec<PathBuf> },
    #[error("HF_ENDPOINT is {endpoint:?}, which does not begin with http:// or https://")]
    BadEndpoint { endpoint: String },
    #[error("this system names no folder for caches; set ENGRAFT_MODELS to where models are to be kept")]
    NoPlace,
    #[error(
        "{name} is no folder here and was not downloaded yet, and HF_HUB_OFFLINE forbids it now: unset that, or copy the \
         model to {}", folder.display()
    )]
    Offline { name: RepoName, folder: PathBuf },
    #[error(
        "there is no {} {} at {endpoint}, or it is private; is the name spelled as there?{}",
        name.kind(), name.repository(), token_hint(*token)
    )]
    NotFound { name: RepoName, endpoint: String, token: bool },
    #[error("{} has no revision {:?}: give a branch, a tag or a commit", name.repository(), name.revision())]
    NoRevision { name: RepoName },
    #[error(
        "{} is gated: accept its conditions at {endpoint}/{}{}", name.repository(), name.page(),
        if *token { ", with the account of the token that is set here, and wait until access is granted" }
        else { ", then make a token at https://huggingface.co/settings/tokens and set HF_TOKEN to it" }
    )]
    Gated { name: RepoName, endpoint: String, token: bool },
    #[error(
        "the Hub does not accept the token of HF_TOKEN or ~/.cache/huggingface/token; make one at \
         https://huggingface.co/settings/tokens"
    )]
    BadToken,
    #[error("{} has no *.safetensors ({found}): only these can be read; convert its weights first", name.repository())]
    NoWeights { name: RepoName, found: String },
    #[error("{} has no file {file:?} with rows; it has {}", name.repository(), list_of(files))]
    NoFile { name: Box<RepoName>, file: String, files: Vec<String> },
    #[error("{} has not one file of rows but {}; name one with --data.file_name", name.repository(), list_of(files))]
    WhichFile { name: RepoName, files: Vec<String> },
    #[error("{url} is nothing that can be downloaded; an address begins with http:// or https://")]
    BadAddress { url: String },
    #[error(
        "{url} does not tell how long it is: download it with another program, and give it as --data FILE"
    )]
    NoSize { url: String },
    #[error(
        "{from} was not downloaded to {} yet, and HF_HUB_OFFLINE forbids it now: unset that, or put the file there",
        place.display()
    )]
    OfflineFile { from: String, place: PathBuf },
    #[error("{url}: {status}{}", if message.is_empty() { String::new() } else { format!(", {message}") })]
    Status { url: String, status: u16, message: String, retry_after: Option<Duration> },
    #[error(
        "{url}: {reason}; is there a connection? (proxies are read from HTTPS_PROXY, another host from HF_ENDPOINT)"
    )]
    Network { url: String, reason: String },
    #[error("{url} gave what cannot be read: {reason}; is HF_ENDPOINT a Hub?")]
    BadAnswer { url: String, reason: String },
    #[error(
        "{file}: its {kind} is {found}, but the Hub says {expected}; what came was thrown away, try again, and where it stays \
         so, a proxy or mirror changes files"
    )]
    Checksum { file: String, kind: &'static str, expected: String, found: String },
    #[error("{} is being downloaded by another process; wait for it", folder.display())]
    Busy { folder: PathBuf },
    #[error(
        "{}: {} are free there, and what is to be downloaded takes {}; free some, or name a folder on another disk \
         (ENGRAFT_MODELS for models, --data.download_dir for rows)",
        folder.display(), memory_text(*free), memory_text(*needed)
    )]
    NoRoom { folder: PathBuf, free: u64, needed: u64 },
    #[error("cannot write {}: {source}; is the folder writable and the disk not full?", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A few names, so that one can be chosen.
fn list_of(files: &[String]) -> String {
    match files {
        [] => "none that can be read".into(),
        files if files.len() > 8 => format!("{}, …", files[..8].join(", ")),
        files => files.join(", "),
    }
}

fn beside(folders: &[PathBuf]) -> String {
    match folders {
        [] => String::new(),
        folders => {
            let names: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            format!(", there are {}", list_of(&names))
        }
    }
}

fn token_hint(token: bool) -> &'static str {
    match token {
        true => " (the token that is set here does not see it)",
        false => " For a private one set HF_TOKEN",
    }
}

impl HubError {
    /// Whether to try again can help.
    pub(super) fn passes(&self) -> bool {
        match self {
            HubError::Network { .. } => true,
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Whether the user has to change something.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            HubError::BadName { .. }
                | HubError::Misspelt { .. }
                | HubError::BadEndpoint { .. }
                | HubError::NoPlace
                | HubError::Offline { .. }
                | HubError::NotFound { .. }
                | HubError::NoRevision { .. }
                | HubError::Gated { .. }
                | HubError::BadToken
                | HubError::NoWeights { .. }
                | HubError::NoFile { .. }
                | HubError::WhichFile { .. }
                | HubError::BadAddress { .. }
                | HubError::NoSize { .. }
                | HubError::OfflineFile { .. }
                | HubError::NoRoom { .. }
        )
    }
}
