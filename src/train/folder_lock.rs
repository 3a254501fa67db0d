//! One run at a time in an output folder.
//!
//! An advisory lock on a file in the folder, which the system takes back however the process ends: the file that stays behind says
//! nothing. Where a file system has no locks, or nothing can be written, the run goes on without.

use crate::error::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

const LOCK_FILE: &str = ".engraft.lock";

/// Held as long as it lives.
pub(super) struct FolderLock {
    _file: Option<File>,
}

impl FolderLock {
    /// Takes the lock of a folder in which a run has been; writes nothing.
    ///
    /// # Errors
    /// [`Error::Input`] where another run has it.
    pub fn of_earlier(out_dir: &Path) -> Result<Self, Error> {
        FolderLock::open(out_dir, OpenOptions::new().write(true))
    }

    /// Takes the lock of a folder that is there, in place of what was taken of it before.
    ///
    /// # Errors
    /// As [`FolderLock::of_earlier`].
    pub fn take(self, out_dir: &Path) -> Result<Self, Error> {
        match self._file {
            Some(_) => Ok(self),
            None => FolderLock::open(out_dir, OpenOptions::new().write(true).create(true).truncate(false)),
        }
    }

    fn open(out_dir: &Path, how: &OpenOptions) -> Result<Self, Error> {
        let path = out_dir.join(LOCK_FILE);
        let Ok(file) = how.open(&path) else { return Ok(FolderLock { _file: None }) };
        match file.try_lock() {
            Ok(()) => Ok(FolderLock { _file: Some(file) }),
            Err(TryLockError::Error(_)) => Ok(FolderLock { _file: None }),
            Err(TryLockError::WouldBlock) => Err(Error::input(format!(
                "--out_dir {}: another run is at work there (it holds {}); wait until it ends, or choose another folder",
                out_dir.display(),
                path.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_while_the_first_lives() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let first = FolderLock::of_earlier(out).unwrap();
        assert!(!out.join(LOCK_FILE).exists(), "nothing is written before the run");
        let first = first.take(out).unwrap();
        for second in [FolderLock::of_earlier(out), FolderLock { _file: None }.take(out)] {
            let error = second.err().unwrap().to_string();
            assert!(error.contains(".engraft.lock") && error.contains("choose another folder"), "{error}");
        }
        drop(first);
        FolderLock::of_earlier(out).unwrap().take(out).unwrap();
        assert!(FolderLock::of_earlier(&out.join("nowhere")).is_ok());
    }
}
