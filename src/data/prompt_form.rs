//! How a model was trained to be asked: a small file beside what the training gave, from which those who ask read it again.
//!
//! A model answers well only to the prompts of its training, and nothing in its weights tells what these were. PEFT and
//! transformers pass over files that they do not know.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DataError, Format, PromptStyle};
use crate::checkpoint::{CheckpointError, atomic};

/// Beside adapters and models that engraft has written.
pub const PROMPT_FILE: &str = "prompt_style.json";
/// A record is some lines and a template; what is larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// What writes a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptForm {
    pub style: PromptStyle,
    /// What the rows of the training were, each format once; empty where that is not known.
    #[serde(default)]
    pub rows: Vec<Format>,
    /// Takes the place of the style.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PromptTemplate>,
}

/// A Jinja template of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTemplate {
    /// Where it was read from, for messages: the file may be elsewhere by now.
    pub file: PathBuf,
    pub text: String,
}

/// How to ask a model, and who says so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    pub form: PromptForm,
    /// What was trained with these prompts, `adapter` or `model`; `None` where the user chose them, or nobody did.
    pub trained: Option<&'static str>,
    /// Of a file that is no record: what the user should know.
    pub note: Option<String>,
}

impl PromptTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// A file that is missing or no text.
    pub fn read(file: &Path) -> Result<Self, DataError> {
        let text = fs::read_to_string(file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => DataError::NoTemplate { file: file.to_owned() },
            _ => DataError::Read { file: file.to_owned(), error },
        })?;
        Ok(Self { file: file.to_owned(), text: without_mark(&text).to_owned() })
    }
}

/// A text without the byte order mark that editors on Windows put in front.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

impl PromptForm {
    /// What a user chose: a style, or a template in its place.
    ///
    /// # Errors
    /// A template that cannot be read.
    pub fn said(style: PromptStyle, template: Option<&Path>) -> Result<Self, DataError> {
        let template = template.map(PromptTemplate::read).transpose()?;
        Ok(Self { style, rows: Vec::new(), template })
    }

    /// This form, or where it says nothing the one that the adapter was trained with, or else the model itself.
    pub fn or_trained(self, model_dir: &Path, adapter: Option<&Path>) -> Asked {
        if self.style != PromptStyle::Auto || self.template.is_some() {
            return Asked { form: self, ..Asked::default() };
        }
        let (folder, what) = adapter.map_or((model_dir, "model"), |adapter| (adapter, "adapter"));
        match Self::read(folder) {
            Ok(Some(form)) => Asked { form, trained: Some(what), note: None },
            Ok(None) => Asked { form: self, ..Asked::default() },
            Err(error) => Asked { form: self, trained: None, note: Some(error.to_string()) },
        }
    }

    /// The record in a folder; `None` where there is none.
    ///
    /// # Errors
    /// [`DataError::BadPromptRecord`]: a file of this name that says nothing to this version.
    pub fn read(folder: &Path) -> Result<Option<Self>, DataError> {
        let file = folder.join(PROMPT_FILE);
        let Ok(found) = file.metadata() else { return Ok(None) };
        let bad = |reason: String| DataError::BadPromptRecord { file: file.clone(), reason };
        if found.len() > MAX_BYTES {
            return Err(bad(format!("it has {} bytes", found.len())));
        }
        let text = fs::read(&file).map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&text).map(Some).map_err(|error| bad(error.to_string()))
    }

    /// Writes the record.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(PROMPT_FILE);
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        let written = text.and_then(|text| atomic::write_file(&path, |out| writeln!(out, "{text}")));
        written.map_err(|source| CheckpointError::Write { path, source })
    }

    /// The style that writes a row of this format; `Auto` where the format is not known.
    pub(super) fn style_of(&self, rows: Option<Format>) -> PromptStyle {
        match (self.style, rows) {
            // every token of a text is learned, so nothing stands around it
            (_, Some(Format::Text)) => PromptStyle::None,
            (PromptStyle::Auto, Some(Format::Alpaca)) => PromptStyle::Alpaca,
            (PromptStyle::Auto, Some(Format::PromptCompletion)) => PromptStyle::None,
            (PromptStyle::Auto, Some(Format::Chat | Format::ShareGpt)) => PromptStyle::Chat,
            (style, _) => style,
        }
    }
}

impl Asked {
    /// Who chose the prompts, to be said behind their name; nothing where that was the user.
    pub fn by(&self) -> String {
        self.trained.map_or(String::new(), |what| format!(", as the {what} was trained"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(style: &str, rows: &[Format]) -> PromptForm {
        PromptForm { style: style.parse().unwrap(), rows: rows.to_vec(), template: None }
    }

    #[test]
    fn a_record_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(PromptForm::read(folder.path()).unwrap(), None);
        let template = PromptTemplate { file: "t.jinja".into(), text: "{{ q }}\n\"é\"".into() };
        for form in [
            form("none", &[Format::PromptCompletion]),
            form("phi-3", &[]),
            PromptForm { template: Some(template), ..form("auto", &[Format::Alpaca, Format::ShareGpt]) },
        ] {
            form.write(folder.path()).unwrap();
            assert_eq!(PromptForm::read(folder.path()).unwrap(), Some(form));
        }
    }

    #[test]
    fn a_template_begins_behind_its_byte_order_mark() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.jinja");
        fs::write(&file, "\u{feff}Q: {{ q }}").unwrap();
        assert_eq!(PromptTemplate::read(&file).unwrap().text, "Q: {{ q }}");
    }

    #[test]
    fn what_is_no_record_is_told_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "[]", "{}", "{\"style\": \"of another program\"}", "\u{0}"] {
            fs::write(folder.path().join(PROMPT_FILE), text).unwrap();
            let asked = PromptForm::default().or_trained(Path::new("nowhere"), Some(folder.path()));
            assert_eq!((asked.form, asked.trained), (PromptForm::default(), None), "{text}");
            assert!(asked.note.unwrap().contains(PROMPT_FILE), "{text}");
        }
        fs::write(folder.path().join(PROMPT_FILE), " ".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(PromptForm::read(folder.path()).unwrap_err().to_string().contains("bytes"));
    }

    #[test]
    fn the_user_goes_before_the_adapter_and_the_adapter_before_the_model() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [adapter, model] = folders.each_ref().map(|folder| folder.path());
        form("llama3", &[]).write(model).unwrap();
        let asked = PromptForm::default().or_trained(model, None);
        assert_eq!((asked.form.style.to_string(), asked.trained), ("llama3".into(), Some("model")));
        // an adapter without a record was trained by others: its base's prompts may not be its own
        assert_eq!(PromptForm::default().or_trained(model, Some(adapter)), Asked::default());
        form("none", &[]).write(adapter).unwrap();
        let asked = PromptForm::default().or_trained(model, Some(adapter));
        assert_eq!(
            (asked.form.style, asked.by()),
            (PromptStyle::None, ", as the adapter was trained".into())
        );
        let asked = form("chatml", &[]).or_trained(model, Some(adapter));
        assert_eq!((asked.form.style.to_string(), asked.by()), ("chatml".into(), String::new()));
    }
}
