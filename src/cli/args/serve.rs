//! What `engraft serve` takes.

use super::TalkArgs;
use clap::Args;

/// A server has no other end than that it is told to.
const EXIT_CODES: &str = "Exit codes: 0 ended by Ctrl-C or SIGTERM, 1 the server failed, 2 bad input or options, \
                          3 out of memory, 4 no usable device, 130 stopped while it loads, or by a second Ctrl-C";

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct ServeArgs {
    #[command(flatten)]
    pub talk: TalkArgs,
    /// Address to listen on; 0.0.0.0 for every network
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Key that requests must bring, as OpenAI's clients do [default: that of ENGRAFT_API_KEY, or none]
    #[arg(long, alias = "api-key", value_name = "KEY")]
    pub api_key: Option<String>,
    /// Name of the model in answers [default: that of its folder]
    #[arg(long, alias = "model-name", value_name = "NAME")]
    pub model_name: Option<String>,
}
