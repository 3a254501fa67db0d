//! A product's kernel: a variant, what comes before it for a block-quantised weight and for a gated operand, and whether its inner
//! dimension is shared by workgroups.

use super::candidates::GATING;
use super::operand::{Operand, Oriented};
use super::variant::Variant;
use crate::graph::{
    Binding, DType, DeviceProfile, Dispatch, LaunchPlan, Place, Shader, Shape, TensorType, View, row_lanes,
};
use crate::ops::BUSY;
use crate::ops::copy::SHADER as COPY;
use crate::ops::elementwise;
use crate::ops::glu::{FLOPS as GLU_FLOPS, SHADER as GLU};
use crate::ops::scaled_half::{LARGEST_BYTES, UNSCALE_BYTES, scaled_half};

pub(super) const ROUND_ROWS: Shader = crate::shader!("round_rows");

/// The power of two that the columns of a second pair take from its rows on matrix units, beside rows as they are and scaled ones.
pub(super) const PAIR_FACTORS: [u32; 2] = [16, 256];

/// A variant, and whether block-quantised operands become plain ones in scratch space before it.
///
/// Dequantised into the tile, a weight is expanded once per tile of the other operand's rows; staged, once, at the price of
/// scratch space and its traffic. Matrix units read plain operands only, but for those that are loaded
/// from tiles.
///
/// A gated operand is made in scratch space before the product as well, once, or by the product itself as it loads
/// the rows (`gates`): once per tile of columns, but neither stored nor read.
///
/// In `sections` of the inner dimension, where there are more than one, a product has as many times its tiles: where these are too few to
/// keep a large GPU busy, as the gradient of a few rows of logits has them. The sums of all sections go through scratch space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kernel {
    pub variant: Variant,
    pub staged: bool,
    pub gates: bool,
    pub sections: u32,
}

/// Elements of the inner dimension that a section has at least, and of which a section has a multiple: no fewer than any block.
const SECTION: usize = 256;
const MOST_SECTIONS: usize = 64;

/// How many of the candidates, on matrix units and not, are measured in sections too.
const SECTIONED: usize = 3;

/// On CPU devices a product of more rows than this, those of the default tile, stages its weight first: each tile would expand it anew.
const DIRECT_ROWS: usize = 32;

impl Kernel {
    /// What the device can run; the default first.
    pub fn candidates(device: &DeviceProfile, o: &Oriented) -> Vec<Kernel> {
        let all = |staged: bool, gates: bool| {
            let variants = Variant::candidates(device, &o.extents(device, staged, gates));
            variants.into_iter().map(move |variant| Kernel { variant, staged, gates, sections: 1 })
        };
        let staged_first = device.cpu && o.rows > DIRECT_ROWS;
        let mut ways = if o.quantised() { vec![staged_first, !staged_first] } else { vec![false] };
        if ways.iter().any(|&staged| o.has_room(device, staged, false)) {
            ways.retain(|&staged| o.has_room(device, staged, false));
        }
        let first = ways[0];
        let mut kernels: Vec<Kernel> = ways.iter().flat_map(|&staged| all(staged, false)).collect();
        // matrix units in either way come next to the default where they are hardware, as measuring ends after a while, and last
        // where they are not
        kernels[1..].sort_by_key(|kernel| kernel.variant.on_matrix_units() == device.cpu);
        if o.gated() {
            // made before the product unless a measurement says otherwise; early in the list, for measuring ends after a while
            let room = ways.into_iter().filter(|&staged| o.has_room(device, staged, true));
            let mut gating: Vec<Kernel> = room.flat_map(|staged| all(staged, true).take(GATING)).collect();
            if gating.is_empty() {
                // what needs no scratch space must be there, if only for the device to refuse it
                gating.extend(all(first, true).take(1));
            }
            kernels.splice(1..1, gating);
        }
        let sectioned = [true, false].map(|units| {
            let of_kind = kernels.iter().filter(|kernel| kernel.variant.on_matrix_units() == units);
            of_kind.filter_map(|kernel| kernel.in_sections(device, o)).take(SECTIONED).collect::<Vec<_>>()
        });
        kernels.splice(1..1, sectioned.concat());
        kernels
    }

    /// The same kernel in as many sections as keep a GPU busy, if it takes more than one.
    fn in_sections(&self, device: &DeviceProfile, o: &Oriented) -> Option<Kernel> {
        let (rows, cols) = self.variant.tile();
        let tiles = o.rows.div_ceil(rows) * o.cols.div_ceil(cols);
        let wanted = (BUSY / tiles).min(o.k / SECTION).min(MOST_SECTIONS);
        // in powers of two, so that one measurement serves for products of about that size
        let sections = 1 << wanted.checked_ilog2()?;
        let kernel = Kernel { sections, ..*self };
        (sections > 1 && kernel.fits(device, o)).then_some(kernel)
    }

    pub fn fits(&self, device: &DeviceProfile, o: &Oriented) -> bool {
        let either = o.quantised() || o.gated();
        let way = (o.quantised() || !self.staged)
            && (o.gated() || !self.gates)
            && (!either || o.has_room(device, self.staged, self.gates));
        way && self.variant.fits(device, &o.extents(device, self.staged, self.gates))
            && (self.sections == 1 || self.fits_in_sections(device, o))
    }

    /// Whether what was measured for products of other extents has tiles that this one fills.
    pub fn suits(&self, o: &Oriented) -> bool {
        let (rows, cols) = self.variant.tile();
        let tiles = o.rows.div_ceil(rows) * o.cols.div_ceil(cols);
        self.variant.is_filled(o.rows, o.cols)
            && (self.sections == 1 || self.sections as usize * tiles <= 2 * BUSY)
    }

    fn fits_in_sections(&self, device: &DeviceProfile, o: &Oriented) -> bool {
        let shares = matches!(self.variant, Variant::Tiled { .. } | Variant::CoopTiled { .. });
        // the dispatch that adds the sums up knows the second pair's rows and columns by where the result lies
        let plain = o.terms.pair.is_none() || !o.swapped;
        let Sections { count, out4, .. } = o.sections(self.sections);
        shares && !device.cpu && plain && device.piece(16 * (count * out4) as u64).is_none()
    }

    /// Whether it needs scratch space for such a product.
    pub fn needs_scratch(&self, o: &Oriented) -> bool {
        self.staged
            || self.sections > 1
            || (o.gated() && !self.gates)
            || self.rounds_rows(o)
            || self.rounds_whole(o)
            || matches!(self.variant, Variant::Coop { .. })
    }

    /// Whether the rows go to scratch space in f16 first.
    pub fn rounds_rows(&self, o: &Oriented) -> bool {
        self.variant.on_matrix_units() && !self.variant.is_running() && o.scales()
    }

    /// Whether both operands go there, each times one power of two.
    pub fn rounds_whole(&self, o: &Oriented) -> bool {
        self.variant.on_matrix_units() && !self.variant.is_running() && o.scales_whole()
    }

    /// Whether the second pair goes through matrix units, with the first.
    pub fn sums_pair(&self, o: &Oriented) -> bool {
        matches!(self.variant, Variant::CoopTiled(_)) && self.sections == 1 && o.can_sum_pair()
    }

    pub fn parse(name: &str) -> Option<Kernel> {
        let (name, gates) = name.strip_prefix("gating ").map_or((name, false), |rest| (rest, true));
        let (name, staged) = name.strip_prefix("staged ").map_or((name, false), |rest| (rest, true));
        let (name, sections) = match name.strip_prefix("sections=") {
            Some(rest) => {
                let (sections, name) = rest.split_once(' ')?;
                (name, sections.parse().ok().filter(|n| (2..=MOST_SECTIONS as u32).contains(n))?)
            }
            None => (name, 1),
        };
        Some(Kernel { variant: Variant::parse(name)?, staged, gates, sections })
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (gates, staged) =
            (if self.gates { "gating " } else { "" }, if self.staged { "staged " } else { "" });
        write!(f, "{gates}{staged}")?;
        if self.sections > 1 {
            write!(f, "sections={} ", self.sections)?;
        }
        write!(f, "{}", self.variant)
    }
}

/// A product's inner dimension in sections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sections {
    pub count: usize,
    /// Groups of four along k of each, but for the last.
    pub k4: usize,
    /// Groups of four of the result.
    pub out4: usize,
}

impl Oriented {
    /// At most so many sections, each of whole blocks.
    pub fn sections(&self, most: u32) -> Sections {
        let all = self.k.div_ceil(4);
        let k4 = all.div_ceil(most as usize).next_multiple_of(SECTION / 4);
        let out4 = match self.swapped {
            true => self.cols * self.rows.div_ceil(4),
            false => self.rows * self.cols.div_ceil(4),
        };
        Sections { count: all.div_ceil(k4), k4, out4 }
    }
}

/// The scratch space of a kernel: what products of one node share, and what this one uses.
pub(super) struct Scratch {
    pub shared: [Option<usize>; 8],
    pub next: usize,
    pub used: Vec<(Place, u64)>,
}

/// What products keep in scratch space, one after the other in the same.
#[derive(Clone, Copy)]
pub(super) enum Shared {
    /// Sums of matrix units, or of sections.
    Sums,
    /// A dequantised weight.
    Plain,
    /// An operand that a gate has passed.
    Gated,
    /// Rows as matrix units take them, and what they are scaled by.
    Rounded,
    Unscale,
    /// The same of columns; and the largest magnitudes of an operand that is scaled as a whole.
    RoundedColumns,
    UnscaleColumns,
    Largest,
}

impl Scratch {
    pub fn take(&mut self, what: Shared, bytes: u64) -> Place {
        let workspace = *self.shared[what as usize].get_or_insert_with(|| {
            self.next += 1;
            self.next - 1
        });
        let place = Place::Workspace(workspace);
        self.used.push((place, bytes));
        place
    }
}

/// The operand as a plain one, and the dispatch that makes it so.
pub(super) fn staged(
    operand: Operand,
    plain: TensorType,
    scratch: &mut Scratch,
) -> (Operand, Option<Dispatch>) {
    if !operand.dtype.is_quantised() {
        return (operand, None);
    }
    let place = scratch.take(Shared::Plain, plain.bytes());
    // what several products share is as large as the largest of them
    let made = Operand::new(place, plain.dtype).range(0, plain.bytes());
    let stored = TensorType::new(plain.shape, operand.dtype).bytes();
    let copy = elementwise(COPY, plain.rows() * plain.cols4())
        .flag("ACCUMULATE", false)
        .bind(operand.binding("x", View::Vec4, false))
        .bind(made.binding("y", View::Vec4, true))
        .detail(format!("{} {}", operand.dtype, plain.shape))
        .cost(0.0, (stored + plain.bytes()) as f64);
    (made, Some(copy))
}

/// The rows' operand that the gate has passed, and the dispatch that makes it.
pub(super) fn gated(o: &Oriented, up: Operand, scratch: &mut Scratch) -> (Operand, Dispatch) {
    let ty = TensorType::new(o.r_shape(), o.r.dtype);
    let made = Operand::new(scratch.take(Shared::Gated, ty.bytes()), ty.dtype).range(0, ty.bytes());
    let dispatch = elementwise(GLU, ty.rows() * ty.cols4());
    let dispatch = o
        .terms
        .activation
        .define(dispatch)
        .bind(o.r.binding("gate", View::Vec4, false))
        .bind(up.binding("up", View::Vec4, false))
        .bind(made.binding("y", View::Vec4, true))
        .cost(GLU_FLOPS * ty.shape.elements() as f64, 3.0 * ty.bytes() as f64);
    (made, dispatch)
}

/// The rows' operand in f16, each row times a power of two, gated on the way where it is to be; where the inverses of those lie;
/// and the dispatch that makes both.
///
/// What is summed with them on matrix units, `pair`, is scaled alike.
pub(super) fn rounded_rows(
    o: &Oriented,
    pair: Option<(Operand, usize)>,
    scratch: &mut Scratch,
) -> (Operand, Place, Dispatch) {
    let (ty, stored) = (TensorType::new(o.r_shape(), DType::F16), TensorType::new(o.r_shape(), o.r.dtype));
    let made = Operand::new(scratch.take(Shared::Rounded, ty.bytes()), ty.dtype).range(0, ty.bytes());
    let scales = (4 * ty.rows() as u64).next_multiple_of(16);
    let unscale = scratch.take(Shared::Unscale, scales);
    let lanes = row_lanes(ty.cols4());
    let rows = (64 / lanes).max(1);
    let dispatch = Dispatch::new(ROUND_ROWS, ty.rows().div_ceil(rows as usize));
    let dispatch = o
        .terms
        .activation
        .define(dispatch)
        .define("LANES", lanes)
        .define("ROWS", rows)
        .flag("GATED", o.gated())
        .flag("PAIR", pair.is_some())
        .param("rows", ty.rows())
        .param("cols4", ty.cols4())
        .detail(format!("{stored}"));
    let (dispatch, reads) = match o.terms.up {
        Some(up) => (
            dispatch.bind(o.r.binding("gate", View::Vec4, false)).bind(up.binding("up", View::Vec4, false)),
            2,
        ),
        None => (dispatch.bind(o.r.binding("x", View::Vec4, false)), 1),
    };
    let dispatch = match pair {
        Some((r2, k2)) => {
            let dispatch = dispatch.define("PAIR_FACTOR", PAIR_FACTORS[1]).param("k2_4", k2.div_ceil(4));
            dispatch.bind(r2.binding("r2", View::Vec4, false))
        }
        None => dispatch,
    };
    let gating = if o.gated() { GLU_FLOPS * ty.shape.elements() as f64 } else { 0.0 };
    let dispatch = dispatch
        .bind(made.binding("y", View::Vec4, true))
        .bind(Binding {
            size: Some(scales),
            ..Binding::new("unscale", unscale, DType::F32, View::Scalar, true)
        })
        .cost(gating, (reads * stored.bytes() + ty.bytes()) as f64);
    (made, unscale, dispatch)
}

/// Takes the rounding of rows out of a product whose dispatches are those of the plan from `first` on, if that is what it begins with, for
/// whoever makes the rows to round them as well (who measures the product still times it with the rounding): where the rows in f16 go, `y`, and what they are scaled by, `unscale`.
pub(crate) fn take_rounding(plan: &mut LaunchPlan, first: usize) -> Option<[Binding; 2]> {
    let rounding = plan.dispatches.get(first).filter(|d| d.shader == ROUND_ROWS)?;
    let named = |name| rounding.bindings.iter().find(|b| b.name == name).cloned();
    let made = named("y").zip(named("unscale"))?;
    plan.dispatches.remove(first);
    Some([made.0, made.1])
}

/// An operand in f16, times one power of two; where the inverse of that lies; and the dispatches that make both. `what` names its scratch
/// spaces.
pub(super) fn rounded_whole(
    operand: Operand,
    shape: Shape,
    what: (Shared, Shared),
    scratch: &mut Scratch,
) -> (Operand, Place, [Dispatch; 2]) {
    let (ty, stored) = (TensorType::new(shape, DType::F16), TensorType::new(shape, operand.dtype));
    let made = Operand::new(scratch.take(what.0, ty.bytes()), ty.dtype).range(0, ty.bytes());
    let unscale = scratch.take(what.1, UNSCALE_BYTES);
    let largest = scratch.take(Shared::Largest, LARGEST_BYTES);
    let (x, y) = (operand.binding("x", View::Vec4, false), made.binding("y", View::Vec4, true));
    (made, unscale, scaled_half(stored, x, y, largest, unscale, format!("{stored}")))
}
