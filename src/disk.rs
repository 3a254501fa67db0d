//! Room on disks.

use std::path::Path;

/// Bytes that are free for this user where a folder is, or will be; `None` where nobody tells.
pub fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let stat = fs4::statvfs(there).ok()?;
    // file systems that know nothing say 0 to all
    (stat.total_space() > 0).then(|| stat.available_space())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_room_of_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let there = free_space(folder.path());
        assert_eq!(free_space(&folder.path().join("a/b")).is_some(), there.is_some());
        assert!(free_space(Path::new("nowhere")).is_some());
        if cfg!(target_os = "linux") {
            assert!(there.is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
