//! The tokenizer of a Hugging Face model folder.
//!
//! `tokenizer.json` alone decides how text becomes ids. Which special tokens go before a text comes from its
//! post-processor, and from `add_bos_token: true` where that adds none (as transformers 4 has it; 5 no longer
//! looks at the key). `false` does not remove the BOS of a post-processor, as in transformers 5. Two things
//! differ from transformers on purpose: BOS is decided by ids and never doubled when the text already begins
//! with it, and nothing is appended (`add_eos_token`), because a prompt has to stay open and training appends
//! its own EOS.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{DataError, DecodeStream};

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens that begin every encoded text: empty, or BOS.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: u32,
    stop_tokens: Vec<u32>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are there, `tokenizer_config.json`, `config.json` and
    /// `generation_config.json` of a model folder.
    ///
    /// # Errors
    /// No or a broken `tokenizer.json`; one of the others broken or with a token key of the wrong type; a
    /// token name that the vocabulary lacks; no EOS anywhere; `add_bos_token` without a BOS.
    pub fn open(model_dir: &Path) -> Result<Self, DataError> {
        let inner = load(model_dir.join("tokenizer.json"))?;
        let tokenizer_config = ConfigFile::open(model_dir.join("tokenizer_config.json"))?;
        let config = ConfigFile::open(model_dir.join("config.json"))?;
        let generation_config = ConfigFile::open(model_dir.join("generation_config.json"))?;

        let eos_of_config = config.token_ids("eos_token_id")?;
        let eos_of_generation = generation_config.token_ids("eos_token_id")?;
        let eos = tokenizer_config
            .token("eos_token", &inner)?
            .or(eos_of_config.first().copied())
            .or(eos_of_generation.first().copied())
            .ok_or_else(|| DataError::NoEos { model_dir: model_dir.to_owned() })?;
        let mut stop_tokens = vec![eos];
        for id in eos_of_generation.into_iter().chain(eos_of_config) {
            if !stop_tokens.contains(&id) {
                stop_tokens.push(id);
            }
        }

        let bos = match tokenizer_config.token("bos_token", &inner)? {
            Some(bos) => Some(bos),
            None => config.token_ids("bos_token_id")?.first().copied(),
        };
        let add_bos = tokenizer_config.flag("add_bos_token")?;
        let mut prefix = template_prefix(&inner)?;
        if add_bos && prefix.is_empty() {
            prefix.push(bos.ok_or_else(|| DataError::NoBos { file: tokenizer_config.file.clone() })?);
        }

        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { inner, prefix, bos, eos, stop_tokens, vocab_size })
    }

    /// The ids of a prompt: BOS if the tokenizer's configuration has it, then the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let plain = self.encode_plain(text)?;
        if self.prefix.is_empty() || plain.starts_with(&self.prefix) {
            return Ok(plain);
        }
        let mut ids = self.prefix.clone();
        ids.extend(plain);
        Ok(ids)
    }

    /// The ids of the text alone. Special tokens written out in the text are still recognised.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, DataError> {
        encode(&self.inner, text, false).map(|encoding| encoding.get_ids().to_vec())
    }

    /// The text of the ids, without special tokens. Ids that the tokenizer does not know give no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| DataError::Decode { count: ids.len(), reason: error.to_string() })
    }

    /// Decodes ids that arrive one by one.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The token that begins a text, whether or not [`Self::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends an answer in training.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The tokens that end generation: [`Self::eos`] first, then those of `generation_config.json` and
    /// `config.json`.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// One more than the largest id: the rows that an embedding needs at least. A model may have more.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

fn load(file: PathBuf) -> Result<tokenizers::Tokenizer, DataError> {
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::NoTokenizer { file });
        }
        Err(error) => return Err(DataError::Read { file, error }),
    };
    let bad =
        |error: tokenizers::Error| DataError::BadTokenizer { file: file.clone(), reason: error.to_string() };
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(bad)?;
    // Both may have been saved by whoever used the file last; lengths are ours to decide.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(bad)?;
    Ok(inner)
}

/// What the post-processor puts before a text.
fn template_prefix(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>, DataError> {
    let probe = encode(inner, "a", true)?;
    let special = probe.get_special_tokens_mask();
    let before = special.iter().take_while(|&&flag| flag == 1).count();
    Ok(probe.get_ids()[..before].to_vec())
}

fn encode(
    inner: &tokenizers::Tokenizer,
    text: &str,
    special: bool,
) -> Result<tokenizers::Encoding, DataError> {
    /// Enough to find the text again, and still one line.
    const EXCERPT: usize = 40;
    inner.encode_fast(text, special).map_err(|error| DataError::Encode {
        excerpt: text.chars().take(EXCERPT).collect(),
        reason: error.to_string(),
    })
}

/// One of the JSON files beside the tokenizer. A file that is not there has no keys.
struct ConfigFile {
    file: PathBuf,
    keys: Map<String, Value>,
}

impl ConfigFile {
    fn open(file: PathBuf) -> Result<Self, DataError> {
        let keys = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DataError::BadConfig { file: file.clone(), reason: error.to_string() })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(DataError::Read { file, error }),
        };
        Ok(Self { file, keys })
    }

    /// The id of a token that is given by its text, either plain or as `{"content": …}`.
    fn token(&self, key: &'static str, inner: &tokenizers::Tokenizer) -> Result<Option<u32>, DataError> {
        let text = match self.keys.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => match other.get("content") {
                Some(Value::String(text)) => text,
                _ => return Err(self.bad(key, "a string or an object with `content`", other)),
            },
        };
        match inner.token_to_id(text) {
            Some(id) => Ok(Some(id)),
            None => Err(DataError::UnknownToken { file: self.file.clone(), key, token: text.clone() }),
        }
    }

    /// Ids that are given as one number or as a list; none where the key is absent or null.
    fn token_ids(&self, key: &'static str) -> Result<Vec<u32>, DataError> {
        let Some(value) = self.keys.get(key).filter(|value| !value.is_null()) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        list.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.bad(key, "a token id or a list of token ids", value))
    }

    /// A switch that is off where the key is absent or null.
    fn flag(&self, key: &'static str) -> Result<bool, DataError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(key, "true or false", other)),
        }
    }

    fn bad(&self, key: &'static str, expected: &'static str, found: &Value) -> DataError {
        DataError::BadConfigKey { file: self.file.clone(), key, expected, found: found.to_string() }
    }
}
