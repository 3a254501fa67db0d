//! A stream that is UTF-8 for certain, without its byte order mark.
//!
//! Parsers above it see an I/O error where the text is invalid; [`TextReader::failure`] then says where and why.

use std::io::{self, BufRead, Read};
use std::path::Path;

use crate::data::DataError;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Buffered text of a file, checked as it is read.
pub(super) struct TextReader<R> {
    inner: R,
    buffer: Vec<u8>,
    /// `buffer[begin..valid]` is checked and not yet consumed; `buffer[valid..filled]` is the start of a character.
    begin: usize,
    valid: usize,
    filled: usize,
    /// Bytes of the stream before `buffer[0]`.
    offset: usize,
    /// Newlines in what was checked so far.
    newlines: usize,
    started: bool,
    failure: Option<TextFailure>,
}

/// Why a text could not be read to its end.
pub(super) enum TextFailure {
    /// `offset` in bytes from 0, `line` from 1.
    NotUtf8 {
        line: usize,
        offset: usize,
    },
    Read(io::Error),
}

impl TextFailure {
    /// The error for the file at `path`; `packing` names its compression, where it has one.
    pub(super) fn in_file(self, path: &Path, packing: Option<&'static str>) -> DataError {
        let file = path.to_owned();
        match (self, packing) {
            (Self::NotUtf8 { line, offset }, _) => DataError::NotUtf8 { file, line, offset },
            (Self::Read(error), None) => DataError::Read { file, error },
            (Self::Read(error), Some(packing)) => {
                DataError::Damaged { file, kind: packing, reason: error.to_string() }
            }
        }
    }
}

impl<R: Read> TextReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; CHUNK],
            begin: 0,
            valid: 0,
            filled: 0,
            offset: 0,
            newlines: 0,
            started: false,
            failure: None,
        }
    }

    /// What went wrong, once: the cause of the I/O error that the reader gave.
    pub(super) fn failure(&mut self) -> Option<TextFailure> {
        self.failure.take()
    }

    fn refill(&mut self) -> io::Result<()> {
        while self.begin == self.valid {
            self.buffer.copy_within(self.valid..self.filled, 0);
            self.offset += self.valid;
            self.filled -= self.valid;
            (self.begin, self.valid) = (0, 0);
            let read = match self.inner.read(&mut self.buffer[self.filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.failure = Some(TextFailure::Read(error));
                    return Err(io::Error::other("the text cannot be read"));
                }
            };
            self.filled += read;
            if read == 0 && self.filled == 0 {
                return Ok(());
            }
            self.check(read == 0)?;
        }
        Ok(())
    }

    fn check(&mut self, ended: bool) -> io::Result<()> {
        match std::str::from_utf8(&self.buffer[..self.filled]) {
            Ok(_) => self.valid = self.filled,
            Err(error) => {
                self.valid = error.valid_up_to();
                // what is before the invalid byte is given first, so that an earlier mistake is the one told
                if self.valid == 0 && (ended || error.error_len().is_some()) {
                    let line = 1 + self.newlines;
                    self.failure = Some(TextFailure::NotUtf8 { line, offset: self.offset });
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the text is not UTF-8"));
                }
            }
        }
        self.newlines += self.buffer[..self.valid].iter().filter(|&&byte| byte == b'\n').count();
        if !self.started && self.valid > 0 {
            self.started = true;
            if self.buffer[..self.valid].starts_with("\u{feff}".as_bytes()) {
                self.begin = "\u{feff}".len();
            }
        }
        Ok(())
    }
}

impl<R: Read> BufRead for TextReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.begin == self.valid {
            self.refill()?;
        }
        Ok(&self.buffer[self.begin..self.valid])
    }

    fn consume(&mut self, amount: usize) {
        self.begin = (self.begin + amount).min(self.valid);
    }
}

impl<R: Read> Read for TextReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut ready = self.fill_buf()?;
        let read = ready.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a text in pieces of one length.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(out.len());
            out[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    #[test]
    fn text_comes_whole_however_it_is_cut() {
        let text = "\u{feff}é\n日本 🙂\u{feff}\nend";
        for size in 1..20 {
            let mut read = String::new();
            TextReader::new(Pieces(text.as_bytes(), size)).read_to_string(&mut read).unwrap();
            assert_eq!(read, text[3..], "{size}");
        }
    }

    #[test]
    fn an_invalid_byte_is_placed() {
        for (bytes, expected) in [
            (&b"a\nb\xff"[..], (2, 3)),
            (b"\xff\xfe", (1, 0)),
            (b"ok\n\xe6\x97", (2, 3)),
            (b"\xef\xbb\xbfa\n\n\xc3(", (3, 6)),
        ] {
            for size in 1..8 {
                let mut text = TextReader::new(Pieces(bytes, size));
                assert!(text.read_to_end(&mut Vec::new()).is_err());
                let Some(TextFailure::NotUtf8 { line, offset }) = text.failure() else {
                    panic!("{bytes:?} in pieces of {size}")
                };
                assert_eq!((line, offset), expected, "{bytes:?} in pieces of {size}");
            }
        }
    }
}
