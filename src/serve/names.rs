//! Names for tokens, by which a client can tell those of one place apart.

use super::api::{Name, NamedToken};
use crate::data::Tokenizer;
use crate::generate::ScoredToken;

/// Scored tokens by name, of a text that stands behind `before` characters.
pub(super) fn named(tokenizer: &Tokenizer, tokens: Vec<ScoredToken>, before: usize) -> Vec<NamedToken> {
    let one = |ScoredToken { score, start }| {
        let mut ids: Vec<u32> = score.top.iter().map(|(id, _)| *id).collect();
        let own = ids.iter().position(|id| *id == score.token).unwrap_or(ids.len());
        if own == ids.len() {
            ids.push(score.token);
        }
        let names = names(tokenizer, &ids);
        let name = names[own].clone();
        let top = names.into_iter().zip(score.top).map(|(name, (_, value))| (name, value)).collect();
        NamedToken { name, log_probability: score.log_probability, top, start: before + start }
    };
    tokens.into_iter().map(one).collect()
}

/// Each token's text; as the vocabulary writes it where it has none of its own, or the same as another.
fn names(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<Name> {
    let texts: Vec<Option<String>> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
    let alone = |text: &String| texts.iter().flatten().filter(|other| *other == text).count() == 1;
    let name = |(text, &id): (&Option<String>, &u32)| match text {
        Some(text) if alone(text) => Name { text: text.clone(), exact: true },
        _ => Name { text: tokenizer.token_name(id), exact: false },
    };
    texts.iter().zip(ids).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::TokenScore;
    use std::path::Path;

    fn tokenizer(family: &str) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
        Tokenizer::open(&folder).unwrap()
    }

    #[test]
    fn tokens_of_one_place_have_names_of_their_own() {
        for family in ["models/mistral", "models/qwen2", "models/gemma", "models/gpt_neox"] {
            let tokenizer = tokenizer(family);
            let all: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
            let mut seen = std::collections::HashSet::new();
            let names = names(&tokenizer, &all);
            let exact = names.iter().filter(|name| name.exact).count();
            assert!(exact > all.len() / 3, "{family}: {exact} of {}", all.len());
            for name in names {
                assert!(!name.text.is_empty() && seen.insert(name.text.clone()), "{family}: {name:?}");
            }
        }
    }

    #[test]
    fn texts_of_tokens_make_the_text() {
        for family in ["models/mistral", "models/qwen2", "models/gemma", "models/gpt_neox"] {
            let tokenizer = tokenizer(family);
            let text = "x the cat sat\n on 12 mats";
            // the space that this one begins with is no token's own
            let tokens = tokenizer.encode_plain(text).unwrap();
            let texts: String = tokens.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect();
            assert_eq!(texts.trim_start(), text, "{family}");
        }
    }

    #[test]
    fn a_token_is_named_among_the_most_probable_ones() {
        let tokenizer = tokenizer("models/qwen2");
        let ids = tokenizer.encode_plain("the cat é🙂").unwrap();
        let (own, other) = (ids[0], ids[1]);
        let score = |token| TokenScore { token, log_probability: Some(-1.0), top: vec![(other, -0.5)] };
        let tokens = [own, other].map(|token| ScoredToken { score: score(token), start: 2 });
        let named = named(&tokenizer, tokens.to_vec(), 40);
        let text = |id| tokenizer.token_text(id).unwrap();
        for (token, id) in named.iter().zip([own, other]) {
            assert_eq!((&token.name.text, token.start, token.log_probability), (&text(id), 42, Some(-1.0)));
            assert_eq!(token.top, [(Name { text: text(other), exact: true }, -0.5)]);
        }
    }
}
