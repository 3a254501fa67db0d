//! The family of kernels behind a product: their names, tiles and defines.

use crate::graph::{Dispatch, MatrixShape, Shader, SharedMatrices};
use crate::ops::pair;
use std::fmt;

pub(super) const LANES: Shader = crate::shader!("matmul_lanes");
pub(super) const TILED: Shader = crate::shader!("matmul_tiled");
pub(super) const COOP: Shader = crate::shader!("matmul_coop");
pub(super) const COOP_TILED: Shader = crate::shader!("matmul_coop_tiled");
pub(super) const FINISH: Shader = crate::shader!("matmul_finish");

/// A member of the family with its tile. Its text form is its name in the cache of measured choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// For CPU devices, by broadcast for GPUs too: `lanes` invocations own `rows` x `4 lanes` elements, without workgroup memory. The rows reach them
    /// by subgroup broadcast, or by loads that are `uniform`; `unroll` groups of four along k are taken together.
    Lanes { rows: u32, lanes: u32, uniform: bool, unroll: u32 },
    /// For CPU devices of wide vectors: `subgroups` of `lanes` invocations own `rows` x 4 columns of each; the rows reach them
    /// through workgroup memory, `depth` groups of four along k at a time, of which `unroll` are taken together.
    Workgroup { rows: u32, lanes: u32, subgroups: u32, depth: u32, unroll: u32 },
    /// For GPUs: a workgroup owns `rows` x `cols`, staged in workgroup memory `depth` deep, an invocation
    /// `per_rows` x `per_cols` of them; `split` slices of invocations share the inner dimension.
    Tiled { rows: u32, cols: u32, per_rows: u32, per_cols: u32, depth: u32, split: u32 },
    /// For matrix units: a subgroup of `lanes` owns `rows` x `cols`, in cooperative matrices of `shape`. Operands are f16 as
    /// they are stored; a second dispatch stores the result.
    Coop { rows: u32, cols: u32, shape: MatrixShape, lanes: u32 },
    /// For matrix units, from workgroup memory: a workgroup of `down` x `across` subgroups of `lanes` owns `rows` x `cols`, staged
    /// `depth` deep as f16 however its operands are stored, and stores the result itself.
    CoopTiled(CoopTile),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoopTile {
    pub rows: u32,
    pub cols: u32,
    pub down: u32,
    pub across: u32,
    pub depth: u32,
    pub shape: MatrixShape,
    pub lanes: u32,
    /// What the tiles are arrays of.
    pub shared: SharedMatrices,
    /// The next block is loaded while one is multiplied.
    pub ahead: bool,
    /// Operands with k outermost lie in the tiles with k innermost.
    pub turned: bool,
    /// What f16's range does not hold is scaled by the magnitudes that a workgroup meets, with no pass before.
    pub running: bool,
}

impl CoopTile {
    /// Rows and columns of a subgroup.
    pub fn own(&self) -> (u32, u32) {
        (self.rows / self.down, self.cols / self.across)
    }

    /// Columns of a row of matrices that leave the units together: two matrices', where a subgroup has an even number.
    fn span(&self) -> u32 {
        let double = 2 * self.shape.n;
        if self.own().1.is_multiple_of(double) { double } else { self.shape.n }
    }

    fn workgroup_bytes(&self) -> u32 {
        let CoopTile { rows, cols, down, across, depth, shape, .. } = *self;
        // as they are stored with k innermost, and outermost
        let tile = |extent: u32| 2 * (extent * (depth + 8)).max(depth * (extent + 8));
        let sums = 4 * down * across * shape.m * (self.span() + 8);
        let nf4_table = 4 * 16;
        let met = if self.running { 8 } else { 0 };
        tile(rows) + tile(cols) + sums + nf4_table + met
    }

    pub(super) fn sound(&self) -> bool {
        let CoopTile { rows, cols, down, across, depth, shape, lanes, shared, ahead, turned, running } =
            *self;
        // each invocation holds as many groups of four of a block, which it turns four by four
        let even = |extent: u32| {
            let each = if turned { 4 } else { 1 } * down * across * lanes;
            (extent * depth / 4).is_multiple_of(each)
        };
        let whole = |n: u32, of: u32| n > 0 && n <= 256 && n.is_multiple_of(of);
        (1..=8).contains(&down)
            && (1..=8).contains(&across)
            && whole(rows, down * shape.m)
            && whole(cols, across * shape.n)
            && whole(depth, shape.k)
            // a subgroup stores whole rows of a span
            && (4..=128).contains(&lanes)
            && lanes.is_multiple_of(self.span() / 4)
            && (!ahead || (even(rows) && even(cols)))
            && (!running || (ahead && !turned && shared == SharedMatrices::Groups))
    }
}

/// Row tiles that are walked together, so that their operands stay in the GPU's cache.
pub(super) const SWIZZLE: u32 = 8;

pub(super) const fn tiled(
    (rows, cols): (u32, u32),
    (per_rows, per_cols): (u32, u32),
    depth: u32,
    split: u32,
) -> Variant {
    Variant::Tiled { rows, cols, per_rows, per_cols, depth, split }
}

impl Variant {
    /// Reads a name; `None` where it names no variant of this version.
    pub fn parse(name: &str) -> Option<Variant> {
        let mut words = name.split(' ');
        let family = words.next()?;
        let tile = pair(words.next()?)?;
        let variant = match family {
            "broadcast" | "uniform" => {
                let unroll = words.next()?.strip_prefix("unroll=")?.parse::<u32>().ok()?;
                Variant::Lanes { rows: tile.0, lanes: tile.1 / 4, uniform: family == "uniform", unroll }
            }
            "workgroup" => {
                let mut number = |key| words.next()?.strip_prefix(key)?.parse::<u32>().ok();
                let (lanes, depth, unroll) = (number("lanes=")?, number("depth=")?, number("unroll=")?);
                let subgroups = (tile.1 / 4).checked_div(lanes)?;
                Variant::Workgroup { rows: tile.0, lanes, subgroups, depth, unroll }
            }
            "coop" => {
                let shape = words.next()?.strip_prefix("shape=")?.parse().ok()?;
                let lanes = words.next()?.strip_prefix("lanes=")?.parse().ok()?;
                Variant::Coop { rows: tile.0, cols: tile.1, shape, lanes }
            }
            "coop-tiled" => {
                let (down, across) = pair(words.next()?.strip_prefix("subgroups=")?)?;
                let depth = words.next()?.strip_prefix("depth=")?.parse().ok()?;
                let shape = words.next()?.strip_prefix("shape=")?.parse().ok()?;
                let lanes = words.next()?.strip_prefix("lanes=")?.parse().ok()?;
                let rest: Vec<&str> = words.collect();
                let shared = match rest.contains(&"groups") {
                    true => SharedMatrices::Groups,
                    false => SharedMatrices::Elements,
                };
                let [ahead, turned, running] =
                    ["ahead", "turned", "running"].map(|word| rest.contains(&word));
                let (rows, cols) = tile;
                Variant::CoopTiled(CoopTile {
                    rows,
                    cols,
                    down,
                    across,
                    depth,
                    shape,
                    lanes,
                    shared,
                    ahead,
                    turned,
                    running,
                })
            }
            "tiled" => {
                let per = pair(words.next()?.strip_prefix("per=")?)?;
                let mut number = |key| words.next()?.strip_prefix(key)?.parse::<u32>().ok();
                tiled(tile, per, number("depth=")?, number("split=")?)
            }
            _ => return None,
        };
        (variant.to_string() == name && variant.sound()).then_some(variant)
    }

    /// Whether the numbers make a kernel: names come from files.
    fn sound(&self) -> bool {
        match *self {
            Variant::Lanes { rows, lanes, uniform, unroll } => {
                (1..=64).contains(&lanes)
                    && (4..=128).contains(&rows)
                    && (uniform || rows.is_multiple_of(lanes))
                    && rows.is_multiple_of(4)
                    && (1..=4).contains(&unroll)
            }
            Variant::Workgroup { rows, lanes, subgroups, depth, unroll } => {
                (4..=64).contains(&rows)
                    && rows.is_multiple_of(4)
                    && (1..=64).contains(&lanes)
                    && (1..=16).contains(&subgroups)
                    && (1..=128).contains(&depth)
                    && (1..=4).contains(&unroll)
                    && depth.is_multiple_of(unroll)
            }
            Variant::Coop { rows, cols, shape, lanes } => {
                let whole = |n: u32, of: u32| n > 0 && n <= 256 && n.is_multiple_of(of);
                whole(rows, shape.m) && whole(cols, shape.n) && (4..=128).contains(&lanes)
            }
            Variant::CoopTiled(tile) => tile.sound(),
            Variant::Tiled { rows, cols, per_rows, per_cols, depth, split } => {
                let quads = |n: u32| n > 0 && n.is_multiple_of(4) && n <= 256;
                quads(rows)
                    && quads(cols)
                    && quads(per_rows)
                    && quads(per_cols)
                    && quads(depth)
                    && rows % per_rows == 0
                    && cols % per_cols == 0
                    && (1..=64).contains(&split)
            }
        }
    }

    /// Rows and columns of a workgroup's tile.
    pub fn tile(&self) -> (usize, usize) {
        match *self {
            Variant::Lanes { rows, .. } | Variant::Workgroup { rows, .. } => {
                (rows as usize, 4 * self.invocations() as usize)
            }
            Variant::Tiled { rows, cols, .. }
            | Variant::Coop { rows, cols, .. }
            | Variant::CoopTiled(CoopTile { rows, cols, .. }) => (rows as usize, cols as usize),
        }
    }

    /// Whether a product of so many rows and columns does not leave most of a tile empty, but for tiles of the fewest rows that there are.
    pub(super) fn is_filled(&self, rows: usize, cols: usize) -> bool {
        let (own_rows, own_cols) = self.tile();
        let most = |extent: usize| extent.next_power_of_two().max(16);
        own_rows <= most(rows) && own_cols <= most(cols)
    }

    pub fn shader(&self) -> Shader {
        match self {
            Variant::Lanes { .. } | Variant::Workgroup { .. } => LANES,
            Variant::Tiled { .. } => TILED,
            Variant::Coop { .. } => COOP,
            Variant::CoopTiled { .. } => COOP_TILED,
        }
    }

    pub fn define(&self, dispatch: Dispatch) -> Dispatch {
        match *self {
            Variant::Lanes { rows, lanes, uniform, unroll } => {
                on_lanes(dispatch, (rows, lanes, 1), 0).define("UNROLL", unroll).flag("UNIFORM", uniform)
            }
            Variant::Workgroup { rows, lanes, subgroups, depth, unroll } => {
                on_lanes(dispatch, (rows, lanes, subgroups), depth)
                    .define("UNROLL", unroll)
                    .flag("UNIFORM", false)
            }
            Variant::Tiled { rows, cols, per_rows, per_cols, depth, split } => dispatch
                .define("ROWS", rows)
                .define("COLS", cols)
                .define("PER_ROWS", per_rows)
                .define("PER_COLS", per_cols)
                .define("DEPTH", depth)
                .define("SPLIT", split)
                .define("SWIZZLE", SWIZZLE),
            Variant::Coop { rows, cols, shape, lanes } => dispatch
                .define("ROWS", rows)
                .define("COLS", cols)
                .matrices(shape)
                .define("LANES", lanes)
                .define("SWIZZLE", SWIZZLE),
            Variant::CoopTiled(tile) => dispatch
                .define("ROWS", tile.rows)
                .define("COLS", tile.cols)
                .define("DOWN", tile.down)
                .define("ACROSS", tile.across)
                .define("DEPTH", tile.depth)
                .matrices(tile.shape)
                .define("LANES", tile.lanes)
                .define("SPAN", tile.span())
                .flag("VECTORS", tile.shared == SharedMatrices::Groups)
                .flag("PREFETCHED", tile.ahead)
                .flag("TURNED", tile.turned)
                .define("SWIZZLE", SWIZZLE),
        }
    }

    pub(super) fn on_matrix_units(&self) -> bool {
        matches!(self, Variant::Coop { .. } | Variant::CoopTiled(_))
    }

    /// Whether it scales its operands itself, as it meets them.
    pub fn is_running(&self) -> bool {
        matches!(self, Variant::CoopTiled(CoopTile { running: true, .. }))
    }

    /// Whether columns are loaded a turn before their use, where that can be.
    pub fn loads_ahead(&self) -> bool {
        matches!(self, Variant::Workgroup { .. })
    }

    /// Whether operands with k innermost are bound in groups of eight: such lanes load one after the other, and wider loads
    /// are fewer.
    pub fn reads_octets(&self) -> bool {
        matches!(*self, Variant::Lanes { uniform: false, unroll, .. } if unroll.is_multiple_of(2))
    }

    pub(super) fn invocations(&self) -> u32 {
        match *self {
            Variant::Lanes { lanes, .. } | Variant::Coop { lanes, .. } => lanes,
            Variant::Workgroup { lanes, subgroups, .. } => lanes * subgroups,
            Variant::CoopTiled(CoopTile { down, across, lanes, .. }) => down * across * lanes,
            Variant::Tiled { rows, cols, per_rows, per_cols, split, .. } => {
                rows / per_rows * (cols / per_cols) * split
            }
        }
    }

    /// Workgroup memory, as the shaders declare it.
    pub(super) fn workgroup_bytes(&self) -> u32 {
        match *self {
            Variant::Lanes { .. } | Variant::Coop { .. } => 0,
            Variant::Workgroup { rows, depth, .. } => 16 * rows * depth,
            Variant::CoopTiled(tile) => tile.workgroup_bytes(),
            Variant::Tiled { rows, cols, per_rows, per_cols, depth, split } => {
                let tiles = depth * split * (rows / 4 + 1 + cols / 4 + 1);
                let partials = self.invocations() / split * (split - 1) * per_rows * (per_cols / 4);
                16 * tiles.max(partials)
            }
        }
    }
}

fn on_lanes(dispatch: Dispatch, (rows, lanes, subgroups): (u32, u32, u32), depth: u32) -> Dispatch {
    dispatch.define("ROWS", rows).define("LANES", lanes).define("SUBGROUPS", subgroups).define("DEPTH", depth)
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Lanes { rows, lanes, uniform, unroll } => {
                let family = if *uniform { "uniform" } else { "broadcast" };
                write!(f, "{family} {rows}x{} unroll={unroll}", 4 * lanes)
            }
            Variant::Workgroup { rows, lanes, subgroups, depth, unroll } => {
                let cols = 4 * lanes * subgroups;
                write!(f, "workgroup {rows}x{cols} lanes={lanes} depth={depth} unroll={unroll}")
            }
            Variant::CoopTiled(tile) => {
                let CoopTile { rows, cols, down, across, depth, shape, lanes, .. } = tile;
                let groups = if tile.shared == SharedMatrices::Groups { " groups" } else { "" };
                let ahead = if tile.ahead { " ahead" } else { "" };
                let turned = if tile.turned { " turned" } else { "" };
                let running = if tile.running { " running" } else { "" };
                write!(f, "coop-tiled {rows}x{cols} subgroups={down}x{across} depth={depth}")?;
                write!(f, " shape={shape} lanes={lanes}{groups}{ahead}{turned}{running}")
            }
            Variant::Coop { rows, cols, shape, lanes } => {
                write!(f, "coop {rows}x{cols} shape={shape} lanes={lanes}")
            }
            Variant::Tiled { rows, cols, per_rows, per_cols, depth, split } => {
                write!(f, "tiled {rows}x{cols} per={per_rows}x{per_cols} depth={depth} split={split}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates::{THIN, WIDE};
    use super::*;

    #[test]
    fn names_read_back_and_others_are_refused() {
        let lanes = Variant::Lanes { rows: 16, lanes: 8, uniform: true, unroll: 2 };
        let workgroup = Variant::Workgroup { rows: 32, lanes: 16, subgroups: 4, depth: 32, unroll: 2 };
        let coop = Variant::Coop { rows: 64, cols: 32, shape: MatrixShape::square(16), lanes: 32 };
        let tile = |shared| {
            let ((rows, cols), (down, across), lanes) = ((128, 256), (2, 4), 32);
            let shape = MatrixShape { m: 8, n: 16, k: 16 };
            let groups = shared == SharedMatrices::Groups;
            let (depth, ahead, turned, running) = (32, true, !groups, groups);
            Variant::CoopTiled(CoopTile {
                rows,
                cols,
                down,
                across,
                depth,
                shape,
                lanes,
                shared,
                ahead,
                turned,
                running,
            })
        };
        let tiles = [SharedMatrices::Elements, SharedMatrices::Groups].map(tile);
        for variant in WIDE.into_iter().chain(THIN).chain([lanes, workgroup, coop]).chain(tiles) {
            assert_eq!(Variant::parse(&variant.to_string()), Some(variant));
        }
        let wrong = [
            "",
            "tiled",
            "tiled 64x64",
            "broadcast 12x0 unroll=1",
            "uniform 16x32 unroll=0",
            "workgroup 32x256 lanes=0 depth=32 unroll=1",
            "workgroup 32x260 lanes=16 depth=32 unroll=1",
            "workgroup 30x256 lanes=16 depth=32 unroll=1",
            "workgroup 32x256 lanes=16 depth=31 unroll=2",
            "tiled 64x64 per=0x4 depth=16 split=1",
            "tiled 64x64 per=8x4 depth=16 split=1 more",
            "coop 64x20 shape=16x16x16 lanes=32",
            "coop 64x32 shape=16x16 lanes=32",
            "coop 64x32 shape=16x32x16 lanes=32",
            "coop 60x32 shape=8x16x16 lanes=32",
            "coop-tiled 64x128 subgroups=2x0 depth=32 shape=16x16x16 lanes=32",
            "coop-tiled 64x120 subgroups=2x4 depth=32 shape=16x16x16 lanes=32",
            "coop-tiled 64x128 subgroups=2x4 depth=24 shape=16x16x16 lanes=32",
            "coop-tiled 64x128 subgroups=2x4 depth=32 shape=16x16x16 lanes=32 more",
            "coop-tiled 32x128 subgroups=2x4 depth=16 shape=16x16x16 lanes=32 ahead",
            "magic 8x8",
        ];
        for name in wrong {
            assert_eq!(Variant::parse(name), None, "{name}");
        }
    }
}
