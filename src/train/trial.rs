//! What is being measured now, on disk: a driver that ends the process, or the machine, leaves it behind for a later start to find.
//!
//! Each measurement has a file of its own, locked while its process lives: what is not locked was left behind.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Names of the files begin and end so.
const PREFIX: &str = "trying-";
const SUFFIX: &str = ".json";

/// The files of this process, and since when each says what it says.
static UNDER_WAY: LazyLock<Mutex<HashMap<PathBuf, Instant>>> = LazyLock::new(Mutex::default);

/// What takes this long may be why its user ends the program.
const SUSPICIOUS: Duration = Duration::from_secs(10);

fn under_way() -> MutexGuard<'static, HashMap<PathBuf, Instant>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a program that ends because its user asks for it: what it was trying is not the cause, unless that took suspiciously long.
pub fn forget_trials() {
    let mut files = under_way();
    forget(&mut files);
    // the program goes on for a moment, and must not begin another
    std::mem::forget(files);
}

fn forget(files: &mut HashMap<PathBuf, Instant>) {
    for (path, _) in files.drain().filter(|(_, since)| since.elapsed() < SUSPICIOUS) {
        let _ = fs::remove_file(path);
    }
}

/// Variants about to be compiled or run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trying {
    /// As in the file of measured kernels.
    pub device: String,
    pub class: String,
    /// Several where a driver compiles several at a time.
    pub variants: Vec<String>,
}

/// A measurement under way.
pub(super) struct Trial {
    /// Where files go; `None` leaves none.
    folder: Option<PathBuf>,
    trying: Trying,
    file: Option<(File, PathBuf)>,
    synced: HashSet<Vec<String>>,
}

impl Trial {
    pub fn new(folder: Option<&Path>, device: &str, class: String) -> Self {
        let trying = Trying { device: device.to_owned(), class, variants: Vec::new() };
        Trial { folder: folder.map(Path::to_owned), trying, file: None, synced: HashSet::new() }
    }

    /// Takes down what comes next. Where that cannot be written, a crash is not remembered.
    pub fn note(&mut self, variants: &[&str]) {
        if self.trying.variants == variants {
            return;
        }
        self.trying.variants = variants.iter().map(|&v| v.to_owned()).collect();
        let mut files = under_way();
        if self.file.is_none() {
            self.file = self.folder.as_deref().and_then(|folder| create(folder).ok());
        }
        if let Some((file, path)) = &mut self.file {
            files.insert(path.clone(), Instant::now());
            drop(files);
            // the first run of a variant may take the machine with it, the later ones hardly
            let sync = self.synced.insert(self.trying.variants.clone());
            let _ = write(file, &self.trying, sync);
        }
    }

    /// What was noted last.
    pub fn variants(&self) -> &[String] {
        &self.trying.variants
    }

    /// Ends it: nothing is left behind.
    pub fn end(self) {
        if let Some((_, path)) = self.file {
            let mut files = under_way();
            files.remove(&path);
            let _ = fs::remove_file(path);
        }
    }
}

/// A locked file of a new name. It is not removed by itself: an unwinding process leaves it behind like any other that ends.
fn create(folder: &Path) -> io::Result<(File, PathBuf)> {
    fs::create_dir_all(folder)?;
    let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder)?;
    // without a lock nobody could tell that its process lives
    file.as_file().try_lock()?;
    Ok(file.keep()?)
}

fn write(file: &mut File, trying: &Trying, sync: bool) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(trying)?;
    text.push(b'\n');
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&text)?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// A trial that did not end; nobody else finds it while this is held.
pub(super) struct LeftBehind {
    pub trying: Trying,
    path: PathBuf,
    _lock: File,
}

impl LeftBehind {
    /// All in the folder.
    pub fn find(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
        });
        named.filter_map(|entry| LeftBehind::open(entry.path())).collect()
    }

    /// `None` where its process lives, or had not written it yet.
    fn open(path: PathBuf) -> Option<Self> {
        let mut file = File::options().read(true).write(true).open(&path).ok()?;
        file.try_lock().ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        Some(LeftBehind { trying: serde_json::from_str(&text).ok()?, path, _lock: file })
    }

    /// For who has taken it down elsewhere.
    pub fn forget(self) {
        let _ = fs::remove_file(self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_leaves_behind_is_found_once_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let found = || LeftBehind::find(&folder).into_iter().map(|left| left.trying).collect::<Vec<_>>();
        let mut trial = Trial::new(Some(&folder), "device", "class".into());
        assert!(found().is_empty());
        trial.note(&["a long name of a variant", "b"]);
        trial.note(&["c"]);
        assert!(found().is_empty(), "it is under way");
        drop(trial);
        let expected = Trying { device: "device".into(), class: "class".into(), variants: vec!["c".into()] };
        let left = LeftBehind::find(&folder);
        assert_eq!(left.iter().map(|left| &left.trying).collect::<Vec<_>>(), [&expected]);
        assert!(found().is_empty(), "somebody has it already");
        drop(left);
        LeftBehind::find(&folder).into_iter().for_each(LeftBehind::forget);
        assert!(found().is_empty() && fs::read_dir(&folder).unwrap().next().is_none());
    }

    #[test]
    fn who_ends_the_program_condemns_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let (mut long, mut short) = (
            Trial::new(Some(folder.path()), "device", "long".into()),
            Trial::new(Some(folder.path()), "device", "short".into()),
        );
        long.note(&["a"]);
        short.note(&["b"]);
        let path = long.file.as_ref().unwrap().1.clone();
        let Some(before) = Instant::now().checked_sub(2 * SUSPICIOUS) else { return };
        under_way().insert(path, before);
        assert_eq!(files(), 2);
        forget(&mut under_way());
        assert_eq!(files(), 1);
        drop((long, short));
        let left: Vec<String> =
            LeftBehind::find(folder.path()).into_iter().map(|left| left.trying.class).collect();
        assert_eq!(left, ["long"]);
    }

    #[test]
    fn a_trial_that_ends_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut trial = Trial::new(Some(folder.path()), "device", "class".into());
        trial.note(&["a"]);
        assert_eq!(trial.variants(), ["a"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        trial.end();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        let nowhere = folder.path().join("file");
        fs::write(&nowhere, "").unwrap();
        let mut trial = Trial::new(Some(&nowhere), "device", "class".into());
        trial.note(&["a"]);
        assert_eq!(trial.variants(), ["a"], "nothing can be written there");
        trial.end();
    }
}
