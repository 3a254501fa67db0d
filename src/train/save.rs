//! What a run leaves behind: adapters, whole models, its settings. Files appear under their final name when complete.

use super::adapter::extract;
use super::options::{FinetuneOptions, Method, RecomputeKind};
use super::run_folder::HYPERPARAMETERS_FILE;
use super::trainer::Trainer;
use crate::checkpoint::{
    AdapterConfig, COMPANIONS, MODEL_WEIGHTS, atomic, encode, in_neox_files, write_safetensors,
};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::DType;
use crate::models::{Family, Network};
use serde_json::json;
use std::io;
use std::path::Path;

/// Writes the adapter as PEFT does.
///
/// # Errors
/// A folder that cannot be written, and what the device reported.
pub fn save_adapter(trainer: &Trainer, settings: AdapterConfig, folder: &Path) -> Result<(), Error> {
    let adapter = extract(trainer.optimiser(), &trainer.network().config, settings)?;
    adapter.write(folder)?;
    Ok(())
}

/// Writes the weights, those that `--freeze` kept as they were too, in the storage type that the model's configuration names,
/// with the tokenizer.
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
            let mut bytes = std::fs::read(&from).map_err(failed(&from))?;
            if name == "config.json" {
                // what is saved is plain, whatever the folder's own weights are
                bytes = without_quantisation(bytes);
            }
            atomic::write_file(&to, |out| out.write_all(&bytes)).map_err(failed(&to))?;
        }
    }
    let dtype = stored_dtype(model_dir);
    let shapes = trainer.network().config.expected_shapes();
    let of_neox = trainer.network().config.family == Family::GptNeoX;
    let parameters = trainer.optimiser().parameters()?.into_iter().chain(trainer.frozen_parameters()?);
    let tensors = parameters.filter_map(|(name, values)| {
        let dims = shapes.iter().find(|(n, _)| *n == name)?.1.clone();
        let mut bytes = Vec::new();
        encode(&values, dtype, &mut bytes);
        let stored = if of_neox { in_neox_files(&name) } else { name };
        Some((stored, dtype, dims, bytes))
    });
    write_safetensors(&folder.join(MODEL_WEIGHTS), tensors, &[("format", "pt")])?;
    Ok(())
}

/// A `config.json` that does not say that weights are quantised.
fn without_quantisation(config: Vec<u8>) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&config) else { return config };
    match value.as_object_mut().and_then(|map| map.remove("quantization_config")) {
        Some(_) => serde_json::to_vec_pretty(&value).unwrap_or(config),
        None => config,
    }
}

/// Writes `hyperparameters.json`, every option as it was resolved with what the run found out, and `hyperparameters.yaml`, which
/// is a configuration of the same run.
///
/// # Errors
/// A folder that cannot be written.
pub fn save_hyperparameters(
    options: &FinetuneOptions,
    steps: usize,
    gpu: &Gpu,
    network: &Network,
    run: &str,
) -> Result<(), Error> {
    let path = options.out_dir.join(HYPERPARAMETERS_FILE);
    let failed = |source| Error::Write { path: path.clone(), source };
    std::fs::create_dir_all(&options.out_dir).map_err(failed)?;
    let mut all = serde_json::to_value(options).map_err(|e| failed(e.into()))?;
    // what auto chose; on another device it may choose otherwise, so the configuration has what was asked for
    all["recompute"] = json!(RecomputeKind::Policy(network.recompute));
    all["run"] = json!(run);
    all["steps"] = json!(steps);
    all["device"] = json!(gpu.info().name);
    all["driver"] = json!(gpu.info().driver);
    all["adapter_modules"] = json!(network.adapter.as_ref().map(|a| &a.modules));
    all["engraft_version"] = json!(env!("CARGO_PKG_VERSION"));
    let write = |path: &Path, text: &str| {
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        atomic::write_file(path, |out| out.write_all(text.as_bytes())).map_err(failed)
    };
    let command = match options.method {
        Method::Lora => "finetune",
        Method::Full { .. } => "finetune_full",
    };
    let version = env!("CARGO_PKG_VERSION");
    let head = format!(
        "# engraft {version}, {steps} steps on {}\n# again: engraft {command} --config FILE\n",
        gpu.info().name
    );
    write(&path.with_extension("yaml"), &(head + &options.to_yaml()))?;
    let text = serde_json::to_string_pretty(&all).map_err(|e| failed(e.into()))?;
    write(&path, &(text + "\n"))
}

/// The type that `dtype` (transformers 5) or `torch_dtype` (4) of config.json names; f32 where it names none.
pub fn stored_dtype(model_dir: &Path) -> DType {
    let text = std::fs::read_to_string(model_dir.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match config["dtype"].as_str().or(config["torch_dtype"].as_str()) {
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::BF16,
        _ => DType::F32,
    }
}
