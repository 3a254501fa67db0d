//! The tokenizer of a Hugging Face model folder.
//!
//! `tokenizer.json` alone decides how text becomes ids. Which special tokens go before a text comes from its
//! post-processor, and from `add_bos_token: true` where that adds none (as transformers 4 has it; 5 no longer
//! looks at the key). `false` does not remove the BOS of a post-processor, as in transformers 5. Two things
//! differ from transformers on purpose: BOS is decided by ids and never doubled when the text already begins
//! with it, and nothing is appended (`add_eos_token`), because a prompt has to stay open and training appends
//! its own EOS.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use twox_hash::XxHash3_128;

use super::chat::{ChatSources, ChatTemplate};
use super::{DataError, DecodeStream};

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens that begin every encoded text: empty, or BOS.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: u32,
    stop_tokens: Vec<u32>,
    special: HashSet<u32>,
    /// The ids of a text that other tokens can go on from.
    letter: Vec<u32>,
    vocab_size: usize,
    chat: ChatSources,
    digest: u128,
}

/// Token ids, and the bytes of the text that each stands for.
pub(super) struct Encoded {
    pub(super) tokens: Vec<u32>,
    pub(super) bytes: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are there, `tokenizer_config.json`, `config.json` and
    /// `generation_config.json` of a model folder.
    ///
    /// # Errors
    /// No or a broken `tokenizer.json`; one of the others broken or with a token key of the wrong type; a
    /// token name that the vocabulary lacks; no EOS anywhere; `add_bos_token` without a BOS.
    pub fn open(model_dir: &Path) -> Result<Self, DataError> {
        let (inner, digest) = load(model_dir.join("tokenizer.json"))?;
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
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        let letter = encode(&inner, "a", false)?.get_ids().to_vec();
        let chat = chat_sources(model_dir, &tokenizer_config)?;
        Ok(Self { inner, prefix, bos, eos, stop_tokens, special, letter, vocab_size, chat, digest })
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

    /// Where in the text, in characters, each of the tokens begins that [`Self::encode`] makes of it.
    pub fn starts(&self, text: &str) -> Result<Vec<usize>, DataError> {
        let plain = self.encode_with_bytes(text)?;
        let before = if plain.tokens.starts_with(&self.prefix) { 0 } else { self.prefix.len() };
        let (mut byte, mut chars) = (0, 0);
        let start = |bytes: &Range<usize>| {
            // a token may begin inside of a character
            let at = (byte..=bytes.start).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(byte);
            chars += text[byte..at].chars().count();
            byte = at;
            chars
        };
        Ok(std::iter::repeat_n(0, before).chain(plain.bytes.iter().map(start)).collect())
    }

    /// The ids of the text alone, each with its bytes.
    pub(super) fn encode_with_bytes(&self, text: &str) -> Result<Encoded, DataError> {
        let encoding = self.inner.encode(text, false).map_err(|error| cannot_encode(text, &error))?;
        let bytes = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { tokens: encoding.get_ids().to_vec(), bytes })
    }

    /// The special tokens that begin every encoded text: none, or BOS.
    pub(super) fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Whether [`Self::encode`] puts special tokens before a text.
    pub fn adds_bos(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Whether the token is a control token rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id) || self.stop_tokens.contains(&id)
    }

    /// The model's chat template; `None` where it has none.
    ///
    /// # Errors
    /// A template that is not Jinja; several, of which none is the default.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, DataError> {
        ChatTemplate::of_model(&self.chat)
    }

    /// The model's chat templates as they are written, by name; one alone is `default`.
    pub fn chat_template_sources(&self) -> &[(String, String)] {
        &self.chat.named
    }

    /// The token that `tokenizer_config.json` or `special_tokens_map.json` has under a key such as `pad_token`.
    pub fn special_token(&self, key: &str) -> Option<u32> {
        self.chat.special_tokens.get(key).and_then(|text| self.inner.token_to_id(text))
    }

    pub(super) fn chat_sources(&self) -> &ChatSources {
        &self.chat
    }

    /// What decides the tokens of a text: `tokenizer.json`, BOS and EOS.
    pub(super) fn digest(&self) -> u128 {
        let mut hash = XxHash3_128::new();
        hash.write(&self.digest.to_le_bytes());
        for id in self.prefix.iter().chain(&self.stop_tokens) {
            hash.write(&id.to_le_bytes());
        }
        hash.finish_128()
    }

    /// The text of the ids as it stands, special tokens included.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner
            .decode(ids, false)
            .map_err(|error| DataError::Decode { count: ids.len(), reason: error.to_string() })
    }

    /// The text of the ids, without special tokens. Ids that the tokenizer does not know give no text.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| DataError::Decode { count: ids.len(), reason: error.to_string() })
    }

    /// The text that a token adds to others before it. A special token has none, and neither has a part of a character.
    pub fn token_text(&self, id: u32) -> Option<String> {
        if self.is_special(id) { None } else { self.decode_stream_after(&self.letter).push(id) }
    }

    /// Whether the vocabulary has this text as one token.
    pub fn has_token(&self, text: &str) -> bool {
        self.inner.token_to_id(text).is_some()
    }

    /// How the vocabulary writes a token: its key in `tokenizer.json`.
    pub fn token_name(&self, id: u32) -> String {
        // embeddings may have more rows than the vocabulary has names
        self.inner.id_to_token(id).unwrap_or_else(|| format!("<token {id}>"))
    }

    /// Decodes ids that arrive one by one.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The same for ids that go on after others, whose text is known: a decoder that drops the space at the beginning of a
    /// text keeps that between the two.
    pub fn decode_stream_after(&self, before: &[u32]) -> DecodeStream<'_> {
        DecodeStream::after(self, before)
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

    /// The same without tokens that were added to the vocabulary.
    pub fn own_vocab_size(&self) -> usize {
        self.inner.get_vocab(false).into_values().max().map_or(0, |id| id as usize + 1)
    }
}

fn load(file: PathBuf) -> Result<(tokenizers::Tokenizer, u128), DataError> {
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
    Ok((inner, XxHash3_128::oneshot(&bytes)))
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
    inner.encode_fast(text, special).map_err(|error| cannot_encode(text, &error))
}

fn cannot_encode(text: &str, error: &tokenizers::Error) -> DataError {
    /// Enough to find the text again, and still one line.
    const EXCERPT: usize = 40;
    DataError::Encode { excerpt: text.chars().take(EXCERPT).collect(), reason: error.to_string() }
}

/// The chat templates of a folder, not yet compiled: `chat_template.jinja` goes before `tokenizer_config.json`, and
/// files in `additional_chat_templates/` are templates by name, as transformers has it.
fn chat_sources(model_dir: &Path, tokenizer_config: &ConfigFile) -> Result<ChatSources, DataError> {
    let mut chat =
        ChatSources { special_tokens: special_tokens(model_dir, tokenizer_config)?, ..Default::default() };
    let own = model_dir.join("chat_template.jinja");
    let read = |file: &Path| match std::fs::read_to_string(file) {
        Ok(source) => Ok(Some(source)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::Read { file: file.to_owned(), error }),
    };
    if let Some(source) = read(&own)? {
        chat.origin = own.display().to_string();
        chat.named.push(("default".to_owned(), source));
        let folder = model_dir.join("additional_chat_templates");
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> =
            files.filter(|file| file.extension().is_some_and(|e| e == "jinja")).collect();
        files.sort();
        for file in files {
            if let (Some(name), Some(source)) =
                (file.file_stem().and_then(|name| name.to_str()), read(&file)?)
            {
                chat.named.push((name.to_owned(), source));
            }
        }
        return Ok(chat);
    }
    chat.origin = tokenizer_config.file.display().to_string();
    let bad = |value: &Value| {
        tokenizer_config.bad("chat_template", "a template or a list of named templates", value)
    };
    match tokenizer_config.keys.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => chat.named.push(("default".to_owned(), source.clone())),
        Some(Value::Array(list)) => {
            for item in list {
                match (item.get("name"), item.get("template")) {
                    (Some(Value::String(name)), Some(Value::String(source))) => {
                        chat.named.push((name.clone(), source.clone()));
                    }
                    _ => return Err(bad(item)),
                }
            }
        }
        Some(other) => return Err(bad(other)),
    }
    Ok(chat)
}

/// `bos_token`, `eos_token` and the like by their names, as templates read them.
fn special_tokens(
    model_dir: &Path,
    tokenizer_config: &ConfigFile,
) -> Result<BTreeMap<String, String>, DataError> {
    let map = ConfigFile::open(model_dir.join("special_tokens_map.json"))?;
    let entries = map.keys.iter().chain(&tokenizer_config.keys).filter(|(name, _)| name.ends_with("_token"));
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        other => other.get("content").and_then(Value::as_str).map(str::to_owned),
    };
    Ok(entries.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect())
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
