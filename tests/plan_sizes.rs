//! A run is planned for its largest micro-batch: no smaller one may need more of anything, whatever kernels were measured for it.

mod common;

use engraft::autograd::Recompute;
use engraft::fuse::Fusions;
use engraft::graph::{Choices, Class, Cooperative, DType, DeviceProfile, Graph, SharedMatrices};
use engraft::models::{ModelConfig, Network};
use engraft::nn::{PlainLayers, Storage, WeightMode};
use engraft::ops::{attention, matmul};
use engraft::plan::Layout;
use engraft::plan::tune::unmeasured;
use engraft::train::adapter::spec_of_targets;
use engraft::train::bench::small_config;
use engraft::train::trainer::bucket;
use std::sync::Arc;

/// The largest micro-batch; its label rows are three chunks of logits.
const LARGEST: (usize, usize) = (640, 576);

/// Linear layers in blocks or in the type of the activations, which are in f16 unless they are not.
fn network(linear: DType, recompute: Recompute, mlp_chunks: usize, dropout: f64) -> Network {
    let activations = if linear == DType::BF16 { DType::BF16 } else { DType::F16 };
    let config = ModelConfig {
        vocab_size: 70_000,
        hidden_size: 128,
        intermediate_size: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ..small_config()
    };
    let storage = Storage { linear, ..Storage::from(activations) };
    Network {
        adapter: Some(spec_of_targets(&config, &[], 8, 16.0, dropout).unwrap()),
        weights: WeightMode::Frozen(storage),
        activations,
        recompute,
        plain_layers: PlainLayers::default(),
        positions: LARGEST.0,
        fusions: Fusions::default(),
        host_activations: false,
        mlp_chunks,
        frozen: Vec::new(),
        config,
    }
}

fn attention_alone(network: Network) -> Network {
    let targets = ["q_proj", "v_proj"].map(String::from);
    let adapter = spec_of_targets(&network.config, &targets, 8, 16.0, 0.0).unwrap();
    Network { adapter: Some(adapter), ..network }
}

/// Devices of every kind that chooses kernels in another way.
fn devices() -> [(&'static str, DeviceProfile); 4] {
    let gpu = DeviceProfile::typical_gpu();
    let software = DeviceProfile {
        cpu: true,
        subgroup: Some(8),
        wide_loads: true,
        unified_memory: true,
        ..DeviceProfile::typical_gpu()
    };
    let units = |size, lanes| Some(Cooperative { size, lanes });
    [
        (
            "matrix units",
            DeviceProfile {
                cooperative: units(16, 32),
                shared_matrices: Some(SharedMatrices::Groups),
                max_workgroup_storage: 48 << 10,
                ..gpu.clone()
            },
        ),
        ("gpu", gpu),
        ("software with matrix units", DeviceProfile { cooperative: units(8, 8), ..software.clone() }),
        ("software", software),
    ]
}

/// All sizes up to the largest that get a plan of their own.
fn sizes() -> Vec<(usize, usize)> {
    let buckets = |most: usize| {
        let mut all: Vec<usize> = (1..=most).map(bucket).filter(|&n| n <= most).collect();
        all.dedup();
        all
    };
    let labels = buckets(LARGEST.1);
    let of = |tokens: usize| {
        let fitting: Vec<usize> = labels.iter().copied().filter(|&l| l <= tokens).collect();
        [fitting[0], fitting[fitting.len() / 2], fitting[fitting.len() - 1]].map(|l| (tokens, l))
    };
    buckets(LARGEST.0).into_iter().flat_map(of).collect()
}

/// A choice for every class of these graphs, as measuring might have made it: any kernel of the family, from this seed.
fn choices(graphs: &[Graph], device: &DeviceProfile, seed: u64) -> Choices {
    let mut random = common::Random::new(seed);
    let mut choices = Choices::default();
    for graph in graphs {
        let with = DeviceProfile { choices: Arc::new(choices.clone()), ..device.clone() };
        for Class { family, extents } in unmeasured(graph, &with).into_iter().map(|c| c.class) {
            let mut any =
                |count: usize| ((0.5 * (1.0 + random.next()) * count as f64) as usize).min(count - 1);
            let kernel = if family.starts_with("attention") {
                let kernels = attention::Variant::all(device);
                kernels[any(kernels.len())].to_string()
            } else {
                let (gating, staged) = (["", "gating "][any(2)], ["", "staged "][any(2)]);
                let kernels = matmul::Variant::all(device);
                format!("{gating}{staged}{}", kernels[any(kernels.len())])
            };
            choices.insert(Class { family, extents }, kernel);
        }
    }
    // so slow that long dispatches are cut
    choices.reached(if seed == 1 { 0.5 } else { 0.0 });
    choices
}

#[test]
fn no_smaller_size_needs_more_than_the_largest() {
    let layer = Recompute::Layer;
    let networks = [
        (network(DType::F16, Recompute::None, 1, 0.0), "f16"),
        (network(DType::Nf4, layer, 1, 0.1), "nf4, layer, dropout"),
        (network(DType::BF16, Recompute::None, 1, 0.1), "bf16, dropout"),
        (network(DType::Int8, Recompute::every(2).unwrap(), 5, 0.0), "int8, 5 chunks"),
        (network(DType::F16, Recompute::Selective, 32, 0.0), "f16, selective, 32 chunks"),
        // down products without an adapter take the gated activation in
        (attention_alone(network(DType::F16, Recompute::None, 1, 0.0)), "f16, q and v"),
        (attention_alone(network(DType::BF16, layer, 1, 0.0)), "bf16, q and v, layer"),
        (attention_alone(network(DType::Nf4, layer, 5, 0.0)), "nf4, q and v, layer, 5 chunks"),
    ];
    for (network, what) in &networks {
        for train in [true, false] {
            let graph = |(tokens, labels): (usize, usize)| match train {
                true => network.training(tokens, labels).unwrap(),
                false => network.evaluation(tokens, labels).unwrap(),
            };
            let (largest, sizes) = (graph(LARGEST), sizes());
            let smaller: Vec<Graph> = sizes.iter().map(|size| graph(*size)).collect();
            let measured: Vec<Graph> = [LARGEST, (256, 128), (96, 64)].map(graph).into();
            for (name, device) in devices() {
                for seed in 0..3 {
                    let choices = match seed {
                        0 => Choices::default(),
                        seed => choices(&measured, &device, seed),
                    };
                    let device = DeviceProfile { choices: Arc::new(choices), ..device.clone() };
                    let planned = Layout::new(&largest, &device);
                    let of = |layout: &Layout| {
                        let flops: f64 = layout.dispatches().map(|d| d.cost.flops).sum();
                        let bytes: f64 = layout.dispatches().map(|d| d.cost.bytes).sum();
                        (layout.dispatches().count(), layout.parameter_bytes(), flops, bytes)
                    };
                    let most = of(&planned);
                    for (graph, size) in smaller.iter().zip(&sizes) {
                        let case = format!("{what}, {name}, choices {seed}, train {train}, {size:?}");
                        let small =
                            planned.shrink(graph, &device).unwrap_or_else(|| panic!("{case}: no room"));
                        let own = of(&small);
                        assert!(own.0 <= most.0, "{case}: {} dispatches, {} planned", own.0, most.0);
                        assert!(own.1 <= most.1, "{case}: {} bytes of parameters, {}", own.1, most.1);
                        assert!(own.2 <= most.2 && own.3 <= most.3, "{case}: {own:?} of {most:?}");
                        assert_eq!(small.slot_bytes(), planned.slot_bytes(), "{case}");
                    }
                }
            }
        }
    }
}
