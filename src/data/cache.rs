//! Files of tokens: made in one pass over a data file, and found again by what decides their content.

use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use serde_json::Value;
use twox_hash::XxHash3_128;

use super::dataset::DatasetOptions;
use super::encode::{Encoder, Tokenized};
use super::error::Place;
use super::parallel::parallel_map;
use super::reader::{self, read_rows};
use super::record::{Row, format_of, object};
use super::source::{DataSource, files_of};
use super::store::{StoreWriter, TokenStore};
use super::{DataError, Format, Tokenizer};
use crate::checkpoint::atomic::write_file;
use crate::stop::StopFlag;

/// Raised whenever rows become other tokens than before, within a version of engraft.
const ENCODING: u32 = 1;

/// From this size on the files of a data set take longer to tokenise than a user likes to wait twice.
const WORTH_KEEPING: u64 = 8 << 20;

/// Rows that are tokenised at a time. Three batches are in memory at most: read, waiting, in work.
const BATCH: usize = 512;

/// Whether files of tokens are worth keeping for the next run: below some size tokenising is a matter of a moment.
///
/// # Errors
/// A folder that cannot be read.
pub fn worth_keeping(sources: &[DataSource]) -> Result<bool, DataError> {
    let files = files_of(sources)?;
    let paths = files.train.iter().map(|source| &source.path).chain(&files.validation);
    let bytes: u64 = paths.filter_map(|path| path.metadata().ok()).map(|data| data.len()).sum();
    Ok(bytes >= WORTH_KEEPING)
}

/// All that decides the tokens of a row, but for the row.
pub(super) struct CacheKey(XxHash3_128);

impl CacheKey {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        options: &DatasetOptions,
        own: Option<&str>,
        encoder: &Encoder<'_>,
    ) -> Self {
        let mut hash = XxHash3_128::new();
        // each part with its length, so that no two lists of parts read alike
        let mut part = |bytes: &[u8]| {
            hash.write(&(bytes.len() as u64).to_le_bytes());
            hash.write(bytes);
        };
        part(&ENCODING.to_le_bytes());
        part(env!("CARGO_PKG_VERSION").as_bytes());
        part(&tokenizer.digest().to_le_bytes());
        part(options.format.map(|format| format.to_string()).unwrap_or_default().as_bytes());
        part(options.sample.style.to_string().as_bytes());
        part(&[options.sample.mask_prompt.into(), own.is_some().into()]);
        part(&(options.sample.max_seq_length.unwrap_or(0) as u64).to_le_bytes());
        part(own.unwrap_or_default().as_bytes());
        let chat = tokenizer.chat_sources();
        for (name, text) in chat.named.iter().map(|(name, text)| (name, text)).chain(&chat.special_tokens) {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        if encoder.tells_time() {
            part(chrono::Local::now().date_naive().to_string().as_bytes());
        }
        Self(hash)
    }

    /// The key of one file's tokens.
    fn of_file(&self, path: &Path, stop: &StopFlag) -> Result<u128, DataError> {
        let mut hash = self.0.clone();
        let mut file = reader::open(path)?;
        // a table is told by its name
        hash.write(&[reader::delimiter(path).unwrap_or(0)]);
        let mut buffer = vec![0; 1 << 20];
        loop {
            stop.check()?;
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hash.finish_128()),
                Ok(length) => hash.write(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(DataError::Read { file: path.to_owned(), error }),
            }
        }
    }
}

/// The tokens of one data file: found in the cache folder, or made.
pub(super) fn tokens_of_file(
    path: &Path,
    encoder: &Encoder<'_>,
    options: &DatasetOptions,
    key: &CacheKey,
    stop: &StopFlag,
) -> Result<TokenStore, DataError> {
    let Some(folder) = &options.cache else {
        let cannot_write = |error| DataError::TokenFile { file: std::env::temp_dir(), error };
        let file = tempfile::tempfile().map_err(cannot_write)?;
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        tokenize_file(path, encoder, options, 0, &mut out, stop)
            .map_err(|failed| failed.in_file(&std::env::temp_dir()))?;
        drop(out);
        return TokenStore::map(&file, 0).map_err(cannot_write);
    };
    let key = key.of_file(path, stop)?;
    let cached = folder.join(format!("tokens-{key:032x}.bin"));
    if let Some(store) = TokenStore::open(&cached, key) {
        return Ok(store);
    }
    let cannot_write = |error| DataError::TokenFile { file: cached.clone(), error };
    std::fs::create_dir_all(folder).map_err(cannot_write)?;
    let mut refused = None;
    let written = write_file(&cached, |out| match tokenize_file(path, encoder, options, key, out, stop) {
        Ok(()) => Ok(()),
        Err(Failed::Write(error)) => Err(error),
        Err(Failed::Data(error)) => {
            refused = Some(error);
            Err(io::Error::other("the data are refused"))
        }
    });
    match (refused, written) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(cannot_write(error)),
        (None, Ok(())) => TokenStore::open(&cached, key)
            .ok_or_else(|| cannot_write(io::Error::other("what was written cannot be read again"))),
    }
}

enum Failed {
    Data(DataError),
    Write(io::Error),
}

impl Failed {
    fn in_file(self, file: &Path) -> DataError {
        match self {
            Self::Data(error) => error,
            Self::Write(error) => DataError::TokenFile { file: file.to_owned(), error },
        }
    }
}

/// Reads, checks and tokenises the rows of a file in order: one thread reads, all cores tokenise.
fn tokenize_file(
    path: &Path,
    encoder: &Encoder<'_>,
    options: &DatasetOptions,
    key: u128,
    out: &mut dyn Write,
    stop: &StopFlag,
) -> Result<(), Failed> {
    let mut writer = StoreWriter::new(out, key).map_err(Failed::Write)?;
    let own = encoder.has_own_template();
    let mut format = options.format;
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Vec<(Place, Value)>>(1);
        let reader = scope.spawn(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let read = read_rows(path, &mut |place, value| {
                batch.push((place, value));
                if batch.len() < BATCH {
                    return ControlFlow::Continue(());
                }
                match sender.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            // rows before a mistake are looked at first, so that the first mistake of the file is the one told
            let _ = sender.send(batch);
            read
        });
        for batch in receiver {
            if format.is_none()
                && let Some((place, Value::Object(row))) = batch.first()
            {
                format = match format_of(path, *place, row) {
                    Ok(format) => Some(format),
                    Err(_) if own => None,
                    Err(error) => return Err(Failed::Data(error)),
                };
            }
            let rows = parallel_map(&batch, options.threads, |(place, value)| {
                stop.check()?;
                one(path, *place, value, format, own, encoder)
            });
            for row in rows {
                writer.push(&row.map_err(Failed::Data)?).map_err(Failed::Write)?;
            }
        }
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.map_err(Failed::Data)
    })?;
    writer.finish().map_err(Failed::Write)?;
    Ok(())
}

fn one(
    path: &Path,
    place: Place,
    value: &Value,
    format: Option<Format>,
    own: bool,
    encoder: &Encoder<'_>,
) -> Result<Tokenized, DataError> {
    let row = match format {
        // the user's own template writes conversations as a chat template does, and all else by its keys
        Some(format) if !own || format.is_chat() => Row::new(path, place, value.clone(), format)?,
        _ => Row::Fields(object(path, place, value.clone())?),
    };
    encoder.row(&row).map_err(|reason| DataError::RefusedRow { file: path.to_owned(), place, reason })
}
