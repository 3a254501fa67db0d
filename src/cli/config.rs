//! `--config FILE`: options from a YAML (or JSON) file, as if they had been typed before all others.
//!
//! Keys are the options' names, nested at dots as one likes: `data: {json_path: rows.json}` is `--data.json_path rows.json`.
//! The files of LitGPT and jsonargparse are such files: a `class_path` stands for its last word, and `init_args` for the keys
//! in it. Options on the command line win, since the last one counts; a flag of the file is switched off by `--flag false`.

use super::args::Cli;
use super::args::boolean;
use super::args::here;
use super::args::litgpt::Foreign;
use crate::error::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, Parser};
use saphyr::{MarkedYaml, Scalar, ScalarStyle, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser as YamlParser, ScanError};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// One option of a file.
#[derive(Clone, Debug, PartialEq)]
struct Setting {
    line: usize,
    key: String,
    value: String,
}

/// The command line, after the file that it names has been read.
///
/// # Errors
/// A file that cannot be read or is no YAML, a key that is no option, a value that it cannot have: with file, line and key.
/// Mistakes in what was typed end the program as clap does.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, Error> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let root = Cli::command();
    let at = argv.iter().skip(1).position(|word| root.find_subcommand(word).is_some()).map(|i| i + 1);
    let command = at.and_then(|at| root.find_subcommand(&argv[at]));
    let (Some(at), Some(command)) =
        (at, command.filter(|c| c.get_arguments().any(|a| a.get_id() == "config")))
    else {
        return Ok(Cli::parse_from(argv));
    };
    let (file, typed) = split(&argv[at + 1..])?;
    let (typed, off) = flags(command, typed)?;
    let settings = match &file {
        Some(path) => read(path)?,
        None => Vec::new(),
    };
    let mut words = argv[..=at].to_vec();
    let said: Vec<&str> = typed.iter().filter_map(|word| long_of(command, word)).collect();
    for setting in settings.iter().filter(|setting| !yields(command, setting, &said, &off)) {
        let origin = || format!("{}:{}", file.as_deref().unwrap_or(Path::new("")).display(), setting.line);
        // a run's file serves its plan too, which has no use for some of it
        let of_run = || {
            let commands = RUNS.iter().filter_map(|name| root.find_subcommand(name));
            commands.into_iter().any(|run| find(run, &setting.key).is_some())
        };
        if command.get_name() == "plan" && find(command, &setting.key).is_none() && of_run() {
            continue;
        }
        words.extend(word_of(command, setting, origin)?);
    }
    words.extend(typed);
    Cli::try_parse_from(words).map_err(|error| match in_file(command, &error, &settings, file.as_deref()) {
        Some(error) => error,
        None => advised(error, &root, command).exit(),
    })
}

/// An error of clap that says what an option of another trainer, or of another command, is here.
fn advised(mut error: clap::Error, root: &Command, command: &Command) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument || !RUNS.contains(&command.get_name()) {
        return error;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return error };
    let given = given.split(['=', ' ']).next().unwrap_or(given).to_owned();
    let name = given.trim_start_matches('-');
    let other = RUNS.iter().filter(|run| **run != command.get_name());
    let mut other = other.filter_map(|run| root.find_subcommand(run)).filter(|run| find(run, name).is_some());
    let tip = match (here_in(command, &given), other.next()) {
        (_, Some(run)) => {
            format!("{given} belongs to {}, not to {}", run.get_name(), command.get_name())
        }
        (Some(ours), None) => ours,
        (None, None) => return error,
    };
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}

/// What to type for an option of another trainer, in this command or in the one that has it.
fn here_in(command: &Command, name: &str) -> Option<String> {
    let ours = here(name)?;
    let option = ours.strip_prefix("--").and_then(|option| option.split([' ', ',']).next());
    let full = command.get_name() == "finetune_full";
    // full training knows it, and refuses it
    let missing = |option: &str| find(command, option).is_none() || (full && option == "quantize");
    Some(match option.is_some_and(missing) {
        true => format!("that is {ours} of finetune"),
        false => format!("here that is {ours}"),
    })
}

/// The commands that train.
const RUNS: [&str; 2] = ["finetune", "finetune_full"];

/// Takes `--config` out of what was typed, and checks options that decide nothing.
fn split(words: &[OsString]) -> Result<(Option<PathBuf>, Vec<OsString>), Error> {
    let (mut file, mut rest) = (None, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.to_str().and_then(|text| text.strip_prefix("--"));
        let (name, value) =
            match name.map(|name| name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v)))) {
                Some((name, value)) => (name, value.map(OsString::from)),
                None => ("", None),
            };
        let foreign = Foreign::find(name);
        if name != "config" && foreign.is_none() {
            rest.push(word.clone());
            continue;
        }
        let value = value.or_else(|| words.next().cloned());
        let value = value.ok_or_else(|| Error::input(format!("--{name} needs a value")))?;
        match foreign {
            Some(foreign) => foreign.check(&value.to_string_lossy()).map_err(Error::input)?,
            None => file = Some(PathBuf::from(value)),
        }
    }
    Ok((file, rest))
}

/// The typed words with flags bare, as clap knows them, and the flags that are switched off by their first names.
///
/// `--flag true|false` and `--flag=true|false` are jsonargparse's; clap's own values for a flag would take a word behind a
/// bare one, such as the model's folder.
fn flags(command: &Command, typed: Vec<OsString>) -> Result<(Vec<OsString>, Vec<String>), Error> {
    let flag = |word: &OsString| {
        let name = word.to_str()?.strip_prefix("--")?;
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let arg = find(command, name).filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue))?;
        Some((name.to_owned(), arg.get_long()?.to_owned(), value.map(boolean)))
    };
    let mut said: Vec<(OsString, Option<String>, bool)> = Vec::new();
    let mut words = typed.into_iter().peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            said.push((word, None, true));
            said.extend(words.map(|word| (word, None, true)));
            break;
        }
        let Some((name, long, value)) = flag(&word) else {
            said.push((word, None, true));
            continue;
        };
        let on = match value {
            Some(value) => value.map_err(|reason| Error::input(format!("--{name} {reason}")))?,
            None => {
                let next = words.peek().and_then(|word| boolean(word.to_str()?).ok());
                if next.is_some() {
                    words.next();
                }
                next.unwrap_or(true)
            }
        };
        // the last one counts
        said.retain(|(_, before, _)| before.as_ref() != Some(&long));
        said.push((format!("--{name}").into(), Some(long), on));
    }
    let off = said.iter().filter(|(.., on)| !on).filter_map(|(_, long, _)| long.clone()).collect();
    Ok((said.into_iter().filter(|(.., on)| *on).map(|(word, ..)| word).collect(), off))
}

/// Longest file and deepest nesting that are looked at: beyond them it is no configuration.
const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 16;

fn read(path: &Path) -> Result<Vec<Setting>, Error> {
    let said = |reason: String| Error::input(format!("--config {}: {reason}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| said(format!("cannot be read: {e}")))?.len();
    if size > MAX_BYTES {
        return Err(said(format!("{size} bytes are no configuration")));
    }
    let bytes = std::fs::read(path).map_err(|e| said(format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|_| said("is not UTF-8".into()))?;
    settings(&text).map_err(|(line, reason)| match line {
        0 => said(reason),
        line => Error::input(format!("{}:{line}: {reason}", path.display())),
    })
}

/// The options of a text; an error is a line, where one is to blame, and what is wrong.
fn settings(text: &str) -> Result<Vec<Setting>, (usize, String)> {
    let scan = |e: &ScanError| (e.marker().line(), format!("is no YAML: {}", e.info()));
    // the loader recurses, events do not
    let mut depth = 0usize;
    let mut keys = Keys::default();
    for event in YamlParser::new_from_str(text) {
        let (event, span) = event.map_err(|e| scan(&e))?;
        keys.see(&event, span.start.line())?;
        match event {
            Event::MappingStart(..) | Event::SequenceStart(..) => depth += 1,
            Event::MappingEnd | Event::SequenceEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > 4 * MAX_DEPTH {
            return Err((span.start.line(), "is nested too deeply for a configuration".into()));
        }
    }
    let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
    loader.early_parse(false);
    YamlParser::new_from_str(text).load(&mut loader, false).map_err(|e| scan(&e))?;
    if let Some(error) = loader.error() {
        return Err(scan(error));
    }
    let mut found = Vec::new();
    if let Some(document) = loader.into_documents().into_iter().next() {
        flatten("", &document, 0, &mut found)?;
    }
    Ok(found)
}

/// The mappings and lists around an event, and the keys of each mapping with their lines.
#[derive(Default)]
struct Keys {
    around: Vec<Node>,
}

enum Node {
    List,
    /// `at_key`: what comes next is a key.
    Mapping {
        seen: HashMap<String, usize>,
        at_key: bool,
    },
}

impl Keys {
    /// An error is a key that its mapping has had.
    fn see(&mut self, event: &Event<'_>, line: usize) -> Result<(), (usize, String)> {
        match event {
            Event::MappingStart(..) => self.around.push(Node::Mapping { seen: HashMap::new(), at_key: true }),
            Event::SequenceStart(..) => self.around.push(Node::List),
            Event::MappingEnd | Event::SequenceEnd => {
                self.around.pop();
                self.next();
            }
            Event::Scalar(text, ..) => {
                if let Some(Node::Mapping { seen, at_key: true }) = self.around.last_mut()
                    && let Some(first) = seen.insert(text.to_string(), line)
                {
                    return Err((
                        line,
                        format!("{text} is said before, in line {first}; keep one of the two"),
                    ));
                }
                self.next();
            }
            Event::Alias(_) => self.next(),
            _ => {}
        }
        Ok(())
    }

    fn next(&mut self) {
        if let Some(Node::Mapping { at_key, .. }) = self.around.last_mut() {
            *at_key = !*at_key;
        }
    }
}

fn flatten(
    prefix: &str,
    node: &MarkedYaml<'_>,
    depth: usize,
    out: &mut Vec<Setting>,
) -> Result<(), (usize, String)> {
    let line = node.span.start.line();
    if depth > MAX_DEPTH {
        return Err((line, "is nested too deeply for a configuration".into()));
    }
    let setting = |value: String, line: usize| Setting { line, key: prefix.to_owned(), value };
    match &node.data {
        YamlData::Mapping(map) => {
            for (key, value) in map {
                let line = key.span.start.line();
                let Some(name) = scalar(key) else {
                    return Err((line, "a key must be a word".into()));
                };
                match (name.as_str(), scalar(value)) {
                    ("class_path", Some(class)) => {
                        let class = class.rsplit('.').next().unwrap_or(&class).to_owned();
                        out.push(setting(class, line));
                    }
                    ("init_args", _) => flatten(prefix, value, depth + 1, out)?,
                    _ => {
                        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                        flatten(&full, value, depth + 1, out)?;
                        // nothing is said by an empty value, and where one is said it stands at its key
                        if let Some(last) = out.last_mut().filter(|last| last.key == full) {
                            last.line = line;
                        }
                    }
                }
            }
        }
        YamlData::Sequence(_) if prefix.is_empty() => {
            return Err((line, "a list is no configuration: key: value is expected".into()));
        }
        YamlData::Sequence(items) => {
            let words: Option<Vec<String>> = items.iter().map(scalar).collect();
            match words {
                Some(words) => out.push(setting(words.join(","), line)),
                None => return Err((line, format!("{prefix} must be a list of words"))),
            }
        }
        _ => match scalar(node) {
            Some(value) if prefix.is_empty() => {
                return Err((line, format!("{value:?} is no option: key: value is expected")));
            }
            Some(value) => out.push(setting(value, line)),
            None if is_null(node) => {}
            None => return Err((line, format!("{prefix} has a value that is none"))),
        },
    }
    Ok(())
}

fn is_null(node: &MarkedYaml<'_>) -> bool {
    match &node.data {
        YamlData::Representation(text, style, _) => {
            *style == ScalarStyle::Plain && ["", "~", "null", "Null", "NULL"].contains(&text.as_ref())
        }
        YamlData::Value(Scalar::Null) => true,
        _ => false,
    }
}

/// A word or number as it is written; `None` for others, and where nothing is written.
fn scalar(node: &MarkedYaml<'_>) -> Option<String> {
    match &node.data {
        _ if is_null(node) => None,
        YamlData::Representation(text, _, _) => Some(text.to_string()),
        YamlData::Tagged(_, inner) => scalar(inner),
        _ => None,
    }
}

/// All names of an option.
fn names(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten())
}

fn find<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| names(arg).any(|known| known == name))
}

/// The option that a typed word gives, by its first name.
fn long_of<'c>(command: &'c Command, word: &OsString) -> Option<&'c str> {
    let name = word.to_str()?.strip_prefix("--")?;
    find(command, name.split_once('=').map_or(name, |(name, _)| name))?.get_long()
}

/// Options that say the same thing in different ways: one that is typed replaces all others of its row in a file.
const SAME: [&[&str]; 4] = [
    &["lora_targets", "lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head"],
    &["data", "data.json_path"],
    &["lr_warmup_steps", "lr_warmup_fraction"],
    &["accumulate_grad_batches", "batch_size"],
];

/// Whether a setting of a file gives way to what was typed.
fn yields(command: &Command, setting: &Setting, said: &[&str], off: &[String]) -> bool {
    let Some(long) = find(command, &setting.key).and_then(Arg::get_long) else { return false };
    if off.iter().any(|flag| flag == long) {
        return true;
    }
    // the switches of a file stay where others of them are typed
    let switch = |name: &str| name.starts_with("lora_") && name != "lora_targets";
    let rows = SAME.iter().filter(|row| row.contains(&long));
    let others = rows.flat_map(|row| row.iter()).filter(|name| **name != long);
    others.filter(|name| !(switch(long) && switch(name))).any(|name| said.contains(name))
}

/// What would be typed for a setting.
fn word_of(
    command: &Command,
    setting: &Setting,
    origin: impl Fn() -> String,
) -> Result<Vec<OsString>, Error> {
    let Setting { key, value, .. } = setting;
    if let Some(foreign) = Foreign::find(key) {
        foreign.check(value).map_err(|reason| Error::input(format!("{}: {reason}", origin())))?;
        return Ok(Vec::new());
    }
    if let ("optimizer.betas", Some((first, second))) = (key.as_str(), value.split_once(',')) {
        // each by itself, so that one of them can be typed
        return Ok(vec![format!("--beta1={first}").into(), format!("--beta2={second}").into()]);
    }
    let Some(arg) = find(command, key).filter(|arg| arg.get_id() != "config") else {
        let known = command.get_arguments().flat_map(names);
        let near = known.map(|name| (strsim::jaro_winkler(name, key), name));
        let near = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.75);
        let near = || near.map_or(String::new(), |(_, name)| format!("; did you mean {name}?"));
        let hint = here_in(command, key).map_or_else(near, |ours| format!("; {ours}"));
        let name = command.get_name();
        return Err(Error::input(format!("{}: {key} is no option of {name}{hint}", origin())));
    };
    match arg.get_action() {
        ArgAction::SetTrue => match value.to_ascii_lowercase().as_str() {
            "true" => Ok(vec![format!("--{key}").into()]),
            "false" => Ok(Vec::new()),
            _ => Err(Error::input(format!("{}: {key}: {value}: must be true or false", origin()))),
        },
        _ => Ok(vec![format!("--{key}={value}").into()]),
    }
}

/// An error of clap about a value that came from the file, in the file's terms.
fn in_file(
    command: &Command,
    error: &clap::Error,
    settings: &[Setting],
    file: Option<&Path>,
) -> Option<Error> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return None;
    };
    let arg = find(command, arg.trim_start_matches('-').split(' ').next()?)?;
    let named = |setting: &&Setting| names(arg).any(|name| name == setting.key);
    let setting = settings.iter().rev().find(named).filter(|s| s.value.contains(value.as_str()))?;
    let reason = std::error::Error::source(error).map_or("cannot be".into(), ToString::to_string);
    let file = file.unwrap_or(Path::new("")).display();
    Some(Error::input(format!("{file}:{}: {} {value}: {reason}", setting.line, setting.key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(usize, String, String)> {
        settings(text).unwrap().into_iter().map(|s| (s.line, s.key, s.value)).collect()
    }

    #[test]
    fn options_of_others_are_named_in_the_command_that_takes_them() {
        let root = crate::cli::args::Cli::command();
        for (run, theirs, said) in [
            ("finetune", "--r", "here that is --lora_rank"),
            ("finetune_full", "--r", "that is --lora_rank of finetune"),
            ("finetune", "load_in_4bit", "here that is --quantize nf4"),
            ("finetune_full", "load_in_4bit", "that is --quantize nf4 of finetune"),
            ("finetune_full", "output_dir", "here that is --out_dir"),
            ("finetune_full", "--base_model", "here that is the first word behind the command"),
        ] {
            assert_eq!(here_in(root.find_subcommand(run).unwrap(), theirs).as_deref(), Some(said));
        }
    }

    #[test]
    fn keys_nest_at_dots_and_classes_are_their_last_word() {
        let text = "\
# a run
epochs: 3
data:
  class_path: litgpt.data.JSON
  init_args:
    json_path: rows.json   # here
    mask_prompt: false
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 2.0e-04
    betas:
    - 0.9
    - 0.95
train: {max_steps: , save_interval: 200}
eval.interval: 10
";
        let expected = [
            (2, "epochs", "3"),
            (4, "data", "JSON"),
            (6, "data.json_path", "rows.json"),
            (7, "data.mask_prompt", "false"),
            (9, "optimizer", "AdamW"),
            (11, "optimizer.lr", "2.0e-04"),
            (12, "optimizer.betas", "0.9,0.95"),
            (15, "train.save_interval", "200"),
            (16, "eval.interval", "10"),
        ];
        assert_eq!(pairs(text), expected.map(|(l, k, v)| (l, k.to_owned(), v.to_owned())));
        assert_eq!(pairs("{\"a\": {\"b\": \"x y\", \"c\": null}}"), [(1, "a.b".into(), "x y".into())]);
        assert_eq!(pairs("a: ''"), [(1, "a".into(), String::new())]);
    }

    #[test]
    fn what_is_no_configuration_is_said_with_its_line() {
        for (text, line, reason) in [
            ("a: 1\nb: [", 3, "is no YAML"),
            ("just words", 1, "key: value"),
            ("a: 1\na: 2", 2, "a is said before, in line 1"),
            ("b: {a: 1}\nc:\n  a: 1\n  d: [a, a]\n  a: 2", 5, "a is said before, in line 3"),
            ("a: [[1]]", 1, "list of words"),
            ("[a]: 1", 1, "must be a word"),
            ("a:\n\tb: 1", 2, "is no YAML"),
        ] {
            let (at, said) = settings(text).unwrap_err();
            assert!(at == line && said.contains(reason), "{text:?}: {at}: {said}");
        }
        for deep in [format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000)), "a: ".repeat(50_000)] {
            assert!(settings(&deep).is_err());
        }
        let ladder: String = (0..40).map(|i| format!("{}k:\n", " ".repeat(i))).collect();
        assert!(settings(&ladder).unwrap_err().1.contains("too deeply"));
    }
}
