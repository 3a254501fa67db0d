//! `engraft validate` as a user calls it: folders that are right, and every problem of those that are not.

mod common;

use common::{engraft, fixtures, text};
use engraft::checkpoint::{Adapter, Checkpoint, write_safetensors};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A model folder that can be broken.
struct Model(tempfile::TempDir);

impl Model {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixtures().join("models").join(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        Model(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(file);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
    }

    /// Writes the weights again, each as `change` has it: its new name, or nothing to leave it out.
    fn rename(&self, change: impl Fn(&str) -> Option<String>) {
        let path = self.0.path().join("model.safetensors");
        let copy = self.0.path().join("copy");
        fs::rename(&path, &copy).unwrap();
        let checkpoint = Checkpoint::open_file(&copy).unwrap();
        let tensors = checkpoint.names().filter_map(|name| {
            let view = checkpoint.tensor(name).unwrap();
            Some((change(name)?, view.dtype, view.shape.clone(), view.bytes.to_vec()))
        });
        write_safetensors(&path, tensors.collect::<Vec<_>>(), &[("format", "pt")]).unwrap();
        drop(checkpoint);
        fs::remove_file(copy).unwrap();
    }

    fn check(&self) -> Found {
        Found::of(&[self.path().to_str().unwrap()])
    }
}

struct Found {
    code: i32,
    report: Value,
}

impl Found {
    fn of(arguments: &[&str]) -> Self {
        let output = engraft(&[&["validate", "--json"], arguments].concat());
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        Found { code: output.status.code().unwrap(), report }
    }

    /// What was found under this name with this status.
    fn all(&self, name: &str, status: &str) -> Vec<String> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        let of = checks.filter(|check| check["name"] == name && check["status"] == status);
        of.map(|check| format!("{} {}", check["found"].as_str().unwrap(), check["advice"])).collect()
    }

    /// The names of what is in this state, in order.
    fn named(&self, status: &str) -> Vec<&str> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        let mut names: Vec<&str> =
            checks.filter(|c| c["status"] == status).map(|c| c["name"].as_str().unwrap()).collect();
        names.dedup();
        names
    }

    fn failed(&self, expected: &[(&str, &str)]) {
        assert_eq!((self.code, &self.report["ok"]), (2, &json!(false)), "{}", self.report);
        for (name, part) in expected {
            let all = self.all(name, "failed");
            assert!(all.iter().any(|found| found.contains(part)), "{name}: {part:?} is not in {all:?}");
        }
    }
}

const CHECKS: [&str; 7] =
    ["configuration", "weights", "tokenizer", "round trip", "special tokens", "chat template", "memory"];

#[test]
fn an_adapter_in_the_models_place_is_checked_with_its_base() {
    let base = fixtures().join("models/llama");
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = Adapter::read(&base.join("ref/adapter")).unwrap();
    adapter.config.base_model_name_or_path = Some(base.to_str().unwrap().into());
    adapter.write(folder.path()).unwrap();
    let found = Found::of(&[folder.path().to_str().unwrap()]);
    assert_eq!((found.code, &found.report["model_dir"]), (0, &json!(base)), "{}", found.report);
    assert!(found.named("passed").contains(&"adapter"), "{}", found.report);
}

#[test]
fn models_that_are_right_pass_every_check() {
    for name in ["llama", "llama_untied", "llama_sharded"] {
        let folder = fixtures().join("models").join(name);
        let adapter = folder.join("ref/adapter");
        let found = Found::of(&[folder.to_str().unwrap(), "--lora", adapter.to_str().unwrap()]);
        assert_eq!((found.code, &found.report["ok"]), (0, &json!(true)), "{}", found.report);
        assert!(found.named("warning").is_empty(), "{}", found.report);
        let mut expected = CHECKS.to_vec();
        expected.insert(6, "adapter");
        let passed = found.named("passed");
        let skipped = found.named("skipped");
        expected.retain(|name| !skipped.contains(name));
        assert_eq!(passed, expected);
        let memory = found.report["memory"].as_array().unwrap();
        assert_eq!(memory.len(), 4, "two storages, two policies");
        let bytes = |row: &Value, key: &str| row[key].as_u64().unwrap();
        assert!(memory.iter().all(|row| bytes(row, "total_bytes") > bytes(row, "weight_bytes")));
        assert!(bytes(&memory[2], "weight_bytes") < bytes(&memory[0], "weight_bytes"), "nf4 is smaller");
    }
}

#[test]
fn the_list_says_what_was_found() {
    let folder = fixtures().join("models/llama_untied");
    let output = engraft(&["validate", folder.to_str().unwrap()]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    for part in
        ["ok       configuration   Llama", "(21 in bf16)", "<|eot_id|>", "with and without a system message"]
    {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("problem"), "{said}");
}

#[test]
fn every_problem_of_the_weights_is_listed() {
    let model = Model::new("llama");
    model.edit("config.json", |config| config["intermediate_size"] = json!(164));
    model.rename(|name| match name {
        "model.norm.weight" => None,
        "model.layers.1.input_layernorm.weight" => Some("model.layers.1.ln.weight".into()),
        name => Some(name.into()),
    });
    let found = model.check();
    found.failed(&[
        ("weights", "model.norm.weight"),
        ("weights", "model.layers.1.input_layernorm.weight"),
        ("weights", "model.layers.0.mlp.gate_proj.weight"),
        ("weights", "[160, 64], expected [164, 64]"),
    ]);
    assert_eq!(found.all("weights", "failed").len(), 8);
    assert_eq!(found.named("failed"), ["weights"], "the rest is checked all the same: {}", found.report);

    // one more than is listed
    let model = Model::new("llama");
    model.rename(|name| (!name.contains("mlp") && !name.contains("self_attn")).then(|| name.to_owned()));
    let found = model.check();
    let all = found.all("weights", "failed");
    assert_eq!(all.len(), 9);
    assert!(all[8].contains("6 more of 20"), "{all:?}");

    let model = Model::new("llama");
    model.rename(|name| Some(name.replace("model.norm.weight", "model.norm.weight.old")));
    model.check().failed(&[("weights", "the nearest names are model.norm.weight.old")]);
}

#[test]
fn problems_of_different_files_are_found_in_one_go() {
    let model = Model::new("llama");
    model.edit("config.json", |config| config["hidden_act"] = json!("gelu"));
    fs::write(model.path().join("model.safetensors"), b"version https://git-lfs.github.com/spec/v1\n")
        .unwrap();
    model.edit("tokenizer_config.json", |config| config["chat_template"] = json!("{% for m in messages %}"));
    let found = model.check();
    found.failed(&[
        ("configuration", "hidden_act"),
        ("weights", "git lfs pull"),
        ("chat template", "tokenizer_config.json"),
    ]);
    assert_eq!(found.named("failed"), ["configuration", "weights", "chat template"]);
    assert_eq!(found.named("skipped"), ["memory"]);

    let output = engraft(&["validate", model.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("problem  weights"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("3 problems"), "{}", text(&output.stderr));
}

#[test]
fn tokens_that_do_not_fit_are_problems() {
    let model = Model::new("llama");
    model.edit("config.json", |config| config["vocab_size"] = json!(500));
    let found = model.check();
    found.failed(&[
        ("weights", "[512, 64], expected [500, 64]"),
        ("tokenizer", "ids up to 511, but the embedding has 500 rows"),
        ("special tokens", "[510, 506]"),
    ]);

    let model = Model::new("llama");
    model.edit("generation_config.json", |config| config["eos_token_id"] = json!([510, 99_999]));
    model.check().failed(&[("special tokens", "[99999]")]);

    let model = Model::new("llama");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let found = model.check();
    found.failed(&[("tokenizer", "tokenizer.json")]);
    assert_eq!(found.named("failed"), ["tokenizer"]);
}

#[test]
fn chat_templates_are_tried() {
    let template = |source: &str| {
        let model = Model::new("llama");
        model.edit("tokenizer_config.json", |config| config["chat_template"] = json!(source));
        model.check()
    };
    template("{{ raise_exception('not today') }}").failed(&[("chat template", "not today")]);
    template("{{ bos_token }}hello").failed(&[("chat template", "is not in what it renders")]);
    let plain = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    assert_eq!(plain.code, 0);
    assert!(plain.all("chat template", "warning")[0].contains("no stop token"), "{}", plain.report);
    let none = template("{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}");
    assert_eq!(none.named("warning"), Vec::<&str>::new(), "{}", none.report);
}

#[test]
fn an_adapter_is_checked_against_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixtures().join("models/llama");
    let check = |name: &str, change: &dyn Fn(&mut Adapter)| {
        let mut adapter = Adapter::read(&model.join("ref/adapter")).unwrap();
        change(&mut adapter);
        let path = folder.path().join(name);
        adapter.write(&path).unwrap();
        Found::of(&[model.to_str().unwrap(), "--lora", path.to_str().unwrap()])
    };
    let other = check("other", &|adapter| adapter.tensors[0].module = "model.layers.7.mlp.up_proj".into());
    other.failed(&[("adapter", "model.layers.7.mlp.up_proj")]);
    let nan = check("nan", &|adapter| adapter.tensors[2].a[0] = f32::INFINITY);
    nan.failed(&[("adapter", "not finite")]);
    let missing = Found::of(&[model.to_str().unwrap(), "--lora", "nowhere"]);
    missing.failed(&[("adapter", "nowhere: no such folder")]);
}

#[test]
fn a_folder_that_is_not_there_is_one_problem() {
    let found = Found::of(&[Path::new("nowhere").to_str().unwrap()]);
    found.failed(&[("configuration", "nowhere: no such folder")]);
    assert_eq!(found.report["checks"].as_array().unwrap().len(), 1);
}

#[test]
fn a_quantised_folder_is_known_as_one() {
    let found = Found::of(&[fixtures().join("quant/llama_bnb4").to_str().unwrap()]);
    assert!(found.all("weights", "passed")[0].contains("14 in nf4-dq"), "{}", found.report);
    assert_eq!(found.named("failed"), ["tokenizer"], "the fixture has none");
    assert_eq!(found.report["memory"].as_array().unwrap().len(), 2);
}
