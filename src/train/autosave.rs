//! When a run saves on its own account: by time, where it was not told at which steps. The newest of these saves stays until the run
//! has its result.

use super::options::FinetuneOptions;
use std::time::{Duration, Instant};

/// Of the time of a run, these saves take no more than one part in so many, however large what is trained.
const SHARE: u32 = 20;

pub(super) struct Autosave {
    /// Between saves; `None` for never.
    every: Option<Duration>,
    /// When the last save ended, or the run began, and how long that save took.
    last: Instant,
    took: Duration,
}

impl Autosave {
    /// For a run that begins, or goes on, now.
    pub fn new(options: &FinetuneOptions) -> Self {
        let every = options.autosave.filter(|_| options.save_interval.is_none());
        Autosave { every: every.map(Duration::from_secs_f64), last: Instant::now(), took: Duration::ZERO }
    }

    pub fn is_due(&self) -> bool {
        self.is_due_after(self.last.elapsed())
    }

    fn is_due_after(&self, elapsed: Duration) -> bool {
        self.every.is_some_and(|every| elapsed >= every.max(self.took * SHARE))
    }

    /// A step was saved, or could not be, which took this long.
    pub fn saved(&mut self, took: Duration) {
        (self.last, self.took) = (Instant::now(), took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_that_take_long_are_rare() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let mut autosave = Autosave::new(&FinetuneOptions::default());
        assert_eq!([19, 20].map(|n| autosave.is_due_after(minutes(n))), [false, true]);
        assert!(!autosave.is_due());
        autosave.saved(minutes(2));
        assert_eq!([39, 40].map(|n| autosave.is_due_after(minutes(n))), [false, true]);
        for (autosave, save_interval) in [(None, None), (Some(1.0), Some(10))] {
            let options = FinetuneOptions { autosave, save_interval, ..FinetuneOptions::default() };
            assert!(!Autosave::new(&options).is_due_after(minutes(1000)), "{save_interval:?}");
        }
    }
}
