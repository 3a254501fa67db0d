//! What the user types in a chat: messages of one or more lines, and commands.

use crate::data::without_mark;
use crate::error::Error;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config, Editor, Helper, Highlighter, Hinter};
use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal};
use std::ops::RangeInclusive;

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Message(String),
    Clear,
    Help,
    Exit,
    /// A word with a slash that is no command.
    Unknown(String),
    /// Ctrl-C at the prompt.
    Interrupted,
}

/// Where input comes from.
pub enum Reader {
    Terminal(Box<Editor<Lines, MemHistory>>),
    /// With the number of lines so far.
    Pipe(usize),
}

impl Reader {
    /// An editor of lines where standard input and output are terminals; plain lines elsewhere.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn open() -> Result<Self, Error> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Reader::Pipe(0));
        }
        let config = Config::builder().auto_add_history(true).build();
        let editor = Editor::with_history(config, MemHistory::new()).map_err(|error| unreadable(&error))?;
        let mut editor = Box::new(editor);
        editor.set_helper(Some(Lines));
        Ok(Reader::Terminal(editor))
    }

    /// The next thing that is not empty; `None` at the end of input.
    ///
    /// # Errors
    /// Input that cannot be read; of a terminal also what is no UTF-8.
    pub fn next(&mut self) -> Result<Option<Input>, Error> {
        loop {
            let text = match self {
                Reader::Pipe(lines) => {
                    let read = read_lines(&mut io::stdin().lock(), lines, &mut warn_of_replaced);
                    read.map_err(|error| unreadable(&error))?
                }
                Reader::Terminal(editor) => match editor.readline("> ") {
                    Ok(text) => Some(text),
                    Err(ReadlineError::Eof) => None,
                    Err(ReadlineError::Interrupted) => return Ok(Some(Input::Interrupted)),
                    Err(error) => return Err(unreadable(&error)),
                },
            };
            let Some(text) = text else { return Ok(None) };
            if let Some(input) = parse(&text) {
                return Ok(Some(input));
            }
        }
    }
}

fn unreadable(error: &dyn std::error::Error) -> Error {
    Error::input(format!("standard input cannot be read: {error}"))
}

/// What makes UTF-8 of another text.
pub(super) const TO_UTF8: &str = "iconv -f ITS_ENCODING -t UTF-8";

/// Said in any case: the answer is to another text than was sent.
fn warn_of_replaced(lines: RangeInclusive<usize>) {
    let (first, last) = lines.into_inner();
    let (which, them) = match first == last {
        true => (format!("line {first} of standard input is"), "it"),
        false => (format!("lines {first} to {last} of standard input are"), "them"),
    };
    eprintln!(
        "warning: {which} no UTF-8: what cannot be read of {them} is taken as \u{fffd}; convert {them} with {TO_UTF8}"
    );
}

/// Lines up to the end of one message; `None` at the end of input. `lines` counts them, and `replaced` hears once from which to
/// which they are no UTF-8, which is no reason to end a conversation.
fn read_lines(
    input: &mut dyn BufRead,
    lines: &mut usize,
    replaced: &mut dyn FnMut(RangeInclusive<usize>),
) -> io::Result<Option<String>> {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    let mut spoilt: Option<RangeInclusive<usize>> = None;
    let message = loop {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes)? == 0 {
            break (!text.is_empty()).then_some(text);
        }
        *lines += 1;
        let line = String::from_utf8_lossy(&bytes);
        // borrowed where nothing was replaced
        if let Cow::Owned(_) = line {
            spoilt = Some(spoilt.map_or(*lines, |spoilt| *spoilt.start())..=*lines);
        }
        // the mark that programs on Windows put before a text is none of it
        text.push_str(if *lines == 1 { without_mark(&line) } else { &line });
        let line = text.trim_end_matches(['\r', '\n']).len();
        if is_whole(&text[..line]) {
            text.truncate(line);
            break Some(text);
        }
    };
    spoilt.into_iter().for_each(replaced);
    Ok(message)
}

/// Around a message of several lines.
const QUOTES: &str = "\"\"\"";

/// Whether a message ends here: it began with three quotes and ends in three, or its last line has no backslash at the
/// end.
fn is_whole(text: &str) -> bool {
    match text.trim().strip_prefix(QUOTES) {
        Some(rest) => rest.ends_with(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// What a whole input says; `None` where it is blank.
fn parse(text: &str) -> Option<Input> {
    let trimmed = text.trim();
    if let Some(quoted) = trimmed.strip_prefix(QUOTES) {
        let message = quoted.strip_suffix(QUOTES).unwrap_or(quoted).trim_matches(['\r', '\n']);
        return (!message.trim().is_empty()).then(|| Input::Message(message.to_owned()));
    }
    let command = text.starts_with('/') && !text.contains('\n');
    Some(match trimmed {
        "" => return None,
        "/exit" | "/quit" => Input::Exit,
        "/clear" => Input::Clear,
        "/help" | "/?" => Input::Help,
        word if command => Input::Unknown(word.to_owned()),
        message => Input::Message(message.replace("\\\r\n", "\n").replace("\\\n", "\n")),
    })
}

/// Tells the editor where a message ends, so that Enter begins a new line inside of one.
#[derive(Completer, Helper, Highlighter, Hinter)]
pub struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_whole(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pipe says, and the lines of which something was replaced.
    fn all_of(mut input: &[u8]) -> (Vec<Input>, Vec<RangeInclusive<usize>>) {
        let (mut inputs, mut lines, mut replaced) = (Vec::new(), 0, Vec::new());
        while let Some(text) = read_lines(&mut input, &mut lines, &mut |these| replaced.push(these)).unwrap()
        {
            inputs.extend(parse(&text));
        }
        (inputs, replaced)
    }

    fn all(text: &str) -> Vec<Input> {
        let (inputs, replaced) = all_of(text.as_bytes());
        assert!(replaced.is_empty(), "{replaced:?}");
        inputs
    }

    #[test]
    fn lines_become_messages_and_commands() {
        let message = |text: &str| Input::Message(text.to_owned());
        assert_eq!(
            all("hi\n\n  \n/clear\r\n/exit\n/help\n/what now\n /no command\n/etc\\\nis a folder"),
            [
                message("hi"),
                Input::Clear,
                Input::Exit,
                Input::Help,
                Input::Unknown("/what now".into()),
                message("/no command"),
                message("/etc\nis a folder"),
            ]
        );
    }

    #[test]
    fn a_message_can_have_several_lines() {
        let message = |text: &str| Input::Message(text.to_owned());
        assert_eq!(all("a\\\nb\\\r\nc\nd"), [message("a\nb\nc"), message("d")]);
        assert_eq!(all("\"\"\"\na\n\n  b\n\"\"\"\nc"), [message("a\n\n  b"), message("c")]);
        assert_eq!(all("\"\"\"a\"\"\"\n"), [message("a")]);
        // an end of input ends what is open
        assert_eq!(all("\"\"\"a\nb"), [message("a\nb")]);
        assert_eq!(all("\"\"\"\n\"\"\"\n"), []);
    }

    #[test]
    fn what_is_no_utf8_is_replaced_and_the_conversation_goes_on() {
        let message = |text: &str| Input::Message(text.to_owned());
        // Latin-1, and half a character at the end of the input
        let (inputs, replaced) = all_of(b"caf\xc3\xa9\ncaf\xe9\\\nau lait\n\n/clear\nso\xc3");
        let expected =
            [message("caf\u{e9}"), message("caf\u{fffd}\nau lait"), Input::Clear, message("so\u{fffd}")];
        assert_eq!((inputs, replaced), (expected.into(), vec![2..=2, 6..=6]));
        // told once of a message
        let (inputs, replaced) = all_of(b"hi\n\"\"\"\n\xe9\nau lait\n\xe8\n\"\"\"\n");
        let expected = [message("hi"), message("\u{fffd}\nau lait\n\u{fffd}")];
        assert_eq!((inputs, replaced), (expected.into(), vec![3..=5]));
    }

    #[test]
    fn a_mark_of_byte_order_is_no_part_of_the_first_message() {
        let message = |text: &str| Input::Message(text.to_owned());
        assert_eq!(all("\u{feff}/clear\nhi"), [Input::Clear, message("hi")]);
        assert_eq!(all("\u{feff}\n\u{feff}hi"), [message("\u{feff}hi")]);
    }
}
