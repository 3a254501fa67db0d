//! Which kernels of the families suit a device and a launch.

use super::kernel::{Kernel, SUM_HEADS};
use super::strips::{Staging, Strips};
use super::variant::{FORWARD, KEY_VALUE, Pass, QUERY, SHARED, Variant};
use crate::graph::{Cooperative, DeviceProfile};
use crate::ops::scaled_half::{MAGNITUDES, POWER_OF_TWO, ROUND_SCALED};

/// The kernels' text, tiles and candidates, for the key of what was measured.
pub fn source() -> String {
    let halves = [MAGNITUDES, ROUND_SCALED, POWER_OF_TWO];
    let shaders = [&FORWARD[..], &QUERY, &KEY_VALUE, &SHARED, &halves, &[SUM_HEADS]].concat();
    let candidates = DeviceProfile::kinds().map(|device| Kernel::all(&device));
    shaders.iter().map(|s| s.source).collect::<String>()
        + &format!("{TILES:?}{STRIPS:?}{OBLONG_STRIPS:?}{candidates:?}")
}

const fn tiled((rows, block): (u32, u32), (per_rows, per_cols): (u32, u32), depth: u32) -> Variant {
    Variant::Tiled { rows, block, per_rows, per_cols, depth, resident: false }
}

const fn resident((rows, block): (u32, u32), depth: u32) -> Variant {
    Variant::Tiled { rows, block, per_rows: 4, per_cols: 4, depth, resident: true }
}

/// What a GPU chooses from, most hopeful first. Those that stage eight deep are for Intel's GPUs, whose invocations have 128 registers
/// in subgroups of eight: longer chunks, unrolled, go through memory there.
pub(super) const TILES: [Variant; 13] = [
    tiled((64, 32), (4, 4), 16),
    tiled((32, 64), (4, 4), 16),
    tiled((32, 32), (4, 4), 16),
    tiled((64, 64), (4, 4), 16),
    tiled((64, 64), (8, 4), 16),
    tiled((64, 32), (8, 4), 16),
    resident((32, 64), 8),
    tiled((32, 64), (4, 4), 8),
    resident((64, 32), 16),
    resident((32, 64), 16),
    tiled((32, 32), (4, 4), 32),
    resident((32, 32), 32),
    tiled((16, 64), (4, 4), 16),
];

/// Rows, block, and subgroups down and across that matrix units choose from, most hopeful first, each with blocks
/// staged in workgroup memory, one way or both, of these with rows that stay with the subgroups and not, and with blocks in storage; the
/// last ones are of subgroups of eight.
///
/// Straight from storage every subgroup loads the whole block by itself, and what a matrix needs of a line that does not run along
/// its inner dimension comes one element at a time. Staged, the block is loaded once, in whole groups, for two more barriers at most.
const STRIPS: [((u32, u32), (u32, u32)); 10] = [
    ((64, 32), (4, 1)),
    ((64, 32), (2, 1)),
    ((128, 32), (4, 1)),
    ((64, 64), (4, 1)),
    ((64, 32), (2, 2)),
    ((32, 32), (2, 1)),
    ((32, 64), (2, 2)),
    ((32, 32), (2, 2)),
    ((16, 16), (2, 1)),
    ((8, 32), (1, 2)),
];

/// The same for matrices that are not square: Intel's, whose subgroups of 32 share 128 registers.
const OBLONG_STRIPS: [((u32, u32), (u32, u32)); 6] = [
    ((32, 64), (4, 4)),
    ((64, 32), (8, 2)),
    ((32, 32), (4, 2)),
    ((64, 32), (8, 1)),
    ((32, 32), (4, 1)),
    ((16, 16), (2, 1)),
];

/// Matrices of scores, results and rows that stay, as [`Strips::sums`] counts them, that a subgroup holds there, of eight registers each.
const OBLONG_SUMS: u32 = 10;

/// Floats that an invocation holds in cooperative matrices, as [`Strips::sums`] counts them: see [`SUMS`].
const MATRIX_SUMS: u32 = 160;

/// Floats of a result that an invocation sums: with its scores and addresses they should stay below the 255 registers that
/// GPUs have at most.
const SUMS: u32 = 128;

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    pub pass: Pass,
    pub head_dim: usize,
    /// Rows of queries, or of keys in [`Pass::GradientKeyValue`].
    pub rows: usize,
    /// The gradient is turned back by rotary angles before it is stored.
    pub turned: bool,
    /// What divides the rows of every tensor, where matrix units can read them: f16, or copied to it, and in one binding
    /// each.
    pub matrix: Option<usize>,
}

fn on_cpu(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
    // tiles cost more in barriers than they save there, and compile for seconds
    let Some(lanes) = device.vector_lanes() else { return vec![Variant::Rows] };
    // with more rows a key serves more of them, and the unrolled kernel is longer
    let (per, uniform): (&[u32], &[(u32, u32)]) = match extents.head_dim {
        0..=64 => (&[2, 1, 4], &[(2, 4), (2, 2), (4, 2)]),
        65..=128 => (&[1, 2], &[(2, 2), (1, 4), (1, 2)]),
        _ => (&[1], &[(1, 2), (1, 1)]),
    };
    let broadcast = per.iter().map(|&per| Variant::Lanes { lanes, per });
    let uniform = uniform.iter().map(|&(per, keys)| Variant::Uniform { lanes, per, keys });
    // llvmpipe of today broadcasts among 16 lanes in a loop: one, for drivers that do better
    if lanes >= 16 { uniform.chain(broadcast.take(1)).collect() } else { broadcast.chain(uniform).collect() }
}

fn on_gpu(extents: &Extents) -> Vec<Variant> {
    let default = match (extents.rows, extents.head_dim, extents.pass) {
        // few rows: many invocations share each
        (..=16, _, _) => tiled((16, 64), (4, 4), 16),
        // there are fewer KV heads than heads, and a key's result is twice as large
        (_, ..=96, Pass::GradientKeyValue) => tiled((32, 32), (4, 4), 16),
        (_, ..=96, _) => tiled((64, 32), (4, 4), 16),
        // a wide head needs more invocations to share a row's result
        _ => tiled((32, 64), (4, 4), 16),
    };
    let mut all = vec![default];
    all.extend(TILES.into_iter().filter(|v| *v != default));
    // beyond that a row's operands and sums do not stay in registers: an invocation has 128 to 256
    let tensors = match extents.pass {
        Pass::Forward => 2,
        Pass::GradientQuery => 3,
        Pass::GradientKeyValue => 4,
    };
    if tensors * extents.head_dim <= 192 {
        all.push(Variant::Rows);
    }
    all
}

pub(super) fn on_matrix_units(Cooperative { shape, lanes }: Cooperative) -> impl Iterator<Item = Variant> {
    let strips: &[_] = if shape.is_square() { &STRIPS } else { &OBLONG_STRIPS };
    strips.iter().flat_map(move |&((rows, block), (down, across))| {
        let kinds = [
            (Staging::BothWays, true),
            (Staging::Block, true),
            (Staging::BothWays, false),
            (Staging::Block, false),
            (Staging::None, false),
        ];
        kinds.map(|(staging, resident)| {
            Variant::Coop(Strips { rows, block, down, across, shape, lanes, staging, resident })
        })
    })
}

impl Variant {
    /// Every variant that some pass takes on such a device, for tests that run them all.
    pub fn all(device: &DeviceProfile) -> Vec<Variant> {
        let mut all: Vec<Variant> = Vec::new();
        let passes = [Pass::GradientKeyValue, Pass::GradientQuery, Pass::Forward];
        for (pass, head_dim) in
            passes.into_iter().flat_map(|pass| [16, 32, 64, 128, 256].map(|dim| (pass, dim)))
        {
            let extents = Extents { pass, head_dim, rows: 512, turned: false, matrix: Some(16) };
            let candidates = Variant::candidates(device, &extents);
            all.extend(candidates.into_iter().filter(|v| !all.contains(v)).collect::<Vec<_>>());
        }
        all
    }

    /// Variants that the device can run; the default first.
    pub fn candidates(device: &DeviceProfile, extents: &Extents) -> Vec<Variant> {
        let mut all = if device.cpu { on_cpu(device, extents) } else { on_gpu(extents) };
        let units = device.cooperative.into_iter().flat_map(on_matrix_units);
        // where they are hardware they are the most hopeful, and measuring ends after a while
        let first = if device.cpu { all.len() } else { 1 };
        all.splice(first..first, units);
        all.retain(|v| v.fits(device, extents));
        all
    }

    /// Whether the device can run it for such a head.
    pub fn fits(&self, device: &DeviceProfile, extents: &Extents) -> bool {
        match *self {
            Variant::Lanes { lanes, .. } | Variant::Uniform { lanes, .. } => {
                device.vector_lanes() == Some(lanes)
            }
            Variant::Rows => true,
            Variant::Tiled { .. } => {
                self.invocations() <= device.max_workgroup_invocations
                    && self.workgroup_bytes(extents) <= device.max_workgroup_storage
                    && self.sums(extents) <= SUMS
            }
            Variant::Coop(strips @ Strips { shape, lanes, staging, .. }) => {
                self.sound()
                    // there each operand is needed one way alone
                    && (staging != Staging::BothWays || extents.pass != Pass::Forward)
                    && device.shared_matrices.is_some()
                    && device.cooperative == Some(Cooperative { shape, lanes })
                    && extents.matrix.is_some_and(|rows| rows.is_multiple_of(shape.alignment() as usize))
                    && extents.head_dim.is_multiple_of(shape.k as usize)
                    && strips.span(extents.head_dim as u32, extents.turned).is_some()
                    && self.invocations() <= device.max_workgroup_invocations
                    && self.workgroup_bytes(extents) <= device.max_workgroup_storage
                    && match shape.is_square() {
                        true => self.sums(extents) <= MATRIX_SUMS,
                        false => self.sums(extents) * lanes <= OBLONG_SUMS * shape.m * shape.n,
                    }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{MatrixShape, SharedMatrices};

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::GradientQuery, Pass::GradientKeyValue];

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
            for pass in PASSES {
                for head_dim in (4..=256).step_by(4) {
                    for rows in [1, 16, 17, 500] {
                        let turned = pass != Pass::Forward && head_dim % 8 == 0;
                        let extents = Extents { pass, head_dim, rows, turned, matrix: None };
                        let default = if cpu { on_cpu(&weakest, &extents)[0] } else { on_gpu(&extents)[0] };
                        let candidates = Variant::candidates(&weakest, &extents);
                        assert_eq!(candidates.first(), Some(&default), "{extents:?}");
                        assert!(cpu || candidates.len() > 1, "{extents:?}");
                    }
                }
            }
        }
    }

    /// On the subgroups and matrices of most GPUs there is something to choose from for every pass of the usual heads.
    #[test]
    fn matrix_units_have_variants_for_the_usual_heads() {
        let [narrow, oblong] = [8, 16].map(|n| (MatrixShape { m: 8, n, k: 16 }, 32));
        let square = [(8, 32), (16, 32), (16, 64)].map(|(size, lanes)| (MatrixShape::square(size), lanes));
        for (shape, lanes) in square.into_iter().chain([narrow, oblong]) {
            let device = DeviceProfile {
                cooperative: Some(Cooperative { shape, lanes }),
                shared_matrices: Some(SharedMatrices::Elements),
                // Intel's have more workgroup memory
                max_workgroup_storage: if shape.is_square() { 32 << 10 } else { 64 << 10 },
                ..DeviceProfile::typical_gpu()
            };
            for (pass, head_dim) in PASSES.into_iter().flat_map(|pass| [(pass, 64), (pass, 128)]) {
                let turned = pass != Pass::Forward;
                let extents = Extents { pass, head_dim, rows: 512, turned, matrix: Some(16) };
                let candidates = Variant::candidates(&device, &extents);
                let mut units = 0;
                let mut tiles = Vec::new();
                for variant in &candidates {
                    let Variant::Coop(Strips { rows, block, down, across, .. }) = *variant else { continue };
                    units += 1;
                    if !tiles.contains(&(rows, block, down, across)) {
                        tiles.push((rows, block, down, across));
                    }
                }
                assert!(units >= 2, "{shape} {lanes} {extents:?}: {candidates:?}");
                let few = shape.n == 8 && shape.k == 16 && head_dim == 128;
                assert!(
                    tiles.len() >= if few { 1 } else { 2 },
                    "{shape} {lanes} {extents:?}: {candidates:?}"
                );
                let others = Variant::candidates(&device, &Extents { matrix: None, ..extents });
                assert_eq!(
                    others.len() + units,
                    candidates.len(),
                    "what matrix units cannot read they do not"
                );
            }
        }
    }

    #[test]
    fn matrices_lie_within_heads_and_tensors() {
        let units = Cooperative { shape: MatrixShape { m: 8, n: 8, k: 16 }, lanes: 32 };
        let device = DeviceProfile {
            cooperative: Some(units),
            shared_matrices: Some(SharedMatrices::Groups),
            max_workgroup_storage: 64 << 10,
            ..DeviceProfile::typical_gpu()
        };
        let count = |head_dim, rows| {
            let extents =
                Extents { pass: Pass::Forward, head_dim, rows: 512, turned: false, matrix: Some(rows) };
            let candidates = Variant::candidates(&device, &extents);
            candidates.iter().filter(|v| matches!(v, Variant::Coop(_))).count()
        };
        assert!(count(64, 16) > 0 && count(80, 16) > 0);
        assert_eq!([count(72, 16), count(64, 8)], [0, 0], "a step of sixteen would go beyond");
    }

    #[test]
    fn wide_heads_take_tiles_whose_sums_stay_in_registers() {
        let device = DeviceProfile {
            max_workgroup_invocations: 1024,
            max_workgroup_storage: 48 << 10,
            ..DeviceProfile::default()
        };
        let fits = |pass, head_dim| {
            let extents = Extents { pass, head_dim, rows: 512, turned: true, matrix: None };
            tiled((64, 32), (4, 4), 16).fits(&device, &extents)
        };
        assert!(fits(Pass::Forward, 256) && fits(Pass::GradientKeyValue, 128));
        assert!(!fits(Pass::GradientKeyValue, 256));
    }
}
