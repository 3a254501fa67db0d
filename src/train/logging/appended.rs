//! A log's file, which grows by records. What the disk has no room for waits, and goes first with the next record.

use super::MetricsError;
use crate::checkpoint::atomic;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(super) struct Appended {
    file: File,
    path: PathBuf,
    /// Bytes of whole records in the file.
    length: u64,
    waiting: Vec<u8>,
}

impl Appended {
    /// Replaces the file, and opens it for what comes after.
    pub fn create(path: PathBuf, bytes: &[u8]) -> Result<Self, MetricsError> {
        let open = || {
            atomic::write_file(&path, |out| out.write_all(bytes))?;
            let mut file = File::options().write(true).open(&path)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|source: io::Error| MetricsError::Create { path: path.clone(), source })?;
        Ok(Appended { file, path, length: bytes.len() as u64, waiting: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One unbuffered write per record, so that an interrupted run leaves whole ones.
    pub fn append(&mut self, record: &[u8]) -> Result<(), MetricsError> {
        self.waiting.extend(record);
        match self.file.write_all(&self.waiting) {
            Ok(()) => {
                self.length += self.waiting.len() as u64;
                self.waiting.clear();
                Ok(())
            }
            Err(source) => {
                // a part of a record would spoil the next one; where it cannot be taken back, that is written over it
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                Err(MetricsError::write(&self.path)(source))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_could_not_be_written_comes_with_the_next_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Appended::create(path.clone(), b"one\n").unwrap();
        log.append(b"two\n").unwrap();
        // a file that is open for reading alone takes nothing
        let file = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        for record in [b"three\n", b"four!\n"] {
            let error = log.append(record).unwrap_err().to_string();
            assert!(error.contains("log") && error.contains("disk full"), "{error}");
        }
        log.file = file;
        log.append(b"five\n").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\nthree\nfour!\nfive\n");
    }
}
