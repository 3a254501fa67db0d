//! The gradient of attention: two passes, dq with the rows' delta, then dk and dv.

use super::halves::Halves;
use super::variant::Pass;
use super::walk::{Turn, Walk};
use super::{Probabilities, Scoring, cases};
use crate::graph::{
    Case, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, TensorType, Value,
};
use crate::ops::rope::{self, Angles, Rope, Turned};
use crate::ops::{expect, expect_inputs};

/// Inputs q, k, v, o, lse, do, starts, ends, query_ends, and positions and table of [`crate::ops::rope`] where a gradient is turned;
/// outputs dq, dk, dv.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGradient {
    pub scoring: Scoring,
    /// dq, dk are turned back by the rotary angles of their rows: the gradients of what q, k were turned from. Made by
    /// [`crate::fuse`].
    pub turns_query: bool,
    pub turns_key: bool,
}

impl AttentionGradient {
    /// The gradients of q and k as they are.
    pub fn of(scoring: Scoring) -> Self {
        AttentionGradient { scoring, turns_query: false, turns_key: false }
    }

    /// Whether the passes can bind positions and angles too, next to tensors in pieces.
    fn turns_itself(&self, launch: &Launch<'_>) -> bool {
        let pieces = |input: usize| launch.device.bindings(launch.inputs[input].bytes());
        let (q, k) = (pieces(0), pieces(1));
        // q, o, do, dq, k, v and starts, ends, lse, delta, positions, table; q, do, k, v, dk, dv and all but one of those
        launch.device.binds((4 * q + 2 * k + 6).max(2 * q + 4 * k + 5))
    }

    fn turns(&self) -> bool {
        self.turns_query || self.turns_key
    }

    fn turn(&self) -> Rope {
        Rope { inverse: true, head_dim: self.scoring.head_dim }
    }

    /// Turns a gradient back where that is asked for.
    fn turn_back(
        &self,
        asked: bool,
        inputs: &[ReferenceTensor],
        gradient: &mut ReferenceTensor,
        ty: TensorType,
    ) {
        if asked {
            let operands = [gradient.clone(), inputs[9].clone(), inputs[10].clone()];
            *gradient = self.turn().reference(&operands, &[ty]).swap_remove(0);
        }
    }
}

impl Operation for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, if self.turns() { 11 } else { 9 })?;
        let (q, k) = (inputs[0], inputs[1]);
        expect(self.name(), q.rows() == k.rows() && inputs[5] == q, || {
            format!("the gradient needs as many keys as queries: q {q}, k {k}, do {}", inputs[5])
        })?;
        if self.turns() {
            let (positions, table) = (inputs[9], inputs[10]);
            self.turn().infer(&[q, positions, table])?;
            expect(self.name(), table.cols() == self.scoring.head_dim, || {
                format!("angles {table} are not of heads of {}", self.scoring.head_dim)
            })?;
        }
        Ok(vec![q, k, inputs[2]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &(0..node.inputs.len()).collect::<Vec<_>>())?;
        Ok(vec![None; node.inputs.len()])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (q, k, lse) = (launch.inputs[0], launch.inputs[1], launch.inputs[4]);
        let turns_itself = self.turns_itself(launch);
        let turn = |asked: bool| {
            (asked && turns_itself).then(|| Turn {
                positions: Place::Input(9),
                table: Place::Input(10),
                angles: launch.inputs[10].rows(),
            })
        };
        let walk = |pass, [starts, ends, query_ends]: [Option<Place>; 3], turn| Walk {
            pass,
            scoring: self.scoring,
            q,
            k,
            starts,
            ends,
            query_ends,
            turn,
            // after delta
            halves: Halves { first: 1, q, k, d_o: Some(5) },
        };
        // a row of the table is read, not all of it
        let table = if self.turns() { launch.inputs[10].bytes() as f64 } else { 0.0 };
        let traffic = launch.traffic() - table;
        let common = |dispatch: Dispatch, flops: f64| {
            dispatch
                .param("lse_stride", lse.cols4() * 4)
                .read("d_o", Place::Input(5), q.dtype)
                .read_scalar("lse", Place::Input(4), DType::F32)
                .cost(flops * (q.shape.elements() * k.rows()) as f64, traffic)
        };
        let (starts, ends, query_ends) = (Place::Input(6), Place::Input(7), Place::Input(8));
        let query = walk(Pass::GradientQuery, [Some(starts), Some(ends), None], turn(self.turns_query));
        let mut plan = LaunchPlan { workspaces: vec![lse.bytes()], ..LaunchPlan::default() };
        query.launch(launch.device, &mut plan, |dispatch| {
            common(dispatch, 3.0)
                .read("o", Place::Input(3), q.dtype)
                .write("dq", Place::Output(0), q.dtype)
                .write_scalar("delta", Place::Workspace(0), DType::F32)
        });
        let key_value = walk(Pass::GradientKeyValue, [None, None, Some(query_ends)], turn(self.turns_key));
        key_value.launch(launch.device, &mut plan, |dispatch| {
            common(dispatch, 4.0)
                .read_scalar("delta", Place::Workspace(0), DType::F32)
                .write("dk", Place::Output(1), k.dtype)
                .write("dv", Place::Output(2), k.dtype)
        });
        if self.turns() && !turns_itself {
            let angles = Angles {
                positions: Place::Input(9),
                table: Place::Input(10),
                rotary_dim: self.scoring.head_dim,
                head_dim: self.scoring.head_dim,
            };
            for (output, asked) in [self.turns_query, self.turns_key].into_iter().enumerate() {
                let turned = Turned { ty: launch.outputs[output], from: None, to: Place::Output(output) };
                plan.dispatches.extend(asked.then(|| rope::dispatch(true, &angles, &[turned])));
            }
        }
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (q, k, v, o, d_o) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[5]);
        let Scoring { head_dim: d, scale, .. } = self.scoring;
        let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|i| ReferenceTensor::zeros(outputs[i].shape));
        for head in 0..q.cols() / d {
            let columns = head * d..(head + 1) * d;
            for t in 0..q.rows() {
                let p = Probabilities::of_row(
                    &self.scoring,
                    q,
                    k,
                    head,
                    t,
                    inputs[6].index(t)..inputs[7].index(t),
                );
                let gradient = &d_o.row(t)[columns.clone()];
                let delta: f64 = gradient.iter().zip(&o.row(t)[columns.clone()]).map(|(a, b)| a * b).sum();
                for ((s, weight), slope) in p.keys.zip(&p.weights).zip(&p.slopes) {
                    let dp: f64 = gradient.iter().zip(&v.row(s)[p.kv..p.kv + d]).map(|(a, b)| a * b).sum();
                    let ds = weight * (dp - delta) * slope * scale;
                    for (i, g) in gradient.iter().enumerate() {
                        dq.row_mut(t)[head * d + i] += ds * k.row(s)[p.kv + i];
                        dk.row_mut(s)[p.kv + i] += ds * q.row(t)[head * d + i];
                        dv.row_mut(s)[p.kv + i] += weight * g;
                    }
                }
            }
        }
        self.turn_back(self.turns_query, inputs, &mut dq, outputs[0]);
        self.turn_back(self.turns_key, inputs, &mut dk, outputs[1]);
        vec![dq, dk, dv]
    }

    fn cases() -> Vec<Case> {
        cases::gradient()
    }
}
