//! Memory: what a plan says is what the device gives, recomputation changes memory and no bit, and running out is an error
//! that leaves what was saved.

mod common;

use engraft::Error;
use engraft::autograd::Recompute;
use engraft::data::{MicroBatch, Sample};
use engraft::error::Failure;
use engraft::fuse::Fusions;
use engraft::generate::{CacheSize, Generator};
use engraft::gpu::{Gpu, GpuError, GpuOptions};
use engraft::graph::{Choices, DType, DeviceProfile, Leaf, LeafKind};
use engraft::models::{AttentionBias, JoinedLayers, ModelConfig, Multipliers, Network};
use engraft::nn::{AdapterSpec, PlainLayers, Storage, WeightMode};
use engraft::ops::activation::Activation;
use engraft::ops::adamw::Hyper;
use engraft::ops::matmul::{Extents, Variant};
use engraft::plan::Layout;
use engraft::plan::tune::{measure, unmeasured};
use engraft::train::adapter::spec_of_targets;
use engraft::train::bench::small_config;
use engraft::train::finetune::Finetune;
use engraft::train::memory::{FitError, MemoryLimit, Planner};
use engraft::train::options::{FinetuneOptions, OptimizerKind, Precision, RecomputeKind, TuneMode};
use engraft::train::plan::{Demand, TrainingPlan};
use engraft::train::quantize::{Quantize, QuantizeOptions};
use engraft::train::trainer::Trainer;
use engraft::train::weights::WeightSource;
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

const SEQ: usize = 96;

fn network(precision: Precision, dropout: f64) -> Network {
    let config = ModelConfig {
        vocab_size: 1000,
        hidden_size: 128,
        intermediate_size: 320,
        layers: 6,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ..small_config()
    };
    Network {
        adapter: Some(spec_of_targets(&config, &[], 8, 16.0, dropout).unwrap()),
        weights: WeightMode::Frozen(precision.weights().into()),
        activations: precision.activations(),
        recompute: Recompute::None,
        plain_layers: PlainLayers::default(),
        positions: SEQ,
        fusions: Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
        config,
    }
}

fn batch(samples: usize) -> MicroBatch {
    let mut random = common::Random::new(5);
    let samples: Vec<Sample> = (0..samples)
        .map(|_| Sample::new((0..SEQ).map(|_| (500.0 + 499.0 * random.next()) as u32).collect(), 0))
        .collect();
    MicroBatch::from_samples(&samples)
}

fn trainer(gpu: &Gpu, network: &Network, samples: usize, recompute: Recompute) -> (Trainer, TrainingPlan) {
    let network = Network { recompute, ..network.clone() };
    let plan = TrainingPlan::new(&network, &Demand::uniform(samples, SEQ), &gpu.profile()).unwrap();
    let trainer =
        Trainer::from_plan(gpu, plan.clone(), &WeightSource::Random { seed: 3, norms: 1.0 }, 3).unwrap();
    (trainer, plan)
}

fn policies() -> [Recompute; 6] {
    let every = |n| Recompute::every(n).unwrap();
    [Recompute::None, Recompute::Selective, Recompute::Layer, every(2), every(4), every(9)]
}

#[test]
fn no_policy_changes_a_bit() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(2);
    for (precision, dropout) in
        [(Precision::F32True, 0.2), (Precision::BF16True, 0.0), (Precision::F16Mixed, 0.1)]
    {
        same_under_every_policy(&gpu, &network(precision, dropout), &batch, &precision.to_string());
    }
}

fn same_under_every_policy(gpu: &Gpu, network: &Network, batch: &MicroBatch, what: &str) {
    let mut first = None;
    for recompute in policies() {
        let (mut trainer, _) = trainer(gpu, network, 2, recompute);
        trainer.begin().unwrap();
        trainer.accumulate(batch, 64.0).unwrap();
        let gradients = trainer.optimiser().gradients().unwrap();
        assert!(gradients.iter().any(|(_, g)| g.iter().any(|v| *v != 0.0)), "there are gradients");
        let first = first.get_or_insert_with(|| gradients.clone());
        assert!(*first == gradients, "{what}, recompute {recompute}");
    }
}

/// Where products make their gated operand themselves: of down layers without an adapter, and not of trained ones, whose gradients
/// read that operand.
#[test]
fn no_policy_changes_a_bit_of_gated_products() {
    let Some(gpu) = common::gpu() else { return };
    let of = Extents { rows: 2 * SEQ, cols: 128, k: 320, ..Extents::default() };
    let kernel = Variant::candidates(&gpu.profile(), &of)[0];
    gpu.set_choices(Choices::forced(format!("gating {kernel}")));
    let network = network(Precision::BF16True, 0.0);
    let targets = ["q_proj", "v_proj"].map(String::from);
    let adapter = spec_of_targets(&network.config, &targets, 8, 16.0, 0.0).unwrap();
    let adapted = Network { adapter: Some(adapter), ..network.clone() };
    let full = Network { adapter: None, weights: WeightMode::Trainable, ..network };
    let batch = batch(2);
    for (network, gating) in [(adapted, true), (full, false)] {
        let graph = network.training(2 * SEQ, 2 * SEQ).unwrap();
        let layout = Layout::new(&graph, &gpu.profile());
        let gates = layout.dispatches().flat_map(|d| &d.bindings).any(|b| b.name == "r_up");
        assert_eq!(gates, gating);
        same_under_every_policy(&gpu, &network, &batch, if gating { "gating" } else { "all trained" });
    }
}

/// Layers that are one for queries, keys and values, and for gate and up, or head by head, beside an MLP without a gate: what is split of them is made
/// again with the same bits, also of weights in blocks.
#[test]
fn joined_layers_are_made_again_with_the_same_bits() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(2);
    let config = network(Precision::BF16True, 0.1).config;
    let whole = ModelConfig { joined_layers: JoinedLayers::Whole, layers: 3, ..config };
    // as in GPT-NeoX
    let by_head = ModelConfig {
        joined_layers: JoinedLayers::ByHead,
        layer_norms: true,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        gated_mlp: false,
        activation: Activation::Gelu,
        parallel_residual: true,
        kv_heads: whole.heads,
        partial_rotary_dim: Some(20),
        ..whole.clone()
    };
    let kinds = [Quantize::None, Quantize::Nf4];
    let forms = [whole, by_head].into_iter().flat_map(|form| kinds.map(|kind| (form.clone(), kind)));
    for (config, kind) in forms {
        let base = network(Precision::BF16True, 0.1);
        let adapter = Some(spec_of_targets(&config, &[], 8, 16.0, 0.1).unwrap());
        let weights = WeightMode::Frozen(QuantizeOptions { kind, head: false }.storage(Precision::BF16True));
        let network = Network { config, adapter, weights, ..base };
        let run = |recompute, mlp_chunks| {
            let network = Network { mlp_chunks, ..network.clone() };
            let (mut trainer, plan) = trainer(&gpu, &network, 2, recompute);
            trainer.begin().unwrap();
            trainer.accumulate(&batch, 1.0).unwrap();
            let gradients = trainer.optimiser().gradients().unwrap();
            let loss = trainer.evaluate([&batch]).unwrap();
            assert_eq!(trainer.memory(), plan.memory, "{kind} {recompute}");
            (loss, gradients)
        };
        let expected = run(Recompute::None, 1);
        assert_eq!(expected.1.len(), 3 * 4 * 2);
        assert!(expected.1.iter().any(|(_, g)| g.iter().any(|v| *v != 0.0)));
        for recompute in [Recompute::Selective, Recompute::Layer, Recompute::every(2).unwrap()] {
            assert!(expected == run(recompute, 1), "{kind} {recompute}");
        }
        assert!(expected.0 == run(Recompute::Layer, 3).0, "{kind}, in chunks");
    }
}

/// An MLP in chunks sums its adapters' gradients in another order, and is otherwise the same; chunks are made again with the same
/// bits, whatever else is.
#[test]
fn mlps_in_chunks_give_the_same_loss_and_gradients() {
    let Some(gpu) = common::gpu() else { return };
    // the second size is planned onto the slots of the first
    let batches = [batch(2), batch(1)];
    let run = |network: &Network, mlp_chunks, recompute| {
        let network = Network { mlp_chunks, ..network.clone() };
        let (mut trainer, plan) = trainer(&gpu, &network, 2, recompute);
        trainer.begin().unwrap();
        trainer.accumulate(&batches[0], 1.0).unwrap();
        let gradients = trainer.optimiser().gradients().unwrap();
        let loss = trainer.evaluate([&batches[0]]).unwrap();
        assert_eq!(trainer.memory(), plan.memory, "{mlp_chunks} chunks, {recompute}");
        trainer.begin().unwrap();
        trainer.accumulate(&batches[1], 1.0).unwrap();
        (loss, gradients, trainer.optimiser().gradients().unwrap())
    };
    let short = |network: Network| Network { config: ModelConfig { layers: 3, ..network.config }, ..network };
    let adapted = short(network(Precision::F32True, 0.0));
    let full = Network { adapter: None, weights: WeightMode::Trainable, ..adapted.clone() };
    for (network, counts) in [(&adapted, &[2, 5, 32][..]), (&full, &[5])] {
        let expected = run(network, 1, Recompute::None);
        for &chunks in counts {
            let found = run(network, chunks, Recompute::None);
            let apart = (found.0 - expected.0).abs() / expected.0;
            assert!(apart < 1e-5, "{chunks} chunks: loss {} and {}", found.0, expected.0);
            let pairs = [(&found.1, &expected.1), (&found.2, &expected.2)];
            for ((name, g), (_, e)) in
                pairs.into_iter().flat_map(|(found, expected)| found.iter().zip(expected))
            {
                let size = e.iter().fold(0f32, |m, v| m.max(v.abs()));
                let worst = g.iter().zip(e).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst <= 1e-4 * size, "{chunks} chunks: {name} differs by {worst} of {size}");
            }
        }
    }
    let network = short(network(Precision::BF16True, 0.2));
    let expected = run(&network, 5, Recompute::None);
    assert!(expected.1.iter().any(|(_, g)| g.iter().any(|v| *v != 0.0)), "there are gradients");
    for recompute in [Recompute::Selective, Recompute::Layer, Recompute::every(2).unwrap()] {
        assert!(expected == run(&network, 5, recompute), "recompute {recompute}");
    }
    if gpu.profile().host_buffers {
        let on_host = Network { host_activations: true, ..network };
        assert!(expected == run(&on_host, 5, Recompute::Layer), "activations in host memory");
    }
}

/// Where frozen weights lie changes memory and no bit, in loss and gradients, whatever is made again.
#[test]
fn weights_in_host_memory_change_no_bit() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(2);
    for kind in [Quantize::None, Quantize::Nf4Double] {
        let resident = QuantizeOptions { kind, head: false }.storage(Precision::BF16True);
        let run = |storage: Storage, recompute: Recompute| {
            let network =
                Network { weights: WeightMode::Frozen(storage), ..network(Precision::BF16True, 0.1) };
            let (mut trainer, plan) = trainer(&gpu, &network, 2, recompute);
            trainer.begin().unwrap();
            // twice: the second run begins with what the first one left in the slots
            let mut results = Vec::new();
            for _ in 0..2 {
                trainer.accumulate(&batch, 1.0).unwrap();
                results.push(trainer.optimiser().gradients().unwrap());
            }
            let loss = trainer.evaluate([&batch]).unwrap();
            assert_eq!(trainer.memory(), plan.memory, "{storage:?}");
            assert_eq!(trainer.host_bytes(), plan.host_bytes, "{storage:?}");
            (loss, results, plan.memory, plan.host_bytes)
        };
        for recompute in [Recompute::None, Recompute::Layer, Recompute::every(2).unwrap()] {
            let on_device = Storage { host_embedding: false, ..resident };
            let expected = run(on_device, recompute);
            let mut weights = vec![expected.2.weights];
            assert_eq!(expected.3, 0);
            let mut on_host = Vec::new();
            for offload in [0, 1, 3, 6] {
                let found = run(Storage { offload, ..resident }, recompute);
                assert!(expected.0 == found.0, "{kind}, offload {offload}: loss {} {}", expected.0, found.0);
                assert!(expected.1 == found.1, "{kind}, offload {offload}, {recompute}: gradients");
                weights.push(found.2.weights);
                on_host.push(found.3);
            }
            assert!(on_host[0] > 0 && on_host.is_sorted() && on_host[3] > on_host[2], "{on_host:?}");
            // one block gains nothing over a slot for it; all six leave two slots
            assert!(
                weights[1] < weights[0] && weights[3] < weights[1] && weights[4] < weights[3],
                "{weights:?}"
            );
        }
    }
}

/// A token embedding that is scaled where it is looked up: on the host as on the device, in every type that it is stored in.
#[test]
fn scaled_embeddings_in_host_memory_change_no_bit() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(2);
    for (precision, kind) in [
        (Precision::BF16True, Quantize::None),
        (Precision::BF16Mixed, Quantize::None),
        (Precision::F16True, Quantize::Int8),
    ] {
        let resident = QuantizeOptions { kind, head: kind != Quantize::None }.storage(precision);
        let run = |host_embedding: bool, scaled_embedding: bool, multipliers: Option<Multipliers>| {
            let base = network(precision, 0.0);
            let config = ModelConfig { scaled_embedding, multipliers, layers: 2, ..base.config.clone() };
            let adapter = Some(spec_of_targets(&config, &[], 8, 16.0, 0.0).unwrap());
            let weights = WeightMode::Frozen(Storage { host_embedding, ..resident });
            let network = Network { config, adapter, weights, ..base };
            assert_eq!(network.embeds_on_host(), host_embedding);
            let (mut trainer, _) = trainer(&gpu, &network, 2, Recompute::None);
            trainer.begin().unwrap();
            trainer.accumulate(&batch, 1.0).unwrap();
            (trainer.evaluate([&batch]).unwrap(), trainer.optimiser().gradients().unwrap())
        };
        let granite = Some(Multipliers { embedding: 12.0, residual: 0.22, attention: 0.125, logits: 4.0 });
        let mut losses = vec![run(true, false, None).0];
        for (scaled_embedding, multipliers) in [(true, None), (false, granite)] {
            let expected = run(false, scaled_embedding, multipliers);
            assert!(expected == run(true, scaled_embedding, multipliers), "{precision:?} {kind}");
            assert!(!losses.contains(&expected.0), "{precision:?} {kind}: the scale counts");
            losses.push(expected.0);
        }
    }
}

/// Weights that no binding holds are bound in pieces, with the same bits: embedding, head and linear layers over 16 MiB.
#[test]
fn weights_over_the_binding_limit_change_no_bit() {
    const LIMIT: u64 = 16 << 20;
    let (Some(gpu), Some(limited)) = (common::gpu(), common::gpu_limited(false, Some(LIMIT))) else { return };
    let config = ModelConfig {
        vocab_size: 152_064 / 8,
        hidden_size: 512,
        intermediate_size: 17_000,
        layers: 1,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        tied_head: false,
        ..small_config()
    };
    let network = Network {
        adapter: Some(spec_of_targets(&config, &[], 8, 16.0, 0.0).unwrap()),
        weights: WeightMode::Frozen(Precision::BF16True.weights().into()),
        activations: Precision::BF16True.activations(),
        config,
        ..network(Precision::BF16True, 0.0)
    };
    let batch = batch(1);
    let run = |gpu: &Gpu| {
        let (mut trainer, _) = trainer(gpu, &network, 1, Recompute::None);
        trainer.begin().unwrap();
        trainer.accumulate(&batch, 1.0).unwrap();
        let gradients = trainer.optimiser().gradients().unwrap();
        (trainer.evaluate([&batch]).unwrap(), gradients)
    };
    let graph = network.training(SEQ, SEQ).unwrap();
    let large =
        graph.leaves().iter().filter(|l| limited.profile().piece(graph.type_of(l.value).bytes()).is_some());
    let names: Vec<&str> = large.map(|l| l.name.as_str()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let (expected, found) = (run(&gpu), run(&limited));
    assert!(expected.0 == found.0, "loss {} and {}", expected.0, found.0);
    assert!(expected.1 == found.1, "gradients");
    // and they are measured like others
    for candidate in unmeasured(&graph, &limited.profile()) {
        let measured = measure(&limited, &candidate, Duration::ZERO).unwrap();
        assert!(measured.default_seconds.is_finite(), "{:?}", measured.class);
    }
    let few = DeviceProfile { max_storage_buffers: 4, ..(*limited.profile()).clone() };
    let plan = TrainingPlan::new(&network, &Demand::uniform(1, SEQ), &few).unwrap();
    let error = plan.check(&few).unwrap_err();
    assert!(error.to_string().contains("limit of 4 storage buffers"), "{error}");
}

/// A network whose embedding, head and MLP are over small limits.
fn wide_network(quantize: QuantizeOptions) -> Network {
    let config = ModelConfig {
        vocab_size: 3000,
        hidden_size: 256,
        intermediate_size: 1600,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ..small_config()
    };
    Network {
        adapter: Some(spec_of_targets(&config, &[], 8, 16.0, 0.1).unwrap()),
        weights: WeightMode::Frozen(quantize.storage(Precision::BF16True)),
        config,
        ..network(Precision::BF16True, 0.0)
    }
}

/// Frozen leaves in blocks and trainable ones that a device with the limit binds in pieces.
fn in_pieces(network: &Network, limited: &Gpu) -> (usize, usize) {
    let graph = network.training(SEQ, SEQ).unwrap();
    let large = |leaf: &&Leaf| limited.profile().piece(graph.type_of(leaf.value).bytes()).is_some();
    let large: Vec<&Leaf> = graph.leaves().iter().filter(large).collect();
    let quantised = large.iter().filter(|leaf| graph.type_of(leaf.value).dtype.is_quantised()).count();
    (quantised, large.iter().filter(|leaf| leaf.kind == LeafKind::Trainable).count())
}

/// Weights in blocks that no binding holds, on the device and streamed to it, in training, evaluation and generation.
#[test]
fn quantised_weights_over_the_binding_limit_change_no_bit() {
    const LIMIT: u64 = 384 << 10;
    // a copy of a weight in three pieces, the gradient of a gate, and dropout's mask
    const COPIED_IN_PIECES: u32 = 11;
    let (Some(gpu), Some(limited)) = (common::gpu(), common::gpu_limited(false, Some(LIMIT))) else { return };
    if gpu.profile().max_storage_buffers < COPIED_IN_PIECES {
        // there weights in pieces are read as blocks, which rounds nothing to bf16: so for both
        [&gpu, &limited].iter().for_each(|gpu| gpu.set_choices(Choices::without_scratch()));
    }
    let batch = batch(1);
    for kind in [Quantize::Nf4, Quantize::Nf4Double, Quantize::Int8] {
        let resident = wide_network(QuantizeOptions { kind, head: true });
        let WeightMode::Frozen(storage) = resident.weights else { unreachable!() };
        // the embedding lies on the device here
        let storage = Storage { host_embedding: false, ..storage };
        let resident = Network { weights: WeightMode::Frozen(storage), ..resident };
        // embedding and head; in eight bits the MLPs too
        let large = if kind == Quantize::Int8 { 8 } else { 2 };
        assert_eq!(in_pieces(&resident, &limited), (large, 0), "{kind}");
        let offloaded = WeightMode::Frozen(Storage { offload: 2, ..storage });
        let offloaded = Network { weights: offloaded, host_activations: true, ..resident.clone() };
        let run = |gpu: &Gpu, network: &Network, recompute: Recompute| {
            let (mut trainer, plan) = trainer(gpu, network, 1, recompute);
            plan.check(&gpu.profile()).unwrap();
            trainer.begin().unwrap();
            trainer.accumulate(&batch, 1.0).unwrap();
            let gradients = trainer.optimiser().gradients().unwrap();
            let loss = trainer.evaluate([&batch]).unwrap();
            assert_eq!(trainer.memory(), plan.memory, "{kind}");
            (loss, gradients)
        };
        let expected = run(&gpu, &resident, Recompute::None);
        assert!(expected.0.is_finite() && expected.1.iter().any(|(_, g)| g.iter().any(|v| *v != 0.0)));
        assert!(expected == run(&limited, &resident, Recompute::None), "{kind}");
        if gpu.profile().host_buffers {
            assert!(expected == run(&limited, &offloaded, Recompute::Layer), "{kind}, offloaded");
        }
        // one token at a time: blocks are read inside the product
        let write = |gpu: &Gpu| {
            let network = Network { adapter: None, ..resident.clone() };
            let source = WeightSource::Random { seed: 3, norms: 1.0 };
            let cache = CacheSize { tokens: 40, chunk: 32 };
            let mut generator = Generator::new(gpu, network, &source, None, cache).unwrap();
            (generator.logits(&[5, 700, 2999]).unwrap(), generator.logits(&[31]).unwrap())
        };
        assert!(write(&gpu) == write(&limited), "{kind}: generation");
    }
    // they are measured like others
    let network = wide_network(QuantizeOptions { kind: Quantize::Nf4Double, head: true });
    let graph = network.training(SEQ, SEQ).unwrap();
    for candidate in unmeasured(&graph, &limited.profile()) {
        let measured = measure(&limited, &candidate, Duration::ZERO).unwrap();
        assert!(measured.default_seconds.is_finite(), "{:?}", measured.class);
    }
}

/// Parameters that no binding holds, with their gradients and moments: a head and an embedding beside adapters, and all of a
/// network; norm, clipping and update are part of it.
#[test]
fn trainable_parameters_over_the_binding_limit_change_no_bit() {
    const LIMIT: u64 = 512 << 10;
    let (Some(gpu), Some(limited)) = (common::gpu(), common::gpu_limited(false, Some(LIMIT))) else { return };
    let batches = [batch(1), batch(1)];
    let saving = |kind, modules: &[&str]| {
        let mut network = wide_network(QuantizeOptions { kind, head: kind != Quantize::None });
        let saved = modules.iter().map(ToString::to_string).collect();
        network.adapter = network.adapter.map(|adapter| AdapterSpec { saved, ..adapter });
        network
    };
    let full = |tied_head: bool| {
        let network = wide_network(QuantizeOptions::default());
        let config = ModelConfig { tied_head, ..network.config.clone() };
        Network { adapter: None, weights: WeightMode::Trainable, config, ..network }
    };
    let cases = [
        ("nf4, lm_head", saving(Quantize::Nf4, &["lm_head"]), OptimizerKind::AdamW, 1),
        ("int8, both", saving(Quantize::Int8, &["lm_head", "model.embed_tokens"]), OptimizerKind::Sgd, 2),
        ("bf16, lm_head", saving(Quantize::None, &["lm_head"]), OptimizerKind::Sgd, 1),
        ("full", full(false), OptimizerKind::AdamW, 8),
        ("full, tied", full(true), OptimizerKind::Sgd, 7),
    ];
    for (name, network, optimizer, large) in cases {
        assert_eq!(in_pieces(&network, &limited).1, large, "{name}");
        let run = |gpu: &Gpu| {
            let demand = Demand { optimizer, ..Demand::uniform(1, SEQ) };
            let plan = TrainingPlan::new(&network, &demand, &gpu.profile()).unwrap();
            plan.check(&gpu.profile()).unwrap();
            let mut trainer =
                Trainer::from_plan(gpu, plan.clone(), &WeightSource::Random { seed: 3, norms: 1.0 }, 3)
                    .unwrap();
            let mut outcomes = Vec::new();
            for step in 1..=2 {
                trainer.begin().unwrap();
                for batch in &batches {
                    trainer.accumulate(batch, 0.01).unwrap();
                }
                let hyper =
                    Hyper { clip: Some(0.5), momentum: 0.9, second_ratio: 4.0, step, ..Hyper::default() };
                outcomes.push(trainer.step(&hyper).unwrap());
            }
            let loss = trainer.evaluate([&batches[0]]).unwrap();
            let state = trainer.optimiser().state().unwrap();
            // what was saved goes back in
            for (name, values) in &state {
                trainer.optimiser().set_state(name, values).unwrap();
            }
            assert!(state == trainer.optimiser().state().unwrap(), "{name}: saved and set");
            assert_eq!(trainer.memory().optimiser, plan.memory.optimiser, "{name}");
            let planned = plan.memory.total() - trainer.memory().total();
            (outcomes, loss, state, planned)
        };
        let (expected, found) = (run(&gpu), run(&limited));
        assert_eq!((expected.3, found.3), (0, 0), "{name}: planned and allocated");
        assert_eq!(expected.0, found.0, "{name}: loss and norm");
        assert!(expected.0[0].grad_norm > 0.5, "{name}: clipped, {:?}", expected.0);
        assert!(expected.1 == found.1 && expected.2 == found.2, "{name}: parameters and moments");
    }
}

/// What stays refused is refused by the plan, with a way out.
#[test]
fn a_plan_refuses_what_no_buffer_and_no_kernel_takes() {
    let network =
        Network { adapter: None, weights: WeightMode::Trainable, ..wide_network(QuantizeOptions::default()) };
    let refused = |device: DeviceProfile| {
        let plan = TrainingPlan::new(&network, &Demand::uniform(1, SEQ), &device).unwrap();
        let error = plan.check(&device).unwrap_err();
        assert!(matches!(&error, GpuError::OverLimit { .. }), "{error}");
        error.to_string()
    };
    let device = DeviceProfile { max_binding: 512 << 10, ..DeviceProfile::typical_gpu() };
    let said = refused(DeviceProfile { max_buffer: 8 << 20, ..device.clone() });
    assert!(said.contains("the buffer of all trainable parameters") && said.contains("adapters"), "{said}");
    let said = refused(DeviceProfile { max_storage_buffers: 8, ..device });
    assert!(said.contains("8 storage buffers") && said.contains("do not train them in full"), "{said}");
}

#[test]
fn a_plan_refuses_host_memory_where_no_buffer_can_lie_there() {
    let device = DeviceProfile { host_buffers: false, ..DeviceProfile::typical_gpu() };
    for (offload, host_activations) in [(0, false), (2, false), (0, true)] {
        let storage = Storage { offload, ..Storage::from(DType::BF16) };
        let weights = WeightMode::Frozen(storage);
        let network = Network {
            weights,
            host_activations,
            recompute: Recompute::Layer,
            ..network(Precision::BF16True, 0.0)
        };
        let plan = TrainingPlan::new(&network, &Demand::uniform(1, SEQ), &device).unwrap();
        let expected = if offload > 0 || host_activations { Err(GpuError::NoHostMemory) } else { Ok(()) };
        assert_eq!(plan.check(&device), expected, "{offload}, {host_activations}");
    }
}

/// What blocks are made again from can wait in host memory: the same bits with less memory of the device.
#[test]
fn activations_in_host_memory_change_no_bit() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(2);
    let run = |host_activations: bool, recompute: Recompute| {
        let network = Network { host_activations, ..network(Precision::BF16True, 0.1) };
        let (mut trainer, plan) = trainer(&gpu, &network, 2, recompute);
        trainer.begin().unwrap();
        let mut results = Vec::new();
        for _ in 0..2 {
            trainer.accumulate(&batch, 1.0).unwrap();
            results.push(trainer.optimiser().gradients().unwrap());
        }
        trainer.evaluate([&batch]).unwrap();
        assert_eq!(trainer.memory(), plan.memory, "{recompute}");
        assert_eq!(trainer.host_bytes(), plan.host_bytes, "{recompute}");
        assert_eq!(plan.host_bytes > 0, host_activations, "{recompute}");
        (results, plan.memory.activations)
    };
    for recompute in [Recompute::Layer, Recompute::every(2).unwrap(), Recompute::every(4).unwrap()] {
        let (expected, on_device) = run(false, recompute);
        let (found, on_host) = run(true, recompute);
        assert!(expected == found, "{recompute}");
        assert!(on_host < on_device, "{recompute}: {on_host} of {on_device} bytes");
    }
}

/// Direct3D has one heap of descriptors for all plans: a size whose bindings find no room takes the place of another.
#[test]
fn plans_give_way_where_descriptors_run_out() {
    let Some(gpu) = common::gpu() else { return };
    let (batches, network) = ([batch(1), batch(2)], network(Precision::BF16True, 0.0));
    let gradients = |gpu: &Gpu| {
        let (mut trainer, _) = trainer(gpu, &network, 2, Recompute::None);
        trainer.begin().unwrap();
        [0, 1, 0].map(|size| {
            trainer.accumulate(&batches[size], 1.0).unwrap();
            (trainer.memory().parameters, trainer.optimiser().gradients().unwrap())
        })
    };
    let layout = Layout::new(&network.training(2 * SEQ, 2 * SEQ).unwrap(), &gpu.profile());
    let largest: u64 = layout.dispatches().map(|d| 1 + d.bindings.len() as u64).sum();
    let limited = |descriptors| {
        common::gpu_of(|options| GpuOptions { max_descriptors: Some(descriptors), ..options }).unwrap()
    };
    let (expected, found) = (gradients(&gpu), gradients(&limited(largest * 3 / 2)));
    assert!(expected.iter().zip(&found).all(|((_, a), (_, b))| a == b));
    // both sizes there, and one alone
    assert!(expected[1].0 > expected[0].0 && expected[1].0 > found[1].0 && found[0].0 == found[2].0);
    let (mut trainer, _) = trainer(&limited(largest / 2), &network, 2, Recompute::None);
    let error = trainer.accumulate(&batches[1], 1.0).unwrap_err().to_string();
    assert!(error.contains("descriptors"), "{error}");
}

/// A run that is timed dispatch by dispatch uploads the same blocks at the same places, and tells what moves.
#[test]
fn a_timed_run_does_what_a_run_does() {
    let Some(gpu) = common::gpu() else { return };
    let batch = batch(1);
    let host_activations = gpu.profile().host_buffers;
    for offload in [0, 3] {
        let storage = Storage { offload, ..Storage::from(DType::BF16) };
        let weights = WeightMode::Frozen(storage);
        let network = Network { weights, host_activations, ..network(Precision::BF16True, 0.0) };
        let (mut trainer, plan) = trainer(&gpu, &network, 1, Recompute::Layer);
        trainer.begin().unwrap();
        trainer.accumulate(&batch, 1.0).unwrap();
        let expected = trainer.optimiser().gradients().unwrap();
        trainer.begin().unwrap();
        let times = trainer.time(&batch).unwrap();
        assert!(expected == trainer.optimiser().gradients().unwrap(), "offload {offload}");
        assert!(times.iter().all(|t| t.seconds >= 0.0 && t.start >= 0.0 && t.start.is_finite()));
        // what enters all blocks but the last goes there and back
        let on_host = times.iter().filter(|t| t.on_host).count();
        assert_eq!(on_host, if host_activations { 2 * 5 } else { 0 });
        let transfers = trainer.transfers(&batch).unwrap();
        assert_eq!(transfers.is_some(), offload > 0);
        let Some(found) = transfers else { continue };
        let kept = if host_activations { 5 * (SEQ * 128 * 2) as u64 } else { 0 };
        let weights = plan.host_bytes - kept;
        // forward all three, in reverse those two that are not there any more
        assert!(found.bytes > weights && found.bytes < 2 * weights, "{found:?} of {weights}");
        assert!(found.uploads > 0.0 && found.dispatches > 0.0 && found.together > 0.0, "{found:?}");
        assert!(found.hidden().is_none_or(|share| (0.0..=1.0).contains(&share)), "{found:?}");
    }
}

/// Nothing is staged: what a micro-batch's uploads take while they are on their way is nothing beside the least block.
#[test]
fn uploads_take_no_memory_on_their_way() {
    let Some(gpu) = common::gpu() else { return };
    let storage = Storage { offload: 6, ..Storage::from(DType::BF16) };
    let network = Network { weights: WeightMode::Frozen(storage), ..network(Precision::BF16True, 0.0) };
    let (mut trainer, plan) = trainer(&gpu, &network, 1, Recompute::None);
    let batch = batch(1);
    trainer.begin().unwrap();
    // programs are made with the first
    trainer.accumulate(&batch, 1.0).unwrap();
    gpu.wait().unwrap();
    // what was dropped is given back with the next wait
    gpu.submit(&[], &[]).unwrap();
    gpu.wait().unwrap();
    let Some((before, _)) = gpu.backend_bytes() else { return };
    trainer.accumulate(&batch, 1.0).unwrap();
    let taken = gpu.backend_bytes().unwrap().0.saturating_sub(before);
    let block = plan.host_bytes / 6;
    println!("{taken} bytes beside blocks of {block}");
    assert!(taken < block / 4, "{taken} bytes beside blocks of {block}");
}

#[test]
fn a_plan_is_what_the_device_gives() {
    let Some(gpu) = common::gpu() else { return };
    let every = Recompute::every(2).unwrap();
    let plain = |precision: Precision| Storage::from(precision.weights());
    let blocks = |kind, offload| Storage {
        offload,
        ..QuantizeOptions { kind, head: false }.storage(Precision::BF16True)
    };
    let cases = [
        (Precision::BF16True, plain(Precision::BF16True), 1, Recompute::None),
        (Precision::BF16True, plain(Precision::BF16True), 4, Recompute::Layer),
        (Precision::BF16True, plain(Precision::BF16True), 2, Recompute::Selective),
        (Precision::F32True, plain(Precision::F32True), 2, Recompute::None),
        (Precision::F32True, plain(Precision::F32True), 4, every),
        (Precision::F16Mixed, plain(Precision::F16Mixed), 2, Recompute::Layer),
        (Precision::BF16True, blocks(Quantize::Nf4, 0), 4, Recompute::Layer),
        (Precision::BF16True, blocks(Quantize::Int8, 4), 4, Recompute::Layer),
    ];
    println!(
        "{:<12}{:>6}  {:<10}{:>12}{:>12}{:>12}{:>12}",
        "precision", "micro", "recompute", "planned", "counted", "backend", "reserved"
    );
    for (precision, storage, samples, recompute) in cases {
        let settled = |gpu: &Gpu| {
            // what was dropped is given back with the next wait
            gpu.submit(&[], &[]).unwrap();
            gpu.wait().unwrap();
            (gpu.allocated_bytes(), gpu.backend_bytes())
        };
        let before = settled(&gpu);
        let network = Network { weights: WeightMode::Frozen(storage), ..network(precision, 0.0) };
        let (mut trainer, plan) = trainer(&gpu, &network, samples, recompute);
        let batch = batch(samples);
        trainer.begin().unwrap();
        trainer.accumulate(&batch, 1.0).unwrap();
        trainer
            .step(&Hyper {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.0,
                clip: None,
                inverse_scale: 1.0,
                step: 1,
                ..Hyper::default()
            })
            .unwrap();
        trainer.evaluate([&batch]).unwrap();
        let after = settled(&gpu);
        assert_eq!(trainer.memory(), plan.memory, "{precision}, {samples}, {recompute}: by kind");
        let counted = after.0 - before.0;
        assert_eq!(counted, plan.memory.total(), "{precision}, {samples}, {recompute}: in all");
        let backend = before.1.zip(after.1);
        let backend = backend.map(|(before, after)| (after.0 - before.0, after.1.saturating_sub(before.1)));
        let text = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| b.to_string());
        println!(
            "{:<12}{samples:>6}  {recompute:<10}{:>12}{counted:>12}{:>12}{:>12}",
            precision.to_string(),
            plan.memory.total(),
            text(backend.map(|b| b.0)),
            text(backend.map(|b| b.1)),
        );
        if let Some((allocated, reserved)) = backend {
            // buffers in host memory are its too, and a token embedding there is none
            let on_device = Storage { offload: 0, ..storage };
            let network = Network { weights: WeightMode::Frozen(on_device), ..plan.network.clone() };
            let embedding =
                TrainingPlan::new(&network, &Demand::uniform(samples, SEQ), &gpu.profile()).unwrap();
            let planned = plan.memory.total() + plan.host_bytes - embedding.host_bytes;
            let share = allocated as f64 / planned as f64;
            assert!((share - 1.0).abs() < 0.03, "{precision}, {samples}, {recompute}: {share}");
            // blocks that small buffers are cut from, and those that were not given back
            assert!(reserved < allocated + (32 << 20), "{precision}, {samples}, {recompute}: {reserved}");
        }
    }
}

#[test]
fn less_memory_costs_more_work() {
    let device = DeviceProfile::typical_gpu();
    let network = network(Precision::BF16True, 0.0);
    let demand = |samples| Demand::uniform(samples, SEQ);
    let planner = Planner { network, device: &device, batch_size: 4, resumed: false, demand: &demand };
    let plan = |recompute| planner.plan(4, recompute).unwrap();
    let by_work: Vec<TrainingPlan> =
        [Recompute::None, Recompute::Selective, Recompute::Layer].map(plan).into();
    for pair in by_work.windows(2) {
        assert!(pair[0].flops < pair[1].flops, "{} and {}", pair[0].recompute(), pair[1].recompute());
        assert!(
            pair[0].memory.total() > pair[1].memory.total(),
            "{} and {}",
            pair[0].recompute(),
            pair[1].recompute()
        );
    }
    assert!(plan(Recompute::every(2).unwrap()).flops < plan(Recompute::Layer).flops);
    // all blocks in one group is nothing made again
    assert_eq!(plan(Recompute::every(9).unwrap()).memory, plan(Recompute::None).memory);
}

#[test]
fn auto_takes_the_least_work_that_fits() {
    let device = DeviceProfile::typical_gpu();
    let demand = |samples| Demand::uniform(samples, SEQ);
    let planner = Planner {
        network: network(Precision::BF16True, 0.0),
        device: &device,
        batch_size: 4,
        resumed: false,
        demand: &demand,
    };
    let all: Vec<TrainingPlan> = planner.policies().iter().map(|p| planner.plan(4, *p).unwrap()).collect();
    for limit in all.iter().map(|plan| plan.memory.total()) {
        let asked = MemoryLimit::of(Some(limit), Some(1));
        let choice = planner.choose(4, RecomputeKind::Auto, asked).unwrap();
        let fits = all.iter().filter(|plan| plan.memory.total() <= limit);
        let least = fits.min_by(|a, b| a.flops.total_cmp(&b.flops)).unwrap();
        assert!(choice.plan.memory.total() <= limit);
        assert_eq!(choice.plan.flops, least.flops, "within {limit}: {}", choice.plan.recompute());
    }
    let unknown = planner.choose(4, RecomputeKind::Auto, None).unwrap();
    assert_eq!((unknown.plan.recompute(), unknown.extra_flops), (Recompute::None, 0.0));
}

#[test]
fn what_does_not_fit_is_refused_with_ways_out() {
    let device = DeviceProfile::typical_gpu();
    let demand = |samples| Demand::uniform(samples, SEQ);
    let planner = Planner {
        network: network(Precision::F32True, 0.0),
        device: &device,
        batch_size: 4,
        resumed: false,
        demand: &demand,
    };
    let total = |micro, policy| planner.plan(micro, policy).unwrap().memory.total();
    let refused = |kind, bytes| match planner.choose(4, kind, MemoryLimit::of(Some(bytes), None)) {
        Err(FitError::Memory(error)) => error,
        other => panic!("{other:?}"),
    };
    let kept = RecomputeKind::NONE;
    let error = refused(kept, total(4, Recompute::None) - 1);
    let ways: Vec<&str> = error.advice.fits.iter().map(|(way, _)| way.as_str()).collect();
    assert!(ways[0] == "--micro_batch_size 2" && ways[1].starts_with("--recompute "), "{ways:?}");
    assert!(error.advice.fits.iter().all(|(_, bytes)| *bytes < error.needed));
    let said = error.to_string();
    assert!(said.contains("micro-batch of 4") && said.contains("--recompute none needs"), "{said}");
    // nothing fits into the weights alone
    let error = refused(RecomputeKind::Auto, 1 << 20);
    let said = error.to_string();
    assert!(error.advice.fits.is_empty() && said.contains("of it weights"), "{said}");
    assert!(said.contains("--max_seq_length"), "{said}");
    // a limit between 16 and 32 bits
    let half = Planner { network: network(Precision::BF16True, 0.0), ..planner };
    let bytes = half.plan(1, Recompute::Layer).unwrap().memory.total() * 11 / 10;
    let error = refused(RecomputeKind::Auto, bytes);
    assert!(error.advice.fits[0].0.starts_with("--precision bf16-true"), "{}", error.advice);
    assert_eq!(Error::from(error).failure(), Failure::Memory);
}

/// A network whose MLPs are most of what a long sample takes.
fn wide() -> Network {
    let network = network(Precision::BF16True, 0.0);
    Network { config: ModelConfig { intermediate_size: 1536, layers: 3, ..network.config }, ..network }
}

#[test]
fn chunks_of_mlps_are_advised_where_they_make_a_run_fit() {
    let device = DeviceProfile::typical_gpu();
    let demand = |samples| Demand::uniform(samples, 1024);
    let planner =
        Planner { network: wide(), device: &device, batch_size: 1, resumed: false, demand: &demand };
    let needed = |mlp_chunks| {
        let network = Network { mlp_chunks, ..wide() };
        Planner { network, ..planner }.plan(1, Recompute::None).unwrap().needed_bytes()
    };
    let refused = |planner: &Planner<'_>, bytes| match planner.choose(
        1,
        RecomputeKind::NONE,
        MemoryLimit::of(Some(bytes), None),
    ) {
        Err(FitError::Memory(error)) => error,
        other => panic!("{other:?}"),
    };
    for (limit, way) in [(needed(2), "--mlp_chunks 2"), (needed(2) - 1, "--mlp_chunks 4")] {
        let error = refused(&planner, limit);
        let chunks = way.rsplit(' ').next().unwrap().parse().unwrap();
        let advised = (way.to_owned(), needed(chunks));
        assert!(error.advice.fits.contains(&advised), "{advised:?}: {error}");
        // an allocation that fails inside a run asks for the same
        let advice = planner.advise(1, Recompute::None, limit).unwrap();
        assert_eq!(advice, *error.advice);
        let source = Box::new(Error::Gpu(GpuError::OutOfMemory { what: "activations".into(), bytes: 1 }));
        let inside = Error::OutOfMemory { source, planned: needed(1), advice: Box::new(advice), saved: None };
        assert!(inside.to_string().contains(&format!("with {way} ")), "{inside}");
    }
    // of a run that goes on, chunks would change the sums
    let resumed = Planner { network: wide(), resumed: true, ..planner };
    let said = refused(&resumed, needed(2)).to_string();
    assert!(!said.contains("mlp_chunks"), "{said}");
    // where no single change is enough, chunks are one of several
    let lean = planner.plan(1, Recompute::Layer).unwrap().needed_bytes();
    let chunked = Planner { network: Network { mlp_chunks: 32, ..wide() }, ..planner };
    let least = chunked.plan(1, Recompute::Layer).unwrap().needed_bytes();
    assert!(least < lean.min(needed(32)), "{least} {lean} {}", needed(32));
    let half = Network { weights: WeightMode::Frozen(DType::BF16.into()), ..wide() };
    let plain = Network { plain_layers: every_layer(&half.config), ..half };
    let planner = Planner { network: plain, ..planner };
    let error = refused(&planner, least);
    let way = &error.advice.fits[0].0;
    assert!(way.starts_with("--mlp_chunks ") && way.ends_with("--recompute layer"), "{error}");
}

/// All linear layers: none is left that fewer bits could hold.
fn every_layer(config: &ModelConfig) -> PlainLayers {
    PlainLayers::new(Network::linear_modules(config).into_iter().map(|(module, _, _)| module).collect())
}

#[test]
fn host_memory_counts_where_it_is_the_devices() {
    let separate = DeviceProfile::typical_gpu();
    let unified = DeviceProfile { unified_memory: true, ..DeviceProfile::typical_gpu() };
    let storage = Storage {
        offload: 6,
        ..QuantizeOptions { kind: Quantize::None, head: false }.storage(Precision::BF16True)
    };
    let on_host = Network {
        weights: WeightMode::Frozen(storage),
        host_activations: true,
        ..network(Precision::BF16True, 0.0)
    };
    let demand = |samples| Demand::uniform(samples, SEQ);
    let planner = |network: &Network, device| Planner {
        network: network.clone(),
        device,
        batch_size: 1,
        resumed: false,
        demand: &demand,
    };
    let (own, shared) = (planner(&on_host, &separate), planner(&on_host, &unified));
    let [of_own, of_shared] = [&own, &shared].map(|p| p.plan(1, Recompute::Layer).unwrap());
    assert_eq!((of_own.memory, of_own.host_bytes), (of_shared.memory, of_shared.host_bytes));
    assert_eq!(of_own.needed_bytes(), of_own.memory.total());
    assert_eq!(of_shared.needed_bytes(), of_shared.memory.total() + of_shared.host_bytes);
    let note = of_shared.moved_in_vain().unwrap();
    assert!(note.starts_with("--offload and --offload_activations save nothing"), "{note}");
    assert_eq!(of_own.moved_in_vain(), None);
    assert_eq!(
        planner(&network(Precision::BF16True, 0.0), &unified)
            .plan(1, Recompute::Layer)
            .unwrap()
            .moved_in_vain(),
        None
    );

    // what lies on the device alone fits where the host's memory is another
    let limit = MemoryLimit::of(Some(of_own.memory.total()), None);
    let layer = RecomputeKind::Policy(Recompute::Layer);
    own.choose(1, layer, limit).unwrap();
    let Err(FitError::Memory(error)) = shared.choose(1, layer, limit) else { panic!("it was planned") };
    let said = error.to_string();
    assert_eq!((error.needed, error.on_host), (of_shared.needed_bytes(), of_shared.host_bytes));
    assert!(said.contains("in host memory, which is the device's"), "{said}");
    // on the device, nothing needs a second place there
    let on_device = Network {
        weights: WeightMode::Frozen(Storage { offload: 0, ..storage }),
        host_activations: false,
        ..on_host.clone()
    };
    let back = planner(&on_device, &unified).plan(1, Recompute::Layer).unwrap().needed_bytes();
    assert!(back < of_shared.needed_bytes());
    let Err(FitError::Memory(error)) = shared.choose(1, layer, MemoryLimit::of(Some(back), None)) else {
        panic!("it was planned")
    };
    let way = ("--offload 0 and no --offload_activations".to_owned(), back);
    assert!(error.advice.fits.contains(&way), "{error}");

    // the last way out elsewhere, and never advised where it saves nothing
    let quantised = |offload| WeightMode::Frozen(Storage { linear: DType::Nf4, offload, ..storage });
    let least = Network { weights: quantised(6), ..on_host.clone() };
    let least = planner(&least, &separate).plan(1, Recompute::Layer).unwrap().memory.total();
    let plain = Network { weights: quantised(0), ..on_device };
    let without = DeviceProfile { host_buffers: false, ..DeviceProfile::typical_gpu() };
    for (device, advised) in [(&separate, true), (&unified, false), (&without, false)] {
        let limit = MemoryLimit::of(Some(least), None);
        let Err(FitError::Memory(error)) = planner(&plain, device).choose(1, RecomputeKind::NONE, limit)
        else {
            panic!("it was planned")
        };
        let said = error.advice.to_string();
        assert_eq!(said.contains("--offload 6"), advised, "{said}");
        assert_eq!(said.contains("shorter --max_seq_length"), !advised, "{said}");
    }

    // the policy is chosen by both together
    let some = Network { host_activations: false, ..on_host };
    let planner = planner(&some, &unified);
    let plans: Vec<TrainingPlan> = planner.policies().iter().map(|p| planner.plan(1, *p).unwrap()).collect();
    for plan in &plans {
        let choice = planner.choose(1, RecomputeKind::Auto, MemoryLimit::of(Some(plan.needed_bytes()), None));
        let chosen = choice.unwrap().plan;
        assert!(chosen.needed_bytes() <= plan.needed_bytes() && chosen.flops <= plan.flops);
    }
}

/// To the byte: a limit of what was planned is enough for all that a run does, and one of a byte less is not.
#[test]
fn a_limit_holds_for_host_memory_that_is_the_devices() {
    let Some(gpu) = common::gpu() else { return };
    let storage = Storage {
        offload: 2,
        ..QuantizeOptions { kind: Quantize::None, head: false }.storage(Precision::BF16True)
    };
    let network = Network {
        weights: WeightMode::Frozen(storage),
        host_activations: gpu.profile().host_buffers,
        recompute: Recompute::Layer,
        ..network(Precision::BF16True, 0.0)
    };
    let plan = TrainingPlan::new(&network, &Demand::uniform(1, SEQ), &gpu.profile()).unwrap();
    assert_eq!(plan.needed_bytes() > plan.memory.total(), gpu.info().unified_memory());
    let (batch, used) = (batch(1), gpu.allocated_bytes());
    let run = |limit: u64| -> Result<(), Error> {
        gpu.set_memory_limit(Some(used + limit));
        let mut trainer =
            Trainer::from_plan(&gpu, plan.clone(), &WeightSource::Random { seed: 3, norms: 1.0 }, 3)?;
        trainer.begin()?;
        trainer.accumulate(&batch, 1.0)?;
        trainer.step(&Hyper { step: 1, inverse_scale: 1.0, ..Hyper::default() })?;
        trainer.evaluate([&batch])?;
        Ok(())
    };
    run(plan.needed_bytes()).unwrap();
    let error = run(plan.needed_bytes() - 1).unwrap_err();
    assert_eq!(error.failure(), Failure::Memory, "{error}");
}

fn plan(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_engraft");
    Command::new(program).arg("plan").args(arguments).env_remove("ENGRAFT_MEMORY_LIMIT").output().unwrap()
}

fn json(output: &Output) -> Value {
    let (said, stdout) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

/// Bytes of one kind in the plan of Llama 3.2 1B at this length.
fn planned(length: usize, recompute: &str, kind: &str) -> f64 {
    let length = length.to_string();
    let words = ["--shape", "llama-3.2-1b", "--micro_batch_size", "1", "--max_seq_length", &length];
    let report = json(&plan(&[&words[..], &["--recompute", recompute, "--json"]].concat()));
    assert_eq!(report["recompute"], recompute);
    report["bytes"][kind].as_u64().unwrap() as f64
}

/// At 8,192 tokens the width of the MLP is most of what a block makes again.
#[test]
fn chunks_of_mlps_lower_the_peak_of_a_long_sequence() {
    let report = |chunks: &str, recompute: &str| {
        let shape =
            ["--shape", "llama-3.2-1b", "--micro_batch_size", "1", "--max_seq_length", "8192", "--json"];
        json(&plan(&[&shape[..], &["--recompute", recompute, "--mlp_chunks", chunks]].concat()))
    };
    let activations = |report: &Value| report["bytes"]["activations"].as_u64().unwrap() as f64;
    let flops = |report: &Value| report["step_flops"].as_f64().unwrap();
    for (recompute, share) in [("none", 0.35), ("layer", 0.75), ("every-4", 0.45)] {
        let [whole, two, eight] = ["1", "2", "8"].map(|chunks| report(chunks, recompute));
        let shares = [&two, &eight].map(|report| activations(report) / activations(&whole));
        println!("{recompute}: activations {shares:?}, FLOPs {}", flops(&eight) / flops(&whole));
        assert!(shares[1] < shares[0] && shares[0] < 1.0 && shares[1] < share, "{recompute}: {shares:?}");
        assert!(eight["peak_bytes"].as_u64() < whole["peak_bytes"].as_u64());
        // gate and up are made once more, and cost the same however many the chunks
        assert!((flops(&eight) / flops(&two) - 1.0).abs() < 1e-6, "{} {}", flops(&two), flops(&eight));
        let more = flops(&eight) / flops(&whole) - 1.0;
        assert!(more > 0.0 && more < 0.2, "{recompute}: {more}");
        let kept = flops(&whole) / (1.0 + whole["extra_flops"].as_f64().unwrap());
        let extra = eight["extra_flops"].as_f64().unwrap();
        assert!((flops(&eight) / kept - 1.0 - extra).abs() < 1e-6, "beyond a step without chunks: {extra}");
    }
    let refused = plan(&["--shape", "llama-3.2-1b", "--max_seq_length", "512", "--mlp_chunks", "33"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("--mlp_chunks 33: must be 1 to 32"), "{said}");
}

#[test]
fn the_command_plans_a_model_without_files_or_device() {
    assert_eq!(
        planned(512, "none", "weights"),
        2.0 * 1_235_814_400.0 + 2.0 * (33.0 * 2048.0) + 512.0 * 64.0 * 4.0
    );
    // with flash attention and chunked logits nothing grows with the square of the length
    for policy in ["none", "selective", "layer"] {
        let bytes: Vec<f64> = [1024, 2048, 4096].map(|n| planned(n, policy, "activations")).into();
        let (first, second) = (bytes[1] - bytes[0], bytes[2] - bytes[1]);
        assert!((second / first - 2.0).abs() < 0.05, "{policy}: {bytes:?}");
    }
    let words = ["--shape", "qwen2.5-0.5b", "--max_seq_length", "256", "--memory_limit", "1.2GB"];
    let report = json(&plan(&[&words[..], &["--recompute", "none", "--json"]].concat()));
    let (peak, kinds) = (report["peak_bytes"].as_u64().unwrap(), report["bytes"].as_object().unwrap());
    assert_eq!(peak, kinds.values().map(|v| v.as_u64().unwrap()).sum::<u64>());
    let cells = report["combinations"].as_array().unwrap();
    for cell in cells {
        let bytes = cell["peak_bytes"].as_u64().unwrap();
        assert_eq!(cell["fits"].as_bool(), Some(bytes <= 1_200_000_000), "{cell}");
    }
    assert!(cells.iter().any(|c| c["fits"] == true) && cells.iter().any(|c| c["fits"] == false));
    let table = plan(&words);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for word in ["activations", "kernel parameters", "peak", "micro-batch 8", "selective", "every-2", "over "]
    {
        assert!(table.contains(word), "no {word:?} in {table}");
    }
}

#[test]
fn the_command_says_whose_memory_it_planned_for() {
    let words = ["--shape", "llama-3.2-1b", "--max_seq_length", "256", "--micro_batch_size", "1"];
    let with =
        |more: &[&str]| plan(&[&words[..], &["--recompute", "layer", "--offload", "4"], more].concat());
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let (own, shared) = (with(&[]), with(&["--unified_memory"]));
    let line = |output: &Output, name: &str| {
        let text = text(output);
        text.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default()
    };
    assert!(line(&own, "its memory").contains("the device's own (assumed"), "{}", text(&own));
    assert!(line(&shared, "its memory").contains("the host's (--unified_memory)"), "{}", text(&shared));
    assert!(line(&shared, "note").contains("--offload saves nothing"), "{}", text(&shared));
    assert_eq!((line(&own, "note"), line(&own, "together")), (String::new(), String::new()));
    let [own, shared, not] = [&[][..], &["--unified_memory"], &["--unified_memory", "false"]]
        .map(|more| json(&with(&[more, &["--json", "--memory_limit", "2.5GiB"]].concat())));
    assert_eq!(own, not);
    let number = |report: &Value, key: &str| report[key].as_u64().unwrap();
    assert_eq!(number(&own, "host_bytes"), number(&shared, "host_bytes"));
    // a slower device gets long dispatches in more parts, each with parameters of its own
    let parameters = number(&shared, "peak_bytes") - number(&own, "peak_bytes");
    assert!(parameters < 64 << 10, "{parameters}");
    assert_eq!(number(&own, "needed_bytes"), number(&own, "peak_bytes"));
    assert_eq!(number(&shared, "needed_bytes"), number(&shared, "peak_bytes") + number(&own, "host_bytes"));
    // 2.7 GiB in all, half a GiB of them on the host
    assert_eq!((&own["fits"], &shared["fits"]), (&Value::from(true), &Value::from(false)));
    assert!(shared["advice"].as_str().unwrap().contains("--quantize nf4"), "{}", shared["advice"]);
    let Some(gpu) = common::gpu() else { return };
    let there = json(&with(&["--json", "--gpu", &gpu.info().index.to_string()]));
    assert_eq!(there["unified_memory"].as_bool(), Some(gpu.info().unified_memory()));
}

#[test]
fn a_plan_with_data_is_that_of_the_run() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Value> = (0..9)
        .map(|i| serde_json::json!({"instruction": format!("Say {i}"), "output": "ab ".repeat(1 + 5 * i)}))
        .collect();
    let data = folder.path().join("data.json");
    std::fs::write(&data, serde_json::to_string(&rows).unwrap()).unwrap();
    let model = common::fixtures().join("models/llama");
    let (model_text, data_text) = (model.display().to_string(), data.display().to_string());
    let index = gpu.info().index.to_string();
    let words = [&model_text, "--data.json_path", &data_text, "--max_steps", "2", "--gpu", &index, "--json"];
    let report = json(&plan(&words));
    let mut options = FinetuneOptions {
        model_dir: model,
        out_dir: folder.path().join("out"),
        max_steps: Some(2),
        tune: TuneMode::Off,
        ..FinetuneOptions::default()
    };
    options.data.json_path = data;
    let run = Finetune::new(options).run_on(&gpu).unwrap();
    let of_run = serde_json::to_value(run.memory).unwrap();
    for kind in ["weights", "trainables", "optimiser", "inputs", "activations"] {
        assert_eq!(report["bytes"][kind], of_run[kind], "{kind}");
    }
    // one plan per size: the largest stands for all of them
    let (planned, made) = (report["bytes"]["parameters"].as_u64().unwrap(), run.memory.parameters);
    assert!(made <= planned && planned < 2 * made, "{made} of {planned}");
}

#[test]
fn a_plan_needs_a_model_and_a_length() {
    for (words, said) in [
        (&["--max_seq_length", "64"][..], "--shape"),
        (&["--shape", "llama-9", "--max_seq_length", "64"], "llama-3.2-1b"),
        (&["--shape", "llama-3.2-1b"], "--max_seq_length"),
        (&["--shape", "llama-3.2-1b", "--max_seq_length", "64", "--memory_limit", "6G"], "6GiB"),
        (&["--shape", "llama-3.2-1b", "--max_seq_length", "64", "--lora_rank", "0"], "--lora_rank"),
        (&["--shape", "llama-3.2-1b", "--max_seq_length", "64", "--lora_targets", "nose"], "q_proj"),
    ] {
        let output = plan(words);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {message}");
        assert!(message.contains(said), "{words:?}: {message}");
    }
}

#[test]
fn an_allocation_beyond_the_limit_is_refused_and_harms_nothing() {
    let Some(gpu) = common::gpu() else { return };
    gpu.set_memory_limit(Some(gpu.allocated_bytes() + 1000));
    let kept = gpu.allocate("small", 512).unwrap();
    let refused = gpu.allocate("large", 512).err().unwrap();
    assert!(
        matches!(&refused, GpuError::OverMemoryLimit { what, bytes: 512, allocated: 512, limit: 1000 } if what == "large"),
        "{refused:?}"
    );
    drop(kept);
    gpu.allocate("large", 512).unwrap();
    gpu.set_memory_limit(None);
    gpu.allocate("larger", 1 << 20).unwrap();
}

/// The driver itself refuses, in a process that may take less than the run was planned for: no crash, but the ways out.
#[test]
#[cfg(target_os = "linux")]
fn a_driver_that_has_no_room_ends_a_run_with_advice() {
    let Some(gpu) = common::gpu() else { return };
    if !gpu.info().is_software() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let row = serde_json::json!({"instruction": "Say it", "output": "ab ".repeat(60)});
    let data = folder.path().join("data.json");
    std::fs::write(&data, serde_json::to_string(&vec![row; 3000]).unwrap()).unwrap();
    let (out, model) = (folder.path().join("out"), common::fixtures().join("models/llama"));
    let run = |memory_limit: &[&str]| {
        let mut command = Command::new("sh");
        // 1.2 GB of addresses; half of that is the program, its driver and their threads
        command.args([
            "-c",
            "ulimit -v 1200000; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_engraft"),
            "finetune",
        ]);
        command.arg(&model).arg("--data").arg(&data).arg("--out_dir").arg(&out).args(memory_limit);
        command.args([
            "--batch_size",
            "3000",
            "--micro_batch_size",
            "3000",
            "--recompute",
            "none",
            "--tune",
            "off",
        ]);
        command.args(["--data.val_split_fraction", "0", "--gpu", &gpu.info().index.to_string()]);
        let output = command.env_remove("ENGRAFT_MEMORY_LIMIT").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        said
    };
    let said = run(&["--memory_limit", "100GiB"]);
    for word in
        ["out of device memory: ", "for activations", "planned to take", "with --micro_batch_size 1500 "]
    {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    // what a process may take is known before
    let said = run(&[]);
    for word in ["before anything was done", "free memory", "--micro_batch_size"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

/// Sixteen blocks of 122 MB, in a process that may take 1.8 GB: the error tells that it is the host's memory that lacks.
#[test]
#[cfg(target_os = "linux")]
fn a_host_without_room_for_offloaded_weights_says_so() {
    let Some(gpu) = common::gpu() else { return };
    if !gpu.info().is_software() {
        return;
    }
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -v 1800000; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_engraft"),
        "bench",
        "train",
    ]);
    command.args([
        "--shape",
        "llama-3.2-1b",
        "--offload",
        "16",
        "--seq",
        "64",
        "--batch",
        "1",
        "--steps",
        "1",
    ]);
    command.args(["--tune", "off", "--memory_limit", "100GiB", "--gpu", &gpu.info().index.to_string()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for word in ["out of host memory: ", "for weights of a block in host memory", "--offload"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}
