//! What the host holds while weights go to the device, or to buffers in host memory: counted by this program's own allocator, which a
//! driver's memory (on a software device that is the device's) does not pass through. One test, so that nothing else allocates
//! meanwhile.

mod common;

use engraft::autograd::Recompute;
use engraft::checkpoint::{Checkpoint, write_safetensors};
use engraft::fuse::Fusions;
use engraft::graph::DType;
use engraft::graph::layout::unpack;
use engraft::models::{ModelConfig, Network};
use engraft::nn::{PlainLayers, Storage, WeightMode};
use engraft::plan::Bindings;
use engraft::train::bench::small_config;
use engraft::train::weights::WeightSource;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    let now = NOW.fetch_add(by, Ordering::Relaxed) + by;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it is
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // both exist where the system has to move it
        grown(size);
        let moved = unsafe { System.realloc(pointer, layout, size) };
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 26 M parameters, most of them in one tensor; rows of 514 are padded on the device.
fn network(hidden: usize) -> Network {
    let config = ModelConfig {
        vocab_size: 40_000,
        hidden_size: hidden,
        intermediate_size: 1026,
        layers: 2,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        tied_head: true,
        ..small_config()
    };
    Network {
        config,
        weights: WeightMode::Frozen(DType::BF16.into()),
        activations: DType::BF16,
        adapter: None,
        recompute: Recompute::None,
        plain_layers: PlainLayers::default(),
        positions: 32,
        fusions: Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
    }
}

fn value(i: usize) -> f32 {
    (i % 241) as f32 - 120.0
}

#[test]
fn the_host_holds_pieces_and_not_the_model() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    // four pieces of 4 MiB with their originals of twice the size, and what the driver's side keeps in its own books
    let allowed = 64 << 20;
    for hidden in [512, 514] {
        let network = network(hidden);
        let config = &network.config;
        let tensors = config.expected_shapes().into_iter().map(|(name, dims)| {
            let count: usize = dims.iter().product();
            let bytes: Vec<u8> = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
            (name, DType::F32, dims, bytes)
        });
        write_safetensors(&folder.path().join("model.safetensors"), tensors, &[]).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stored = checkpoint.total_bytes();
        let graph = network.evaluation(32, 32).unwrap();
        for source in [WeightSource::Checkpoint(checkpoint), WeightSource::Random { seed: 1, norms: 1.0 }] {
            let mut bindings = Bindings::new();
            let (before, start) = (NOW.load(Ordering::Relaxed), Instant::now());
            PEAK.store(before, Ordering::Relaxed);
            let bytes = source.upload(&gpu, &graph, &network, &mut bindings).unwrap();
            let (peak, seconds) = (PEAK.load(Ordering::Relaxed) - before, start.elapsed().as_secs_f64());
            let kind = if matches!(source, WeightSource::Random { .. }) { "random" } else { "file" };
            println!(
                "rows of {hidden}, {kind}: {} MiB stored, {} MiB on the device in {seconds:.2} s, {:.1} MiB on the host",
                stored >> 20,
                bytes >> 20,
                peak as f64 / f64::from(1 << 20)
            );
            assert!(peak < allowed, "{peak} bytes of the host for a checkpoint of {stored}");
            let name = "model.embed_tokens.weight";
            let leaf = graph.leaves().iter().find(|leaf| leaf.name == name).unwrap();
            let read = gpu.read(&[bindings.leaf(name).unwrap().clone()]).unwrap().swap_remove(0);
            let values = unpack(graph.type_of(leaf.value), &read);
            match source {
                WeightSource::Checkpoint(_) => {
                    assert!(values.iter().enumerate().all(|(i, v)| *v == value(i)), "rows of {hidden}");
                }
                WeightSource::Random { .. } => {
                    let squares = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    let variance = squares / values.len() as f64;
                    assert!((variance.sqrt() - 0.02).abs() < 2e-4, "{variance}");
                }
            }
        }
    }
    // blocks of 30 M parameters that stay in host memory: in buffers of the device there
    let storage = Storage { offload: 2, ..Storage::from(DType::BF16) };
    let network = network(512);
    let config = ModelConfig { intermediate_size: 20_000, vocab_size: 100, ..network.config };
    let network = Network { config, weights: WeightMode::Frozen(storage), ..network };
    let graph = network.evaluation(32, 32).unwrap();
    let mut bindings = Bindings::new();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    WeightSource::Random { seed: 1, norms: 1.0 }.upload(&gpu, &graph, &network, &mut bindings).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let streamed = bindings.streamed_bytes();
    println!("{} MiB streamed, {} MiB on the host beside them", streamed >> 20, peak >> 20);
    assert!(streamed > 117 << 20, "{streamed}");
    assert!(peak < allowed, "{peak} bytes of the host beside {streamed}");
}
