//! OpenAI's completions, of chats and of texts, as JSON: what a request may say, and what is said back.

mod reply;
mod request;

pub(super) use reply::{Choice, Head, Name, NamedToken, Usage};
pub(super) use request::{Prompt, Request};

use serde_json::{Value, json};

/// What a path answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`, which OpenAI calls legacy.
    Text,
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

    pub(super) fn unsupported(param: &str, message: String) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::bad(Some(param), message) }
    }

    pub(super) fn server(status: u16, message: String) -> Self {
        ApiError { status, message, param: None, code: None }
    }

    pub(super) fn json(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}
