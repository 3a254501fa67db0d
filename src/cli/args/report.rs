//! What `engraft report` takes.

use super::EXIT_CODES;
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct ReportArgs {
    /// Folder of the run: its --out_dir
    #[arg(value_name = "RUN_DIR")]
    pub run_dir: PathBuf,
}
