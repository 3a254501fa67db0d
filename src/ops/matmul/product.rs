//! A product as operations launch it.

use super::Layout;
use super::variant::{Extents, FINISH, Variant};
use crate::graph::{
    Alternative, Alternatives, Binding, Class, DType, Dispatch, Launch, LaunchPlan, Place, View, rounded,
};

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

    fn binding(self, name: &'static str, view: View, write: bool) -> Binding {
        let Operand { place, dtype, offset, size } = self;
        Binding { name, place, dtype, view, write, offset, size }
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

/// A product as the kernels see it: which operand gives the rows, which the columns.
struct Oriented {
    /// The result is stored transposed: the long side of a thin product becomes the columns, which the lanes share.
    swapped: bool,
    rows: usize,
    cols: usize,
    r_inner: bool,
    c_inner: bool,
    r: Operand,
    c: Operand,
    terms: Terms,
    out: Operand,
}

/// What is added to the product of the two operands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// `(a2, b2, k2)`: the product of a second pair over k2, scaled like the first.
    pub pair: Option<(Operand, Operand, usize)>,
    /// Added as it is, `[m, n]`.
    pub residual: Option<Operand>,
}

impl Product {
    /// Appends what makes `out (+)= alpha * (a·b + a2·b2) + residual`.
    pub fn launch(
        &self,
        launch: &Launch<'_>,
        plan: &mut LaunchPlan,
        (a, b): (Operand, Operand),
        terms: Terms,
        out: Operand,
    ) {
        let oriented = self.orient(a, b, terms, out);
        let half = |o: Operand| o.dtype == DType::F16;
        let extents = Extents {
            rows: oriented.rows,
            cols: oriented.cols,
            k: self.k,
            k2: oriented.terms.pair.map_or(0, |(_, _, k2)| k2),
            half: half(oriented.r) && half(oriented.c) && !oriented.swapped,
        };
        let candidates = Variant::candidates(launch.device, &extents);
        let choices = &launch.device.choices;
        let class = self.class(&oriented);
        let measured =
            choices.variant(&class).and_then(Variant::parse).filter(|v| v.fits(launch.device, &extents));
        let sums = plan.sums.unwrap_or(plan.workspaces.len());
        let scratch = Place::Workspace(sums);
        let (mut dispatches, workspace) = self.with(measured.unwrap_or(candidates[0]), &oriented, scratch);
        if choices.wants(&class, candidates.len(), dispatches[0].cost.flops) {
            let alternative = |variant: &Variant| {
                let (dispatches, workspace) = self.with(*variant, &oriented, scratch);
                let workspaces = workspace.into_iter().map(|bytes| (scratch, bytes)).collect();
                Alternative { name: variant.to_string(), dispatches, workspaces }
            };
            let variants = candidates.iter().map(alternative).collect();
            dispatches[0].alternatives = Some(Box::new(Alternatives { class, variants, indices: vec![] }));
        }
        plan.dispatches.extend(dispatches);
        if let Some(bytes) = workspace {
            plan.sums = Some(sums);
            plan.workspaces.resize(plan.workspaces.len().max(sums + 1), 0);
            plan.workspaces[sums] = plan.workspaces[sums].max(bytes);
        }
    }

    fn orient(&self, a: Operand, b: Operand, terms: Terms, out: Operand) -> Oriented {
        let swapped = self.n <= 16 && self.m > self.n;
        let (a_inner, b_inner) = (self.layout != Layout::TN, self.layout == Layout::NT);
        if swapped {
            let terms = Terms { pair: terms.pair.map(|(a2, b2, k2)| (b2, a2, k2)), ..terms };
            let (rows, cols) = (self.n, self.m);
            Oriented { swapped, rows, cols, r_inner: b_inner, c_inner: a_inner, r: b, c: a, terms, out }
        } else {
            let (rows, cols) = (self.m, self.n);
            Oriented { swapped, rows, cols, r_inner: a_inner, c_inner: b_inner, r: a, c: b, terms, out }
        }
    }

    fn class(&self, o: &Oriented) -> Class {
        let side =
            |inner: bool, operand: Operand| format!("{}{}", operand.dtype, if inner { "" } else { "ᵀ" });
        let pair = o.terms.pair.map_or(String::new(), |(r2, c2, _)| format!(" + {}·{}", r2.dtype, c2.dtype));
        let family = format!(
            "matmul {}·{}{pair} -> {}{}",
            side(o.r_inner, o.r),
            side(o.c_inner, o.c),
            o.out.dtype,
            if o.swapped { "ᵀ" } else { "" },
        );
        let k2 = o.terms.pair.map_or(0, |(_, _, k2)| rounded(k2));
        Class { family, extents: vec![rounded(o.rows), rounded(o.cols), rounded(self.k), k2] }
    }

    /// The dispatches of a variant, and the bytes of the scratch space that they bind as `scratch`.
    fn with(&self, variant: Variant, o: &Oriented, scratch: Place) -> (Vec<Dispatch>, Option<u64>) {
        let (tile_rows, tile_cols) = variant.tile();
        let col_tiles = o.cols.div_ceil(tile_cols);
        let tiles = o.rows.div_ceil(tile_rows) * col_tiles;
        let k2 = o.terms.pair.map_or(0, |(_, _, k2)| k2);
        let flops = 2.0 * self.m as f64 * self.n as f64 * (self.k + k2) as f64;
        let elements = |x: usize, y: usize, t: DType| (x * y * t.size()) as f64;
        let bytes = elements(o.rows, self.k, o.r.dtype)
            + elements(o.cols, self.k, o.c.dtype)
            + elements(self.m, self.n, o.out.dtype);
        let widened = if k2 == 0 { String::new() } else { format!("+{k2}") };
        let detail = format!("{:?} {}x{}x{}{widened}", self.layout, self.m, self.n, self.k);

        let main = variant
            .define(Dispatch::new(variant.shader(), tiles))
            .flag("R_INNER", o.r_inner)
            .flag("C_INNER", o.c_inner)
            .param("tiles", tiles)
            .param("col_tiles", col_tiles)
            .param("rows", o.rows)
            .param("cols", o.cols)
            .param("k", self.k)
            .detail(detail)
            .variant(variant.to_string());
        if let Variant::Coop { .. } = variant {
            let sums = elements(o.rows, o.cols, DType::F32);
            let main = main
                .bind(o.r.binding("r", View::Matrix, false))
                .bind(o.c.binding("c", View::Matrix, false))
                .bind(Operand::new(scratch, DType::F32).binding("sums", View::Matrix, true))
                .cost(flops, bytes + sums);
            let finish = self.finish(o, scratch, k2).cost(0.0, sums + elements(self.m, self.n, o.out.dtype));
            return (vec![main, finish], Some(sums as u64));
        }
        let mut main = main
            .bind(o.r.binding("r", View::Vec4, false))
            .bind(o.c.binding("c", View::Vec4, false))
            .param("rows4", o.rows.div_ceil(4))
            .param("cols4", o.cols.div_ceil(4))
            .param("k_4", self.k.div_ceil(4))
            .flag("TRANSPOSED", o.swapped)
            .cost(flops, bytes);
        if k2 > 0 {
            main = main.param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        (vec![self.store(main, o)], None)
    }

    /// The dispatch that stores the sums of a product on matrix units.
    fn finish(&self, o: &Oriented, sums: Place, k2: usize) -> Dispatch {
        let cols4 = o.cols.div_ceil(4);
        let mut finish = Dispatch::new(FINISH, (o.rows * cols4).div_ceil(64))
            .flag("R_INNER", o.r_inner)
            .flag("C_INNER", o.c_inner)
            .param("rows", o.rows)
            .param("cols4", cols4)
            .read("sums", sums, DType::F32)
            .detail(format!("{}x{}", o.rows, o.cols));
        if k2 > 0 {
            finish = finish.param("rows4", o.rows.div_ceil(4)).param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        self.store(finish, o)
    }

    /// What every kernel that stores the result has.
    fn store(&self, dispatch: Dispatch, o: &Oriented) -> Dispatch {
        let mut dispatch = dispatch
            .flag("PAIR", o.terms.pair.is_some())
            .flag("RESIDUAL", o.terms.residual.is_some())
            .flag("ACCUMULATE", self.accumulate)
            .param_f32("alpha", self.alpha);
        if let Some((r2, c2, _)) = o.terms.pair {
            dispatch =
                dispatch.bind(r2.binding("r2", View::Vec4, false)).bind(c2.binding("c2", View::Vec4, false));
        }
        if let Some(residual) = o.terms.residual {
            dispatch = dispatch.bind(residual.binding("residual", View::Vec4, false));
        }
        dispatch.bind(o.out.binding("out", View::Vec4, true))
    }
}
