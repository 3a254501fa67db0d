//! A model behind OpenAI's API for completions, of chats and of texts.
//!
//! Two threads: one speaks HTTP (axum), the caller's own answers, because one device makes one answer at a time. Requests
//! wait in a queue of limited length. An answer goes back event by event; where its client is gone, the receiver of the
//! events is dropped, and the next piece of text that cannot be sent ends the generation.

mod api;
mod http;
mod names;
mod worker;

use crate::error::Error;
use crate::generate::{AnswerOptions, Chat};
use api::{Choice, Request, Usage};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Requests that may wait for the device; more are refused, for their clients would give up before their turn.
const QUEUE: usize = 64;

/// What a server says and does where a request does not.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The name under which `/v1/models` shows the model.
    pub model: String,
    pub answer: AnswerOptions,
    /// Only requests to `localhost` or a loopback address are answered: a page in a browser that makes its own name mean this
    /// machine (DNS rebinding) is not.
    pub local_names_only: bool,
    /// What requests have to bring as `Authorization: Bearer KEY`, but for `/health`.
    pub api_key: Option<String>,
}

/// Ends a server from anywhere.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl Stop {
    /// The answer that is being made is cut, and [`serve`] comes back. Gives whether it was asked for before.
    pub fn stop(&self) -> bool {
        let before = self.asked.swap(true, Ordering::Relaxed);
        self.wake.notify_one();
        before
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A request on its way to the device.
struct Job {
    request: Request,
    events: UnboundedSender<Event>,
}

/// What becomes of a request.
enum Event {
    /// Its prompts are whole and fit: the answers begin.
    Started,
    /// The answer of this index begins.
    Begun(usize),
    /// A piece of it.
    Text(usize, String),
    Answered(Choice),
    /// There are no more.
    Done(Usage),
    Failed(api::ApiError),
}

/// Answers requests on `listener` until it is stopped. `log` hears a line per answer.
///
/// # Errors
/// The listener cannot be used; a device that was lost.
pub fn serve(
    listener: TcpListener,
    chat: &mut Chat<'_>,
    options: &ServeOptions,
    stop: &Stop,
    log: &(dyn Fn(&str) + Sync),
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::input(format!("the server cannot start: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (jobs, queue) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let http = scope.spawn(|| {
            let result = runtime.block_on(http::run(listener, jobs, options, stop));
            // whatever ended it, nothing is to be answered any more
            stop.stop();
            result
        });
        let result = worker::run(&queue, chat, stop, log);
        stop.stop();
        // who waits is told by a channel that closes
        drop(queue);
        let http = http.join().unwrap_or_else(|_| Err(io::Error::other("the thread for HTTP ended early")));
        result.and(http.map_err(|error| Error::input(format!("the server ended: {error}"))))
    })
}
