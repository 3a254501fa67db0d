//! The weights of a model as they are to be written: as stored, out of blocks of few bits, with an adapter added.

use super::{AdapterFolder, ExportError};
use crate::checkpoint::{
    AdapterTensor, Checkpoint, CheckpointError, SavedModule, StoredBlocks, TensorSpec, encode,
};
use crate::error::Error;
use crate::graph::blocks::{Quantiser, fits};
use crate::graph::{DType, Shape, TensorType};
use crate::models::{HEAD_WEIGHT, ModelConfig, Network};
use crate::train::adapter::spec_of_adapter;
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::save::stored_dtype;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Values that are worked on at once: 16 MiB of f32.
const CHUNK: usize = 1 << 22;

/// What an adapter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBase {
    /// The weights before any quantisation.
    Original,
    /// What the quantised weights stand for: what the adapter was trained on.
    Dequantized,
}

/// A word that names no base.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is none of original, dequantized")]
pub struct UnknownMergeBase(String);

impl fmt::Display for MergeBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MergeBase::Original => "original",
            MergeBase::Dequantized => "dequantized",
        })
    }
}

impl FromStr for MergeBase {
    type Err = UnknownMergeBase;

    fn from_str(word: &str) -> Result<Self, UnknownMergeBase> {
        match word {
            "original" => Ok(MergeBase::Original),
            "dequantized" | "dequantised" => Ok(MergeBase::Dequantized),
            _ => Err(UnknownMergeBase(word.to_owned())),
        }
    }
}

/// Which weights.
#[derive(Clone, Debug, Default)]
pub struct WeightOptions {
    pub model_dir: PathBuf,
    pub adapter: Option<AdapterFolder>,
    /// By default the weights of `model_dir`, dequantised where bitsandbytes quantised them.
    pub base: Option<MergeBase>,
    /// How unquantised weights were held in training; by default what `hyperparameters.json` of the run says.
    pub quantize: QuantizeOptions,
}

/// The weights of a model, opened and checked.
#[derive(Debug)]
pub struct ModelWeights {
    /// Of what is written: the head is untied where an adapter changes it alone.
    pub config: ModelConfig,
    /// Adapted layers.
    pub adapted: usize,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Whether weights are stored in blocks.
    pub(super) quantised: bool,
    /// Whether the head is the embedding in the files and a weight of its own in what is written.
    pub(super) untied: bool,
    model_dir: PathBuf,
    checkpoint: Checkpoint,
    /// By the name of the weight.
    adapter: HashMap<String, AdapterTensor>,
    /// What replaces weights, by their names.
    saved: HashMap<String, SavedModule>,
    /// Factor of the adapter's output.
    scale: f32,
    /// What weights become before anything is added, by name.
    image: HashMap<String, DType>,
}

/// Where the values of a weight come from.
enum Values<'a> {
    /// A tensor of the checkpoint.
    Stored(&'a str),
    /// Blocks of few bits.
    Blocks(StoredBlocks),
}

impl ModelWeights {
    /// Opens a model and its adapter.
    ///
    /// # Errors
    /// Files that are missing, broken or of different models; options that contradict what is there.
    pub fn open(options: &WeightOptions) -> Result<Self, Error> {
        let model_dir = &options.model_dir;
        let mut config = ModelConfig::read(model_dir)?;
        let mut notes = Vec::new();
        let mut untied = false;
        if let Some(folder) = &options.adapter {
            notes.clone_from(&folder.notes);
            let (blocks, on_head) = folder.without_head(&config)?;
            let own_head = spec_of_adapter(&config, &blocks)?.saves(HEAD_WEIGHT);
            untied = (on_head || own_head) && config.tied_head;
        }
        let checkpoint = Checkpoint::open(model_dir)?;
        checkpoint.check_embedded(config.embedded)?;
        checkpoint.check_tied(config.tied_names())?;
        let shapes = config.expected_shapes();
        checkpoint.check(shapes.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())))?;
        let stored = checkpoint.quantised()?;
        let image = images(&config, &shapes, quantisation(options, stored, &mut notes)?);
        if untied {
            notes.push(format!(
                "the adapter changes the head, which is the token embedding in {}: the head is written as a weight of its \
                 own, and tie_word_embeddings becomes false",
                model_dir.display()
            ));
            config.tied_head = false;
        }
        let found = options.adapter.as_ref().map(|folder| &folder.adapter);
        let tensors = found.into_iter().flat_map(|adapter| &adapter.tensors);
        let adapter: HashMap<_, _> =
            tensors.map(|tensor| (format!("{}.weight", tensor.module), tensor.clone())).collect();
        let saved = found.into_iter().flat_map(|adapter| &adapter.saved);
        let saved: HashMap<_, _> = saved.map(|s| (format!("{}.weight", s.module), s.clone())).collect();
        if !saved.is_empty() {
            let mut names: Vec<&str> = saved.values().map(|s| s.module.as_str()).collect();
            names.sort_unstable();
            notes.push(format!("trained in full, and written as the adapter has them: {}", names.join(", ")));
        }
        Ok(ModelWeights {
            config,
            adapted: adapter.len(),
            saved,
            notes,
            quantised: stored.is_some(),
            untied,
            model_dir: model_dir.clone(),
            checkpoint,
            adapter,
            scale: found.map_or(1.0, |adapter| adapter.config.scale()) as f32,
            image,
        })
    }

    /// What is to be written, each weight under its type: `dtype`, or as it is stored; what comes out of blocks has the type
    /// that config.json names. Layers are in the order of their numbers.
    ///
    /// # Errors
    /// An element type that safetensors does not know.
    pub fn specs(&self, dtype: Option<DType>) -> Result<Vec<TensorSpec>, CheckpointError> {
        let parts: HashSet<&str> = self.checkpoint.block_parts().collect();
        let names = self.checkpoint.names().filter(|name| !parts.contains(name));
        let own_head = self.untied.then_some(HEAD_WEIGHT);
        let mut specs = Vec::new();
        for name in names.filter(|name| Some(*name) != own_head).chain(own_head) {
            let source = self.source(name);
            specs.push(match self.checkpoint.quantised_type(source)? {
                Some(ty) => {
                    let dtype = dtype.unwrap_or_else(|| stored_dtype(&self.model_dir));
                    TensorSpec::new(name, dtype, ty.shape.dims())
                }
                None => match (self.checkpoint.tensor(source), dtype) {
                    (Ok(view), Some(dtype)) if view.dtype.is_float() && !self.config.is_buffer(name) => {
                        TensorSpec::new(name, dtype, &view.shape)
                    }
                    // buffers go through as they are
                    _ => TensorSpec { name: name.to_owned(), ..self.checkpoint.spec(source)? },
                },
            });
        }
        specs.sort_by_cached_key(|spec| in_order(&spec.name));
        Ok(specs)
    }

    /// What a weight is called in the files.
    pub(super) fn stored_name(&self, name: &str) -> String {
        self.checkpoint.stored_name(name)
    }

    /// Writes a tensor's elements in the type of its specification.
    ///
    /// # Errors
    /// A failed write; within [`io::Error::other`] a [`CheckpointError`] or an [`ExportError`].
    pub(super) fn write(&self, spec: &TensorSpec, out: &mut dyn Write) -> io::Result<()> {
        let stored = self.checkpoint.spec(self.source(&spec.name)).map_err(io::Error::other)?;
        let changed = self.adapter.contains_key(&spec.name)
            || self.saved.contains_key(&spec.name)
            || self.image.contains_key(self.source(&spec.name));
        if !changed && (stored.dtype, &stored.shape) == (spec.dtype, &spec.shape) {
            return self.copy(&spec.name, stored.bytes(), out);
        }
        let dtype = [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .find(|dtype| TensorSpec::new(&spec.name, *dtype, &spec.shape) == *spec)
            .unwrap_or(DType::F32);
        let mut bytes = Vec::new();
        self.rows(&spec.name, &mut |values| {
            if dtype == DType::F16 {
                check_range(&spec.name, values)?;
            }
            bytes.clear();
            encode(values, dtype, &mut bytes);
            out.write_all(&bytes)
        })
    }

    /// Gives the values of a weight some rows at a time, in order.
    ///
    /// # Errors
    /// What `each` reports; within [`io::Error::other`] a [`CheckpointError`].
    pub(super) fn rows(&self, name: &str, each: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()> {
        if let Some(saved) = self.saved.get(name) {
            return saved.values.chunks(CHUNK).try_for_each(each);
        }
        let source = self.source(name);
        let (shape, values) = match self.checkpoint.blocks(source).map_err(io::Error::other)? {
            Some(stored) => (stored.ty.shape.dims().to_vec(), Values::Blocks(stored)),
            None => {
                let shape = self.checkpoint.tensor(source).map_err(io::Error::other)?.shape;
                (shape, Values::Stored(source))
            }
        };
        let elements: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1).max(1);
        // whole rows of whole blocks
        let step = (CHUNK / columns).max(1).next_multiple_of(Quantiser::ROWS) * columns;
        let chunks = || (0..elements).step_by(step).map(|first| first..(first + step).min(elements));
        let mut raw = Vec::new();
        let values = match (values, self.image.get(source)) {
            (Values::Stored(source), Some(&dtype)) => {
                let ty = TensorType::new(Shape::new(&shape), dtype);
                let mut quantiser = Quantiser::new(ty);
                for range in chunks() {
                    let values = self.checkpoint.read_f32(source, range, &mut raw);
                    quantiser.add(&values.map_err(io::Error::other)?);
                }
                Values::Blocks(StoredBlocks { ty, blocks: quantiser.finish() })
            }
            (values, _) => values,
        };
        for range in chunks() {
            let first = range.start / columns;
            let mut some = match &values {
                Values::Blocks(stored) => stored.blocks.dequantise_range(stored.ty, range),
                Values::Stored(source) => {
                    self.checkpoint.read_f32(source, range, &mut raw).map_err(io::Error::other)?
                }
            };
            if let Some(adapter) = self.adapter.get(name) {
                add_adapter(adapter, self.scale, first, &mut some);
            }
            each(&some)?;
        }
        Ok(())
    }

    /// The tensor of the checkpoint that a weight is made of.
    fn source<'n>(&self, name: &'n str) -> &'n str {
        if self.untied && name == HEAD_WEIGHT { self.config.names().embedding_weight } else { name }
    }

    fn copy(&self, name: &str, bytes: usize, out: &mut dyn Write) -> io::Result<()> {
        let mut some = Vec::new();
        (0..bytes).step_by(4 * CHUNK).try_for_each(|first| {
            let range = first..(first + 4 * CHUNK).min(bytes);
            self.checkpoint.read_bytes(self.source(name), range, &mut some).map_err(io::Error::other)?;
            out.write_all(&some)
        })
    }
}

/// What quantisation leaves of unquantised weights before an adapter is added.
fn quantisation(
    options: &WeightOptions,
    stored: Option<DType>,
    notes: &mut Vec<String>,
) -> Result<QuantizeOptions, ExportError> {
    let (model_dir, kind) = (options.model_dir.clone(), options.quantize.kind);
    let given = (kind != Quantize::None).then_some(options.quantize);
    let trained = options.adapter.as_ref().and_then(AdapterFolder::trained_on);
    match (options.base, stored) {
        (Some(MergeBase::Original), Some(dtype)) => Err(ExportError::OriginalMissing { model_dir, dtype }),
        (_, Some(dtype)) => {
            if given.is_some_and(|given| given.kind.dtype() != Some(dtype)) {
                return Err(ExportError::Requantised { model_dir, dtype, kind: kind.to_string() });
            }
            notes.push(format!("the weights are stored in {dtype}: each becomes what its codes stand for"));
            Ok(QuantizeOptions::default())
        }
        (Some(MergeBase::Dequantized), None) => {
            let image = given.or(trained).ok_or(ExportError::NoQuantisation { model_dir })?;
            notes.push(format!("the weights are what {} leaves of them, as in training", image.kind));
            Ok(image)
        }
        (_, None) => {
            if given.is_some() {
                return Err(ExportError::QuantizeUnused { kind: kind.to_string() });
            }
            if let Some(trained) = trained.filter(|_| options.base.is_none()) {
                notes.push(format!(
                    "the adapter was trained on {} weights and goes into the original ones; --merge_base dequantized gives \
                     the weights of the training",
                    trained.kind
                ));
            }
            Ok(QuantizeOptions::default())
        }
    }
}

/// Adds `scale · B·A` to rows of a weight, from `first` on, on all processors.
fn add_adapter(adapter: &AdapterTensor, scale: f32, first: usize, values: &mut [f32]) {
    let AdapterTensor { a, b, r, inputs, .. } = adapter;
    let rows = values.len() / inputs;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        for (i, part) in values.chunks_mut(share * inputs).enumerate() {
            scope.spawn(move || {
                let mut delta = vec![0f32; *inputs];
                for (row, values) in part.chunks_mut(*inputs).enumerate() {
                    let row = first + i * share + row;
                    delta.fill(0.0);
                    for (factor, a) in b[row * r..][..*r].iter().zip(a.chunks(*inputs)) {
                        delta.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
                    }
                    values.iter_mut().zip(&delta).for_each(|(value, delta)| *value += scale * delta);
                }
            });
        }
    });
}

/// Refuses numbers that f16 would turn into infinity.
pub(super) fn check_range(tensor: &str, values: &[f32]) -> io::Result<()> {
    /// Half way to the next step after 65504.
    const LIMIT: f32 = 65520.0;
    match values.iter().find(|value| value.is_finite() && value.abs() >= LIMIT) {
        Some(&value) => Err(io::Error::other(ExportError::Overflow { tensor: tensor.to_owned(), value })),
        None => Ok(()),
    }
}

/// The weights that training held in blocks.
fn images(
    config: &ModelConfig,
    shapes: &[(String, Vec<usize>)],
    quantize: QuantizeOptions,
) -> HashMap<String, DType> {
    let Some(dtype) = quantize.kind.dtype() else { return HashMap::new() };
    let modules = Network::linear_modules(config).into_iter();
    let linear: HashSet<String> = modules.map(|(module, _, _)| format!("{module}.weight")).collect();
    let held = |(name, dims): &&(String, Vec<usize>)| {
        let matrix = dims.len() == 2 && fits(TensorType::new(Shape::new(dims), dtype));
        matrix && (quantize.head || linear.contains(name))
    };
    shapes.iter().filter(held).map(|(name, _)| (name.clone(), dtype)).collect()
}

/// A name with its numbers padded, so that layer 10 comes after layer 9.
fn in_order(name: &str) -> String {
    name.split('.').map(|part| part.parse::<u32>().map_or(part.into(), |n| format!("{n:010}"))).fold(
        String::new(),
        |mut all, part: String| {
            all.push('.');
            all += &part;
            all
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_added_row_by_row() {
        let adapter = AdapterTensor {
            module: "m".into(),
            a: vec![1.0, 2.0, 3.0, 0.0, 1.0, 0.0],
            b: vec![1.0, 0.0, 0.0, 1.0, 2.0, -1.0, 5.0, 5.0],
            r: 2,
            inputs: 3,
            outputs: 4,
        };
        let mut values = vec![10.0; 9];
        add_adapter(&adapter, 0.5, 1, &mut values);
        // rows 1 to 3 of B·A: [0 1 0], [2 3 6], [5 15 15]
        assert_eq!(values, [10.0, 10.5, 10.0, 11.0, 11.5, 13.0, 12.5, 17.5, 17.5]);
    }

    #[test]
    fn layers_are_in_the_order_of_their_numbers() {
        let mut names = ["m.layers.10.x", "m.layers.9.x", "lm_head", "m.layers.9.a"];
        names.sort_by_cached_key(|name| in_order(name));
        assert_eq!(names, ["lm_head", "m.layers.9.a", "m.layers.9.x", "m.layers.10.x"]);
    }

    #[test]
    fn what_f16_cannot_hold_is_refused_by_name() {
        assert!(check_range("t", &[65519.0, -65519.0, f32::INFINITY]).is_ok());
        let error = check_range("t", &[0.0, -65520.0]).unwrap_err().to_string();
        assert!(error.contains("t: the value -65520") && error.contains("--dtype"), "{error}");
    }
}
