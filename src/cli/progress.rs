//! Shows a run on the terminal: a bar where there is one, plain lines where there is none.
//!
//! Everything goes to standard error, so that standard output holds results alone. A failed write is
//! ignored: a closed terminal must not end a run.

use crate::data::grouped;
use crate::train::duration::duration_text;
use crate::train::metrics::{EvalRecord, Event, RunSummary, StepRecord, ValidationProgress};
use crate::train::tuning::TuneProgress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};

/// Plain lines of steps in a whole run, about.
const LINES: usize = 50;
/// Seconds of a validation until it is spoken of, and from one word of it to the next.
const UNTIL_FIRST_WORD: f64 = 10.0;
const BETWEEN_WORDS: f64 = 15.0;
const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    Bar,
    Lines,
    Silent,
}

impl ProgressMode {
    /// Silent where that was asked for, a bar where standard error is a terminal, lines elsewhere.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, io::stderr().is_terminal()) {
            (true, _) => ProgressMode::Silent,
            (false, true) => ProgressMode::Bar,
            (false, false) => ProgressMode::Lines,
        }
    }
}

/// Shows the events of one run.
pub struct Progress {
    mode: ProgressMode,
    out: Box<dyn Write + Send>,
    bar: Option<ProgressBar>,
    steps: usize,
    /// Steps between lines, where the user set them.
    every: Option<usize>,
    /// What the bar says of the last step.
    last_step: String,
    /// Seconds of the validation under way at which it is spoken of next.
    next_word: f64,
}

impl Progress {
    /// Progress on standard error.
    pub fn new(mode: ProgressMode) -> Self {
        Progress::to_writer(mode, Box::new(io::stderr()))
    }

    /// Progress whose plain lines go to `out`; a bar is drawn on standard error always.
    pub fn to_writer(mode: ProgressMode, out: Box<dyn Write + Send>) -> Self {
        let (last_step, next_word) = (String::new(), UNTIL_FIRST_WORD);
        Progress { mode, out, bar: None, steps: 0, every: None, last_step, next_word }
    }

    /// A line every so many steps, beside the bar too; `None` prints about fifty lines, and none beside a bar.
    pub fn every(mut self, steps: Option<usize>) -> Self {
        self.every = steps;
        self
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        if self.mode == ProgressMode::Silent {
            return;
        }
        match event {
            Event::Tuned(progress) => self.tuned(progress),
            Event::Started(run) => self.start(run),
            Event::Step(record) => self.step(record),
            Event::Validating(progress) => self.validating(progress),
            Event::Evaluation(record) => self.line(&evaluation_line(record)),
            Event::Sample(record) => self.line(&record.to_string()),
            Event::Saved { step, path } => self.line(&format!("step {step}: saved {}", path.display())),
            Event::Overflow { step, scale } => {
                self.line(&format!(
                    "step {step}: skipped, its f16 gradients overflowed; loss scale is now {scale}"
                ));
            }
            Event::Note(text) => self.line(text),
            Event::Finished { steps, tokens, elapsed_s } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                self.line(&finished_line(*steps, *tokens, *elapsed_s));
            }
        }
    }

    /// A line that is written over on a terminal; elsewhere the first and the last word alone.
    fn tuned(&mut self, progress: &TuneProgress) {
        let last = progress.done == progress.total;
        if self.mode == ProgressMode::Bar {
            let bar = self.bar.get_or_insert_with(|| {
                ProgressBar::new(progress.total as u64).with_style(style("{bar:30} {pos}/{len}  {msg}"))
            });
            bar.set_message(format!("measuring kernels: {}", progress.measurement.class));
            bar.set_position(progress.done as u64);
        } else if progress.done == 1 {
            let total = progress.total;
            self.line(&format!(
                "measuring kernels for {total} classes of kernels, once for this device and driver"
            ));
        } else if last {
            self.line("kernels measured");
        }
    }

    fn start(&mut self, run: &RunSummary) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.steps = run.steps;
        self.line(&started_lines(run));
        if self.mode == ProgressMode::Bar {
            let style = style("{bar:30} {pos}/{len}  {msg}  ETA {eta}");
            self.bar = Some(ProgressBar::new(run.steps as u64).with_style(style));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        if let Some(bar) = &self.bar {
            self.last_step = bar_text(record);
            bar.set_message(self.last_step.clone());
            bar.set_position(record.step as u64);
            if self.every.is_none() {
                return;
            }
        }
        let every = self.every.unwrap_or(self.steps.div_ceil(LINES)).max(1);
        if record.step == 1 || record.step == self.steps || record.step.is_multiple_of(every) {
            self.line(&step_line(record, self.steps));
        }
    }

    /// A line now and then for a validation that takes long; the bar says it in place of the last step.
    fn validating(&mut self, progress: &ValidationProgress) {
        let ValidationProgress { done, all, elapsed_s, .. } = *progress;
        if done == all {
            self.next_word = UNTIL_FIRST_WORD;
            if let Some(bar) = &self.bar {
                bar.set_message(self.last_step.clone());
            }
        } else if elapsed_s >= self.next_word {
            self.next_word = elapsed_s + BETWEEN_WORDS;
            match &self.bar {
                Some(bar) => bar.set_message(validation_text(progress)),
                None => self.line(&format!("step {}: {}", progress.step, validation_text(progress))),
            }
        }
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
            }
        }
    }
}

impl Drop for Progress {
    /// A run that ends in an error leaves a clean line for its message.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

/// A bar's look. Templates are constants, so the fallback is never seen; it spares the run a panic.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

fn started_lines(run: &RunSummary) -> String {
    let device = if run.software_device {
        format!("{} (software: a CPU in place of a GPU, slow)", run.device)
    } else {
        run.device.clone()
    };
    let share = 100.0 * run.trainable_parameters as f64 / run.base_parameters.max(1) as f64;
    let bytes = run.device_bytes as f64;
    let memory =
        if bytes < GIB { format!("{:.1} MiB", bytes / MIB) } else { format!("{:.2} GiB", bytes / GIB) };
    let steps = match run.steps < run.all_steps {
        true => format!("{} of {}", run.steps, counted(run.all_steps, "step")),
        false => counted(run.steps, "step"),
    };
    format!(
        "device {device}, {memory} of its memory\n\
         training {} of {} parameters ({share:.2} %), {steps} in {}, {}, {} for validation",
        run.trainable_parameters,
        run.base_parameters,
        counted(run.epochs, "epoch"),
        counted(run.train_samples, "sample"),
        run.val_samples,
    )
}

/// `1 step`, `3 steps`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn bar_text(record: &StepRecord) -> String {
    format!("loss {:.4}  {}", record.loss, rate(record.tokens_per_s))
}

fn step_line(record: &StepRecord, steps: usize) -> String {
    let left = steps.saturating_sub(record.step) as f64;
    let eta = left * record.elapsed_s / record.step.max(1) as f64;
    format!(
        "step {}/{steps}  epoch {:.2}  loss {:.4}  grad norm {:.3}  lr {:.2e}  {}  ETA {}",
        record.step,
        record.epoch,
        record.loss,
        record.grad_norm,
        record.learning_rate,
        rate(record.tokens_per_s),
        duration_text(eta),
    )
}

fn evaluation_line(record: &EvalRecord) -> String {
    format!("step {}: validation loss {:.4}, perplexity {:.3}", record.step, record.val_loss, record.val_ppl)
}

/// `validation 1,234/10,000 samples, about 4m 05s left`.
pub(super) fn validation_text(progress: &ValidationProgress) -> String {
    let ValidationProgress { done, all, elapsed_s, .. } = *progress;
    let left = elapsed_s / done.max(1) as f64 * all.saturating_sub(done) as f64;
    format!("validation {}/{} samples, about {} left", grouped(done), grouped(all), duration_text(left))
}

fn finished_line(steps: usize, tokens: usize, elapsed_s: f64) -> String {
    let per_second = if elapsed_s > 0.0 { tokens as f64 / elapsed_s } else { 0.0 };
    let (plural, time, rate) =
        (if steps == 1 { "" } else { "s" }, duration_text(elapsed_s), rate(per_second));
    format!("finished {steps} step{plural}, {tokens} tokens in {time}, {rate}")
}

fn rate(tokens_per_s: f64) -> String {
    let digits = if tokens_per_s < 100.0 { 1 } else { 0 };
    format!("{tokens_per_s:.digits$} tokens/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn record(step: usize) -> StepRecord {
        StepRecord {
            step,
            epoch: 0.5,
            loss: 2.0,
            grad_norm: 1.0,
            learning_rate: 3e-4,
            tokens: 512,
            label_tokens: 100,
            tokens_per_s: 812.4,
            elapsed_s: step as f64,
        }
    }

    fn run(steps: usize) -> Vec<Event> {
        let summary = RunSummary {
            steps,
            all_steps: 10 * steps,
            train_samples: 1,
            epochs: 3,
            trainable_parameters: 50,
            base_parameters: 1000,
            device: "llvmpipe".into(),
            software_device: true,
            device_bytes: 3 << 29,
            ..RunSummary::default()
        };
        let mut events = vec![Event::Started(summary)];
        events.extend((1..=steps).map(|step| Event::Step(record(step))));
        events.push(Event::Overflow { step: steps, scale: 32768.0 });
        events.push(Event::Evaluation(EvalRecord::new(steps, 0.0)));
        events.push(Event::Saved { step: steps, path: "out".into() });
        events.push(Event::Note("a word".into()));
        events.push(Event::Finished { steps, tokens: 1000, elapsed_s: 125.0 });
        events
    }

    fn shown(mode: ProgressMode, steps: usize) -> String {
        let sink = Sink::default();
        let mut progress = Progress::to_writer(mode, Box::new(sink.clone()));
        run(steps).iter().for_each(|event| progress.show(event));
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_say_what_happened() {
        let text = shown(ProgressMode::Lines, 3);
        for said in [
            "device llvmpipe (software: a CPU in place of a GPU, slow), 1.50 GiB of its memory\n",
            "training 50 of 1000 parameters (5.00 %), 3 of 30 steps in 3 epochs, 1 sample, 0 for validation\n",
            "step 1/3  epoch 0.50  loss 2.0000  grad norm 1.000  lr 3.00e-4  812 tokens/s  ETA 2s\n",
            "step 3: skipped, its f16 gradients overflowed; loss scale is now 32768\n",
            "step 3: validation loss 0.0000, perplexity 1.000\n",
            "step 3: saved out\n",
            "a word\n",
            "finished 3 steps, 1000 tokens in 2m 05s, 8.0 tokens/s\n",
        ] {
            assert!(text.contains(said), "no {said:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
    }

    #[test]
    fn long_runs_are_thinned_but_keep_their_ends() {
        let steps: Vec<String> = shown(ProgressMode::Lines, 1003)
            .lines()
            .filter(|line| line.starts_with("step ") && line.contains('/'))
            .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
            .collect();
        assert!((40..=60).contains(&steps.len()), "{}", steps.len());
        assert_eq!((steps[0].as_str(), steps[steps.len() - 1].as_str()), ("1/1003", "1003/1003"));
    }

    /// A validation of 10,000 samples in micro-batches of 4, `seconds` long.
    fn validation(seconds: f64) -> Vec<Event> {
        let all = 10_000;
        let progress =
            |done| ValidationProgress { step: 20, done, all, elapsed_s: seconds * done as f64 / all as f64 };
        let micro_batches = (4..=all).step_by(4).map(|done| Event::Validating(progress(done)));
        micro_batches.chain([Event::Evaluation(EvalRecord::new(20, 0.5))]).collect()
    }

    #[test]
    fn a_long_validation_says_how_far_it_is() {
        let sink = Sink::default();
        let mut progress = Progress::to_writer(ProgressMode::Lines, Box::new(sink.clone()));
        // a short one is not spoken of; of two long ones each begins anew
        for seconds in [9.9, 60.0, 60.0] {
            validation(seconds).iter().for_each(|event| progress.show(event));
        }
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let long = [
            "step 20: validation 1,668/10,000 samples, about 50s left",
            "step 20: validation 4,168/10,000 samples, about 35s left",
            "step 20: validation 6,668/10,000 samples, about 20s left",
            "step 20: validation 9,168/10,000 samples, about 5s left",
        ];
        let loss = ["step 20: validation loss 0.5000, perplexity 1.649"];
        let expected = [&loss[..], &long, &loss, &long, &loss].concat();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_bar_tells_of_a_validation_and_then_of_steps_again() {
        let mut progress = Progress::to_writer(ProgressMode::Bar, Box::new(Sink::default()));
        run(1)[..2].iter().for_each(|event| progress.show(event));
        let events = validation(60.0);
        events[..1000].iter().for_each(|event| progress.show(event));
        let message = |progress: &Progress| progress.bar.as_ref().unwrap().message();
        assert_eq!(message(&progress), "validation 1,668/10,000 samples, about 50s left");
        events[1000..].iter().for_each(|event| progress.show(event));
        assert_eq!(message(&progress), "loss 2.0000  812 tokens/s");
    }

    #[test]
    fn silent_is_silent() {
        assert_eq!(shown(ProgressMode::Silent, 5), "");
        assert_eq!(ProgressMode::detect(true), ProgressMode::Silent);
    }

    #[test]
    fn a_closed_output_does_not_end_the_run() {
        let mut progress = Progress::to_writer(ProgressMode::Lines, Box::new(Broken));
        run(2).iter().for_each(|event| progress.show(event));
    }

    #[test]
    fn the_bar_has_a_valid_template_and_goes_through_a_run() {
        let mut progress = Progress::to_writer(ProgressMode::Bar, Box::new(Sink::default()));
        let events = run(3);
        events[..4].iter().for_each(|event| progress.show(event));
        let bar = progress.bar.as_ref().unwrap();
        assert_eq!(
            (bar.position(), bar.length(), bar.message().as_str()),
            (3, Some(3), "loss 2.0000  812 tokens/s")
        );
        events[4..].iter().for_each(|event| progress.show(event));
        assert!(progress.bar.is_none());
    }
}
