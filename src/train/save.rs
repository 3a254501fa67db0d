//! What a run leaves behind: adapters, whole models, its settings. Files appear under their final name when complete.

use super::adapter::extract;
use super::options::FinetuneOptions;
use super::run_folder::HYPERPARAMETERS_FILE;
use super::trainer::Trainer;
use crate::checkpoint::{AdapterConfig, atomic, encode, write_safetensors};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::DType;
use crate::models::Network;
use serde_json::json;
use std::io;
use std::path::Path;

/// Files of a model folder that go with the weights wherever they are saved.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "added_tokens.json",
];

/// Writes the adapter as PEFT does.
///
/// # Errors
/// A folder that cannot be written, and what the device reported.
pub fn save_adapter(trainer: &Trainer, settings: AdapterConfig, folder: &Path) -> Result<(), Error> {
    let adapter = extract(trainer.optimiser(), &trainer.network().config, settings)?;
    adapter.write(folder)?;
    Ok(())
}

/// Writes the trained weights in the storage type that the model's configuration names, with the tokenizer.
///
/// # Errors
/// As [`save_adapter`].
pub fn save_model(trainer: &Trainer, model_dir: &Path, folder: &Path) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source: io::Error| Error::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    for name in COMPANIONS {
        let (from, to) = (model_dir.join(name), folder.join(name));
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(failed(&from))?;
            atomic::write_file(&to, |out| out.write_all(&bytes)).map_err(failed(&to))?;
        }
    }
    let dtype = stored_dtype(model_dir);
    let shapes = trainer.network().config.expected_shapes();
    let tensors = trainer.optimiser().parameters()?.into_iter().filter_map(|(name, values)| {
        let dims = shapes.iter().find(|(n, _)| *n == name)?.1.clone();
        let mut bytes = Vec::new();
        encode(&values, dtype, &mut bytes);
        Some((name, dtype, dims, bytes))
    });
    write_safetensors(&folder.join("model.safetensors"), tensors, &[("format", "pt")])?;
    Ok(())
}

/// Writes `hyperparameters.json`: every option as it was resolved, with what the run found out.
///
/// # Errors
/// A folder that cannot be written.
pub fn save_hyperparameters(
    options: &FinetuneOptions,
    steps: usize,
    gpu: &Gpu,
    network: &Network,
) -> Result<(), Error> {
    let path = options.out_dir.join(HYPERPARAMETERS_FILE);
    let failed = |source| Error::Write { path: path.clone(), source };
    std::fs::create_dir_all(&options.out_dir).map_err(failed)?;
    let mut all = serde_json::to_value(options).map_err(|e| failed(e.into()))?;
    all["steps"] = json!(steps);
    all["device"] = json!(gpu.info().name);
    all["driver"] = json!(gpu.info().driver);
    all["adapter_modules"] = json!(network.adapter.as_ref().map(|a| &a.modules));
    all["engraft_version"] = json!(env!("CARGO_PKG_VERSION"));
    atomic::write_file(&path, |out| {
        serde_json::to_writer_pretty(&mut *out, &all)?;
        out.write_all(b"\n")
    })
    .map_err(failed)
}

/// The type that `dtype` (transformers 5) or `torch_dtype` (4) of config.json names; f32 where it names none.
fn stored_dtype(model_dir: &Path) -> DType {
    let text = std::fs::read_to_string(model_dir.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match config["dtype"].as_str().or(config["torch_dtype"].as_str()) {
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::BF16,
        _ => DType::F32,
    }
}
