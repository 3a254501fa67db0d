//! A run is planned for its largest micro-batch: no smaller one may need more of anything, whatever kernels were measured for it.

mod common;

use engraft::autograd::Recompute;
use engraft::fuse::Fusions;
use engraft::graph::blocks::Blocks;
use engraft::graph::layout::pack;
use engraft::graph::{
    Choices, Class, Cooperative, DType, DeviceProfile, Graph, LeafKind, MatrixShape, Shape, SharedMatrices,
};
use engraft::models::{ModelConfig, Network};
use engraft::nn::{PlainLayers, Storage, WeightMode};
use engraft::ops::add::add;
use engraft::ops::{attention, matmul};
use engraft::plan::tune::unmeasured;
use engraft::plan::{Bindings, Layout, Program, Slots};
use engraft::train::adapter::spec_of_targets;
use engraft::train::bench::small_config;
use engraft::train::trainer::{Capacity, bucket};
use std::collections::BTreeSet;
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
    let units = |size, lanes| Some(Cooperative { shape: MatrixShape::square(size), lanes });
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
    let of = |tokens: usize| {
        let labels = (1..=tokens).map(|labels| Capacity { tokens, labels }.padded().labels);
        let fitting: BTreeSet<usize> = labels.filter(|&l| l <= LARGEST.1).collect();
        let fitting: Vec<usize> = fitting.into_iter().collect();
        [fitting[0], fitting[fitting.len() / 2], fitting[fitting.len() - 1]].map(|l| (tokens, l))
    };
    let tokens: BTreeSet<usize> = (1..=LARGEST.0).map(bucket).collect();
    tokens.into_iter().flat_map(of).collect()
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
                let kernels = attention::Kernel::all(device);
                kernels[any(kernels.len())].to_string()
            } else {
                let (gating, staged) = (["", "gating "][any(2)], ["", "staged "][any(2)]);
                let sections = ["", "sections=4 "][any(2)];
                let kernels = matmul::Variant::all(device);
                format!("{gating}{staged}{sections}{}", kernels[any(kernels.len())])
            };
            // some of them slower than others
            let gflops = if seed == 1 { 0.5 * (1.0 + random.next()) } else { 0.0 };
            choices.insert_timed(Class { family, extents }, kernel, gflops);
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
                        (layout.parameter_bytes(), flops, bytes)
                    };
                    let most = of(&planned);
                    for (graph, size) in smaller.iter().zip(&sizes) {
                        let case = format!("{what}, {name}, choices {seed}, train {train}, {size:?}");
                        let small =
                            planned.shrink(graph, &device).unwrap_or_else(|| panic!("{case}: no room"));
                        let own = of(&small);
                        let counted = planned.most_parameter_bytes();
                        assert!(own.0 <= counted, "{case}: {} bytes of parameters, {counted}", own.0);
                        assert!(own.1 <= most.1 && own.2 <= most.2, "{case}: {own:?} of {most:?}");
                        assert_eq!(small.slot_bytes(), planned.slot_bytes(), "{case}");
                    }
                }
            }
        }
    }
}

/// The kernels of all products of a layout, in order.
fn products(layout: &Layout) -> Vec<String> {
    let products = layout.dispatches().filter(|d| d.shader.name.starts_with("matmul"));
    products.map(|d| format!("{} {}", d.detail, d.variant)).collect()
}

/// What was measured for few tokens, for which a product may be one in sections, serves them though the largest size has others.
#[test]
fn smaller_sizes_keep_their_own_kernels() {
    let (_, device) = devices().into_iter().next().unwrap();
    let wide = |network: Network| Network {
        config: ModelConfig { hidden_size: 1024, intermediate_size: 2048, ..network.config.clone() },
        ..network
    };
    let mut kernels = matmul::Variant::all(&device);
    kernels.retain(|kernel| !kernel.is_running());
    let units = kernels.iter().map(ToString::to_string).find(|name| name.starts_with("coop-tiled")).unwrap();
    for (linear, staged) in [(DType::F16, ""), (DType::Nf4, ""), (DType::Nf4, "staged ")] {
        let network = wide(network(linear, Recompute::Layer, 1, 0.0));
        let [largest, small] = [LARGEST, (96, 64)].map(|(t, l)| network.training(t, l).unwrap());
        let mut choices = Choices::default();
        for (graph, sections) in [(&largest, ""), (&small, "sections=4 ")] {
            let with = DeviceProfile { choices: Arc::new(choices.clone()), ..device.clone() };
            for class in unmeasured(graph, &with).into_iter().map(|c| c.class) {
                // the large one's read blocks as they are; wide products have tiles enough, and where logits' gradients are
                // multiplied, no slot is idle
                let small = !sections.is_empty();
                let staged = if small && class.family.contains("nf4") { staged } else { "" };
                let sections =
                    if class.extents[1] <= 1024 && class.extents[2] <= 4096 { sections } else { "" };
                choices.insert(class, format!("{staged}{sections}{units}"));
            }
        }
        let device = DeviceProfile { choices: Arc::new(choices), ..device.clone() };
        let (planned, alone) = (Layout::new(&largest, &device), Layout::new(&small, &device));
        let within = planned.shrink(&small, &device).unwrap();
        let (alone, within) = (products(&alone), products(&within));
        let on_units = |names: &[String]| names.iter().filter(|name| name.contains("coop-tiled")).count();
        let in_sections =
            |names: &[String]| names.iter().filter(|name| name.contains("sections, coop-tiled")).count();
        assert!(in_sections(&alone) > 10, "{alone:?}");
        assert_eq!(on_units(&within), on_units(&alone), "{linear} {staged}: {within:?}");
        match staged {
            "" => {
                let other = within.iter().zip(&alone).filter(|(within, alone)| within != alone);
                assert_eq!(other.collect::<Vec<_>>(), [], "{linear}");
                assert_eq!(within.len(), alone.len());
            }
            // two dispatches more than the large one's are one too many: not in sections, but on matrix units
            _ => assert!(in_sections(&within) < in_sections(&alone), "{within:?}"),
        }
    }
}

/// Rows in bf16 are scaled before a product, in scratch space, or by the product: one size may have the one, others the other.
#[test]
fn rows_scaled_before_and_as_they_are_met_serve_beside_each_other() {
    let (_, device) = devices().into_iter().next().unwrap();
    let all = matmul::Variant::all(&device);
    let named = |running| {
        let tile =
            |v: &&matmul::Variant| v.is_running() == running && v.to_string().contains("coop-tiled 64x64");
        all.iter().find(tile).unwrap().to_string()
    };
    let network = network(DType::BF16, Recompute::None, 1, 0.0);
    let [largest, small] = [LARGEST, (96, 64)].map(|(t, l)| network.training(t, l).unwrap());
    for of_largest in [true, false] {
        let mut choices = Choices::default();
        for (graph, running) in [(&largest, of_largest), (&small, !of_largest)] {
            let with = DeviceProfile { choices: Arc::new(choices.clone()), ..device.clone() };
            for class in unmeasured(graph, &with).into_iter().map(|c| c.class) {
                choices.insert(class, named(running));
            }
        }
        let device = DeviceProfile { choices: Arc::new(choices), ..device.clone() };
        let (planned, alone) = (Layout::new(&largest, &device), Layout::new(&small, &device));
        let within = planned.shrink(&small, &device).unwrap();
        let count = |layout: &Layout, end: &str| {
            let of_units = layout.dispatches().filter(|d| d.shader.name == "matmul_coop_tiled");
            of_units.filter(|d| d.variant.ends_with(end)).count()
        };
        let [in_largest, in_small] = [&planned, &alone].map(|layout| count(layout, " running"));
        assert!(if of_largest { in_largest > 2 * in_small } else { in_small > 2 * in_largest });
        assert!(count(&alone, "") > 20, "{}", count(&alone, ""));
        assert_eq!([count(&within, " running"), count(&within, "")], [in_small, count(&alone, "")]);
    }
}

/// Scratch space that the largest size did not need lies where no value does.
#[test]
fn scratch_space_of_a_smaller_size_overwrites_nothing() {
    let Some(gpu) = common::gpu() else { return };
    let size = 256;
    let graph = |rows: usize| {
        let mut graph = Graph::new();
        let x = graph.input("x", Shape::matrix(rows, size), DType::F32).unwrap();
        let product = |graph: &mut Graph, value, name: &str| {
            let weight = graph.frozen(name, Shape::matrix(size, size), DType::Nf4).unwrap();
            matmul::matmul(graph, matmul::Layout::NT, value, weight, 1.0, DType::F32).unwrap()
        };
        // `kept` must outlive the three products after it
        let first = product(&mut graph, x, "a");
        let kept = product(&mut graph, first, "b");
        let other = product(&mut graph, x, "c");
        let other = product(&mut graph, other, "d");
        let other = product(&mut graph, other, "e");
        let sum = add(&mut graph, kept, other).unwrap();
        graph.output("sum", sum);
        graph
    };
    let (largest, small) = (graph(512), graph(256));
    let mut choices = Choices::default();
    for (graph, staged) in [(&largest, false), (&small, true)] {
        for candidate in unmeasured(graph, &gpu.profile()) {
            let kernel = candidate.default_variant().trim_start_matches("staged ").to_owned();
            choices.insert(candidate.class, if staged { format!("staged {kernel}") } else { kernel });
        }
    }
    let device = DeviceProfile { choices: Arc::new(choices), ..DeviceProfile::clone(&gpu.profile()) };
    let planned = Layout::new(&largest, &device);
    let within = planned.shrink(&small, &device).unwrap();
    let staged = |layout: &Layout| layout.dispatches().filter(|d| d.shader.name == "copy").count();
    assert_eq!((staged(&planned), staged(&Layout::new(&small, &device))), (0, 5));
    assert_eq!(staged(&within), 3, "the products after which no slot is idle do without");

    let mut bindings = Bindings::new();
    bindings.allocate_inputs(&gpu, &small).unwrap();
    let mut random = common::Random::new(7);
    let mut numbers = |count: usize| (0..count).map(|_| random.next() as f32 / 8.0).collect::<Vec<_>>();
    for leaf in small.leaves() {
        let ty = small.type_of(leaf.value);
        let values = numbers(ty.shape.elements());
        let bytes = match leaf.kind {
            LeafKind::Frozen => {
                let memory = gpu.allocate(&leaf.name, ty.bytes()).unwrap().whole();
                bindings.bind(leaf.name.clone(), memory);
                Blocks::quantise(ty, &values).pack(ty)
            }
            _ => pack(ty, &values),
        };
        bindings.leaf(&leaf.name).unwrap().write(&bytes);
    }
    let results = [Layout::new(&small, &device), within].map(|layout| {
        let slots = Slots::allocate(&gpu, &layout).unwrap();
        let program = Program::new(&gpu, &small, &layout, &slots, &bindings).unwrap();
        gpu.submit(&[], &[program.recording()]).unwrap();
        let bytes = gpu.read(&[program.output("sum").unwrap().clone()]).unwrap().remove(0);
        bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)
    });
    let largest = results[0].iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(largest > 0.01, "{largest}");
    let off = results[0].iter().zip(&results[1]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(off <= 1e-5 * largest, "{off} of {largest}");
}
