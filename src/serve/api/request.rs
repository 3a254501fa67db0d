//! What a request may say.
//!
//! What would change the answer and is not built is refused rather than passed over in silence; what does not (`user`,
//! `metadata`, the name of the model) is ignored.

use super::{ApiError, Kind};
use crate::data::Conversation;
use crate::generate::AnswerOptions;
use crate::generate::sampling::Sampler;
use serde_json::{Map, Value};

/// What is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::serve) enum Prompt {
    Conversation(Conversation),
    /// Continued as it is.
    Text(String),
    /// The same as its sender made tokens of it.
    Tokens(Vec<u32>),
}

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::serve) struct Request {
    /// At least one; of conversations exactly one.
    pub(in crate::serve) prompts: Vec<Prompt>,
    /// Answers to each of them.
    pub(in crate::serve) answers: usize,
    /// An answer begins with its prompt, whose tokens are scored where the answer's are.
    pub(in crate::serve) echo: bool,
    /// The request names the seed of its first answer.
    pub(in crate::serve) seeded: bool,
    /// `scores` are wanted of what is shown.
    pub(in crate::serve) options: AnswerOptions,
    pub(in crate::serve) stream: bool,
    /// A chunk with the counts of tokens at the end of a stream.
    pub(in crate::serve) include_usage: bool,
}

/// Limit of stop texts, each of which is looked for in every piece: OpenAI takes 4, programs that measure models send more.
const STOPS: usize = 64;
/// Limit of answers to one prompt, as OpenAI's.
const ANSWERS: usize = 128;
/// Limit of answers to one request: all others wait for them.
const ALL_ANSWERS: usize = 1024;
/// Limit of the most probable tokens that are told.
const TOP: usize = 20;

impl Request {
    /// Reads a body. What it leaves out is as in `defaults`.
    pub(in crate::serve) fn parse(
        kind: Kind,
        body: &[u8],
        defaults: &AnswerOptions,
    ) -> Result<Self, ApiError> {
        let keys: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad(
                None,
                format!("The body is no completion request, which is a JSON object: {error}."),
            )
        })?;
        let keys = Keys(keys);
        keys.refuse_what_is_not_built(kind)?;
        keys.refuse_what_is_asked_elsewhere(kind)?;
        let mut options = defaults.clone();
        let flag = "true or false";
        let echo = keys.read("echo", flag, Value::as_bool)?.unwrap_or(false);
        let least = if echo { 0 } else { 1 };
        for key in ["max_tokens", "max_completion_tokens"] {
            match keys.whole(key)? {
                // -1 is how some clients leave it out
                None | Some(-1) => {}
                Some(tokens) if tokens < least => {
                    return Err(ApiError::bad(Some(key), format!("{key} must be at least {least}.")));
                }
                // what the context leaves is less
                Some(tokens) => options.max_new_tokens = usize::try_from(tokens).unwrap_or(usize::MAX),
            }
        }
        let sampling = &mut options.sampling;
        sampling.temperature = keys.number("temperature")?.unwrap_or(sampling.temperature);
        sampling.top_p = keys.number("top_p")?.unwrap_or(sampling.top_p);
        let seed = keys.whole("seed")?;
        if let Some(seed) = seed {
            // any bits make a seed
            sampling.seed = seed as u64;
        }
        match keys.whole("top_k")? {
            None => {}
            // vLLM's word for all
            Some(-1 | 0) => sampling.top_k = None,
            Some(k) if k < 0 => {
                return Err(ApiError::bad(Some("top_k"), "top_k must be at least 0.".into()));
            }
            Some(k) => sampling.top_k = Some(usize::try_from(k).unwrap_or(usize::MAX)),
        }
        if let Err(error) = Sampler::new(sampling.clone()) {
            let problem = &error.problems[0];
            let name = problem.option.trim_start_matches('-');
            return Err(ApiError::bad(Some(name), problem.to_string().trim_start_matches('-').to_owned()));
        }
        options.stop = keys.read("stop", "a text or an array of texts", texts)?.unwrap_or_default();
        if options.stop.len() > STOPS {
            return Err(ApiError::bad(Some("stop"), format!("stop can have {STOPS} texts at most.")));
        }
        options.scores = keys.scores(kind)?;
        let stream = keys.read("stream", flag, Value::as_bool)?.unwrap_or(false);
        if stream && options.scores.is_some() {
            let message = "logprobs cannot be streamed by this server: leave out stream, or logprobs.";
            return Err(ApiError::unsupported("logprobs", message.into()));
        }
        let stream_options = keys.read("stream_options", "an object", Value::as_object)?;
        let include_usage = stream_options.and_then(|options| options.get("include_usage"));
        let include_usage = match include_usage.filter(|value| !value.is_null()) {
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| must_be("stream_options.include_usage", flag))?,
        };
        let prompts = match kind {
            Kind::Chat => {
                let messages = keys.read("messages", "an array of messages", Value::as_array)?;
                vec![Prompt::Conversation(conversation(messages.map_or(&[], Vec::as_slice))?)]
            }
            Kind::Text => prompts_to_continue(keys.given("prompt"))?,
        };
        let answers = keys.answers()?;
        if prompts.len() * answers > ALL_ANSWERS {
            let message =
                format!("prompt and n come to more than {ALL_ANSWERS} answers: send some of them at a time.");
            return Err(ApiError::bad(Some("prompt"), message));
        }
        Ok(Request { prompts, answers, echo, seeded: seed.is_some(), options, stream, include_usage })
    }

    /// What a prompt is called.
    pub(in crate::serve) fn key(&self, prompt: usize) -> String {
        match self.prompts[prompt] {
            Prompt::Conversation(_) => "messages".into(),
            _ => prompt_key(prompt, self.prompts.len()),
        }
    }
}

/// The key of one of `count` prompts.
fn prompt_key(prompt: usize, count: usize) -> String {
    if count == 1 { "prompt".into() } else { format!("prompt[{prompt}]") }
}

/// The keys of a request.
struct Keys(Map<String, Value>);

impl Keys {
    /// `null` is as good as nothing.
    fn given(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        takes: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let value = self.given(key).map(|value| read(value).ok_or_else(|| must_be(key, takes)));
        value.transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f32>, ApiError> {
        self.read(key, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    fn whole(&self, key: &str) -> Result<Option<i128>, ApiError> {
        self.read(key, "a whole number", whole)
    }

    /// How many answers there shall be to each prompt.
    fn answers(&self) -> Result<usize, ApiError> {
        let answers = match self.whole("n")?.unwrap_or(1) {
            n @ 1.. if n <= ANSWERS as i128 => n,
            _ => return Err(must_be("n", &format!("from 1 to {ANSWERS}"))),
        };
        match self.whole("best_of")?.unwrap_or(answers) {
            best_of if best_of == answers => Ok(answers as usize),
            _ => {
                let message = "best_of must be n: this server gives all the answers that it makes.";
                Err(ApiError::unsupported("best_of", message.into()))
            }
        }
    }

    /// Whether tokens are to be scored, and beside how many of the most probable ones.
    fn scores(&self, kind: Kind) -> Result<Option<usize>, ApiError> {
        let count = |key: &str| match self.whole(key)? {
            None => Ok(None),
            Some(count) => match usize::try_from(count) {
                Ok(count @ ..=TOP) => Ok(Some(count)),
                _ => Err(must_be(key, &format!("a number from 0 to {TOP}"))),
            },
        };
        match kind {
            Kind::Text if self.given("logprobs").is_some_and(|value| value == false) => Ok(None),
            Kind::Text => count("logprobs"),
            Kind::Chat => {
                let wanted = self.read("logprobs", "true or false", Value::as_bool)?.unwrap_or(false);
                match (wanted, count("top_logprobs")?.unwrap_or(0)) {
                    (true, top) => Ok(Some(top)),
                    (false, 0) => Ok(None),
                    (false, _) => {
                        let message = "top_logprobs needs logprobs to be true.";
                        Err(ApiError::bad(Some("top_logprobs"), message.into()))
                    }
                }
            }
        }
    }

    fn refuse_what_is_not_built(&self, kind: Kind) -> Result<(), ApiError> {
        type Neutral<'a> = &'a dyn Fn(&Value) -> bool;
        let empty = |value: &Value| match value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        let zero = |value: &Value| value.as_f64() == Some(0.0);
        let one = |value: &Value| value.as_f64() == Some(1.0);
        let off = |value: &Value| value == false;
        let nothing_to_call = |value: &Value| value == "none" || value == "auto";
        let text = |value: &Value| value["type"] == "text";
        // each with what changes nothing
        let of_kind: &[(&str, Neutral<'_>)] = match kind {
            Kind::Chat => &[("echo", &off)],
            // the number goes to logprobs there
            Kind::Text => &[("top_logprobs", &zero)],
        };
        let of_both: [(&str, Neutral<'_>); 15] = [
            ("suffix", &empty),
            ("presence_penalty", &zero),
            ("frequency_penalty", &zero),
            ("repetition_penalty", &one),
            ("min_p", &zero),
            ("min_tokens", &zero),
            ("ignore_eos", &off),
            ("stop_token_ids", &empty),
            ("prompt_logprobs", &off),
            ("logit_bias", &empty),
            ("tools", &empty),
            ("tool_choice", &nothing_to_call),
            ("functions", &empty),
            ("function_call", &nothing_to_call),
            ("response_format", &text),
        ];
        let changes =
            |(key, neutral): &&(&str, Neutral<'_>)| self.given(key).is_some_and(|value| !neutral(value));
        match of_kind.iter().chain(&of_both).find(changes) {
            None => Ok(()),
            Some((key, _)) => {
                let message = format!("{key} is not supported by this server; leave it out.");
                Err(ApiError::unsupported(key, message))
            }
        }
    }

    fn refuse_what_is_asked_elsewhere(&self, kind: Kind) -> Result<(), ApiError> {
        let (other, key, place) = match kind {
            Kind::Chat => ("prompt", "messages", "/v1/completions"),
            Kind::Text => ("messages", "prompt", "/v1/chat/completions"),
        };
        match self.given(other) {
            None => Ok(()),
            Some(_) => {
                let message = format!("{other} is for {place}: send it there, or {key} here.");
                Err(ApiError::bad(Some(other), message))
            }
        }
    }
}

fn must_be(name: &str, takes: &str) -> ApiError {
    ApiError::bad(Some(name), format!("{name} must be {takes}."))
}

/// A whole number, which some clients write as `4.0`.
fn whole(value: &Value) -> Option<i128> {
    /// Beyond it a float says nothing of ones.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT);
    let integer = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    integer.or_else(|| float().map(|number| number as i128))
}

/// A text, or several.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A text or its tokens, or a list of such.
fn prompts_to_continue(prompt: Option<&Value>) -> Result<Vec<Prompt>, ApiError> {
    let is_prompt = |value: &Value| value.is_string() || value.is_array();
    match prompt {
        Some(Value::Array(list)) if !list.is_empty() && list.iter().all(is_prompt) => {
            let one = |(i, prompt)| prompt_to_continue(&prompt_key(i, list.len()), Some(prompt));
            list.iter().enumerate().map(one).collect()
        }
        one => Ok(vec![prompt_to_continue("prompt", one)?]),
    }
}

fn prompt_to_continue(key: &str, prompt: Option<&Value>) -> Result<Prompt, ApiError> {
    let bad = |message: &str| ApiError::bad(Some(key), format!("{key} {message}"));
    let id = |value: &Value| whole(value).and_then(|id| u32::try_from(id).ok());
    match prompt {
        Some(Value::String(text)) => Ok(Prompt::Text(text.clone())),
        Some(Value::Array(list)) if !list.is_empty() => match list.iter().map(id).collect() {
            Some(ids) => Ok(Prompt::Tokens(ids)),
            None => Err(bad("has something that is neither a text nor the id of a token.")),
        },
        _ => Err(bad("must be a text or an array of token ids, or an array of such.")),
    }
}

fn conversation(messages: &[Value]) -> Result<Conversation, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::bad(Some("messages"), "messages must have at least one message.".into()));
    }
    let message = |(i, message): (usize, &Value)| {
        let name = format!("messages[{i}]");
        let message = message.as_object().ok_or_else(|| must_be(&name, "an object with role and content"))?;
        let name = format!("{name}.role");
        let role = message.get("role").and_then(Value::as_str);
        let role = match role.ok_or_else(|| must_be(&name, "system, developer, user or assistant"))? {
            // OpenAI's newer word, which no template of an open model knows
            "developer" => "system",
            role @ ("system" | "user" | "assistant") => role,
            other => {
                let message =
                    format!("{name} is {other:?}; known are system, developer, user and assistant.");
                return Err(ApiError::bad(Some(&name), message));
            }
        };
        Ok(Conversation::message(role, &content(i, message.get("content"))?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::sampling::SamplingOptions;
    use serde_json::json;

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
        assert_eq!((plain.prompts, plain.answers, plain.echo), (vec![conversation(None, "hi")], 1, false));
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
        let stop = vec!["END".into()];
        let expected = AnswerOptions { max_new_tokens: 4, sampling, stop, scores: None };
        assert_eq!(full.options, expected);
        assert!(full.stream && full.include_usage);
        assert_eq!(full.prompts, [conversation(Some("be kind"), "ab")]);
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
            let stop = vec!["\n\n".into()];
            let expected = AnswerOptions { max_new_tokens: 3, sampling, stop, scores: None };
            assert_eq!((request.prompts, request.options), (vec![Prompt::Text(" a\n".into())], expected));
            assert!(request.stream && !request.include_usage);
        }
        for prompt in [json!(null), json!([]), json!({}), json!(5), json!([[]]), json!([1, "a"]), json!([-1])]
        {
            let error = parse_as(Kind::Text, json!({"prompt": prompt})).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("prompt")));
        }
        for prompt in [json!([1, 2.0]), json!([[1, 2]])] {
            let request = parse_as(Kind::Text, json!({"prompt": prompt})).unwrap();
            assert_eq!(
                (request.key(0), request.prompts),
                ("prompt".into(), vec![Prompt::Tokens(vec![1, 2])])
            );
        }
        for (key, value) in [
            ("best_of", json!(2)),
            ("echo", json!(1)),
            ("suffix", json!("b")),
            ("logprobs", json!(-1)),
            ("logprobs", json!(TOP + 1)),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(1)),
            ("n", json!(0)),
            ("n", json!(ANSWERS + 1)),
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
    fn several_texts_and_several_answers_to_each() {
        let body = json!({"prompt": ["a", [3, 4], "b"], "n": 2, "best_of": 2, "max_tokens": 0, "echo": true, "logprobs": 5});
        let request = parse_as(Kind::Text, body).unwrap();
        let prompts = [Prompt::Text("a".into()), Prompt::Tokens(vec![3, 4]), Prompt::Text("b".into())];
        assert_eq!((&request.prompts[..], request.answers, request.echo), (&prompts[..], 2, true));
        assert_eq!((request.options.max_new_tokens, request.options.scores), (0, Some(5)));
        assert_eq!(request.key(1), "prompt[1]");
        let error = parse_as(Kind::Text, json!({"prompt": ["a", []]})).unwrap_err();
        assert!(error.param.as_deref() == Some("prompt[1]") && error.message.starts_with("prompt[1] "));
        let many = json!({"prompt": vec!["a"; ALL_ANSWERS / 2 + 1], "n": 2});
        assert_eq!(parse_as(Kind::Text, many).unwrap_err().param.as_deref(), Some("prompt"));
        let all = json!({"prompt": vec!["a"; ALL_ANSWERS / 2], "n": 2});
        assert_eq!(parse_as(Kind::Text, all).unwrap().prompts.len(), ALL_ANSWERS / 2);
        let best = parse_as(Kind::Text, json!({"prompt": "a", "n": 2, "best_of": 1})).unwrap_err();
        assert_eq!(best.param.as_deref(), Some("best_of"));
    }

    #[test]
    fn scores_are_asked_for_in_two_ways_and_not_streamed() {
        let scores = |kind, more: Value| {
            let mut body = match kind {
                Kind::Chat => json!({"messages": [{"role": "user", "content": "hi"}]}),
                Kind::Text => json!({"prompt": "a"}),
            };
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parse_as(kind, body).map(|request| request.options.scores)
        };
        assert_eq!(scores(Kind::Text, json!({"logprobs": 0})), Ok(Some(0)));
        assert_eq!(scores(Kind::Text, json!({"logprobs": false})), Ok(None));
        assert_eq!(scores(Kind::Chat, json!({"logprobs": true})), Ok(Some(0)));
        assert_eq!(scores(Kind::Chat, json!({"logprobs": true, "top_logprobs": TOP})), Ok(Some(TOP)));
        assert_eq!(scores(Kind::Chat, json!({"logprobs": false, "top_logprobs": 0})), Ok(None));
        for (kind, body) in [
            (Kind::Text, json!({"logprobs": 1, "stream": true})),
            (Kind::Chat, json!({"logprobs": true, "stream": true})),
        ] {
            let error = scores(kind, body).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some("logprobs"), Some("unsupported_parameter"))
            );
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (key, value) in [
            ("n", json!(0)),
            ("best_of", json!(2)),
            ("echo", json!(true)),
            ("max_tokens", json!(0)),
            ("temperature", json!(-1)),
            ("top_p", json!(0)),
            ("top_k", json!(-2)),
            ("stop", json!(vec!["a"; STOPS + 1])),
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("tool_choice", json!({"type": "function"})),
            ("logprobs", json!(1)),
            ("prompt_logprobs", json!(0)),
            ("top_logprobs", json!(3)),
            ("presence_penalty", json!(0.5)),
            ("repetition_penalty", json!(1.1)),
            ("min_p", json!(0.05)),
            ("min_tokens", json!(3)),
            ("ignore_eos", json!(true)),
            ("stop_token_ids", json!([2])),
            ("response_format", json!({"type": "json_object"})),
            ("prompt", json!("hi")),
            // of another type
            ("n", json!("1")),
            ("stop", json!(5)),
            ("stop", json!(["a", 5])),
            ("max_tokens", json!(-2)),
            ("max_tokens", json!(4.5)),
            ("max_completion_tokens", json!("4")),
            ("temperature", json!("0.5")),
            ("top_k", json!([])),
            ("seed", json!(1e300)),
            ("stream", json!(1)),
            ("stream_options", json!(true)),
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
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "hi"}]), "messages[0].role"),
            (json!([{"role": "king", "content": "hi"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
        ] {
            assert_eq!(parse(json!({"messages": messages})).unwrap_err().param.as_deref(), Some(param));
        }
        for broken in [json!({}), json!([1]), json!("hi")] {
            assert_eq!(parse(broken).unwrap_err().status, 400);
        }
        let elsewhere = parse_as(Kind::Text, json!({"messages": [], "prompt": "a"})).unwrap_err();
        assert_eq!(elsewhere.param.as_deref(), Some("messages"));
        assert!(elsewhere.message.contains("/v1/chat/completions"), "{}", elsewhere.message);
        let of_usage = json!({"messages": [], "stream_options": {"include_usage": 1}});
        assert_eq!(parse(of_usage).unwrap_err().param.as_deref(), Some("stream_options.include_usage"));
    }

    #[test]
    fn numbers_are_read_as_clients_write_them_and_what_changes_nothing_is_taken() {
        let request = parse(json!({
            "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4.0, "max_completion_tokens": -1,
            "top_k": 3.0, "seed": u64::MAX, "temperature": 1, "n": 1.0, "repetition_penalty": 1.0, "min_p": 0,
            "min_tokens": 0, "ignore_eos": false, "stop_token_ids": [], "prompt_logprobs": null,
            "top_logprobs": 0, "tool_choice": "auto", "prompt": null, "stop": null, "stream": null,
            "stream_options": {"include_usage": null},
        }));
        let request = request.unwrap();
        assert_eq!(request.options.max_new_tokens, 4);
        let sampling = &request.options.sampling;
        assert_eq!((sampling.top_k, sampling.seed, sampling.temperature), (Some(3), u64::MAX, 1.0));
        let left_out = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": -1});
        assert_eq!(parse(left_out).unwrap().options.max_new_tokens, 9);
    }
}
