//! Which kernels on matrix units suit a device and a product.

use super::candidates::{Extents, Running};
use super::variant::{CoopTile, Variant};
use crate::graph::{Cooperative, DeviceProfile, MatrixShape, SharedMatrices};

/// Rows and columns, and subgroups down and across.
type Shape = ((u32, u32), (u32, u32));

/// Tiles in workgroup memory, most hopeful first, and whether the next block is loaded ahead.
const TILES: [(Shape, bool); 8] = [
    (((128, 128), (2, 2)), true),
    (((128, 128), (2, 2)), false),
    (((128, 128), (4, 2)), true),
    (((64, 64), (2, 2)), true),
    (((64, 64), (2, 2)), false),
    (((128, 64), (2, 2)), true),
    (((64, 128), (2, 2)), true),
    (((32, 32), (2, 2)), false),
];

/// The same for matrices that are not square: Intel's, whose subgroups of 32 share 128 registers. Sums take eight of them for a matrix,
/// so that subgroups own little, and little of the next block has room beside them.
const OBLONG_TILES: [(Shape, bool); 8] = [
    (((64, 128), (4, 4)), false),
    (((64, 64), (4, 2)), false),
    (((128, 128), (8, 4)), true),
    (((64, 64), (4, 4)), true),
    (((64, 64), (4, 4)), false),
    (((64, 64), (8, 4)), false),
    (((32, 64), (2, 2)), false),
    (((32, 32), (2, 2)), true),
];

/// How many of either list turn operands with k outermost too, where there are such. RADV loads a matrix from lines that do not run along
/// k in sixteen instructions instead of two; NVIDIA's GPUs have an instruction that turns it (ldmatrix.trans).
const TURNED: usize = 5;

/// The depth of all.
const DEPTH: u32 = 32;

/// Tiles for the low-rank products of adapters, most hopeful first, with their depth: what is long is read once.
const LOW_RANK_TILES: [(Shape, u32); 8] = [
    (((16, 128), (1, 4)), DEPTH),
    (((16, 128), (1, 4)), 2 * DEPTH),
    (((32, 128), (1, 4)), DEPTH),
    (((64, 128), (2, 2)), DEPTH),
    (((128, 32), (4, 1)), DEPTH),
    (((128, 64), (4, 1)), DEPTH),
    (((16, 64), (1, 2)), DEPTH),
    (((64, 64), (2, 2)), DEPTH),
];

/// The same for matrices that are not square: with more of the next block in an invocation, Intel's compiler spills by the hundred.
const OBLONG_LOW_RANK_TILES: [(Shape, u32); 4] = [
    (((16, 64), (1, 4)), DEPTH),
    (((32, 64), (2, 4)), DEPTH),
    (((64, 64), (4, 4)), DEPTH),
    (((64, 32), (4, 2)), DEPTH),
];

/// How many of the other tiles, of those that load ahead, are measured with scales that follow what is met.
const AHEAD_RUNNING: usize = 3;

/// Rows that a product must have for these tiles to be worth a measurement, but for a low-rank one.
const ROWS: usize = 33;

/// Floats that an invocation sums in cooperative matrices: with operands and addresses they should stay below the 255 registers
/// that GPUs have at most.
const SUMS: u32 = 128;

/// Matrices of sums that a subgroup holds where they are not square.
const OBLONG_SUMS: u32 = 4;

/// All tiles, for the key of what was measured.
pub(super) fn tiles() -> String {
    format!("{TILES:?}{OBLONG_TILES:?}{LOW_RANK_TILES:?}{OBLONG_LOW_RANK_TILES:?}")
}

/// What a device with matrix units can try for a product.
pub(super) fn candidates(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
    let Some(Cooperative { shape, lanes }) = device.cooperative else { return Vec::new() };
    let tiled = device.shared_matrices.into_iter().flat_map(|shared| {
        let of = move |((rows, cols), (down, across)): Shape, depth| {
            let (ahead, turned, running) = (false, false, false);
            CoopTile { rows, cols, down, across, depth, shape, lanes, shared, ahead, turned, running }
        };
        let others = if shape.is_square() { &TILES } else { &OBLONG_TILES };
        let scaled_before = others.iter().enumerate().flat_map(move |(n, &(tile, ahead))| {
            let plain = CoopTile { ahead, ..of(tile, DEPTH) };
            let turned = (extents.outer && n < TURNED).then_some(CoopTile { turned: true, ..plain });
            [Some(plain), turned].into_iter().flatten()
        });
        let running: Vec<(Shape, u32)> = match extents.running {
            // Metal cannot multiply a matrix by a number
            _ if shared != SharedMatrices::Groups => Vec::new(),
            Running::Neither => Vec::new(),
            Running::Both if shape.is_square() => LOW_RANK_TILES.to_vec(),
            Running::Both => OBLONG_LOW_RANK_TILES.to_vec(),
            Running::Rows => {
                let ahead = others.iter().filter(|(_, ahead)| *ahead).take(AHEAD_RUNNING);
                ahead.map(|&(tile, _)| (tile, DEPTH)).collect()
            }
        };
        let running = running.into_iter().map(move |(tile, depth)| {
            Variant::CoopTiled(CoopTile { ahead: true, running: true, ..of(tile, depth) })
        });
        let filled = |tile: &Variant| tile.is_filled(extents.rows, extents.cols);
        scaled_before.map(Variant::CoopTiled).chain(running.filter(filled))
    });
    tiled.chain(from_storage(shape, lanes)).collect()
}

/// Without workgroup memory.
fn from_storage(shape: MatrixShape, lanes: u32) -> impl Iterator<Item = Variant> {
    // of the others four matrices of sums, see OBLONG_SUMS
    let tiles: &[(u32, u32)] = match (shape.is_square(), shape.m) {
        (true, 16) => &[(64, 64), (32, 64), (32, 32)],
        (true, _) => &[(32, 32), (16, 32)],
        (false, _) => &[(2 * shape.m, 2 * shape.n)],
    };
    tiles
        .iter()
        .map(move |&(rows, cols)| Variant::Coop { rows, cols, shape, lanes })
        .collect::<Vec<_>>()
        .into_iter()
}

/// Whether the device can run such a kernel, and the product suits it.
pub(super) fn fits(variant: &Variant, device: &DeviceProfile, extents: &Extents) -> bool {
    match *variant {
        Variant::Coop { rows, cols, shape, lanes } => {
            let whole = |extent: usize, of: u32| extent > 0 && extent.is_multiple_of(of as usize);
            device.cooperative == Some(Cooperative { shape, lanes })
                && extents.matrix
                && whole(extents.rows, rows)
                && whole(extents.cols, cols)
                && whole(extents.k, shape.k)
        }
        Variant::CoopTiled(tile @ CoopTile { shape, lanes, shared, turned, running, .. }) => {
            let few_sums = || {
                let (rows, cols) = tile.own();
                let most = if shape.is_square() { SUMS * lanes } else { OBLONG_SUMS * shape.m * shape.n };
                rows * cols <= most
            };
            let rows_enough = extents.rows >= ROWS;
            let suits = match (running, extents.running) {
                (true, Running::Neither) => false,
                (true, Running::Both) => true,
                (true, Running::Rows) => rows_enough,
                (false, _) => extents.halves && rows_enough,
            };
            tile.sound()
                && suits
                && device.shared_matrices == Some(shared)
                && device.cooperative == Some(Cooperative { shape, lanes })
                && (extents.outer || !turned)
                && few_sums()
                && variant.invocations() <= device.max_workgroup_invocations
                && variant.workgroup_bytes() <= device.max_workgroup_storage
        }
        _ => false,
    }
}
