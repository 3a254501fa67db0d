//! `engraft evaluate`: a table or one JSON object on standard output.

use super::args::EvaluateArgs;
use super::download::model_and_adapter;
use super::named_data::NamedData;
use super::print;
use super::progress::{Progress, ProgressMode};
use crate::error::Error;
use crate::train::evaluator::{EvaluateEvent, EvaluateReport, evaluate};
use crate::train::metrics::Event;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};

pub fn run(args: EvaluateArgs, quiet: bool) -> Result<(), Error> {
    let json = args.json;
    let named = NamedData::of(&args.data)?;
    let mut options = args.resolve()?;
    if let Some(named) = named {
        named.resolve(&mut options.data, quiet)?;
    }
    let found = model_and_adapter(&options.model_dir, options.adapter.as_deref(), quiet)?;
    (options.model_dir, options.adapter) = (found.model_dir, found.adapter);
    let bar = match !quiet && io::stderr().is_terminal() {
        true => ProgressBar::no_length(),
        false => ProgressBar::hidden(),
    };
    // the template is a constant, so the fallback is never seen
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} samples  ETA {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    // measuring is said as in a run; its bar gives way to that of the samples
    let mut before = Some(Progress::new(ProgressMode::detect(quiet)));
    let result = evaluate(&options, |event| match event {
        EvaluateEvent::Tuned(progress) => show(&mut before, &Event::Tuned(progress)),
        EvaluateEvent::Note(text) => show(&mut before, &Event::Note(text)),
        EvaluateEvent::Samples { done, all } => {
            before = None;
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    });
    bar.finish_and_clear();
    let report = result?;
    print(&match json {
        true => format!("{:#}\n", serde_json::json!(report)),
        false => format!("{}\n", table(&report)),
    })
}

fn show(progress: &mut Option<Progress>, event: &Event) {
    if let Some(progress) = progress {
        progress.show(event);
    }
}

fn table(report: &EvaluateReport) -> String {
    let software = if report.software_device { " (software)" } else { "" };
    let mut samples = report.samples.to_string();
    if report.truncated > 0 {
        samples += &format!(", {} cut after {} tokens", report.truncated, report.max_seq_length);
    }
    if report.without_label > 0 {
        samples += &format!(", {} more left out: no token of the answer is left", report.without_label);
    }
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    [
        ("loss", format!("{:.6}", report.loss)),
        ("perplexity", format!("{:.4}", report.perplexity)),
        ("label tokens", report.label_tokens.to_string()),
        ("tokens", report.tokens.to_string()),
        ("samples", samples),
        ("precision", report.precision.clone()),
        ("device", format!("{}{software}", report.device)),
        ("time", format!("{:.1}s, {rate:.0} tokens/s", report.seconds)),
    ]
    .map(|(name, value)| format!("{name:12}  {value}"))
    .join("\n")
}
