//! The families of kernels behind attention and its gradient: their names, tiles and defines.

use super::candidates::Extents;
use super::strips::Strips;
use crate::graph::{Dispatch, Shader, SharedMatrices, View};
use crate::ops::pair;
use std::fmt;

/// One walk over the pairs of rows and keys; each has a family of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    Forward,
    /// dq and the rows' delta.
    GradientQuery,
    /// dk and dv.
    GradientKeyValue,
}

pub(super) const FORWARD: [Shader; 3] =
    [crate::shader!("attention"), crate::shader!("attention_tiled"), crate::shader!("attention_coop")];
pub(super) const QUERY: [Shader; 3] = [
    crate::shader!("attention_gradient_query"),
    crate::shader!("attention_tiled_gradient_query"),
    crate::shader!("attention_coop_gradient_query"),
];
pub(super) const KEY_VALUE: [Shader; 3] = [
    crate::shader!("attention_gradient_key_value"),
    crate::shader!("attention_tiled_gradient_key_value"),
    crate::shader!("attention_coop_gradient_key_value"),
];
pub(super) const SHARED: [Shader; 4] = [
    crate::shader!("shared/soft_cap"),
    crate::shader!("shared/attention"),
    crate::shader!("shared/attention_tiled"),
    crate::shader!("shared/attention_coop"),
];

/// A member of a family. Its text form is its name in the cache of measured choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// For CPU devices: an invocation owns `per` rows, `lanes` of them hand rows of keys on by subgroup broadcast.
    Lanes { lanes: u32, per: u32 },
    /// For CPU devices that load once where all lanes want the same address: an invocation owns `per` rows, and each of `lanes`
    /// loads all keys, `keys` at a time.
    Uniform { lanes: u32, per: u32, keys: u32 },
    /// An invocation owns a row; 64 of them share rows of keys in workgroup memory.
    Rows,
    /// For GPUs: a workgroup owns `rows` and meets `block` keys at a time (queries, where the rows are keys), an invocation
    /// `per_rows` x `per_cols` of their scores, of which products are staged `depth` deep; `resident` holds the rows'
    /// operands in workgroup memory all the while.
    Tiled { rows: u32, block: u32, per_rows: u32, per_cols: u32, depth: u32, resident: bool },
    /// For matrix units.
    Coop(Strips),
}

/// Invocations of [`Variant::Rows`].
const ROW_INVOCATIONS: u32 = 64;

impl Variant {
    /// Reads a name; `None` where it names no variant of this version.
    pub fn parse(name: &str) -> Option<Variant> {
        let mut words = name.split(' ');
        let variant = match words.next()? {
            "lanes" => {
                let (lanes, per) = pair(words.next()?)?;
                Variant::Lanes { lanes, per }
            }
            "uniform" => {
                let (lanes, per) = pair(words.next()?)?;
                Variant::Uniform { lanes, per, keys: words.next()?.strip_prefix("keys=")?.parse().ok()? }
            }
            "rows" => Variant::Rows,
            "tiled" => {
                let (rows, block) = pair(words.next()?)?;
                let (per_rows, per_cols) = pair(words.next()?.strip_prefix("per=")?)?;
                let depth = words.next()?.strip_prefix("depth=")?.parse().ok()?;
                let resident = words.next() == Some("resident");
                Variant::Tiled { rows, block, per_rows, per_cols, depth, resident }
            }
            "coop" => Variant::Coop(Strips::parse(name.strip_prefix("coop ")?)?),
            _ => return None,
        };
        (variant.to_string() == name && variant.sound()).then_some(variant)
    }

    /// Whether the numbers make a kernel: names come from files, and not all of [`STRIPS`] suit all subgroups.
    pub(super) fn sound(&self) -> bool {
        match *self {
            Variant::Lanes { lanes, per } => (4..=16).contains(&lanes) && (1..=4).contains(&per),
            Variant::Uniform { lanes, per, keys } => {
                (4..=16).contains(&lanes) && (1..=4).contains(&per) && (1..=16).contains(&keys)
            }
            Variant::Rows => true,
            Variant::Tiled { rows, block, per_rows, per_cols, depth, .. } => {
                let quads = |n: u32, most: u32| n > 0 && n.is_multiple_of(4) && n <= most;
                quads(rows, 128)
                    && quads(block, 128)
                    && quads(per_rows, 16)
                    && quads(per_cols, 16)
                    && quads(depth, 64)
                    && rows.is_multiple_of(per_rows)
                    && block.is_multiple_of(per_cols)
            }
            Variant::Coop(strips) => strips.sound(),
        }
    }

    /// Rows of a workgroup.
    pub fn rows(&self) -> u32 {
        match *self {
            Variant::Lanes { lanes, per } | Variant::Uniform { lanes, per, .. } => lanes * per,
            Variant::Rows => ROW_INVOCATIONS,
            Variant::Tiled { rows, .. } | Variant::Coop(Strips { rows, .. }) => rows,
        }
    }

    /// How the kernel sees q, k, v and do on a device that loads matrices from `shared`.
    pub fn view(&self, shared: Option<SharedMatrices>) -> View {
        match (self, shared) {
            (Variant::Coop(_), Some(SharedMatrices::Groups)) => View::MatrixGroups,
            (Variant::Coop(_), _) => View::Matrix,
            _ => View::Vec4,
        }
    }

    pub fn shader(&self, pass: Pass) -> Shader {
        let [by_row, tiled, coop] = match pass {
            Pass::Forward => FORWARD,
            Pass::GradientQuery => QUERY,
            Pass::GradientKeyValue => KEY_VALUE,
        };
        match self {
            Variant::Lanes { .. } | Variant::Uniform { .. } | Variant::Rows => by_row,
            Variant::Tiled { .. } => tiled,
            Variant::Coop(_) => coop,
        }
    }

    pub fn define(
        &self,
        dispatch: Dispatch,
        head_dim: usize,
        turned: bool,
        shared: Option<SharedMatrices>,
    ) -> Dispatch {
        let dispatch = dispatch.define("HEAD_DIM", head_dim as u32);
        let by_row = |lanes, per, keys, uniform| {
            let dispatch = dispatch.clone().define("LANES", lanes).define("PER", per);
            dispatch.define("KEYS", keys).flag("UNIFORM", uniform)
        };
        match *self {
            Variant::Lanes { lanes, per } => by_row(lanes, per, lanes, false),
            Variant::Uniform { lanes, per, keys } => by_row(lanes, per, keys, true),
            Variant::Rows => by_row(0, 1, 0, false),
            Variant::Tiled { rows, block, per_rows, per_cols, depth, resident } => dispatch
                .define("ROWS", rows)
                .define("BLOCK", block)
                .define("PER_ROWS", per_rows)
                .define("PER_COLS", per_cols)
                .define("DEPTH", depth)
                .define("LINES", self.lines(head_dim as u32 / 4))
                .flag("RESIDENT", resident),
            Variant::Coop(strips) => {
                let span = strips.span(head_dim as u32, turned).unwrap_or_default();
                strips.define(dispatch, span, shared)
            }
        }
    }

    pub(super) fn invocations(&self) -> u32 {
        match *self {
            Variant::Lanes { lanes, .. } | Variant::Uniform { lanes, .. } => lanes,
            Variant::Rows => ROW_INVOCATIONS,
            Variant::Tiled { rows, block, per_rows, per_cols, .. } => rows / per_rows * (block / per_cols),
            Variant::Coop(strips) => strips.invocations(),
        }
    }

    /// Floats of the results that an invocation sums; of a block's scores too where they are matrices.
    pub(super) fn sums(&self, extents: &Extents) -> u32 {
        let results = if extents.pass == Pass::GradientKeyValue { 2 } else { 1 };
        match *self {
            Variant::Tiled { block, per_rows, per_cols, .. } => {
                let share = (extents.head_dim as u32 / 4).div_ceil(block / per_cols);
                results * per_rows * 4 * share
            }
            Variant::Coop(strips) => strips.sums(extents),
            Variant::Lanes { .. } | Variant::Uniform { .. } | Variant::Rows => {
                results * extents.head_dim as u32
            }
        }
    }

    /// Groups of four of the two operands' chunks.
    fn staged(&self) -> u32 {
        match *self {
            Variant::Tiled { rows, block, depth, resident, .. } => {
                depth * (block / 4 + 1 + if resident { 0 } else { rows / 4 + 1 })
            }
            Variant::Lanes { .. } | Variant::Uniform { .. } | Variant::Rows | Variant::Coop(_) => 0,
        }
    }

    /// Whole rows of `head4` groups that are staged together: as many as the chunks' place takes.
    fn lines(&self, head4: u32) -> u32 {
        let Variant::Tiled { block, .. } = *self else { return 0 };
        let fitting = |&lines: &u32| block.is_multiple_of(lines) && lines * head4 <= self.staged();
        [64, 32, 16, 8].into_iter().find(fitting).unwrap_or(4)
    }

    /// Workgroup memory, as the shaders declare it.
    pub(super) fn workgroup_bytes(&self, extents: &Extents) -> u32 {
        let head4 = extents.head_dim as u32 / 4;
        match *self {
            Variant::Lanes { .. } | Variant::Uniform { .. } => 0,
            Variant::Rows => 2 * 16 * head4 * if head4 <= 32 { 16 } else { 8 },
            Variant::Tiled { rows, block, per_rows, per_cols, depth, resident } => {
                let over_row = block / per_cols * rows / 4;
                // halves of pairs that two invocations own
                let (across, half) = (block / per_cols, head4 / 2);
                let whole = half.is_multiple_of(across);
                let exchanged = if extents.turned && !whole { rows / per_rows * half } else { 0 };
                let tiles = self.staged().max(self.lines(head4) * head4).max(over_row).max(exchanged);
                let weights = block * (rows / 4 + 1);
                let operands = if extents.pass == Pass::Forward { 1 } else { 2 };
                let kept = (4 * head4).next_multiple_of(depth) * (rows / 4 + 1) * operands;
                16 * (tiles + weights + if resident { kept } else { 0 })
            }
            Variant::Coop(strips) => strips.workgroup_bytes(extents),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Lanes { lanes, per } => write!(f, "lanes {lanes}x{per}"),
            Variant::Uniform { lanes, per, keys } => write!(f, "uniform {lanes}x{per} keys={keys}"),
            Variant::Rows => write!(f, "rows"),
            Variant::Tiled { rows, block, per_rows, per_cols, depth, resident } => {
                let resident = if *resident { " resident" } else { "" };
                write!(f, "tiled {rows}x{block} per={per_rows}x{per_cols} depth={depth}{resident}")
            }
            Variant::Coop(strips) => write!(f, "coop {strips}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates::{TILES, on_matrix_units};
    use super::*;
    use crate::graph::{Cooperative, MatrixShape};

    #[test]
    fn names_read_back_and_others_are_refused() {
        let uniform = Variant::Uniform { lanes: 16, per: 2, keys: 4 };
        let units = on_matrix_units(Cooperative { shape: MatrixShape { m: 8, n: 16, k: 16 }, lanes: 32 });
        let units = units.filter(Variant::sound);
        let others = [Variant::Rows, Variant::Lanes { lanes: 8, per: 2 }, uniform].into_iter().chain(units);
        for variant in TILES.into_iter().chain(others) {
            assert_eq!(Variant::parse(&variant.to_string()), Some(variant));
        }
        let wrong = [
            "",
            "tiled",
            "lanes 8",
            "lanes 8x0",
            "uniform 8x2",
            "uniform 8x2 keys=0",
            "rows 8",
            "tiled 64x32",
            "tiled 64x32 per=0x4 depth=16",
            "tiled 64x30 per=4x4 depth=16",
            "tiled 64x32 per=4x4 depth=16 split=1",
            "tiled 64x32 per=4x4 depth=16 resident more",
            "coop 64x32 shape=16x16x16 lanes=32",
            "coop 64x32 subgroups=4x0 shape=16x16x16 lanes=32",
            "coop 60x32 subgroups=4x1 shape=16x16x16 lanes=32",
            "coop 64x32 subgroups=1x1 shape=16x16x16 lanes=32",
            "coop 64x32 subgroups=4x1 shape=16x16x16 lanes=32 stage",
            "coop 64x32 subgroups=4x1 shape=16x16x16 lanes=32 staged both",
            "coop 64x32 subgroups=4x1 shape=16x16x16 lanes=32 resident staged",
            // blocks begin at a workgroup's first row; the block is a whole number of steps
            "coop 8x32 subgroups=1x2 shape=8x8x16 lanes=8",
            "coop 32x8 subgroups=4x1 shape=8x8x16 lanes=8",
        ];
        for name in wrong {
            assert_eq!(Variant::parse(name), None, "{name}");
        }
    }
}
