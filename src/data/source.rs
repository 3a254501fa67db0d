//! Where rows come from: files with weights, or a folder with a file for each part.
//!
//! A weight is how often the training rows of a file are seen in an epoch: 2 shows each twice, 0.5 half of them, 2.5
//! each twice and half of them once more. Which half is a seeded choice that holds for the whole run. Validation rows
//! are never repeated.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DataError;

/// A file or folder of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSource {
    pub path: PathBuf,
    /// How often its training rows are seen in an epoch; above 0.
    pub weight: f64,
}

impl fmt::Display for DataSource {
    /// As it is typed: `FILE:WEIGHT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.weight)
    }
}

impl DataSource {
    /// A source whose rows are seen once.
    pub fn once(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), weight: 1.0 }
    }

    /// Reads `FILE[:WEIGHT],…`. A colon that no number follows belongs to the name.
    ///
    /// # Errors
    /// An empty name; a weight that is not above 0.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, DataError> {
        text.split(',').map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, DataError> {
        let wrong = |reason| DataError::BadSource { text: text.to_owned(), reason };
        let weighted =
            text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
        let (path, weight) = weighted.unwrap_or((text, 1.0));
        if path.is_empty() {
            return Err(wrong("names no file"));
        }
        if !(weight.is_finite() && weight > 0.0) {
            return Err(wrong("the weight must be a number above 0"));
        }
        Ok(Self { path: path.into(), weight })
    }
}

/// Files of both parts.
#[derive(Debug, PartialEq)]
pub(super) struct SourceFiles {
    pub(super) train: Vec<DataSource>,
    /// Empty where the validation rows are to be split off the training rows.
    pub(super) validation: Vec<PathBuf>,
}

/// The files of these sources. A folder gives its files `train.*` (or `train-*`, in the order of their names) and
/// `val.*`, `valid.*` or `validation.*`.
///
/// # Errors
/// A folder without a file for training, or that cannot be read.
pub(super) fn files_of(sources: &[DataSource]) -> Result<SourceFiles, DataError> {
    let mut files = SourceFiles { train: Vec::new(), validation: Vec::new() };
    for source in sources {
        if !source.path.is_dir() {
            files.train.push(source.clone());
            continue;
        }
        let train = named(&source.path, &["train"])?;
        if train.is_empty() {
            return Err(DataError::NoTrainFile { folder: source.path.clone() });
        }
        files.train.extend(train.into_iter().map(|path| DataSource { path, weight: source.weight }));
        files.validation.extend(named(&source.path, &["val", "valid", "validation"])?);
    }
    Ok(files)
}

/// Files of a folder whose name begins with one of the words and goes on with a dot or a dash, in order.
fn named(folder: &Path, words: &[&str]) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::Read { file: folder.to_owned(), error };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let matches = |word: &&str| name.strip_prefix(*word).is_some_and(|rest| rest.starts_with(['.', '-']));
        if path.is_file() && words.iter().any(matches) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_names_and_weights() {
        let source = |path: &str, weight| DataSource { path: path.into(), weight };
        for (text, expected) in [
            ("a.json", vec![source("a.json", 1.0)]),
            (
                "a.json:2,b/c.jsonl:0.5,d",
                vec![source("a.json", 2.0), source("b/c.jsonl", 0.5), source("d", 1.0)],
            ),
            (r"C:\data\a.json", vec![source(r"C:\data\a.json", 1.0)]),
            (r"C:\data\a.json:3", vec![source(r"C:\data\a.json", 3.0)]),
        ] {
            assert_eq!(DataSource::parse_list(text).unwrap(), expected, "{text}");
        }
        for (text, expected) in [
            ("", "names no file"),
            ("a,,b", "names no file"),
            (":2", "names no file"),
            ("a:0", "above 0"),
            ("a:-1", "above 0"),
            ("a:nan", "above 0"),
            ("a:inf", "above 0"),
        ] {
            assert!(DataSource::parse_list(text).unwrap_err().to_string().contains(expected), "{text}");
        }
    }

    #[test]
    fn folders_give_their_parts() {
        let folder = tempfile::tempdir().unwrap();
        let source = [DataSource { path: folder.path().into(), weight: 2.0 }];
        assert!(matches!(files_of(&source), Err(DataError::NoTrainFile { .. })));
        for name in
            ["train-00001.parquet", "train-00000.parquet", "training.txt", "val.json", "values.csv", "README"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let files = files_of(&source).unwrap();
        let at = |name: &str| folder.path().join(name);
        let train = ["train-00000.parquet", "train-00001.parquet"];
        assert_eq!(files.train, train.map(|name| DataSource { path: at(name), weight: 2.0 }));
        assert_eq!(files.validation, [at("val.json")]);
    }
}
