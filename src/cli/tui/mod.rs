//! `--tui`: a run as a live view of the whole terminal.
//!
//! A thread of its own owns the screen, so that it stays alive while a step computes: events of the run reach it through a channel,
//! keys by the terminal. In raw mode Ctrl-C is a key like others.

mod state;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

pub use terminal::{is_taken, leave};

use super::args::Exit;
use super::progress::{Progress, ProgressMode};
use crate::error::Error;
use crate::train::metrics::Event;
use crate::train::tuning::forget_trials;
use ratatui::crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};
use state::State;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use terminal::Screen;

/// How long a key or an event may wait.
const TICK: Duration = Duration::from_millis(50);
/// How long the screen may be old while nothing happens: the estimate of the end goes on.
const REDRAW: Duration = Duration::from_millis(500);

/// The live view of one run. The screen is taken at the first event, when the input is known to be right, and given back when this
/// is dropped.
pub struct Tui {
    out_dir: PathBuf,
    stop: Arc<AtomicBool>,
    running: Option<(Sender<Event>, JoinHandle<State>)>,
    /// Shows lines where the terminal refused.
    lines: Option<Progress>,
}

impl Tui {
    /// A view of the run in `out_dir`, whose keys set `stop`.
    ///
    /// # Errors
    /// Standard output is no terminal, or nothing is to be shown.
    pub fn new(out_dir: &Path, stop: Arc<AtomicBool>, quiet: bool) -> Result<Self, Error> {
        if quiet {
            return Err(Error::input(
                "--tui and --quiet: one shows the run and the other does not; leave one out",
            ));
        }
        if !io::stdout().is_terminal() {
            return Err(Error::input(
                "--tui draws on the terminal, and standard output is none; leave it out, or redirect standard error alone",
            ));
        }
        Ok(Tui { out_dir: out_dir.to_path_buf(), stop, running: None, lines: None })
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        if self.running.is_none() && self.lines.is_none() {
            match terminal::enter() {
                Ok(screen) => {
                    let (sender, events) = channel();
                    let (state, stop) = (State::new(&self.out_dir), Arc::clone(&self.stop));
                    let thread = std::thread::spawn(move || run(screen, state, &events, &stop));
                    self.running = Some((sender, thread));
                }
                Err(error) => {
                    let mut lines = Progress::new(ProgressMode::Lines);
                    lines.show(&Event::Note(format!("--tui: the terminal refuses ({error}); lines instead")));
                    self.lines = Some(lines);
                }
            }
        }
        match (&self.running, &mut self.lines) {
            // a view that has ended must not end the run
            (Some((sender, _)), _) => drop(sender.send(event.clone())),
            (None, Some(lines)) => lines.show(event),
            (None, None) => (),
        }
    }
}

impl Drop for Tui {
    /// Gives the screen back, and says in lines what the run did.
    fn drop(&mut self) {
        let Some((sender, thread)) = self.running.take() else { return };
        drop(sender);
        let state = thread.join();
        terminal::leave();
        if let Ok(state) = state {
            let mut lines = Progress::new(ProgressMode::Lines);
            state.summary().iter().for_each(|event| lines.show(event));
        }
    }
}

/// Draws until the run's end of the channel is closed, or the terminal is gone.
fn run(mut screen: Screen, mut state: State, events: &Receiver<Event>, stop: &AtomicBool) -> State {
    let mut drawn: Option<Instant> = None;
    let mut there = true;
    loop {
        let mut news = false;
        loop {
            match events.try_recv() {
                Ok(event) => {
                    state.apply(event);
                    news = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return state,
            }
        }
        if there {
            news |= keys(stop).unwrap_or_else(|_| {
                there = false;
                false
            });
        } else {
            std::thread::sleep(TICK);
        }
        if there && (news || drawn.is_none_or(|when| when.elapsed() >= REDRAW)) {
            let stopping = stop.load(Ordering::Relaxed);
            there = terminal::draw(&mut screen, |frame| view::draw(frame, &state, stopping)).is_ok();
            drawn = Some(Instant::now());
        }
    }
}

/// Waits a little for a key or another size; gives whether there is something to draw.
fn keys(stop: &AtomicBool) -> io::Result<bool> {
    if !event::poll(TICK)? {
        return Ok(false);
    }
    let event::Event::Key(key) = event::read()? else { return Ok(true) };
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    if key.kind == KeyEventKind::Press && (interrupts || key.code == KeyCode::Char('q')) {
        interrupt(stop);
    }
    Ok(true)
}

/// The first time the run finishes its step and saves, the second time it ends at once.
pub fn interrupt(stop: &AtomicBool) {
    if stop.swap(true, Ordering::Relaxed) {
        leave();
        forget_trials();
        std::process::exit(i32::from(Exit::Stopped as u8));
    }
}
