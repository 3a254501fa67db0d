//! What is said back: completions whole and as chunks of a stream.

use super::Kind;
use crate::generate::Finish;
use serde_json::{Map, Value, json};

/// What every answer and every chunk of one begins with.
#[derive(Clone, Debug)]
pub(in crate::serve) struct Head {
    kind: Kind,
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
}

/// One of the answers to a request.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::serve) struct Choice {
    pub(in crate::serve) index: usize,
    pub(in crate::serve) text: String,
    pub(in crate::serve) finish: Finish,
    pub(in crate::serve) tokens: Option<Vec<NamedToken>>,
}

/// How a token is called where its text stands by itself.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::serve) struct Name {
    pub(in crate::serve) text: String,
    /// The text is the token's own, rather than what the vocabulary calls it.
    pub(in crate::serve) exact: bool,
}

/// A token of a text, scored.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::serve) struct NamedToken {
    pub(in crate::serve) name: Name,
    pub(in crate::serve) log_probability: Option<f32>,
    /// The most probable ones in its place, falling.
    pub(in crate::serve) top: Vec<(Name, f32)>,
    /// Characters of the text before it.
    pub(in crate::serve) start: usize,
}

/// Tokens of all prompts and answers of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::serve) struct Usage {
    pub(in crate::serve) prompt: usize,
    /// Of the prompts' how many did not run.
    pub(in crate::serve) cached: usize,
    pub(in crate::serve) answer: usize,
}

impl Head {
    pub(in crate::serve) fn new(kind: Kind, number: &str, created: u64, model: &str) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Head { kind, id: format!("{prefix}-{number}"), created, model: model.to_owned() }
    }

    /// All answers.
    pub(in crate::serve) fn completion(&self, choices: &[Choice], usage: &Usage) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => TEXT,
        };
        let choices: Vec<Value> = choices.iter().map(|choice| self.whole(choice)).collect();
        let mut completion = self.object(object, json!(choices));
        completion["usage"] = usage.json();
        completion
    }

    fn whole(&self, answer: &Choice) -> Value {
        let (key, said) = match self.kind {
            Kind::Chat => ("message", json!({"role": "assistant", "content": answer.text})),
            Kind::Text => ("text", json!(answer.text)),
        };
        let mut whole = choice(answer.index, key, said, Some(finish_reason(answer.finish)));
        if let Some(tokens) = &answer.tokens {
            whole["logprobs"] = match self.kind {
                Kind::Chat => of_chat(tokens),
                Kind::Text => of_text(tokens),
            };
        }
        whole
    }

    /// The first chunk of one answer of a stream, where its text has something before it.
    pub(in crate::serve) fn first(&self, index: usize) -> Option<Value> {
        let role = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(json!([choice(index, "delta", role, None)])))
    }

    pub(in crate::serve) fn text(&self, index: usize, text: &str) -> Value {
        self.chunk(json!([match self.kind {
            Kind::Chat => choice(index, "delta", json!({"content": text}), None),
            Kind::Text => choice(index, "text", json!(text), None),
        }]))
    }

    pub(in crate::serve) fn last(&self, answer: &Choice) -> Value {
        let (key, nothing) = match self.kind {
            Kind::Chat => ("delta", json!({})),
            Kind::Text => ("text", json!("")),
        };
        self.chunk(json!([choice(answer.index, key, nothing, Some(finish_reason(answer.finish)))]))
    }

    pub(in crate::serve) fn usage(&self, usage: &Usage) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage.json();
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

fn choice(index: usize, key: &str, said: Value, finish_reason: Option<&str>) -> Value {
    json!({"index": index, key: said, "logprobs": null, "finish_reason": finish_reason})
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        // what a caller cuts is not shown
        Finish::Length | Finish::Caller => "length",
    }
}

/// `logprobs` of a chat.
fn of_chat(tokens: &[NamedToken]) -> Value {
    let one = |name: &Name, log_probability: Option<f32>| {
        let bytes = name.exact.then_some(name.text.as_bytes());
        json!({"token": name.text, "logprob": log_probability, "bytes": bytes})
    };
    let content = tokens.iter().map(|token| {
        let mut own = one(&token.name, token.log_probability);
        own["top_logprobs"] = token.top.iter().map(|(name, value)| one(name, Some(*value))).collect();
        own
    });
    json!({"content": content.collect::<Value>(), "refusal": null})
}

/// `logprobs` of a text: lists of equal lengths.
fn of_text(tokens: &[NamedToken]) -> Value {
    let top = |token: &NamedToken| {
        let own = token.log_probability?;
        let mut top: Map<String, Value> =
            token.top.iter().map(|(name, value)| (name.text.clone(), json!(value))).collect();
        // among the most probable or not
        top.insert(token.name.text.clone(), json!(own));
        Some(top)
    };
    json!({
        "tokens": tokens.iter().map(|token| token.name.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.log_probability).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.start).collect::<Vec<_>>(),
    })
}

impl Usage {
    fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}
