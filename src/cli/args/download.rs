//! What `engraft download` takes.

use super::EXIT_CODES;
use crate::hub::{HubError, RepoName};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct DownloadArgs {
    /// Model on the Hugging Face Hub, ORG/NAME or ORG/NAME@REVISION
    #[arg(value_name = "ORG/NAME")]
    pub name: String,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Folder for the files [default: ORG/NAME in ENGRAFT_MODELS or the user's cache folder]
    #[arg(long, alias = "out-dir", value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
}

impl DownloadArgs {
    /// The model that was asked for.
    ///
    /// # Errors
    /// A name or a revision that is none.
    pub fn model(&self) -> Result<RepoName, HubError> {
        let name: RepoName = self.name.parse()?;
        match &self.revision {
            Some(revision) => name.at(revision),
            None => Ok(name),
        }
    }
}
