//! What a run's folder tells about the run, beside the result: `hyperparameters.json` and `run.json`.

use super::metrics::RunSummary;
use crate::checkpoint::atomic;
use crate::data::DataSummary;
use crate::error::Error;
use chrono::{Local, SecondsFormat};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// Every option as it was resolved.
pub const HYPERPARAMETERS_FILE: &str = "hyperparameters.json";
/// What the run found out before its first step: [`RunFacts`].
pub const RUN_FILE: &str = "run.json";

/// What is known of a run before its first step, as `run.json` holds it.
#[derive(Clone, Debug, Serialize)]
pub struct RunFacts<'a> {
    /// When the run began, in the local time with its offset (RFC 3339); that of the first part where it was taken up again.
    started: String,
    #[serde(flatten)]
    pub summary: &'a RunSummary,
    pub data: &'a DataSummary,
    /// What the user was told.
    pub notes: &'a [String],
}

impl<'a> RunFacts<'a> {
    /// A run that begins now, or that is taken up again in `out_dir`.
    pub fn new(
        out_dir: &Path,
        resumed: bool,
        summary: &'a RunSummary,
        data: &'a DataSummary,
        notes: &'a [String],
    ) -> Self {
        let earlier = read_json(&out_dir.join(RUN_FILE)).filter(|_| resumed);
        let started = earlier.and_then(|run| run["started"].as_str().map(str::to_owned));
        let started = started.unwrap_or_else(|| Local::now().to_rfc3339_opts(SecondsFormat::Secs, false));
        RunFacts { started, summary, data, notes }
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, out_dir: &Path) -> Result<(), Error> {
        let path = out_dir.join(RUN_FILE);
        atomic::write_file(&path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
        .map_err(|source| Error::Write { path, source })
    }
}

/// A JSON file; `None` where it is missing or damaged.
pub fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The leaves of an object by their dotted names, in order: `lora.rank` and `8`. What was left out (`null`) has no value.
pub fn settings(all: &Value) -> Vec<(String, String)> {
    fn collect(prefix: &str, value: &Value, found: &mut Vec<(String, String)>) {
        let text = match value {
            Value::Object(map) => {
                let name =
                    |key: &String| if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                return map.iter().for_each(|(key, value)| collect(&name(key), value, found));
            }
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(items) if items.iter().all(Value::is_string) => {
                items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        found.push((prefix.to_owned(), text));
    }
    let mut found = Vec::new();
    collect("", all, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_have_dotted_names() {
        let all = json!({ "data": { "json_path": "a|b" }, "lora": { "targets": ["q", "v"], "rank": 8 }, "gpu": null });
        let expected = [("data.json_path", "a|b"), ("lora.targets", "q, v"), ("lora.rank", "8"), ("gpu", "")];
        assert_eq!(settings(&all), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
