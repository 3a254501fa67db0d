//! Files and folders that appear under their final name complete or not at all.
//!
//! The content goes to a temporary sibling (same file system, so that the rename is one step), is
//! forced to the disk, renamed, and then the folder's entry is forced to the disk as well. A killed
//! process leaves at most a hidden `.NAME.*` sibling behind. Renames and removals wait for what Windows holds open for a moment.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::{Builder, TempDir};

/// For how long a file is waited for that another program has open.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes a file by way of a temporary one, replacing what was there only when all is written.
///
/// # Errors
/// Those of `write` and of the file system; the temporary file is removed and the old one untouched.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = parent(path);
    let (name, refused) = (folder.display(), |kind, reason: String| Err(io::Error::new(kind, reason)));
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return refused(io::ErrorKind::NotADirectory, format!("{name} is a file, not a folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refused(error.kind(), format!("there is no folder {name}, make it first"));
        }
        Err(error) => return Err(error),
    }
    let mut builder = Builder::new();
    let prefix = hidden_prefix(path)?;
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary files are private by default; the result should have the usual permissions (0666 less umask).
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    let temporary = file.into_temp_path().keep().map_err(|error| error.error)?;
    rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_folder(folder)
}

/// Renames a file, replacing one that is there, or a folder.
///
/// Windows refuses for as long as another program has the file, or one in the folder, open: scanners for viruses and indexers do for a moment
/// after a file was written, so there it is tried again for five seconds. What lasts, such as a folder in the file's place or a missing
/// permission, Windows says in the same way: that comes as late.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    patiently(cfg!(windows), PATIENCE, || fs::rename(from, to))
}

/// Removes a file, as patient as [`rename`].
///
/// # Errors
/// Those of the file system.
pub fn remove_file(path: &Path) -> io::Result<()> {
    patiently(cfg!(windows), PATIENCE, || fs::remove_file(path))
}

/// Removes a folder and what is in it, as patient as [`rename`].
///
/// # Errors
/// Those of the file system.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    patiently(cfg!(windows), PATIENCE, || fs::remove_dir_all(path))
}

/// Renames a folder to a name that is free, or an empty folder's.
fn take_place(from: &Path, to: &Path) -> io::Result<()> {
    // a link to a folder is none, and stays
    if !cfg!(windows) || !fs::symlink_metadata(to).is_ok_and(|found| found.is_dir()) {
        return rename(from, to);
    }
    // not every file system of Windows puts a folder in an empty one's place
    fs::rename(from, to).or_else(|_| {
        fs::remove_dir(to)?;
        rename(from, to).inspect_err(|_| drop(fs::create_dir(to)))
    })
}

/// Tries again what fails because another program has a file open, as Windows says it.
fn patiently(windows: bool, patience: Duration, mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let (began, mut rest) = (Instant::now(), Duration::from_millis(10));
    loop {
        match act() {
            Err(error) if windows && is_open(&error) && began.elapsed() < patience => sleep(rest),
            ended => return ended,
        }
        rest = (2 * rest).min(Duration::from_millis(500));
    }
}

/// ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION or ERROR_LOCK_VIOLATION, which are 5, 32 and 33.
fn is_open(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(5 | 32 | 33))
}

/// A folder in the making: filled under a temporary name, it appears with [`NewFolder::commit`].
///
/// Dropped without it, the temporary folder is removed.
pub struct NewFolder {
    temporary: TempDir,
    path: PathBuf,
}

impl NewFolder {
    /// Begins the folder `path`, which must not exist (or be empty); missing parents are made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let folder = parent(path);
        let prefix = hidden_prefix(path)?;
        fs::create_dir_all(folder)?;
        let mut builder = Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // as for files: the permissions that `mkdir` gives
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(folder)?;
        Ok(NewFolder { temporary, path: path.to_path_buf() })
    }

    /// Where to write the files; each is expected to be synced, as [`write_file`] does.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// Those of the file system; the temporary folder is removed.
    pub fn commit(self) -> io::Result<()> {
        sync_folder(self.temporary.path())?;
        take_place(self.temporary.path(), &self.path)?;
        // Renamed away: there is nothing left to remove.
        let _ = self.temporary.keep();
        sync_folder(parent(&self.path))
    }
}

/// Where a link leads to, since no folder can be renamed to a link's name; any other path as it is, and so is a link to nothing.
pub fn behind_link(path: &Path) -> PathBuf {
    // without a slash at the end, which would be the folder behind the link
    let path: PathBuf = path.components().collect();
    let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
    let behind = is_link.then(|| dunce::canonicalize(&path).ok()).flatten();
    behind.unwrap_or(path)
}

/// Whether another disk begins at this folder: then nothing beside it can be renamed to its name.
pub fn is_mount_point(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let disk = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
        let path = behind_link(path);
        disk(&path).is_some_and(|own| disk(parent(&path)).is_some_and(|beside| beside != own))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn hidden_prefix(path: &Path) -> io::Result<OsString> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} does not end in a name", path.display()))
    })?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    Ok(prefix)
}

/// A rename is durable only when the folder is on the disk; other systems than Unix have no call for it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.bin");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_file(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(error.unwrap_err().to_string(), "disk full");
        let nowhere = write_file(&folder.path().join("no/state.bin"), |_| Ok(())).unwrap_err().to_string();
        assert!(nowhere.starts_with("there is no folder ") && nowhere.contains("make it first"), "{nowhere}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state.bin"]);
        write_file(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["state.bin"]);
    }

    #[test]
    fn a_file_that_cannot_get_its_name_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        write_file(&path, |out| out.write_all(b"new")).unwrap_err();
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn what_windows_holds_open_for_a_moment_is_waited_for() {
        let attempts = |windows, patience, code: i32, failures: usize| {
            let mut attempts = 0;
            let ended = patiently(windows, patience, || {
                attempts += 1;
                if attempts > failures { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
            });
            (attempts, ended.is_ok())
        };
        for code in [5, 32, 33] {
            assert_eq!(attempts(true, PATIENCE, code, 2), (3, true));
            assert_eq!(attempts(true, Duration::ZERO, code, 2), (1, false));
            assert_eq!(attempts(false, PATIENCE, code, 2), (1, false));
        }
        assert_eq!(attempts(true, PATIENCE, 2, 1), (1, false), "a file that is not there");
    }

    #[cfg(unix)]
    #[test]
    fn files_and_folders_have_the_usual_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_file(&ours, |out| out.write_all(b"x")).unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        let (ours, plain) = (folder.path().join("ours.d"), folder.path().join("plain.d"));
        NewFolder::begin(&ours).unwrap().commit().unwrap();
        fs::create_dir(&plain).unwrap();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/step-000010");
        let folder_in_making = NewFolder::begin(&path).unwrap();
        fs::write(folder_in_making.path().join("first"), b"1").unwrap();
        assert!(!path.exists());
        drop(folder_in_making);
        assert!(names(&folder.path().join("runs")).is_empty());

        let folder_in_making = NewFolder::begin(&path).unwrap();
        fs::write(folder_in_making.path().join("first"), b"1").unwrap();
        folder_in_making.commit().unwrap();
        assert_eq!(names(&folder.path().join("runs")), ["step-000010"]);
        assert_eq!(names(&path), ["first"]);

        let second = NewFolder::begin(&path).unwrap();
        assert!(second.commit().is_err(), "a folder with content is never replaced");
        assert_eq!(names(&folder.path().join("runs")), ["step-000010"]);
    }

    #[test]
    fn a_path_without_a_name_is_an_error() {
        assert!(write_file(Path::new(".."), |_| Ok(())).is_err());
    }
}
