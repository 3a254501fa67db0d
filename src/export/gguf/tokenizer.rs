//! `tokenizer.json` as the metadata of a GGUF file.
//!
//! llama.cpp has its own tokenizers: `gpt2` (byte-level BPE with merges, and a named way of splitting text before it) and
//! `llama` (SentencePiece: the neighbours whose piece has the highest score are joined first). For the second, scores are
//! the negative ranks of the merges, which is the order in which these were taken from the scores of SentencePiece.

use crate::checkpoint::gguf::GgufValue;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::export::ExportError;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// `enum llama_token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Expressions that split text before byte-level BPE, and llama.cpp's names for them: where a piece that is a token stands for
/// itself (`ignore_merges`), and where merges make all tokens. A name that llama.cpp does not have is none.
const SPLITS: [(&str, Option<&str>, Option<&str>); 4] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Some("llama-bpe"),
        Some("smaug-bpe"),
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        None,
        Some("qwen2"),
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Some("tekken"),
        None,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        None,
        Some("gpt-4o"),
    ),
];

/// Keys and values.
pub(super) type Metadata = Vec<(String, GgufValue)>;

/// `tokenizer.json` read for its parts.
struct Parts {
    file: PathBuf,
    json: Value,
}

/// The keys `tokenizer.*` for a model of so many rows in its embedding, and what the user should know. `pre` names the splitting where
/// it is not known.
///
/// # Errors
/// Files that are missing or broken; a tokenizer that llama.cpp has no kind for; more tokens than rows.
pub(super) fn tokenizer_metadata(
    model_dir: &Path,
    vocab_size: usize,
    pre: Option<&str>,
) -> Result<(Metadata, Option<String>), Error> {
    let tokenizer = Tokenizer::open(model_dir)?;
    let parts = Parts::read(model_dir.join("tokenizer.json"))?;
    let model = &parts.json["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    let merges = parts.merges();
    if kind != "BPE" || merges.is_empty() {
        let reason = format!(
            "llama.cpp has no tokenizer for a {kind} model{}; export the adapter alone, or a model with a BPE tokenizer",
            if kind == "BPE" { " without merges" } else { "" }
        );
        return Err(parts.wrong(reason).into());
    }
    let byte_level = parts.mentions("pre_tokenizer", "ByteLevel");
    if !byte_level && model["byte_fallback"] != true {
        let reason = "BPE that is neither byte-level nor falls back to bytes, which llama.cpp does not know"
            .to_owned();
        return Err(parts.wrong(reason).into());
    }

    let (tokens, kinds) = parts.tokens(vocab_size, model["unk_token"].as_str())?;
    let text = |value: &str| GgufValue::Text(value.to_owned());
    let mut all: Vec<(&str, GgufValue)> = Vec::new();
    if byte_level {
        let pre = match pre {
            Some(name) => name,
            None => parts.splitting()?,
        };
        all.push(("model", text("gpt2")));
        all.push(("pre", text(pre)));
        all.push(("merges", GgufValue::Texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect())));
    } else {
        all.push(("model", text("llama")));
        all.push(("pre", text("default")));
        all.push(("scores", GgufValue::F32s(scores(&tokens, &kinds, &merges))));
        all.push(("add_space_prefix", GgufValue::Bool(parts.prepends_space())));
    }
    all.push(("tokens", GgufValue::Texts(tokens)));
    all.push(("token_type", GgufValue::I32s(kinds.iter().map(|kind| *kind as i32).collect())));
    let unknown = model["unk_token"].as_str().and_then(|token| model["vocab"][token].as_u64());
    for (key, id) in [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", Some(tokenizer.eos())),
        ("unknown_token_id", unknown.and_then(|id| u32::try_from(id).ok())),
        ("padding_token_id", tokenizer.special_token("pad_token")),
    ] {
        all.extend(id.map(|id| (key, GgufValue::U32(id))));
    }
    all.push(("add_bos_token", GgufValue::Bool(tokenizer.adds_bos())));

    let mut all: Vec<_> =
        all.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    let (usual, named): (Vec<_>, Vec<_>) =
        tokenizer.chat_template_sources().iter().partition(|(name, _)| name == "default");
    all.extend(usual.iter().map(|(_, source)| ("tokenizer.chat_template".to_owned(), text(source))));
    if !named.is_empty() {
        let names = named.iter().map(|(name, _)| name.clone()).collect();
        all.push(("tokenizer.chat_templates".to_owned(), GgufValue::Texts(names)));
        all.extend(
            named.iter().map(|(name, source)| (format!("tokenizer.chat_template.{name}"), text(source))),
        );
    }
    Ok((all, parts.left_out(vocab_size)))
}

/// A name by which llama.cpp reads special tokens as the tokenizer does, and what the user should know of another one: whether blanks
/// behind them go away is in no key of the file, but follows from `phi-3` or `phi3` in its name; then it looks for some tokens, and does
/// not load without them.
///
/// # Errors
/// A `tokenizer.json` that cannot be read.
pub(super) fn phi3_name(model_dir: &Path, name: String) -> Result<(String, Option<String>), Error> {
    let parts = Parts::read(model_dir.join("tokenizer.json"))?;
    let added = || parts.json["added_tokens"].as_array().into_iter().flatten();
    let has = |text: &&str| {
        added().any(|token| token["content"] == **text) || !parts.json["model"]["vocab"][*text].is_null()
    };
    let all = ["<unk>", "<s>", "</s>", "<|endoftext|>"].iter().all(has);
    let strips = added().any(|token| token["special"] == true && token["rstrip"] == true);
    let lower = name.to_lowercase();
    let named = lower.contains("phi-3") || lower.contains("phi3");
    let new = match (named, strips, all) {
        (false, true, true) => format!("phi-3 {name}"),
        (true, _, false) => "model".to_owned(),
        (false, true, false) => {
            let note = "the tokenizer takes blanks behind some special tokens away, and llama.cpp does not: write none there";
            return Ok((name, Some(note.to_owned())));
        }
        _ => return Ok((name, None)),
    };
    let note = format!("general.name is {new:?}: llama.cpp tells from it how special tokens are read");
    Ok((new, Some(note)))
}

impl Parts {
    fn read(file: PathBuf) -> Result<Self, ExportError> {
        let bad = |reason: String| ExportError::Tokenizer { file: file.clone(), reason };
        let bytes = std::fs::read(&file).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let json = serde_json::from_slice(&bytes).map_err(|error| bad(format!("is not JSON: {error}")))?;
        Ok(Parts { file, json })
    }

    fn wrong(&self, reason: String) -> ExportError {
        ExportError::Tokenizer { file: self.file.clone(), reason }
    }

    /// Pairs in the order of their ranks; files have them as lists or as texts with a space.
    fn merges(&self) -> Vec<(&str, &str)> {
        let list = self.json["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(pair_of).collect()
    }

    /// The parts of a step that may be a sequence of others.
    fn steps(&self, step: &str) -> Vec<&Value> {
        let whole = &self.json[step];
        let inner = ["pretokenizers", "normalizers"].iter().find_map(|key| whole[*key].as_array());
        match inner {
            Some(list) => list.iter().collect(),
            None => vec![whole],
        }
    }

    fn mentions(&self, step: &str, kind: &str) -> bool {
        self.steps(step).iter().any(|part| part["type"] == kind)
    }

    /// llama.cpp's name for how text is split before byte-level BPE.
    fn splitting(&self) -> Result<&'static str, ExportError> {
        let steps = self.steps("pre_tokenizer");
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
        let expression = steps.iter().find_map(|step| step["pattern"]["Regex"].as_str());
        let gpt2 = steps.iter().any(|step| step["type"] == "ByteLevel" && step["use_regex"] != false);
        let found = match (kinds.as_slice(), expression) {
            (["ByteLevel"], _) if gpt2 => Some("gpt-2"),
            (["Digits", "ByteLevel"], _) if gpt2 && steps[0]["individual_digits"] == true => Some("smollm"),
            (["Split", "ByteLevel"], Some(expression)) if !gpt2 => {
                let whole = self.json["model"]["ignore_merges"] == true;
                let known = SPLITS.iter().find(|(known, _, _)| *known == expression);
                known.and_then(|(_, ignoring, merging)| if whole { *ignoring } else { *merging })
            }
            _ => None,
        };
        found.ok_or_else(|| {
            self.wrong(
                "text is split before BPE in a way that is not known here; give --tokenizer_pre llama.cpp's name for it \
                 (see convert_hf_to_gguf_update.py there)"
                    .into(),
            )
        })
    }

    /// Tokens that were added behind the rows of the embedding, as Gemma 3's place of an image is in models that read text alone: no
    /// text that a model can read has them, and llama.cpp's converter leaves them out too.
    fn beyond(&self, vocab_size: usize) -> impl Iterator<Item = &str> {
        let added = self.json["added_tokens"].as_array().into_iter().flatten();
        let beyond = move |token: &&Value| token["id"].as_u64().is_some_and(|id| id >= vocab_size as u64);
        added.filter(beyond).filter_map(|token| token["content"].as_str())
    }

    fn left_out(&self, vocab_size: usize) -> Option<String> {
        let all: Vec<&str> = self.beyond(vocab_size).collect();
        let some = || all.iter().take(3).map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        let more = if all.len() > 3 { ", ..." } else { "" };
        (!all.is_empty()).then(|| format!("the model has no rows for {}{more}: left out", some()))
    }

    /// The text and kind of every row of the embedding.
    fn tokens(
        &self,
        vocab_size: usize,
        unknown: Option<&str>,
    ) -> Result<(Vec<String>, Vec<Kind>), ExportError> {
        let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![Kind::Unused; vocab_size];
        let mut set = |text: &str, id: u64, kind: Kind| {
            let row = usize::try_from(id).ok().filter(|&id| id < vocab_size);
            let row = row.ok_or_else(|| {
                self.wrong(format!(
                    "the token {text:?} has the id {id}, but the model has {vocab_size} (vocab_size)"
                ))
            })?;
            tokens[row] = text.to_owned();
            kinds[row] = kind;
            Ok(())
        };
        let bytes = self.json["model"]["byte_fallback"] == true;
        for (text, id) in self.json["model"]["vocab"].as_object().into_iter().flatten() {
            let id = id.as_u64().ok_or_else(|| self.wrong(format!("the id of {text:?} is {id}")))?;
            let kind = match text {
                _ if Some(text.as_str()) == unknown => Kind::Unknown,
                _ if bytes && is_byte(text) => Kind::Byte,
                _ => Kind::Normal,
            };
            set(text, id, kind)?;
        }
        for token in self.json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else { continue };
            let kind = match token["special"] == true {
                _ if Some(text) == unknown => Kind::Unknown,
                true => Kind::Control,
                false => Kind::UserDefined,
            };
            if id < vocab_size as u64 {
                set(text, id, kind)?;
            }
        }
        Ok((tokens, kinds))
    }

    /// Whether a blank goes before every text.
    fn prepends_space(&self) -> bool {
        let metaspace = self.steps("pre_tokenizer").into_iter().find(|step| step["type"] == "Metaspace");
        match metaspace {
            Some(step) => {
                step["prepend_scheme"].as_str().map_or(step["add_prefix_space"] != false, |s| s != "never")
            }
            None => self.mentions("normalizer", "Prepend"),
        }
    }
}

fn pair_of(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a, b)),
            _ => None,
        },
        _ => None,
    }
}

/// `<0x0A>` and the like.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The score of each token: the negative rank of the first merge that makes it; tokens that no merge makes come last,
/// and those that are no text have none.
fn scores(tokens: &[String], kinds: &[Kind], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    let mut last = merges.len();
    let mut score = |(token, kind): (&String, &Kind)| match kind {
        Kind::Normal | Kind::UserDefined => {
            let rank = ranks.get(token).copied().unwrap_or_else(|| {
                last += 1;
                last
            });
            -(rank as f32)
        }
        _ => 0.0,
    };
    tokens.iter().zip(kinds).map(&mut score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn read(name: &str, vocab: usize) -> HashMap<String, GgufValue> {
        tokenizer_metadata(&fixture(name), vocab, None).unwrap().0.into_iter().collect()
    }

    #[test]
    fn splittings_are_known_by_their_expressions() {
        for (folder, expected) in
            [("models/llama", "llama-bpe"), ("models/qwen2", "qwen2"), ("models/gpt_neox", "gpt-2")]
        {
            let all = read(folder, 512);
            assert_eq!(all["tokenizer.ggml.model"], GgufValue::Text("gpt2".into()), "{folder}");
            assert_eq!(all["tokenizer.ggml.pre"], GgufValue::Text(expected.into()), "{folder}");
        }
        let (named, note) = tokenizer_metadata(&fixture("models/llama"), 512, Some("mine")).unwrap();
        assert_eq!(note, None);
        assert!(named.contains(&("tokenizer.ggml.pre".into(), GgufValue::Text("mine".into()))));
    }

    #[test]
    fn sentencepiece_has_scores_in_the_order_of_its_merges() {
        let all = read("models/mistral", 520);
        assert_eq!(all["tokenizer.ggml.model"], GgufValue::Text("llama".into()));
        assert_eq!(all["tokenizer.ggml.add_space_prefix"], GgufValue::Bool(true));
        assert_eq!(all["tokenizer.ggml.unknown_token_id"], GgufValue::U32(0));
        let GgufValue::Texts(tokens) = &all["tokenizer.ggml.tokens"] else { panic!() };
        let GgufValue::F32s(scores) = &all["tokenizer.ggml.scores"] else { panic!() };
        let GgufValue::I32s(kinds) = &all["tokenizer.ggml.token_type"] else { panic!() };
        assert_eq!((tokens.len(), scores.len(), kinds.len()), (520, 520, 520));
        assert_eq!(kinds[..4], [2, 3, 3, 6], "unknown, control, control, byte");
        assert_eq!((tokens[519].as_str(), kinds[519]), ("[PAD519]", 5));
        // the first merge, the third, and a letter by itself
        let score = |token: &str| scores[tokens.iter().position(|t| t == token).unwrap()];
        assert_eq!((score("▁t"), score("▁th")), (0.0, -2.0));
        assert!(score("t") < -169.0);
        assert_eq!(read("models/gemma", 512)["tokenizer.ggml.add_space_prefix"], GgufValue::Bool(false));
    }

    #[test]
    fn a_name_tells_llama_cpp_of_blanks_behind_tags() {
        let folder = tempfile::tempdir().unwrap();
        let name = |tokens: &[&str], strips: bool, name: &str| {
            let added: Vec<Value> = tokens
                .iter()
                .map(
                    |text| serde_json::json!({ "content": text, "id": 1, "special": true, "rstrip": strips }),
                )
                .collect();
            let json = serde_json::json!({ "added_tokens": added, "model": { "vocab": { "<s>": 0 } } });
            std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
            let (name, note) = phi3_name(folder.path(), name.to_owned()).unwrap();
            assert_eq!(
                note.as_ref().is_some_and(|note| note.contains(&name)),
                name == "phi-3 merged" || name == "model"
            );
            assert_eq!(note.is_some_and(|note| note.contains("blanks")), name == "phi-4-mini");
            name
        };
        let own = ["<unk>", "</s>", "<|endoftext|>"];
        assert_eq!(name(&own, true, "merged"), "phi-3 merged");
        assert_eq!(name(&own, true, "Phi-3.5-mini"), "Phi-3.5-mini");
        assert_eq!(name(&own, false, "merged"), "merged");
        assert_eq!(name(&own[..2], true, "my Phi3"), "model");
        assert_eq!(name(&own[..2], false, "phi-4"), "phi-4");
        assert_eq!(name(&own[2..], true, "phi-4-mini"), "phi-4-mini");
    }

    #[test]
    fn tokens_without_rows_are_left_out_if_they_were_added() {
        let folder = tempfile::tempdir().unwrap();
        let from = fixture("models/gemma");
        for name in ["tokenizer_config.json", "config.json", "generation_config.json", "chat_template.jinja"]
        {
            std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
        let text = std::fs::read_to_string(from.join("tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        let mut token = json["added_tokens"][0].clone();
        token["content"] = "<image_soft_token>".into();
        token["id"] = 512.into();
        json["added_tokens"].as_array_mut().unwrap().push(token);
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let (all, note) = tokenizer_metadata(folder.path(), 512, None).unwrap();
        let note = note.unwrap();
        assert!(note.contains("no rows for \"<image_soft_token>\": left out"), "{note}");
        let all: HashMap<String, GgufValue> = all.into_iter().collect();
        assert!(all == read("models/gemma", 512), "nothing else changes");
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.own_vocab_size()), (513, 512));
    }

    #[test]
    fn what_llama_cpp_does_not_know_is_refused() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo/model");
        let error = tokenizer_metadata(&demo, 512, None).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("Unigram"), "{error}");
        let error = tokenizer_metadata(&fixture("models/llama"), 500, None).unwrap_err().to_string();
        assert!(error.contains("vocab_size"), "{error}");
        let parts = |pre: &str| Parts {
            file: "tokenizer.json".into(),
            json: serde_json::from_str(&format!("{{\"pre_tokenizer\": {pre}}}")).unwrap(),
        };
        let digits = r#"{"type": "Digits", "individual_digits": true}"#;
        let bytes = r#"{"type": "ByteLevel", "use_regex": true}"#;
        let sequence = format!(r#"{{"type": "Sequence", "pretokenizers": [{digits}, {bytes}]}}"#);
        assert_eq!(parts(&sequence).splitting().unwrap(), "smollm");
        let other = r#"{"type": "Split", "pattern": {"Regex": "\\d"}}"#;
        let error = parts(other).splitting().unwrap_err().to_string();
        assert!(error.contains("--tokenizer_pre"), "{error}");
    }
}
