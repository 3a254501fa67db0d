//! The thread that owns the device: one request after the other.

use super::api::{ApiError, Choice, NamedToken, Prompt, Request, Usage};
use super::names::named;
use super::{Event, Job, Stop};
use crate::error::{Error, Failure};
use crate::generate::{Answer, AnswerOptions, Chat, Finish, ScoredToken};
use crate::gpu::GpuError;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

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
        let mut work = Work { chat: &mut *chat, job: &job, stop, prompt: 0, done: Done::default() };
        if work.left() {
            log("a client left before its turn");
            continue;
        }
        match work.run() {
            Ok(()) => {
                log(&work.done.line(stop.is_asked()));
                let whole = work.done.answers == job.request.prompts.len() * job.request.answers;
                // nobody may be listening any more
                let _ = job.events.send(match whole {
                    true => Event::Done(work.done.usage),
                    false => Event::Failed(ApiError::server(503, "The server is ending.".into())),
                });
            }
            Err(error) => {
                log(&format!("refused: {error}"));
                let lost = matches!(error.gpu(), Some(GpuError::Lost(_)));
                let _ = job.events.send(Event::Failed(refusal(&error, &job.request, work.prompt)));
                if lost {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Limit of tokens that the scores of one request name: some hundred bytes each until all are sent.
const NAMES: usize = 2_000_000;

/// A request that is being answered.
struct Work<'a, 't> {
    chat: &'a mut Chat<'t>,
    job: &'a Job,
    stop: &'a Stop,
    /// The number of the prompt in hand.
    prompt: usize,
    done: Done,
}

/// What was done for a request.
#[derive(Default)]
struct Done {
    usage: Usage,
    answers: usize,
    prompt_seconds: f64,
    seconds: f64,
    finish: Option<Finish>,
}

impl Work<'_, '_> {
    /// Nobody waits for more.
    fn left(&self) -> bool {
        self.job.events.is_closed() || self.stop.is_asked()
    }

    /// All answers to all prompts.
    fn run(&mut self) -> Result<(), Error> {
        let mut prompts = Vec::new();
        for (i, prompt) in self.job.request.prompts.iter().enumerate() {
            self.prompt = i;
            prompts.push(self.tokens(prompt)?);
        }
        self.check_scores(&prompts)?;
        let _ = self.job.events.send(Event::Started);
        for (i, tokens) in prompts.iter().enumerate() {
            if self.done.finish == Some(Finish::Caller) || self.left() {
                self.done.finish = Some(Finish::Caller);
                break;
            }
            self.prompt = i;
            self.answer_all(tokens)?;
        }
        Ok(())
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let new = self.job.request.options.max_new_tokens;
        match prompt {
            Prompt::Conversation(conversation) => self.chat.prompt(conversation),
            Prompt::Text(text) => self.chat.prompt_of_text(text, new),
            Prompt::Tokens(tokens) => self.chat.prompt_of_tokens(tokens, new),
        }
    }

    /// Whether what is to be said of all tokens keeps within bounds.
    fn check_scores(&mut self, prompts: &[Vec<u32>]) -> Result<(), Error> {
        let request = &self.job.request;
        let Some(top) = request.options.scores else { return Ok(()) };
        let mut all = 0;
        for (i, prompt) in prompts.iter().enumerate() {
            let left = self.chat.context().saturating_sub(prompt.len());
            let new = request.options.max_new_tokens.min(left);
            let shown = if request.echo { prompt.len() + new } else { new };
            all += shown * request.answers * (top + 2);
            if all > NAMES {
                self.prompt = i;
                return Err(Error::input(format!(
                    "the scores of all answers would be more than {NAMES} tokens with their probabilities; ask for fewer \
                     answers, texts or logprobs at a time"
                )));
            }
        }
        Ok(())
    }

    /// The scores of a prompt's tokens by name, for an answer that begins with it.
    fn scored(&mut self, tokens: &[u32], top: usize) -> Result<(Vec<NamedToken>, usize), Error> {
        let began = Instant::now();
        let (scores, held) = self.chat.score(tokens, top)?;
        self.done.prompt_seconds += began.elapsed().as_secs_f64();
        let tokenizer = self.chat.tokenizer();
        let starts = match &self.job.request.prompts[self.prompt] {
            Prompt::Text(text) => tokenizer.starts(text)?,
            _ => tokenizer.decode_stream().starts(tokens),
        };
        let scored = scores.into_iter().zip(starts).map(|(score, start)| ScoredToken { score, start });
        Ok((named(tokenizer, scored.collect(), 0), held))
    }

    /// The answers to one prompt.
    fn answer_all(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let prompt = self.prompt;
        let request = &self.job.request;
        let mut echo = String::new();
        let (mut scored, mut held) = (Vec::new(), usize::MAX);
        if request.echo {
            echo = match &request.prompts[prompt] {
                Prompt::Text(text) => text.clone(),
                _ => self.chat.tokenizer().decode(tokens)?,
            };
            if let Some(top) = request.options.scores {
                (scored, held) = self.scored(tokens, top)?;
            }
        }
        self.done.usage.prompt += tokens.len();
        let mut options = request.options.clone();
        for answer in 0..request.answers {
            let index = prompt * request.answers + answer;
            // who names a seed gets what one answer alone would be
            let after = if request.seeded { answer } else { index };
            options.sampling.seed = request.options.sampling.seed.wrapping_add(after as u64);
            let _ = self.job.events.send(Event::Begun(index));
            if !echo.is_empty() {
                let _ = self.job.events.send(Event::Text(index, echo.clone()));
            }
            let mut said = self.answer(tokens, &options, index)?;
            if matches!(request.prompts[prompt], Prompt::Conversation(_)) {
                // the end of a turn is no part of a message
                said.scores.truncate(said.tokens);
            }
            // of several answers the first is the one that finds the prompt new
            if answer == 0 {
                self.done.usage.cached += held.min(said.reused);
            }
            self.done.add(&said);
            if said.finish == Finish::Caller {
                // cut: nobody is there, or will be told that the server ends
                break;
            }
            let scores = options.scores.map(|_| {
                let mut all = scored.clone();
                all.extend(named(self.chat.tokenizer(), said.scores, echo.chars().count()));
                all
            });
            let text = format!("{echo}{}", said.text);
            let choice = Choice { index, text, finish: said.finish, tokens: scores };
            let _ = self.job.events.send(Event::Answered(choice));
        }
        Ok(())
    }

    fn answer(&mut self, tokens: &[u32], options: &AnswerOptions, index: usize) -> Result<Answer, Error> {
        let (job, stop) = (self.job, self.stop);
        let mut on_text = |text: &str| {
            if !text.is_empty() {
                // who left is seen below
                let _ = job.events.send(Event::Text(index, text.to_owned()));
            }
            let left = job.events.is_closed() || stop.is_asked();
            if left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match job.request.prompts[self.prompt] {
            Prompt::Conversation(_) => self.chat.answer(tokens, options, &mut on_text),
            Prompt::Text(_) | Prompt::Tokens(_) => self.chat.go_on(tokens, options, &mut on_text),
        }
    }
}

impl Done {
    fn add(&mut self, answer: &Answer) {
        self.usage.answer += answer.tokens;
        self.answers += usize::from(answer.finish != Finish::Caller);
        self.prompt_seconds += answer.prompt_seconds;
        self.seconds += answer.seconds;
        self.finish = Some(answer.finish);
    }

    fn line(&self, ending: bool) -> String {
        let Usage { prompt, cached, answer } = self.usage;
        // the first token of each comes with the prompt
        let timed = answer > self.answers.max(1) && self.seconds > 0.0;
        let rate =
            if timed { format!(", {:.1} tokens/s", answer as f64 / self.seconds) } else { String::new() };
        let count = if self.answers < 2 { String::new() } else { format!("{} answers, ", self.answers) };
        let end = match self.finish {
            Some(Finish::Caller) if ending => "; cut, the server is ending",
            Some(Finish::Caller) => "; cut, the client has gone",
            _ if self.answers > 1 => "",
            Some(Finish::Stop) => "; stop",
            Some(Finish::Length) => "; length",
            None => "",
        };
        format!(
            "{count}{answer} tokens{rate}; prompt {prompt} tokens, {} of them new, {:.2}s{end}",
            prompt - cached,
            self.prompt_seconds,
        )
    }
}

/// What is told of an error that one of a request's prompts came to.
fn refusal(error: &Error, request: &Request, prompt: usize) -> ApiError {
    use crate::generate::GenerateError;
    let key = &request.key(prompt);
    match error {
        Error::Generate(GenerateError::UnknownToken { token, vocabulary })
            if matches!(request.prompts[prompt], Prompt::Tokens(_)) =>
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
