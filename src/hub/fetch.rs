//! One file from the Hub: resumed where it was broken off, checked, and only then under its name.

use super::client::{Client, header};
use super::{Digest, HubError, RemoteFile, RepoName};
use crate::checkpoint::atomic;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a fetch tells while it runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FetchEvent {
    /// Bytes of the file that are here now.
    At(u64),
    /// The next try comes after the pause.
    Retry { reason: String, pause: Duration },
}

/// The longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Downloads `file` from `url`, which is of the repository `name` where there is one, to `target`; `partial` holds what is
/// there until all is.
pub(super) fn fetch(
    client: &Client,
    (name, url): (Option<&RepoName>, &str),
    file: &RemoteFile,
    target: &Path,
    partial: &Path,
    tell: &dyn Fn(FetchEvent),
) -> Result<(), HubError> {
    let mut part = Part::open(partial, file)?;
    let mut resumed = part.length > 0;
    let (mut failures, mut pause) = (0, client.options().pause);
    loop {
        tell(FetchEvent::At(part.length));
        let before = part.length;
        match part.extend(client, name, url, tell) {
            Ok(()) if part.length == file.size => match part.finish(target) {
                // what was here before may have been something else
                Err(HubError::Checksum { .. }) if resumed => {
                    resumed = false;
                    part = Part::open(partial, file)?;
                    continue;
                }
                result => return result,
            },
            result => {
                let short =
                    || HubError::Network { url: url.to_owned(), reason: "the connection broke off".into() };
                let error = result.err().unwrap_or_else(short);
                if part.length > before {
                    (failures, pause) = (0, client.options().pause);
                }
                failures += 1;
                if !error.passes() || failures >= client.options().tries {
                    return Err(error);
                }
                let wait = retry_after(&error).unwrap_or(pause).min(LONGEST_PAUSE);
                tell(FetchEvent::Retry { reason: error.to_string(), pause: wait });
                std::thread::sleep(wait);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn retry_after(error: &HubError) -> Option<Duration> {
    match error {
        HubError::Status { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// The beginning of a file, and its hash so far.
struct Part<'f> {
    file: &'f RemoteFile,
    path: PathBuf,
    out: File,
    length: u64,
    hash: Hash,
}

impl<'f> Part<'f> {
    fn open(path: &Path, file: &'f RemoteFile) -> Result<Self, HubError> {
        let write = |source| HubError::Write { path: path.to_owned(), source };
        let out = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(write)?;
        let mut part = Part { file, path: path.to_owned(), out, length: 0, hash: Hash::new(file) };
        let (hash, length) = Hash::of(file, &mut &part.out).map_err(write)?;
        match length <= file.size {
            true => (part.hash, part.length) = (hash, length),
            false => part.restart()?,
        }
        Ok(part)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        let write = |source| HubError::Write { path: self.path.clone(), source };
        self.out.set_len(0).map_err(write)?;
        (self.length, self.hash) = (0, Hash::new(self.file));
        Ok(())
    }

    /// Asks for what is missing and takes what comes.
    fn extend(
        &mut self,
        client: &Client,
        name: Option<&RepoName>,
        url: &str,
        tell: &dyn Fn(FetchEvent),
    ) -> Result<(), HubError> {
        if self.length == self.file.size {
            return Ok(());
        }
        let response = match client.get(name, url, self.length) {
            // the server has less than is here: begin again
            Err(HubError::Status { status: 416, .. }) if self.length > 0 => {
                self.restart()?;
                client.get(name, url, 0)
            }
            response => response,
        }?;
        let range = header(&response, "Content-Range");
        let continues = range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.length)));
        if self.length > 0 && !(response.status() == 206 && continues) {
            self.restart()?;
            if response.status() == 206 {
                return self.extend(client, name, url, tell);
            }
        }
        // one byte more tells a file that is too long
        let mut body = response.into_body().into_reader().take(self.file.size - self.length + 1);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(HubError::Network { url: url.to_owned(), reason: error.to_string() });
                }
            };
            if self.length + read as u64 > self.file.size {
                self.restart()?;
                let reason = format!("more than the {} bytes that {} has", self.file.size, self.file.name);
                return Err(HubError::BadAnswer { url: url.to_owned(), reason });
            }
            let write = |source| HubError::Write { path: self.path.clone(), source };
            self.out.write_all(&buffer[..read]).map_err(write)?;
            self.hash.update(&buffer[..read]);
            self.length += read as u64;
            tell(FetchEvent::At(self.length));
        }
    }

    /// Checks the whole file and gives it its name.
    fn finish(self, target: &Path) -> Result<(), HubError> {
        if let Err(error) = self.hash.check(self.file) {
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        let write = |source| HubError::Write { path: target.to_owned(), source };
        self.out.sync_all().map_err(write)?;
        drop(self.out);
        atomic::rename(&self.path, target).map_err(write)
    }
}

/// Whether the file at `path` is this one, to the byte.
pub(super) fn is_here(path: &Path, file: &RemoteFile) -> bool {
    let size = fs::metadata(path).map(|meta| (meta.is_file(), meta.len()));
    if !matches!(size, Ok((true, size)) if size == file.size) {
        return false;
    }
    let hash = File::open(path).and_then(|mut content| Hash::of(file, &mut content));
    hash.is_ok_and(|(hash, length)| length == file.size && hash.check(file).is_ok())
}

/// The hash that the Hub tells of a file, in the making.
enum Hash {
    Sha256(Sha256),
    GitBlob(Sha1),
    None,
}

impl Hash {
    fn new(file: &RemoteFile) -> Self {
        match &file.digest {
            Digest::Sha256(_) => Hash::Sha256(Sha256::new()),
            Digest::GitBlob(_) => {
                Hash::GitBlob(Sha1::new_with_prefix(format!("blob {}\0", file.size).as_bytes()))
            }
            Digest::Unknown => Hash::None,
        }
    }

    /// Of content that is here, with its length.
    fn of(file: &RemoteFile, content: &mut dyn Read) -> io::Result<(Self, u64)> {
        let (mut hash, mut length, mut buffer) = (Hash::new(file), 0, vec![0; 1 << 20]);
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok((hash, length)),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    length += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::GitBlob(hash) => hash.update(bytes),
            Hash::None => {}
        }
    }

    fn check(self, file: &RemoteFile) -> Result<(), HubError> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (found, kind) = match self {
            Hash::Sha256(hash) => (hex(&hash.finalize()), "SHA-256"),
            Hash::GitBlob(hash) => (hex(&hash.finalize()), "Git hash"),
            Hash::None => return Ok(()),
        };
        match &file.digest {
            Digest::Sha256(expected) | Digest::GitBlob(expected) if *expected != found => {
                let (file, expected) = (file.name.clone(), expected.clone());
                Err(HubError::Checksum { file, kind, expected, found })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let file = |digest| RemoteFile { name: "x".into(), size: 6, digest };
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = file(Digest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into()));
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let sha = file(Digest::Sha256(sha.into()));
        for file in [git, sha, file(Digest::Unknown)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x");
            assert!(!is_here(&path, &file));
            fs::write(&path, "hello\n").unwrap();
            assert!(is_here(&path, &file), "{file:?}");
            fs::write(&path, "hellO\n").unwrap();
            assert_eq!(is_here(&path, &file), file.digest == Digest::Unknown);
            fs::write(&path, "hello").unwrap();
            assert!(!is_here(&path, &file));
        }
    }
}
