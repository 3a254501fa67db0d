//! A whole model: its files side by side, a few at a time, and a record of what they are.

use super::client::Client;
use super::fetch::{FetchEvent, fetch, is_here};
use super::{Digest, HubError, Listing, RemoteFile, RepoName};
use crate::checkpoint::atomic::write_file;
use crate::disk::free_space;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Files that are downloaded at once: one connection seldom fills a line.
const AT_ONCE: usize = 4;

/// What is to be downloaded, and where to.
#[derive(Clone, Debug)]
pub struct Download {
    pub name: RepoName,
    /// The folder that the files go to.
    pub folder: PathBuf,
    pub weights: WeightFiles,
}

/// What a download makes of a model's weights. Without them the folder serves for plans and for data, and is not a whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// They come with the rest.
    Fetched,
    /// A later download brings them: it is refused now what would be refused then, such as a disk without room for them.
    Announced,
    /// Nobody will need them.
    Ignored,
}

/// What a download tells while it runs; files are told apart by their index in the listing.
#[derive(Clone, Debug, PartialEq)]
pub enum DownloadEvent {
    /// The Hub has told what there is.
    Listed(Listing),
    /// The file is here already, and is what it should be.
    Kept { file: usize },
    /// So many bytes of the file are here: at first those of an earlier try.
    At { file: usize, bytes: u64 },
    /// What cannot be reached is tried again after the pause.
    Retry { file: Option<usize>, reason: String, pause: Duration },
    /// The file is whole and under its name.
    Done { file: usize },
}

/// What a download did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub commit: String,
    pub files: usize,
    /// Files that were here already.
    pub kept: usize,
    /// Of all files together.
    pub bytes: u64,
}

/// What `.engraft/download.json` says of a folder: written last, so that a folder with it is whole.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    repository: String,
    revision: String,
    commit: String,
    files: Vec<RemoteFile>,
}

/// The folder beside the files that belongs to downloads.
pub(super) const OWN: &str = ".engraft";

/// Asks again, later each time, as long as that can help.
pub(super) fn retried<T>(
    client: &Client,
    tell: &(dyn Fn(DownloadEvent) + Sync),
    ask: impl Fn() -> Result<T, HubError>,
) -> Result<T, HubError> {
    let (mut pause, mut unanswered) = (client.options().pause, 0);
    for _ in 1..client.options().tries {
        let asked = ask();
        unanswered = if matches!(asked, Err(HubError::Network { .. })) { unanswered + 1 } else { 0 };
        match asked {
            Err(error) if error.passes() && unanswered < client.options().unanswered => {
                tell(DownloadEvent::Retry { file: None, reason: error.to_string(), pause });
                std::thread::sleep(pause);
                pause *= 2;
            }
            result => return result,
        }
    }
    ask()
}

/// Makes the folder, and keeps other processes from downloading to it while the file is held.
pub(super) fn lock(folder: &Path) -> Result<File, HubError> {
    let own = folder.join(OWN);
    fs::create_dir_all(&own).map_err(|source| HubError::Write { path: own.clone(), source })?;
    let path = own.join("lock");
    // another process may have it locked: nothing of it is written to
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| HubError::Write { path, source })?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Err(HubError::Busy { folder: folder.to_owned() }),
        // a file system without locks: as without this
        _ => Ok(file),
    }
}

/// Refuses a download of so many bytes to a folder whose disk is known not to hold them.
pub(super) fn check_room(folder: &Path, needed: u64) -> Result<(), HubError> {
    match free_space(folder) {
        Some(free) if free < needed => Err(HubError::NoRoom { folder: folder.to_owned(), free, needed }),
        _ => Ok(()),
    }
}

impl FetchEvent {
    /// As the event of the file of this index.
    pub(super) fn of(self, file: usize) -> DownloadEvent {
        match self {
            FetchEvent::At(bytes) => DownloadEvent::At { file, bytes },
            FetchEvent::Retry { reason, pause } => DownloadEvent::Retry { file: Some(file), reason, pause },
        }
    }
}

impl Record {
    fn path(folder: &Path) -> PathBuf {
        folder.join(OWN).join("download.json")
    }

    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(folder)).ok()?).ok()
    }

    /// Whether every file is there in its size; contents are looked at by a download alone.
    pub(super) fn is_whole(&self, folder: &Path) -> bool {
        let there = |file: &RemoteFile| {
            fs::metadata(folder.join(&file.name)).is_ok_and(|meta| meta.is_file() && meta.len() == file.size)
        };
        self.files.iter().all(there)
    }
}

impl Download {
    /// Makes the folder what the Hub has: files that are there and right stay, parts of files are gone on with, and files
    /// of an earlier download that the model no longer has are removed.
    ///
    /// # Errors
    /// What the Hub refuses, a network that does not come back, content that is not what the Hub says, a disk without room,
    /// and another process at the same folder. What is whole stays, and so do parts: the next call goes on.
    pub fn run(&self, client: &Client, tell: &(dyn Fn(DownloadEvent) + Sync)) -> Result<Outcome, HubError> {
        let mut listing = self.listing(client, tell)?;
        self.check_room(&listing)?;
        if self.weights != WeightFiles::Fetched {
            listing.files.retain(|file| !file.is_weights());
        }
        tell(DownloadEvent::Listed(listing.clone()));
        let _lock = lock(&self.folder)?;

        let here = self.each(&listing, |index, file| {
            let here = is_here(&self.folder.join(&file.name), file);
            if here {
                tell(DownloadEvent::Kept { file: index });
            }
            Ok(here)
        })?;
        let kept = here.iter().filter(|here| **here).count();
        let earlier = Record::read(&self.folder);
        if kept < listing.files.len() {
            // the folder is not whole until all is, and what the new version has not must never be read with it
            self.remove_others(&earlier, &listing);
            let _ = fs::remove_file(Record::path(&self.folder));
        }
        self.each(&listing, |index, file| match here[index] {
            true => Ok(()),
            false => self.file(client, &listing.commit, index, file, tell),
        })?;
        let (files, bytes) = (listing.files.len(), listing.size());
        let outcome = Outcome { commit: listing.commit.clone(), files, kept, bytes };
        if self.weights != WeightFiles::Fetched {
            return Ok(outcome);
        }
        self.remove_others(&earlier, &listing);
        self.record(&listing)?;
        Ok(outcome)
    }

    /// Removes files of an earlier version that this one has not.
    fn remove_others(&self, earlier: &Option<Record>, listing: &Listing) {
        for old in earlier.iter().flat_map(|record| &record.files) {
            // the record is a file like any other: it may come from somebody else
            let inside = Path::new(&old.name).components().all(|part| matches!(part, Component::Normal(_)));
            if inside && !listing.files.iter().any(|file| file.name == old.name) {
                let _ = fs::remove_file(self.folder.join(&old.name));
            }
        }
    }

    fn listing(&self, client: &Client, tell: &(dyn Fn(DownloadEvent) + Sync)) -> Result<Listing, HubError> {
        retried(client, tell, || Listing::of(client, &self.name, self.weights))
    }

    /// Refuses what the disk has no room for. Files of the right size are taken to be here.
    fn check_room(&self, listing: &Listing) -> Result<(), HubError> {
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let missing = listing.files.iter().map(|file| match length(&self.folder.join(&file.name)) {
            length if length == file.size => 0,
            _ => file.size.saturating_sub(length(&self.partial(&listing.commit, file))),
        });
        check_room(&self.folder, missing.fold(0, u64::saturating_add))
    }

    /// The part of a file that is here. Named after the content: the part of another version of the file is not gone on with.
    fn partial(&self, commit: &str, file: &RemoteFile) -> PathBuf {
        let content = match &file.digest {
            Digest::Sha256(hash) | Digest::GitBlob(hash) => &hash[..16],
            Digest::Unknown => &commit[..16],
        };
        self.folder.join(OWN).join(format!("{}.{content}.partial", file.name.replace('/', "--")))
    }

    fn file(
        &self,
        client: &Client,
        commit: &str,
        index: usize,
        file: &RemoteFile,
        tell: &(dyn Fn(DownloadEvent) + Sync),
    ) -> Result<(), HubError> {
        let target = self.folder.join(&file.name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| HubError::Write { path: parent.to_owned(), source })?;
        }
        let partial = self.partial(commit, file);
        let url = client.address(&self.name, commit, &file.name);
        fetch(client, (Some(&self.name), &url), file, &target, &partial, &|event| tell(event.of(index)))?;
        tell(DownloadEvent::Done { file: index });
        Ok(())
    }

    /// Does something with every file, a few at a time; after an error no further ones are begun.
    fn each<T: Send>(
        &self,
        listing: &Listing,
        work: impl Fn(usize, &RemoteFile) -> Result<T, HubError> + Sync,
    ) -> Result<Vec<T>, HubError> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<(usize, Result<T, HubError>)>> = Mutex::new(Vec::new());
        let worker = || {
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = listing.files.get(index) else { return };
                let result = work(index, file);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, result));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(listing.files.len()) {
                scope.spawn(worker);
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn record(&self, listing: &Listing) -> Result<(), HubError> {
        let record = Record {
            repository: self.name.repository(),
            revision: self.name.revision().to_owned(),
            commit: listing.commit.clone(),
            files: listing.files.clone(),
        };
        let path = Record::path(&self.folder);
        write_file(&path, |out| Ok(serde_json::to_writer_pretty(out, &record)?))
            .map_err(|source| HubError::Write { path, source })
    }
}
