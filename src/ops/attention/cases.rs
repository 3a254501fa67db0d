//! What the tests try: heads of every width, grouped heads, segments, windows, a KV cache, every storage type.

use super::{Attention, AttentionGradient, Scoring};
use crate::graph::{Case, CaseInput, DType, ReferenceTensor, TensorType};
use crate::ops::rope::rope_table;
use std::any::Any;
use std::sync::Arc;

/// `(starts, ends, query_ends)` of causal attention inside segments of these lengths, to the last `window` keys.
fn ranges(lengths: &[u32], window: u32) -> [CaseInput; 3] {
    let (mut starts, mut query_ends, mut first) = (Vec::new(), Vec::new(), 0);
    for &length in lengths {
        let end = first + length;
        starts.extend((first..end).map(|t| first.max((t + 1).saturating_sub(window))));
        query_ends.extend((first..end).map(|s| end.min(s.saturating_add(window))));
        first = end;
    }
    [CaseInput::indices(starts), CaseInput::indices(1..=first), CaseInput::indices(query_ends)]
}

/// Heads, KV heads and head dimension.
type Heads = (usize, usize, usize);

fn windowed(lengths: &[u32], window: u32, (heads, kv_heads, d): Heads, dtype: DType) -> Vec<CaseInput> {
    let t = lengths.iter().sum::<u32>() as usize;
    let kv = CaseInput::random(&[t, kv_heads * d], dtype);
    let mut all = vec![CaseInput::random(&[t, heads * d], dtype), kv.clone(), kv];
    all.extend(ranges(lengths, window));
    all
}

fn causal(lengths: &[u32], heads: Heads, dtype: DType) -> Vec<CaseInput> {
    windowed(lengths, u32::MAX, heads, dtype)
}

/// Scores that grow from key to key, by far more than exp can hold in f16: what a softmax is relative to must follow. In one row of
/// three they grow by little, and in one not at all.
fn growing((t, heads, kv_heads, d): (usize, usize, usize, usize)) -> Vec<CaseInput> {
    let mut all = causal(&[t as u32], (heads, kv_heads, d), DType::F16);
    let query = |i: usize| [8.0, 1.0, 0.0][i / (heads * d) % 3] * 4.0 / (d as f64).sqrt();
    let key = |i: usize| (3 * (i / (kv_heads * d))) as f64 / 64.0;
    let stored = |x: f64| (x * 64.0).round() / 64.0;
    let values = |width: usize| 0..t * width * d;
    all[0] = CaseInput::values(&[t, heads * d], DType::F16, values(heads).map(query).map(stored).collect());
    all[1] = CaseInput::values(&[t, kv_heads * d], DType::F16, values(kv_heads).map(key).collect());
    all
}

/// The last `rows` of `keys` rows of a KV cache as queries, each of which sees `window` keys at most.
fn cached(rows: u32, keys: u32, window: u32, heads: Heads) -> Vec<CaseInput> {
    cached_in(DType::F32, rows, keys, window, heads)
}

fn cached_in(dtype: DType, rows: u32, keys: u32, window: u32, (heads, kv_heads, d): Heads) -> Vec<CaseInput> {
    let mut all = causal(&[keys], (heads, kv_heads, d), dtype);
    all[0] = CaseInput::random(&[rows as usize, heads * d], dtype);
    // some rows of the cache are not written yet
    let ends = keys - rows - 3..keys - 3;
    all[3] = CaseInput::indices(ends.clone().map(|t| (t + 1).saturating_sub(window)));
    all[4] = CaseInput::indices(ends.map(|t| t + 1));
    all[5] = CaseInput::indices((0..rows).map(|_| 0));
    all
}

pub(super) fn forward() -> Vec<Case> {
    let op = |head_dim| Attention { scoring: Scoring::of(head_dim) };
    // a third of the scores is beyond the cap
    let capped = |head_dim| Attention { scoring: Scoring { head_dim, scale: 0.7, soft_cap: Some(1.5) } };
    let (f32, f16, bf16) = (DType::F32, DType::F16, DType::BF16);
    vec![
        Case::new("one row", op(8), causal(&[1], (1, 1, 8), f32)),
        Case::new("gradient", op(4), causal(&[3, 2], (2, 1, 4), f32)).gradients(&[0, 1, 2]),
        Case::new("window gradient", op(4), windowed(&[5, 2], 2, (2, 1, 4), f32)).gradients(&[0, 1, 2]),
        Case::new("segments, grouped", op(16), causal(&[17, 1, 90, 5], (4, 2, 16), f32)),
        Case::new("f16", op(32), causal(&[40, 9], (2, 1, 32), f16)),
        Case::new("bf16", op(64), causal(&[70], (2, 2, 64), bf16)),
        Case::new("head of 80", op(80), causal(&[20, 51], (2, 1, 80), f32)),
        Case::new("head of 96", op(96), causal(&[35], (3, 1, 96), bf16)),
        Case::new("wide head", op(128), causal(&[33], (1, 1, 128), f32)),
        Case::new("widest head", op(256), causal(&[37], (2, 1, 256), f16)),
        Case::new("cache", op(16), cached(3, 50, u32::MAX, (4, 2, 16))),
        Case::new("window over a cache", op(16), cached(40, 90, 33, (4, 2, 16))),
        Case::new("window below a tile", op(16), windowed(&[60, 5, 33], 7, (4, 2, 16), f32)),
        Case::new("window of a tile", op(16), windowed(&[75, 40], 32, (4, 2, 16), f32)),
        Case::new("window above a tile", op(16), windowed(&[151], 70, (3, 1, 16), bf16)),
        Case::new("capped gradient", capped(4), causal(&[3, 2], (2, 1, 4), f32)).gradients(&[0, 1, 2]),
        Case::new("capped, window", capped(16), windowed(&[60, 5, 33], 7, (4, 2, 16), f32)),
        Case::new("capped, bf16", capped(64), causal(&[70], (2, 2, 64), bf16)),
        // Gemma's heads
        Case::new("widest heads, grouped, capped", capped(256), windowed(&[19, 11], 15, (2, 1, 256), bf16)),
        // for matrix units: f16, and all rows in whole matrices
        Case::new("matrices", op(64), causal(&[70, 33, 9], (4, 2, 64), f16)),
        Case::new("matrices, bf16", op(64), causal(&[41, 23], (4, 2, 64), bf16)),
        Case::new("matrices, window, bf16", op(80), windowed(&[75, 5], 21, (2, 1, 80), bf16)),
        Case::new("matrices, window", op(32), windowed(&[91, 5], 21, (2, 1, 32), f16)),
        Case::new("matrices, capped", capped(64), causal(&[70, 33, 9], (4, 2, 64), f16)),
        Case::new("matrices, wide head", op(128), causal(&[31, 33], (2, 1, 128), f16)),
        Case::new("matrices, head of 80", op(80), causal(&[48], (1, 1, 80), f16)),
        Case::new("matrices, cache", op(32), cached_in(DType::F16, 32, 96, 40, (2, 1, 32))),
        Case::new("matrices, growing scores", op(64), growing((64, 4, 2, 64))),
        Case::new("matrices, growing scores of a wide head", op(128), growing((48, 1, 1, 128))),
    ]
}

/// Those of the forward cases with as many keys as queries, and of most widths of heads that have pairs one turned back.
pub(super) fn gradient() -> Vec<Case> {
    let same = |case: &Case| case.inputs[0].ty.rows() == case.inputs[1].ty.rows();
    // backwards nothing is relative to a running value
    let asked = |case: &Case| same(case) && !case.label.contains("growing scores");
    let plain: Vec<Case> = forward().into_iter().filter(asked).map(gradient_of).collect();
    let mut widths = Vec::new();
    let mut all: Vec<Case> = Vec::new();
    for case in plain.iter().filter(|case| case.inputs[0].ty.rows() > 1) {
        let width = head_dim(case);
        // the widest compile for long on software devices: one of them
        let new = width.is_multiple_of(8) && width <= 128 && !widths.contains(&width);
        if new || case.label.starts_with("matrices") || case.label.starts_with("widest heads") {
            widths.push(width);
            all.push(turned(case));
        }
    }
    // one gradient alone: that of a layer whose other one nobody wants
    let alone = |turns_query, label: &str| {
        let case = plain.iter().find(|case| case.label == "bf16").expect("a case of this name");
        let op = AttentionGradient { turns_query, turns_key: !turns_query, ..of(case) };
        Case { label: label.into(), op: Arc::new(op), ..turned(case) }
    };
    all.extend([alone(true, "only dq turned"), alone(false, "only dk turned")]);
    // as small as a loss scale lets them become
    let mut small = plain.iter().find(|case| case.label == "matrices").cloned().expect("a case of this name");
    small.label.push_str(", small");
    small.inputs[5].spread = 2e-3;
    all.push(small);
    // beyond what f16 holds
    let large: Vec<Case> = plain.iter().filter(|c| c.label == "matrices, bf16").cloned().collect();
    all.extend(large.into_iter().map(|mut case| {
        case.label.push_str(", large");
        case.inputs[5].spread = 1e9;
        case
    }));
    plain.into_iter().chain(all).collect()
}

/// The gradient that a case is of.
fn of(case: &Case) -> AttentionGradient {
    let op: &dyn Any = &*case.op;
    op.downcast_ref().cloned().expect("a case of the gradient")
}

fn head_dim(case: &Case) -> usize {
    case.inputs[0].ty.cols() / case.inputs[4].ty.rows()
}

/// The gradients of what q and k were turned from.
fn turned(case: &Case) -> Case {
    let (d, rows) = (head_dim(case), case.inputs[0].ty.rows());
    let frequencies: Vec<f32> = (0..d / 2).map(|i| 1.0 / (i + 1) as f32).collect();
    let table = rope_table(&frequencies, 20).into_iter().map(f64::from).collect();
    let mut inputs = case.inputs.clone();
    inputs.push(CaseInput::indices((0..rows as u32).map(|t| t * 7 % 20)));
    inputs.push(CaseInput::values(&[20, d], DType::F32, table));
    let op = AttentionGradient { turns_query: true, turns_key: true, ..of(case) };
    Case::new(format!("{}, turned", case.label), op, inputs)
}

/// o and lse must belong to q, k, v: the forward reference computes them from numbers that are the same each time.
fn gradient_of(case: Case) -> Case {
    let fixed: Vec<CaseInput> = case.inputs.iter().enumerate().map(|(i, x)| fixed_values(i, x)).collect();
    let op: &dyn Any = &*case.op;
    let scoring = op.downcast_ref::<Attention>().expect("a case of attention").scoring;
    let types: Vec<TensorType> = fixed.iter().map(|x| x.ty).collect();
    let tensors: Vec<ReferenceTensor> = fixed
        .iter()
        .map(|x| ReferenceTensor { shape: x.ty.shape, data: x.data.clone().unwrap_or_default() })
        .collect();
    let outputs = case.op.infer(&types).expect("the forward case is valid");
    let forward = case.op.reference(&tensors, &outputs);
    let q = types[0];
    let mut all = fixed[..3].to_vec();
    all.push(CaseInput::values(forward[0].shape.dims(), q.dtype, forward[0].data.clone()));
    all.push(CaseInput::values(forward[1].shape.dims(), DType::F32, forward[1].data.clone()));
    all.push(CaseInput::random(q.shape.dims(), q.dtype));
    all.extend_from_slice(&fixed[3..]);
    Case::new(case.label, AttentionGradient::of(scoring), all)
}

/// The input with reproducible values in [-1, 1) that every storage type holds exactly.
fn fixed_values(position: usize, input: &CaseInput) -> CaseInput {
    let value = |i: usize| ((((i * 37 + position * 11) * 2_654_435_761) >> 7) % 64) as f64 / 32.0 - 1.0;
    let data = input.data.clone().unwrap_or_else(|| (0..input.ty.shape.elements()).map(value).collect());
    CaseInput { data: Some(data), ..input.clone() }
}
