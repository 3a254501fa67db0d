//! Output head and loss in one: `loss = Σ_i -log softmax(h_i·Wᵀ)[target_i]`, h `[L, d]`, W `[vocab, d]`, targets `[L]`.
//!
//! Rows whose target is [`NO_TARGET`] count nothing. The sum is not divided by the number of tokens: the caller weights it
//! through the gradient's seed. Logits are made for a chunk of rows at a time, in f32, turned into their own gradient, or into that
//! in f16 for matrix units, and thrown away: a `[L, vocab]` tensor never exists, unless it is asked for ([`LinearCrossEntropy::whole`]).
//!
//! Gradients with p = softmax(logits): `dlogits = (p - onehot) dloss`, `dh = dlogits·W` overwrites, `dW += dlogitsᵀ·h`.
//! [`LinearCrossEntropyGradient`] gives the loss as well, so a training step makes the logits once.
//!
//! Logits may pass a soft cap, `c tanh(x / c)` (Gemma 2, arXiv:2408.00118), before the softmax.
//!
//! A head with an adapter has two more inputs, u = s·drop(h)·Aᵀ f32 `[L, r]` and B `[vocab, r]`: the logits are `h·Wᵀ + u·Bᵀ`,
//! made in one widened product, and `du = dlogits·B`, `dB += dlogitsᵀ·u`.

use super::matmul::{Layout, Operand, Product, Terms, accumulate_product, take_rounding};
use super::{FILL, elementwise, expect, expect_inputs, row_dispatch};
use crate::graph::{
    Binding, Case, CaseInput, DType, DeviceProfile, Dispatch, Graph, GraphError, Launch, LaunchPlan,
    Operation, Place, ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

const SHADER: Shader = crate::shader!("cross_entropy");
const SUM: Shader = crate::shader!("sum");

const GRADIENT_NAME: &str = "linear_cross_entropy_gradient";

/// The target of a row that carries no label.
pub const NO_TARGET: u32 = u32::MAX;

/// Bytes of logits that exist at once, if 64 rows fit, on CPU devices and on GPUs: these read the weight once for every chunk, and many
/// rows share what a wide vocabulary's weight is read for.
const CHUNK_BYTES: [usize; 2] = [64 << 20, 128 << 20];

/// Inputs h, W, targets, and u, B of an adapter; output: loss `[1]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinearCrossEntropy {
    /// All rows of logits exist at once, as they do where head, loss and gradient are operations of their own.
    pub whole: bool,
    /// c of the logits' soft cap.
    pub soft_cap: Option<f64>,
}

/// Inputs h, W, targets, dloss `[1]`, and u, B of an adapter; outputs loss `[1]`, dh, dW, and du, dB.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinearCrossEntropyGradient {
    pub forward: LinearCrossEntropy,
}

pub fn linear_cross_entropy(
    graph: &mut Graph,
    h: Value,
    weight: Value,
    targets: Value,
    adapter: Option<(Value, Value)>,
) -> Result<Value, GraphError> {
    LinearCrossEntropy::default().append(graph, h, weight, targets, adapter)
}

impl LinearCrossEntropy {
    /// [`linear_cross_entropy`], with all logits at once or not.
    pub fn append(
        self,
        graph: &mut Graph,
        h: Value,
        weight: Value,
        targets: Value,
        adapter: Option<(Value, Value)>,
    ) -> Result<Value, GraphError> {
        let adapter = adapter.into_iter().flat_map(|(u, b)| [u, b]);
        let inputs: Vec<Value> = [h, weight, targets].into_iter().chain(adapter).collect();
        graph.apply1(Arc::new(self), &inputs)
    }
}

/// The loss as the gradient node of the graph gives it, where there is one.
pub fn loss_of_gradient(graph: &Graph) -> Option<Value> {
    let node = graph.nodes().iter().rev().find(|n| n.op.name() == GRADIENT_NAME)?;
    node.outputs.first().copied()
}

/// Rows of logits that exist at once: a multiple of 64, which keeps every chunk's offset aligned.
fn chunk_rows(device: &DeviceProfile, rows: usize, vocab: usize) -> usize {
    let row = vocab.div_ceil(4) * 16;
    (CHUNK_BYTES[usize::from(!device.cpu)] / row / 64 * 64).max(64).min(rows.next_multiple_of(64))
}

fn check(op: &'static str, inputs: &[TensorType]) -> Result<(), GraphError> {
    let fits = inputs[0].cols() == inputs[1].cols() && inputs[2].cols() == inputs[0].rows();
    expect(op, fits && inputs[2].dtype == DType::U32, || {
        format!("h {}, W {} and targets {} do not fit together", inputs[0], inputs[1], inputs[2])
    })
}

/// Checks the inputs of an adapter, after `first` others.
fn check_adapter(op: &'static str, inputs: &[TensorType], first: usize) -> Result<(), GraphError> {
    let adapter = &inputs[first.min(inputs.len())..];
    expect(op, adapter.is_empty() || adapter.len() == 2, || format!("takes {first} inputs, or two more"))?;
    let [u, b] = *adapter else { return Ok(()) };
    let fits = u.rows() == inputs[0].rows() && b.rows() == inputs[1].rows() && u.cols() == b.cols();
    expect(op, fits && u.dtype == DType::F32, || format!("u {u} (f32) and B {b} do not fit the head"))
}

/// Dispatches of both operations; the gradient has a fourth input and the outputs after the loss.
fn launch(launch: &Launch<'_>, gradient: bool, op: &LinearCrossEntropy) -> LaunchPlan {
    let (h, w) = (launch.inputs[0], launch.inputs[1]);
    let (rows, width, vocab) = (h.rows(), h.cols(), w.rows());
    let chunk = if op.whole { rows.next_multiple_of(64) } else { chunk_rows(launch.device, rows, vocab) };
    let logit_row = (w.rows().div_ceil(4) * 16) as u64;
    let h_row = h.bytes() / rows as u64;
    let logits = Operand::new(Place::Workspace(0), DType::F32);
    let live = |output: usize| gradient && launch.live.get(output).copied().unwrap_or(false);
    let (want_dh, want_dw, want_du, want_db) = (live(1), live(2), live(3), live(4));
    let any = want_dh || want_dw || want_du || want_db;
    let first = if gradient { 4 } else { 3 };
    let rank = launch.inputs.get(first).map_or(0, |u| u.cols());
    let u_row = launch.inputs.get(first).map_or(0, |u| u.bytes() / rows as u64);
    let mut plan = LaunchPlan {
        dispatches: Vec::new(),
        workspaces: vec![chunk as u64 * logit_row, (rows * 4).next_multiple_of(16) as u64],
        ..LaunchPlan::default()
    };
    for (output, wanted) in [(2, want_dw), (4, want_db)] {
        if wanted && !launch.accumulate[output] {
            let ty = launch.outputs[output];
            let fill = elementwise(FILL, ty.rows() * ty.cols4());
            plan.dispatches.push(fill.write("y", Place::Output(output), ty.dtype));
        }
    }
    for start in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - start);
        let h_chunk = Operand::input(launch, 0).range(start as u64 * h_row, count as u64 * h_row);
        let weight = Operand::input(launch, 1).beside(h.dtype);
        let forward = Product {
            layout: Layout::NT,
            m: count,
            n: vocab,
            k: width,
            alpha: 1.0,
            accumulate: false,
            parts: 1,
        };
        let chunk_of_u =
            |place| Operand::new(place, DType::F32).range(start as u64 * u_row, count as u64 * u_row);
        let pair =
            (rank > 0).then(|| (chunk_of_u(Place::Input(first)), Operand::input(launch, first + 1), rank));
        forward.launch(launch, &mut plan, (h_chunk, weight), Terms { pair, ..Terms::default() }, logits);
        let after_logits = plan.dispatches.len();
        let mut rounding = None;
        if want_dh {
            let product = Product { layout: Layout::NN, m: count, n: width, k: vocab, ..forward };
            let dh =
                Operand::new(Place::Output(1), h.dtype).range(start as u64 * h_row, count as u64 * h_row);
            // PyTorch in 16 bits stores them so: bf16 keeps fewer bits of each, and f16, unscaled, nothing of the small ones
            let dlogits = Operand { rounds: h.dtype != DType::F32, ..logits };
            product.launch(launch, &mut plan, (dlogits, weight), Terms::default(), dh);
            // whoever else reads the gradient takes it in f32
            let alone = !(want_dw || want_du || want_db);
            rounding = alone.then(|| take_rounding(&mut plan, after_logits)).flatten();
        }
        plan.dispatches
            .insert(after_logits, softmax(launch, op.soft_cap, start..start + count, any, rounding));
        if want_dw {
            let product =
                Product { layout: Layout::TN, m: vocab, n: width, k: count, accumulate: true, ..forward };
            let dw = Operand::new(Place::Output(2), launch.outputs[2].dtype);
            // beside bf16 it is scaled before it is rounded; beside f16 nothing would keep small probabilities, so it stays in f32
            let dlogits = Operand { rounds: h.dtype == DType::BF16, ..logits };
            product.launch(launch, &mut plan, (dlogits, h_chunk), Terms::default(), dw);
        }
        if want_du {
            let product = Product { layout: Layout::NN, m: count, n: rank, k: vocab, ..forward };
            let (b, du) = (Operand::input(launch, first + 1), chunk_of_u(Place::Output(3)));
            product.launch(launch, &mut plan, (logits, b), Terms::default(), du);
        }
        if want_db {
            let product =
                Product { layout: Layout::TN, m: vocab, n: rank, k: count, accumulate: true, ..forward };
            let (u, db) =
                (chunk_of_u(Place::Input(first)), Operand::new(Place::Output(4), launch.outputs[4].dtype));
            product.launch(launch, &mut plan, (logits, u), Terms::default(), db);
        }
    }
    let sum = Dispatch::new(SUM, 1)
        .flag("ACCUMULATE", launch.accumulate[0])
        .param("count", rows)
        .read_scalar("x", Place::Workspace(1), DType::F32)
        .write_scalar("total", Place::Output(0), DType::F32);
    plan.dispatches.push(sum);
    plan
}

/// The losses of a chunk of rows, and the gradient of their logits if it is wanted: in place of the logits, or `rounded` for matrix units
/// with what its rows are scaled by.
fn softmax(
    launch: &Launch<'_>,
    soft_cap: Option<f64>,
    rows: Range<usize>,
    gradient: bool,
    rounded: Option<[Binding; 2]>,
) -> Dispatch {
    let (first, count, vocab) = (rows.start, rows.len(), launch.inputs[1].rows());
    // the logits are read once for the losses and once for the gradient
    let bytes = match (gradient, &rounded) {
        (false, _) => 4,
        (true, Some(_)) => 4 + 4 + 2,
        (true, None) => 4 + 4 + 4,
    };
    let mut softmax = row_dispatch(SHADER, launch, count, vocab.div_ceil(4))
        .flag("GRADIENT", gradient)
        .flag("ROUNDED", rounded.is_some())
        .flag("CAPPED", soft_cap.is_some())
        .param("vocab", vocab)
        .param("first", first)
        .read_scalar("targets", Place::Input(2), DType::U32)
        .write_scalar("losses", Place::Workspace(1), DType::F32)
        .cost(8.0 * (count * vocab) as f64, (count * vocab * bytes) as f64);
    if let Some(cap) = soft_cap {
        softmax = softmax.param_f32("cap", cap);
    }
    softmax = match rounded {
        Some(bindings) => {
            bindings.into_iter().fold(softmax.read("logits", Place::Workspace(0), DType::F32), Dispatch::bind)
        }
        None => softmax.write("logits", Place::Workspace(0), DType::F32),
    };
    if gradient {
        softmax = softmax.read_scalar("dloss", Place::Input(3), DType::F32);
    }
    softmax
}

/// `(loss, dlogits for dloss = 1)` in f64.
fn softmax_loss(
    soft_cap: Option<f64>,
    inputs: &[ReferenceTensor],
    adapter: Option<(&ReferenceTensor, &ReferenceTensor)>,
) -> (f64, ReferenceTensor) {
    let mut logits = ReferenceTensor::zeros(Shape::matrix(inputs[0].rows(), inputs[1].rows()));
    accumulate_product(Layout::NT, 1.0, &inputs[0], &inputs[1], &mut logits);
    if let Some((u, b)) = adapter {
        accumulate_product(Layout::NT, 1.0, u, b, &mut logits);
    }
    let mut loss = 0.0;
    for i in 0..logits.rows() {
        let target = inputs[2].data[i];
        let row = logits.row_mut(i);
        if target == f64::from(NO_TARGET) {
            row.fill(0.0);
            continue;
        }
        let mut slopes = vec![1.0; row.len()];
        if let Some(cap) = soft_cap {
            for (v, slope) in row.iter_mut().zip(&mut slopes) {
                let t = (*v / cap).tanh();
                (*v, *slope) = (cap * t, 1.0 - t * t);
            }
        }
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        loss += largest + sum.ln() - row[target as usize];
        row.iter_mut().for_each(|v| *v = (*v - largest).exp() / sum);
        row[target as usize] -= 1.0;
        row.iter_mut().zip(slopes).for_each(|(v, slope)| *v *= slope);
    }
    (loss, logits)
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        check_adapter(self.name(), inputs, 3)?;
        expect_inputs(self.name(), &inputs[..inputs.len().min(3)], 3)?;
        check(self.name(), inputs)?;
        Ok(vec![TensorType::new(Shape::scalar(), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dloss) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (before, adapter) = node.inputs.split_at(3);
        let inputs: Vec<Value> =
            before.iter().copied().chain([dloss]).chain(adapter.iter().copied()).collect();
        let outputs = graph.apply(Arc::new(LinearCrossEntropyGradient { forward: self.clone() }), &inputs)?;
        let of = |input: usize, output: usize| node.wanted[input].then(|| outputs[output]);
        let mut gradients = vec![of(0, 1), of(1, 2), None];
        if !adapter.is_empty() {
            gradients.extend([of(3, 3), of(4, 4)]);
        }
        Ok(gradients)
    }

    fn launch(&self, context: &Launch<'_>) -> LaunchPlan {
        launch(context, false, self)
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (loss, _) = softmax_loss(self.soft_cap, inputs, inputs.get(3).zip(inputs.get(4)));
        vec![ReferenceTensor::from_fn(outputs[0].shape, |_| loss)]
    }

    fn cases() -> Vec<Case> {
        let case = |rows: usize, vocab: usize, width: usize, dtype, weight| {
            let targets = (0..rows as u32).map(|i| if i % 3 == 1 { NO_TARGET } else { i * 7 % vocab as u32 });
            let inputs = vec![
                CaseInput::random(&[rows, width], dtype),
                CaseInput::random(&[vocab, width], weight),
                CaseInput::indices(targets),
            ];
            Case::new(
                format!("{rows}x{vocab}x{width} {dtype} {weight}"),
                LinearCrossEntropy::default(),
                inputs,
            )
        };
        let adapted = |rows: usize, vocab: usize, width: usize, rank: usize, dtype, weight| {
            let Case { mut inputs, label, .. } = case(rows, vocab, width, dtype, weight);
            inputs.push(CaseInput::random(&[rows, rank], DType::F32));
            inputs.push(CaseInput::random(&[vocab, rank], DType::F32));
            Case::new(format!("{label}, adapter of rank {rank}"), LinearCrossEntropy::default(), inputs)
        };
        let capped = |case: Case| Case {
            op: Arc::new(LinearCrossEntropy { soft_cap: Some(1.25), ..LinearCrossEntropy::default() }),
            label: format!("{}, capped", case.label),
            ..case
        };
        vec![
            case(4, 5, 6, DType::F32, DType::F32).gradients(&[0, 1]),
            case(1, 105, 12, DType::F32, DType::F32),
            case(70, 131, 16, DType::BF16, DType::BF16),
            case(9, 64, 16, DType::F16, DType::F16),
            case(50, 96, 16, DType::F16, DType::F16),
            case(70, 132, 64, DType::BF16, DType::BF16),
            // several chunks of logits
            case(200, 36_003, 4, DType::F32, DType::F16),
            adapted(4, 5, 6, 2, DType::F32, DType::F32).gradients(&[0, 1, 3, 4]),
            adapted(70, 131, 16, 8, DType::BF16, DType::BF16),
            adapted(200, 36_003, 4, 3, DType::F32, DType::F16),
            // logits of these inputs reach twice the cap
            capped(case(4, 5, 6, DType::F32, DType::F32)).gradients(&[0, 1]),
            capped(case(70, 132, 64, DType::BF16, DType::BF16)),
            capped(adapted(9, 35, 16, 2, DType::F32, DType::F32)).gradients(&[0, 1, 3, 4]),
            // and all of them at once
            Case {
                op: Arc::new(LinearCrossEntropy { whole: true, ..LinearCrossEntropy::default() }),
                label: "all logits at once".into(),
                ..adapted(200, 36_003, 4, 3, DType::F32, DType::F16)
            },
        ]
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}

impl Operation for LinearCrossEntropyGradient {
    fn name(&self) -> &'static str {
        GRADIENT_NAME
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        check_adapter(self.name(), inputs, 4)?;
        expect_inputs(self.name(), &inputs[..inputs.len().min(4)], 4)?;
        check(self.name(), inputs)?;
        let gradient = |ty: &TensorType| TensorType::new(ty.shape, DType::F32);
        let mut outputs = vec![TensorType::new(Shape::scalar(), DType::F32), inputs[0], gradient(&inputs[1])];
        outputs.extend(inputs[4..].iter().map(gradient));
        Ok(outputs)
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let all: Vec<usize> = (0..node.inputs.len()).collect();
        node.refuse(self.name(), &all)?;
        Ok(vec![None; node.inputs.len()])
    }

    fn launch(&self, context: &Launch<'_>) -> LaunchPlan {
        launch(context, true, &self.forward)
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let adapter = inputs.get(4).zip(inputs.get(5));
        let (loss, mut dlogits) = softmax_loss(self.forward.soft_cap, inputs, adapter);
        dlogits.data.iter_mut().for_each(|v| *v *= inputs[3].data[0]);
        let mut dh = ReferenceTensor::zeros(outputs[1].shape);
        let mut dw = ReferenceTensor::zeros(outputs[2].shape);
        accumulate_product(Layout::NN, 1.0, &dlogits, &inputs[1], &mut dh);
        accumulate_product(Layout::TN, 1.0, &dlogits, &inputs[0], &mut dw);
        let mut all = vec![ReferenceTensor::from_fn(outputs[0].shape, |_| loss), dh, dw];
        if let Some((u, b)) = adapter {
            let mut du = ReferenceTensor::zeros(outputs[3].shape);
            let mut db = ReferenceTensor::zeros(outputs[4].shape);
            accumulate_product(Layout::NN, 1.0, &dlogits, b, &mut du);
            accumulate_product(Layout::TN, 1.0, &dlogits, u, &mut db);
            all.extend([du, db]);
        }
        all
    }

    fn cases() -> Vec<Case> {
        LinearCrossEntropy::cases()
            .into_iter()
            .map(|case| {
                let op: &dyn Any = &*case.op;
                let forward: LinearCrossEntropy = op.downcast_ref().cloned().expect("a case of the loss");
                let mut inputs = case.inputs;
                inputs.insert(3, CaseInput::values(&[1], DType::F32, vec![0.125]));
                Case::new(case.label, LinearCrossEntropyGradient { forward }, inputs)
            })
            .collect()
    }

    fn accumulates(&self, output: usize) -> bool {
        ![1, 3].contains(&output)
    }
}
