//! Attention over ranges of keys with grouped query heads, flash-style in both directions (Dao 2023,
//! arXiv:2307.08691): no `[T, T]` matrix exists.
//!
//! q `[T, heads * head_dim]`, k and v `[S, kv_heads * head_dim]`; query row t sees the key rows `starts[t] .. ends[t]`
//! (both u32 `[T]`, non-decreasing). Causal attention inside segments is `starts = segment start, ends = t + 1`; a KV cache
//! is `starts = 0, ends = position + 1`; a window of w keys is `starts = max(segment start, t + 1 - w)`. Outputs o like q,
//! and the log-sum-exp of each row, f32 `[heads, T]`.
//!
//! The gradient needs S = T and `query_ends` u32 `[T]`: key row s is seen by the query rows `s .. query_ends[s]`
//! (the segment's end, or `min(segment end, s + w)`; non-decreasing too).
//! With s = cap(scale q kᵀ), see [`Scoring`], p = exp(s - lse), delta = rowsum(do o), ds = p (do vᵀ - delta) cap':
//! `dq = scale ds k`, `dk = scale dsᵀ q`, `dv = pᵀ do`; all overwrite.

mod candidates;
mod cases;
mod gradient;
mod halves;
mod kernel;
mod strips;
mod variant;
mod walk;

pub use candidates::{Extents, source};
pub use gradient::AttentionGradient;
pub use kernel::Kernel;
pub use strips::{Staging, Strips};
pub use variant::{Pass, Variant};

use super::{expect, expect_inputs};
use crate::graph::{
    Case, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor, ReverseNode,
    Shape, TensorType, Value,
};
use halves::Halves;
use std::sync::Arc;
use walk::Walk;

/// How the score of a query and a key of one head is made: `s = cap(scale q·k)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    pub head_dim: usize,
    pub scale: f64,
    /// c of `cap(s) = c tanh(s / c)` (Gemma 2, arXiv:2408.00118); `None`: scores stay as they are.
    pub soft_cap: Option<f64>,
}

impl Scoring {
    /// The usual one: scaled by `1 / sqrt(head_dim)`, without a cap.
    pub fn of(head_dim: usize) -> Self {
        Scoring { head_dim, scale: 1.0 / (head_dim as f64).sqrt(), soft_cap: None }
    }

    /// What the score of a scaled product is, and the slope there, in f64.
    fn capped(&self, s: f64) -> (f64, f64) {
        match self.soft_cap {
            Some(cap) => (cap * (s / cap).tanh(), 1.0 - (s / cap).tanh().powi(2)),
            None => (s, 1.0),
        }
    }
}

/// Inputs q, k, v, starts, ends, query_ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub scoring: Scoring,
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
    scoring: Scoring,
) -> Result<Value, GraphError> {
    let Visibility { starts, ends, query_ends } = *visibility;
    graph.apply1(Arc::new(Attention { scoring }), &[q, k, v, starts, ends, query_ends])
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 6)?;
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let d = self.scoring.head_dim;
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
        let op = Arc::new(AttentionGradient::of(self.scoring));
        let operands = [&inputs[..3], outputs, &[d_o], &inputs[3..]].concat();
        let gradients = graph.apply(op, &operands)?;
        Ok(gradients.into_iter().map(Some).chain([None; 3]).collect())
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (q, k, keep) = (launch.inputs[0], launch.inputs[1], launch.live[1]);
        let walk = Walk {
            pass: Pass::Forward,
            scoring: self.scoring,
            q,
            k,
            starts: Some(Place::Input(3)),
            ends: Some(Place::Input(4)),
            query_ends: None,
            turn: None,
            halves: Halves { first: 0, q, k, d_o: None },
        };
        let mut plan = LaunchPlan::default();
        walk.launch(launch.device, &mut plan, |dispatch| {
            let dispatch = dispatch
                .flag("KEEP", keep)
                .write("o", Place::Output(0), q.dtype)
                // an upper bound: half of all pairs
                .cost(2.0 * (q.shape.elements() * k.rows()) as f64, launch.traffic());
            if !keep {
                return dispatch;
            }
            let stride = launch.outputs[1].cols4() * 4;
            dispatch.param("lse_stride", stride).write_scalar("lse", Place::Output(1), DType::F32)
        });
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let mut o = ReferenceTensor::zeros(outputs[0].shape);
        let mut lse = ReferenceTensor::zeros(outputs[1].shape);
        for head in 0..lse.rows() {
            for t in 0..q.rows() {
                let p = Probabilities::of_row(
                    &self.scoring,
                    q,
                    k,
                    head,
                    t,
                    inputs[3].index(t)..inputs[4].index(t),
                );
                lse.row_mut(head)[t] = p.lse;
                for (s, weight) in p.keys.zip(&p.weights) {
                    for d in 0..self.scoring.head_dim {
                        o.row_mut(t)[head * self.scoring.head_dim + d] += weight * v.row(s)[p.kv + d];
                    }
                }
            }
        }
        vec![o, lse]
    }

    fn cases() -> Vec<Case> {
        cases::forward()
    }
}

/// The softmax row of one query head and query row, in f64.
struct Probabilities {
    keys: std::ops::Range<usize>,
    weights: Vec<f64>,
    /// Of each score with respect to the scaled product.
    slopes: Vec<f64>,
    lse: f64,
    /// First column of the KV head.
    kv: usize,
}

impl Probabilities {
    fn of_row(
        scoring: &Scoring,
        q: &ReferenceTensor,
        k: &ReferenceTensor,
        head: usize,
        t: usize,
        keys: std::ops::Range<usize>,
    ) -> Self {
        let d = scoring.head_dim;
        let kv = head / (q.cols() / k.cols()) * d;
        let query = &q.row(t)[head * d..(head + 1) * d];
        let score = |s: usize| {
            let product: f64 = query.iter().zip(&k.row(s)[kv..kv + d]).map(|(a, b)| a * b).sum();
            scoring.capped(scoring.scale * product)
        };
        let (scores, slopes): (Vec<f64>, Vec<f64>) = keys.clone().map(score).unzip();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let weights = scores.iter().map(|s| (s - largest).exp() / sum).collect();
        Probabilities { keys, weights, slopes, lse: largest + sum.ln(), kv }
    }
}
