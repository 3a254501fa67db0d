//! Text from token ids that arrive one by one.
//!
//! A token may hold part of a character, and a decoder may treat the first token of a text differently (it
//! strips the space that SentencePiece puts there). So the new text is what a small window of ids says with
//! the new tokens beyond what it said without them, and it is held back while it ends in an incomplete
//! character.

use super::{DataError, Tokenizer};

/// See [`Tokenizer::decode_stream`]. The pieces together are the text that [`Tokenizer::decode`] gives for
/// all ids, where these are valid UTF-8.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece, then those that have given no text yet.
    window: Vec<u32>,
    /// How many of `window` belong to the last piece.
    given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), given: 0 }
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
