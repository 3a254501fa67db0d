//! `engraft init` and `engraft completions`: texts made of the definition of the command line itself.

use super::args::{Cli, CompletionsArgs, InitArgs};
use super::{print, with_parent};
use crate::checkpoint::atomic;
use crate::error::Error;
use clap::{Arg, ArgAction, CommandFactory};
use std::fmt::Write;
use std::path::Path;

/// Writes a configuration file for `finetune`: what must be given, and every other option with its default as a comment.
///
/// # Errors
/// A file that exists or cannot be written.
pub fn run(args: &InitArgs) -> Result<(), Error> {
    let text = configuration();
    if args.file == Path::new("-") {
        return print(&text);
    }
    let path = &args.file;
    if path.exists() {
        let file = path.display();
        return Err(Error::input(format!("{file} exists; name another file, or remove it first")));
    }
    with_parent(path, || {
        atomic::write_file(path, |out| out.write_all(text.as_bytes()))
            .map_err(|source| Error::Write { path: path.clone(), source })
    })?;
    println!("wrote {0}; fill it in, then run: engraft finetune --config {0}", path.display());
    Ok(())
}

/// Prints the completions of a shell.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "engraft", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// What a run cannot do without, with an example.
const GIVEN: [(&str, &str); 2] =
    [("checkpoint_dir", "path/to/the/model"), ("data.json_path", "path/to/rows.json")];
/// What a file cannot say, or says in another way.
const LEFT_OUT: [&str; 5] = ["config", "help", "quiet", "resume", "optimizer.betas"];

fn configuration() -> String {
    let root = Cli::command();
    let Some(command) = root.find_subcommand("finetune") else { return String::new() };
    let listed = |arg: &&Arg| {
        let name = arg.get_long().unwrap_or_default();
        let hidden = arg.is_hide_short_help_set() && name != "checkpoint_dir";
        !name.is_empty() && !LEFT_OUT.contains(&name) && !hidden
    };
    let mut text = String::from(
        "# A fine-tuning run: engraft finetune --config THIS_FILE\n\
         # Options on the command line win over those here. A # before an option leaves it at the default shown.\n",
    );
    let (data, others): (Vec<&Arg>, Vec<&Arg>) = command
        .get_arguments()
        .filter(listed)
        .partition(|arg| arg.get_long().is_some_and(|name| name == "data" || name.starts_with("data.")));
    let mut heading = "";
    // writing to a String cannot fail
    for arg in &others {
        let own = arg.get_help_heading().unwrap_or("Model");
        if own != heading {
            let _ = write!(text, "\n# ---- {own}\n");
            heading = own;
        }
        write_option(&mut text, arg, arg.get_long().unwrap_or_default(), "");
        if arg.get_long() == Some("checkpoint_dir") {
            text.push_str("\n# ---- Data\n\ndata:\n");
            for arg in &data {
                let name = arg.get_long().unwrap_or_default();
                // in a file, data is the group
                let name = if name == "data" { "files" } else { name.trim_start_matches("data.") };
                write_option(&mut text, arg, name, "  ");
            }
            heading = "Data";
        }
    }
    text
}

fn write_option(text: &mut String, arg: &Arg, name: &str, indent: &str) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let long = arg.get_long().unwrap_or_default();
    let value = match (GIVEN.iter().find(|(given, _)| *given == long), default, arg.get_action()) {
        (Some((_, example)), _, _) => format!("{name}: {example}"),
        (None, Some(default), _) => format!("# {name}: {default}"),
        (None, None, ArgAction::SetTrue) => format!("# {name}: false"),
        (None, None, _) => format!("# {name}:"),
    };
    let _ = write!(text, "\n{indent}# {help}\n{indent}{value}\n");
}
