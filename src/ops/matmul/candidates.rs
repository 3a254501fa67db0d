//! Which kernels of the family suit a device and a product.

use super::kernel::{PAIR_FACTORS, ROUND_ROWS};
use super::matrices;
use super::variant::{COOP, COOP_TILED, FINISH, LANES, SWIZZLE, TILED, Variant, tiled};
use crate::graph::DeviceProfile;
use crate::ops::scaled_half::{MAGNITUDES, POWER_OF_TWO, ROUND_SCALED};

/// The kernels' text, tiles and candidates, for the key of what was measured.
pub fn source() -> String {
    let shared = [
        crate::shader!("shared/operands"),
        crate::shader!("shared/rows"),
        POWER_OF_TWO,
        MAGNITUDES,
        ROUND_SCALED,
        crate::shader!("shared/dropout"),
        crate::shader!("shared/quantised"),
        crate::shader!("shared/pair"),
        crate::shader!("shared/result"),
        crate::shader!("shared/glu"),
        crate::shader!("shared/tile_order"),
        crate::shader!("copy"),
        crate::shader!("glu"),
        crate::shader!("shared/glu_gradient"),
    ];
    let shaders = [LANES, TILED, COOP, COOP_TILED, FINISH, ROUND_ROWS].into_iter().chain(shared);
    let candidates = DeviceProfile::kinds().map(|device| Variant::all(&device));
    shaders.map(|s| s.source).collect::<String>()
        + &format!("{WIDE:?}{THIN:?}{}{PAIR_FACTORS:?}{SWIZZLE}{GATING}{candidates:?}", matrices::tiles())
}

/// Products of more rows than [`THIN`] serves; the last two serve 17 to 32 rows as well.
pub(super) const WIDE: [Variant; 9] = [
    tiled((64, 64), (8, 4), 16, 1),
    tiled((128, 128), (8, 8), 8, 1),
    tiled((128, 128), (8, 8), 16, 1),
    tiled((128, 64), (8, 8), 16, 1),
    tiled((64, 128), (8, 8), 16, 1),
    tiled((64, 64), (8, 8), 16, 1),
    tiled((64, 64), (4, 4), 16, 1),
    tiled((32, 64), (4, 4), 16, 1),
    tiled((32, 32), (4, 4), 16, 2),
];

/// Thin products: the low-rank sides of an adapter, a few tokens in generation.
pub(super) const THIN: [Variant; 6] = [
    tiled((16, 64), (4, 4), 8, 4),
    tiled((16, 32), (4, 4), 8, 8),
    tiled((16, 16), (4, 4), 8, 16),
    tiled((8, 64), (4, 4), 8, 8),
    tiled((16, 128), (4, 4), 16, 2),
    tiled((16, 128), (4, 4), 16, 1),
];

/// How many of the candidates are measured with the gate in their loads too.
pub(super) const GATING: usize = 2;

/// llvmpipe ends an invocation after 65,535 turns of all its loops together, without an error.
const MOST_TURNS: usize = 65_000;

/// The extents of a product as the kernels see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    pub rows: usize,
    pub cols: usize,
    /// Inner dimensions of the product and of its second pair (0: none).
    pub k: usize,
    pub k2: usize,
    /// Matrix units can read the operands: f16, as they are stored.
    pub matrix: bool,
    /// Or from tiles in workgroup memory: f16, or what f16 holds well enough, as it does weights in blocks.
    pub halves: bool,
    /// An operand has k outermost.
    pub outer: bool,
    /// What of the operands matrix units can scale as they meet it.
    pub running: Running,
}

/// Operands that matrix units can take in f16, each times the power of two that suits the largest magnitude that a workgroup has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Running {
    #[default]
    Neither,
    /// Those of a low-rank product, or of a weight's gradient.
    Both,
    /// Activations or their gradients, beside a weight that goes as it is.
    Rows,
}

fn on_cpu(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
    let (rows, cols) = (extents.rows, extents.cols);
    let broadcast = device.vector_lanes();
    if let Some(lanes @ 16..) = broadcast {
        return on_wide_cpu(lanes, extents);
    }
    let lanes = broadcast.unwrap_or(8);
    // 32 rows per tile are the default: they compile fast; fewer where the product is thin or would leave a core idle
    let tiles = |height: u32| rows.div_ceil(height as usize) * cols.div_ceil(4 * lanes as usize);
    let best =
        [32, 16, 8].into_iter().find(|&h| rows > h as usize / 2 && tiles(h) >= 8).unwrap_or(8).max(lanes);
    // no taller than the product: three adapters of rank 8 in one have 24 rows
    let best = best.min((rows as u32).next_multiple_of(lanes.max(8)));
    let other = if best > 8 && best > lanes { (best / 2).next_multiple_of(lanes.max(4)) } else { 2 * best };
    let variant = |rows, uniform, unroll| Variant::Lanes { rows, lanes, uniform, unroll };
    let mut all = vec![
        variant(best, broadcast.is_none(), 1),
        variant(best, broadcast.is_none(), 2),
        variant(best, true, 2),
        variant(other, broadcast.is_none(), 1),
        variant(best, true, 1),
        variant(other, true, 2),
    ];
    // taller ones load columns less often; longer turns than these outgrow the processor's cache of instructions
    let tall = [(64, 1), (64, 2), (128, 1)].into_iter();
    let tall = tall.filter(|&(height, _)| rows >= height as usize && tiles(height) >= 8);
    all.extend(tall.map(|(height, unroll)| variant(height, broadcast.is_none(), unroll)));
    let mut seen = Vec::new();
    all.retain(|v| {
        !seen.contains(v) && {
            seen.push(*v);
            true
        }
    });
    all
}

/// For subgroups of 16 and more; the broadcast is for drivers that have a better one than llvmpipe, which loops over the lanes.
fn on_wide_cpu(lanes: u32, extents: &Extents) -> Vec<Variant> {
    let &Extents { rows, cols, .. } = extents;
    let height = [32, 16].into_iter().find(|&h| rows > h / 2).unwrap_or(8).min(rows.next_multiple_of(8));
    // many subgroups share the rows; not so many that columns lie beyond the product, or that a core has nothing to do
    let suits = |&subgroups: &u32| {
        let tile = 4 * (lanes * subgroups) as usize;
        let tiles = rows.div_ceil(height) * cols.div_ceil(tile);
        subgroups == 1 || (cols.next_multiple_of(tile) * 7 <= cols * 8 && tiles >= 4)
    };
    let rows = height as u32;
    let workgroup = |subgroups, unroll| {
        // as many turns between barriers whatever a turn takes, as far as 32 rows of f32 fit
        let depth = if unroll == 1 { 32 } else { 64 };
        Variant::Workgroup { rows, lanes, subgroups, depth, unroll }
    };
    let widest: Vec<u32> = [8, 4, 2, 1].into_iter().filter(suits).take(2).collect();
    let shared = widest.iter().map(|&subgroups| workgroup(subgroups, 1));
    // more groups of four per turn write a row's sums less often, taller tiles load columns less often; what that gains, if anything, is
    // the processor's and the product's: for the widest alone
    let deeper = widest.first().into_iter().flat_map(|&subgroups| {
        let unrolled = if rows == 32 { &[2, 4][..] } else { &[2] };
        let tall = Variant::Workgroup { rows: 64, lanes, subgroups, depth: 32, unroll: 2 };
        let four_tiles = extents.rows.div_ceil(64) * cols.div_ceil(4 * (lanes * subgroups) as usize) >= 4;
        let tall = (rows == 32 && four_tiles).then_some(tall);
        unrolled.iter().map(move |&unroll| workgroup(subgroups, unroll)).chain(tall)
    });
    let shared = shared.chain(deeper);
    let uniform = [2, 4, 1].map(|unroll| Variant::Lanes { rows, lanes, uniform: true, unroll });
    let broadcast = Variant::Lanes { rows: rows.next_multiple_of(lanes), lanes, uniform: false, unroll: 1 };
    // unrolled by four, taller tiles outgrow the processor's cache of instructions
    let few = uniform.into_iter().filter(|v| rows <= 8 || !matches!(v, Variant::Lanes { unroll: 4, .. }));
    shared.chain(few).chain([broadcast]).collect()
}

/// Rows of a broadcast on GPUs: with four columns of each, an invocation's sums stay in registers.
const BROADCAST_ROWS: u32 = 32;

fn on_gpu(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
    let families: [&[Variant]; 2] = match extents.rows {
        ..=16 => [&THIN, &[]],
        17..=32 => [&WIDE[7..], &THIN[..4]],
        _ => [&WIDE, &[]],
    };
    let tiles = families.into_iter().flatten().copied();
    // where workgroup memory is slow: rows reach the invocations by subgroup operations
    let lanes = device.subgroup.filter(|&lanes| lanes >= 8 && BROADCAST_ROWS.is_multiple_of(lanes));
    let broadcast = lanes.filter(|_| extents.rows > BROADCAST_ROWS as usize);
    let broadcast =
        broadcast.map(|lanes| Variant::Lanes { rows: BROADCAST_ROWS, lanes, uniform: false, unroll: 1 });
    tiles.chain(broadcast).collect()
}

impl Variant {
    /// Every variant of the family that some product takes on such a device, for tests that run them all.
    pub fn all(device: &DeviceProfile) -> Vec<Variant> {
        let mut all: Vec<Variant> = Vec::new();
        let kinds = [8, 16, 32, 512].map(|rows| (rows, Running::Both));
        for (rows, running) in kinds.into_iter().chain([(512, Running::Rows)]) {
            let (cols, k, k2) = (512, 512, 0);
            let extents = Extents { rows, cols, k, k2, matrix: true, halves: true, outer: true, running };
            let candidates = Variant::candidates(device, &extents);
            all.extend(candidates.into_iter().filter(|v| !all.contains(v)).collect::<Vec<_>>());
        }
        all
    }

    /// Variants that the device can run, for a product of so many rows and columns; the default first.
    pub fn candidates(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
        let mut all = if device.cpu { on_cpu(device, extents) } else { on_gpu(device, extents) };
        all.extend(matrices::candidates(device, extents));
        all.retain(|v| v.fits(device, extents));
        all
    }

    /// Whether the device can run it, and the inner dimension suits it.
    pub fn fits(&self, device: &DeviceProfile, extents: &Extents) -> bool {
        let divided = |unroll: u32| {
            let divides = |k: usize| k.div_ceil(4).is_multiple_of(unroll as usize);
            divides(extents.k) && divides(extents.k2)
        };
        match *self {
            Variant::Lanes { lanes, uniform, unroll, .. } => {
                let broadcasts = device.vector_lanes().or(device.subgroup.filter(|_| !device.cpu));
                (uniform || broadcasts == Some(lanes)) && divided(unroll)
            }
            Variant::Workgroup { lanes, unroll, .. } => {
                device.cpu
                    && divided(unroll)
                    && device.vector_lanes() == Some(lanes)
                    && self.turns(extents) <= MOST_TURNS
                    && self.invocations() <= device.max_workgroup_invocations
                    && self.workgroup_bytes() <= device.max_workgroup_storage
            }
            Variant::Coop { .. } | Variant::CoopTiled(_) => matrices::fits(self, device, extents),
            Variant::Tiled { .. } => {
                self.invocations() <= device.max_workgroup_invocations
                    && self.workgroup_bytes() <= device.max_workgroup_storage
            }
        }
    }

    /// Turns of all loops of an invocation of [`Variant::Workgroup`].
    fn turns(&self, extents: &Extents) -> usize {
        let Variant::Workgroup { rows, depth, .. } = *self else { return 0 };
        // as if not unrolled, which has more
        let k4 = extents.k.div_ceil(4);
        let staging = (rows * depth).div_ceil(self.invocations()) as usize;
        k4 + k4.div_ceil(depth as usize) * (1 + staging) + extents.k2.div_ceil(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 KiB of workgroup memory and 256 invocations are what every device has.
    #[test]
    fn the_defaults_fit_every_device() {
        for cpu in [false, true] {
            let weakest = DeviceProfile {
                cpu,
                max_workgroup_invocations: 256,
                max_workgroup_storage: 16 << 10,
                ..DeviceProfile::default()
            };
            for rows in [1, 8, 16, 17, 32, 33, 500] {
                let extents = Extents { rows, cols: 64, k: 37, ..Extents::default() };
                let default = if cpu { on_cpu(&weakest, &extents)[0] } else { on_gpu(&weakest, &extents)[0] };
                let candidates = Variant::candidates(&weakest, &extents);
                assert!(candidates.len() > 1);
                assert_eq!(candidates[0], default);
            }
        }
    }

    /// The tiles of a product of so many columns, on a device with subgroups of 16.
    fn shared_tiles(rows: usize, cols: usize, k: usize) -> Vec<(usize, usize)> {
        let device = DeviceProfile {
            cpu: true,
            subgroup: Some(16),
            max_workgroup_invocations: 1024,
            max_workgroup_storage: 32 << 10,
            ..DeviceProfile::default()
        };
        let candidates = Variant::candidates(&device, &Extents { rows, cols, k, ..Extents::default() });
        let shared = |v: &&Variant| matches!(v, Variant::Workgroup { unroll: 1, .. });
        candidates.iter().filter(shared).map(Variant::tile).collect()
    }

    #[test]
    fn wide_subgroups_share_rows_as_widely_as_the_columns_go() {
        assert_eq!(shared_tiles(512, 1024, 1024), [(32, 512), (32, 256)]);
        assert_eq!(shared_tiles(512, 768, 256), [(32, 256), (32, 128)]);
        assert_eq!(shared_tiles(512, 576, 576), [(32, 128), (32, 64)]);
        // a low-rank product: no core without a tile
        assert_eq!(shared_tiles(8, 512, 512), [(8, 128), (8, 64)]);
    }

    #[test]
    fn no_invocation_takes_more_turns_than_llvmpipe_grants() {
        let vocabulary = 151_936;
        assert_eq!(shared_tiles(512, 1024, vocabulary), [(32, 512), (32, 256)]);
        // few invocations stage for many turns: the other kernels serve
        assert_eq!(shared_tiles(512, 576, vocabulary), []);
    }

    #[test]
    fn unrolled_variants_need_an_inner_dimension_that_they_divide() {
        let device = DeviceProfile { cpu: true, subgroup: Some(8), ..DeviceProfile::default() };
        let names = |k, k2| {
            let extents = Extents {
                rows: 512,
                cols: 512,
                k,
                k2,
                matrix: true,
                halves: true,
                outer: true,
                running: Running::Rows,
            };
            Variant::candidates(&device, &extents).iter().map(Variant::to_string).collect::<Vec<_>>()
        };
        let unrolled = |k, k2| names(k, k2).iter().any(|n| n.contains("unroll=2"));
        assert!(unrolled(256, 0) && unrolled(256, 8) && unrolled(30, 0));
        assert!(!unrolled(256, 4) && !unrolled(252, 8));
        assert_eq!(names(256, 8)[0], "broadcast 32x32 unroll=1");
    }
}
