//! Marks of turns that a prompt style writes and a tokenizer may not know.

use super::{PromptStyle, Tokenizer};
use std::collections::BTreeSet;

/// What the user should know of a style whose control tokens the tokenizer lacks: it spells them, or has no word for them at all.
pub(super) fn unknown_marks(style: &PromptStyle, tokenizer: &Tokenizer) -> Option<String> {
    let mut marks = marks(style.template()?);
    marks.retain(|mark| !tokenizer.has_token(mark));
    if marks.is_empty() {
        return None;
    }
    let of = |ids: Vec<u32>| ids.into_iter().map(|id| tokenizer.token_name(id)).collect::<Vec<_>>();
    let pieces: Vec<Vec<String>> =
        marks.iter().filter_map(|mark| tokenizer.encode_plain(mark).ok().map(of)).collect();
    let unknown = pieces.iter().flatten().any(|piece| ["<unk>", "[UNK]"].contains(&piece.as_str()));
    let read = match unknown {
        true => "they are read as unknown text, in which one cannot be told from another".to_owned(),
        false => {
            format!("they are spelled in up to {} tokens", pieces.iter().map(Vec::len).max().unwrap_or(0))
        }
    };
    let marks = marks.into_iter().collect::<Vec<_>>().join(" and ");
    Some(format!(
        "the prompt style {style} writes {marks}, for which this model has no token: {read}; styles of plain words, as alpaca, \
         suit it better (--data.prompt_style)"
    ))
}

/// Control tokens in a template. Roles between bars are plain words to many models that were trained with them.
fn marks(template: &str) -> BTreeSet<&str> {
    let roles = ["user", "assistant", "system"];
    let mut found = BTreeSet::new();
    for (at, _) in template.match_indices('<') {
        let Some(end) = template[at..].find('>') else { continue };
        let mark = &template[at..=at + end];
        let within = &mark[1..end];
        let bare = within.trim_matches('|');
        let word = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let barred = within.starts_with('|') && within.ends_with('|') && !roles.contains(&bare);
        let turn = ["start_of_turn", "end_of_turn"].contains(&within);
        if word && (barred || turn) {
            found.insert(mark);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_of_styles_are_found() {
        let of = |name: &str| {
            let style: PromptStyle = name.parse().unwrap();
            style.template().map(|template| marks(template).into_iter().collect::<Vec<_>>())
        };
        assert_eq!(of("chatml").unwrap(), ["<|im_end|>", "<|im_start|>"]);
        assert_eq!(of("gemma").unwrap(), ["<end_of_turn>", "<start_of_turn>"]);
        assert_eq!(of("phi-3").unwrap(), ["<|end|>"]);
        assert!(of("llama3").unwrap().contains(&"<|eot_id|>"));
        for plain in ["llama2", "tinyllama", "platypus", "stablelm-alpha"] {
            assert!(of(plain).unwrap().is_empty(), "{plain}");
        }
        assert_eq!(of("alpaca"), None);
        assert_eq!(of("chat"), None);
    }
}
