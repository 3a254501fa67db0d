//! What the live view knows: the events of a run so far.

use crate::train::axis::{Axis, Scale, range};
use crate::train::figures::{smoothed, smoothing_span};
use crate::train::metrics::{Event, RunSummary, StepRecord, ValidationProgress};
use std::path::Path;
use std::time::Instant;

/// Notes that are kept.
const NOTES: usize = 100;

#[derive(Default)]
pub struct State {
    /// Name of the run: its folder.
    pub title: String,
    pub run: Option<RunSummary>,
    pub last: Option<StepRecord>,
    /// `[step, value]` of every step or evaluation.
    pub loss: Vec<[f64; 2]>,
    pub val_loss: Vec<[f64; 2]>,
    pub learning_rate: Vec<[f64; 2]>,
    pub grad_norm: Vec<[f64; 2]>,
    pub tokens_per_s: Vec<[f64; 2]>,
    /// Lines for the user, the newest last.
    pub notes: Vec<String>,
    /// What is done before the first step.
    pub preparing: Option<String>,
    /// The validation under way.
    pub validating: Option<ValidationProgress>,
    /// When this part of the run began, and after which step.
    began: Option<(Instant, usize)>,
    /// Events for the summary after the run.
    kept: Kept,
}

/// The events that are shown again as lines when the screen is given back.
#[derive(Default)]
struct Kept {
    notes: Vec<Event>,
    started: Option<Event>,
    evaluation: Option<Event>,
    /// Those of the last evaluation that wrote any.
    samples: Vec<Event>,
    saved: Option<Event>,
    finished: Option<Event>,
}

impl State {
    pub fn new(out_dir: &Path) -> Self {
        State { title: out_dir.display().to_string(), ..State::default() }
    }

    pub fn apply(&mut self, event: Event) {
        match &event {
            Event::Tuned(progress) => {
                let (done, total, class) = (progress.done, progress.total, &progress.measurement.class);
                self.preparing = Some(format!("measuring kernels, {done} of {total}: {class}"));
            }
            Event::Started(run) => {
                self.run = Some(run.clone());
                self.preparing = None;
                self.kept.started = Some(event);
            }
            Event::Step(record) => {
                let now = Instant::now();
                self.began.get_or_insert((now, record.step));
                let mut push = |series: fn(&mut Self) -> &mut Vec<[f64; 2]>, value: f64| {
                    series(self).push([record.step as f64, value]);
                };
                push(|s| &mut s.loss, record.loss);
                push(|s| &mut s.learning_rate, record.learning_rate);
                push(|s| &mut s.grad_norm, record.grad_norm);
                push(|s| &mut s.tokens_per_s, record.tokens_per_s);
                self.last = Some(record.clone());
            }
            Event::Validating(progress) => {
                self.validating = Some(*progress).filter(|progress| progress.done < progress.all);
            }
            Event::Evaluation(record) => {
                self.val_loss.push([record.step as f64, record.val_loss]);
                let text =
                    format!("validation loss {:.4}, perplexity {:.3}", record.val_loss, record.val_ppl);
                self.note(&format!("step {}: {text}", record.step));
                self.kept.evaluation = Some(event);
            }
            Event::Sample(record) => {
                self.note(&record.to_string());
                let earlier = |kept: &Event| matches!(kept, Event::Sample(kept) if kept.step < record.step);
                self.kept.samples.retain(|kept| !earlier(kept));
                self.kept.samples.push(event);
            }
            Event::Saved { step, path } => {
                self.note(&format!("step {step}: saved {}", path.display()));
                self.kept.saved = Some(event);
            }
            Event::Overflow { step, scale } => {
                self.note(&format!("step {step}: skipped, its f16 gradients overflowed; loss scale {scale}"));
            }
            Event::Note(text) => {
                self.note(text);
                self.kept.notes.push(event);
            }
            Event::Finished { .. } => self.kept.finished = Some(event),
        }
    }

    pub fn note(&mut self, text: &str) {
        self.notes.extend(text.lines().map(str::to_owned));
        let surplus = self.notes.len().saturating_sub(NOTES);
        self.notes.drain(..surplus);
    }

    /// What lines would have said, without the steps between.
    pub fn summary(self) -> Vec<Event> {
        let Kept { notes, started, evaluation, samples, saved, finished } = self.kept;
        let step = self.last.map(Event::Step);
        let start = notes.into_iter().chain(started).chain(step).chain(evaluation);
        start.chain(samples).chain(saved).chain(finished).collect()
    }

    pub fn steps(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.steps)
    }

    /// Seconds to the end, from the pace of this part of the run, evaluations included.
    pub fn eta(&self) -> Option<f64> {
        let (began, first) = self.began?;
        let done = self.last.as_ref()?.step;
        let pace = began.elapsed().as_secs_f64() / done.checked_sub(first).filter(|&n| n > 0)? as f64;
        Some(pace * self.steps().saturating_sub(done) as f64)
    }

    /// The loss as a smooth line.
    pub fn smooth_loss(&self) -> Vec<[f64; 2]> {
        smoothed(&self.loss, smoothing_span(self.loss.len()))
    }
}

/// The axis of values over several series; `None` where none has a finite one.
pub fn axis_over(scale: Scale, series: &[&[[f64; 2]]]) -> Option<Axis> {
    let values = series.iter().flat_map(|points| points.iter()).map(|[_, y]| *y);
    range(values.filter(|y| y.is_finite())).map(|(low, high)| Axis::new(scale, low, high))
}
