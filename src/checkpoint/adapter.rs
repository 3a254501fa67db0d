//! Adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The adapted layer is `y = W x + scale * B (A x)` with A `[r, in]` and B `[out, r]`. Modules that were trained in full
//! (`modules_to_save`) lie beside the matrices as `<module>.weight` and replace the base's.

use super::adapter_config::{ADAPTER_CONFIG, AdapterConfig};
use super::{Checkpoint, CheckpointError, atomic, embedded, encode, neox_head, write_safetensors};
use crate::graph::DType;
use std::collections::BTreeSet;
use std::path::Path;

pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const KEY_PREFIX: &str = "base_model.model.";

/// A trained adapter: what it is and its matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub config: AdapterConfig,
    pub tensors: Vec<AdapterTensor>,
    /// Weights that replace those of the base model.
    pub saved: Vec<SavedModule>,
    /// Whether the base is the language model within a model that sees images too: PEFT's names are others then.
    pub embedded: bool,
}

/// The weight of a module that was trained in full, row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModule {
    /// Path of the module in the base model, as `lm_head`.
    pub module: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The two matrices of one adapted linear layer, row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// Path of the layer in the base model, as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// `[r, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, r]`
    pub b: Vec<f32>,
    pub r: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl Adapter {
    /// Reads an adapter folder.
    ///
    /// # Errors
    /// Missing or damaged files; a setting that is not supported; tensors that do not pair up or
    /// contradict the rank.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let config = AdapterConfig::read(dir)?;
        let path = dir.join(ADAPTER_WEIGHTS);
        if !path.is_file() {
            let hint = if dir.join("adapter_model.bin").is_file() {
                "; adapter_model.bin is there: convert the PyTorch weights to safetensors first"
            } else {
                "; is the adapter complete?"
            };
            return Err(CheckpointError::FileMissing {
                folder: dir.to_path_buf(),
                wanted: ADAPTER_WEIGHTS,
                hint: hint.to_owned(),
            });
        }
        let (mut tensors, mut saved) = read_tensors(&Checkpoint::open_file(&path)?, &path, &config)?;
        let mut is_embedded = false;
        let modules = tensors.iter_mut().map(|tensor| &mut tensor.module);
        for module in modules.chain(saved.iter_mut().map(|saved| &mut saved.module)) {
            if let Some(name) = embedded::alone(module) {
                *module = name;
                is_embedded = true;
            }
        }
        let config = if is_embedded { embedded::settings_alone(config) } else { config };
        let config = neox_head::with_newer_names(config, &mut tensors, &mut saved);
        Ok(Adapter { config, tensors, saved, embedded: is_embedded })
    }

    /// A module with a value that is not finite.
    pub fn not_finite(&self) -> Option<&str> {
        let bad = |values: &[f32]| values.iter().any(|value| !value.is_finite());
        let low_rank = self.tensors.iter().find(|t| bad(&t.a) || bad(&t.b)).map(|t| t.module.as_str());
        low_rank.or_else(|| self.saved.iter().find(|s| bad(&s.values)).map(|s| s.module.as_str()))
    }

    /// The values of every trained parameter, by its name in a network.
    pub fn parameters(&self) -> impl Iterator<Item = (String, &[f32])> {
        let low_rank = self.tensors.iter().flat_map(|tensor| {
            let AdapterTensor { module, a, b, .. } = tensor;
            [(format!("{module}.lora_A.weight"), a.as_slice()), (format!("{module}.lora_B.weight"), b)]
        });
        let saved = self.saved.iter().map(|s| (format!("{}.weight", s.module), s.values.as_slice()));
        low_rank.chain(saved)
    }

    /// Writes the two files as PEFT does.
    ///
    /// A new folder appears complete or not at all. In an existing one the two files are replaced one
    /// after the other, each complete.
    ///
    /// # Errors
    /// Matrices that contradict their sizes or the rank, no matrices at all, or a failed write.
    pub fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        self.check(dir)?;
        if dir.exists() {
            return self.write_files(dir);
        }
        let folder = atomic::NewFolder::begin(dir).map_err(CheckpointError::write(dir))?;
        self.write_files(folder.path())?;
        folder.commit().map_err(CheckpointError::write(dir))
    }

    fn write_files(&self, dir: &Path) -> Result<(), CheckpointError> {
        let named = |module: &str| match self.embedded {
            true => embedded::in_modules(module),
            false => module.to_owned(),
        };
        let tensors = self.tensors.iter().flat_map(|tensor| {
            let module = named(&tensor.module);
            [
                (key(&module, 'A'), DType::F32, vec![tensor.r, tensor.inputs], bytes(&tensor.a)),
                (key(&module, 'B'), DType::F32, vec![tensor.outputs, tensor.r], bytes(&tensor.b)),
            ]
        });
        let saved = self.saved.iter().map(|saved| {
            let name = format!("{KEY_PREFIX}{}.weight", named(&saved.module));
            (name, DType::F32, saved.shape.clone(), bytes(&saved.values))
        });
        write_safetensors(&dir.join(ADAPTER_WEIGHTS), tensors.chain(saved), &[("format", "pt")])?;
        let path = dir.join(ADAPTER_CONFIG);
        let json = match self.embedded {
            true => {
                let layers: Vec<&str> = self.tensors.iter().map(|tensor| tensor.module.as_str()).collect();
                let saved: Vec<&str> = self.saved.iter().map(|saved| saved.module.as_str()).collect();
                embedded::settings_in_modules(&self.config, &layers, &saved).to_json()
            }
            false => self.config.to_json(),
        };
        atomic::write_file(&path, |out| write!(out, "{json:#}")).map_err(CheckpointError::write(&path))
    }

    fn check(&self, dir: &Path) -> Result<(), CheckpointError> {
        let file = dir.join(ADAPTER_WEIGHTS);
        if self.tensors.is_empty() {
            let reason = "an adapter needs at least one layer".to_owned();
            return Err(CheckpointError::AdapterTensor { file, tensor: String::new(), reason });
        }
        for tensor in &self.tensors {
            let AdapterTensor { module, a, b, r, inputs, outputs } = tensor;
            let fits = *r == self.config.r && a.len() == r * inputs && b.len() == outputs * r;
            if !fits {
                let reason = format!(
                    "rank {r}, A with {} and B with {} elements; \
                     expected rank {}, A [{r}, {inputs}], B [{outputs}, {r}]",
                    a.len(),
                    b.len(),
                    self.config.r
                );
                return Err(CheckpointError::AdapterTensor { file, tensor: module.clone(), reason });
            }
        }
        Ok(())
    }
}

/// The tensors of an adapter file: pairs by layer, and modules that were trained in full, both in alphabetical order.
fn read_tensors(
    weights: &Checkpoint,
    file: &Path,
    config: &AdapterConfig,
) -> Result<(Vec<AdapterTensor>, Vec<SavedModule>), CheckpointError> {
    let r = config.r;
    let wrong = |tensor: &str, reason: String| {
        let (file, tensor) = (file.to_path_buf(), tensor.to_owned());
        CheckpointError::AdapterTensor { file, tensor, reason }
    };
    let (mut modules, mut saved) = (BTreeSet::new(), BTreeSet::new());
    let full = config.modules_to_save.as_deref().unwrap_or_default();
    // PEFT writes the base weight beside an adapter on the head; where its vocabulary was changed, B does not fit the model
    for name in weights.names().filter(|name| !name.ends_with(".base_layer.weight")) {
        let Some(module) = name.strip_prefix(KEY_PREFIX).and_then(|rest| {
            rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight"))
        }) else {
            // PEFT compares ends of names
            let whole = name.strip_prefix(KEY_PREFIX).and_then(|rest| rest.strip_suffix(".weight"));
            if let Some(module) = whole.filter(|module| full.iter().any(|end| module.ends_with(end.as_str())))
            {
                saved.insert(module);
                continue;
            }
            let biased = name.strip_prefix(KEY_PREFIX).and_then(|rest| rest.strip_suffix(".bias"));
            if biased.is_some_and(|module| full.iter().any(|end| module.ends_with(end.as_str()))) {
                let reason =
                    "modules_to_save names this module, which has a bias; those that have none can be read";
                return Err(wrong(name, reason.into()));
            }
            let form = format!("expected {KEY_PREFIX}<layer>.lora_A.weight or .lora_B.weight");
            return Err(wrong(name, format!("{form}; other kinds of trained tensors are not supported")));
        };
        modules.insert(module);
    }
    if modules.is_empty() {
        return Err(wrong("", "the file has no tensors of an adapter, lora_A and lora_B".into()));
    }
    for end in full {
        if !saved.iter().any(|module| module.ends_with(end.as_str())) {
            let reason =
                format!("no weight of it is there, but modules_to_save in {ADAPTER_CONFIG} names it");
            return Err(wrong(end, reason));
        }
    }
    let matrix = |name: &str| -> Result<(usize, usize, Vec<f32>), CheckpointError> {
        let view = weights.tensor(name)?;
        match (view.shape.as_slice(), view.dtype.is_float()) {
            (&[rows, cols], true) => Ok((rows, cols, view.to_f32())),
            _ => Err(wrong(name, format!("is {} {:?}, expected a matrix of floats", view.dtype, view.shape))),
        }
    };
    let mut tensors = Vec::with_capacity(modules.len());
    for module in modules {
        let (name_a, name_b) = (key(module, 'A'), key(module, 'B'));
        let (rank_a, inputs, a) = matrix(&name_a)?;
        let (outputs, rank_b, b) = matrix(&name_b)?;
        if rank_a != r {
            return Err(wrong(
                &name_a,
                format!("shape [{rank_a}, {inputs}], but the rank in {ADAPTER_CONFIG} is {r}"),
            ));
        }
        if rank_b != r {
            return Err(wrong(
                &name_b,
                format!("shape [{outputs}, {rank_b}], but the rank in {ADAPTER_CONFIG} is {r}"),
            ));
        }
        tensors.push(AdapterTensor { module: module.to_owned(), a, b, r, inputs, outputs });
    }
    let whole = |module: &str| {
        let name = format!("{KEY_PREFIX}{module}.weight");
        let view = weights.tensor(&name)?;
        if !view.dtype.is_float() {
            return Err(wrong(&name, format!("is {}, expected floats", view.dtype)));
        }
        Ok(SavedModule { module: module.to_owned(), shape: view.shape.clone(), values: view.to_f32() })
    };
    Ok((tensors, saved.into_iter().map(whole).collect::<Result<_, _>>()?))
}

fn key(module: &str, matrix: char) -> String {
    format!("{KEY_PREFIX}{module}.lora_{matrix}.weight")
}

fn bytes(values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(values, DType::F32, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An adapter of rank 4 on one layer.
    fn adapter(folder: &Path, saved: &str) -> Adapter {
        let config = format!(
            r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "modules_to_save": {saved}}}"#
        );
        let config = AdapterConfig::parse(&config, &folder.join(ADAPTER_CONFIG)).unwrap();
        let (a, b) = (vec![0.5; 8], vec![0.25; 12]);
        let tensors = vec![AdapterTensor { module: "q".into(), a, b, r: 4, inputs: 2, outputs: 3 }];
        Adapter { config, tensors, saved: Vec::new(), embedded: false }
    }

    #[test]
    fn whole_modules_are_read_back_and_belong_to_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let mut written = adapter(folder.path(), r#"["norm"]"#);
        let shape = vec![2, 3];
        written.saved = vec![SavedModule { module: "model.norm".into(), shape, values: vec![1.5; 6] }];
        let dir = folder.path().join("whole");
        written.write(&dir).unwrap();
        assert_eq!(Adapter::read(&dir).unwrap(), written);
        assert_eq!(written.not_finite(), None);
        written.saved[0].values[3] = f32::INFINITY;
        assert_eq!(written.not_finite(), Some("model.norm"));

        // named and not there, there and not named
        let missing = Adapter { saved: Vec::new(), ..written.clone() };
        missing.write(&dir).unwrap();
        let error = Adapter::read(&dir).unwrap_err().to_string();
        assert!(error.contains("norm") && error.contains("modules_to_save"), "{error}");
        let config = adapter(folder.path(), "null").config;
        Adapter { config, ..written }.write(&dir).unwrap();
        let error = Adapter::read(&dir).unwrap_err().to_string();
        assert!(error.contains("model.norm.weight"), "{error}");
    }

    #[test]
    fn contradicting_matrices_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("adapter");
        let mut wrong = adapter(folder.path(), "null");
        wrong.tensors[0].b.pop();
        assert!(wrong.write(&dir).is_err());
        assert!(Adapter { tensors: vec![], ..wrong }.write(&dir).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
