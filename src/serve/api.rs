//! OpenAI's completions, of chats and of texts, as JSON: what a request may say, and what is said back.
//!
//! What would change the answer and is not built is refused rather than passed over in silence; what does not (`user`,
//! `metadata`, the name of the model) is ignored.

use crate::data::Conversation;
use crate::generate::sampling::Sampler;
use crate::generate::{Answer, AnswerOptions, Finish};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a path answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`, which OpenAI calls legacy.
    Text,
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    Conversation(Conversation),
    /// Continued as it is.
    Text(String),
}

impl Prompt {
    /// Its key in a request.
    pub(super) fn key(&self) -> &'static str {
        match self {
            Prompt::Conversation(_) => "messages",
            Prompt::Text(_) => "prompt",
        }
    }
}

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) prompt: Prompt,
    pub(super) options: AnswerOptions,
    pub(super) stream: bool,
    /// A chunk with the counts of tokens at the end of a stream.
    pub(super) include_usage: bool,
}

/// A refusal in OpenAI's form.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
}

impl ApiError {
    pub(super) fn bad(param: Option<&str>, message: String) -> Self {
        ApiError { status: 400, message, param: param.map(str::to_owned), code: None }
    }

    pub(super) fn server(status: u16, message: String) -> Self {
        ApiError { status, message, param: None, code: None }
    }

    pub(super) fn json(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

#[derive(Deserialize)]
struct Raw {
    messages: Option<Vec<RawMessage>>,
    prompt: Option<Value>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<RawStop>,
    stream: Option<bool>,
    stream_options: Option<RawStreamOptions>,
    n: Option<u64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    /// A flag for chats, a number for texts.
    logprobs: Option<Value>,
    logit_bias: Option<Value>,
    tools: Option<Value>,
    functions: Option<Value>,
    response_format: Option<Value>,
    best_of: Option<u64>,
    echo: Option<bool>,
    suffix: Option<Value>,
}

#[derive(Deserialize)]
struct RawMessage {
    role: String,
    content: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawStop {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct RawStreamOptions {
    include_usage: Option<bool>,
}

/// OpenAI's limit of stop texts.
const STOPS: usize = 4;

impl Request {
    /// Reads a body. What it leaves out is as in `defaults`.
    pub(super) fn parse(kind: Kind, body: &[u8], defaults: &AnswerOptions) -> Result<Self, ApiError> {
        let raw: Raw = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad(None, format!("The body is no completion request: {error}.")))?;
        raw.refuse_what_is_not_built()?;
        let mut options = defaults.clone();
        if let Some(tokens) = raw.max_completion_tokens.or(raw.max_tokens) {
            if tokens == 0 {
                return Err(ApiError::bad(Some("max_tokens"), "max_tokens must be at least 1.".into()));
            }
            options.max_new_tokens = tokens;
        }
        let sampling = &mut options.sampling;
        sampling.temperature = raw.temperature.unwrap_or(sampling.temperature);
        sampling.top_p = raw.top_p.unwrap_or(sampling.top_p);
        // any bits make a seed
        sampling.seed = raw.seed.map_or(sampling.seed, i64::cast_unsigned);
        match raw.top_k.map(usize::try_from) {
            None => {}
            Some(Ok(k)) => sampling.top_k = (k > 0).then_some(k),
            // vLLM's word for all
            Some(Err(_)) if raw.top_k == Some(-1) => sampling.top_k = None,
            Some(Err(_)) => return Err(ApiError::bad(Some("top_k"), "top_k must be at least 0.".into())),
        }
        if let Err(error) = Sampler::new(sampling.clone()) {
            let problem = &error.problems[0];
            let name = problem.option.trim_start_matches('-');
            return Err(ApiError::bad(Some(name), problem.to_string().trim_start_matches('-').to_owned()));
        }
        options.stop = match raw.stop {
            None => Vec::new(),
            Some(RawStop::One(stop)) => vec![stop],
            Some(RawStop::Several(stops)) => stops,
        };
        if options.stop.len() > STOPS {
            return Err(ApiError::bad(Some("stop"), format!("stop can have {STOPS} texts at most.")));
        }
        Ok(Request {
            prompt: match kind {
                Kind::Chat => Prompt::Conversation(conversation(&raw.messages.unwrap_or_default())?),
                Kind::Text => Prompt::Text(text(raw.prompt)?),
            },
            options,
            stream: raw.stream.unwrap_or(false),
            include_usage: raw.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        })
    }
}

impl Raw {
    fn refuse_what_is_not_built(&self) -> Result<(), ApiError> {
        let filled = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        let text =
            self.response_format.as_ref().is_none_or(|format| format.is_null() || format["type"] == "text");
        let number = |value: Option<f64>| value.is_some_and(|value| value != 0.0);
        for (name, refused) in [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("best_of", self.best_of.is_some_and(|n| n != 1)),
            ("echo", self.echo == Some(true)),
            ("suffix", filled(&self.suffix)),
            ("presence_penalty", number(self.presence_penalty)),
            ("frequency_penalty", number(self.frequency_penalty)),
            ("logprobs", self.logprobs.as_ref().is_some_and(|value| !value.is_null() && value != false)),
            ("logit_bias", filled(&self.logit_bias)),
            ("tools", filled(&self.tools)),
            ("functions", filled(&self.functions)),
            ("response_format", !text),
        ] {
            if refused {
                let message = match name {
                    "n" | "best_of" => format!("{name} must be 1: this server makes one answer."),
                    name => format!("{name} is not supported by this server; leave it out."),
                };
                return Err(ApiError {
                    code: Some("unsupported_parameter"),
                    ..ApiError::bad(Some(name), message)
                });
            }
        }
        Ok(())
    }
}

/// A text, or a list of one.
fn text(prompt: Option<Value>) -> Result<String, ApiError> {
    let one = match prompt {
        Some(Value::Array(mut list)) if list.len() == 1 => list.pop(),
        other => other,
    };
    match one {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ApiError::bad(
            Some("prompt"),
            "prompt must be a text, or an array of one: this server makes one answer, and reads no token ids."
                .into(),
        )),
    }
}

fn conversation(messages: &[RawMessage]) -> Result<Conversation, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::bad(Some("messages"), "messages must have at least one message.".into()));
    }
    let message = |(i, message): (usize, &RawMessage)| {
        let role = match message.role.as_str() {
            // OpenAI's newer word, which no template of an open model knows
            "developer" => "system",
            role @ ("system" | "user" | "assistant") => role,
            other => {
                let name = format!("messages[{i}].role");
                let message =
                    format!("{name} is {other:?}; known are system, developer, user and assistant.");
                return Err(ApiError::bad(Some(&name), message));
            }
        };
        Ok(Conversation::message(role, &content(i, message.content.as_ref())?))
    };
    let messages = messages.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    Ok(Conversation::of_messages(messages))
}

/// A text, or parts of one.
fn content(i: usize, content: Option<&Value>) -> Result<String, ApiError> {
    let name = format!("messages[{i}].content");
    let bad = |message: &str| ApiError::bad(Some(&name), format!("{name} {message}"));
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let text =
                |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            Ok(texts.ok_or_else(|| bad("has a part that is no text: only text can be read."))?.concat())
        }
        _ => Err(bad("must be a text or an array of parts of type text.")),
    }
}

/// What every answer and every chunk of one begins with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(kind: Kind, number: &str, created: u64, model: &str) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Head { kind, id: format!("{prefix}-{number}"), created, model: model.to_owned() }
    }

    /// A whole answer.
    pub(super) fn completion(&self, answer: &Answer) -> Value {
        let (object, key, said) = match self.kind {
            Kind::Chat => {
                ("chat.completion", "message", json!({"role": "assistant", "content": answer.text}))
            }
            Kind::Text => (TEXT, "text", json!(answer.text)),
        };
        let mut whole = self.object(object, json!([choice(key, said, Some(finish_reason(answer.finish)))]));
        whole["usage"] = usage(answer);
        whole
    }

    /// The first chunk of a stream, where its text has something before it.
    pub(super) fn first(&self) -> Option<Value> {
        let role = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(json!([choice("delta", role, None)])))
    }

    pub(super) fn text(&self, text: &str) -> Value {
        self.chunk(json!([match self.kind {
            Kind::Chat => choice("delta", json!({"content": text}), None),
            Kind::Text => choice("text", json!(text), None),
        }]))
    }

    pub(super) fn last(&self, answer: &Answer) -> Value {
        let (key, nothing) = match self.kind {
            Kind::Chat => ("delta", json!({})),
            Kind::Text => ("text", json!("")),
        };
        self.chunk(json!([choice(key, nothing, Some(finish_reason(answer.finish)))]))
    }

    pub(super) fn usage(&self, answer: &Answer) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage(answer);
        chunk
    }

    fn chunk(&self, choices: Value) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => TEXT,
        };
        self.object(object, choices)
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// The name of a completion of a text, whole or a chunk.
const TEXT: &str = "text_completion";

fn choice(key: &str, said: Value, finish_reason: Option<&str>) -> Value {
    json!({"index": 0, key: said, "logprobs": null, "finish_reason": finish_reason})
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        // of an answer that the end of the server cut, as of every other that is not whole
        Finish::Length | Finish::Caller => "length",
    }
}

fn usage(answer: &Answer) -> Value {
    json!({
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": answer.prompt_tokens + answer.tokens,
        "prompt_tokens_details": {"cached_tokens": answer.reused},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::sampling::SamplingOptions;

    fn parse_as(kind: Kind, body: Value) -> Result<Request, ApiError> {
        let defaults = AnswerOptions { max_new_tokens: 9, ..AnswerOptions::default() };
        Request::parse(kind, body.to_string().as_bytes(), &defaults)
    }

    fn parse(body: Value) -> Result<Request, ApiError> {
        parse_as(Kind::Chat, body)
    }

    fn conversation(system: Option<&str>, user: &str) -> Prompt {
        Prompt::Conversation(Conversation::single(system, user, None))
    }

    #[test]
    fn a_request_says_how_to_answer() {
        let plain = parse(json!({"model": "x", "messages": [{"role": "user", "content": "hi"}]})).unwrap();
        assert_eq!((plain.options.max_new_tokens, plain.stream), (9, false));
        assert_eq!(plain.options.sampling, SamplingOptions::default());
        assert_eq!(plain.prompt, conversation(None, "hi"));
        let full = parse(json!({
            "messages": [
                {"role": "developer", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            "max_tokens": 3, "max_completion_tokens": 4, "temperature": 0, "top_p": 0.5, "top_k": 7, "seed": -1,
            "stop": "END", "stream": true, "stream_options": {"include_usage": true}, "n": 1, "tools": [],
            "response_format": {"type": "text"}, "presence_penalty": 0, "logit_bias": {}, "user": "me",
        }))
        .unwrap();
        let sampling = SamplingOptions { temperature: 0.0, top_k: Some(7), top_p: 0.5, seed: u64::MAX };
        let expected = AnswerOptions { max_new_tokens: 4, sampling, stop: vec!["END".into()] };
        assert_eq!(full.options, expected);
        assert!(full.stream && full.include_usage);
        assert_eq!(full.prompt, conversation(Some("be kind"), "ab"));
        for all in [0, -1] {
            let body = json!({"messages": [{"role": "user", "content": "hi"}], "top_k": all});
            assert_eq!(parse(body).unwrap().options.sampling.top_k, None);
        }
    }

    #[test]
    fn a_text_is_one_text_and_its_options_are_those_of_a_chat() {
        for prompt in [json!(" a\n"), json!([" a\n"])] {
            let body =
                json!({"prompt": prompt, "max_tokens": 3, "seed": 7, "stop": ["\n\n"], "stream": true});
            let request = parse_as(Kind::Text, body).unwrap();
            let sampling = SamplingOptions { seed: 7, ..SamplingOptions::default() };
            let expected = AnswerOptions { max_new_tokens: 3, sampling, stop: vec!["\n\n".into()] };
            assert_eq!((request.prompt, request.options), (Prompt::Text(" a\n".into()), expected));
            assert!(request.stream && !request.include_usage);
        }
        for prompt in [json!(null), json!([]), json!(["a", "b"]), json!([1, 2]), json!([[1]]), json!({})] {
            let error = parse_as(Kind::Text, json!({"prompt": prompt})).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("prompt")));
        }
        for (key, value) in [
            ("best_of", json!(2)),
            ("echo", json!(true)),
            ("suffix", json!("b")),
            ("logprobs", json!(0)),
            ("n", json!(2)),
            ("max_tokens", json!(0)),
        ] {
            let error = parse_as(Kind::Text, json!({"prompt": "a", key: value})).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(key)));
        }
        let usual =
            json!({"prompt": "a", "best_of": 1, "echo": false, "suffix": "", "logprobs": null, "n": 1});
        assert!(parse_as(Kind::Text, usual).is_ok());
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (key, value) in [
            ("n", json!(2)),
            ("max_tokens", json!(0)),
            ("temperature", json!(-1)),
            ("top_p", json!(0)),
            ("top_k", json!(-2)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("tools", json!([{"type": "function"}])),
            ("logprobs", json!(true)),
            ("presence_penalty", json!(0.5)),
            ("response_format", json!({"type": "json_object"})),
        ] {
            let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
            body[key] = value;
            let error = parse(body).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(key)));
            assert!(error.message.contains(key) && !error.message.contains("--"), "{}", error.message);
            assert_eq!(error.json()["error"]["type"], "invalid_request_error");
        }
        for (messages, param) in [
            (json!([]), "messages"),
            (json!([{"role": "king", "content": "hi"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
        ] {
            assert_eq!(parse(json!({"messages": messages})).unwrap_err().param.as_deref(), Some(param));
        }
        for broken in [json!({}), json!({"messages": "hi"}), json!([1]), json!({"messages": [], "stream": 1})]
        {
            assert_eq!(parse(broken).unwrap_err().status, 400);
        }
    }
}
