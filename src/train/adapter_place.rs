//! From the folders that a user names to those of a model and its adapter: of a run without a result the last step that it saved,
//! of an adapter in the model's place its base.

use super::adapter::AdapterError;
use super::quantize::{Quantize, QuantizeOptions};
use super::resume::{model_hash, numbered};
use super::run_folder::{HYPERPARAMETERS_FILE, read_json};
use crate::checkpoint::{ADAPTER_CONFIG, AdapterConfig};
use crate::error::Error;
use crate::models::Network;
use crate::nn::WeightMode;
use std::path::{Path, PathBuf};

const MODEL_CONFIG: &str = "config.json";

/// A model and the adapter on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelAndAdapter {
    pub model_dir: PathBuf,
    pub adapter: Option<PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl ModelAndAdapter {
    /// The folders that are meant by `model` and `adapter`. `elsewhere` knows a base that is no folder here by its name.
    /// Folders that are neither are given back as they are.
    ///
    /// # Errors
    /// An adapter in the model's place beside another, or whose base is nowhere; an `adapter_config.json` that cannot be read.
    pub fn find(
        model: &Path,
        adapter: Option<&Path>,
        elsewhere: &dyn Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, Error> {
        let mut notes = Vec::new();
        if is_adapter(model) && !model.join(MODEL_CONFIG).is_file() {
            let folder = model.to_path_buf();
            if let Some(other) = adapter {
                return Err(AdapterError::TwoAdapters { folder, other: other.to_path_buf() }.into());
            }
            let (adapter, note) = saved(model, ADAPTER_CONFIG);
            notes.extend(note);
            let config = AdapterConfig::read(&adapter)?;
            let named = config.base_model_name_or_path.clone();
            let base = base_of(&adapter, &config).or_else(|| elsewhere(named.as_deref()?));
            let model_dir = base.ok_or(AdapterError::NoBase { folder, named })?;
            notes.push(format!("{} is an adapter: its base is {}", model.display(), model_dir.display()));
            return Ok(ModelAndAdapter { model_dir, adapter: Some(adapter), notes });
        }
        let (model_dir, note) = saved(model, MODEL_CONFIG);
        notes.extend(note);
        let adapter = adapter.map(|adapter| saved(adapter, ADAPTER_CONFIG));
        let adapter = adapter.map(|(adapter, note)| {
            notes.extend(note);
            adapter
        });
        if let Some(adapter) = &adapter {
            let config = AdapterConfig::read(adapter)?;
            notes.extend(other_base(adapter, &config, &model_dir));
        }
        Ok(ModelAndAdapter { model_dir, adapter, notes })
    }
}

/// Whether the folder holds an adapter, or a run that saved one.
pub fn is_adapter(path: &Path) -> bool {
    saved(path, ADAPTER_CONFIG).0.join(ADAPTER_CONFIG).is_file()
}

/// The folder itself where it has the file, or else the last step in it that has, and what to say of that.
pub(crate) fn saved(folder: &Path, file: &str) -> (PathBuf, Option<String>) {
    let has = |path: &PathBuf| path.join(file).is_file();
    let mut steps = numbered(folder, "step-").into_iter().rev().map(|(_, path)| path);
    match (!has(&folder.to_path_buf())).then(|| steps.find(has)).flatten() {
        None => (folder.to_path_buf(), None),
        Some(step) => {
            let (run, last) = (folder.display(), step.display());
            let note = format!("{run} has no result yet: its last saved step is taken, {last}");
            (step, Some(note))
        }
    }
}

/// The folder of a base model that an adapter names, where it is here.
pub(crate) fn base_of(adapter: &Path, config: &AdapterConfig) -> Option<PathBuf> {
    folders_of(adapter, config.base_model_name_or_path.as_deref()?).find(|f| f.join(MODEL_CONFIG).is_file())
}

/// How the run that made the adapter in this folder held the base weights, where it wrote that down and they were quantised.
pub(crate) fn trained_on(adapter: &Path) -> Option<QuantizeOptions> {
    let name = adapter.file_name().unwrap_or_default().to_string_lossy();
    let of_run = name.starts_with("step-") || name.starts_with("best-");
    let run = adapter.parent().filter(|_| of_run);
    let mut folders = [Some(adapter), run].into_iter().flatten();
    let settings = folders.find_map(|folder| read_json(&folder.join(HYPERPARAMETERS_FILE)))?;
    let kind: Quantize = settings["quantize"].as_str()?.parse().ok()?;
    let head = settings["quantize_head"].as_bool().unwrap_or(false);
    (kind != Quantize::None).then_some(QuantizeOptions { kind, head })
}

/// What to say where an adapter was trained on quantised weights and the network holds others.
pub fn other_weights(adapter: &Path, network: &Network) -> Option<String> {
    let trained = trained_on(adapter)?.kind;
    let WeightMode::Frozen(storage) = &network.weights else { return None };
    (trained.dtype() != Some(storage.linear)).then(|| {
        format!(
            "the adapter was trained on {trained} weights and is used on {} ones; --quantize {trained} takes those of the training",
            storage.linear
        )
    })
}

/// A relative path may have been meant from where the training was started, or from the adapter.
fn folders_of<'a>(adapter: &'a Path, named: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    [PathBuf::from(named), adapter.join(named)].into_iter()
}

/// What to say where an adapter names another model than the one in `model_dir`: shapes that fit say nothing. A folder may have
/// moved, so the same last name will do, unless both are here and differ.
pub(crate) fn other_base(adapter: &Path, config: &AdapterConfig, model_dir: &Path) -> Option<String> {
    let named = config.base_model_name_or_path.as_deref().filter(|named| !named.is_empty())?;
    let here = model_dir.canonicalize().unwrap_or_else(|_| model_dir.to_path_buf());
    let base = base_of(adapter, config);
    let moved = match base.as_ref().and_then(|base| base.canonicalize().ok()) {
        Some(base) if base == here => return None,
        Some(base) => model_hash(&base) == model_hash(&here),
        None => true,
    };
    let names = [Some(model_dir), Some(here.as_path())].into_iter().flatten().filter_map(Path::to_str);
    let same = names.map(last_name).any(|name| name.eq_ignore_ascii_case(last_name(named)));
    (!(moved && same)).then(|| {
        format!(
            "the adapter was trained on {named}, and is used on {}: unless that is the same model, its answers mean nothing",
            model_dir.display()
        )
    })
}

/// The name of a model in a path, or in a name on the Hub: the last part, without a revision. A snapshot in the cache of
/// `huggingface_hub`, `models--ORG--NAME/snapshots/COMMIT`, has its name further up.
fn last_name(path: &str) -> &str {
    let mut parts = path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']);
    let last = parts.next().unwrap_or_default();
    let cached = parts.next().filter(|part| *part == "snapshots").and_then(|_| parts.next());
    match cached.and_then(|folder| folder.strip_prefix("models--")) {
        Some(name) => name.rsplit("--").next().unwrap_or(name),
        None => last.split('@').next().unwrap_or(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_are_those_of_models() {
        for (path, name) in [
            ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
            ("/x/models/Llama-3.2-1B/", "Llama-3.2-1B"),
            ("C:\\models\\Llama-3.2-1B", "Llama-3.2-1B"),
            ("/cache/models/meta-llama/Llama-3.2-1B@main", "Llama-3.2-1B"),
            ("/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430", "Llama-3.2-1B"),
            ("llama", "llama"),
        ] {
            assert_eq!(last_name(path), name, "{path}");
        }
    }

    fn config(base: &str) -> AdapterConfig {
        let json = serde_json::json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": base,
        });
        AdapterConfig::parse(&json.to_string(), Path::new("adapter_config.json")).unwrap()
    }

    #[test]
    fn another_base_is_told_and_a_moved_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(MODEL_CONFIG), text).unwrap();
            path
        };
        let (model, copy) = (at("a/llama", "{}"), at("b/llama", "{}"));
        let (other, twin) = (at("a/qwen", "{}"), at("c/llama", "{\"hidden_size\": 64}"));
        let said = |base: &str, model: &Path| other_base(folder.path(), &config(base), model).is_some();
        let text = |path: &Path| path.display().to_string();
        for same in [&text(&model), &text(&copy), "a/llama", "", "/moved/away/llama", "ORG/Llama", "llama"] {
            assert!(!said(same, &model), "{same}");
        }
        for another in [&text(&other), &text(&twin), "a/qwen", "/moved/away/qwen", "ORG/Qwen"] {
            assert!(said(another, &model), "{another}");
        }
        assert!(!said("meta/llama", &model.join(".")));
    }
}
