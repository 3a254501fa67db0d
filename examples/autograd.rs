//! A network of one's own, from the graph up: it learns to go on with Fibonacci numbers modulo 16.
//!
//! `cargo run --release --example autograd`
//!
//! The steps are those of every training in this library: describe the forward pass, append the reverse pass, plan it
//! for the device once, then replay it.

use engraft::autograd::{Recompute, differentiate};
use engraft::gpu::{Gpu, GpuOptions};
use engraft::graph::layout::{pack_u32, unpack};
use engraft::graph::{DType, Graph, GraphError, Shape, Value};
use engraft::ops::activation::Activation;
use engraft::ops::adamw::Hyper;
use engraft::ops::cross_entropy::{linear_cross_entropy, loss_of_gradient};
use engraft::ops::glu::glu;
use engraft::ops::matmul::{Layout, matmul};
use engraft::ops::rms_norm::{Norm, rms_norm};
use engraft::ops::{add::add, embedding};
use engraft::plan::{Bindings, ParameterSpace, Program};
use engraft::train::optimiser::Optimiser;
use engraft::train::options::OptimizerKind;

/// Tokens are the numbers below this; every pair of them is a row of the one batch.
const VOCAB: usize = 16;
const ROWS: usize = VOCAB * VOCAB;
const WIDTH: usize = 32;
const INNER: usize = 64;
const STEPS: u64 = 200;

/// The two numbers before the one to predict, as embeddings, then a gated MLP. Gives hidden states `[ROWS, WIDTH]`
/// and the matrix `[VOCAB, WIDTH]` that turns them into logits.
fn network(g: &mut Graph) -> Result<(Value, Value), GraphError> {
    let mut x = None;
    for name in ["first", "second"] {
        let tokens = g.input(name, Shape::vector(ROWS), DType::U32)?;
        let order = g.input(format!("{name}_order"), Shape::vector(ROWS), DType::U32)?;
        let table = g.trainable(format!("{name}_table"), Shape::matrix(VOCAB, WIDTH))?;
        let row = embedding::embedding(g, table, tokens, Some(order), 1.0, DType::F32)?;
        x = Some(x.map_or(Ok(row), |x| add(g, x, row))?);
    }
    let x = x.ok_or_else(|| GraphError::invalid("network", "no tokens"))?;
    let norm = g.trainable("norm", Shape::vector(WIDTH))?;
    let normed = rms_norm(g, x, norm, Norm { eps: 1e-5, unit_offset: false })?;
    let linear = |g: &mut Graph, x, name, outputs, inputs| {
        let weight = g.trainable(name, Shape::matrix(outputs, inputs))?;
        matmul(g, Layout::NT, x, weight, 1.0, DType::F32)
    };
    let gate = linear(g, normed, "gate", INNER, WIDTH)?;
    let up = linear(g, normed, "up", INNER, WIDTH)?;
    let product = glu(g, Activation::Silu, gate, up)?;
    let down = linear(g, product, "down", WIDTH, INNER)?;
    let hidden = add(g, x, down)?;
    let head = g.trainable("head", Shape::matrix(VOCAB, WIDTH))?;
    Ok((hidden, head))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gpu = Gpu::open(&GpuOptions::default())?;
    println!("{}\n", gpu.info().name);

    // 1. forward pass and loss, then their gradients: the same list of operations, appended to
    let mut training = Graph::new();
    let (hidden, head) = network(&mut training)?;
    let targets = training.input("targets", Shape::vector(ROWS), DType::U32)?;
    let loss = linear_cross_entropy(&mut training, hidden, head, targets, None)?;
    // the loss is a sum over rows: this weight makes its gradient that of the mean
    let weight = training.input("weight", Shape::scalar(), DType::F32)?;
    differentiate(&mut training, loss, weight, Recompute::None)?;
    // the gradient's kernels make the loss as well, so the forward pass of the loss need not run
    training.output("loss", loss_of_gradient(&training).unwrap_or(loss));

    // 2. a second graph of the same network for predictions
    let mut predicting = Graph::new();
    let (hidden, head) = network(&mut predicting)?;
    let logits = matmul(&mut predicting, Layout::NT, hidden, head, 1.0, DType::F32)?;
    predicting.output("logits", logits);

    // 3. memory: parameters with gradients and moments in flat buffers, inputs by name
    let optimiser = Optimiser::new(&gpu, ParameterSpace::of(&training), OptimizerKind::AdamW)?;
    for (name, ty, _) in optimiser.space().entries() {
        let wave = |i: usize| 0.3 * (1.7 * (i * i % 997) as f32 + name.len() as f32).sin();
        let values =
            (0..ty.shape.elements()).map(|i| if name == "norm" { 1.0 } else { wave(i) }).collect::<Vec<_>>();
        optimiser.set(name, &values)?;
    }
    let mut bindings = Bindings::new();
    optimiser.bind(&mut bindings);
    bindings.allocate_inputs(&gpu, &training)?;

    // 4. plans: kernels compiled and bound once
    let train = Program::compile(&gpu, &training, &bindings)?;
    let predict = Program::compile(&gpu, &predicting, &bindings)?;

    // 5. the data stay the same in every step, so they are written once
    let first: Vec<u32> = (0..ROWS).map(|i| (i / VOCAB) as u32).collect();
    let second: Vec<u32> = (0..ROWS).map(|i| (i % VOCAB) as u32).collect();
    let sums: Vec<u32> = first.iter().zip(&second).map(|(a, b)| (a + b) % VOCAB as u32).collect();
    let write = |name: &str, bytes: &[u8]| bindings.leaf(name).map(|slice| slice.write(bytes));
    write("first", &pack_u32(&first));
    write("first_order", &pack_u32(&embedding::token_order(&first)));
    write("second", &pack_u32(&second));
    write("second_order", &pack_u32(&embedding::token_order(&second)));
    write("targets", &pack_u32(&sums));
    write("weight", &(1.0 / ROWS as f32).to_le_bytes());

    // 6. a step: zero the gradients, replay the plan, update
    for step in 1..=STEPS {
        gpu.submit(&[optimiser.gradient_buffer().clone()], &[train.recording()])?;
        optimiser.step(&Hyper {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: Some(1.0),
            inverse_scale: 1.0,
            step,
            ..Hyper::default()
        })?;
        if step == 1 || step % 40 == 0 {
            let loss = &gpu.read(&[train.output("loss")?.part(0, 4)])?[0];
            println!(
                "step {step:3}  loss {:.4}",
                f32::from_le_bytes([loss[0], loss[1], loss[2], loss[3]]) / ROWS as f32
            );
        }
    }

    // 7. predictions: the number with the largest logit, for every pair
    gpu.submit(&[], &[predict.recording()])?;
    let bytes = gpu.read(&[predict.output("logits")?.clone()])?.remove(0);
    let logits = unpack(predicting.type_of(logits), &bytes);
    let next: Vec<usize> = logits
        .chunks(VOCAB)
        .map(|row| (0..VOCAB).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or_default())
        .collect();
    let right = next.iter().zip(&sums).filter(|(n, s)| **n == **s as usize).count();
    println!("\n{right} of {ROWS} pairs right; from 0, 1 on:");
    let mut numbers = vec![0, 1];
    for i in 0..14 {
        numbers.push(next[numbers[i] * VOCAB + numbers[i + 1]]);
    }
    println!("{}", numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}
