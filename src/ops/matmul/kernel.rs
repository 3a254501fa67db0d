//! A product's kernel: a variant, and what comes before it for a block-quantised weight.

use super::operand::{Operand, Oriented};
use super::variant::Variant;
use crate::graph::{DeviceProfile, Dispatch, Place, TensorType, View};
use crate::ops::copy::SHADER as COPY;
use crate::ops::elementwise;

/// A variant, and whether block-quantised operands become plain ones in scratch space before it.
///
/// Dequantised into the tile, a weight is expanded once per tile of the other operand's rows; staged, once, at the price of
/// scratch space and its traffic. Matrix units read plain operands only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kernel {
    pub variant: Variant,
    pub staged: bool,
}

/// On CPU devices a product of more rows than this, those of the default tile, stages its weight first: each tile would expand it anew.
const DIRECT_ROWS: usize = 32;

impl Kernel {
    /// What the device can run; the default first.
    pub fn candidates(device: &DeviceProfile, o: &Oriented) -> Vec<Kernel> {
        let all = |staged: bool| {
            let variants = Variant::candidates(device, &o.extents(device, staged));
            variants.into_iter().map(move |variant| Kernel { variant, staged })
        };
        if !o.quantised() {
            return all(false).collect();
        }
        let staged_first = device.cpu && o.rows > DIRECT_ROWS;
        let mut ways = vec![staged_first, !staged_first];
        if ways.iter().any(|&staged| o.has_room(device, staged)) {
            ways.retain(|&staged| o.has_room(device, staged));
        }
        ways.into_iter().flat_map(all).collect()
    }

    pub fn fits(&self, device: &DeviceProfile, o: &Oriented) -> bool {
        let way = match o.quantised() {
            true => o.has_room(device, self.staged),
            false => !self.staged,
        };
        way && self.variant.fits(device, &o.extents(device, self.staged))
    }

    pub fn needs_scratch(&self) -> bool {
        self.staged || matches!(self.variant, Variant::Coop { .. })
    }

    pub fn parse(name: &str) -> Option<Kernel> {
        let (name, staged) = name.strip_prefix("staged ").map_or((name, false), |rest| (rest, true));
        Some(Kernel { variant: Variant::parse(name)?, staged })
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.staged { "staged " } else { "" }, self.variant)
    }
}

/// The scratch space of a kernel: what products of one node share, and what this one uses.
pub(super) struct Scratch {
    pub shared: [Option<usize>; 2],
    pub next: usize,
    pub used: Vec<(Place, u64)>,
}

/// What products keep in scratch space, one after the other in the same.
#[derive(Clone, Copy)]
pub(super) enum Shared {
    /// Sums of matrix units.
    Sums,
    /// A dequantised weight.
    Plain,
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
