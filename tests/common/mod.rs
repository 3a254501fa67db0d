//! What several test files share.
#![allow(dead_code)]

use engraft::gpu::{Gpu, GpuError, GpuOptions};
use std::path::PathBuf;

/// The device to test on, or `None` with a loud word where there is none.
///
/// `ENGRAFT_TEST_GPU` names another than the best one; `ENGRAFT_TEST_CHECKED=1` keeps bounds checks;
/// `ENGRAFT_TEST_NO_SUBGROUPS=1` tests the variants for devices without subgroups.
pub fn gpu() -> Option<Gpu> {
    gpu_with(false)
}

pub fn gpu_with(no_subgroups: bool) -> Option<Gpu> {
    let on = |name: &str| std::env::var(name).is_ok_and(|v| v == "1");
    let options = GpuOptions {
        device: std::env::var("ENGRAFT_TEST_GPU").ok(),
        checked: on("ENGRAFT_TEST_CHECKED"),
        no_subgroups: no_subgroups || on("ENGRAFT_TEST_NO_SUBGROUPS"),
        no_coop: on("ENGRAFT_TEST_NO_COOP"),
        pipelines: None,
        memory_limit: None,
    };
    match Gpu::open(&options) {
        Ok(gpu) => Some(gpu),
        Err(GpuError::NoDevice) if !on("ENGRAFT_TEST_REQUIRE_GPU") => {
            eprintln!("SKIPPED: no GPU and no software Vulkan driver on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Reproducible numbers in [-1, 1).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
