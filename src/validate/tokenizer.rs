//! Tokenizer, special tokens and chat template.

use super::{Status, Validation};
use crate::data::{Conversation, Tokenizer};
use crate::models::ModelConfig;
use std::path::Path;

pub(super) fn check_tokenizer(all: &mut Validation, model_dir: &Path, config: Option<&ModelConfig>) {
    let tokenizer = match Tokenizer::open(model_dir) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            all.add("tokenizer", Status::Failed, error.to_string(), None);
            return;
        }
    };
    let tokens = tokenizer.vocab_size();
    match config.map(|config| config.vocab_size) {
        Some(rows) if tokens > rows && tokenizer.own_vocab_size() <= rows => {
            let found = format!(
                "{tokens} tokens, of which those that were added beyond the {rows} rows of the embedding must not occur"
            );
            all.add("tokenizer", Status::Passed, found, None);
        }
        Some(rows) if tokens > rows => {
            let found = format!("ids up to {}, but the embedding has {rows} rows", tokens - 1);
            let advice = "tokenizer.json and config.json belong to different models: fetch them together";
            all.add("tokenizer", Status::Failed, found, Some(advice));
        }
        rows => {
            let of = rows.map_or(String::new(), |rows| format!(" in {rows} rows of the embedding"));
            all.add("tokenizer", Status::Passed, format!("{tokens} tokens{of}"), None);
        }
    }
    check_round_trip(all, &tokenizer);
    check_special_tokens(all, &tokenizer, config);
    check_chat_template(all, &tokenizer);
}

/// Text that comes back as it went in.
fn check_round_trip(all: &mut Validation, tokenizer: &Tokenizer) {
    const TEXTS: [&str; 6] = [
        "Hello, world!",
        "def f(x):\n    return x ** 2\n",
        "naïve café: 12 345.67 €",
        "日本語, русский, العربية",
        "🦀 and 👩‍🚀",
        " a\ttab, two  blanks\n\nand lines ",
    ];
    let name = "round trip";
    let back = |text: &str| tokenizer.encode_plain(text).and_then(|ids| tokenizer.decode(&ids));
    // letter case and blanks may be the tokenizer's own affair
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut changed = Vec::new();
    for text in TEXTS {
        match back(text) {
            Ok(again) if again == text => {}
            Ok(again) => changed.push((text, again)),
            Err(error) => {
                all.add(name, Status::Failed, error.to_string(), None);
                return;
            }
        }
    }
    match changed.as_slice() {
        [] => all.add(name, Status::Passed, format!("{} texts come back as they were", TEXTS.len()), None),
        [(text, again), ..] => {
            let broken = changed.iter().any(|(text, again)| *text == TEXTS[0] && plain(text) != plain(again));
            let status = if broken { Status::Failed } else { Status::Warning };
            let advice = match broken {
                true => "tokenizer.json is damaged or has another decoder: fetch it again",
                false => "text of this kind reaches the model changed; train on others, or accept it",
            };
            let found =
                format!("{} of {} texts change: {text:?} becomes {again:?}", changed.len(), TEXTS.len());
            all.add(name, status, found, Some(advice));
        }
    }
}

fn check_special_tokens(all: &mut Validation, tokenizer: &Tokenizer, config: Option<&ModelConfig>) {
    let name = "special tokens";
    let text = |id: u32| tokenizer.decode_all(&[id]).unwrap_or_default();
    let shown = |id: u32| format!("{:?} ({id})", text(id));
    let rows = config.map_or(usize::MAX, |config| config.vocab_size);
    let stops = tokenizer.stop_tokens();
    let outside: Vec<u32> =
        stops.iter().copied().chain(tokenizer.bos()).filter(|&id| id as usize >= rows).collect();
    if !outside.is_empty() {
        let found = format!("the ids {outside:?} are beyond the {rows} rows of the embedding");
        let advice = "correct eos_token_id and bos_token_id in generation_config.json and config.json";
        all.add(name, Status::Failed, found, Some(advice));
        return;
    }
    let bos = match (tokenizer.bos(), tokenizer.adds_bos()) {
        (Some(bos), true) => format!("texts begin with {}", shown(bos)),
        (Some(bos), false) => format!("BOS {} is not added to texts", shown(bos)),
        (None, true) => "texts begin with special tokens".to_owned(),
        (None, false) => "no BOS".to_owned(),
    };
    let others: Vec<String> = stops[1..].iter().map(|&id| shown(id)).collect();
    let others =
        if others.is_empty() { String::new() } else { format!(", {} end generation too", others.join(", ")) };
    let eos = tokenizer.eos();
    all.add(name, Status::Passed, format!("{bos}; answers end with {}{others}", shown(eos)), None);
    for id in [Some(eos), tokenizer.bos()].into_iter().flatten() {
        if tokenizer.encode_plain(&text(id)).is_ok_and(|ids| ids != [id]) {
            let found = format!("{} written out in a text becomes other tokens", shown(id));
            let advice = "chat templates write it out: mark it as special in added_tokens of tokenizer.json";
            all.add(name, Status::Warning, found, Some(advice));
        }
    }
}

fn check_chat_template(all: &mut Validation, tokenizer: &Tokenizer) {
    const NAME: &str = "chat template";
    const QUESTION: &str = "Which colour has snow?";
    const ANSWER: &str = "It is white.";
    let template = match tokenizer.chat_template() {
        Ok(Some(template)) => template,
        Ok(None) => {
            let found = "none: --prompt_style chat is not for this model, alpaca and the others are";
            return all.add(NAME, Status::Skipped, found, None);
        }
        Err(error) => return all.add(NAME, Status::Failed, error.to_string(), None),
    };
    let render = |system, answer, open| template.text(&Conversation::single(system, QUESTION, answer), open);
    let (whole, open) = match (render(None, Some(ANSWER), false), render(None, None, true)) {
        (Ok(whole), Ok(open)) => (whole, open),
        (Err(reason), _) | (_, Err(reason)) => {
            let advice =
                "fetch chat_template.jinja or tokenizer_config.json again, or use another --prompt_style";
            return all.add(NAME, Status::Failed, reason, Some(advice));
        }
    };
    let system = match render(Some("Be brief."), Some(ANSWER), false) {
        Ok(text) if text.contains("Be brief.") => "with and without a system message",
        _ => "without a system message, which it does not take",
    };
    let missing = [QUESTION, ANSWER].into_iter().find(|part| !whole.contains(part));
    let ends = whole.rsplit_once(ANSWER).is_some_and(|(_, tail)| {
        tokenizer
            .encode_plain(tail)
            .is_ok_and(|ids| ids.iter().any(|id| tokenizer.stop_tokens().contains(id)))
    });
    if let Some(part) = missing {
        let advice = "it drops what was said: use another --prompt_style";
        all.add(NAME, Status::Failed, format!("{part:?} is not in what it renders"), Some(advice));
    } else if !ends {
        let advice = "a model trained with it does not learn to end: set eos_token_id in generation_config.json to the token \
                      that ends a turn";
        all.add(NAME, Status::Warning, "no stop token comes after an answer", Some(advice));
    } else if !whole.starts_with(open.trim_end()) {
        let found = format!("renders {system}; the generation prompt is no prefix of the whole");
        all.add(NAME, Status::Passed, found, None);
    } else {
        all.add(NAME, Status::Passed, format!("renders {system}, and a stop token ends the answer"), None);
    }
}
