//! Output head and loss in one: `loss = Σ_i -log softmax(h_i·Wᵀ)[target_i]`, h `[L, d]`, W `[vocab, d]`, targets `[L]`.
//!
//! Rows whose target is [`NO_TARGET`] count nothing. The sum is not divided by the number of tokens: the caller weights it
//! through the gradient's seed. Logits are made for a chunk of rows at a time, in f32, turned into their own gradient and
//! thrown away: a `[L, vocab]` tensor never exists.
//!
//! Gradients with p = softmax(logits): `dlogits = (p - onehot) dloss`, `dh = dlogits·W` overwrites, `dW += dlogitsᵀ·h`.
//! [`LinearCrossEntropyGradient`] gives the loss as well, so a training step makes the logits once.

use super::matmul::{Layout, Operand, Product, Terms, accumulate_product};
use super::rms_norm::row_dispatch;
use super::{FILL, elementwise, expect, expect_inputs};
use crate::graph::{
    Binding, Case, CaseInput, DType, DeviceProfile, Dispatch, Graph, GraphError, Launch, LaunchPlan,
    Operation, Place, ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value, View,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("cross_entropy");
const SUM: Shader = crate::shader!("sum");

/// The target of a row that carries no label.
pub const NO_TARGET: u32 = u32::MAX;

/// Bytes of logits that exist at once, if 64 rows fit.
const CHUNK_BYTES: usize = 64 << 20;

/// Output: loss `[1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCrossEntropy;

/// Inputs h, W, targets, dloss `[1]`; outputs loss `[1]`, dh, dW.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCrossEntropyGradient;

pub fn linear_cross_entropy(
    graph: &mut Graph,
    h: Value,
    weight: Value,
    targets: Value,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(LinearCrossEntropy), &[h, weight, targets])
}

/// The loss as the gradient node of the graph gives it, where there is one.
pub fn loss_of_gradient(graph: &Graph) -> Option<Value> {
    let node = graph.nodes().iter().rev().find(|n| n.op.name() == LinearCrossEntropyGradient.name())?;
    node.outputs.first().copied()
}

/// Rows of logits that exist at once: a multiple of 64, which keeps every chunk's offset aligned.
fn chunk_rows(rows: usize, vocab: usize, device: &DeviceProfile) -> usize {
    let limit = if device.max_binding == 0 { usize::MAX } else { device.max_binding as usize };
    let row = vocab.div_ceil(4) * 16;
    let wanted = (CHUNK_BYTES / row / 64 * 64).max(64).min(rows.next_multiple_of(64));
    // eight rows are a multiple of any offset alignment where they are at least 16 wide
    if wanted * row <= limit { wanted } else { (limit / row / 8 * 8).max(8) }
}

fn check(op: &'static str, inputs: &[TensorType]) -> Result<(), GraphError> {
    let fits = inputs[0].cols() == inputs[1].cols() && inputs[2].cols() == inputs[0].rows();
    expect(op, fits && inputs[2].dtype == DType::U32, || {
        format!("h {}, W {} and targets {} do not fit together", inputs[0], inputs[1], inputs[2])
    })
}

/// Dispatches of both operations; the gradient has a fourth input and the outputs after the loss.
fn launch(launch: &Launch<'_>, gradient: bool) -> LaunchPlan {
    let (h, w) = (launch.inputs[0], launch.inputs[1]);
    let (rows, width, vocab) = (h.rows(), h.cols(), w.rows());
    let chunk = chunk_rows(rows, vocab, launch.device);
    let logit_row = (w.rows().div_ceil(4) * 16) as u64;
    let h_row = h.bytes() / rows as u64;
    let logits = Operand::new(Place::Workspace(0), DType::F32);
    let (want_dh, want_dw) = (gradient && launch.live[1], gradient && launch.live[2]);
    let mut plan = LaunchPlan {
        dispatches: Vec::new(),
        workspaces: vec![chunk as u64 * logit_row, (rows * 4).next_multiple_of(16) as u64],
        ..LaunchPlan::default()
    };
    if want_dw && !launch.accumulate[2] {
        let dw = launch.outputs[2];
        plan.dispatches.push(elementwise(FILL, dw.rows() * dw.cols4()).write(
            "y",
            Place::Output(2),
            dw.dtype,
        ));
    }
    for start in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - start);
        let h_chunk = Operand::input(launch, 0).range(start as u64 * h_row, count as u64 * h_row);
        let weight = Operand::input(launch, 1);
        let forward = Product {
            layout: Layout::NT,
            m: count,
            n: vocab,
            k: width,
            alpha: 1.0,
            accumulate: false,
            parts: 1,
        };
        forward.launch(launch, &mut plan, (h_chunk, weight), Terms::default(), logits);
        let mut softmax = row_dispatch(SHADER, launch, count, vocab.div_ceil(4))
            .flag("GRADIENT", want_dh || want_dw)
            .param("vocab", vocab)
            .param("first", start)
            .write("logits", Place::Workspace(0), DType::F32)
            .read_scalar("targets", Place::Input(2), DType::U32)
            .write_scalar("losses", Place::Workspace(1), DType::F32)
            .cost(8.0 * (count * vocab) as f64, 3.0 * (count * vocab * 4) as f64);
        if want_dh || want_dw {
            softmax = softmax.read_scalar("dloss", Place::Input(3), DType::F32);
        }
        plan.dispatches.push(softmax);
        if want_dh {
            let product = Product { layout: Layout::NN, m: count, n: width, k: vocab, ..forward };
            let dh =
                Operand::new(Place::Output(1), h.dtype).range(start as u64 * h_row, count as u64 * h_row);
            product.launch(launch, &mut plan, (logits, weight), Terms::default(), dh);
        }
        if want_dw {
            let product =
                Product { layout: Layout::TN, m: vocab, n: width, k: count, accumulate: true, ..forward };
            let dw = Operand::new(Place::Output(2), launch.outputs[2].dtype);
            product.launch(launch, &mut plan, (logits, h_chunk), Terms::default(), dw);
        }
    }
    let losses = Binding {
        name: "x",
        place: Place::Workspace(1),
        dtype: DType::F32,
        view: View::Scalar,
        write: false,
        offset: 0,
        size: None,
    };
    let sum = Dispatch::new(SUM, 1)
        .flag("ACCUMULATE", launch.accumulate[0])
        .param("count", rows)
        .bind(losses)
        .write_scalar("total", Place::Output(0), DType::F32);
    plan.dispatches.push(sum);
    plan
}

/// `(loss, dlogits for dloss = 1)` in f64.
fn softmax_loss(inputs: &[ReferenceTensor]) -> (f64, ReferenceTensor) {
    let mut logits = ReferenceTensor::zeros(Shape::matrix(inputs[0].rows(), inputs[1].rows()));
    accumulate_product(Layout::NT, 1.0, &inputs[0], &inputs[1], &mut logits);
    let mut loss = 0.0;
    for i in 0..logits.rows() {
        let target = inputs[2].data[i];
        let row = logits.row_mut(i);
        if target == f64::from(NO_TARGET) {
            row.fill(0.0);
            continue;
        }
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
        loss += largest + sum.ln() - row[target as usize];
        row.iter_mut().for_each(|v| *v = (*v - largest).exp() / sum);
        row[target as usize] -= 1.0;
    }
    (loss, logits)
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        check(self.name(), inputs)?;
        Ok(vec![TensorType::new(Shape::scalar(), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dloss) = node.gradients[0] else { return Ok(vec![None; 3]) };
        let (h, weight, targets) = (node.inputs[0], node.inputs[1], node.inputs[2]);
        let outputs = graph.apply(Arc::new(LinearCrossEntropyGradient), &[h, weight, targets, dloss])?;
        Ok(vec![node.wanted[0].then_some(outputs[1]), node.wanted[1].then_some(outputs[2]), None])
    }

    fn launch(&self, context: &Launch<'_>) -> LaunchPlan {
        launch(context, false)
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (loss, _) = softmax_loss(inputs);
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
            Case::new(format!("{rows}x{vocab}x{width} {dtype} {weight}"), LinearCrossEntropy, inputs)
        };
        vec![
            case(4, 5, 6, DType::F32, DType::F32).gradients(&[0, 1]),
            case(1, 105, 12, DType::F32, DType::F32),
            case(70, 131, 16, DType::BF16, DType::BF16),
            case(9, 64, 16, DType::F16, DType::F16),
            // several chunks of logits
            case(200, 36_003, 4, DType::F32, DType::F16),
        ]
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}

impl Operation for LinearCrossEntropyGradient {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 4)?;
        check(self.name(), inputs)?;
        let dw = TensorType::new(inputs[1].shape, DType::F32);
        Ok(vec![TensorType::new(Shape::scalar(), DType::F32), inputs[0], dw])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2, 3])?;
        Ok(vec![None; 4])
    }

    fn launch(&self, context: &Launch<'_>) -> LaunchPlan {
        launch(context, true)
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (loss, mut dlogits) = softmax_loss(inputs);
        dlogits.data.iter_mut().for_each(|v| *v *= inputs[3].data[0]);
        let mut dh = ReferenceTensor::zeros(outputs[1].shape);
        let mut dw = ReferenceTensor::zeros(outputs[2].shape);
        accumulate_product(Layout::NN, 1.0, &dlogits, &inputs[1], &mut dh);
        accumulate_product(Layout::TN, 1.0, &dlogits, &inputs[0], &mut dw);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |_| loss), dh, dw]
    }

    fn cases() -> Vec<Case> {
        LinearCrossEntropy::cases()
            .into_iter()
            .map(|case| {
                let mut inputs = case.inputs;
                inputs.push(CaseInput::values(&[1], DType::F32, vec![0.125]));
                Case::new(case.label, LinearCrossEntropyGradient, inputs)
            })
            .collect()
    }

    fn accumulates(&self, output: usize) -> bool {
        output != 1
    }
}
