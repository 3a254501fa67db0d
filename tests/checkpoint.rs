//! Weights and adapters on disk: the fixtures of PyTorch and PEFT, and files made to do harm.

use engraft::checkpoint::{Adapter, AdapterConfig, Checkpoint, TargetModules, write_safetensors};
use engraft::graph::DType;
use engraft::models::config::ModelConfig;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODELS: [&str; 3] = ["llama", "llama_untied", "llama_sharded"];

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A safetensors file with this header, whatever it says, and `data` zero bytes.
fn write_raw(path: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(path, bytes).unwrap();
}

/// The message with which a folder that holds this one file is refused.
fn refused(file_name: &str, write: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file_name);
    write(&path);
    match Checkpoint::open(folder.path()) {
        Ok(_) => panic!("a broken {file_name} was opened"),
        Err(error) => error.to_string(),
    }
}

fn refused_header(header: &Value, data: usize) -> String {
    refused("model.safetensors", |path| write_raw(path, &header.to_string(), data))
}

fn tensor(dtype: &str, shape: Value, start: u64, end: u64) -> Value {
    json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] })
}

#[test]
fn fixtures_hold_exactly_the_expected_weights() {
    for model in MODELS {
        let checkpoint = Checkpoint::open(&fixture(model)).unwrap();
        let config = ModelConfig::read(&fixture(model)).unwrap();
        let mut expected = config.expected_shapes();
        expected.sort();
        let names: Vec<&str> = checkpoint.names().collect();
        assert_eq!(names, expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), "{model}");
        checkpoint.check(expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))).unwrap();
        let size = if model == "llama" { 4 } else { 2 };
        assert_eq!(checkpoint.total_bytes(), config.parameter_count() * size, "{model}");
    }
}

#[test]
fn values_are_those_of_the_file() {
    let path = fixture("llama_untied").join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = Checkpoint::open_file(&path).unwrap();
    for (name, view) in theirs.tensors() {
        let tensor = ours.tensor(&name).unwrap();
        assert_eq!((tensor.bytes, tensor.shape.as_slice()), (view.data(), view.shape()), "{name}");
        assert_eq!(tensor.dtype, DType::BF16);
        let expected: Vec<f32> = view
            .data()
            .chunks(2)
            .map(|pair| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16))
            .collect();
        assert_eq!(tensor.to_f32(), expected, "{name}");
    }
}

#[test]
fn shards_hold_the_values_of_their_files() {
    let model = fixture("llama_sharded");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let index = read_json(&model.join("model.safetensors.index.json"));
    for (name, shard) in index["weight_map"].as_object().unwrap() {
        let alone = Checkpoint::open_file(&model.join(shard.as_str().unwrap())).unwrap();
        assert_eq!(checkpoint.tensor(name).unwrap().bytes, alone.tensor(name).unwrap().bytes, "{name}");
    }
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    assert!(!checkpoint.contains("lm_head.weight"));
    let text = checkpoint.tensor("model.layers.0.self_attn.q_pro.weight").unwrap_err().to_string();
    assert!(text.contains("nearest names are model.layers.0.self_attn.q_proj.weight, "), "{text}");
    assert!(text.contains("model.safetensors"), "{text}");
}

const TIED: [&str; 2] = ["lm_head.weight", "model.embed_tokens.weight"];

/// A head in the files of a model whose configuration says that it is the embedding: a copy is none.
#[test]
fn a_head_that_is_not_the_embedding_is_refused_where_it_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor("model.embed_tokens.weight").unwrap();
    let mut other = embedding.data().to_vec();
    // one number of the last row
    *other.last_mut().unwrap() ^= 1;
    let with_head = |head: &[u8]| {
        let view = safetensors::tensor::TensorView::new(embedding.dtype(), embedding.shape().to_vec(), head)
            .unwrap();
        let mut tensors: Vec<_> = file.iter().collect();
        tensors.push(("lm_head.weight", view));
        fs::write(folder.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
            .unwrap();
        Checkpoint::open(folder.path()).unwrap()
    };
    with_head(embedding.data()).check_tied(Some(TIED)).unwrap();
    let different = with_head(&other);
    different.check_tied(None).unwrap();
    let text = different.check_tied(Some(TIED)).unwrap_err().to_string();
    assert!(text.contains("lm_head.weight is not model.embed_tokens.weight"), "{text}");
    assert!(text.contains("tie_word_embeddings"), "{text}");
}

#[test]
fn a_wrong_shape_says_what_was_expected() {
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let text = checkpoint.check([("model.norm.weight", [65].as_slice())]).unwrap_err().to_string();
    assert!(text.contains("\"model.norm.weight\" has shape [64], expected [65]"), "{text}");
}

#[test]
fn folders_without_weights_say_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let message = || Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(
        message().contains("model.safetensors (or model.safetensors.index.json with its shards) not found")
    );
    fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(message().contains("pytorch_model.bin is there: convert"), "{}", message());
    let missing = Checkpoint::open(&folder.path().join("nowhere")).err().unwrap().to_string();
    assert!(missing.contains("no such folder"), "{missing}");
    let adapter = Checkpoint::open(&fixture("llama/ref/adapter")).err().unwrap().to_string();
    assert!(adapter.contains("this is an adapter"), "{adapter}");
}

#[test]
fn every_truncation_of_a_file_is_noticed() {
    let whole = fs::read(fixture("llama_untied").join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header - 1, header, header + 1, whole.len() / 2, whole.len() - 1] {
        let text = refused("model.safetensors", |path| fs::write(path, &whole[..length]).unwrap());
        assert!(text.contains("truncated") && text.contains(&format!("{length} found")), "{length}: {text}");
    }
    let longer = [&whole[..], b"more"].concat();
    let text = refused("model.safetensors", |path| fs::write(path, &longer).unwrap());
    assert!(text.contains("4 bytes behind the last tensor"), "{text}");
}

#[test]
fn headers_that_are_none_are_refused() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        let text = refused("model.safetensors", |path| fs::write(path, &bytes).unwrap());
        assert!(text.contains("more than the limit"), "{text}");
    }
    let text = refused("model.safetensors", |path| {
        fs::write(path, [b"\x40\0\0\0\0\0\0\0".as_slice(), b"{}"].concat()).unwrap()
    });
    assert!(text.contains("truncated: 72 bytes expected, 10 found"), "{text}");
    for header in ["not json", "[1]", "\"text\"", "{\"a\": 1", &"[".repeat(100_000), "\u{0}\u{0}"] {
        let text = refused("model.safetensors", |path| write_raw(path, header, 0));
        assert!(text.contains("its header is not JSON"), "{text}");
    }
    let invalid_utf8 = [&2u64.to_le_bytes()[..], b"\xff\xfe"].concat();
    assert!(
        refused("model.safetensors", |path| fs::write(path, &invalid_utf8).unwrap()).contains("not JSON")
    );
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    assert!(refused("model.safetensors", |path| fs::write(path, pointer).unwrap()).contains("git lfs pull"));
}

#[test]
fn contradictions_in_a_header_name_the_tensor() {
    let bad = |value: Value, data, reason: &str| {
        let text = refused_header(&json!({ "__metadata__": { "format": "pt" }, "a.b": value }), data);
        assert!(text.contains("tensor \"a.b\": ") && text.contains(reason), "{text}");
    };
    bad(json!(1), 0, "not understood");
    bad(json!({ "dtype": "F32", "shape": [1] }), 4, "data_offsets");
    bad(tensor("F32", json!([-1]), 0, 4), 4, "not understood");
    bad(tensor("F32", json!([1.5]), 0, 4), 4, "not understood");
    bad(tensor("F32", json!([2]), 0, 4), 4, "F32 [2] takes 8 bytes, but its data have 4");
    bad(tensor("BF16", json!([2]), 8, 4), 8, "before they start");
    bad(tensor("F32", json!([u64::MAX, u64::MAX]), 0, 4), 4, "not a possible size");
    bad(tensor("F32", json!([1u64 << 62]), 0, 0), 0, "not a possible size");
    bad(tensor("F32", json!([1]), 4, 8), 8, "leave a gap");
    bad(tensor("F32", json!([1]), u64::MAX - 4, u64::MAX), 8, "leave a gap");
    bad(json!({ "dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8] }), 4, "not understood");

    let overlapping = json!({ "a": tensor("F32", json!([2]), 0, 8), "b": tensor("F32", json!([1]), 4, 8) });
    let text = refused_header(&overlapping, 8);
    assert!(text.contains("tensor \"b\"") && text.contains("overlap"), "{text}");
    let same = json!({ "a": tensor("F32", json!([2]), 0, 8), "b": tensor("F32", json!([2]), 0, 8) });
    assert!(refused_header(&same, 8).contains("overlap"));
    let beyond = json!({ "a": tensor("F16", json!([1u64 << 40]), 0, 1 << 41) });
    assert!(refused_header(&beyond, 8).contains("truncated"));
}

#[test]
fn types_that_cannot_be_read_concern_only_their_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let header = json!({
        "ids": tensor("I64", json!([1]), 0, 8),
        "later": tensor("F3_NEW", json!([5]), 8, 10),
        "packed": tensor("F4", json!([2]), 10, 11),
        "good": tensor("F16", json!([]), 11, 13),
        "empty": tensor("F32", json!([0, 7]), 13, 13),
    });
    write_raw(&folder.path().join("model.safetensors"), &header.to_string(), 13);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, dtype) in [("ids", "I64"), ("later", "F3_NEW"), ("packed", "F4")] {
        let text = checkpoint.tensor(name).unwrap_err().to_string();
        assert!(text.contains(&format!("tensor \"{name}\" has element type {dtype}")), "{text}");
    }
    assert_eq!(checkpoint.tensor("good").unwrap().to_f32(), [0.0]);
    let empty = checkpoint.tensor("empty").unwrap();
    assert_eq!((empty.to_f32().len(), empty.rows(0..0).bytes.len()), (0, 0));
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let one = json!({ "a": tensor("F32", json!([1]), 0, 4) }).to_string();
    write_raw(&folder.path().join("outside.safetensors"), &one, 4);
    write_raw(&model.join("inside.safetensors"), &one, 4);
    let open = |shard: Value| {
        let index = json!({ "metadata": {}, "weight_map": { "a": shard } }).to_string();
        fs::write(model.join("model.safetensors.index.json"), index).unwrap();
        Checkpoint::open(&model)
    };
    let absolute = folder.path().join("outside.safetensors");
    for shard in [
        "../outside.safetensors",
        "x/../../outside.safetensors",
        "./inside.safetensors",
        absolute.to_str().unwrap(),
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "..",
        ".",
        "",
        "a\0b",
    ] {
        let text = open(json!(shard)).err().unwrap().to_string();
        assert!(text.contains("not a plain file name"), "{shard}: {text}");
    }
    let text = open(json!("other.safetensors")).err().unwrap().to_string();
    assert!(text.contains("shard \"other.safetensors\" with tensor \"a\" is missing"), "{text}");
    assert!(open(json!(7)).err().unwrap().to_string().contains("line 1"));
    assert_eq!(open(json!("inside.safetensors")).unwrap().tensor("a").unwrap().to_f32(), [0.0]);

    write_raw(&model.join("inside.safetensors"), "{}", 0);
    let text = open(json!("inside.safetensors")).err().unwrap().to_string();
    assert!(text.contains("\"a\"") && text.contains("it is not there"), "{text}");
    fs::write(model.join("model.safetensors.index.json"), "{\"weight_map\":").unwrap();
    assert!(Checkpoint::open(&model).err().unwrap().to_string().contains("index.json: line 1"));
    fs::write(model.join("model.safetensors.index.json"), "{}").unwrap();
    assert!(Checkpoint::open(&model).err().unwrap().to_string().contains("weight_map"));
}

#[test]
fn a_rewritten_model_is_the_same_file() {
    for model in ["llama", "llama_untied"] {
        let source = Checkpoint::open(&fixture(model)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // In another order than that of the file: the order on disk does not depend on it.
        let mut names: Vec<&str> = source.names().collect();
        names.reverse();
        let tensors = names.into_iter().map(|name| {
            let view = source.tensor(name).unwrap();
            (name.to_owned(), view.dtype, view.shape, view.bytes)
        });
        write_safetensors(&path, tensors, &[("format", "pt")]).unwrap();
        assert!(
            fs::read(&path).unwrap() == fs::read(fixture(model).join("model.safetensors")).unwrap(),
            "{model}"
        );
    }
}

#[test]
fn adapters_of_peft_are_written_back_equal() {
    for model in MODELS {
        let theirs = fixture(model).join("ref/adapter");
        let adapter = Adapter::read(&theirs).unwrap();
        assert_eq!((adapter.tensors.len(), adapter.config.r, adapter.config.scale()), (14, 4, 2.0));
        let gate = adapter.tensors.iter().find(|t| t.module == "model.layers.1.mlp.gate_proj").unwrap();
        assert_eq!((gate.r, gate.inputs, gate.outputs, gate.a.len(), gate.b.len()), (4, 64, 160, 256, 640));

        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("deep/adapter");
        // The second time the folder is there and its files are replaced.
        for _ in 0..2 {
            adapter.write(&ours).unwrap();
            assert_eq!(Adapter::read(&ours).unwrap(), adapter);
            let file = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
            assert!(
                file(&ours, "adapter_model.safetensors") == file(&theirs, "adapter_model.safetensors"),
                "{model}: other bytes"
            );
            let (a, b) = (
                read_json(&ours.join("adapter_config.json")),
                read_json(&theirs.join("adapter_config.json")),
            );
            assert_eq!(a, b);
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&a), keys(&b), "in the same order");
            assert_eq!(fs::read_dir(&ours).unwrap().count(), 2);
            assert_eq!(fs::read_dir(ours.parent().unwrap()).unwrap().count(), 1);
        }
    }
}

#[test]
fn damaged_adapters_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let message = || Adapter::read(dir).unwrap_err().to_string();
    assert!(message().contains("adapter_config.json not found"), "{}", message());
    fs::copy(fixture("llama/ref/adapter/adapter_config.json"), dir.join("adapter_config.json")).unwrap();
    assert!(message().contains("adapter_model.safetensors not found"), "{}", message());
    fs::write(dir.join("adapter_model.bin"), b"x").unwrap();
    assert!(message().contains("convert"), "{}", message());

    let write = |tensors: &[(&str, &[usize])]| {
        let tensors = tensors.iter().map(|(name, shape)| {
            let bytes = vec![0u8; shape.iter().product::<usize>() * 4];
            (format!("base_model.model.q.{name}"), DType::F32, shape.to_vec(), bytes)
        });
        write_safetensors(&dir.join("adapter_model.safetensors"), tensors, &[]).unwrap();
        message()
    };
    let a: (&str, &[usize]) = ("lora_A.weight", &[4, 8]);
    assert!(write(&[a]).contains("base_model.model.q.lora_B.weight"));
    assert!(write(&[a, ("lora_B.weight", &[8, 3])]).contains("shape [8, 3], but the rank"));
    assert!(
        write(&[("lora_A.weight", &[5, 8]), ("lora_B.weight", &[8, 5])])
            .contains("the rank in adapter_config.json is 4")
    );
    assert!(write(&[a, ("lora_B.weight", &[8, 4, 1])]).contains("expected a matrix"));
    assert!(write(&[a, ("lora_magnitude_vector", &[8])]).contains("lora_magnitude_vector"));
    assert!(write(&[]).contains("no tensors"));
    fs::write(dir.join("adapter_model.safetensors"), b"short").unwrap();
    assert!(message().contains("truncated"));
}

#[test]
fn peft_loads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("llama");
    let mut adapter = Adapter::read(&model.join("ref/adapter")).unwrap();
    // Short names, as a user gives them; PEFT must find the same layers by them.
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    adapter.config.target_modules = TargetModules::Names(names.map(str::to_owned).to_vec());
    let dir = folder.path().join("adapter");
    adapter.write(&dir).unwrap();
    assert_eq!(AdapterConfig::read(&dir).unwrap().r, 4);

    let reference = fs::read(model.join("ref/reference.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
    let integers = |name: &str| -> Value {
        let view = reference.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::I32);
        let values: Vec<i32> =
            view.data().as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        values.chunks(view.shape()[1]).collect()
    };
    let mask = integers("attention_mask");
    let input =
        json!({ "input_ids": integers("input_ids"), "labels": integers("labels"), "attention_mask": mask });
    let input_path = folder.path().join("input.json");
    fs::write(&input_path, input.to_string()).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/load_adapter.py");
    let output = Command::new("python3").args([&script, &model, &dir, &input_path]).output();
    let output = match output {
        Ok(output) if output.status.code() != Some(77) => output,
        _ => {
            eprintln!("SKIPPED: python3 with torch, transformers and peft is not installed");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["missing"], &result["unexpected"]), (&json!([]), &json!([])));
    assert_eq!(result["scale"], json!(2.0));
    assert_eq!(result["modules"].as_array().unwrap().len(), 14);
    let expected = read_json(&model.join("ref/reference.json"))["lora_loss"].as_f64().unwrap();
    assert!((result["loss"].as_f64().unwrap() - expected).abs() < 5e-6, "{} {expected}", result["loss"]);

    let logits: Vec<f64> = flatten(&result["logits"]);
    let view = reference.tensor("lora.logits").unwrap();
    let vocab = view.shape()[2];
    let real: Vec<f64> = flatten(&mask);
    let worst = view.data().as_chunks::<4>().0.iter().zip(&logits).enumerate().fold(
        0f64,
        |worst, (i, (bytes, ours))| {
            worst.max((f64::from(f32::from_le_bytes(*bytes)) - ours).abs() * real[i / vocab])
        },
    );
    assert_eq!(logits.len(), view.shape().iter().product::<usize>());
    assert!(worst < 1e-4, "{worst}");
}

fn flatten(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flatten).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}
