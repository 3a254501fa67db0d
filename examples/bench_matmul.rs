//! How fast the matrix products are: a table over shapes, layouts and storage types.
//!
//! `cargo run --release --example bench_matmul`

use engraft::gpu::{Gpu, GpuOptions};
use engraft::graph::{DType, Graph, Shape};
use engraft::ops::matmul::{Layout, matmul};
use engraft::plan::{Bindings, Program};
use std::error::Error;
use std::time::Instant;

/// m x n x k: a layer of a 1B model with 512 tokens, and the thin product of an adapter.
const SHAPES: [(usize, usize, usize); 3] = [(512, 1024, 1024), (512, 2048, 2048), (512, 8, 2048)];

/// Runs to take the best of, after one that pays the driver's compiler.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(&GpuOptions::default())?;
    println!("{} | {}\n", gpu.info().name, gpu.info().driver);
    println!(
        "{:<14}{:<8}{:<9}{:>8}{:>10}{:>9}",
        "m x n x k", "layout", "storage", "ms", "GFLOP/s", "of best"
    );
    for shape in SHAPES {
        let mut rows = Vec::new();
        for layout in [Layout::NT, Layout::NN, Layout::TN] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                rows.push((layout, dtype, seconds(&gpu, shape, layout, dtype)?));
            }
        }
        let (m, n, k) = shape;
        let best = rows.iter().map(|row| row.2).fold(f64::MAX, f64::min);
        for (layout, dtype, time) in rows {
            let (ms, rate, share) = (time * 1e3, 2.0 * (m * n * k) as f64 / time / 1e9, 100.0 * best / time);
            let (shape, layout, dtype) = (format!("{m}x{n}x{k}"), format!("{layout:?}"), dtype.to_string());
            println!("{shape:<14}{layout:<8}{dtype:<9}{ms:>8.2}{rate:>10.1}{share:>8.0}%");
        }
    }
    Ok(())
}

/// The shortest time of a product; both operands and the result are stored as `dtype`.
fn seconds(
    gpu: &Gpu,
    (m, n, k): (usize, usize, usize),
    layout: Layout,
    dtype: DType,
) -> Result<f64, Box<dyn Error>> {
    let (a, b) = match layout {
        Layout::NT => ([m, k], [n, k]),
        Layout::NN => ([m, k], [k, n]),
        Layout::TN => ([k, m], [k, n]),
    };
    let mut graph = Graph::new();
    let a = graph.input("a", Shape::new(&a), dtype)?;
    let b = graph.input("b", Shape::new(&b), dtype)?;
    let c = matmul(&mut graph, layout, a, b, 1.0, dtype)?;
    graph.output("c", c);
    let mut bindings = Bindings::new();
    bindings.allocate_inputs(gpu, &graph)?;
    let program = Program::compile(gpu, &graph, &bindings)?;
    let mut best = f64::MAX;
    for run in 0..=RUNS {
        let start = Instant::now();
        gpu.submit(&[], &[program.recording()])?;
        gpu.wait()?;
        if run > 0 {
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}
