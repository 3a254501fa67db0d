//! What a Rust program that depends on the crate downloads.

use std::path::Path;
use std::process::Command;

/// What crates.io takes, compressed; here of the files as they are.
const LIMIT: u64 = 10 << 20;

#[test]
fn the_crate_fits_on_crates_io_and_has_all_it_is_built_from() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listing = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline", "--manifest-path"])
        .arg(root.join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
    let listing = String::from_utf8(listing.stdout).unwrap();
    // cargo adds files of its own to the list
    let bytes: u64 =
        listing.lines().filter_map(|file| root.join(file).metadata().ok()).map(|file| file.len()).sum();
    assert!(bytes < LIMIT, "{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    for needed in [
        "Cargo.lock",
        "README.md",
        "src/lib.rs",
        "shaders/matmul_tiled.wgsl",
        "benches/matmul.rs",
        "examples/finetune.rs",
    ] {
        assert!(listing.lines().any(|file| file == needed), "{needed}");
    }
    assert!(
        !listing.lines().any(|file| file.starts_with("tests/")),
        "the tests need fixtures that are left out"
    );
}
