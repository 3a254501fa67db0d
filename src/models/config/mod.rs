//! `config.json` of a Hugging Face model to a checked description.
//!
//! transformers 4 and 5 spell the same settings differently (`rope_theta` and `rope_scaling` against
//! `rope_parameters`, `torch_dtype` against `dtype`); both give equal values here. A setting that
//! changes the mathematics is either understood or refused: none is passed over, but for dropouts, which are named
//! where somebody trains.

mod blocks;
mod family;
mod json;
mod keys;
mod names;
mod norms;
mod rope;
mod scales;
#[cfg(test)]
mod tests;
mod weights;

pub use blocks::{AttentionBias, JoinedLayers};
pub use family::Family;
pub use names::{EMBEDDING_WEIGHTS, HEAD, HEAD_WEIGHT, Names};
pub use norms::{BlockNorms, QueryKeyNorms};
pub use rope::{QueryScaling, Rope, RopeScaling, Yarn};
pub use scales::Multipliers;
pub use weights::LinearLayer;

use crate::ops::activation::Activation;
use family::Window;
use keys::{Keys, MAX_SIZE};
use rope::{read_ropes, read_rotary_dim};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

const CONFIG: &str = "config.json";
const TEXT: &str = "text_config";
const KV_HEADS: &str = "num_key_value_heads";
/// No model comes near; it keeps a broken file from filling the memory with names.
const MAX_LAYERS: usize = 1 << 14;

/// What to give in place of a folder without a configuration.
fn instead_of(folder: &Path) -> String {
    match folder.join("adapter_config.json").is_file() {
        true => format!(
            "this is an adapter: give the folder of its base model, and --init_adapter {} to train it further",
            folder.display()
        ),
        false => "give the folder of a Hugging Face model".into(),
    }
}

/// A configuration that cannot be read or is not supported.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{path}: {}; give the folder of a Hugging Face model", if path.exists() { "is a file, not a folder" } else { "no such folder" })]
    FolderMissing { path: PathBuf },
    #[error("{folder}: config.json not found; {}", instead_of(folder))]
    FileMissing { folder: PathBuf },
    #[error("{file}: cannot be read: {source}")]
    Read { file: PathBuf, source: io::Error },
    #[error("{file}: line {line} column {column}: {reason}")]
    Json { file: PathBuf, line: usize, column: usize, reason: String },
    #[error("{file}: the key {key:?} is missing")]
    KeyMissing { file: PathBuf, key: String },
    #[error("{file}: {key} is {value}, expected {expected}")]
    Value { file: PathBuf, key: String, value: String, expected: String },
    #[error("{file}: the architecture {found} is not supported; supported: {supported}")]
    Architecture { file: PathBuf, found: String, supported: String },
    #[error("{file}: {key} = {value} is not supported: {reason}")]
    Unsupported { file: PathBuf, key: String, value: String, reason: &'static str },
    #[error("{file}: {reason}")]
    Inconsistent { file: PathBuf, reason: String },
}

/// Sizes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    pub family: Family,
    /// It is the language model within one that sees images too: files and adapters have other names for its modules, which
    /// [`crate::checkpoint`] knows.
    pub embedded: bool,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// A multiple of 8.
    pub head_dim: usize,
    pub norm_eps: f64,
    /// Norms take the mean away as well, and have a bias.
    pub layer_norms: bool,
    pub rope: Rope,
    /// Elements at the beginning of a head that the rotary embedding turns, a multiple of 4; `None`: all.
    pub partial_rotary_dim: Option<usize>,
    /// Layers whose queries and keys it does not turn.
    pub unturned_layers: Vec<usize>,
    pub max_position_embeddings: usize,
    /// The head uses the embedding matrix.
    pub tied_head: bool,
    pub attention_bias: AttentionBias,
    /// Both layers of an MLP have one; not of a gated one.
    pub mlp_bias: bool,
    pub joined_layers: JoinedLayers,
    pub query_key_norms: QueryKeyNorms,
    /// A token sees so many of the last ones, itself among them; `None`: all.
    pub sliding_window: Option<usize>,
    /// Layers in which it sees all nevertheless.
    pub full_layers: Vec<usize>,
    /// Rotary embedding of layers with a window, where it is another.
    pub local_rope: Option<Rope>,
    pub activation: Activation,
    /// The activation of one layer gates another's output; otherwise an MLP is a layer, the activation, and a layer.
    pub gated_mlp: bool,
    /// The MLP sees what enters the block, as attention does, instead of what attention added to it.
    pub parallel_residual: bool,
    /// Norms multiply by 1 + weight.
    pub unit_offset: bool,
    pub block_norms: BlockNorms,
    /// Token embeddings are multiplied by the root of the hidden size.
    pub scaled_embedding: bool,
    /// Its inverse root scales attention's scores; `None`: that of `head_dim`.
    pub query_pre_attn_scalar: Option<f64>,
    /// c of `c tanh(score / c)` before attention's softmax.
    pub attention_soft_cap: Option<f64>,
    /// The same of the logits.
    pub logit_soft_cap: Option<f64>,
    /// They take the places of `scaled_embedding` and `query_pre_attn_scalar`.
    pub multipliers: Option<Multipliers>,
    pub query_scaling: Option<QueryScaling>,
    /// What the file asks to drop in training, by key, and with which probability: nothing of it is dropped here.
    pub dropouts: Vec<(&'static str, f64)>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing folder or file, JSON that is not understood, a value out of range, or a model that
    /// is not supported; the message names file and key.
    pub fn read(model_dir: &Path) -> Result<Self, ConfigError> {
        if !model_dir.is_dir() {
            return Err(ConfigError::FolderMissing { path: model_dir.to_path_buf() });
        }
        let file = model_dir.join(CONFIG);
        if !file.is_file() {
            return Err(ConfigError::FileMissing { folder: model_dir.to_path_buf() });
        }
        match std::fs::read_to_string(&file) {
            Ok(text) => ModelConfig::parse(&text, &file),
            Err(source) => Err(ConfigError::Read { file, source }),
        }
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(json: &str, path: &Path) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_str(json).map_err(|error| ConfigError::Json {
            file: path.to_path_buf(),
            line: error.line(),
            column: error.column(),
            // Without the position, which the message has already.
            reason: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        let whole = Keys { file: path, object: &object, prefix: String::new() };
        let (family, embedded) = Family::read(&whole)?;
        refuse_quantisation(&whole)?;
        let keys = match embedded {
            true => match whole.inner(TEXT, "text_config.")? {
                Some(text) => text,
                None => return Err(ConfigError::KeyMissing { file: path.to_path_buf(), key: TEXT.into() }),
            },
            false => Keys { file: path, object: &object, prefix: String::new() },
        };
        refuse_unsupported(&keys)?;
        // the published files of Gemma 3 leave these of their language models to transformers
        let left_out = embedded && family == Family::Gemma3;
        let size = |key: &str, usual: usize| match keys.optional(key, Keys::size)? {
            Some(size) => Ok(size),
            None if left_out => Ok(usual),
            None => keys.size(key),
        };

        let (hidden_size, heads) = (size("hidden_size", 2304)?, size("num_attention_heads", 8)?);
        let layers = size("num_hidden_layers", 26)?;
        let stated = if family.states_head_dim() { keys.optional("head_dim", Keys::size)? } else { None };
        let head_dim = match stated.or(family.default_head_dim()) {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let sizes =
                    format!("hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}");
                return Err(keys.inconsistent(sizes));
            }
        };
        let positions = keys.optional("max_position_embeddings", Keys::size)?;
        let positions = positions.unwrap_or(family.default_positions());
        let partial_rotary_dim = read_rotary_dim(&keys, family, head_dim)?;
        let sizes = (positions, partial_rotary_dim.unwrap_or(head_dim));
        let (rope, local_rope) = read_ropes(&keys, family, sizes)?;
        let query_scaling = QueryScaling::read(&keys, family, positions)?;
        let max_position_embeddings = match &rope.scaling {
            // who switches it on, as Qwen's cards say, leaves the old number beside it
            RopeScaling::Yarn(yarn) => positions.max(yarn.context()),
            // beyond it the factors are others, for the whole of a text
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                positions.min(*original_max_position_embeddings)
            }
            _ => positions,
        };
        let unturned_layers = family.read_unturned(&keys, layers)?;
        let Window { tokens: sliding_window, full_layers } =
            family.read_window(&keys, layers, &unturned_layers)?;
        let [attention_soft_cap, logit_soft_cap] = family.read_soft_caps(&keys)?;
        let config = ModelConfig {
            family,
            vocab_size: size("vocab_size", 262_208)?,
            hidden_size,
            intermediate_size: size("intermediate_size", 9216)?,
            layers,
            heads,
            kv_heads: if left_out { size(KV_HEADS, 4)? } else { family.read_kv_heads(&keys, heads)? },
            head_dim,
            norm_eps: keys.optional(family.eps_key(), Keys::positive)?.unwrap_or(family.default_eps()),
            layer_norms: family.has_layer_norms(),
            rope,
            partial_rotary_dim,
            unturned_layers,
            max_position_embeddings,
            tied_head: read_tied(&whole, &keys, family)?,
            embedded,
            attention_bias: family.read_bias(&keys)?,
            mlp_bias: family.read_mlp_bias(&keys)?,
            joined_layers: family.joined_layers(),
            query_key_norms: family.query_key_norms(),
            sliding_window,
            full_layers,
            local_rope,
            activation: family.read_activation(&keys)?,
            gated_mlp: family.gated_mlp(),
            parallel_residual: family.read_parallel_residual(&keys)?,
            unit_offset: family.is_gemma(),
            block_norms: family.block_norms(),
            scaled_embedding: family.is_gemma(),
            query_pre_attn_scalar: family.read_score_scale(&keys)?,
            attention_soft_cap,
            logit_soft_cap,
            multipliers: Multipliers::read(&keys, family)?,
            query_scaling,
            dropouts: read_dropouts(&keys, family)?,
        };
        config.check(&keys)?;
        Ok(config)
    }

    /// Whether a layer sees a window.
    pub fn slides(&self, layer: usize) -> bool {
        self.sliding_window.is_some() && !self.full_layers.contains(&layer)
    }

    /// Elements of a head that the rotary embedding turns.
    pub fn rotary_dim(&self) -> usize {
        self.partial_rotary_dim.unwrap_or(self.head_dim)
    }

    /// Whether the rotary embedding turns the queries and keys of a layer.
    pub fn turns(&self, layer: usize) -> bool {
        !self.unturned_layers.contains(&layer)
    }

    /// Tokens that each token sees at most in layers with a window, itself among them.
    pub fn window(&self) -> u32 {
        self.sliding_window.and_then(|window| u32::try_from(window).ok()).unwrap_or(u32::MAX)
    }

    fn check(&self, keys: &Keys<'_>) -> Result<(), ConfigError> {
        let ModelConfig { hidden_size, heads, kv_heads, head_dim, layers, .. } = *self;
        let reason = if heads % kv_heads != 0 {
            format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        } else if !head_dim.is_multiple_of(8) {
            format!("head_dim {head_dim} is not a multiple of 8, which the attention kernels need")
        } else if !hidden_size.is_multiple_of(4) {
            format!("hidden_size {hidden_size} is not a multiple of 4, which the kernels need")
        } else if self.joined_layers == JoinedLayers::Whole && !self.intermediate_size.is_multiple_of(4) {
            format!(
                "intermediate_size {} is not a multiple of 4, which the kernels need",
                self.intermediate_size
            )
        } else if (heads as u64).saturating_mul(head_dim as u64) > MAX_SIZE {
            format!("num_attention_heads {heads} times head_dim {head_dim} is more than {MAX_SIZE}")
        } else if layers > MAX_LAYERS {
            format!("num_hidden_layers {layers} is more than {MAX_LAYERS}")
        } else {
            return Ok(());
        };
        Err(keys.inconsistent(reason))
    }
}

fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), ConfigError> {
    if let Some(true) = keys.optional("qk_layernorm", Keys::flag)? {
        let reason = "queries and keys with a LayerNorm for each head are not built";
        return Err(keys.refused("qk_layernorm", &Value::Bool(true), reason));
    }
    if keys.optional("use_bidirectional_attention", Keys::flag)? == Some(true) {
        let reason = "the model sees later tokens: it gives embeddings of texts, and cannot be trained to go on with them";
        return Err(keys.refused("use_bidirectional_attention", &Value::Bool(true), reason));
    }
    Ok(())
}

/// `whole` and `keys` are one object where a model stands alone.
fn read_tied(whole: &Keys<'_>, keys: &Keys<'_>, family: Family) -> Result<bool, ConfigError> {
    const KEY: &str = "tie_word_embeddings";
    // transformers 4 leaves the default of a whole out, and 5 writes its own of Mistral 3, whatever the text says
    let order = match family {
        Family::Mistral | Family::Ministral3 => [keys, whole],
        _ => [whole, keys],
    };
    for object in order {
        if let Some(tied) = object.optional(KEY, Keys::flag)? {
            return Ok(tied);
        }
    }
    Ok(family.default_tied())
}

fn read_dropouts(keys: &Keys<'_>, family: Family) -> Result<Vec<(&'static str, f64)>, ConfigError> {
    let mut found = Vec::new();
    let own: &[&str] = match family {
        Family::Phi3 => &["resid_pdrop", "embd_pdrop"],
        Family::GptNeoX | Family::StableLm => &["hidden_dropout"],
        Family::Starcoder2 => &["residual_dropout", "embedding_dropout"],
        _ => &[],
    };
    for key in ["attention_dropout"].iter().chain(own) {
        match keys.optional(key, Keys::number)? {
            None => {}
            Some(p) if (0.0..1.0).contains(&p) => found.extend((p > 0.0).then_some((*key, p))),
            Some(p) => return Err(keys.wrong(key, &json!(p), "a number from 0 on, below 1".into())),
        }
    }
    Ok(found)
}

fn refuse_quantisation(keys: &Keys<'_>) -> Result<(), ConfigError> {
    match keys.get("quantization_config") {
        Some(value)
            if value["quant_method"] != "bitsandbytes"
                || value["load_in_4bit"] != true
                || value.get("bnb_4bit_quant_type").is_some_and(|kind| kind != "nf4") =>
        {
            let reason = "of quantised models engraft reads those that bitsandbytes saved in nf4; give the folder of the \
                          unquantised model";
            Err(keys.refused("quantization_config", value, reason))
        }
        _ => Ok(()),
    }
}
