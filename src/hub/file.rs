//! One file by itself: rows of a data set on the Hub, or what is at an address.

use super::client::{Client, header};
use super::download::{OWN, check_room, lock, retried};
use super::fetch::fetch;
use super::listing::is_rows;
use super::{Digest, DownloadEvent, HubError, Listing, RemoteFile, RepoName};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOrigin {
    /// A data set on the Hub, and its file; `None` takes the only one that holds rows.
    Dataset { name: RepoName, file: Option<String> },
    /// An address, and the name that the file gets here.
    Address { url: String, file: String },
}

impl fmt::Display for FileOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileOrigin::Dataset { name, file: Some(file) } => write!(f, "{file} of {name}"),
            FileOrigin::Dataset { name, file: None } => name.fmt(f),
            FileOrigin::Address { url, .. } => f.write_str(url),
        }
    }
}

/// A file that is to be in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDownload {
    pub origin: FileOrigin,
    pub folder: PathBuf,
}

impl FileDownload {
    /// Where the file is, or will be; a folder where its name is not known yet.
    pub fn place(&self) -> PathBuf {
        match &self.origin {
            FileOrigin::Dataset { file: Some(file), .. } | FileOrigin::Address { file, .. } => {
                self.folder.join(file)
            }
            FileOrigin::Dataset { file: None, .. } => self.folder.clone(),
        }
    }

    /// The file, where it is here and not empty. Where its name is not known, the only file of rows of the folder is it.
    pub fn here(&self) -> Option<PathBuf> {
        let place = self.place();
        let full = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0);
        if !matches!(self.origin, FileOrigin::Dataset { file: None, .. }) {
            return full(&place).then_some(place);
        }
        let entries = fs::read_dir(&place).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut rows = entries.filter(|path| is_rows(path) && full(path));
        rows.next().filter(|_| rows.next().is_none())
    }

    /// Downloads the file and gives its path; a part of it that is here is gone on with.
    ///
    /// # Errors
    /// What the server refuses, a network that does not come back, content that is not what the Hub says, a full disk, and
    /// another process at the same folder.
    pub fn run(&self, client: &Client, tell: &(dyn Fn(DownloadEvent) + Sync)) -> Result<PathBuf, HubError> {
        if client.options().offline {
            return Err(HubError::OfflineFile { from: self.origin.to_string(), place: self.place() });
        }
        let (name, url, listing, version) = match &self.origin {
            FileOrigin::Dataset { name, file } => {
                let rows = || Listing::of_rows(client, name, file.as_deref());
                let listing = retried(client, tell, rows)?;
                let remote = listing.files.first().map_or("", |file| &file.name);
                let url = client.address(name, &listing.commit, remote);
                let commit = listing.commit.clone();
                (Some(name), url, listing, commit)
            }
            FileOrigin::Address { url, file } => {
                let (remote, version) = retried(client, tell, || look(client, url, file))?;
                let listing = Listing { commit: String::new(), files: vec![remote] };
                (None, url.clone(), listing, version)
            }
        };
        let Some(remote) = listing.files.first().cloned() else {
            let reason = "it lists a file twice, or not at all".into();
            return Err(HubError::BadAnswer { url, reason });
        };
        tell(DownloadEvent::Listed(listing));
        let _lock = lock(&self.folder)?;
        // a folder of the repository is not one here where nobody asked for it
        let target = match &self.origin {
            FileOrigin::Dataset { file: None, .. } => {
                self.folder.join(remote.name.rsplit('/').next().unwrap_or(&remote.name))
            }
            _ => self.place(),
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| HubError::Write { path: parent.to_owned(), source })?;
        }
        // named after where and which version: the part of something else is not gone on with
        let mark = Sha256::digest(format!("{url}\n{version}\n{}", remote.size));
        let mark: String = mark.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let partial = format!("{}.{mark}.partial", remote.name.replace('/', "--"));
        let partial = self.folder.join(OWN).join(partial);
        let here = fs::metadata(&partial).map_or(0, |meta| meta.len());
        check_room(&self.folder, remote.size.saturating_sub(here))?;
        fetch(client, (name, &url), &remote, &target, &partial, &|event| tell(event.of(0)))?;
        tell(DownloadEvent::Done { file: 0 });
        Ok(target)
    }
}

/// The size of what is at an address, and what tells its version from others.
fn look(client: &Client, url: &str, file: &str) -> Result<(RemoteFile, String), HubError> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(HubError::BadAddress { url: url.to_owned() });
    }
    let response = client.head(url)?;
    let size = header(&response, "Content-Length").and_then(|text| text.parse().ok());
    let size = size.ok_or_else(|| HubError::NoSize { url: url.to_owned() })?;
    let version = header(&response, "ETag").unwrap_or_default();
    Ok((RemoteFile { name: file.to_owned(), size, digest: Digest::Unknown }, version))
}
