//! `engraft serve`: the address on standard output, everything else on standard error.

use super::args::{Exit, ServeArgs};
use super::devices::describe;
use super::download::model_and_adapter;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::generate::Chat;
use crate::gpu::Gpu;
use crate::models::ModelConfig;
use crate::serve::{ServeOptions, Stop, serve};
use std::net::TcpListener;

/// Serves until Ctrl-C, which is how a server ends: no failure. A second one does not wait for what is being answered.
///
/// # Errors
/// Options out of range, an address that is taken, files that do not fit each other, no device, a device that is lost.
pub fn run(args: ServeArgs, quiet: bool) -> Result<(), Error> {
    let note = |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let mut options = args.talk.resolve()?;
    let model = args.model_name.clone().unwrap_or_else(|| name_of(&options.model_dir));
    // before the model is loaded: an address that is taken is told at once
    let unusable = |error| Error::input(format!("cannot listen on {}:{}: {error}", args.host, args.port));
    let listener = TcpListener::bind((args.host.as_str(), args.port)).map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let local = address.ip().is_loopback();
    let api_key = api_key(args.api_key.as_deref())?;
    if !local && api_key.is_none() {
        eprintln!(
            "warning: {address} can be reached from other machines, and whoever reaches it can use the model; --api_key or \
             ENGRAFT_API_KEY asks them for a key"
        );
    }
    let found = model_and_adapter(&options.model_dir, options.adapter.as_deref(), quiet)?;
    (options.model_dir, options.adapter) = (found.model_dir, found.adapter);
    // what is wrong with a folder is said without a device
    ModelConfig::read(&options.model_dir)?;
    let tokenizer = Tokenizer::open(&options.model_dir)?;
    let gpu = Gpu::open(&args.talk.device.options())?;
    note(&format!("device {}", describe(gpu.info())));
    let mut chat = Chat::open(&gpu, &tokenizer, &options)?;
    chat.notes().for_each(|text| note(&text));
    note(&format!("{model}: {}, context of {} tokens", chat.prompts(), chat.context()));

    let stop = Stop::default();
    let asked = stop.clone();
    // where a handler cannot be set, the signal ends the program as before
    let _ = ctrlc::set_handler(move || {
        if asked.stop() {
            std::process::exit(i32::from(Exit::Stopped as u8));
        }
    });
    println!("listening on http://{address}");
    let options = ServeOptions { model, answer: args.talk.answer(), local_names_only: local, api_key };
    serve(listener, &mut chat, &options, &stop, &note)?;
    note("ended");
    Ok(())
}

/// The key from the command line, or from the environment, which other users of the machine cannot read.
fn api_key(given: Option<&str>) -> Result<Option<String>, Error> {
    let Some(key) = given.map(Into::into).or_else(|| std::env::var_os("ENGRAFT_API_KEY")) else {
        return Ok(None);
    };
    match key.into_string() {
        Ok(key) if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(key)),
        _ => Err(Error::input(
            "the key of --api_key or ENGRAFT_API_KEY: must be of letters, digits and signs, without blanks",
        )),
    }
}

/// `ORG/NAME` as it is, the last part of a path.
fn name_of(model: &std::path::Path) -> String {
    match model.to_str() {
        Some(text) if !model.exists() && text.parse::<crate::hub::RepoName>().is_ok() => text.to_owned(),
        _ => {
            let whole = model.canonicalize();
            let name = whole.as_deref().unwrap_or(model).file_name();
            name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}
