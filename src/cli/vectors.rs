//! Vectors of 512 bits on a software device.
//!
//! llvmpipe computes 256 bits at a time, whatever the processor has, unless its environment says otherwise before it is loaded.
//! With 512 the products are faster by a third to a half in Mesa 26; in Mesa 22 they are slower (docs/experiments.md). So the
//! program looks at the driver first, and starts itself again with the variable set.

use super::args::Command;

/// Starts the program again with wide vectors, where it is about to use a software device that is faster with them. Returns
/// where it is not, or where that failed.
pub(super) fn widen(command: &Command) {
    if opens_device(command) {
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        linux::widen();
    }
}

fn opens_device(command: &Command) -> bool {
    match command {
        Command::Finetune(_)
        | Command::FinetuneFull(_)
        | Command::Generate(_)
        | Command::Chat(_)
        | Command::Serve(_)
        | Command::Evaluate(_)
        | Command::Devices(_)
        | Command::Plan(_)
        | Command::Tune(_)
        | Command::Bench(_) => true,
        Command::Download(_)
        | Command::Data(_)
        | Command::MergeLora(_)
        | Command::Export(_)
        | Command::Validate(_)
        | Command::Init(_)
        | Command::Completions(_)
        | Command::Report(_) => false,
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux {
    use crate::gpu::list_devices;
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    /// What llvmpipe reads once, where it is loaded.
    const WIDTH: &str = "LP_NATIVE_VECTOR_WIDTH";

    /// The oldest Mesa that was measured and found faster.
    const MESA: u32 = 26;

    pub fn widen() {
        let wanted = std::env::var_os(WIDTH).is_none() && is_x86_feature_detected!("avx512f");
        // who has a GPU does not wait for its driver twice
        if !wanted || has_gpu(Path::new("/dev")) {
            return;
        }
        let gains = |driver: &str| mesa_of_llvmpipe(driver).is_some_and(|version| version >= MESA);
        if !list_devices().first().is_some_and(|device| gains(&device.driver)) {
            return;
        }
        // as the process was started, by way of a loader too: `ld.so --library-path … program …`
        let Ok(words) = fs::read("/proc/self/cmdline") else { return };
        let mut words = words.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec()));
        let Some(name) = words.next() else { return };
        let mut arguments: Vec<OsString> = words.collect();
        // the last word ends in a zero as well
        arguments.pop();
        // returns where it failed: the narrow vectors will do
        let _ = Command::new("/proc/self/exe").arg0(name).args(arguments).env(WIDTH, "512").exec();
    }

    /// Whether the kernel has the node of a GPU: of the usual drivers, NVIDIA's or WSL's.
    fn has_gpu(dev: &Path) -> bool {
        let render = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("renderD");
        let nodes = fs::read_dir(dev.join("dri")).into_iter().flatten().flatten();
        nodes.into_iter().any(render) || ["nvidiactl", "dxg"].iter().any(|node| dev.join(node).exists())
    }

    /// The major version in "llvmpipe Mesa 26.2.6-1 (LLVM 22.1.8)".
    fn mesa_of_llvmpipe(driver: &str) -> Option<u32> {
        let version = driver.strip_prefix("llvmpipe Mesa ")?;
        version.split('.').next()?.parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_version_is_read_from_the_driver() {
            assert_eq!(mesa_of_llvmpipe("llvmpipe Mesa 26.2.6-1 (LLVM 22.1.8)"), Some(26));
            assert_eq!(mesa_of_llvmpipe("llvmpipe Mesa 22.3.6 (LLVM 15.0.6)"), Some(22));
            assert_eq!(mesa_of_llvmpipe("radv Mesa 26.2.6"), None);
            assert_eq!(mesa_of_llvmpipe("SwiftShader driver 5.0.0"), None);
        }

        #[test]
        fn a_gpu_is_seen_by_its_node() -> Result<(), std::io::Error> {
            let dev = tempfile::tempdir()?;
            assert!(!has_gpu(dev.path()));
            fs::create_dir(dev.path().join("dri"))?;
            fs::write(dev.path().join("dri/card0"), "")?;
            assert!(!has_gpu(dev.path()));
            fs::write(dev.path().join("dri/renderD128"), "")?;
            assert!(has_gpu(dev.path()));
            let dev = tempfile::tempdir()?;
            fs::write(dev.path().join("nvidiactl"), "")?;
            assert!(has_gpu(dev.path()));
            Ok(())
        }
    }
}
