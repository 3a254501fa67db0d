//! What `engraft serve` takes.

use super::{EXIT_CODES, TalkArgs};
use clap::Args;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct ServeArgs {
    #[command(flatten)]
    pub talk: TalkArgs,
    /// Address to listen on; 0.0.0.0 for every network, without any password
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Name of the model in answers [default: that of its folder]
    #[arg(long, alias = "model-name", value_name = "NAME")]
    pub model_name: Option<String>,
}
