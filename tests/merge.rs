//! `engraft merge_lora` as a user calls it: weights against f64, logits against the references and PEFT, quantised bases,
//! heads, what a run leaves, refusals.

mod common;

use common::{engraft, fixtures, python, text};
use engraft::checkpoint::{Adapter, AdapterTensor, Checkpoint, SavedModule, atomic, encode};
use engraft::graph::blocks::Blocks;
use engraft::graph::{DType, Shape, TensorType};
use engraft::models::ModelConfig;
use engraft::train::options::Precision;
use engraft::train::quantize::QuantizeOptions;
use engraft::train::setup::open_network;
use engraft::train::trainer::{Capacity, Trainer};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn merge(arguments: &[&str]) -> Value {
    let output = engraft(&[&["merge", "--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Merges the adapter of a fixture into its model.
fn merge_fixture(name: &str, out: &Path, options: &[&str]) -> Value {
    let (base, adapter) = (model(name), model(name).join("ref/adapter"));
    let words = [adapter.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
    merge(&[&words[..], &[out.to_str().unwrap()], options].concat())
}

fn refused(arguments: &[&str], parts: &[&str]) {
    let output = engraft(&[&["merge_lora"], arguments].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?}: {part:?} is not in {said}");
    }
}

/// `B·A` in f64, row-major, each with the sum of its terms' magnitudes.
fn product(tensor: &AdapterTensor) -> Vec<(f64, f64)> {
    let AdapterTensor { a, b, r, inputs, outputs, .. } = tensor;
    let element = |i: usize| {
        let (row, column) = (i / inputs, i % inputs);
        let term = |k: usize| f64::from(b[row * r + k]) * f64::from(a[k * inputs + column]);
        (0..*r).map(term).fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    (0..outputs * inputs).map(element).collect()
}

/// The distance of a number of this type to its neighbours.
fn step(value: f64, dtype: DType) -> f64 {
    let bits = match dtype {
        DType::F16 => 11,
        DType::BF16 => 8,
        _ => 24,
    };
    2f64.powi((value.abs().max(1e-30).log2().floor() as i32) + 1 - bits)
}

/// Checks that every weight is what `base` says, plus the adapter, rounded once.
fn check_weights(merged: &Path, base: impl Fn(&str) -> Vec<f32>, adapter: &Adapter, dtype: DType) {
    let merged = Checkpoint::open(merged).unwrap();
    let deltas: HashMap<String, Vec<(f64, f64)>> =
        adapter.tensors.iter().map(|t| (format!("{}.weight", t.module), product(t))).collect();
    let mut changed = 0;
    for name in merged.names() {
        let (view, base) = (merged.tensor(name).unwrap(), base(name));
        assert_eq!(view.dtype, dtype, "{name}");
        let values = view.to_f32();
        assert_eq!(values.len(), base.len(), "{name}");
        let Some(delta) = deltas.get(name) else {
            let mut bytes = Vec::new();
            encode(&base, dtype, &mut bytes);
            assert!(bytes == view.bytes, "{name} changed");
            continue;
        };
        changed += 1;
        let scale = adapter.config.scale();
        for ((value, base), (delta, size)) in values.iter().zip(&base).zip(delta) {
            let exact = f64::from(*base) + scale * delta;
            let difference = (f64::from(*value) - exact).abs();
            // half a step for the last rounding, and as much for each of the f32 sums before it
            let sums = adapter.config.r as f64 * step(f64::from(base.abs()) + scale * size, DType::F32);
            assert!(difference <= 0.5 * step(exact, dtype) + sums, "{name}: {value} for {exact}");
        }
    }
    assert_eq!(changed, deltas.len());
}

fn stored(folder: &Path) -> impl Fn(&str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    move |name| checkpoint.tensor(name).unwrap().to_f32()
}

#[test]
fn weights_are_the_sum_and_the_other_files_are_those_of_the_base() {
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in
        [("llama", DType::F32), ("llama_untied", DType::BF16), ("llama_sharded", DType::BF16)]
    {
        let out = folder.path().join(name);
        let report = merge_fixture(name, &out, &[]);
        let adapter = Adapter::read(&model(name).join("ref/adapter")).unwrap();
        check_weights(&out, stored(&model(name)), &adapter, dtype);
        assert_eq!((&report["adapted_layers"], &report["files"]), (&json!(14), &json!(1)), "{report}");
        assert_eq!(report["notes"], json!([]));
        let bytes = Checkpoint::open(&out).unwrap().total_bytes();
        assert_eq!(report["bytes"], json!(bytes));
        assert_eq!(bytes, Checkpoint::open(&model(name)).unwrap().total_bytes());
        let mut files: Vec<String> =
            fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        for file in files.iter().filter(|file| *file != "model.safetensors") {
            assert_eq!(
                fs::read(out.join(file)).unwrap(),
                fs::read(model(name).join(file)).unwrap(),
                "{file}"
            );
        }
        for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            assert!(files.contains(&file.to_owned()), "{file} is not in {files:?}");
        }
        assert_eq!(files.contains(&"chat_template.jinja".into()), name == "llama_untied");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary folder is left");
}

#[test]
fn shards_have_an_index_and_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, shards) = (folder.path().join("whole"), folder.path().join("shards"));
    merge_fixture("llama_untied", &whole, &[]);
    let report = merge_fixture("llama_untied", &shards, &["--max_shard_size", "100KB"]);
    let files = report["files"].as_u64().unwrap();
    assert!(files > 1, "{report}");
    let index: Value =
        serde_json::from_slice(&fs::read(shards.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], report["bytes"]);
    let named: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
    assert_eq!(named.len() as u64, files);
    assert!(named.contains(format!("model-00001-of-{files:05}.safetensors").as_str()), "{named:?}");
    for file in named {
        assert!(fs::metadata(shards.join(file)).unwrap().len() < 110_000, "{file}");
    }
    let (whole, shards) = (Checkpoint::open(&whole).unwrap(), Checkpoint::open(&shards).unwrap());
    assert!(whole.names().eq(shards.names()));
    for name in whole.names() {
        assert!(whole.tensor(name).unwrap().bytes == shards.tensor(name).unwrap().bytes, "{name}");
    }
}

#[test]
fn another_type_is_written_into_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    merge_fixture("llama_untied", &out, &["--dtype", "f32"]);
    let adapter = Adapter::read(&model("llama_untied").join("ref/adapter")).unwrap();
    check_weights(&out, stored(&model("llama_untied")), &adapter, DType::F32);
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "float32");
}

/// Logits of the fixtures' batch, `[rows, vocab]`, and the reference's of this name.
fn logits(folder: &Path, adapter: Option<&Adapter>) -> Option<Vec<f32>> {
    let gpu = common::gpu()?;
    let quantize = QuantizeOptions::default();
    let (mut network, source) = open_network(folder, adapter, Precision::F32True, quantize).unwrap();
    network.positions = 64;
    let mut trainer = Trainer::new(&gpu, network, &source, Capacity { tokens: 64, labels: 64 }, 1).unwrap();
    if let Some(adapter) = adapter {
        engraft::train::adapter::load(trainer.optimiser(), adapter).unwrap();
    }
    let batch = common::reference_batch(&model("llama").join("ref/reference.safetensors"));
    Some(trainer.logits(&batch).unwrap())
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn logits_equal_those_of_base_and_adapter_and_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (model("llama"), folder.path().join("out"));
    let adapter = Adapter::read(&base.join("ref/adapter")).unwrap();
    merge_fixture("llama", &out, &[]);
    let Some(merged) = logits(&out, None) else { return };
    let adapted = logits(&base, Some(&adapter)).unwrap();
    let alone = logits(&base, None).unwrap();
    assert!(worst(&merged, &adapted) < 2e-5, "{}", worst(&merged, &adapted));
    assert!(worst(&merged, &alone) > 1e-2, "the adapter must show");

    let file = base.join("ref/reference.safetensors");
    let bytes = fs::read(&file).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reference = reference.tensor("merged.logits").unwrap();
    let vocab = reference.shape()[2];
    let all: Vec<f32> =
        reference.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let rows = common::real_rows(&file);
    let expected: Vec<f32> = rows.iter().flat_map(|row| all[row * vocab..][..vocab].to_vec()).collect();
    assert!(worst(&merged, &expected) < 1e-4, "{}", worst(&merged, &expected));
}

/// A run's output folder with this adapter, as finetune leaves it.
fn run_folder(folder: &Path, adapter: &Adapter, settings: &Value) -> PathBuf {
    adapter.write(folder).unwrap();
    fs::write(folder.join("hyperparameters.json"), settings.to_string()).unwrap();
    folder.to_path_buf()
}

#[test]
fn a_quantised_base_is_dequantised() {
    let folder = tempfile::tempdir().unwrap();
    let base = fixtures().join("quant/llama_bnb4");
    let adapter = Adapter::read(&model("llama").join("ref/adapter")).unwrap();
    let run = folder.path().join("run");
    adapter.write(&run).unwrap();
    let (out, base_name) = (folder.path().join("out"), base.to_str().unwrap());
    let words = [run.to_str().unwrap(), "--model_dir", base_name, "--out_dir", out.to_str().unwrap()];
    let report = merge(&words);
    assert!(report["notes"][0].as_str().unwrap().contains("nf4-dq"), "{report}");

    let checkpoint = Checkpoint::open(&base).unwrap();
    let values = |name: &str| match checkpoint.blocks(name).unwrap() {
        Some(stored) => stored.blocks.dequantise(stored.ty),
        None => checkpoint.tensor(name).unwrap().to_f32(),
    };
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none(), "{config}");
    let named = config["dtype"].as_str().or(config["torch_dtype"].as_str()).unwrap().to_owned();
    assert_eq!(named, "float32");
    check_weights(&out, values, &adapter, DType::F32);
    let expected = ModelConfig::read(&base).unwrap().expected_shapes();
    assert_eq!(Checkpoint::open(&out).unwrap().names().count(), expected.len(), "no codes or scales");

    if let Some(merged) = logits(&out, None) {
        let adapted = logits(&base, Some(&adapter)).unwrap();
        assert!(worst(&merged, &adapted) < 2e-5, "{}", worst(&merged, &adapted));
    }
    let other = folder.path().join("other");
    let words = [&words[..4], &[other.to_str().unwrap()]].concat();
    refused(
        &[&words[..], &["--merge_base", "original"]].concat(),
        &[base_name, "nf4-dq", "--model_dir", "--merge_base dequantized"],
    );
    refused(&[&words[..], &["--quantize", "int8"]].concat(), &["--quantize int8", "nf4-dq already"]);
    assert!(!other.exists());
}

#[test]
fn what_training_quantised_is_merged_either_way() {
    let folder = tempfile::tempdir().unwrap();
    let base = model("llama_untied");
    let adapter = Adapter::read(&base.join("ref/adapter")).unwrap();
    let checkpoint = Checkpoint::open(&base).unwrap();
    for (kind, dtype, head) in
        [("nf4", DType::Nf4, false), ("nf4-dq", DType::Nf4Double, true), ("int8", DType::Int8, false)]
    {
        let settings = json!({ "quantize": kind, "quantize_head": head });
        let run = run_folder(&folder.path().join(format!("run-{kind}")), &adapter, &settings);
        // a step is in the folder of its run, which has the settings
        let step = run.join("step-000002");
        adapter.write(&step).unwrap();
        let out = folder.path().join(format!("{kind}-dequantized"));
        let words = [step.to_str().unwrap(), "--model_dir", base.to_str().unwrap()];
        let dequantized = ["--out_dir", out.to_str().unwrap(), "--merge_base", "dequantized"];
        let report = merge(&[&words[..], &dequantized].concat());
        assert!(report["notes"][0].as_str().unwrap().contains(kind), "{report}");
        let values = |name: &str| {
            let view = checkpoint.tensor(name).unwrap();
            let outer = name.contains("embed_tokens") || name.contains("lm_head");
            if view.shape.len() != 2 || (outer && !head) {
                return view.to_f32();
            }
            let ty = TensorType::new(Shape::new(&view.shape), dtype);
            Blocks::quantise(ty, &view.to_f32()).dequantise(ty)
        };
        check_weights(&out, values, &adapter, DType::BF16);

        let out = folder.path().join(format!("{kind}-original"));
        let original = ["--out_dir", out.to_str().unwrap()];
        let report = merge(&[&words[..], &original].concat());
        let note = report["notes"][0].as_str().unwrap();
        assert!(note.contains(kind) && note.contains("--merge_base dequantized"), "{report}");
        check_weights(&out, stored(&base), &adapter, DType::BF16);
        let out = folder.path().join(format!("{kind}-said"));
        let said = ["--out_dir", out.to_str().unwrap(), "--merge_base", "original"];
        assert_eq!(merge(&[&words[..], &said].concat())["notes"], json!([]), "it was asked for");
    }
    let plain = base.join("ref/adapter");
    let out = folder.path().join("given");
    let words =
        [plain.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir", out.to_str().unwrap()];
    refused(
        &[&words[..], &["--merge_base", "dequantized"]].concat(),
        &["--merge_base dequantized", "--quantize", "hyperparameters.json"],
    );
    refused(&[&words[..], &["--quantize", "nf4"]].concat(), &["--quantize nf4", "--merge_base dequantized"]);
    merge(&[&words[..], &["--merge_base", "dequantized", "--quantize", "nf4"]].concat());
    let name = "model.layers.0.mlp.down_proj.weight";
    let (ours, run) = (folder.path().join("nf4-dequantized"), Checkpoint::open(&out).unwrap());
    let ours = Checkpoint::open(&ours).unwrap();
    assert!(ours.tensor(name).unwrap().bytes == run.tensor(name).unwrap().bytes);
}

/// An adapter with one more layer: the head.
fn with_head(name: &str) -> Adapter {
    let mut adapter = Adapter::read(&model(name).join("ref/adapter")).unwrap();
    let config = ModelConfig::read(&model(name)).unwrap();
    let (r, inputs, outputs) = (adapter.config.r, config.hidden_size, config.vocab_size);
    let mut random = common::Random::new(3);
    let mut some = |count: usize| (0..count).map(|_| 0.1 * random.next() as f32).collect::<Vec<f32>>();
    let (a, b) = (some(r * inputs), some(outputs * r));
    adapter.tensors.push(AdapterTensor { module: "lm_head".into(), a, b, r, inputs, outputs });
    let targets = adapter.tensors.iter().map(|tensor| tensor.module.clone()).collect();
    adapter.config.target_modules = engraft::checkpoint::TargetModules::Names(targets);
    adapter
}

#[test]
fn an_adapter_of_the_head_unties_it() {
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in [("llama", DType::F32), ("llama_untied", DType::BF16)] {
        let adapter = with_head(name);
        let run = folder.path().join(format!("{name}-adapter"));
        adapter.write(&run).unwrap();
        let out = folder.path().join(name);
        let base = model(name);
        let words = [run.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
        let report = merge(&[&words[..], &[out.to_str().unwrap()]].concat());
        let values = stored(&base);
        let embedding = "model.embed_tokens.weight";
        let tied = name == "llama";
        let head = |name: &str| values(if tied && name == "lm_head.weight" { embedding } else { name });
        check_weights(&out, head, &adapter, dtype);
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        let notes = report["notes"].to_string();
        assert_eq!(notes.contains("tie_word_embeddings becomes false"), tied, "{notes}");
        assert_eq!(report["adapted_layers"], 15);
    }
    let mut wrong = with_head("llama");
    let head = wrong.tensors.last_mut().unwrap();
    head.outputs -= 1;
    head.b.truncate(head.outputs * head.r);
    let run = folder.path().join("wrong");
    wrong.write(&run).unwrap();
    let (base, out) = (model("llama"), folder.path().join("never"));
    let words = [run.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
    refused(&[&words[..], &[out.to_str().unwrap()]].concat(), &["lm_head", "another model"]);
}

/// Modules that were trained in full replace the base's; a head that was trained alone is no longer the embedding.
#[test]
fn modules_trained_in_full_are_written_as_the_adapter_has_them() {
    let folder = tempfile::tempdir().unwrap();
    for (name, tied) in [("llama", true), ("llama_untied", false)] {
        let base = model(name);
        let adapter = with_saved(name);
        let (run, out) = (folder.path().join(format!("{name}-adapter")), folder.path().join(name));
        adapter.write(&run).unwrap();
        let words = [run.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
        let report = merge(&[&words[..], &[out.to_str().unwrap(), "--dtype", "f32"]].concat());
        let values = stored(&base);
        let expected = |name: &str| {
            let saved = adapter.saved.iter().find(|s| format!("{}.weight", s.module) == name);
            saved.map_or_else(|| values(name), |s| s.values.clone())
        };
        check_weights(&out, expected, &adapter, DType::F32);
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        let notes = report["notes"].to_string();
        assert!(notes.contains("lm_head, model.norm"), "{notes}");
        assert_eq!(notes.contains("tie_word_embeddings becomes false"), tied, "{notes}");
    }
    let (mut wrong, run) = (with_saved("llama"), folder.path().join("wrong"));
    let head = &mut wrong.saved[0];
    head.shape[0] -= 1;
    head.values.truncate(head.shape.iter().product());
    wrong.write(&run).unwrap();
    let (base, out) = (model("llama"), folder.path().join("never"));
    let words = [run.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
    refused(
        &[&words[..], &[out.to_str().unwrap()]].concat(),
        &["whole weight of lm_head", "was the vocabulary resized?"],
    );
}

/// An adapter beside a head and a norm that were trained in full.
fn with_saved(name: &str) -> Adapter {
    let mut adapter = Adapter::read(&model(name).join("ref/adapter")).unwrap();
    let config = ModelConfig::read(&model(name)).unwrap();
    let mut random = common::Random::new(5);
    let mut saved = |module: &str, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| random.next() as f32).collect();
        SavedModule { module: module.into(), shape: shape.to_vec(), values }
    };
    adapter.saved = vec![
        saved("lm_head", &[config.vocab_size, config.hidden_size]),
        saved("model.norm", &[config.hidden_size]),
    ];
    adapter.config.modules_to_save = Some(vec!["lm_head".into(), "model.norm".into()]);
    adapter
}

#[test]
fn rank_stabilised_adapters_have_their_own_scale() {
    let folder = tempfile::tempdir().unwrap();
    let mut adapter = Adapter::read(&model("llama").join("ref/adapter")).unwrap();
    adapter.config.use_rslora = true;
    assert_eq!(adapter.config.scale(), 4.0);
    let (run, out) = (folder.path().join("run"), folder.path().join("out"));
    adapter.write(&run).unwrap();
    let base = model("llama");
    merge(&[
        run.to_str().unwrap(),
        "--model_dir",
        base.to_str().unwrap(),
        "--out_dir",
        out.to_str().unwrap(),
    ]);
    check_weights(&out, stored(&base), &adapter, DType::F32);
}

#[test]
fn a_run_tells_its_base_and_an_unfinished_one_gives_its_last_step() {
    let folder = tempfile::tempdir().unwrap();
    let base = model("llama");
    let mut adapter = Adapter::read(&base.join("ref/adapter")).unwrap();
    let run = folder.path().join("run");
    let out = folder.path().join("out");
    let words = [run.to_str().unwrap(), "--out_dir", out.to_str().unwrap()];
    adapter.config.base_model_name_or_path = Some("meta-llama/Llama-3.2-1B".into());
    adapter.write(&run).unwrap();
    refused(&words, &["adapter_config.json", "meta-llama/Llama-3.2-1B", "--model_dir"]);

    fs::remove_dir_all(&run).unwrap();
    adapter.config.base_model_name_or_path = Some(base.display().to_string());
    adapter.write(&run.join("step-000010")).unwrap();
    let newest = adapter.tensors[0].clone();
    adapter.tensors[0].a.fill(0.0);
    adapter.write(&run.join("step-000009")).unwrap();
    adapter.tensors[0] = newest;
    let report = merge(&words);
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("no result yet") && note.contains("step-000010"), "{note}");
    check_weights(&out, stored(&base), &adapter, DType::F32);
}

#[test]
fn what_cannot_be_merged_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_dir) = (model("llama"), model("llama").join("ref/adapter"));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, adapter_dir) = (base.to_str().unwrap(), adapter_dir.to_str().unwrap());
    let out = path("out");
    refused(
        &[adapter_dir, "--model_dir", base, "--out_dir", base],
        &["folder of the base model", "--out_dir"],
    );
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/notes.txt"), "mine").unwrap();
    refused(&[adapter_dir, "--model_dir", base, "--out_dir", &path("full")], &["has files already"]);
    refused(&[adapter_dir, "--model_dir", base, "--out_dir", &path("full/notes.txt")], &["is a file"]);
    refused(
        &[adapter_dir, "--model_dir", &path("nowhere"), "--out_dir", &out],
        &["nowhere", "no such folder"],
    );
    refused(&[&path("nowhere"), "--model_dir", base, "--out_dir", &out], &["nowhere", "no such folder"]);
    refused(&[base, "--model_dir", base, "--out_dir", &out], &["adapter_config.json not found"]);

    let write = |name: &str, change: &dyn Fn(&mut Adapter)| {
        let mut adapter = Adapter::read(Path::new(adapter_dir)).unwrap();
        change(&mut adapter);
        adapter.write(&folder.path().join(name)).unwrap();
        path(name)
    };
    let other = write("other", &|adapter| adapter.tensors[0].module = "model.layers.9.mlp.up_proj".into());
    refused(
        &[&other, "--model_dir", base, "--out_dir", &out],
        &["model.layers.9.mlp.up_proj", "another model"],
    );
    let nan = write("nan", &|adapter| adapter.tensors[1].b[3] = f32::NAN);
    refused(&[&nan, "--model_dir", base, "--out_dir", &out], &["not finite", "mlp.gate_proj"]);
    let dora = write("dora", &|_| {});
    let config = fs::read_to_string(format!("{dora}/adapter_config.json")).unwrap();
    let config = config.replace("\"use_dora\": false", "\"use_dora\": true");
    fs::write(format!("{dora}/adapter_config.json"), config).unwrap();
    refused(&[&dora, "--model_dir", base, "--out_dir", &out], &["use_dora = true", "plain LoRA"]);
    let large = write("large", &|adapter| adapter.tensors[0].b.fill(3e5));
    let half = ["--dtype", "f16"];
    refused(
        &[&[&large, "--model_dir", base, "--out_dir", &out], &half[..]].concat(),
        &["65504", "--dtype bf16"],
    );
    let shape = write("shape", &|adapter| {
        let tensor = &mut adapter.tensors[0];
        tensor.inputs += 4;
        tensor.a.resize(tensor.r * tensor.inputs, 0.0);
    });
    refused(&[&shape, "--model_dir", base, "--out_dir", &out], &["[64, 164]", "[64, 160]"]);
    assert!(!Path::new(&out).exists());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");

    // an empty folder is as good as none
    fs::create_dir(&out).unwrap();
    merge(&[adapter_dir, "--model_dir", base, "--out_dir", &out]);
}

#[cfg(unix)]
#[test]
fn a_link_to_an_empty_folder_stays_and_the_folder_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, home) = (folder.path().join("disk"), folder.path().join("home"));
    let adapter = Adapter::read(&model("llama").join("ref/adapter")).unwrap();
    for (name, typed) in [("plain", "plain"), ("completed", "completed/")] {
        let (link, behind) = (home.join(name), disk.join(name));
        fs::create_dir_all(&home).unwrap();
        fs::create_dir_all(&behind).unwrap();
        std::os::unix::fs::symlink(&behind, &link).unwrap();
        merge_fixture("llama", &home.join(typed), &[]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        check_weights(&behind, stored(&model("llama")), &adapter, DType::F32);
    }
    for folder in [disk, home.clone()] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 2, "no temporary folder is left");
    }
    // nothing is made where a link leads nowhere, or where another disk begins, as one does at /dev/shm
    let nowhere = home.join("nowhere");
    std::os::unix::fs::symlink(folder.path().join("missing"), &nowhere).unwrap();
    let mut wrong = vec![(nowhere.clone(), "make that folder"), (home.join("nowhere/"), "make that folder")];
    let shared = Path::new("/dev/shm");
    if atomic::is_mount_point(shared) {
        std::os::unix::fs::symlink(shared, home.join("shared")).unwrap();
        wrong.push((home.join("shared"), "a folder in it"));
    } else {
        eprintln!("SKIPPED: a link to another disk, which /dev/shm is not here");
    }
    let (base, adapter_dir) = (model("llama"), model("llama").join("ref/adapter"));
    let [base, adapter_dir] = [&base, &adapter_dir].map(|path| path.to_str().unwrap());
    for (out_dir, advice) in wrong {
        let out_dir = out_dir.to_str().unwrap();
        refused(&[adapter_dir, "--model_dir", base, "--out_dir", out_dir], &[out_dir, advice]);
    }
    assert!(nowhere.is_symlink() && !folder.path().join("missing").exists());
}

#[test]
fn transformers_loads_it_and_gives_what_peft_gives() {
    let folder = tempfile::tempdir().unwrap();
    let plain = |name: &str| Adapter::read(&model(name).join("ref/adapter")).unwrap();
    for (i, (name, adapter, tied)) in [
        ("llama", plain("llama"), true),
        ("llama_untied", plain("llama_untied"), false),
        ("llama", with_head("llama"), false),
        ("llama", with_saved("llama"), false),
        ("llama_untied", with_saved("llama_untied"), false),
        ("llama_biased", plain("llama_biased"), true),
        ("mistral", plain("mistral"), false),
        ("qwen2", plain("qwen2"), true),
        ("qwen3", plain("qwen3"), true),
        ("gemma", plain("gemma"), true),
        ("gemma2", plain("gemma2"), true),
        ("gemma3", plain("gemma3"), true),
        ("phi3", plain("phi3"), false),
        ("phi4_mini", plain("phi4_mini"), true),
        ("olmo2", plain("olmo2"), false),
        ("olmo3", plain("olmo3"), false),
        ("smollm3", plain("smollm3"), true),
        ("granite", plain("granite"), true),
        ("ministral3", plain("ministral3"), true),
        ("gpt_neox", plain("gpt_neox"), false),
        ("stablelm", plain("stablelm"), false),
        ("starcoder2", plain("starcoder2"), true),
    ]
    .into_iter()
    .enumerate()
    {
        let base = model(name);
        let (run, out) =
            (folder.path().join(format!("adapter-{i}")), folder.path().join(format!("merged-{i}")));
        adapter.write(&run).unwrap();
        let (base, run, out) = (base.to_str().unwrap(), run.to_str().unwrap(), out.to_str().unwrap());
        let words = [run, "--model_dir", base, "--out_dir", out, "--dtype", "f32"];
        merge(&[&words[..], &["--max_shard_size", "150KB"]].concat());
        let Some(result) = python("compare_merged.py", &[base, run, out]) else { return };
        let result: Value = serde_json::from_str(&result).unwrap();
        println!("{name} {i}: {result}");
        let empty = json!([]);
        assert_eq!((&result["missing"], &result["unexpected"]), (&empty, &empty));
        assert_eq!(result["tied"], tied);
        assert_eq!(result["same_tokens"], true);
        // relative to the largest: a head of random numbers gives large logits
        let largest = result["largest"].as_f64().unwrap().max(1.0);
        assert!(result["worst"].as_f64().unwrap() < 2e-5 * largest, "{result}");
    }
}

/// Published GPT-NeoX files hold masks, of which one number is beyond f16's range; and the head has another name there.
#[test]
fn constants_beside_the_weights_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("merged"));
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model("gpt_neox").join(file), base.join(file)).unwrap();
    }
    let bytes = fs::read(model("gpt_neox").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mask, masked) = ([1u8; 16], (-1e9f32).to_le_bytes());
    let view = |dtype, shape, bytes| safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap();
    let names = ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias"];
    let mut all: Vec<_> = file.iter().collect();
    all.push((names[0], view(safetensors::Dtype::BOOL, vec![1, 1, 4, 4], &mask)));
    all.push((names[1], view(safetensors::Dtype::F32, vec![], &masked)));
    let stored: BTreeSet<String> = all.iter().map(|(name, _)| (*name).to_owned()).collect();
    fs::write(base.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();

    let checked = engraft(&["validate", base.to_str().unwrap()]);
    assert!(checked.status.success() && !text(&checked.stdout).contains("have no place"), "{checked:?}");
    let adapter = model("gpt_neox").join("ref/adapter");
    let words = [adapter.to_str().unwrap(), "--model_dir", base.to_str().unwrap(), "--out_dir"];
    merge(&[&words[..], &[out.to_str().unwrap(), "--dtype", "f16"]].concat());
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let merged = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let written: BTreeSet<String> = merged.names().into_iter().map(str::to_owned).collect();
    assert!(written == stored && written.contains("embed_out.weight"), "{written:?}");
    assert_eq!(merged.tensor(names[0]).unwrap().data(), mask);
    assert_eq!(merged.tensor(names[1]).unwrap().data(), masked);
}

/// A Gemma 3 and a Ministral 3 within one that sees images too: PEFT finds the adapter's layers and no others, transformers all weights.
#[test]
fn an_embedded_language_model_keeps_the_names_of_the_whole() {
    for name in ["gemma3", "ministral3"] {
        keeps_the_names_of_the_whole(name);
    }
}

fn keeps_the_names_of_the_whole(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, run, out) = (path("base"), path("adapter"), path("merged"));
    if python("make_embedded.py", &[model(name).to_str().unwrap(), &base]).is_none() {
        return;
    }
    let plain = Adapter::read(&model(name).join("ref/adapter")).unwrap();
    let adapter = Adapter { embedded: true, ..plain };
    adapter.write(Path::new(&run)).unwrap();
    assert_eq!(Adapter::read(Path::new(&run)).unwrap(), adapter);
    merge(&[&run, "--model_dir", &base, "--out_dir", &out, "--dtype", "f32"]);
    let result = python("compare_merged.py", &[&base, &run, &out]).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    let empty = json!([]);
    assert_eq!((&result["missing"], &result["unexpected"]), (&empty, &empty));
    assert!(result["worst"].as_f64().unwrap() < 1e-4 && result["tied"] == true, "{result}");
    let stored = |folder: &str| {
        let bytes = fs::read(Path::new(folder).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.names().into_iter().map(str::to_owned).collect::<BTreeSet<String>>()
    };
    assert_eq!(stored(&out), stored(&base));

    let input = path("input.json");
    fs::write(&input, json!({ "input_ids": [[3, 1, 4, 1, 5, 9]] }).to_string()).unwrap();
    let loaded = python("load_adapter.py", &[&base, &run, &input]).unwrap();
    let loaded: Value = serde_json::from_str(&loaded).unwrap();
    assert_eq!((&loaded["missing"], &loaded["unexpected"]), (&empty, &empty));
    assert_eq!(loaded["modules"].as_array().unwrap().len(), 14);
}
