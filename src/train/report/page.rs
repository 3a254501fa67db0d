//! What the page says, found in the files of a run. What a file lacks is left out.

use super::chart::{Chart, Series};
use crate::data::grouped;
use crate::memory_size::memory_text;
use crate::train::axis::Scale;
use crate::train::duration::duration_text;
use crate::train::figures::{short, smoothed, smoothing_span};
use crate::train::logging::{self, Record};
use crate::train::run_folder::{HYPERPARAMETERS_FILE, RUN_FILE, read_json, settings};
use chrono::{DateTime, Local};
use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::path::Path;

const TEMPLATE: &str = include_str!("page.html");

#[derive(Serialize)]
struct Page {
    title: String,
    subtitle: String,
    /// `step 41 of 150`, and the same in percent.
    state: String,
    percent: f64,
    tiles: Vec<Tile>,
    charts: Vec<Chart>,
    samples: Vec<Sample>,
    memory: Memory,
    evaluations: Vec<Evaluation>,
    data: Vec<[String; 3]>,
    facts: Vec<[String; 2]>,
    notes: Vec<String>,
    settings: Vec<(String, String)>,
    version: &'static str,
    written: String,
    css: &'static str,
    js: &'static str,
}

#[derive(Serialize)]
struct Tile {
    name: &'static str,
    value: String,
    note: String,
}

/// A prompt, and what the model made of it at several steps.
#[derive(Serialize)]
struct Sample {
    prompt: String,
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    step: u64,
    text: String,
}

#[derive(Default, Serialize)]
struct Memory {
    total: String,
    kinds: Vec<MemoryKind>,
}

#[derive(Serialize)]
struct MemoryKind {
    name: &'static str,
    bytes: String,
    share: String,
    percent: f64,
}

#[derive(Serialize)]
struct Evaluation {
    step: u64,
    loss: String,
    perplexity: String,
    best: bool,
}

/// The page of the run in a folder.
///
/// # Errors
/// A metrics file that cannot be read.
pub fn render(run_dir: &Path) -> io::Result<String> {
    let mut environment = Environment::new();
    // a name that ends so is escaped
    environment.add_template("page.html", TEMPLATE).map_err(io::Error::other)?;
    let template = environment.get_template("page.html").map_err(io::Error::other)?;
    template.render(Serde(Page::read(run_dir)?)).map_err(io::Error::other)
}

impl Page {
    fn read(run_dir: &Path) -> io::Result<Self> {
        let records = logging::read(run_dir)?;
        let hyper = read_json(&run_dir.join(HYPERPARAMETERS_FILE)).unwrap_or_default();
        let run = read_json(&run_dir.join(RUN_FILE)).unwrap_or_default();
        let done = records.iter().filter_map(Record::step).max().unwrap_or(0);
        let all = hyper["steps"].as_u64().or(run["steps"].as_u64()).unwrap_or(done).max(1);
        let whole = run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_path_buf());
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let model = hyper["model_dir"].as_str().and_then(|path| name(Path::new(path)));
        let subtitle = [model, run["started"].as_str().map(readable)];
        Ok(Page {
            title: name(&whole).unwrap_or_else(|| whole.display().to_string()),
            subtitle: subtitle.into_iter().flatten().collect::<Vec<_>>().join(", begun "),
            state: format!("step {} of {}", grouped(done as usize), grouped(all as usize)),
            percent: 100.0 * done as f64 / all as f64,
            tiles: tiles(&records, &run),
            charts: charts(&records),
            samples: samples(&records),
            memory: memory(&run["memory"]),
            evaluations: evaluations(&records),
            data: data(&run["data"]),
            facts: facts(&hyper, &run),
            notes: texts(&run["notes"]),
            settings: settings(&hyper),
            version: env!("CARGO_PKG_VERSION"),
            written: Local::now().format("%Y-%m-%d %H:%M").to_string(),
            css: include_str!("page.css"),
            js: include_str!("page.js"),
        })
    }
}

/// `2026-05-04 13:37` of a time as RFC 3339 has it.
fn readable(time: &str) -> String {
    let parsed = DateTime::parse_from_rfc3339(time);
    parsed.map_or_else(|_| time.to_owned(), |time| time.format("%Y-%m-%d %H:%M").to_string())
}

/// `[step, value]` of all records that have the key.
fn points(records: &[Record], key: &str) -> Vec<[f64; 2]> {
    let point = |record: &Record| Some([record.step()? as f64, record.number(key)?]);
    records.iter().filter_map(point).collect()
}

fn charts(records: &[Record]) -> Vec<Chart> {
    let of = |key: &str| points(records, key);
    let line = |label, class, points| Series { label, class, points, dots: false };
    let (loss, val_loss) = (of("loss"), of("val_loss"));
    let span = smoothing_span(loss.len());
    let smooth = |points: &[[f64; 2]]| smoothed(points, span);
    let validation = Series { label: "validation", class: "val", points: val_loss.clone(), dots: true };
    let mut losses = vec![line("training", "train", smooth(&loss)), validation.clone()];
    if span > 1.0 {
        losses[0].label = "training, smoothed";
        losses.insert(0, line("training", "raw", loss));
    }
    let several = (val_loss.len() > 1).then_some(vec![validation]).unwrap_or_default();
    let charts = [
        Chart::new("Loss", true, Scale::Fitted, losses),
        Chart::new("Validation loss", false, Scale::Fitted, several),
        Chart::new("Learning rate", false, Scale::FromZero, vec![line("rate", "rate", of("learning_rate"))]),
        Chart::new("Gradient norm", false, Scale::Fitted, vec![line("norm", "norm", of("grad_norm"))]),
        Chart::new(
            "Tokens per second",
            false,
            Scale::FromZero,
            vec![line("tokens/s", "speed", of("tokens_per_s"))],
        ),
    ];
    charts.into_iter().flatten().collect()
}

fn tiles(records: &[Record], run: &Value) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut add = |name, value: String, note: String| tiles.push(Tile { name, value, note });
    let loss = points(records, "loss");
    if let (Some(first), Some(last)) = (loss.first(), loss.last()) {
        add("Loss", short(last[1]), format!("{} at step {}", short(first[1]), first[0]));
    }
    let val_loss = points(records, "val_loss");
    if let Some(last) = val_loss.last() {
        let best = val_loss.iter().filter(|[_, loss]| loss.is_finite()).min_by(|a, b| a[1].total_cmp(&b[1]));
        let note = match best {
            Some(best) if val_loss.len() > 1 => format!("best {} at step {}", short(best[1]), best[0]),
            _ => format!("at step {}", last[0]),
        };
        add("Validation loss", short(last[1]), note);
        add("Perplexity", short(last[1].exp()), "of the validation rows".into());
    }
    let tokens: f64 = records.iter().filter_map(|record| record.number("tokens")).sum();
    if let Some([_, seconds]) = points(records, "elapsed_s").last() {
        let rate = if *seconds > 0.0 { tokens / seconds } else { 0.0 };
        let epoch = records.iter().rev().find_map(|record| record.number("epoch")).unwrap_or(0.0);
        add("Tokens", grouped(tokens as usize), format!("{epoch:.2} epochs"));
        add("Duration", duration_text(*seconds), "of training".into());
        add("Speed", format!("{}/s", grouped(rate.round() as usize)), "tokens, evaluations included".into());
    }
    if let Some(bytes) = run["device_bytes"].as_u64() {
        add("Device memory", memory_text(bytes), "planned and taken".into());
    }
    tiles
}

/// Samples by prompt, in the order in which prompts came first.
fn samples(records: &[Record]) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    for record in records {
        let (Some(prompt), Some(text)) = (record.text("prompt"), record.text("text")) else { continue };
        let answer = Answer { step: record.step().unwrap_or(0), text: text.to_owned() };
        match samples.iter_mut().find(|sample| sample.prompt == prompt) {
            Some(sample) => sample.answers.push(answer),
            None => samples.push(Sample { prompt: prompt.to_owned(), answers: vec![answer] }),
        }
    }
    samples
}

fn memory(report: &Value) -> Memory {
    let names = [
        ("weights", "Weights, frozen"),
        ("activations", "Activations and scratch"),
        ("trainables", "Trainables and gradients"),
        ("optimiser", "Moments of AdamW"),
        ("inputs", "Inputs"),
        ("parameters", "Kernel parameters"),
    ];
    let found = names.iter().filter_map(|(key, name)| Some((*name, report[key].as_u64()?)));
    let found: Vec<(&str, u64)> = found.collect();
    let total: u64 = found.iter().map(|(_, bytes)| bytes).sum();
    let kinds = found.into_iter().map(|(name, bytes)| {
        let percent = 100.0 * bytes as f64 / total.max(1) as f64;
        MemoryKind { name, bytes: memory_text(bytes), share: format!("{percent:.1} %"), percent }
    });
    Memory { total: memory_text(total), kinds: kinds.collect() }
}

fn evaluations(records: &[Record]) -> Vec<Evaluation> {
    let losses = points(records, "val_loss");
    let least = losses.iter().map(|[_, loss]| *loss).fold(f64::INFINITY, f64::min);
    let row = |[step, loss]: &[f64; 2]| Evaluation {
        step: *step as u64,
        loss: short(*loss),
        perplexity: short(loss.exp()),
        best: *loss == least,
    };
    losses.iter().rev().map(row).collect()
}

/// Rows of the data table: a name, and the figures of both parts.
fn data(summary: &Value) -> Vec<[String; 3]> {
    let names = [
        ("samples", "samples"),
        ("tokens", "tokens"),
        ("label_tokens", "tokens with a label"),
        ("longest", "longest, in tokens"),
        ("truncated", "truncated"),
        ("without_label", "left out, no label left"),
    ];
    let figure = |part: &str, key: &str| summary[part][key].as_u64().map(|n| grouped(n as usize));
    let rows = names.iter().filter_map(|(key, name)| {
        Some([(*name).to_owned(), figure("train", key)?, figure("validation", key).unwrap_or_default()])
    });
    rows.collect()
}

fn facts(hyper: &Value, run: &Value) -> Vec<[String; 2]> {
    let mut facts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        facts.extend(value.filter(|text| !text.is_empty()).map(|value| [name.to_owned(), value]));
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let software = run["software_device"].as_bool().unwrap_or(false);
    let device = text(&hyper["device"]).or(text(&run["device"]));
    add("device", device.map(|name| name + if software { " (software)" } else { "" }));
    add("driver", text(&hyper["driver"]));
    add("model", text(&hyper["model_dir"]));
    let count = |key: &str| run[key].as_u64().map(|n| n as usize);
    if let (Some(trained), Some(all)) = (count("trainable_parameters"), count("base_parameters")) {
        let share = 100.0 * trained as f64 / all.max(1) as f64;
        add("trained", Some(format!("{} of {} parameters ({share:.2} %)", grouped(trained), grouped(all))));
    }
    add("precision", text(&hyper["precision"]));
    add("quantised", text(&hyper["quantize"]).filter(|kind| kind != "none"));
    add("recomputation", text(&hyper["recompute"]));
    let batch = (hyper["batch_size"].as_u64(), hyper["micro_batch_size"].as_u64());
    if let (Some(batch), Some(micro)) = batch {
        add("batch", Some(format!("{batch} samples, {} on the device at a time", micro.min(batch))));
    }
    add("epochs", count("epochs").map(|n| n.to_string()));
    add("seed", hyper["seed"].as_u64().map(|n| n.to_string()));
    add("engraft", text(&hyper["engraft_version"]));
    facts
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| Some(item.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn folder(lines: &[Value]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        folder
    }

    #[test]
    fn a_page_is_made_of_whatever_is_there() {
        let empty = render(folder(&[]).path()).unwrap();
        assert!(empty.contains("No step is done yet") && empty.contains("step 0 of 1"));
        let lines = [
            json!({ "step": 1, "loss": 2.5, "elapsed_s": 1.0, "tokens": 100 }),
            json!({ "step": 2, "loss": null, "grad_norm": null }),
            json!({ "step": 2, "val_loss": 1.0 }),
            json!({ "something": "else" }),
        ];
        let page = render(folder(&lines).path()).unwrap();
        assert!(page.contains("<h2>Loss</h2>") && !page.contains("NaN") && !page.contains("Device memory"));
    }

    #[test]
    fn text_of_a_run_is_escaped() {
        let attack = "</script><script>alert(1)</script>";
        let folder = folder(&[json!({ "step": 3, "prompt": attack, "text": "<b>bold</b> & \"quoted\"" })]);
        fs::write(folder.path().join("hyperparameters.json"), json!({ "model_dir": attack }).to_string())
            .unwrap();
        let page = render(folder.path()).unwrap();
        assert!(!page.contains("alert(1)</script>") && !page.contains("<b>bold"), "{page}");
        assert!(page.contains("&lt;b&gt;bold&lt;") && page.contains("step 3"));
    }

    #[test]
    fn samples_are_kept_together_by_prompt() {
        let sample = |step: u64, prompt: &str| {
            let text = format!("{prompt} at {step}");
            Record::new(&json!({ "step": step, "prompt": prompt, "text": text })).unwrap()
        };
        let samples = samples(&[sample(1, "a"), sample(1, "b"), sample(2, "a"), sample(2, "b")]);
        let found: Vec<(&str, Vec<u64>)> = samples
            .iter()
            .map(|s| (s.prompt.as_str(), s.answers.iter().map(|answer| answer.step).collect()))
            .collect();
        assert_eq!(found, [("a", vec![1, 2]), ("b", vec![1, 2])]);
    }
}
