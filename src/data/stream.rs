//! Text from token ids that arrive one by one.
//!
//! A token may hold part of a character, and a decoder may treat the first token of a text differently (it
//! strips the space that SentencePiece puts there). So the new text is what a small window of ids says with
//! the new tokens beyond what it said without them, and it is held back while it ends in an incomplete
//! character.

use super::{DataError, Tokenizer};

/// See [`Tokenizer::decode_stream`]. The pieces together are the text that [`Tokenizer::decode`] gives for
/// all ids, where these are valid UTF-8; without that of the ids before the stream, where there are some.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece, then those that have given no text yet.
    window: Vec<u32>,
    /// How many of `window` belong to the last piece.
    given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self::after(tokenizer, &[])
    }

    /// All of `before` counts as given. A part of it would be less to decode, but could begin inside a character, which
    /// spoils the run of bytes that the first new tokens may go on with; and the first piece drops it all.
    pub(super) fn after(tokenizer: &'a Tokenizer, before: &[u32]) -> Self {
        Self { tokenizer, window: before.to_vec(), given: before.len() }
    }

    /// Takes the next id and gives the text that is complete now: never half a character, never empty.
    /// Special tokens give none. Ids that the decoder refuses stay pending and show in [`Self::finish`].
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        let piece = self.pending().ok()?;
        if piece.is_empty() || piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return None;
        }
        self.window.drain(..self.given);
        self.given = self.window.len();
        Some(piece)
    }

    /// Where in the text of these ids, in characters, each begins; a part of a character where the character does.
    pub fn starts(mut self, ids: &[u32]) -> Vec<usize> {
        let mut said = 0;
        let start = |&id: &u32| {
            let start = said;
            said += self.push(id).map_or(0, |piece| piece.chars().count());
            start
        };
        ids.iter().map(start).collect()
    }

    /// The text that is still held back when no more ids come: bytes that never became a character show as
    /// U+FFFD.
    ///
    /// # Errors
    /// The decoder refuses the pending ids.
    pub fn finish(mut self) -> Result<Option<String>, DataError> {
        let piece = self.pending()?;
        self.window.clear();
        Ok((!piece.is_empty()).then_some(piece))
    }

    fn pending(&self) -> Result<String, DataError> {
        let (given, new) = self.window.split_at(self.given);
        let before = self.tokenizer.decode(given)?;
        let now = self.tokenizer.decode(&self.window)?;
        match now.strip_prefix(&before) {
            Some(piece) => Ok(piece.to_owned()),
            // An invalid byte after a character of several bytes can spoil the whole run in the decoder; what
            // has been given stays given.
            None => self.tokenizer.decode(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_stream_goes_on_where_the_text_before_it_ends() {
        for family in ["models/mistral", "models/qwen2", "models/gemma", "models/gpt_neox"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
            let tokenizer = Tokenizer::open(&folder).unwrap();
            for prompt in ["the cat", "the cat ", "日本", "é", ""] {
                let before = tokenizer.encode(prompt).unwrap();
                let text = tokenizer.decode(&before).unwrap();
                // as it is, and cut out of a text, where nothing is put before it
                for answer in [" sat", "sat", "s on", " é🙂 x", "本", "  a\n"] {
                    let whole = tokenizer.encode_plain(&format!("x\n{answer}")).unwrap();
                    let cut = whole[tokenizer.encode_plain("x\n").unwrap().len()..].to_vec();
                    for tokens in [tokenizer.encode_plain(answer).unwrap(), cut] {
                        let mut stream = tokenizer.decode_stream_after(&before);
                        let mut said: String = tokens.iter().filter_map(|&id| stream.push(id)).collect();
                        said.extend(stream.finish().unwrap());
                        let all = [&before[..], &tokens].concat();
                        let name = format!("{family}: {prompt:?} {answer:?}");
                        assert_eq!(format!("{text}{said}"), tokenizer.decode(&all).unwrap(), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_begin_where_their_text_does() {
        for family in ["models/mistral", "models/qwen2", "models/llama", "models/gemma"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
            let tokenizer = Tokenizer::open(&folder).unwrap();
            let text = "the café sat\n日本 on 🙂 mats";
            let tokens = tokenizer.encode(text).unwrap();
            for starts in [tokenizer.decode_stream().starts(&tokens), tokenizer.starts(text).unwrap()] {
                assert_eq!(starts.len(), tokens.len(), "{family}");
                assert!(starts.is_sorted() && starts[0] == 0, "{family}: {starts:?}");
                let chars: Vec<char> = text.chars().collect();
                for (i, (&start, &token)) in starts.iter().zip(&tokens).enumerate() {
                    let Some(said) = tokenizer.token_text(token) else { continue };
                    // a token that ends a character begins within it
                    let end = starts.get(i + 1).copied().unwrap_or(chars.len());
                    let own: String = chars[start..end].iter().collect();
                    assert_eq!(own.trim_start(), said.trim_start(), "{family}: {token} at {start}");
                }
            }
        }
    }

    #[test]
    fn a_space_that_begins_an_answer_is_kept_behind_a_text_and_dropped_without_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/mistral");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let before = tokenizer.encode("the cat").unwrap();
        // this tokenizer puts a space before every text, and so before the newline rather than behind it
        let with = tokenizer.encode_plain("sat").unwrap();
        let without = tokenizer.encode_plain("\nsat").unwrap();
        let without = &without[tokenizer.encode_plain("\n").unwrap().len()..];
        let text = |mut stream: DecodeStream<'_>, tokens: &[u32]| -> String {
            tokens.iter().filter_map(|&id| stream.push(id)).collect()
        };
        assert_eq!(text(tokenizer.decode_stream_after(&before), &with), " sat");
        assert_eq!(text(tokenizer.decode_stream_after(&before), without), "sat");
        assert_eq!(text(tokenizer.decode_stream(), &with), "sat");
    }
}
