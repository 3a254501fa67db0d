//! A run's options as the keys of a configuration file: what `hyperparameters.yaml` holds and `--config` reads.

use super::{FinetuneOptions, Method};
use serde_json::{Map, Value, json};
use std::fmt::Write;

impl FinetuneOptions {
    /// Every option that has a value, by its name on the command line (without dashes), in a fixed order; those of the data
    /// under `data`.
    pub fn settings(&self) -> Map<String, Value> {
        // plain data always serialises
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return Map::new() };
        let mut settings = Map::new();
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("model_dir", value) => {
                    settings.insert("checkpoint_dir".into(), value);
                }
                ("method", _) => {
                    if let Method::Full { init } = self.method {
                        settings.insert("init".into(), json!(init));
                    }
                }
                ("lora", Value::Object(lora)) if self.method == Method::Lora => {
                    settings.extend(lora.into_iter().map(|(key, value)| match key.as_str() {
                        "modules_to_save" => (key, value),
                        _ => (format!("lora_{key}"), value),
                    }));
                }
                ("lora", _) => {}
                ("data", Value::Object(mut data)) => {
                    data.remove("sources");
                    let files: Vec<String> = self.data.sources.iter().map(ToString::to_string).collect();
                    if !files.is_empty() {
                        data.insert("files".into(), json!(files));
                    }
                    data.retain(|_, value| says_something(value));
                    settings.insert("data".into(), Value::Object(data));
                }
                ("memory_limit", Value::Number(bytes)) => {
                    settings.insert(name, json!(format!("{bytes}B")));
                }
                // 0 is how the command line says that nothing is clipped, and nothing saved on the way
                ("grad_clip" | "autosave", Value::Null) => {
                    settings.insert(name, json!(0));
                }
                (_, value) => {
                    settings.insert(name, value);
                }
            }
        }
        settings.retain(|_, value| says_something(value));
        settings
    }

    /// [`FinetuneOptions::settings`] as YAML.
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        write_map(&mut text, &self.settings(), 0);
        text
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn write_map(text: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        // writing to a String cannot fail
        let _ = match value {
            Value::Object(inner) => {
                let _ = writeln!(text, "{:indent$}{key}:", "");
                write_map(text, inner, indent + 2);
                Ok(())
            }
            // a JSON scalar or list is YAML as it stands
            other => writeln!(text, "{:indent$}{key}: {other}", ""),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataSource;

    #[test]
    fn keys_are_the_options_names() {
        let mut options = FinetuneOptions {
            model_dir: "a \"model\"".into(),
            memory_limit: Some(8 << 30),
            grad_clip: None,
            autosave: None,
            ..FinetuneOptions::default()
        };
        options.data.sources = vec![DataSource { path: "a.json".into(), weight: 2.0 }];
        options.lora.targets = vec!["q_proj".into()];
        let yaml = options.to_yaml();
        for line in [
            "checkpoint_dir: \"a \\\"model\\\"\"\n",
            "memory_limit: \"8589934592B\"\n",
            "grad_clip: 0\n",
            "autosave: 0\n",
            "data:\n  ",
            "  files: [\"a.json:2\"]\n",
            "lora_rank: 8\n",
            "lora_targets: [\"q_proj\"]\n",
        ] {
            assert!(yaml.contains(line), "no {line:?} in\n{yaml}");
        }
        assert!(!yaml.contains("null") && !yaml.contains("method") && !yaml.contains("json_path"), "{yaml}");
        let full = FinetuneOptions { method: Method::Full { init: Default::default() }, ..options };
        assert!(full.to_yaml().contains("init: \"checkpoint\"\n") && !full.to_yaml().contains("lora_"));
    }
}
