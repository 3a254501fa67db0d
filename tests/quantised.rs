//! Block-quantised weights against the references: codes, scales and values; a checkpoint that bitsandbytes saved.

mod common;

use engraft::checkpoint::Checkpoint;
use engraft::graph::blocks::{Blocks, NF4, Scales, dynamic_map};
use engraft::graph::{DType, Shape, TensorType};
use engraft::models::{ModelConfig, Network};
use engraft::train::adapter::spec_of_targets;
use engraft::train::options::Precision;
use engraft::train::plan::{Demand, TrainingPlan};
use engraft::train::quantize::{Quantize, QuantizeOptions};
use engraft::train::setup::open_network;
use engraft::train::trainer::{Capacity, Trainer};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

struct Tensors(Vec<u8>);

impl Tensors {
    fn read(path: &Path) -> Self {
        Tensors(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        safetensors::SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

#[test]
fn codes_scales_and_values_equal_the_references() {
    let vectors = Tensors::read(&common::fixtures().join("quant/vectors.safetensors"));
    assert_eq!(NF4.to_vec(), vectors.floats("nf4.codebook"));
    assert_eq!(dynamic_map().to_vec(), vectors.floats("dynamic8.codebook"));
    let ty = |dtype| TensorType::new(Shape::matrix(256, 320), dtype);
    let matrix = vectors.floats("matrix");

    let nf4 = Blocks::quantise(ty(DType::Nf4), &matrix);
    assert_eq!(nf4.codes, vectors.bytes("matrix.nf4.packed"));
    assert_eq!(nf4.scales, Scales::Plain(vectors.floats("matrix.nf4.absmax")));
    assert_eq!(nf4.dequantise(ty(DType::Nf4)), vectors.floats("matrix.nf4.dequant"));

    let double = Blocks::quantise(ty(DType::Nf4Double), &matrix);
    assert_eq!(double.codes, vectors.bytes("matrix.nf4dq.packed"));
    let Scales::Double { codes, scales, offset, .. } = &double.scales else { panic!("{:?}", double.scales) };
    assert_eq!(codes, &vectors.bytes("matrix.nf4dq.absmax_codes"));
    assert_eq!(scales, &vectors.floats("matrix.nf4dq.nested_absmax"));
    assert_eq!(vec![*offset], vectors.floats("matrix.nf4dq.offset"));
    assert_eq!(double.dequantise(ty(DType::Nf4Double)), vectors.floats("matrix.nf4dq.dequant"));

    let int8 = Blocks::quantise(ty(DType::Int8), &matrix);
    assert_eq!(int8.codes, vectors.bytes("int8.codes"));
    assert_eq!(int8.scales, Scales::Plain(vectors.floats("int8.absmax")));
    assert_eq!(int8.dequantise(ty(DType::Int8)), vectors.floats("int8.dequant"));
}

#[test]
fn a_checkpoint_of_bitsandbytes_loads_as_it_is() {
    let folder = common::fixtures().join("quant/llama_bnb4");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.quantised().unwrap(), Some(DType::Nf4Double));
    let name = "model.layers.0.mlp.down_proj.weight";
    let stored = checkpoint.blocks(name).unwrap().unwrap();
    assert_eq!(stored.ty, TensorType::new(Shape::matrix(64, 160), DType::Nf4Double));
    let file = Tensors::read(&folder.join("model.safetensors"));
    assert_eq!(stored.blocks.codes, file.bytes(name));
    assert!(checkpoint.blocks("model.norm.weight").unwrap().is_none());

    let Some(gpu) = common::gpu() else { return };
    let (mut network, source) =
        open_network(&folder, None, Precision::F32True, QuantizeOptions::default()).unwrap();
    network.positions = 64;
    let mut trainer = Trainer::new(&gpu, network, &source, Capacity { tokens: 64, labels: 64 }, 1).unwrap();
    let models = common::fixtures().join("models/llama/ref/reference.safetensors");
    let batch = common::reference_batch(&models);
    let logits = trainer.logits(&batch).unwrap();
    let expected = Tensors::read(&folder.join("logits.safetensors")).floats("base.logits");
    let vocab = ModelConfig::read(&folder).unwrap().vocab_size;
    let rows = common::real_rows(&models);
    assert_eq!(logits.len(), rows.len() * vocab);
    let mut worst = 0f32;
    for (row, actual) in rows.iter().zip(logits.chunks(vocab)) {
        for (a, e) in actual.iter().zip(&expected[row * vocab..]) {
            worst = worst.max((a - e).abs());
        }
    }
    println!("logits: worst error {worst:.2e}");
    assert!(worst < 1e-4, "{worst}");
}

/// The folder that bitsandbytes saved, with these linear layers (or all) as the values that their codes stand for, in f32.
fn with_plain_layers(plain: impl Fn(&str) -> bool) -> TempDir {
    let bnb = common::fixtures().join("quant/llama_bnb4");
    let checkpoint = Checkpoint::open(&bnb).unwrap();
    let config = ModelConfig::read(&bnb).unwrap();
    let layers: Vec<String> =
        Network::linear_modules(&config).into_iter().map(|(m, _, _)| m).filter(|m| plain(m)).collect();
    let weights: Vec<String> = layers.iter().map(|module| format!("{module}.weight")).collect();
    let bytes = std::fs::read(bnb.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of_plain = |name: &str| weights.iter().any(|weight| name.starts_with(weight.as_str()));
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = stored
        .iter()
        .filter(|(name, _)| !of_plain(name))
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    for weight in &weights {
        let stored = checkpoint.blocks(weight).unwrap().unwrap();
        let values = stored.blocks.dequantise(stored.ty);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((weight.clone(), Dtype::F32, stored.ty.shape.dims().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bnb.join("config.json")).unwrap()).unwrap();
    config["quantization_config"]["llm_int8_skip_modules"] = layers.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// As dynamic quantisation leaves them: some layers of a block, others of the next.
fn mixed() -> TempDir {
    with_plain_layers(|m| ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"].contains(&m))
}

/// Loss, gradients of a new adapter and memory of a training step in f32.
fn step(gpu: &engraft::gpu::Gpu, folder: &Path) -> (f64, Vec<(String, Vec<f32>)>, u64) {
    let models = common::fixtures().join("models/llama/ref/reference.safetensors");
    let batch = common::reference_batch(&models);
    let (mut network, source) =
        open_network(folder, None, Precision::F32True, QuantizeOptions::default()).unwrap();
    network.positions = 64;
    network.adapter = Some(spec_of_targets(&network.config, &[], 4, 8.0, 0.0).unwrap());
    let demand = Demand { capacity: Capacity { tokens: 64, labels: 64 }, ..Demand::uniform(1, 64) };
    let plan = TrainingPlan::new(&network, &demand, &gpu.profile()).unwrap();
    let planned = plan.memory;
    let mut trainer = Trainer::from_plan(gpu, plan, &source, 1).unwrap();
    trainer.begin().unwrap();
    trainer.accumulate(&batch, 1.0 / batch.label_count() as f32).unwrap();
    let gradients = trainer.optimiser().gradients().unwrap();
    let loss = trainer.evaluate([&batch]).unwrap() / batch.label_count() as f64;
    assert_eq!(trainer.memory(), planned, "{}", folder.display());
    (loss, gradients, planned.weights)
}

#[test]
fn layers_that_bitsandbytes_left_out_stay_plain() {
    let folder = mixed();
    let (network, _) =
        open_network(folder.path(), None, Precision::BF16True, QuantizeOptions::default()).unwrap();
    let graph = network.training(32, 32).unwrap();
    let stored = |module: &str| {
        let leaf = graph.leaves().iter().find(|leaf| leaf.name == format!("{module}.weight")).unwrap();
        graph.type_of(leaf.value).dtype
    };
    assert_eq!(stored("model.layers.0.mlp.down_proj"), DType::BF16);
    assert_eq!(stored("model.layers.1.self_attn.q_proj"), DType::BF16);
    let layers = Network::linear_modules(&network.config);
    let packed = layers.iter().filter(|(module, _, _)| stored(module) == DType::Nf4Double);
    assert_eq!((packed.count(), layers.len()), (12, 14));

    // a plan reads the headers
    let folder_text = folder.path().to_str().unwrap();
    let said = common::engraft(&["plan", "--model_dir", folder_text, "--max_seq_length", "32", "--json"]);
    assert!(said.status.success(), "{}", common::text(&said.stderr));
    let report: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let plan = TrainingPlan::new(
        &Network {
            adapter: Some(spec_of_targets(&network.config, &[], 4, 8.0, 0.0).unwrap()),
            positions: 32,
            ..network
        },
        &Demand::uniform(1, 32),
        &engraft::graph::DeviceProfile::typical_gpu(),
    );
    assert_eq!(report["bytes"]["weights"], plan.unwrap().memory.weights);

    let Some(gpu) = common::gpu() else { return };
    let found = step(&gpu, folder.path());
    let packed = step(&gpu, &common::fixtures().join("quant/llama_bnb4"));
    let dequantised = step(&gpu, with_plain_layers(|_| true).path());
    for (name, expected) in [("packed", &packed), ("dequantised", &dequantised)] {
        assert!((found.0 - expected.0).abs() < 1e-5, "{name}: loss {} and {}", found.0, expected.0);
        let mut worst = 0f32;
        for ((module, a), (other, e)) in found.1.iter().zip(&expected.1) {
            assert_eq!(module, other);
            a.iter().zip(e).for_each(|(a, e)| worst = worst.max((a - e).abs()));
        }
        println!("{name}: loss {}, worst gradient {worst:.2e}", expected.0);
        assert!(worst < 1e-5, "{name}: gradients differ by {worst}");
    }
    assert!(found.1.iter().any(|(_, g)| g.iter().any(|v| v.abs() > 1e-3)), "there are gradients");
    assert!(packed.2 < found.2 && found.2 < dequantised.2, "{} {} {}", packed.2, found.2, dequantised.2);
}

#[test]
fn what_does_not_go_together_is_refused_with_advice() {
    let folder = common::fixtures().join("quant/llama_bnb4");
    let int8 = QuantizeOptions { kind: Quantize::Int8, head: false };
    let error = open_network(&folder, None, Precision::BF16True, int8).err().unwrap().to_string();
    assert!(error.contains("--quantize int8") && error.contains("nf4-dq already"), "{error}");

    // damaged parts are found by name
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let damaged = tempfile::tempdir().unwrap();
    let state = b"\"quant_type\": \"nf4\"";
    let at = bytes.windows(state.len()).position(|w| w == state).unwrap();
    let mut other = bytes.clone();
    other[at..at + state.len()].copy_from_slice(b"\"quant_type\": \"fp4\"");
    std::fs::write(damaged.path().join("model.safetensors"), other).unwrap();
    let checkpoint = Checkpoint::open(damaged.path()).unwrap();
    let names: HashMap<String, String> = checkpoint
        .names()
        .filter_map(|n| n.split_once(".quant_state"))
        .filter_map(|(weight, _)| Some((weight.to_string(), checkpoint.blocks(weight).err()?.to_string())))
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let (weight, message) = names.iter().next().unwrap();
    assert!(
        message.contains(weight) && message.contains("fp4") && message.contains("--quantize"),
        "{message}"
    );
}
