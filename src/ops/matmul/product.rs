//! A product as operations launch it.

use super::Layout;
use super::variant::{Extents, Variant};
use crate::graph::{Alternatives, Binding, Class, DType, Dispatch, Launch, Place, View, rounded};

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

/// Products below this many FLOPs keep their default kernel: the launch costs more than a wrong choice.
const MEASURED_FLOPS: f64 = 4e6;

impl Product {
    /// The dispatch for `out (+)= alpha * (a·b + a2·b2) + residual`.
    pub fn dispatch(
        &self,
        launch: &Launch<'_>,
        a: Operand,
        b: Operand,
        terms: Terms,
        out: Operand,
    ) -> Dispatch {
        let oriented = self.orient(a, b, terms, out);
        let extents = Extents {
            rows: oriented.rows,
            cols: oriented.cols,
            k: self.k,
            k2: oriented.terms.pair.map_or(0, |(_, _, k2)| k2),
        };
        let candidates = Variant::candidates(launch.device, &extents);
        let choices = &launch.device.choices;
        let class = self.class(&oriented);
        let measured =
            choices.variant(&class).and_then(Variant::parse).filter(|v| v.fits(launch.device, &extents));
        let mut dispatch = self.with(measured.unwrap_or(candidates[0]), &oriented);
        let worth = dispatch.cost.flops >= MEASURED_FLOPS && candidates.len() > 1;
        if worth && choices.lists_alternatives() && !choices.knows(&class) {
            let variants = candidates.iter().map(|v| (v.to_string(), self.with(*v, &oriented))).collect();
            dispatch.alternatives = Some(Box::new(Alternatives { class, variants }));
        }
        dispatch
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

    fn with(&self, variant: Variant, o: &Oriented) -> Dispatch {
        let (tile_rows, tile_cols) = variant.tile();
        let col_tiles = o.cols.div_ceil(tile_cols);
        let tiles = o.rows.div_ceil(tile_rows) * col_tiles;
        let mut dispatch = Dispatch::new(variant.shader(), tiles)
            .flag("R_INNER", o.r_inner)
            .flag("C_INNER", o.c_inner)
            .flag("TRANSPOSED", o.swapped)
            .flag("PAIR", o.terms.pair.is_some())
            .flag("RESIDUAL", o.terms.residual.is_some())
            .flag("ACCUMULATE", self.accumulate);
        dispatch = variant.define(dispatch);
        let mut bind = |name, operand: Operand, write| {
            dispatch.bindings.push(Binding {
                name,
                place: operand.place,
                dtype: operand.dtype,
                view: View::Vec4,
                write,
                offset: operand.offset,
                size: operand.size,
            });
        };
        bind("r", o.r, false);
        bind("c", o.c, false);
        let mut k2 = 0;
        if let Some((r2, c2, extent)) = o.terms.pair {
            bind("r2", r2, false);
            bind("c2", c2, false);
            k2 = extent;
        }
        if let Some(residual) = o.terms.residual {
            bind("residual", residual, false);
        }
        bind("out", o.out, true);
        let mut dispatch = dispatch
            .param("tiles", tiles)
            .param("col_tiles", col_tiles)
            .param("rows", o.rows)
            .param("rows4", o.rows.div_ceil(4))
            .param("cols", o.cols)
            .param("cols4", o.cols.div_ceil(4))
            .param("k", self.k)
            .param("k_4", self.k.div_ceil(4));
        if o.terms.pair.is_some() {
            dispatch = dispatch.param("k2", k2).param("k2_4", k2.div_ceil(4));
        }
        let flops = 2.0 * self.m as f64 * self.n as f64 * (self.k + k2) as f64;
        let elements = |x: usize, y: usize, t: DType| (x * y * t.size()) as f64;
        let bytes = elements(o.rows, self.k, o.r.dtype)
            + elements(o.cols, self.k, o.c.dtype)
            + elements(self.m, self.n, o.out.dtype);
        let widened = if k2 == 0 { String::new() } else { format!("+{k2}") };
        let detail = format!("{:?} {}x{}x{}{widened}", self.layout, self.m, self.n, self.k);
        dispatch.param_f32("alpha", self.alpha).cost(flops, bytes).detail(detail)
    }
}
