//! What files a repository on the Hub has, and which of them engraft reads.

use super::client::Client;
use super::download::WeightFiles;
use super::{HubError, RepoName};
use crate::data::PROMPT_FILE;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The files of a repository at one commit that are worth having.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Empty for a file that is in no repository.
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// A file on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub digest: Digest,
}

impl RemoteFile {
    pub(super) fn is_weights(&self) -> bool {
        is_weights(&self.name)
    }
}

/// What the content of a file must hash to, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// Of large files.
    Sha256(String),
    /// Git's name of small ones: SHA-1 of `blob SIZE\0` and the content.
    GitBlob(String),
    /// The server tells the size alone.
    Unknown,
}

/// The answer to `/api/models/ORG/NAME/revision/REVISION?blobs=true` (or `datasets`), as far as it matters.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

fn url_of(client: &Client, name: &RepoName) -> String {
    let (endpoint, revision) = (&client.options().endpoint, name.revision().replace('/', "%2F"));
    format!("{endpoint}/{}/revision/{revision}?blobs=true", name.api())
}

impl Answer {
    fn of(client: &Client, name: &RepoName) -> Result<Self, HubError> {
        let url = url_of(client, name);
        let bad = |reason: String| HubError::BadAnswer { url: url.clone(), reason };
        let body = client.get(Some(name), &url, 0)?.into_body().into_with_config().limit(MOST).read_to_vec();
        let body = body.map_err(|error| HubError::Network { url: url.clone(), reason: error.to_string() })?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
        match is_hash(&answer.sha) {
            true => Ok(answer),
            false => Err(bad(format!("sha is {:?}", answer.sha))),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.siblings.iter().map(|file| file.rfilename.as_str()).collect()
    }

    /// The files of these names.
    fn listing(self, wanted: &[String], client: &Client, name: &RepoName) -> Result<Listing, HubError> {
        let bad = |reason: String| HubError::BadAnswer { url: url_of(client, name), reason };
        let files = self.siblings.into_iter().filter(|file| wanted.contains(&file.rfilename));
        let file = |file: Sibling| {
            let digest = match (&file.lfs, &file.blob_id) {
                (Some(lfs), _) if is_hash(&lfs.sha256) => Digest::Sha256(lfs.sha256.clone()),
                (None, Some(blob)) if is_hash(blob) => Digest::GitBlob(blob.clone()),
                _ => Digest::Unknown,
            };
            let size = file.lfs.map(|lfs| lfs.size).or(file.size);
            let size = size.ok_or_else(|| bad(format!("{} has no size", file.rfilename)))?;
            Ok(RemoteFile { name: file.rfilename, size, digest })
        };
        Ok(Listing { commit: self.sha, files: files.map(file).collect::<Result<_, _>>()? })
    }
}

impl Listing {
    /// Asks the Hub for a model.
    ///
    /// # Errors
    /// No such model or revision, no access, no weights that can be read where they matter.
    pub(super) fn of(client: &Client, name: &RepoName, weights: WeightFiles) -> Result<Self, HubError> {
        let answer = Answer::of(client, name)?;
        let names = answer.names();
        let mut wanted = wanted(&names);
        if weights == WeightFiles::Ignored {
            wanted.retain(|name| !is_weights(name));
        } else if !wanted.iter().any(|name| is_weights(name)) {
            let others = [".bin", ".pth", ".pt", ".gguf", ".onnx", ".msgpack", ".h5"];
            let unreadable = |name: &&&str| others.iter().any(|end| name.ends_with(end));
            let found: Vec<&str> = names.iter().filter(unreadable).take(4).copied().collect();
            let found = if found.is_empty() { "no weights at all".into() } else { found.join(", ") };
            return Err(HubError::NoWeights { name: name.clone(), found });
        }
        let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
        answer.listing(&wanted, client, name)
    }

    /// Asks the Hub for one file of rows of a data set: `file`, or the only one that there is.
    ///
    /// # Errors
    /// No such data set or revision, no access, no such file, more than one where none is named.
    pub(super) fn of_rows(client: &Client, name: &RepoName, file: Option<&str>) -> Result<Self, HubError> {
        let answer = Answer::of(client, name)?;
        let files = row_files(&answer.names());
        let wanted = match file {
            Some(file) if files.iter().any(|known| known == file) => file.to_owned(),
            Some(file) => {
                return Err(HubError::NoFile { name: Box::new(name.clone()), file: file.to_owned(), files });
            }
            None => match files.as_slice() {
                [only] => only.clone(),
                _ => return Err(HubError::WhichFile { name: name.clone(), files }),
            },
        };
        answer.listing(&[wanted], client, name)
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Bytes of a listing: of a repository of a hundred thousand files.
const MOST: u64 = 32 << 20;

fn is_hash(text: &str) -> bool {
    [40, 64].contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// The files that a model folder needs, in the order of the list, or those of an adapter.
fn wanted<'n>(names: &[&'n str]) -> Vec<&'n str> {
    let weights = |name: &str| {
        let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
        name == "model.safetensors"
            || shard.is_some_and(|numbers| {
                numbers.bytes().all(|byte| byte.is_ascii_digit() || b"-of".contains(&byte))
            })
    };
    // other names than these are copies in another layout or precision, unless an index tells of nothing else
    let indexed = names.contains(&"model.safetensors.index.json");
    let named = names.iter().any(|name| weights(name) || *name == "adapter_model.safetensors");
    let wants = |name: &&&str| match name.split_once('/') {
        Some((folder, file)) => {
            folder == "additional_chat_templates" && is_plain(file) && file.ends_with(".jinja")
        }
        None if !is_plain(name) => false,
        None if is_weights(name) => {
            (!named && indexed) || weights(name) || **name == "adapter_model.safetensors"
        }
        None => {
            name.starts_with("tokenizer")
                || name.starts_with("LICENSE")
                || name.ends_with(".safetensors.index.json")
                || OTHERS.contains(name)
        }
    };
    names.iter().filter(wants).copied().collect()
}

const OTHERS: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    PROMPT_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// The files of a data set that can be read, with plain names.
fn row_files(names: &[&str]) -> Vec<String> {
    let readable = names.iter().filter(|name| is_rows(Path::new(name)) && name.split('/').all(is_plain));
    readable.map(|name| (*name).to_owned()).collect()
}

/// Whether a file's ending says that it holds rows.
pub(super) fn is_rows(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ["json", "jsonl", "csv", "parquet"].contains(&ending))
}

/// A file's name that means the same on every system and cannot leave its folder.
fn is_plain(name: &str) -> bool {
    let unwritable = cfg!(windows) && is_no_windows_name(name);
    !name.starts_with('.')
        && !unwritable
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

/// Whether Windows keeps a name for a device, whatever its ending, or cannot have it end so.
fn is_no_windows_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let number = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    name.ends_with('.')
        || ["con", "prn", "aux", "nul"].contains(&stem.as_str())
        || matches!(number.map(str::as_bytes), Some([b'1'..=b'9']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_of_the_weights_and_what_belongs_to_it() {
        let names = [
            ".gitattributes",
            "README.md",
            "LICENSE.txt",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/../x.jinja",
            "..\\config.json",
            "tokenizer/../../evil",
        ];
        let kept = [
            "LICENSE.txt",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "additional_chat_templates/rag.jinja",
        ];
        assert_eq!(wanted(&names), kept);
        // without an index nobody reads other names
        assert!(wanted(&["other.safetensors", "a/model.safetensors"]).is_empty());
        let indexed = ["other.safetensors", "model.safetensors.index.json"];
        assert_eq!(wanted(&indexed), indexed);
        let rows = ["README.md", "data/train.parquet", "../x.json", ".x.json", "a b.csv", "rows.jsonl"];
        assert_eq!(row_files(&rows), ["data/train.parquet", "rows.jsonl"]);
        let adapter =
            ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "prompt_style.json"];
        assert_eq!(wanted(&adapter), [adapter[0], adapter[2], adapter[3]]);
    }

    #[test]
    fn names_that_windows_cannot_write_are_left_out_there() {
        for name in ["con", "PRN.json", "aux.tar.gz", "Nul.", "com1", "LPT9.jsonl", "rows."] {
            assert!(is_no_windows_name(name), "{name}");
            assert_eq!(is_plain(name), !cfg!(windows), "{name}");
        }
        assert!(!is_plain("rows "));
        for name in
            ["console.json", "com.json", "com0.json", "com10.json", "auxiliary", "rows.con", "my-nul.csv"]
        {
            assert!(is_plain(name) && !is_no_windows_name(name), "{name}");
        }
    }
}
