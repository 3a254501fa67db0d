//! Whole models against PyTorch + transformers + PEFT in f32: logits, losses, every adapter gradient by name, the 20-step
//! curve, the final adapter, greedy tokens. Formulas and tolerances: `tests/fixtures/gen/data/formulas.json` and the
//! constants below; see `tests/fixtures/README.md`.

mod common;

use engraft::autograd::Recompute;
use engraft::checkpoint::{Adapter, Checkpoint};
use engraft::data::MicroBatch;
use engraft::gpu::Gpu;
use engraft::graph::{Choices, Cooperative, DType, DeviceProfile, SharedMatrices};
use engraft::models::{ModelConfig, Network};
use engraft::nn::{PlainLayers, WeightMode};
use engraft::ops::adamw::Hyper;
use engraft::ops::{attention, matmul};
use engraft::plan::Layout;
use engraft::train::adapter;
use engraft::train::options::Precision;
use engraft::train::quantize::{Quantize, QuantizeOptions};
use engraft::train::trainer::{Capacity, Trainer};
use engraft::train::weights::WeightSource;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOGITS: f64 = 1e-4;
const LOSS: f64 = 5e-6;
const GRADIENT: f64 = 1e-4;
const CURVE_LOSS: f64 = 1e-5;
const CURVE_NORM: f64 = 2e-5;
const FINAL: f64 = 2e-6;

/// Tensors and figures of one reference run.
struct Reference {
    folder: PathBuf,
    figures: PathBuf,
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
    report: serde_json::Value,
}

impl Reference {
    fn read(name: &str) -> Self {
        let folder = common::fixtures().join("models").join(name);
        let figures = folder.join("ref");
        Reference::of(folder, figures)
    }

    /// Figures of the model in `folder`, or of one made from it.
    fn of(folder: PathBuf, figures: PathBuf) -> Self {
        let bytes = std::fs::read(figures.join("reference.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let numbers = view.data().chunks(4).map(|b| b.try_into().unwrap());
                let values = match view.dtype() {
                    safetensors::Dtype::F32 => numbers.map(|b| f64::from(f32::from_le_bytes(b))).collect(),
                    safetensors::Dtype::I32 => numbers.map(|b| f64::from(i32::from_le_bytes(b))).collect(),
                    other => panic!("{name} is {other:?}"),
                };
                (name.to_string(), (view.shape().to_vec(), values))
            })
            .collect();
        let report =
            serde_json::from_str(&std::fs::read_to_string(figures.join("reference.json")).unwrap()).unwrap();
        Reference { folder, figures, tensors, report }
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    fn number(&self, key: &str) -> f64 {
        self.report[key].as_f64().unwrap()
    }

    fn curve(&self, key: &str) -> Vec<f64> {
        self.report["curve"][key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// Batch `index` of `{prefix}input_ids` as a flat stream without its padding.
    fn batch(&self, prefix: &str, index: usize) -> MicroBatch {
        let (rows, width) = (2, 24);
        let part = |name: &str| {
            let all = self.tensor(&format!("{prefix}{name}"));
            all[index * rows * width..(index + 1) * rows * width].to_vec()
        };
        let (ids, mask, labels) = (part("input_ids"), part("attention_mask"), part("labels"));
        common::flat_batch(&ids, &mask, &labels, width)
    }

    /// The rows of `[2, 24, vocab]` logits that are not padding.
    fn logits(&self, name: &str) -> Vec<f64> {
        let (shape, values) = &self.tensors[name];
        let vocab = shape[2];
        let mask = self.tensor("attention_mask");
        values.chunks(vocab).zip(mask).filter(|(_, m)| **m == 1.0).flat_map(|(row, _)| row.to_vec()).collect()
    }
}

/// The worst error of each quantity, printed and compared with what is allowed.
#[derive(Default)]
struct Errors(Vec<(String, f64, f64)>);

impl Errors {
    fn add(&mut self, what: &str, error: f64, allowed: f64) {
        match self.0.iter_mut().find(|e| e.0 == what) {
            // once NaN, always
            Some(entry) if error.is_nan() || entry.1.is_nan() => entry.1 = f64::NAN,
            Some(entry) => entry.1 = entry.1.max(error),
            None => self.0.push((what.to_string(), error, allowed)),
        }
    }

    fn finish(self, model: &str) {
        for (what, error, allowed) in &self.0 {
            println!("{model:14} {what:22} worst error {error:.2e}   allowed {allowed:.0e}");
        }
        let wrong: Vec<_> =
            self.0.iter().filter(|(_, error, allowed)| error.is_nan() || error > allowed).collect();
        assert!(wrong.is_empty(), "{model}: over the tolerance: {wrong:?}");
    }
}

fn worst(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    actual
        .iter()
        .zip(expected)
        .fold(0.0, |m, (a, e)| if (a - e).is_nan() { f64::INFINITY } else { m.max((a - e).abs()) })
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// `adapter` is the folder of one to load.
fn network(folder: &Path, adapter: Option<&Path>, recompute: Recompute) -> (Network, Option<Adapter>) {
    let config = ModelConfig::read(folder).unwrap();
    let peft = adapter.map(|folder| Adapter::read(folder).unwrap());
    let spec = peft.as_ref().map(|a| adapter::spec_of_adapter(&config, a).unwrap());
    let network = Network {
        config,
        weights: WeightMode::Frozen(DType::F32.into()),
        activations: DType::F32,
        adapter: spec,
        recompute,
        plain_layers: PlainLayers::default(),
        positions: 128,
        fusions: engraft::fuse::Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
    };
    (network, peft)
}

fn trainer(gpu: &Gpu, folder: &Path, with_adapter: bool, recompute: Recompute) -> Trainer {
    let adapter = folder.join("ref/adapter");
    trainer_stored(gpu, folder, with_adapter.then_some(adapter.as_path()), recompute, Quantize::None)
}

fn trainer_stored(
    gpu: &Gpu,
    folder: &Path,
    adapter: Option<&Path>,
    recompute: Recompute,
    quantize: Quantize,
) -> Trainer {
    let (mut network, peft) = network(folder, adapter, recompute);
    let quantize = QuantizeOptions { kind: quantize, head: false };
    network.weights = WeightMode::Frozen(quantize.storage(Precision::F32True));
    let source = WeightSource::Checkpoint(Checkpoint::open(folder).unwrap());
    source.check(&network.config).unwrap();
    let trainer = Trainer::new(gpu, network, &source, Capacity { tokens: 48, labels: 48 }, 1).unwrap();
    if let Some(peft) = peft {
        adapter::load(trainer.optimiser(), &peft).unwrap();
    }
    trainer
}

fn check_model(gpu: &Gpu, name: &str) {
    check(gpu, name, &Reference::read(name), Quantize::None);
}

fn check(gpu: &Gpu, name: &str, reference: &Reference, quantize: Quantize) {
    let adapter = reference.figures.join("adapter");
    let open = |adapter| trainer_stored(gpu, &reference.folder, adapter, Recompute::None, quantize);
    let mut errors = Errors::default();
    let batch = reference.batch("", 0);
    let tokens = reference.number("loss_tokens");

    let mut base = open(None);
    errors.add(
        "base loss",
        (base.evaluate([&batch]).unwrap() / tokens - reference.number("base_loss")).abs(),
        LOSS,
    );
    errors.add(
        "base logits",
        worst(&widen(&base.logits(&batch).unwrap()), &reference.logits("base.logits")),
        LOGITS,
    );

    let mut lora = open(Some(adapter.as_path()));
    errors.add(
        "adapter loss",
        (lora.evaluate([&batch]).unwrap() / tokens - reference.number("lora_loss")).abs(),
        LOSS,
    );
    errors.add(
        "adapter logits",
        worst(&widen(&lora.logits(&batch).unwrap()), &reference.logits("lora.logits")),
        LOGITS,
    );

    lora.begin().unwrap();
    lora.accumulate(&batch, 1.0 / tokens as f32).unwrap();
    let gradients = lora.optimiser().gradients().unwrap();
    let expected = reference.tensors.keys().filter(|k| k.starts_with("grad.")).count();
    assert_eq!(gradients.len(), expected, "{name}: as many gradients as the reference has");
    for (parameter, values) in &gradients {
        let expected = reference.tensor(&format!("grad.base_model.model.{parameter}"));
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let error = worst(&widen(values), expected) / largest;
        assert!(error < GRADIENT, "{name}: gradient of {parameter}: relative error {error:.2e}");
        errors.add("gradients (relative)", error, GRADIENT);
    }

    let (losses, norms, rates) =
        (reference.curve("loss"), reference.curve("grad_norm"), reference.curve("lr"));
    let micro: Vec<MicroBatch> = (0..8).map(|i| reference.batch("train.", i)).collect();
    for k in 0..20 {
        let window = [&micro[(2 * k) % 8], &micro[(2 * k + 1) % 8]];
        let labels: usize = window.iter().map(|b| b.label_count()).sum();
        lora.begin().unwrap();
        for batch in window {
            lora.accumulate(batch, 1.0 / labels as f32).unwrap();
        }
        let rate = if k < 5 {
            1e-3 * k as f64 / 5.0
        } else {
            1e-3 * 0.5 * (1.0 + (std::f64::consts::PI * (k as f64 - 5.0) / 15.0).cos())
        };
        errors.add("curve: learning rate", (rate - rates[k]).abs(), 1e-12);
        let outcome = lora
            .step(&Hyper {
                learning_rate: rate,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.01,
                clip: Some(1.0),
                inverse_scale: 1.0,
                step: k as u64 + 1,
                ..Hyper::default()
            })
            .unwrap();
        errors.add("curve: loss", (outcome.loss_sum / labels as f64 - losses[k]).abs(), CURVE_LOSS);
        errors.add("curve: gradient norm", (outcome.grad_norm - norms[k]).abs(), CURVE_NORM);
    }
    for (parameter, values) in lora.optimiser().parameters().unwrap() {
        let expected = reference.tensor(&format!("final.base_model.model.{parameter}"));
        errors.add("final adapter", worst(&widen(&values), expected), FINAL);
    }
    let trained = lora.logits(&batch).unwrap();
    errors.add("trained logits", worst(&widen(&trained), &reference.logits("trained.logits")), LOGITS);
    errors.finish(name);
}

#[test]
fn llama_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "llama");
    }
}

#[test]
fn llama_with_untied_head_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "llama_untied");
    }
}

#[test]
fn sharded_llama_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "llama_sharded");
    }
}

/// A window of eight tokens, in samples of up to 24.
#[test]
fn mistral_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "mistral");
    }
}

/// Biases on queries, keys and values; f16 weights.
#[test]
fn qwen2_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "qwen2");
    }
}

/// Norms on the heads of queries and keys, heads that are wider together than the stream.
#[test]
fn qwen3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "qwen3");
    }
}

/// Biases on all of attention.
#[test]
fn biased_llama_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "llama_biased");
    }
}

/// GeGLU, norms that multiply by 1 + weight, scaled embeddings, one KV head.
#[test]
fn gemma_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "gemma");
    }
}

/// Soft caps on scores and logits, norms behind attention and MLP, a layer with a window and one without, a scale of scores of its own.
#[test]
fn gemma2_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "gemma2");
    }
}

/// Norms on heads, rotary angles of their own in layers with a window.
#[test]
fn gemma3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "gemma3");
    }
}

/// One layer for queries, keys and values, one for gate and up; each pair's angle has a factor of its own; a window.
#[test]
fn phi3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "phi3");
    }
}

/// A part of each head is turned, and the head is the embedding.
#[test]
fn phi4_mini_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "phi4_mini");
    }
}

/// Norms behind attention and MLP alone, and on whole queries and keys.
#[test]
fn olmo2_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "olmo2");
    }
}

/// The same, and layers with a window, whose rotary angles are not stretched by yarn as the others' are.
#[test]
fn olmo3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "olmo3");
    }
}

/// A layer without a rotary embedding.
#[test]
fn smollm3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "smollm3");
    }
}

/// Queries that are scaled by their positions, beyond the first context of yarn.
#[test]
fn ministral3_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "ministral3");
    }
}

/// Multipliers of embeddings, of what is added to the stream, of scores and of logits.
#[test]
fn granite_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "granite");
    }
}

/// LayerNorm, biases everywhere, an MLP without a gate beside attention, a quarter of each head turned, and one layer for queries, keys
/// and values, head by head.
#[test]
fn gpt_neox_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "gpt_neox");
    }
}

/// LayerNorm before a gated MLP.
#[test]
fn stablelm_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "stablelm");
    }
}

/// An MLP without a gate behind attention with a window.
#[test]
fn starcoder2_equals_pytorch() {
    if let Some(gpu) = common::gpu() {
        check_model(&gpu, "starcoder2");
    }
}

/// All parameters: embeddings, biases, norms of the stream and of heads, linear layers.
#[test]
fn full_gradients_equal_pytorchs() {
    let Some(gpu) = common::gpu() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let older = ["llama_biased", "mistral", "qwen2", "qwen3", "qwen3 with yarn"];
    let newer = [
        "gemma",
        "gemma2",
        "gemma3",
        "phi3",
        "phi4_mini",
        "olmo2",
        "olmo3",
        "smollm3",
        "granite",
        "ministral3",
        "gpt_neox",
        "stablelm",
        "starcoder2",
    ];
    for name in older.into_iter().chain(newer) {
        let mut reference = Reference::read(name.split(' ').next().unwrap());
        if name.ends_with("yarn") {
            // positions beyond the context of the first training, and between its frequencies
            let config = std::fs::read_to_string(reference.folder.join("config.json")).unwrap();
            let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
            config["rope_parameters"] = serde_json::json!({
                "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8,
                "beta_fast": 1.0, "beta_slow": 0.1,
            });
            std::fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
            let weights = "model.safetensors";
            std::fs::copy(reference.folder.join(weights), scratch.path().join(weights)).unwrap();
            reference.folder = scratch.path().to_owned();
        }
        let file = reference.figures.join("reference.safetensors");
        let arguments = [reference.folder.to_str().unwrap(), file.to_str().unwrap()];
        let Some(theirs) = common::python("full_gradients.py", &arguments) else { return };
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();

        let (mut network, _) = network(&reference.folder, None, Recompute::None);
        network.weights = WeightMode::Trainable;
        let source = WeightSource::Checkpoint(Checkpoint::open(&reference.folder).unwrap());
        let mut trainer =
            Trainer::new(&gpu, network, &source, Capacity { tokens: 48, labels: 48 }, 1).unwrap();
        let batch = reference.batch("", 0);
        let mut errors = Errors::default();
        let loss = trainer.evaluate([&batch]).unwrap() / batch.label_count() as f64;
        errors.add("loss", (loss - theirs["loss"].as_f64().unwrap()).abs(), LOSS);
        let gradients = first_gradients(&mut trainer, &[batch]);
        assert_eq!(gradients.len(), theirs["gradients"].as_object().unwrap().len(), "{name}");
        for (parameter, values) in &gradients {
            let expected = theirs["gradients"][parameter].as_array().unwrap();
            let expected: Vec<f64> = expected.iter().map(|value| value.as_f64().unwrap()).collect();
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let error = worst(&widen(values), &expected) / largest;
            assert!(error < GRADIENT, "{name}: gradient of {parameter}: relative error {error:.2e}");
            let kind = if parameter.ends_with("bias") { "of biases" } else { "of weights" };
            errors.add(&format!("gradients {kind}"), error, GRADIENT);
        }
        errors.finish(name);
    }
}

/// Linear layers in blocks, against PyTorch on the weights that the blocks stand for.
#[test]
fn quantised_llama_equals_pytorch() {
    let Some(gpu) = common::gpu() else { return };
    for (name, quantize) in [("nf4", Quantize::Nf4), ("nf4dq", Quantize::Nf4Double), ("int8", Quantize::Int8)]
    {
        let folder = common::fixtures().join("models/llama");
        let figures = common::fixtures().join("quant").join(format!("qlora_{name}"));
        check(&gpu, name, &Reference::of(folder, figures), quantize);
    }
}

fn first_gradients(trainer: &mut Trainer, batches: &[MicroBatch]) -> Vec<(String, Vec<f32>)> {
    let labels: usize = batches.iter().map(MicroBatch::label_count).sum();
    trainer.begin().unwrap();
    for batch in batches {
        trainer.accumulate(batch, 1.0 / labels as f32).unwrap();
    }
    trainer.optimiser().gradients().unwrap()
}

/// A step in bf16 with all products of at least 33 rows, or all attention, on matrix units is no further from one in f32 than with the
/// built-in kernels.
#[test]
fn bf16_on_matrix_units_is_as_near_to_f32_as_elsewhere() {
    let Some(gpu) = common::gpu() else { return };
    let device = gpu.profile();
    if device.shared_matrices.is_none() {
        eprintln!("SKIPPED: {} has no matrix units that share through workgroup memory", gpu.info().name);
        return;
    }
    let reference = Reference::read("llama");
    let batches = [reference.batch("train.", 0), reference.batch("train.", 1)];
    let flat = |gradients: Vec<(String, Vec<f32>)>| {
        gradients.into_iter().flat_map(|(_, values)| widen(&values)).collect::<Vec<f64>>()
    };
    let exact = flat(first_gradients(&mut trainer(&gpu, &reference.folder, true, Recompute::None), &batches));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (network, peft) =
        network(&reference.folder, Some(&reference.folder.join("ref/adapter")), Recompute::None);
    let weights = WeightMode::Frozen(DType::BF16.into());
    let network = Network { weights, activations: DType::BF16, ..network };
    let (graph, peft) = (network.training(48, 48).unwrap(), peft.unwrap());
    // the root mean square error of all gradients over theirs
    let error = |choices: Choices| {
        gpu.set_choices(choices);
        let source = WeightSource::Checkpoint(Checkpoint::open(&reference.folder).unwrap());
        let capacity = Capacity { tokens: 48, labels: 48 };
        let mut trainer = Trainer::new(&gpu, network.clone(), &source, capacity, 1).unwrap();
        adapter::load(trainer.optimiser(), &peft).unwrap();
        let gradients = flat(first_gradients(&mut trainer, &batches));
        norm(&mut gradients.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
    };
    let built_in = error(Choices::default());
    // dispatches that a kernel serves
    let serves = |kernel: &str, shader: &str| {
        let choices = Arc::new(Choices::forced(kernel));
        let layout = Layout::new(&graph, &DeviceProfile { choices, ..DeviceProfile::clone(&device) });
        layout.dispatches().filter(|d| d.shader.name.starts_with(shader)).count()
    };
    let (running, products): (Vec<_>, Vec<_>) =
        matmul::Variant::all(&device).into_iter().partition(matmul::Variant::is_running);
    let names = |kernels: Vec<matmul::Variant>| kernels.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (running, products) = (names(running), names(products));
    let attentions = attention::Kernel::all(&device).iter().map(ToString::to_string).collect::<Vec<_>>();
    // in both layers seven products forward, in reverse as many but for the first one's q, k and v, whose input needs no gradient; the
    // head's two; three passes of attention
    let mut families = vec![(products, "matmul_coop_tiled", 27)];
    // but for the gradient of logits, which are in f32; and in each layer the low-rank ones: four forward, of siblings together, in reverse seven of a layer's gradient with B, four for the
    // gradients of A, seven for those of B
    if device.shared_matrices == Some(SharedMatrices::Groups) {
        families.push((running, "matmul_coop_tiled", 26 + 2 * (4 + 7 + 4 + 7)));
    }
    // gradients leave the units by half a head at a time; of four lanes several subgroups share it
    let Cooperative { shape, lanes } = device.cooperative.expect("matrices have a shape");
    let half = network.config.head_dim / 2;
    match half.is_multiple_of(shape.n as usize) && lanes >= 8 {
        true => families.push((attentions, "attention_coop", 6)),
        false => eprintln!(
            "SKIPPED: attention on matrices of {shape}, which the model's heads of {} do not fill",
            2 * half
        ),
    }
    for (kernels, shader, expected) in families {
        let served = |kernel: &String| serves(kernel, shader);
        let kernel = kernels.into_iter().max_by_key(served).expect("a family has members");
        assert_eq!(served(&kernel), expected, "{kernel}");
        let on_units = error(Choices::forced(&kernel));
        println!("error of bf16 gradients: {built_in:.2e} with built-in kernels, {on_units:.2e} by {kernel}");
        assert!(on_units <= 1.25 * built_in, "{kernel}: {on_units:.2e}, built in {built_in:.2e}");
    }
}

#[test]
fn recomputation_and_repetition_give_the_same_bits() {
    let Some(gpu) = common::gpu() else { return };
    let reference = Reference::read("llama");
    let batches = [reference.batch("train.", 0), reference.batch("train.", 1)];
    let mut kept = trainer(&gpu, &reference.folder, true, Recompute::None);
    let first = first_gradients(&mut kept, &batches);
    assert_eq!(first, first_gradients(&mut kept, &batches), "the same window twice");
    for policy in [Recompute::Selective, Recompute::Layer] {
        let mut rebuilt = trainer(&gpu, &reference.folder, true, policy);
        assert_eq!(first, first_gradients(&mut rebuilt, &batches), "recompute {policy}");
    }
}

#[test]
fn device_memory_is_what_the_plan_says() {
    let Some(gpu) = common::gpu() else { return };
    let folder = common::fixtures().join("models/llama");
    let batch = Reference::read("llama").batch("train.", 0);
    let mut reports = Vec::new();
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Layer] {
        let before = gpu.allocated_bytes();
        let mut trainer = trainer(&gpu, &folder, true, recompute);
        assert_eq!(gpu.allocated_bytes() - before, trainer.memory().total(), "before a plan is made");
        trainer.begin().unwrap();
        trainer.accumulate(&batch, 1.0).unwrap();
        trainer.evaluate([&batch]).unwrap();
        println!("{:?}: {}", recompute, trainer.memory());
        assert_eq!(gpu.allocated_bytes() - before, trainer.memory().total(), "with the plans of a step");
        assert!(trainer.memory().parameters > 0);
        reports.push(trainer.memory());
    }
    assert_eq!(reports[0].weights, reports[1].weights);
}
