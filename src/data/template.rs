//! Jinja templates in the surroundings that transformers gives its chat templates.
//!
//! `trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods, `tojson` as Python's `json.dumps`,
//! `raise_exception`, `strftime_now`, and `{% generation %}` around what the assistant says. Templates come from
//! strangers: they can read nothing but their variables, and their work is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::DataError;
use super::python;

/// Instructions that one rendering may execute: a conversation of ten thousand messages takes less, and an endless
/// loop ends within a second.
const FUEL: u64 = 5_000_000;

/// Bytes of a template: chat templates have some thousands.
const MAX_BYTES: usize = 128 << 10;

/// Stack of the compiler, which recurses over the links of a chain (`a.a.a…`, `elif`) without a limit. Chains of
/// [`MAX_BYTES`] fit, in unoptimised builds too; it is only mapped where it is used.
const STACK: usize = 64 << 20;

/// Marks of the beginning and end of `{% generation %}`: code points that Unicode keeps for such internal use, so that
/// no text that is interchanged holds them.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// A compiled template.
pub struct Template {
    environment: Environment<'static>,
    /// Where it comes from, for messages.
    origin: String,
    marks_generation: bool,
    tells_time: bool,
    special_tokens: Vec<(String, Value)>,
}

/// What a template made of its variables.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// Bytes of `text` within `{% generation %}`, ascending.
    pub(super) generated: Vec<Range<usize>>,
}

/// What a template reads of a row, in the order of the alphabet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RowKeys {
    /// Keys that the prompt is written from.
    pub(super) prompt: Vec<String>,
    /// Keys that are read within `{% generation %}` alone.
    pub(super) answer: Vec<String>,
}

impl Template {
    /// Compiles a template. `origin` names its file; `special_tokens` are variables of every rendering, such as
    /// `bos_token`.
    ///
    /// # Errors
    /// A template that is not Jinja, with its line.
    pub fn new(
        origin: impl Into<String>,
        source: &str,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        let origin = origin.into();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| DataError::BadTemplate {
            origin: origin.clone(),
            line: 1,
            reason: error.to_string(),
        })?;
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(python::print);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", |value: &Value, rest: Rest<Value>, options: Kwargs| {
            python::tojson(value, rest, options)
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| now(format));
        // Python's Jinja finds that nothing and numbers are not iterable
        environment.add_test("iterable", |value: &Value| {
            !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
        });
        // and reads every line end as a newline
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, marks_generation) = mark_generation(&source);
        let tells_time = source.contains("strftime_now");
        compile(&mut environment, source).map_err(|(line, reason)| DataError::BadTemplate {
            origin: origin.clone(),
            line,
            reason,
        })?;
        let special_tokens =
            special_tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        Ok(Self { environment, origin, marks_generation, tells_time, special_tokens })
    }

    /// Where the template comes from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether `{% generation %}` tells which part of the text is the assistant's.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Whether the text may depend on the day.
    pub(super) fn tells_time(&self) -> bool {
        self.tells_time
    }

    /// The keys that a row is read by.
    pub(super) fn row_keys(&self) -> RowKeys {
        let source = self.environment.get_template(NAME).map(|template| template.source().to_owned());
        let source = source.unwrap_or_default();
        let (prompt, all) = (self.variables(without_generated(&source)), self.variables(source));
        let answer = all.difference(&prompt).cloned().collect();
        RowKeys { prompt: prompt.into_iter().collect(), answer }
    }

    /// What a source reads that is neither its own nor there for every template.
    fn variables(&self, source: String) -> BTreeSet<String> {
        let mut environment = self.environment.clone();
        let found = on_own_stack(|| {
            environment.add_template_owned(NAME, source).ok()?;
            Some(environment.get_template(NAME).ok()?.undeclared_variables(false))
        });
        let mut found: BTreeSet<String> = found.ok().flatten().into_iter().flatten().collect();
        for (name, _) in self.environment.globals() {
            found.remove(name);
        }
        for (name, _) in &self.special_tokens {
            found.remove(name);
        }
        found
    }

    /// Renders with these variables and the special tokens.
    ///
    /// # Errors
    /// What the template itself raises or fails at, in words, without its place in a data file.
    pub(super) fn render(
        &self,
        variables: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Rendered, String> {
        let context = Value::from_pairs(self.special_tokens.iter().cloned().chain(variables));
        let failed = |error: Error| match error.kind() {
            ErrorKind::OutOfFuel => {
                format!("{} does not come to an end: more than {FUEL} instructions", self.origin)
            }
            _ => format!("{}, line {}: {}", self.origin, error.line().unwrap_or(1), reason(&error)),
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let text = template.render(context).map_err(failed)?;
        if self.marks_generation {
            unmark(&text, &self.origin)
        } else {
            Ok(Rendered { text, generated: Vec::new() })
        }
    }
}

const NAME: &str = "template";

/// Adds the template on a stack of its own; an error is a line, and what is wrong.
fn compile(environment: &mut Environment<'static>, source: String) -> Result<(), (usize, String)> {
    if source.len() > MAX_BYTES {
        return Err((1, format!("it has {} bytes, more than the limit of {MAX_BYTES}", source.len())));
    }
    let failed = |error: Error| (error.line().unwrap_or(1), reason(&error));
    on_own_stack(|| environment.add_template_owned(NAME, source).map_err(failed))
        .unwrap_or_else(|reason| Err((1, reason)))
}

/// Does what recurses over a template on a stack of its own; an error says why it was not done.
fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let compiler = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| format!("no thread can be started to compile it: {error}"))?;
        compiler.join().map_err(|_| "the compiler failed".to_owned())
    })
}

/// A source whose `{% generation %}` blocks, marked by [`mark_generation`], are empty.
fn without_generated(source: &str) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for piece in source.split_inclusive(MARKS) {
        let text = piece.strip_suffix(MARKS).unwrap_or(piece);
        if !inside {
            out.push_str(text);
        }
        if let Some(mark) = piece[text.len()..].chars().next() {
            inside = mark == MARKS[0];
            out.push(mark);
        }
    }
    out
}

fn reason(error: &Error) -> String {
    let own = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match std::error::Error::source(error) {
        Some(source) => format!("{own}: {source}"),
        None => own,
    }
}

fn now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot read {format:?}")))
        }
    }
}

/// Turns the tags `{% generation %}` and `{% endgeneration %}` into blocks that print a mark: a block, because blanks
/// around it are then trimmed as around the tag.
fn mark_generation(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut any) = (String::with_capacity(source.len()), source, false);
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let (tag, after) = (&rest[begin..begin + length + 2], begin + length + 2);
        let inside = &tag[2..tag.len() - 2];
        let trims = |c: char| c == '-' || c == '+';
        let word = inside.trim_matches(trims).trim();
        let mark = match word {
            "generation" => Some(MARKS[0]),
            "endgeneration" => Some(MARKS[1]),
            _ => None,
        };
        out.push_str(&rest[..begin]);
        match mark {
            Some(mark) => {
                let open: String = inside.chars().take(1).filter(|&c| trims(c)).collect();
                let close: String = inside.chars().rev().take(1).filter(|&c| trims(c)).collect();
                out.push_str(&format!("{{%{open} if true %}}{mark}{{% endif {close}%}}"));
                any = true;
            }
            None => out.push_str(tag),
        }
        rest = &rest[after..];
    }
    out.push_str(rest);
    (out, any)
}

/// Takes the marks out and keeps where they were.
fn unmark(text: &str, origin: &str) -> Result<Rendered, String> {
    let (mut clean, mut generated, mut open) = (String::with_capacity(text.len()), Vec::new(), None);
    let broken = || format!("{origin}: a {{% generation %}} block does not end before the next one begins");
    for piece in text.split_inclusive(MARKS) {
        let before = piece.strip_suffix(MARKS).unwrap_or(piece);
        clean.push_str(before);
        let begins = match piece[before.len()..].chars().next() {
            Some(mark) => mark == MARKS[0],
            None => break,
        };
        open = match (begins, open) {
            (true, None) => Some(clean.len()),
            (false, Some(start)) => {
                generated.push(start..clean.len());
                None
            }
            _ => return Err(broken()),
        };
    }
    if open.is_some() {
        return Err(broken());
    }
    Ok(Rendered { text: clean, generated })
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn render(source: &str) -> Result<Rendered, String> {
        let messages =
            serde_json::json!([{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]);
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let template = Template::new("the template", source, &tokens).map_err(|error| error.to_string())?;
        template.render([("messages".to_owned(), Value::from(Serde(messages)))])
    }

    fn text(source: &str) -> String {
        render(source).unwrap().text
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        for (source, expected) in [
            ("{{ none }}|{{ true }}|{{ false }}|{{ missing }}", "None|True|False|"),
            ("{{ 1 }}|{{ 1.0 }}|{{ 1e16 }}|{{ 0.00001 }}|{{ 0.5 }}", "1|1.0|1e+16|1e-05|0.5"),
            (r#"{{ ['a', "it's", 1, none] }}"#, r#"['a', "it's", 1, None]"#),
            (r#"{{ {'b': [true], 'a': 2} }}"#, r#"{'b': [True], 'a': 2}"#),
            (r#"{{ {'b': 'é"<', 'a': [1, 2.0]} | tojson }}"#, r#"{"b": "é\"<", "a": [1, 2.0]}"#),
            (
                r#"{{ {'b': 'é', 'a': []} | tojson(ensure_ascii=true, sort_keys=true) }}"#,
                r#"{"a": [], "b": "\u00e9"}"#,
            ),
            ("{{ {'a': [1, {}]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    {}\n  ]\n}"),
            ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
            ("{{ bos_token + ' a b '.strip().split(' ')[-1].upper() }}", "<s>B"),
            ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
            ("  {% if true %}\n a\n  {% endif %}\nb\n", " a\nb"),
            ("{{ strftime_now('%Y') | length }}", "4"),
            ("{% if none is iterable or 3 is iterable %}no{% endif %}{{ [] is iterable }}", "True"),
            ("a\r\n{% if true %}\r\nb\rc{% endif %}", "a\nb\nc"),
        ] {
            assert_eq!(text(source), expected, "{source}");
        }
    }

    #[test]
    fn generation_is_found_and_trims_as_a_tag() {
        let source = "{% for m in messages %}\n  {{- m.role }}:\n  {%- if m.role == 'assistant' %}\n    \
                      {%- generation %}\n{{ m.content }}<e>{% endgeneration -%}\n\n  {%- else %}{{ m.content }}\
                      {%- endif %}\n{% endfor %}";
        let rendered = render(source).unwrap();
        assert_eq!(rendered.text, "user:éassistant:b<e>");
        assert_eq!(&rendered.text[rendered.generated[0].clone()], "b<e>");
        assert_eq!(rendered.generated.len(), 1);
        for broken in [
            "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
            "{% endgeneration %}",
        ] {
            assert!(render(broken).unwrap_err().contains("does not end"), "{broken}");
        }
    }

    #[test]
    fn the_keys_of_a_row_are_what_the_prompt_reads() {
        let keys = |source: &str| {
            let keys =
                Template::new("t", source, &BTreeMap::from([("bos_token".into(), "<s>".into())])).unwrap();
            let RowKeys { prompt, answer } = keys.row_keys();
            (prompt.join(" "), answer.join(" "))
        };
        for (source, prompt, answer) in [
            ("{{ question }}", "question", ""),
            (
                "{{ bos_token }}{{ b }}{% set c = a %}{{ c }}{% for i in range(2) %}{{ loop.index }}{% endfor %}",
                "a b",
                "",
            ),
            ("{% if input %}{{ input }}{% endif %}{{ instruction|trim }}", "input instruction", ""),
            ("{{ q }}{%- generation %}{{ a }}{% endgeneration -%}{{ raise_exception }}", "q", "a"),
            ("{{ q }}{% generation %}{{ q + a.b }}{% endgeneration %}\n{{ r }}", "q r", "a"),
            ("{{ strftime_now('%Y') }}", "", ""),
        ] {
            assert_eq!(keys(source), (prompt.to_owned(), answer.to_owned()), "{source}");
        }
    }

    #[test]
    fn templates_that_fail_say_where() {
        for (source, expected) in [
            ("a\n{{ raise_exception('Only users!') }}", "the template, line 2: Only users!"),
            ("a\n{% if %}", "the template, line 2: "),
            ("{% for a in messages %}", "the template, line 1: "),
            ("{{ messages.nothing.more }}", "the template, line 1: "),
            ("{{ 'a'.nothing() }}", "the template, line 1: "),
            ("{% include 'template' %}", "the template"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the template"),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
                "come to an end",
            ),
            ("{{ range(1000000000000) }}", "the template, line 1: "),
        ] {
            let message = render(source).unwrap_err();
            assert!(message.contains(expected), "{source}: {message}");
        }
    }
}
