//! Matrix products with f32 accumulation: `C = alpha * (A·B + A2·B2)` in the three transpositions that a linear
//! layer and its gradients need.
//!
//! Shapes, for a product `[m, n]` over `k`:
//! - [`Layout::NT`]: `A [m, k]`, `B [n, k]` (forward of a linear layer with weight `[out, in]`)
//! - [`Layout::NN`]: `A [m, k]`, `B [k, n]` (gradient of its input)
//! - [`Layout::TN`]: `A [k, m]`, `B [k, n]` (gradient of its weight)
//!
//! The second pair widens `k` by `k2` inside the same tile loop: the low-rank adapter's share of a product costs
//! `k2` more columns and no further pass over the result.
//!
//! Gradients: the product of the output's gradient with the other operand, in the fitting layout. They overwrite,
//! or add where the planner says so.

use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    NT,
    NN,
    TN,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    pub layout: Layout,
    pub alpha: f64,
    pub dtype: DType,
}

/// Appends `alpha * A·B` with the result stored as `dtype`.
pub fn matmul(
    graph: &mut Graph,
    layout: Layout,
    a: Value,
    b: Value,
    alpha: f64,
    dtype: DType,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Matmul { layout, alpha, dtype }), &[a, b])
}

/// Appends `A·B + A2·B2` with the result stored as `dtype`.
pub fn matmul_pair(
    graph: &mut Graph,
    layout: Layout,
    first: (Value, Value),
    second: (Value, Value),
    dtype: DType,
) -> Result<Value, GraphError> {
    let op = Matmul { layout, alpha: 1.0, dtype };
    graph.apply1(Arc::new(op), &[first.0, first.1, second.0, second.1])
}

impl Layout {
    /// `(m, n, k)` of the product.
    pub fn extents(self, a: &TensorType, b: &TensorType) -> (usize, usize, usize) {
        match self {
            Layout::NT => (a.rows(), b.rows(), a.cols()),
            Layout::NN => (a.rows(), b.cols(), a.cols()),
            Layout::TN => (a.cols(), b.cols(), a.rows()),
        }
    }

    fn inner_of_b(self, b: &TensorType) -> usize {
        match self {
            Layout::NT => b.cols(),
            Layout::NN | Layout::TN => b.rows(),
        }
    }
}

/// One operand of a launch: where it lies and how it is stored.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub place: Place,
    pub dtype: DType,
    pub offset: u64,
    pub size: Option<u64>,
}

impl Operand {
    pub fn new(place: Place, dtype: DType) -> Self {
        Operand { place, dtype, offset: 0, size: None }
    }

    pub fn input(launch: &Launch<'_>, input: usize) -> Self {
        Operand::new(Place::Input(input), launch.inputs[input].dtype)
    }

    pub fn range(self, offset: u64, size: u64) -> Self {
        Operand { offset, size: Some(size), ..self }
    }
}

/// A product as other operations launch it.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f64,
    pub accumulate: bool,
}

impl Product {
    /// The dispatch for `out (+)= alpha * (a·b + a2·b2)`; `pair` is `(a2, b2, k2)`.
    pub fn dispatch(
        &self,
        launch: &Launch<'_>,
        a: Operand,
        b: Operand,
        pair: Option<(Operand, Operand, usize)>,
        out: Operand,
    ) -> Dispatch {
        // the long side of a thin product becomes the columns, which the lanes share
        let swap = self.n <= 16 && self.m > self.n;
        let (rows, cols) = if swap { (self.n, self.m) } else { (self.m, self.n) };
        let a_inner = self.layout != Layout::TN;
        let b_inner = self.layout == Layout::NT;
        let (r_inner, c_inner) = if swap { (b_inner, a_inner) } else { (a_inner, b_inner) };
        let variant = Variant::choose(launch, rows, cols);
        let tiles = rows.div_ceil(variant.rows()) * cols.div_ceil(variant.cols());
        let mut dispatch = Dispatch::new(variant.shader(), tiles)
            .flag("R_INNER", r_inner)
            .flag("C_INNER", c_inner)
            .flag("TRANSPOSED", swap)
            .flag("PAIR", pair.is_some())
            .flag("ACCUMULATE", self.accumulate);
        dispatch = variant.define(dispatch);
        let mut bind = |name, operand: Operand, write| {
            dispatch.bindings.push(crate::graph::Binding {
                name,
                place: operand.place,
                dtype: operand.dtype,
                view: crate::graph::View::Vec4,
                write,
                offset: operand.offset,
                size: operand.size,
            });
        };
        let ordered = |a, b| if swap { (b, a) } else { (a, b) };
        let (r, c) = ordered(a, b);
        bind("r", r, false);
        bind("c", c, false);
        let mut k2 = 0;
        if let Some((a2, b2, extent)) = pair {
            let (r2, c2) = ordered(a2, b2);
            bind("r2", r2, false);
            bind("c2", c2, false);
            k2 = extent;
        }
        bind("out", out, true);
        let mut dispatch = dispatch
            .param("tiles", tiles)
            .param("col_tiles", cols.div_ceil(variant.cols()))
            .param("rows", rows)
            .param("rows4", rows.div_ceil(4))
            .param("cols", cols)
            .param("cols4", cols.div_ceil(4))
            .param("k", self.k)
            .param("k_4", self.k.div_ceil(4));
        if pair.is_some() {
            dispatch = dispatch.param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        let flops = 2.0 * self.m as f64 * self.n as f64 * (self.k + k2) as f64;
        let elements = |x: usize, y: usize, t: DType| (x * y * t.size()) as f64;
        let bytes = elements(self.m, self.k, a.dtype)
            + elements(self.n, self.k, b.dtype)
            + elements(self.m, self.n, out.dtype);
        let widened = if k2 == 0 { String::new() } else { format!("+{k2}") };
        let detail = format!("{:?} {}x{}x{}{widened}", self.layout, self.m, self.n, self.k);
        dispatch.param_f32("alpha", self.alpha).cost(flops, bytes).detail(detail)
    }
}

const BROADCAST: Shader = crate::shader!("matmul_broadcast");
const TILED: Shader = crate::shader!("matmul_tiled");

/// A member of the kernel family with its tile.
#[derive(Clone, Copy, Debug)]
enum Variant {
    /// `rows` per invocation, four columns per lane; needs a known subgroup size.
    Broadcast { lanes: u32, rows: u32 },
    /// `rows x cols` per workgroup, `per x 4` per invocation.
    Tiled { rows: u32, cols: u32, per: u32 },
}

impl Variant {
    fn choose(launch: &Launch<'_>, rows: usize, cols: usize) -> Self {
        if let Some(lanes) = launch.device.broadcast_lanes() {
            // 32 rows per tile measured fastest; fewer where the product is thin or would leave a core idle
            let tiles = |r: usize| rows.div_ceil(r) * cols.div_ceil(4 * lanes as usize);
            let rows = [32, 16, 8].into_iter().find(|&r| rows > r / 2 && tiles(r) >= 8).unwrap_or(8);
            return Variant::Broadcast { lanes, rows: (rows as u32).max(lanes) };
        }
        if rows <= 16 {
            Variant::Tiled { rows: 16, cols: 128, per: 4 }
        } else {
            Variant::Tiled { rows: 64, cols: 64, per: 8 }
        }
    }

    fn rows(self) -> usize {
        match self {
            Variant::Broadcast { rows, .. } | Variant::Tiled { rows, .. } => rows as usize,
        }
    }

    fn cols(self) -> usize {
        match self {
            Variant::Broadcast { lanes, .. } => 4 * lanes as usize,
            Variant::Tiled { cols, .. } => cols as usize,
        }
    }

    fn shader(self) -> Shader {
        match self {
            Variant::Broadcast { .. } => BROADCAST,
            Variant::Tiled { .. } => TILED,
        }
    }

    fn define(self, dispatch: Dispatch) -> Dispatch {
        match self {
            Variant::Broadcast { lanes, rows } => dispatch.define("LANES", lanes).define("ROWS", rows),
            Variant::Tiled { rows, cols, per } => {
                dispatch.define("ROWS", rows).define("COLS", cols).define("PER", per)
            }
        }
    }
}

impl Operation for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        if inputs.len() != 2 && inputs.len() != 4 {
            return Err(GraphError::invalid(self.name(), "takes one or two pairs of matrices"));
        }
        let (m, n, _) = self.layout.extents(&inputs[0], &inputs[1]);
        for pair in inputs.chunks(2) {
            let (m2, n2, k2) = self.layout.extents(&pair[0], &pair[1]);
            let inner = self.layout.inner_of_b(&pair[1]);
            if (m2, n2) != (m, n) || k2 != inner || k2 == 0 {
                let reason = format!(
                    "{:?} of {} and {} does not fit a [{m}, {n}] product",
                    self.layout, pair[0], pair[1]
                );
                return Err(GraphError::invalid(self.name(), reason));
            }
        }
        if inputs.iter().any(|t| !t.dtype.is_float()) || !self.dtype.is_float() {
            return Err(GraphError::invalid(self.name(), "operands and result are floats"));
        }
        Ok(vec![TensorType::new(Shape::matrix(m, n), self.dtype)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dc) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let mut gradients = Vec::new();
        for (pair, wanted) in node.inputs.chunks(2).zip(node.wanted.chunks(2)) {
            let (a, b) = (pair[0], pair[1]);
            let (ta, tb) = (graph.type_of(a).dtype, graph.type_of(b).dtype);
            let (for_a, for_b) = match self.layout {
                Layout::NT => ((Layout::NN, dc, b), (Layout::TN, dc, a)),
                Layout::NN => ((Layout::NT, dc, b), (Layout::TN, a, dc)),
                Layout::TN => ((Layout::NT, b, dc), (Layout::NN, a, dc)),
            };
            for ((layout, x, y), (dtype, wanted)) in
                [for_a, for_b].into_iter().zip([(ta, wanted[0]), (tb, wanted[1])])
            {
                gradients.push(if wanted {
                    Some(matmul(graph, layout, x, y, self.alpha, dtype)?)
                } else {
                    None
                });
            }
        }
        Ok(gradients)
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (m, n, k) = self.layout.extents(&launch.inputs[0], &launch.inputs[1]);
        let pair = (launch.inputs.len() == 4).then(|| {
            let (_, _, k2) = self.layout.extents(&launch.inputs[2], &launch.inputs[3]);
            (Operand::input(launch, 2), Operand::input(launch, 3), k2)
        });
        let product =
            Product { layout: self.layout, m, n, k, alpha: self.alpha, accumulate: launch.accumulate[0] };
        let out = Operand::new(Place::Output(0), self.dtype);
        product.dispatch(launch, Operand::input(launch, 0), Operand::input(launch, 1), pair, out).into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut out = ReferenceTensor::zeros(outputs[0].shape);
        for pair in inputs.chunks(2) {
            accumulate_product(self.layout, self.alpha, &pair[0], &pair[1], &mut out);
        }
        vec![out]
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        let shapes = [
            (1, 1, 1),
            (5, 7, 6),
            (33, 70, 37),
            (64, 6, 40),
            (3, 130, 9),
            (100, 8, 65),
            (8, 96, 50),
            (64, 4, 4099),
        ];
        for layout in [Layout::NT, Layout::NN, Layout::TN] {
            let dims = |m: usize, n: usize, k: usize| match layout {
                Layout::NT => ([m, k], [n, k]),
                Layout::NN => ([m, k], [k, n]),
                Layout::TN => ([k, m], [k, n]),
            };
            for (m, n, k) in shapes {
                let (a, b) = dims(m, n, k);
                let inputs = vec![CaseInput::random(&a, DType::F32), CaseInput::random(&b, DType::F32)];
                let op = Matmul { layout, alpha: 0.5, dtype: DType::F32 };
                let case = Case::new(format!("{layout:?} {m}x{n}x{k}"), op, inputs);
                cases.push(if m * n * k < 300 { case.gradients(&[0, 1]) } else { case });
            }
            for (dtype, other) in
                [(DType::F16, DType::F16), (DType::BF16, DType::BF16), (DType::F32, DType::BF16)]
            {
                let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 6));
                let inputs = vec![
                    CaseInput::random(&a, dtype),
                    CaseInput::random(&b, other),
                    CaseInput::random(&a2, DType::F32),
                    CaseInput::random(&b2, DType::F32),
                ];
                let op = Matmul { layout, alpha: 1.0, dtype };
                cases.push(Case::new(format!("{layout:?} pair {dtype} {other}"), op, inputs));
            }
            let (a, b) = dims(4, 5, 3);
            let (a2, b2) = dims(4, 5, 2);
            let inputs = [a, b, a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
            let op = Matmul { layout, alpha: 1.0, dtype: DType::F32 };
            cases.push(Case::new(format!("{layout:?} pair"), op, inputs).gradients(&[0, 1, 2, 3]));
        }
        cases
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}

/// `out += alpha * A·B` in f64.
pub(crate) fn accumulate_product(
    layout: Layout,
    alpha: f64,
    a: &ReferenceTensor,
    b: &ReferenceTensor,
    out: &mut ReferenceTensor,
) {
    let (m, n) = (out.rows(), out.cols());
    let k = if layout == Layout::TN { a.rows() } else { a.cols() };
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k)
                .map(|x| {
                    let left = if layout == Layout::TN { a.data[x * m + i] } else { a.data[i * k + x] };
                    let right = if layout == Layout::NT { b.data[j * k + x] } else { b.data[x * n + j] };
                    left * right
                })
                .sum();
            out.data[i * n + j] += alpha * sum;
        }
    }
}
