//! The thread that owns the device: one request after the other.

use super::api::{ApiError, Prompt, Request};
use super::{Event, Job, Stop};
use crate::error::{Error, Failure};
use crate::generate::{Answer, Chat, Finish};
use crate::gpu::GpuError;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often an idle thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(
    queue: &Receiver<Job>,
    chat: &mut Chat<'_>,
    stop: &Stop,
    log: &(dyn Fn(&str) + Sync),
) -> Result<(), Error> {
    while !stop.is_asked() {
        let job = match queue.recv_timeout(LOOK) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if job.events.is_closed() {
            log("a client left before its turn");
            continue;
        }
        match answer(chat, &job, stop) {
            Ok(answer) => {
                log(&line(&answer));
                // nobody may be listening any more
                let _ = job.events.send(Event::Done(answer));
            }
            Err(error) => {
                log(&format!("refused: {error}"));
                let lost = matches!(error.gpu(), Some(GpuError::Lost(_)));
                let _ = job.events.send(Event::Failed(refusal(&error, &job.request.prompt)));
                if lost {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn answer(chat: &mut Chat<'_>, job: &Job, stop: &Stop) -> Result<Answer, Error> {
    let Request { prompt, options, .. } = &job.request;
    let (tokens, talks) = match prompt {
        Prompt::Conversation(conversation) => (chat.prompt(conversation)?, true),
        Prompt::Text(text) => (chat.prompt_of_text(text)?, false),
        Prompt::Tokens(tokens) => (chat.prompt_of_tokens(tokens)?, false),
    };
    let _ = job.events.send(Event::Started);
    let mut on_text = |text: &str| {
        if !text.is_empty() {
            // who left is seen below
            let _ = job.events.send(Event::Text(text.to_owned()));
        }
        let left = job.events.is_closed() || stop.is_asked();
        if left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match talks {
        true => chat.answer(&tokens, options, &mut on_text),
        false => chat.go_on(&tokens, options, &mut on_text),
    }
}

/// What is told of an error that `prompt` came to.
fn refusal(error: &Error, prompt: &Prompt) -> ApiError {
    use crate::generate::GenerateError;
    let key = prompt.key();
    match error {
        Error::Generate(GenerateError::UnknownToken { token, vocabulary })
            if matches!(prompt, Prompt::Tokens(_)) =>
        {
            ApiError::bad(
                Some(key),
                format!(
                    "{key} has the token id {token}, and the model's vocabulary ends at {}.",
                    vocabulary - 1
                ),
            )
        }
        Error::Generate(GenerateError::ContextFull { prompt, context, .. }) => ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::bad(
                Some(key),
                format!(
                    "This model's context is {context} tokens, but {key} comes to {prompt} tokens: shorten it."
                ),
            )
        },
        Error::Generate(GenerateError::NoPrompt) => {
            ApiError::bad(Some(key), format!("{key} has no tokens: there is nothing to continue."))
        }
        _ if error.failure() == Failure::Input => ApiError::bad(Some(key), error.to_string()),
        _ => ApiError::server(500, error.to_string()),
    }
}

fn line(answer: &Answer) -> String {
    let rate = if answer.seconds > 0.0 { answer.tokens as f64 / answer.seconds } else { 0.0 };
    let end = match answer.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Caller => "cut, the client has gone",
    };
    format!(
        "{} tokens, {rate:.1} tokens/s; prompt {} tokens, {} of them new, {:.2}s; {end}",
        answer.tokens,
        answer.prompt_tokens,
        answer.prompt_tokens - answer.reused,
        answer.prompt_seconds,
    )
}
