//! What a run logs to beside `metrics.jsonl`.

use crate::train::logging::LoggerKind;
use clap::Args;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct LoggingArgs {
    /// Logs beside metrics.jsonl: csv, tensorboard; several with commas, or by giving the option again
    #[arg(long, alias = "logger-name", value_name = "KIND", value_delimiter = ',')]
    pub logger_name: Vec<LoggerKind>,
    /// Show the run as a live view of the whole terminal
    #[arg(long)]
    pub tui: bool,
}
