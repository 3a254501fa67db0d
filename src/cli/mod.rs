//! The command line: parse, resolve, call the library, print.

pub mod args;
mod bench;
mod chat;
mod chat_input;
mod data;
mod devices;
mod download;
mod evaluate;
mod finetune;
mod generate;
mod plan;
mod progress;
mod serve;
mod tune;

use crate::error::{Error, Failure};
use args::{BenchCommand, Cli, Command, Exit};
use clap::Parser;
use std::process::ExitCode;

/// Runs the program on the process's arguments.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Mesa's loader layer complains on standard error without it, though nothing here opens a window.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !crate::gpu::is_waiting() && !crate::data::is_parsing() {
            usual(panic);
        }
    }));
    let result = match cli.command {
        Command::Finetune(args) => finetune::lora(args, cli.quiet),
        Command::FinetuneFull(args) => finetune::full(args, cli.quiet),
        Command::Generate(args) => generate::run(args, cli.quiet),
        Command::Chat(args) => chat::run(args, cli.quiet),
        Command::Serve(args) => serve::run(args, cli.quiet),
        Command::Download(args) => download::run(args, cli.quiet),
        Command::Evaluate(args) => evaluate::run(args, cli.quiet),
        Command::Data(args) => data::run(args, cli.quiet),
        Command::Devices(args) => devices::run(args),
        Command::Plan(args) => plan::run(args, cli.quiet),
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

fn exit_of(error: &Error) -> Exit {
    match error.failure() {
        Failure::Run => Exit::RunFailed,
        Failure::Input => Exit::BadInput,
        Failure::Memory => Exit::OutOfMemory,
        Failure::Device => Exit::NoDevice,
        Failure::Stopped => Exit::Stopped,
    }
}
