//! What several test files share.
#![allow(dead_code)]

pub mod cases;
pub mod http;

use engraft::data::MicroBatch;
use engraft::gpu::{Gpu, GpuError, GpuOptions};
use engraft::graph::MatrixShape;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The device to test on, or `None` with a loud word where there is none.
///
/// `ENGRAFT_TEST_GPU` names another than the best one; `ENGRAFT_TEST_CHECKED=1` keeps bounds checks;
/// `ENGRAFT_TEST_NO_SUBGROUPS=1` tests the variants for devices without subgroups; `ENGRAFT_TEST_MAX_BINDING` is the most bytes
/// that a kernel may bind at once; `ENGRAFT_TEST_MATRICES` as in `8x16x16` is the shape of cooperative matrices in software,
/// `ENGRAFT_TEST_LANES` the size of the subgroups that share one.
pub fn gpu() -> Option<Gpu> {
    gpu_with(false)
}

pub fn gpu_with(no_subgroups: bool) -> Option<Gpu> {
    gpu_limited(no_subgroups, None)
}

/// A device that binds no more than so many bytes at once.
pub fn gpu_limited(no_subgroups: bool, max_binding: Option<u64>) -> Option<Gpu> {
    gpu_of(|options| GpuOptions {
        no_subgroups: no_subgroups || options.no_subgroups,
        max_binding: max_binding.or(options.max_binding),
        ..options
    })
}

/// The device to test on, with other options than usual.
pub fn gpu_of(options: impl FnOnce(GpuOptions) -> GpuOptions) -> Option<Gpu> {
    let on = |name: &str| std::env::var(name).is_ok_and(|v| v == "1");
    let options = options(GpuOptions {
        device: std::env::var("ENGRAFT_TEST_GPU").ok(),
        checked: on("ENGRAFT_TEST_CHECKED"),
        no_subgroups: on("ENGRAFT_TEST_NO_SUBGROUPS"),
        no_coop: on("ENGRAFT_TEST_NO_COOP"),
        software_coop: Some(matrices_of_tests()),
        software_lanes: lanes_of_tests(),
        max_binding: max_binding_of_tests(),
        ..GpuOptions::default()
    });
    match Gpu::open(&options) {
        Ok(gpu) => Some(gpu),
        Err(GpuError::NoDevice) if !on("ENGRAFT_TEST_REQUIRE_GPU") => {
            eprintln!("SKIPPED: no GPU and no software Vulkan driver on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Cooperative matrices of software, as `ENGRAFT_TEST_MATRICES` says; lavapipe's own where it says nothing.
fn matrices_of_tests() -> MatrixShape {
    let shape = std::env::var("ENGRAFT_TEST_MATRICES").unwrap_or("8x8x8".into());
    shape.parse().unwrap_or_else(|error| panic!("ENGRAFT_TEST_MATRICES: {error}"))
}

/// The subgroups that share one, as `ENGRAFT_TEST_LANES` says.
fn lanes_of_tests() -> Option<u32> {
    let lanes = std::env::var("ENGRAFT_TEST_LANES").ok()?;
    let lanes = lanes.parse().unwrap_or_else(|error| panic!("ENGRAFT_TEST_LANES: {error}"));
    assert!(
        lanes > 0 && lanes % 8 == 0,
        "ENGRAFT_TEST_LANES: {lanes} is no multiple of lavapipe's subgroups of 8"
    );
    Some(lanes)
}

/// The limit that `ENGRAFT_TEST_MAX_BINDING` sets.
pub fn max_binding_of_tests() -> Option<u64> {
    std::env::var("ENGRAFT_TEST_MAX_BINDING").ok().and_then(|bytes| bytes.parse().ok())
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Writes a fixture (a Gemma 3, Mistral or Ministral 3) as the language model of one that sees images too, of whose other part one tensor is
/// there.
pub fn embed(name: &str, folder: &Path) {
    let alone = fixtures().join("models").join(name);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(alone.join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(alone.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let (architecture, kind) = match name {
        "gemma3" => ("Gemma3ForConditionalGeneration", "gemma3"),
        _ => ("Mistral3ForConditionalGeneration", "mistral3"),
    };
    let config = serde_json::json!({
        "architectures": [architecture], "model_type": kind, "text_config": config, "torch_dtype": "bfloat16",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("preprocessor_config.json"), "{}").unwrap();
    let bytes = std::fs::read(alone.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> =
        file.iter().map(|(name, view)| (format!("language_model.{name}"), view)).collect();
    tensors.push((PROJECTOR.into(), file.tensor("model.norm.weight").unwrap()));
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// The tensor of the other part in [`embed`].
pub const PROJECTOR: &str = "multi_modal_projector.mm_soft_emb_norm.weight";

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

/// A padded batch of rows of `width` as a flat stream without its padding.
pub fn flat_batch(ids: &[f64], mask: &[f64], labels: &[f64], width: usize) -> MicroBatch {
    let rows = ids.len() / width;
    let mut batch = MicroBatch {
        tokens: vec![],
        positions: vec![],
        segment_start: vec![],
        segment_end: vec![],
        label_rows: vec![],
        targets: vec![],
    };
    for row in 0..rows {
        let length = mask[row * width..(row + 1) * width].iter().filter(|&&m| m == 1.0).count();
        let start = batch.tokens.len() as u32;
        for t in 0..length {
            let at = row * width + t;
            if t > 0 && labels[at] >= 0.0 {
                batch.label_rows.push(start + t as u32 - 1);
                batch.targets.push(labels[at] as u32);
            }
            batch.tokens.push(ids[at] as u32);
            batch.positions.push(t as u32);
            batch.segment_start.push(start);
            batch.segment_end.push(start + length as u32);
        }
    }
    batch
}

fn integers(file: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.chunks(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
}

/// The evaluation batch of a reference file.
pub fn reference_batch(file: &Path) -> MicroBatch {
    let part = |name| integers(file, name);
    flat_batch(&part("input_ids"), &part("attention_mask"), &part("labels"), 24)
}

/// Which positions of that batch are not padding.
pub fn real_rows(file: &Path) -> Vec<usize> {
    integers(file, "attention_mask").iter().enumerate().filter(|(_, m)| **m == 1.0).map(|(i, _)| i).collect()
}

/// Runs the program.
pub fn engraft(arguments: &[&str]) -> Output {
    // nothing outside the build's own folder is written
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    Command::new(env!("CARGO_BIN_EXE_engraft")).env("ENGRAFT_CACHE", cache).args(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a script of `tests/python` prints; `None`, said loudly, where Python or a package that it needs is missing (exit code
/// 77).
pub fn python(script: &str, arguments: &[&str]) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    match Command::new("python3").arg(path).args(arguments).output() {
        Ok(output) if output.status.code() != Some(77) => {
            assert!(output.status.success(), "{script}: {}", text(&output.stderr));
            Some(text(&output.stdout))
        }
        found => {
            let reason = found.map_or_else(|error| error.to_string(), |output| text(&output.stderr));
            eprintln!("SKIPPED: {script}: {}", reason.trim());
            None
        }
    }
}
