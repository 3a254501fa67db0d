//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split form of Llama.
//!
//! x `[T, heads * head_dim]`, positions `[T]`, table `[positions, rotary_dim]` (cosines, then sines); of each head's first rotary_dim
//! elements pairs (j, j + rotary_dim/2) turn by the position's angle, the others stay. Gradient: the opposite turn of `dy`. Two tensors of the same
//! rows, with heads of their own, can be turned in one launch.

use super::expect;
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, LANE, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("rope");

/// Inputs one or two x, positions, table; outputs as many y.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub inverse: bool,
    pub head_dim: usize,
}

/// What the kernel names its tensors, and what it must know of them.
const PARTS: [Names; 2] = [
    Names { x: "x0", y: "y0", heads: "HEADS0", replaces: "REPLACES0", items: "items0" },
    Names { x: "x1", y: "y1", heads: "HEADS1", replaces: "REPLACES1", items: "items1" },
];

struct Names {
    x: &'static str,
    y: &'static str,
    heads: &'static str,
    replaces: &'static str,
    items: &'static str,
}

pub fn rope(
    graph: &mut Graph,
    x: Value,
    positions: Value,
    table: Value,
    head_dim: usize,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Rope { inverse: false, head_dim }), &[x, positions, table])
}

/// Cosines and sines of `positions` rows, row-major `[positions, 2 * inverse_frequencies.len()]`.
///
/// The angle is rounded to f32 before cos and sin, as transformers computes it.
pub fn rope_table(inverse_frequencies: &[f32], positions: usize) -> Vec<f32> {
    (0..positions)
        .flat_map(|p| {
            let angles = move |f: &f32| f64::from(p as f32 * f);
            let cosines = inverse_frequencies.iter().map(angles).map(|a| a.cos() as f32);
            cosines.chain(inverse_frequencies.iter().map(angles).map(|a| a.sin() as f32))
        })
        .collect()
}

/// A tensor that a launch turns: from another place, or where it lies.
pub(super) struct Turned {
    pub ty: TensorType,
    pub from: Option<Place>,
    pub to: Place,
}

/// What it is turned by.
pub(super) struct Angles {
    pub positions: Place,
    pub table: Place,
    pub rotary_dim: usize,
    pub head_dim: usize,
}

/// Turns one or two tensors of the same rows.
pub(super) fn dispatch(inverse: bool, angles: &Angles, turned: &[Turned]) -> Dispatch {
    // pairs of groups of four, where these are not split by the half
    let in_item = if angles.rotary_dim.is_multiple_of(2 * LANE) { 2 * LANE } else { angles.head_dim };
    let items = |t: &Turned| t.ty.rows() * t.ty.cols() / in_item;
    // a workgroup has items of one tensor
    let groups: Vec<usize> = turned.iter().map(|t| items(t).div_ceil(256)).collect();
    let elements: usize = turned.iter().map(|t| t.ty.shape.elements()).sum();
    let bytes: f64 = turned.iter().map(|t| 2.0 * t.ty.bytes() as f64).sum();
    let mut dispatch = Dispatch::new(SHADER, groups.iter().sum())
        .flag("INVERSE", inverse)
        .define("HALF", (angles.rotary_dim / 2) as u32)
        .define("HEAD4", (angles.head_dim / LANE) as u32)
        .define("REST4", ((angles.head_dim - angles.rotary_dim) / 8) as u32)
        .define("PARTS", turned.len() as u32)
        .read_scalar("positions", angles.positions, DType::U32)
        .read("table", angles.table, DType::F32)
        .param("groups0", groups[0])
        .cost(3.0 * elements as f64, bytes);
    for (t, names) in turned.iter().zip(&PARTS) {
        dispatch = dispatch
            .define(names.heads, (t.ty.cols() / angles.head_dim) as u32)
            .flag(names.replaces, t.from.is_none())
            .param(names.items, items(t))
            .write(names.y, t.to, t.ty.dtype);
        if let Some(from) = t.from {
            dispatch = dispatch.read(names.x, from, t.ty.dtype);
        }
    }
    dispatch
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let [turned @ .., positions, table] = inputs else {
            return Err(GraphError::invalid(self.name(), "takes x, positions and a table"));
        };
        expect(self.name(), (1..=PARTS.len()).contains(&turned.len()), || {
            format!("turns one or two tensors, not {}", turned.len())
        })?;
        let (head_dim, rotary_dim) = (self.head_dim, table.cols());
        expect(self.name(), rotary_dim.is_multiple_of(4) && (4..=head_dim).contains(&rotary_dim), || {
            format!("{rotary_dim} elements to turn are not a multiple of 4 within a head of {head_dim}")
        })?;
        for x in turned {
            expect(self.name(), head_dim.is_multiple_of(8) && x.cols().is_multiple_of(head_dim), || {
                format!("head dimension {head_dim} must be a multiple of 8 and divide the width {}", x.cols())
            })?;
            expect(self.name(), positions.dtype == DType::U32 && positions.cols() == x.rows(), || {
                format!("positions {positions} do not fit {x}")
            })?;
        }
        Ok(turned.to_vec())
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let parts = node.outputs.len();
        node.refuse(self.name(), &[parts, parts + 1])?;
        let (positions, table) = (node.inputs[parts], node.inputs[parts + 1]);
        let op = Arc::new(Rope { inverse: !self.inverse, ..self.clone() });
        let mut turn_back = |dy: Value| graph.apply1(op.clone(), &[dy, positions, table]);
        let gradients = node.gradients.iter().map(|dy| dy.map(&mut turn_back).transpose());
        gradients.chain([Ok(None), Ok(None)]).collect()
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let count = launch.outputs.len();
        let turned = |part: usize| Turned {
            ty: launch.outputs[part],
            from: (!launch.replaces[part]).then_some(Place::Input(part)),
            to: Place::Output(part),
        };
        let all: Vec<Turned> = (0..count).map(turned).collect();
        let angles = Angles {
            positions: Place::Input(count),
            table: Place::Input(count + 1),
            rotary_dim: launch.inputs[count + 1].cols(),
            head_dim: self.head_dim,
        };
        let buffers = |t: &Turned| launch.device.bindings(t.ty.bytes()) * (1 + usize::from(t.from.is_some()));
        let together = launch.device.binds(2 + all.iter().map(buffers).sum::<usize>());
        let launches = if together { all.chunks(count) } else { all.chunks(1) };
        launches.map(|turned| dispatch(self.inverse, &angles, turned)).collect::<Vec<_>>().into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (positions, table) = (&inputs[outputs.len()], &inputs[outputs.len() + 1]);
        let half = table.cols() / 2;
        let turned = |(x, ty): (&ReferenceTensor, &TensorType)| {
            let mut y = ReferenceTensor::zeros(ty.shape);
            for t in 0..y.rows() {
                let (x, angle) = (x.row(t), table.row(positions.index(t)));
                for (i, out) in y.row_mut(t).iter_mut().enumerate() {
                    let (head, j) = (i - i % self.head_dim, i % self.head_dim);
                    if j >= 2 * half {
                        *out = x[i];
                        continue;
                    }
                    let sine = angle[half + j % half] * if self.inverse { -1.0 } else { 1.0 };
                    let partner = if j < half { -x[head + j + half] } else { x[head + j - half] };
                    *out = x[i] * angle[j % half] + partner * sine;
                }
            }
            y
        };
        inputs.iter().zip(outputs).map(turned).collect()
    }

    fn may_replace(&self, output: usize) -> Option<usize> {
        Some(output)
    }

    fn cases() -> Vec<Case> {
        let table: Vec<f64> = rope_table(&[1.0, 0.3, 0.1, 0.01], 9).into_iter().map(f64::from).collect();
        let inputs = |dtype| {
            vec![
                CaseInput::random(&[5, 24], dtype),
                CaseInput::indices([0, 1, 8, 0, 3]),
                CaseInput::values(&[9, 8], DType::F32, table.clone()),
            ]
        };
        let two = |dtype, wide| {
            let mut all = inputs(dtype);
            all.insert(1, CaseInput::random(&[5, wide], dtype));
            all
        };
        let wide = || {
            let frequencies: Vec<f32> = (0..24).map(|i| 0.9f32.powi(i)).collect();
            let table = rope_table(&frequencies, 9).into_iter().map(f64::from).collect();
            vec![
                CaseInput::random(&[5, 128], DType::F32),
                CaseInput::indices([0, 1, 8, 0, 3]),
                CaseInput::values(&[9, 48], DType::F32, table),
            ]
        };
        // 20 of 32, whose halves are no whole groups of four
        let odd = |dtype, parts: usize| {
            let frequencies: Vec<f32> = (0..10).map(|i| 0.7f32.powi(i)).collect();
            let table = rope_table(&frequencies, 9).into_iter().map(f64::from).collect();
            let turned = (1..=parts).map(|part| CaseInput::random(&[5, 64 * part], dtype));
            let angles =
                [CaseInput::indices([0, 1, 8, 0, 3]), CaseInput::values(&[9, 20], DType::F32, table)];
            turned.chain(angles).collect()
        };
        let by_heads = |inverse| Rope { inverse, head_dim: 32 };
        let whole = |inverse| Rope { inverse, head_dim: 8 };
        let part = |inverse| Rope { inverse, head_dim: 24 };
        vec![
            Case::new("two", whole(false), two(DType::F32, 8)).gradients(&[0]),
            Case::new("two, bf16", whole(true), two(DType::BF16, 1032)),
            Case::new("f32", whole(false), inputs(DType::F32)).gradients(&[0]),
            Case::new("inverse", whole(true), inputs(DType::F32)).gradients(&[0]),
            Case::new("f16", whole(false), inputs(DType::F16)),
            Case::new("bf16", whole(false), inputs(DType::BF16)),
            Case::new("a part of heads", part(false), inputs(DType::F32)).gradients(&[0]),
            Case::new("two, a part of heads, bf16", part(true), two(DType::BF16, 1032)),
            Case::new("halves that split groups", by_heads(false), odd(DType::F32, 1)).gradients(&[0]),
            Case::new("two, halves that split groups, bf16", by_heads(true), odd(DType::BF16, 2)),
            Case::new("three quarters of heads", Rope { inverse: false, head_dim: 64 }, wide())
                .gradients(&[0]),
        ]
    }
}
