//! The command line: parse, resolve, call the library, print.

pub mod args;
mod bench;
mod chat;
mod chat_input;
pub mod config;
mod data;
mod devices;
mod download;
mod evaluate;
mod export;
mod finetune;
mod generate;
mod init;
mod merge;
mod named_data;
mod plan;
mod progress;
mod report;
mod restart;
mod serve;
mod tui;
mod tune;
mod validate;

use crate::error::{Error, Failure};
use crate::train::tuning::forget_trials;
use args::{BenchCommand, Command, Exit};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Runs the program on the process's arguments.
pub fn run() -> ExitCode {
    let cli = match config::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("engraft: {error}");
            return exit_of(&error).into();
        }
    };
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Mesa's loader layer complains on standard error without it, though nothing here opens a window.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    restart::with_wide_vectors(&cli.command);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !crate::gpu::is_waiting() && !crate::data::is_parsing() {
            tui::leave();
            usual(panic);
        }
    }));
    if matches!(cli.command, Command::Evaluate(_) | Command::Tune(_) | Command::Bench(_)) {
        end_on_signal();
    }
    let result = match cli.command {
        Command::Finetune(args) => finetune::lora(args, cli.quiet),
        Command::FinetuneFull(args) => finetune::full(args, cli.quiet),
        Command::Generate(args) => generate::run(args, cli.quiet),
        Command::Chat(args) => chat::run(args, cli.quiet),
        Command::Serve(args) => serve::run(args, cli.quiet),
        Command::Download(args) => download::run(args, cli.quiet),
        Command::Evaluate(args) => evaluate::run(args, cli.quiet),
        Command::Data(args) => data::run(args, cli.quiet),
        Command::MergeLora(args) => merge::run(args, cli.quiet),
        Command::Export(args) => export::run(args, cli.quiet),
        Command::Validate(args) => validate::run(args, cli.quiet),
        Command::Devices(args) => devices::run(args),
        Command::Init(args) => init::run(&args),
        Command::Completions(args) => init::completions(&args),
        Command::Plan(args) => plan::run(args, cli.quiet),
        Command::Report(args) => report::run(args),
        Command::Tune(args) => tune::run(args, cli.quiet),
        Command::Bench(args) => match args.command {
            BenchCommand::Matmul(args) => bench::matmul(args, cli.quiet),
            BenchCommand::Attention(args) => bench::attention(args, cli.quiet),
            BenchCommand::Lora(args) => bench::lora(args, cli.quiet),
            BenchCommand::Step(args) => bench::step(args, cli.quiet),
            BenchCommand::Train(args) => bench::train(args, cli.quiet),
        },
    };
    let exit = match result {
        Ok(()) => Exit::Success,
        Err(error) => {
            eprintln!("engraft: {error}");
            exit_of(&error)
        }
    };
    exit.into()
}

/// Ctrl-C ends commands that measure kernels and save nothing at once, and condemns no kernel but one that took suspiciously long.
fn end_on_signal() {
    // where one cannot be set, or a signal is ignored (nohup), all is as without it
    let _ = ctrlc::try_set_handler(|| {
        forget_trials();
        std::process::exit(i32::from(Exit::Stopped as u8));
    });
}

fn exit_of(error: &Error) -> Exit {
    match error.failure() {
        Failure::Run => Exit::RunFailed,
        Failure::Input => Exit::BadInput,
        Failure::Memory => Exit::OutOfMemory,
        Failure::Device => Exit::NoDevice,
        Failure::Stopped => Exit::Stopped,
    }
}

/// Writes a file in a folder that need not be there yet, and is not if that fails.
fn with_parent<T>(file: &Path, write: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let parents = file.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    let missing: Vec<&Path> = parents.take_while(|folder| !folder.exists()).collect();
    if let Some(folder) = missing.first() {
        let failed = |source| Error::Write { path: folder.to_path_buf(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let written = write();
    if written.is_err() {
        // those that stay empty
        missing.iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
    }
    written
}

/// What a result should tell its user, on standard error.
fn say_notes(notes: &[String], quiet: bool) {
    if !quiet {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
}

/// Standard output; a reader that has had enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Error> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "standard output".into(), source })
        }
        _ => Ok(()),
    }
}
