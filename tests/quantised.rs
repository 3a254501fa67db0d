//! Block-quantised weights against the references: codes, scales and values; a checkpoint that bitsandbytes saved.

mod common;

use engraft::checkpoint::Checkpoint;
use engraft::graph::blocks::{Blocks, NF4, Scales, dynamic_map};
use engraft::graph::{DType, Shape, TensorType};
use engraft::models::ModelConfig;
use engraft::train::options::Precision;
use engraft::train::quantize::{Quantize, QuantizeOptions};
use engraft::train::setup::open_network;
use engraft::train::trainer::{Capacity, Trainer};
use std::collections::HashMap;
use std::path::Path;

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
