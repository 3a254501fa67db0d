//! The terminal as a whole screen, and back: after the run, an error, a panic, and where the process ends at once.

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, Stdout};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

pub type Screen = Terminal<CrosstermBackend<Stdout>>;

/// Whether the screen is taken. Held while drawing, so that nothing is drawn after it was given back.
static TAKEN: Mutex<bool> = Mutex::new(false);

/// Takes the screen; [`leave`] gives it back.
///
/// # Errors
/// A terminal that refuses.
pub fn enter() -> io::Result<Screen> {
    enable_raw_mode()?;
    if let Some(mut taken) = lock() {
        *taken = true;
    }
    let screen = execute!(io::stdout(), EnterAlternateScreen)
        .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
    screen.inspect_err(|_| leave())
}

/// Draws, unless the screen was given back meanwhile.
///
/// # Errors
/// A terminal that is gone.
pub fn draw(screen: &mut Screen, view: impl FnOnce(&mut ratatui::Frame)) -> io::Result<()> {
    match lock() {
        Some(taken) if *taken => screen.draw(view).map(|_| ()),
        _ => Ok(()),
    }
}

pub fn is_taken() -> bool {
    // held for long only by one who draws
    lock().is_none_or(|taken| *taken)
}

/// Gives the screen back; does nothing where it is not taken. A terminal that is gone needs nothing.
pub fn leave() {
    let mut held = lock();
    if held.as_mut().is_none_or(|taken| std::mem::replace(taken, false)) {
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    }
}

/// `None` where it is held for long: a panic while drawing calls [`leave`] on the thread that holds it already, and a terminal
/// that does not take what is drawn must not keep the process from ending.
fn lock() -> Option<MutexGuard<'static, bool>> {
    for _ in 0..100 {
        match TAKEN.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(guard)) => return Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    None
}
