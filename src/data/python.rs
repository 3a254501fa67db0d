//! Values as Python writes them, for templates that were written for Python's Jinja.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;

/// Prints a value of `{{ … }}`: `None`, `True`, `1.0`, `['a']`, where minijinja would say `none`, `true`, `["a"]`.
pub(super) fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => match value.as_str() {
            Some(text) => out.write_str(text),
            None => write!(out, "{value}"),
        },
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            match serde_json::to_value(value) {
                Ok(json) => out.write_str(&repr(&json)),
                Err(_) => write!(out, "{value}"),
            }
        }
        _ => write!(out, "{value}"),
    };
    written.map_err(|_| Error::new(ErrorKind::WriteFailure, "the text cannot be written"))
}

/// `repr` of what JSON can hold.
fn repr(value: &Json) -> String {
    let list = |parts: Vec<String>| parts.join(", ");
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(number) => self::number(number),
        Json::String(text) => quoted(text),
        Json::Array(items) => format!("[{}]", list(items.iter().map(repr).collect())),
        Json::Object(entries) => {
            let pairs = entries.iter().map(|(key, value)| format!("{}: {}", quoted(key), repr(value)));
            format!("{{{}}}", list(pairs.collect()))
        }
    }
}

/// A string literal: in single quotes unless only those occur.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() && (c as u32) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `repr` of a number: floats in exponents below 1e-4 and from 1e16.
fn number(number: &serde_json::Number) -> String {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(power) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        _ => format!("{value:?}"),
    }
}

/// Python's `json.dumps` with the defaults that transformers gives it: `ensure_ascii` false, nothing escaped for HTML.
pub(super) fn tojson(value: &Value, rest: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let wrong = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    // the filter's own positional parameters: ensure_ascii, indent
    let ascii = ensure_ascii.or(rest.first().map(Value::is_true)).unwrap_or(false);
    let indent: Option<Value> = options.get::<Option<Value>>("indent")?.or(rest.get(1).cloned());
    let indent = match indent.filter(|value| !value.is_none()) {
        None => None,
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                let width =
                    usize::try_from(value).map_err(|_| wrong("indent must be a number or a text".into()))?;
                Some(" ".repeat(width.min(64)))
            }
        },
    };
    let separators: Option<(String, String)> = match options.get::<Option<Vec<String>>>("separators")? {
        None => None,
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => Some((item, key)),
            Err(_) => return Err(wrong("separators must be two texts".into())),
        },
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    if value.is_undefined() {
        return Err(wrong("an undefined value has no JSON".into()));
    }
    let json =
        serde_json::to_value(value).map_err(|error| wrong(format!("the value has no JSON: {error}")))?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((item.to_owned(), ": ".to_owned()));
    let mut out = String::new();
    Dumps { indent, item, key, ascii, sort_keys }.write(&json, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

struct Dumps {
    indent: Option<String>,
    /// Between two elements, and between a key and its value.
    item: String,
    key: String,
    ascii: bool,
    sort_keys: bool,
}

impl Dumps {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Json::Number(value) => out.push_str(&number(value)),
            Json::String(text) => self.string(text, out),
            Json::Array(items) => self.list(['[', ']'], items.iter(), depth, out, |item, out| {
                self.write(item, depth + 1, out);
            }),
            Json::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list(['{', '}'], entries.into_iter(), depth, out, |(key, value), out| {
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out);
                });
            }
        }
    }

    fn list<T>(
        &self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let empty = items.len() == 0;
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !empty) {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            write(item, out);
        }
        line(depth, out);
        out.push(close);
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
