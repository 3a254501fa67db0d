//! Attention over ranges of keys with grouped query heads, flash-style in both directions (Dao 2023,
//! arXiv:2307.08691): no `[T, T]` matrix exists.
//!
//! q `[T, heads * head_dim]`, k and v `[S, kv_heads * head_dim]`; query row t sees the key rows `starts[t] .. ends[t]`
//! (both u32 `[T]`, non-decreasing). Causal attention inside segments is `starts = segment start, ends = t + 1`; a KV cache
//! is `starts = 0, ends = position + 1`. Outputs o like q, and the log-sum-exp of each row, f32 `[heads, T]`.
//!
//! The gradient needs S = T and `query_ends` u32 `[T]`: key row s is seen by the query rows `s .. query_ends[s]`.
//! With p = exp(scale q kᵀ - lse), delta = rowsum(do o), ds = p (do vᵀ - delta): `dq = scale ds k`,
//! `dk = scale dsᵀ q`, `dv = pᵀ do`; all overwrite.

use super::{expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("attention");
const QUERY: Shader = crate::shader!("attention_gradient_query");
const KEY_VALUE: Shader = crate::shader!("attention_gradient_key_value");

/// Inputs q, k, v, starts, ends, query_ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub head_dim: usize,
}

/// Inputs q, k, v, o, lse, do, starts, ends, query_ends; outputs dq, dk, dv.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGradient {
    pub head_dim: usize,
}

/// The rows that see each other, as graph inputs.
#[derive(Clone, Copy, Debug)]
pub struct Visibility {
    pub starts: Value,
    pub ends: Value,
    pub query_ends: Value,
}

pub fn attention(
    graph: &mut Graph,
    (q, k, v): (Value, Value, Value),
    visibility: &Visibility,
    head_dim: usize,
) -> Result<Value, GraphError> {
    let Visibility { starts, ends, query_ends } = *visibility;
    graph.apply1(Arc::new(Attention { head_dim }), &[q, k, v, starts, ends, query_ends])
}

/// A dispatch with an invocation for each of `rows` rows of `heads` heads.
fn dispatch(shader: Shader, launch: &Launch<'_>, head_dim: usize, heads: usize, rows: usize) -> Dispatch {
    let lanes = launch.device.broadcast_lanes().unwrap_or(0);
    let row_tiles = rows.div_ceil(if lanes == 0 { 64 } else { lanes as usize });
    Dispatch::new(shader, heads * row_tiles)
        .define("LANES", lanes)
        .define("HEAD_DIM", head_dim as u32)
        .param("tiles", heads * row_tiles)
        .param("row_tiles", row_tiles)
        .param("rows", rows)
        .param_f32("scale", 1.0 / (head_dim as f64).sqrt())
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 6)?;
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let d = self.head_dim;
        expect(self.name(), d.is_multiple_of(4) && (4..=256).contains(&d), || {
            format!("head dimension {d} is not a multiple of 4 up to 256")
        })?;
        let heads = q.cols() % d == 0 && k.cols() % d == 0 && k.cols() > 0 && q.cols() % k.cols() == 0;
        expect(self.name(), heads && k == v && q.dtype == k.dtype, || {
            format!("q {q}, k {k}, v {v} do not fit heads of {d}")
        })?;
        let ranges = inputs[3..].iter().all(|t| t.dtype == DType::U32 && t.cols() == q.rows());
        expect(self.name(), ranges, || format!("starts, ends and query_ends are u32 [{}]", q.rows()))?;
        Ok(vec![q, TensorType::new(Shape::matrix(q.cols() / d, q.rows()), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(d_o) = node.gradients[0] else { return Ok(vec![None; 6]) };
        let (inputs, outputs) = (node.inputs, node.outputs);
        let op = Arc::new(AttentionGradient { head_dim: self.head_dim });
        let operands = [&inputs[..3], outputs, &[d_o], &inputs[3..]].concat();
        let gradients = graph.apply(op, &operands)?;
        Ok(gradients.into_iter().map(Some).chain([None; 3]).collect())
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (q, k, keep) = (launch.inputs[0], launch.inputs[1], launch.live[1]);
        let heads = q.cols() / self.head_dim;
        let mut dispatch = dispatch(SHADER, launch, self.head_dim, heads, q.rows())
            .flag("KEEP", keep)
            .param("keys", k.rows())
            .param("q_stride", q.cols4())
            .param("kv_stride", k.cols4())
            .param("group", q.cols() / k.cols())
            .read("q", Place::Input(0), q.dtype)
            .read("k", Place::Input(1), k.dtype)
            .read("v", Place::Input(2), k.dtype)
            .read_scalar("starts", Place::Input(3), DType::U32)
            .read_scalar("ends", Place::Input(4), DType::U32)
            .write("o", Place::Output(0), q.dtype);
        if keep {
            let stride = launch.outputs[1].cols4() * 4;
            dispatch = dispatch.param("lse_stride", stride).write_scalar("lse", Place::Output(1), DType::F32);
        }
        // an upper bound: half of all pairs
        dispatch.cost(2.0 * (q.shape.elements() * k.rows()) as f64, launch.traffic()).into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let mut o = ReferenceTensor::zeros(outputs[0].shape);
        let mut lse = ReferenceTensor::zeros(outputs[1].shape);
        for head in 0..lse.rows() {
            for t in 0..q.rows() {
                let p = Probabilities::of_row(
                    self.head_dim,
                    q,
                    k,
                    head,
                    t,
                    inputs[3].index(t)..inputs[4].index(t),
                );
                lse.row_mut(head)[t] = p.lse;
                for (s, weight) in p.keys.zip(&p.weights) {
                    for d in 0..self.head_dim {
                        o.row_mut(t)[head * self.head_dim + d] += weight * v.row(s)[p.kv + d];
                    }
                }
            }
        }
        vec![o, lse]
    }

    fn cases() -> Vec<Case> {
        forward_cases()
    }
}

/// The softmax row of one query head and query row, in f64.
struct Probabilities {
    keys: std::ops::Range<usize>,
    weights: Vec<f64>,
    lse: f64,
    /// First column of the KV head.
    kv: usize,
}

impl Probabilities {
    fn of_row(
        d: usize,
        q: &ReferenceTensor,
        k: &ReferenceTensor,
        head: usize,
        t: usize,
        keys: std::ops::Range<usize>,
    ) -> Self {
        let kv = head / (q.cols() / k.cols()) * d;
        let query = &q.row(t)[head * d..(head + 1) * d];
        let score = |s: usize| {
            query.iter().zip(&k.row(s)[kv..kv + d]).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
        };
        let scores: Vec<f64> = keys.clone().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let weights = scores.iter().map(|s| (s - largest).exp() / sum).collect();
        Probabilities { keys, weights, lse: largest + sum.ln(), kv }
    }
}

/// `(starts, ends, query_ends)` of causal attention inside segments of these lengths.
fn segments(lengths: &[u32]) -> [CaseInput; 3] {
    let (mut starts, mut query_ends, mut at) = (Vec::new(), Vec::new(), 0);
    for &length in lengths {
        starts.extend((0..length).map(|_| at));
        query_ends.extend((0..length).map(|_| at + length));
        at += length;
    }
    [CaseInput::indices(starts), CaseInput::indices(1..=at), CaseInput::indices(query_ends)]
}

fn inputs(lengths: &[u32], heads: usize, kv_heads: usize, d: usize, dtype: DType) -> Vec<CaseInput> {
    let t = lengths.iter().sum::<u32>() as usize;
    let kv = CaseInput::random(&[t, kv_heads * d], dtype);
    let mut all = vec![CaseInput::random(&[t, heads * d], dtype), kv.clone(), kv];
    all.extend(segments(lengths));
    all
}

fn forward_cases() -> Vec<Case> {
    let op = |head_dim| Attention { head_dim };
    let mut cases = vec![
        Case::new("one row", op(8), inputs(&[1], 1, 1, 8, DType::F32)),
        Case::new("gradient", op(4), inputs(&[3, 2], 2, 1, 4, DType::F32)).gradients(&[0, 1, 2]),
        Case::new("segments, grouped", op(16), inputs(&[17, 1, 90, 5], 4, 2, 16, DType::F32)),
        Case::new("f16", op(32), inputs(&[40, 9], 2, 1, 32, DType::F16)),
        Case::new("bf16", op(64), inputs(&[70], 2, 2, 64, DType::BF16)),
        Case::new("wide head", op(128), inputs(&[33], 1, 1, 128, DType::F32)),
    ];
    // a KV cache of 50 rows, of which 20..23 are queried
    let mut cached = inputs(&[50], 4, 2, 16, DType::F32);
    cached[0] = CaseInput::random(&[3, 64], DType::F32);
    cached[3] = CaseInput::indices([0; 3]);
    cached[4] = CaseInput::indices([21, 22, 23]);
    cached[5] = CaseInput::indices([0; 3]);
    cases.push(Case::new("cache", op(16), cached));
    // a sliding window of 7
    let mut window = inputs(&[60], 2, 1, 16, DType::F32);
    window[3] = CaseInput::indices((0..60u32).map(|t| t.saturating_sub(6)));
    window[5] = CaseInput::indices((0..60u32).map(|s| (s + 7).min(60)));
    cases.push(Case::new("sliding window", op(16), window));
    cases
}

impl Operation for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 9)?;
        let (q, k) = (inputs[0], inputs[1]);
        expect(self.name(), q.rows() == k.rows() && inputs[5] == q, || {
            format!("the gradient needs as many keys as queries: q {q}, k {k}, do {}", inputs[5])
        })?;
        Ok(vec![q, k, inputs[2]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2, 3, 4, 5, 6, 7, 8])?;
        Ok(vec![None; 9])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (q, k, lse) = (launch.inputs[0], launch.inputs[1], launch.inputs[4]);
        let (heads, kv_heads) = (q.cols() / self.head_dim, k.cols() / self.head_dim);
        let common = |dispatch: Dispatch, flops| {
            dispatch
                .param("q_stride", q.cols4())
                .param("kv_stride", k.cols4())
                .param("group", heads / kv_heads)
                .param("lse_stride", lse.cols4() * 4)
                .read("q", Place::Input(0), q.dtype)
                .read("k", Place::Input(1), k.dtype)
                .read("v", Place::Input(2), k.dtype)
                .read("d_o", Place::Input(5), q.dtype)
                .read_scalar("lse", Place::Input(4), DType::F32)
                .cost(flops * (q.shape.elements() * k.rows()) as f64, launch.traffic())
        };
        let query = common(dispatch(QUERY, launch, self.head_dim, heads, q.rows()), 3.0)
            .param("keys", k.rows())
            .read("o", Place::Input(3), q.dtype)
            .read_scalar("starts", Place::Input(6), DType::U32)
            .read_scalar("ends", Place::Input(7), DType::U32)
            .write("dq", Place::Output(0), q.dtype)
            .write_scalar("delta", Place::Workspace(0), DType::F32);
        let key_value = common(dispatch(KEY_VALUE, launch, self.head_dim, kv_heads, k.rows()), 4.0)
            .read_scalar("query_ends", Place::Input(8), DType::U32)
            .read_scalar("delta", Place::Workspace(0), DType::F32)
            .write("dk", Place::Output(1), k.dtype)
            .write("dv", Place::Output(2), k.dtype);
        LaunchPlan { dispatches: vec![query, key_value], workspaces: vec![lse.bytes()], ..Default::default() }
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (q, k, v, o, d_o) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[5]);
        let d = self.head_dim;
        let scale = 1.0 / (d as f64).sqrt();
        let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|i| ReferenceTensor::zeros(outputs[i].shape));
        for head in 0..q.cols() / d {
            let columns = head * d..(head + 1) * d;
            for t in 0..q.rows() {
                let p = Probabilities::of_row(d, q, k, head, t, inputs[6].index(t)..inputs[7].index(t));
                let gradient = &d_o.row(t)[columns.clone()];
                let delta: f64 = gradient.iter().zip(&o.row(t)[columns.clone()]).map(|(a, b)| a * b).sum();
                for (s, weight) in p.keys.zip(&p.weights) {
                    let dp: f64 = gradient.iter().zip(&v.row(s)[p.kv..p.kv + d]).map(|(a, b)| a * b).sum();
                    let ds = weight * (dp - delta) * scale;
                    for (i, g) in gradient.iter().enumerate() {
                        dq.row_mut(t)[head * d + i] += ds * k.row(s)[p.kv + i];
                        dk.row_mut(s)[p.kv + i] += ds * q.row(t)[head * d + i];
                        dv.row_mut(s)[p.kv + i] += weight * g;
                    }
                }
            }
        }
        vec![dq, dk, dv]
    }

    fn cases() -> Vec<Case> {
        forward_cases()
            .into_iter()
            .filter(|case| case.inputs[0].ty.rows() == case.inputs[1].ty.rows())
            .map(|case| {
                // o and lse must belong to q, k, v: computed by the forward reference from the same random numbers
                let head_dim = 4.max(case.inputs[0].ty.cols());
                let op = AttentionGradient {
                    head_dim: case
                        .op
                        .infer(&types(&case.inputs))
                        .map_or(head_dim, |t| case.inputs[0].ty.cols() / t[1].rows()),
                };
                let fixed: Vec<CaseInput> =
                    case.inputs.iter().enumerate().map(|(i, x)| fixed_values(i, x)).collect();
                let reference: Vec<ReferenceTensor> = fixed
                    .iter()
                    .map(|x| ReferenceTensor { shape: x.ty.shape, data: x.data.clone().unwrap_or_default() })
                    .collect();
                let outputs = case.op.infer(&types(&fixed)).expect("the forward case is valid");
                let forward = case.op.reference(&reference, &outputs);
                let dtype = fixed[0].ty.dtype;
                let mut all = fixed[..3].to_vec();
                all.push(CaseInput::values(forward[0].shape.dims(), dtype, forward[0].data.clone()));
                all.push(CaseInput::values(forward[1].shape.dims(), DType::F32, forward[1].data.clone()));
                all.push(CaseInput::random(fixed[0].ty.shape.dims(), dtype));
                all.extend_from_slice(&fixed[3..]);
                Case::new(case.label, op, all)
            })
            .collect()
    }
}

fn types(inputs: &[CaseInput]) -> Vec<TensorType> {
    inputs.iter().map(|x| x.ty).collect()
}

/// The input with reproducible values in [-1, 1) that every storage type holds exactly.
fn fixed_values(position: usize, input: &CaseInput) -> CaseInput {
    let value = |i: usize| ((((i * 37 + position * 11) * 2_654_435_761) >> 7) % 64) as f64 / 32.0 - 1.0;
    let data = input.data.clone().unwrap_or_else(|| (0..input.ty.shape.elements()).map(value).collect());
    CaseInput { data: Some(data), ..input.clone() }
}
