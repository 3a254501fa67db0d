//! Vectors of 512 bits on llvmpipe, Mesa's device in software.
//!
//! It computes 256 bits at a time, whatever the processor has, unless its environment says otherwise before it is loaded. With
//! 512 a training step is faster on Mesa 26 and slower on Mesa 22 (docs/benchmarks.md, docs/experiments.md).

use super::list_devices;
use std::fs;
use std::path::Path;

/// What llvmpipe reads once, where it is loaded.
const WIDTH: &str = "LP_NATIVE_VECTOR_WIDTH";

/// The oldest Mesa that was measured and found faster.
const MESA: u32 = 26;

/// The environment variable and its value with which a new process would run faster than this one, if there is such: the
/// processor has AVX-512, there is no GPU, the device is llvmpipe of Mesa 26 or later, and nobody set the variable.
pub fn wide_vectors() -> Option<(&'static str, &'static str)> {
    // who has a GPU does not wait for its driver twice
    if std::env::var_os(WIDTH).is_some() || !has_wide_registers() || has_gpu(Path::new("/dev")) {
        return None;
    }
    let mesa = mesa_of_llvmpipe(&list_devices().first()?.driver)?;
    (mesa >= MESA).then_some((WIDTH, "512"))
}

#[cfg(target_arch = "x86_64")]
fn has_wide_registers() -> bool {
    is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_registers() -> bool {
    false
}

/// Whether Linux has the node of a GPU: of the usual drivers, NVIDIA's or WSL's.
fn has_gpu(dev: &Path) -> bool {
    let render = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("renderD");
    let mut nodes = fs::read_dir(dev.join("dri")).into_iter().flatten().flatten();
    nodes.any(render) || ["nvidiactl", "dxg"].iter().any(|node| dev.join(node).exists())
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
