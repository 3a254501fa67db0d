//! Where an adapter is, what it was trained on and how: from a PEFT folder or from what a run of engraft left.

use super::ExportError;
use crate::checkpoint::{ADAPTER_CONFIG, Adapter};
use crate::error::Error;
use crate::models::ModelConfig;
use crate::train::adapter_place::{base_of, is_adapter, saved, trained_on};
use crate::train::quantize::QuantizeOptions;
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
        is_adapter(path)
    }

    /// Reads the adapter of a folder. Of a run that has no result yet it is the last step that was saved.
    ///
    /// # Errors
    /// No adapter, a broken or unsupported one, values that are not finite.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (found, note) = saved(path, ADAPTER_CONFIG);
        let adapter = Adapter::read(&found)?;
        match adapter.not_finite().map(str::to_owned) {
            Some(module) => Err(ExportError::NotFinite { adapter_dir: found, module }.into()),
            None => Ok(AdapterFolder { path: found, adapter, notes: Vec::from_iter(note) }),
        }
    }

    /// The folder of the base model: the one that is given, or that `adapter_config.json` names, which `elsewhere` may know where it is no
    /// folder here.
    ///
    /// # Errors
    /// [`ExportError::NoBase`] where it is not on this machine.
    pub fn base(
        &self,
        given: Option<&Path>,
        elsewhere: &dyn Fn(&str) -> Option<PathBuf>,
    ) -> Result<PathBuf, ExportError> {
        let named = self.adapter.config.base_model_name_or_path.clone();
        let base = given.map(Path::to_path_buf).or_else(|| base_of(&self.path, &self.adapter.config));
        let base = base.or_else(|| elsewhere(named.as_deref()?));
        base.ok_or_else(|| ExportError::NoBase { file: self.path.join(ADAPTER_CONFIG), named })
    }

    /// How the run held the base weights, where it wrote that down and they were quantised.
    pub fn trained_on(&self) -> Option<QuantizeOptions> {
        trained_on(&self.path)
    }

    /// Splits off the adapter of the head, which training does not have but PEFT can.
    pub(super) fn without_head(&self, config: &ModelConfig) -> Result<(Adapter, bool), Error> {
        use crate::models::HEAD;
        use crate::train::adapter::AdapterError;
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
