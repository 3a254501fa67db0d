//! Where an adapter is, what it was trained on and how: from a PEFT folder or from what a run of engraft left.

use super::ExportError;
use crate::checkpoint::{ADAPTER_CONFIG, Adapter};
use crate::error::Error;
use crate::models::ModelConfig;
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::resume::numbered;
use crate::train::run_folder::{HYPERPARAMETERS_FILE, read_json};
use std::path::{Path, PathBuf};

/// An adapter and where it was found.
#[derive(Clone, Debug)]
pub struct AdapterFolder {
    pub path: PathBuf,
    pub adapter: Adapter,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl AdapterFolder {
    /// Whether the folder holds an adapter, or a run that saved one.
    pub fn is_one(path: &Path) -> bool {
        path.join(ADAPTER_CONFIG).is_file() || last_step(path).is_some()
    }

    /// Reads the adapter of a folder. Of a run that has no result yet it is the last step that was saved.
    ///
    /// # Errors
    /// No adapter, a broken or unsupported one, values that are not finite.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (mut found, mut notes) = (path.to_path_buf(), Vec::new());
        if !path.join(ADAPTER_CONFIG).is_file()
            && let Some(step) = last_step(path)
        {
            notes.push(format!(
                "{} has no result yet: its last saved step is taken, {}",
                path.display(),
                step.display()
            ));
            found = step;
        }
        let adapter = Adapter::read(&found)?;
        match adapter.not_finite().map(str::to_owned) {
            Some(module) => Err(ExportError::NotFinite { adapter_dir: found, module }.into()),
            None => Ok(AdapterFolder { path: found, adapter, notes }),
        }
    }

    /// The folder of the base model: the one that is given, or that `adapter_config.json` names.
    ///
    /// # Errors
    /// [`ExportError::NoBase`] where that is no folder here.
    pub fn base(&self, given: Option<&Path>) -> Result<PathBuf, ExportError> {
        if let Some(given) = given {
            return Ok(given.to_path_buf());
        }
        let named = self.adapter.config.base_model_name_or_path.clone();
        // a relative path may have been meant from where the training was started, or from the adapter
        let folders = named.iter().flat_map(|named| [PathBuf::from(named), self.path.join(named)]);
        let mut folders = folders.filter(|folder| folder.join("config.json").is_file());
        let missing = || ExportError::NoBase { file: self.path.join(ADAPTER_CONFIG), named: named.clone() };
        folders.next().ok_or_else(missing)
    }

    /// How the run held the base weights, where it wrote that down and they were quantised.
    pub fn trained_on(&self) -> Option<QuantizeOptions> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let of_run = name.starts_with("step-") || name.starts_with("best-");
        let run = self.path.parent().filter(|_| of_run);
        let mut folders = [Some(self.path.as_path()), run].into_iter().flatten();
        let settings = folders.find_map(|folder| read_json(&folder.join(HYPERPARAMETERS_FILE)))?;
        let kind: Quantize = settings["quantize"].as_str()?.parse().ok()?;
        let head = settings["quantize_head"].as_bool().unwrap_or(false);
        (kind != Quantize::None).then_some(QuantizeOptions { kind, head })
    }

    /// Splits off the adapter of the head, which training does not have but PEFT can.
    pub(super) fn without_head(&self, config: &ModelConfig) -> Result<(Adapter, bool), Error> {
        use crate::train::adapter::AdapterError;
        const HEAD: &str = "lm_head";
        let mut blocks = self.adapter.clone();
        let Some(at) = blocks.tensors.iter().position(|tensor| tensor.module == HEAD) else {
            return Ok((blocks, false));
        };
        let head = blocks.tensors.remove(at);
        let (outputs, inputs) = (config.vocab_size, config.hidden_size);
        if (head.outputs, head.inputs) == (outputs, inputs) {
            return Ok((blocks, true));
        }
        let (found_out, found_in) = (head.outputs, head.inputs);
        Err(AdapterError::Shape { module: HEAD.into(), found_out, found_in, outputs, inputs }.into())
    }
}

/// The last step that a run saved.
fn last_step(run: &Path) -> Option<PathBuf> {
    let steps = numbered(run, "step-").into_iter().rev();
    steps.map(|(_, path)| path).find(|path| path.join(ADAPTER_CONFIG).is_file())
}
