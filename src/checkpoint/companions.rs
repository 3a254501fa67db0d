//! The files of a model folder that go with its weights wherever these are saved.

use super::{CheckpointError, atomic};
use std::fs;
use std::path::Path;

/// Configuration, tokenizer and chat template, in every spelling that transformers reads, and what makes images ready.
pub const COMPANIONS: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
/// Further templates by name, one file each.
const TEMPLATES: &str = "additional_chat_templates";

/// Copies those that are there, but for the names in `without`; each file appears complete.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path, without: &[&str]) -> Result<(), CheckpointError> {
    for name in COMPANIONS.into_iter().filter(|name| !without.contains(name)) {
        let file = from.join(name);
        if file.is_file() {
            copy(&file, &to.join(name))?;
        }
    }
    let (templates, copies) = (from.join(TEMPLATES), to.join(TEMPLATES));
    let Ok(entries) = fs::read_dir(&templates) else { return Ok(()) };
    for entry in entries {
        let file = entry.map_err(CheckpointError::read(&templates))?.path();
        if let Some(name) = file.file_name().filter(|_| file.extension().is_some_and(|e| e == "jinja")) {
            fs::create_dir_all(&copies).map_err(CheckpointError::write(&copies))?;
            copy(&file, &copies.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let bytes = fs::read(from).map_err(CheckpointError::read(from))?;
    atomic::write_file(to, |out| out.write_all(&bytes)).map_err(CheckpointError::write(to))
}
