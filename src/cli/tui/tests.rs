use super::state::State;
use super::view;
use crate::plan::MemoryReport;
use crate::train::metrics::{EvalRecord, Event, RunSummary, SampleRecord, StepRecord, ValidationProgress};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::path::Path;

fn step(step: usize, loss: f64) -> Event {
    Event::Step(StepRecord {
        step,
        epoch: step as f64 / 85.0,
        loss,
        grad_norm: 1.5,
        learning_rate: 2e-4,
        tokens: 400,
        label_tokens: 90,
        tokens_per_s: 812.0,
        elapsed_s: step as f64,
    })
}

fn sample(step: usize) -> Event {
    Event::Sample(SampleRecord { step, prompt: "Say it".into(), text: "it".into() })
}

fn started() -> Event {
    let memory = MemoryReport { weights: 3 << 20, activations: 9 << 20, ..MemoryReport::default() };
    Event::Started(RunSummary {
        steps: 255,
        all_steps: 255,
        epochs: 3,
        device: "Test GPU".into(),
        device_bytes: memory.total(),
        memory,
        ..RunSummary::default()
    })
}

/// A run that has done `steps` steps, whose loss falls.
fn state(steps: usize) -> State {
    let mut state = State::new(Path::new("runs/first"));
    state.apply(Event::Note("weights 1.9 MiB in 0.0 s".into()));
    state.apply(started());
    (1..=steps).for_each(|i| state.apply(step(i, 14.0 / i as f64)));
    state
}

fn shown(state: &State, width: u16, height: u16, stopping: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state, stopping)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>() + "\n";
    (0..height).map(row).collect()
}

/// Cells with dots of a curve.
fn drawn(text: &str) -> usize {
    text.chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count()
}

#[test]
fn a_run_is_shown_with_its_curves_and_figures() {
    let mut state = state(100);
    state.apply(Event::Evaluation(EvalRecord::new(50, 0.31)));
    state.apply(Event::Evaluation(EvalRecord::new(100, 0.2)));
    let text = shown(&state, 120, 40, false);
    for part in [
        "engraft",
        "runs/first",
        "Test GPU, 12.0 MiB",
        "step 100/255",
        "epoch 1.18/3",
        "loss 0.1400",
        "val loss 0.2000",
        "lr 2.00e-4",
        "grad norm 1.500",
        "tokens/s 812.0",
        "memory weights 3.0 MiB, activations 9.0 MiB",
        "learning rate",
        "gradient norm",
        "weights 1.9 MiB in 0.0 s",
        "step 100: validation loss 0.2000, perplexity 1.221",
        "q or Ctrl-C",
        " log ",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(drawn(&text) > 100, "{text}");
    let points = text.chars().filter(|c| *c == '•').count();
    assert!(points >= 2, "each evaluation is a point:\n{text}");
    assert!(shown(&state, 120, 40, true).contains("stopping after this step"));
}

#[test]
fn a_validation_that_takes_long_is_shown_until_it_ends() {
    let mut state = state(100);
    let progress =
        |done| Event::Validating(ValidationProgress { step: 100, done, all: 10_000, elapsed_s: 60.0 });
    state.apply(progress(2000));
    let text = shown(&state, 120, 40, false);
    assert!(text.contains("step 100/255  validation 2,000/10,000 samples, about 4m 00s left"), "{text}");
    assert!(shown(&state, 120, 40, true).contains("stopping in this validation"));
    state.apply(progress(10_000));
    assert!(shown(&state, 120, 40, false).contains("epoch 1.18/3"));
}

#[test]
fn the_time_before_the_first_step_is_explained() {
    let mut state = State::new(Path::new("out"));
    assert!(shown(&state, 80, 24, false).contains("preparing the data"));
    assert!(shown(&state, 80, 24, true).contains("stopping before the first step"));
    state.apply(started());
    let text = shown(&state, 80, 24, false);
    assert!(text.contains("step 0/255") && text.contains("ETA ?") && text.contains("no step yet"), "{text}");
}

#[test]
fn every_size_of_screen_is_drawn() {
    let mut full = state(2000);
    full.apply(step(2001, f64::NAN));
    for state in [&State::new(Path::new("out")), &state(0), &state(1), &full] {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 13), (40, 14), (80, 24), (200, 60), (300, 9)] {
            shown(state, width, height, true);
        }
    }
    // a low screen has no charts, but all figures
    let text = shown(&full, 80, 10, false);
    assert!(text.contains("step 2001/255") && drawn(&text) == 0, "{text}");
}

#[test]
fn notes_show_their_newest_lines() {
    let mut state = state(3);
    (0..200).for_each(|i| state.apply(Event::Note(format!("first line of {i}\nnote {i}"))));
    assert_eq!(state.notes.len(), 100);
    let text = shown(&state, 80, 24, false);
    assert!(text.contains("note 199") && !text.contains("note 150"), "{text}");
}

#[test]
fn the_summary_has_what_lines_would_have_said_at_the_ends() {
    let mut state = state(3);
    state.apply(Event::Evaluation(EvalRecord::new(2, 0.5)));
    state.apply(Event::Evaluation(EvalRecord::new(3, 0.4)));
    state.apply(sample(2));
    state.apply(sample(3));
    state.apply(sample(3));
    state.apply(Event::Saved { step: 3, path: "out".into() });
    state.apply(Event::Finished { steps: 3, tokens: 9, elapsed_s: 1.0 });
    let summary = state.summary();
    let expected = [
        Event::Note("weights 1.9 MiB in 0.0 s".into()),
        started(),
        step(3, 14.0 / 3.0),
        Event::Evaluation(EvalRecord::new(3, 0.4)),
        sample(3),
        sample(3),
        Event::Saved { step: 3, path: "out".into() },
        Event::Finished { steps: 3, tokens: 9, elapsed_s: 1.0 },
    ];
    assert_eq!(summary, expected);
}
