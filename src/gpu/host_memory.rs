//! How much of the host's memory this process may still take, as the system tells.
//!
//! On Linux three things bound it: what the system has (`MemAvailable`), what the control groups of the process allow (a container's limit,
//! which `MemAvailable` knows nothing of and beyond which processes are killed), and the process's own limit (`ulimit -v`).

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that can be allocated without swapping.
pub(super) fn available() -> Option<u64> {
    elsewhere::available().or_else(of_linux)
}

/// Bytes that a GPU without memory of its own can work in: of all memory two thirds, about the share that Metal recommends, and no more
/// than is available.
pub(super) fn of_gpu() -> Option<u64> {
    let total = elsewhere::total().or_else(|| kib(&read_to_string("/proc/meminfo").ok()?, "MemTotal:"))?;
    available().map(|bytes| bytes.min(total / 3 * 2))
}

/// Systems without `/proc`.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    fn memory(of: impl Fn(&sysinfo::System) -> u64) -> Option<u64> {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        Some(of(&system)).filter(|bytes| *bytes > 0)
    }

    pub fn available() -> Option<u64> {
        memory(sysinfo::System::available_memory)
    }

    pub fn total() -> Option<u64> {
        memory(sysinfo::System::total_memory)
    }
}

#[cfg(target_os = "linux")]
mod elsewhere {
    pub fn available() -> Option<u64> {
        None
    }

    pub fn total() -> Option<u64> {
        None
    }
}

fn of_linux() -> Option<u64> {
    let system = of_system(&read_to_string("/proc/meminfo").ok()?);
    let groups = read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| of_groups(&text, Path::new("/sys/fs/cgroup")));
    let process = [read_to_string("/proc/self/limits"), read_to_string("/proc/self/status")];
    let process = match process {
        [Ok(limits), Ok(status)] => of_process(&limits, &status),
        _ => None,
    };
    [system, groups, process].into_iter().flatten().min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn of_system(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// The value of such a line, `NAME  123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the process's own limit of its address space leaves, from `/proc/self/limits` and `/proc/self/status`.
fn of_process(limits: &str, status: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    // "unlimited" is no number
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib(status, "VmSize:")?))
}

/// What the least generous control group leaves: those of the process (`/proc/self/cgroup`) and all that they are in. Files that
/// can be given back count as free.
fn of_groups(groups: &str, root: &Path) -> Option<u64> {
    let files = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/').to_owned());
        // version 2 has one hierarchy for all controllers, without a name
        let (folder, names) = match controllers {
            "" => (root.to_path_buf(), ["memory.max", "memory.current", "inactive_file ", "active_file "]),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let names = [
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file ",
                    "total_active_file ",
                ];
                (root.join("memory"), names)
            }
            _ => return None,
        };
        Some((folder, path, names))
    };
    let left = |folder: &Path, [limit, usage, inactive, active]: [&str; 4]| {
        let number = |name: &str| read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(limit)?, number(usage)?);
        let stat = read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let reclaimable = bytes(inactive) + bytes(active);
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    };
    let all = groups.lines().filter_map(files).flat_map(|(folder, path, names)| {
        let all: Vec<_> = Path::new(&path).ancestors().map(|path| folder.join(path)).collect();
        all.into_iter().filter_map(move |folder| left(&folder, names))
    });
    all.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       24689764 kB\nMemFree:        20 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(of_system(text), Some(23_068_672 << 10));
        assert_eq!(of_system("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_limited_process_has_what_its_limit_leaves() {
        let limits = |soft| {
            format!("Limit  Soft Limit  Hard Limit  Units\nMax address space    {soft}   unlimited   bytes\n")
        };
        let status = "VmPeak:\t  4096 kB\nVmSize:\t  1024 kB\n";
        assert_eq!(of_process(&limits("3145728"), status), Some(2 << 20));
        assert_eq!(of_process(&limits("1000"), status), Some(0));
        assert_eq!(of_process(&limits("unlimited"), status), None);
    }

    #[test]
    fn the_least_generous_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, files: &[(&str, &str)]| {
            let folder = root.path().join(path);
            fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        };
        // version 2: the group allows all that the one around it has
        group("pod/run", &[("memory.max", "max\n"), ("memory.current", "500\n")]);
        let stat = "anon 100\ninactive_file 150\nactive_file 50\n";
        group("pod", &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", stat)]);
        assert_eq!(of_groups("0::/pod/run\n", root.path()), Some(500));
        // version 1, beside others
        let stat = "inactive_file 1\ntotal_inactive_file 30\n";
        let files =
            [("memory.limit_in_bytes", "900\n"), ("memory.usage_in_bytes", "800\n"), ("memory.stat", stat)];
        group("memory/docker/a", &files);
        assert_eq!(of_groups("3:cpu:/x\n4:memory:/docker/a\n0::/\n", root.path()), Some(130));
        assert_eq!(of_groups("3:cpu:/x\n", root.path()), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        let available = available().unwrap();
        assert!(available > 1 << 20);
        assert!(of_gpu().is_some_and(|bytes| bytes > 1 << 20 && bytes <= available));
    }
}
