//! Products that share an operand, as one: the low-rank sides of layers with one input.
//!
//! - [`Layout::NT`]: `C_i = alpha * X·B_iᵀ`, X `[m, k]`, B_i `[n, k]`, C_i `[m, n]` (`x·Aᵀ` of q, k and v)
//! - [`Layout::TN`]: `C_i = alpha * A_iᵀ·X`, A_i `[k, m]`, X `[k, n]`, C_i `[m, n]` (the gradients of these A)
//!
//! Inputs X and then the others, all of one type. One kernel reads X once for all of them where their rows come in whole
//! groups of four; else each product has a launch of its own. Made by [`crate::fuse`] after differentiation: no gradient.

use super::{Layout, Operand, Product, Terms, accumulate_product};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shape, TensorType, Value,
};
use crate::ops::expect;

#[derive(Clone, Debug, PartialEq)]
pub struct MatmulGroup {
    pub layout: Layout,
    pub alpha: f64,
    pub dtype: DType,
    /// See [`Terms::low_rank`].
    pub low_rank: bool,
}

impl MatmulGroup {
    /// As many as one kernel has room to bind (WebGPU: eight storage buffers).
    pub const MOST: usize = 3;

    /// `(m, n, k)` of one product.
    fn extents(&self, shared: &TensorType, other: &TensorType) -> (usize, usize, usize) {
        match self.layout {
            Layout::TN => self.layout.extents(other, shared),
            Layout::NT | Layout::NN => self.layout.extents(shared, other),
        }
    }
}

impl Operation for MatmulGroup {
    fn name(&self) -> &'static str {
        "matmul_group"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let count = inputs.len().saturating_sub(1);
        expect(self.name(), (2..=Self::MOST).contains(&count) && self.layout != Layout::NN, || {
            format!("makes two or three products NT or TN, not {count} {:?}", self.layout)
        })?;
        let (shared, others) = (inputs[0], &inputs[1..]);
        let (m, n, k) = self.extents(&shared, &others[0]);
        let inner = if self.layout == Layout::TN { shared.rows() } else { others[0].cols() };
        let fits = others.iter().all(|t| *t == others[0]) && inner == k && k > 0;
        expect(self.name(), fits && shared.dtype.is_float() && self.dtype.is_float(), || {
            format!("{} do not fit {shared}", others[0])
        })?;
        Ok(vec![TensorType::new(Shape::matrix(m, n), self.dtype); count])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &(0..node.inputs.len()).collect::<Vec<_>>())?;
        Ok(vec![None; node.inputs.len()])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let count = launch.outputs.len();
        let (m, n, k) = self.extents(&launch.inputs[0], &launch.inputs[1]);
        let side = if self.layout == Layout::TN { m } else { n };
        let alike = |flags: &[bool]| flags.iter().all(|f| *f == flags[0]);
        let together = side.is_multiple_of(4) && alike(launch.accumulate) && launch.live.iter().all(|l| *l);
        let parts = if together { count } else { 1 };
        let mut plan = LaunchPlan::default();
        for first in (0..count).step_by(parts).filter(|&i| launch.live[i]) {
            let (m, n) = if self.layout == Layout::TN { (parts * m, n) } else { (m, parts * n) };
            let accumulate = launch.accumulate[first];
            let product = Product { layout: self.layout, m, n, k, alpha: self.alpha, accumulate, parts };
            let (shared, other) = (Operand::input(launch, 0), Operand::input(launch, 1 + first));
            let operands = if self.layout == Layout::TN { (other, shared) } else { (shared, other) };
            let out = Operand::new(Place::Output(first), self.dtype);
            let terms = Terms { low_rank: self.low_rank, ..Terms::default() };
            product.launch(launch, &mut plan, operands, terms, out);
        }
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let product = |(other, ty): (&ReferenceTensor, &TensorType)| {
            let mut out = ReferenceTensor::zeros(ty.shape);
            let (a, b) = if self.layout == Layout::TN { (other, &inputs[0]) } else { (&inputs[0], other) };
            accumulate_product(self.layout, self.alpha, a, b, &mut out);
            out
        };
        inputs[1..].iter().zip(outputs).map(product).collect()
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for layout in [Layout::NT, Layout::TN] {
            // tokens, width, rank, how many
            for (t, d, r, count) in [
                (37, 50, 8, 3),
                (5, 70, 4, 2),
                (130, 36, 12, 3),
                (64, 64, 6, 2),
                (19, 8, 64, 3),
                (530, 600, 8, 2),
            ] {
                let other = if layout == Layout::TN { [t, r] } else { [r, d] };
                let inputs = [CaseInput::random(&[t, d], DType::BF16)]
                    .into_iter()
                    .chain((0..count).map(|_| CaseInput::random(&other, DType::F32)))
                    .collect();
                let op = MatmulGroup { layout, alpha: 0.5, dtype: DType::F32, low_rank: true };
                cases.push(Case::new(format!("{layout:?} {t}x{d} rank {r} times {count}"), op, inputs));
            }
        }
        cases
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
