//! Tokenised rows in a file that is mapped into memory, so that a data set may be larger than the memory.
//!
//! The file, in the machine's own byte order:
//!
//! | part | holds |
//! |---|---|
//! | head, 32 bytes | magic, key (16 bytes), 8 zero bytes |
//! | rows | of each row the label spans (start, end) and the token ids, as u32 |
//! | index | one [`RowEntry`] per row, from a multiple of 8 |
//! | foot, 32 bytes | number of rows, offset of the index, largest token id, magic |
//!
//! It is written once, front to back, and never changed afterwards; the foot is the last thing written, so a file that
//! was cut short has none.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;

use super::encode::Tokenized;
use super::sample::{Sample, Span};

/// The last two characters are the version of the layout.
const MAGIC: [u8; 8] = *b"engrtk01";

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    key: [u8; 16],
    zero: [u8; 8],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Foot {
    rows: u64,
    /// In bytes from the start of the file.
    index: u64,
    largest_token: u64,
    magic: [u8; 8],
}

/// What is known of a row without touching its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RowEntry {
    /// Of the row's spans, in bytes from the start of the file; the tokens follow them.
    offset: u64,
    spans: u32,
    pub(super) tokens: u32,
    pub(super) label_tokens: u32,
    /// Tokens before truncation.
    pub(super) full_length: u32,
    /// Tokens before the first label, before truncation; 0 where prompts are not masked.
    pub(super) prompt_length: u32,
    zero: u32,
}

/// Writes rows one after the other.
pub(super) struct StoreWriter<W> {
    out: W,
    offset: u64,
    index: Vec<RowEntry>,
    largest_token: u32,
}

impl<W: Write> StoreWriter<W> {
    pub(super) fn new(mut out: W, key: u128) -> io::Result<Self> {
        let head = Head { magic: MAGIC, key: key.to_le_bytes(), zero: [0; 8] };
        out.write_all(bytemuck::bytes_of(&head))?;
        Ok(Self { out, offset: size_of::<Head>() as u64, index: Vec::new(), largest_token: 0 })
    }

    pub(super) fn push(&mut self, row: &Tokenized) -> io::Result<()> {
        let Sample { tokens, spans } = &row.sample;
        let narrow =
            |count: usize| u32::try_from(count).map_err(|_| io::Error::other("a row has over 2^32 tokens"));
        self.index.push(RowEntry {
            offset: self.offset,
            spans: narrow(spans.len())?,
            tokens: narrow(tokens.len())?,
            label_tokens: narrow(row.sample.label_tokens())?,
            full_length: narrow(row.full_length)?,
            prompt_length: narrow(row.prompt_length)?,
            zero: 0,
        });
        let spans: &[u8] = bytemuck::cast_slice(spans);
        let ids: &[u8] = bytemuck::cast_slice(tokens);
        self.out.write_all(spans)?;
        self.out.write_all(ids)?;
        self.offset += (spans.len() + ids.len()) as u64;
        self.largest_token = self.largest_token.max(tokens.iter().copied().max().unwrap_or(0));
        Ok(())
    }

    /// Writes index and foot.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let index = self.offset.next_multiple_of(8);
        self.out.write_all(&[0; 8][..(index - self.offset) as usize])?;
        self.out.write_all(bytemuck::cast_slice(&self.index))?;
        let rows = self.index.len() as u64;
        let foot = Foot { rows, index, largest_token: self.largest_token.into(), magic: MAGIC };
        self.out.write_all(bytemuck::bytes_of(&foot))?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Rows of a file that was written by [`StoreWriter`].
#[derive(Debug)]
pub(super) struct TokenStore {
    map: Mmap,
    rows: usize,
    index: usize,
    largest_token: u32,
}

impl TokenStore {
    /// Maps the file at `path`; `None` where it is missing, cut short, or of another key or layout.
    pub(super) fn open(path: &Path, key: u128) -> Option<Self> {
        Self::map(&File::open(path).ok()?, key).ok()
    }

    /// Maps a file.
    ///
    /// # Errors
    /// A file that cannot be mapped, or is not whole, or of another key.
    pub(super) fn map(file: &File, key: u128) -> io::Result<Self> {
        // SAFETY: the file is written under a temporary name, or has none, and is not changed once it is whole. As with
        // every mapped file, another program that cuts it short while it is read would end this one.
        let map = unsafe { Mmap::map(file)? };
        let broken = || io::Error::other("not a whole file of tokens");
        let (head, foot) = (size_of::<Head>(), size_of::<Foot>());
        if map.len() < head + foot {
            return Err(broken());
        }
        let begin: Head = bytemuck::pod_read_unaligned(&map[..head]);
        let end: Foot = bytemuck::pod_read_unaligned(&map[map.len() - foot..]);
        if begin.magic != MAGIC || end.magic != MAGIC || begin.key != key.to_le_bytes() {
            return Err(broken());
        }
        let (rows, index) = (end.rows as usize, end.index as usize);
        let length = rows.checked_mul(size_of::<RowEntry>()).and_then(|bytes| bytes.checked_add(index));
        if index < head || !index.is_multiple_of(8) || length != Some(map.len() - foot) {
            return Err(broken());
        }
        let store = Self { map, rows, index, largest_token: end.largest_token as u32 };
        let fits = |entry: &RowEntry| {
            let words = 2 * u64::from(entry.spans) + u64::from(entry.tokens);
            entry.offset.is_multiple_of(4)
                && entry.offset.checked_add(4 * words).is_some_and(|end| end <= index as u64)
        };
        if store.entries().iter().all(fits) { Ok(store) } else { Err(broken()) }
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// The largest token id of any row.
    pub(super) fn largest_token(&self) -> u32 {
        self.largest_token
    }

    /// One entry per row.
    pub(super) fn entries(&self) -> &[RowEntry] {
        bytemuck::cast_slice(&self.map[self.index..self.index + self.rows * size_of::<RowEntry>()])
    }

    /// A copy of the row.
    pub(super) fn sample(&self, row: usize) -> Sample {
        let entry = self.entries()[row];
        let begin = entry.offset as usize;
        let middle = begin + entry.spans as usize * size_of::<Span>();
        let end = middle + entry.tokens as usize * size_of::<u32>();
        let spans: &[Span] = bytemuck::cast_slice(&self.map[begin..middle]);
        let tokens: &[u32] = bytemuck::cast_slice(&self.map[middle..end]);
        Sample { tokens: tokens.to_vec(), spans: spans.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Tokenized> {
        let samples = [
            Sample::new(vec![5, 6, 7], 1),
            Sample::new(vec![], 0),
            Sample::with_spans((100..120).collect(), [2..4, 9..12]),
            Sample::new(vec![9], 1),
        ];
        let row =
            |sample: Sample| Tokenized { full_length: sample.tokens.len() + 3, prompt_length: 1, sample };
        samples.map(row).to_vec()
    }

    fn bytes(rows: &[Tokenized], key: u128) -> Vec<u8> {
        let mut writer = StoreWriter::new(Vec::new(), key).unwrap();
        rows.iter().for_each(|row| writer.push(row).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, bytes(&rows(), 7)).unwrap();
        let store = TokenStore::open(&path, 7).unwrap();
        assert_eq!((store.len(), store.largest_token()), (4, 119));
        for (i, row) in rows().into_iter().enumerate() {
            let entry = store.entries()[i];
            assert_eq!(store.sample(i), row.sample);
            assert_eq!(entry.tokens as usize, row.sample.tokens.len());
            assert_eq!(entry.label_tokens as usize, row.sample.label_tokens());
            assert_eq!((entry.full_length as usize, entry.prompt_length), (row.full_length, 1));
        }
        drop(store);
        std::fs::write(&path, bytes(&[], 7)).unwrap();
        assert_eq!(TokenStore::open(&path, 7).unwrap().len(), 0);
    }

    #[test]
    fn other_keys_and_damaged_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let good = bytes(&rows(), 7);
        std::fs::write(&path, &good).unwrap();
        assert!(TokenStore::open(&path, 8).is_none());
        assert!(TokenStore::open(&folder.path().join("none"), 7).is_none());
        for length in 0..good.len() {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(TokenStore::open(&path, 7).is_none(), "{length}");
        }
        // an index that points outside must not be followed
        let index = good.len() - size_of::<Foot>() - size_of::<RowEntry>();
        for (at, byte) in [(0, 0xf0), (0, 0x01), (7, 0xff), (15, 0x7f), (11, 0x7f)] {
            let mut bad = good.clone();
            bad[index + at] = byte;
            std::fs::write(&path, &bad).unwrap();
            assert!(TokenStore::open(&path, 7).is_none(), "byte {at} = {byte}");
        }
    }
}
