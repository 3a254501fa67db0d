//! Where the samples of a run come from and how they become tokens.

use super::options::Checks;
use crate::data::{
    DataError, DataSource, Dataset, DatasetOptions, Format, PromptForm, PromptStyle, PromptTemplate,
    SampleOptions, Tokenizer, all_read_as, formats_of, worth_keeping,
};
use crate::stop::StopFlag;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the samples come from and how they become tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataOptions {
    /// One file or folder; not looked at where there are `sources`.
    pub json_path: PathBuf,
    /// Files and folders with weights.
    pub sources: Vec<DataSource>,
    /// What the rows are; `None` looks at the first row of each file.
    pub format: Option<Format>,
    /// Share of the rows held out for validation; 0 holds out none.
    pub val_split_fraction: f64,
    /// Labels on the answer alone.
    pub mask_prompt: bool,
    pub shuffle: bool,
    /// Of the split and the order of the rows; `None` takes the run's.
    pub seed: Option<u64>,
    /// Threads that tokenise; `None` takes one per processor.
    pub num_workers: Option<usize>,
    /// A name of [`PromptStyle`].
    pub prompt_style: String,
    /// A Jinja template that writes every row, in place of a style.
    pub prompt_template: Option<PathBuf>,
    /// The text of such a template, in place of the file: that of a training whose file need not be here.
    #[serde(skip)]
    pub template: Option<PromptTemplate>,
    /// Folder for the files of tokens; `None` keeps those of large data beside the run.
    pub cache: Option<PathBuf>,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions {
            json_path: PathBuf::new(),
            sources: Vec::new(),
            format: None,
            val_split_fraction: 0.1,
            mask_prompt: true,
            shuffle: true,
            seed: None,
            num_workers: None,
            prompt_style: PromptStyle::default().to_string(),
            prompt_template: None,
            template: None,
            cache: None,
        }
    }
}

impl DataOptions {
    pub(super) fn check(&self, checks: &mut Checks) {
        if self.sources.is_empty() {
            checks.require(
                !self.json_path.as_os_str().is_empty(),
                "--data.json_path",
                "",
                "must be given: a file or folder of rows, here or as --data FILE",
            );
        } else {
            let names: Vec<_> = self.sources.iter().map(|source| source.path.display().to_string()).collect();
            checks.require(
                self.json_path.as_os_str().is_empty(),
                "--data",
                names.join(","),
                "names files, and so does --data.json_path: give one of the two, or --data JSON --data.json_path FILE",
            );
        }
        checks.utf8("--data.json_path", &self.json_path);
        self.sources.iter().for_each(|source| checks.utf8("--data", &source.path));
        [("--prompt_template", &self.prompt_template), ("--data_cache", &self.cache)]
            .into_iter()
            .filter_map(|(option, path)| Some((option, path.as_deref()?)))
            .for_each(|(option, path)| checks.utf8(option, path));
        checks.below_one("--data.val_split_fraction", self.val_split_fraction);
        checks.optional_count("--data.num_workers", self.num_workers, "to use all processors");
        checks.prompt_style("--data.prompt_style", &self.prompt_style);
    }

    /// The files and folders, with their weights.
    pub fn sources(&self) -> Vec<DataSource> {
        match self.sources.is_empty() {
            true => vec![DataSource::once(&self.json_path)],
            false => self.sources.clone(),
        }
    }

    /// What writes the prompts of these rows.
    ///
    /// # Errors
    /// An unknown style, a template or a folder that cannot be read.
    pub fn prompt_form(&self) -> Result<PromptForm, DataError> {
        let rows = match self.format {
            Some(format) => vec![format],
            None => formats_of(&self.sources())?,
        };
        Ok(PromptForm { rows, ..self.said_form()? })
    }

    fn said_form(&self) -> Result<PromptForm, DataError> {
        let said = PromptForm::said(self.prompt_style.parse()?, self.prompt_template.as_deref())?;
        Ok(PromptForm { template: self.template.clone().or(said.template), ..said })
    }

    /// Takes style, template and format from the training of the adapter, or else of the model, where these options say
    /// nothing; gives what the user should know of it.
    ///
    /// # Errors
    /// Those of [`DataOptions::prompt_form`].
    pub fn as_trained(
        &mut self,
        model_dir: &Path,
        adapter: Option<&Path>,
    ) -> Result<Option<String>, DataError> {
        let asked = self.said_form()?.or_trained(model_dir, adapter);
        if asked.trained.is_none() {
            return Ok(asked.note);
        }
        let by = asked.by();
        let PromptForm { style, rows, template } = asked.form;
        // rows may speak for another format than the one that they were trained in
        if let (None, [format]) = (self.format, rows.as_slice())
            && all_read_as(&self.sources(), *format)?
        {
            self.format = Some(*format);
        }
        let note = match &template {
            Some(template) => Some(format!("prompt template {}{by}", template.file.display())),
            None if style == PromptStyle::Auto => None,
            None => Some(format!("prompt style {style}{by}")),
        };
        (self.prompt_style, self.template) = (style.to_string(), template);
        Ok(note)
    }

    /// Reads, tokenises and splits. The tokens of large data are kept in `beside`, where that is a folder.
    ///
    /// # Errors
    /// Those of [`Dataset::open_sources`].
    pub fn open(
        &self,
        tokenizer: &Tokenizer,
        seed: u64,
        max_seq_length: Option<usize>,
        beside: Option<&Path>,
    ) -> Result<Dataset, DataError> {
        self.open_until(tokenizer, seed, max_seq_length, beside, &StopFlag::default())
    }

    /// [`DataOptions::open`], unless it is asked to stop before the rows are read.
    ///
    /// # Errors
    /// Those of [`Dataset::open_sources_until`].
    pub fn open_until(
        &self,
        tokenizer: &Tokenizer,
        seed: u64,
        max_seq_length: Option<usize>,
        beside: Option<&Path>,
        stop: &StopFlag,
    ) -> Result<Dataset, DataError> {
        let sources = self.sources();
        let cache = match (&self.cache, beside) {
            (Some(folder), _) => Some(folder.clone()),
            (None, Some(folder)) if worth_keeping(&sources)? => Some(folder.to_owned()),
            _ => None,
        };
        let sample = SampleOptions {
            style: self.prompt_style.parse()?,
            mask_prompt: self.mask_prompt,
            max_seq_length,
        };
        let options = DatasetOptions {
            sample,
            format: self.format,
            prompt_template: self.prompt_template.clone(),
            template: self.template.clone(),
            val_split_fraction: self.val_split_fraction,
            seed: self.seed.unwrap_or(seed),
            shuffle: self.shuffle,
            threads: self.num_workers,
            cache,
        };
        Dataset::open_sources_until(&sources, tokenizer, &options, stop)
    }
}
