//! The families of kernels behind attention and its gradient, and which of them a launch takes.

use crate::graph::{Cooperative, DeviceProfile, Dispatch, Shader, View};
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

const FORWARD: [Shader; 3] =
    [crate::shader!("attention"), crate::shader!("attention_tiled"), crate::shader!("attention_coop")];
const QUERY: [Shader; 3] = [
    crate::shader!("attention_gradient_query"),
    crate::shader!("attention_tiled_gradient_query"),
    crate::shader!("attention_coop_gradient_query"),
];
const KEY_VALUE: [Shader; 3] = [
    crate::shader!("attention_gradient_key_value"),
    crate::shader!("attention_tiled_gradient_key_value"),
    crate::shader!("attention_coop_gradient_key_value"),
];
const SHARED: [Shader; 3] = [
    crate::shader!("shared/attention"),
    crate::shader!("shared/attention_tiled"),
    crate::shader!("shared/attention_coop"),
];

/// The kernels' text, tiles and candidates, for the key of what was measured.
pub fn source() -> String {
    let shaders = [FORWARD, QUERY, KEY_VALUE, SHARED].concat();
    let candidates = DeviceProfile::kinds().map(|device| Variant::all(&device));
    shaders.iter().map(|s| s.source).collect::<String>() + &format!("{TILES:?}{STRIPS:?}{candidates:?}")
}

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
    /// For matrix units: of a workgroup's `rows` and `block`, `down` x `across` subgroups of `lanes` own strips of rows, and
    /// in those the matrices of `size` of every `across`-th column. Tensors are f16.
    Coop { rows: u32, block: u32, down: u32, across: u32, size: u32, lanes: u32 },
}

const fn tiled((rows, block): (u32, u32), (per_rows, per_cols): (u32, u32), depth: u32) -> Variant {
    Variant::Tiled { rows, block, per_rows, per_cols, depth, resident: false }
}

const fn resident((rows, block): (u32, u32), depth: u32) -> Variant {
    Variant::Tiled { rows, block, per_rows: 4, per_cols: 4, depth, resident: true }
}

/// What a GPU chooses from, most hopeful first.
const TILES: [Variant; 11] = [
    tiled((64, 32), (4, 4), 16),
    tiled((32, 64), (4, 4), 16),
    tiled((32, 32), (4, 4), 16),
    tiled((64, 64), (4, 4), 16),
    tiled((64, 64), (8, 4), 16),
    tiled((64, 32), (8, 4), 16),
    resident((64, 32), 16),
    resident((32, 64), 16),
    tiled((32, 32), (4, 4), 32),
    resident((32, 32), 32),
    tiled((16, 64), (4, 4), 16),
];

/// Rows, block, and subgroups down and across that matrix units choose from, most hopeful first; the last ones are of subgroups
/// of eight.
const STRIPS: [((u32, u32), (u32, u32)); 10] = [
    ((64, 32), (4, 1)),
    ((64, 64), (4, 1)),
    ((64, 32), (4, 2)),
    ((64, 32), (2, 2)),
    ((32, 32), (2, 1)),
    ((32, 64), (2, 2)),
    ((128, 32), (8, 1)),
    ((32, 32), (2, 2)),
    ((16, 16), (2, 1)),
    ((8, 32), (1, 2)),
];

/// Floats of scores and results that an invocation holds in cooperative matrices: see [`SUMS`].
const MATRIX_SUMS: u32 = 160;

/// Floats of a result that an invocation sums: with its scores and addresses they should stay below the 255 registers that
/// GPUs have at most.
const SUMS: u32 = 128;

/// Invocations of [`Variant::Rows`].
const ROW_INVOCATIONS: u32 = 64;

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    pub pass: Pass,
    pub head_dim: usize,
    /// Rows of queries, or of keys in [`Pass::GradientKeyValue`].
    pub rows: usize,
    /// The gradient is turned back by rotary angles before it is stored.
    pub turned: bool,
    /// What divides the rows of every tensor, where matrix units can read them: f16, and in one binding each.
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
    // beyond that a row's operands do not stay in registers
    if extents.head_dim <= 128 {
        all.push(Variant::Rows);
    }
    all
}

fn on_matrix_units(Cooperative { size, lanes }: Cooperative) -> impl Iterator<Item = Variant> {
    STRIPS.into_iter().map(move |((rows, block), (down, across))| Variant::Coop {
        rows,
        block,
        down,
        across,
        size,
        lanes,
    })
}

impl Variant {
    /// Every variant that some pass takes on such a device, for tests that run them all.
    pub fn all(device: &DeviceProfile) -> Vec<Variant> {
        let mut all: Vec<Variant> = Vec::new();
        for head_dim in [16, 128, 256] {
            let extents =
                Extents { pass: Pass::Forward, head_dim, rows: 512, turned: false, matrix: Some(16) };
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
            Variant::Coop { size, lanes, .. } => {
                self.sound()
                    && device.shared_matrices.is_some()
                    && device.cooperative == Some(Cooperative { size, lanes })
                    && device.subgroup == Some(lanes)
                    && extents.matrix.is_some_and(|rows| rows > 0 && rows.is_multiple_of(size as usize))
                    && self.span(extents.head_dim as u32, extents.turned).is_some()
                    && self.invocations() <= device.max_workgroup_invocations
                    && self.workgroup_bytes(extents) <= device.max_workgroup_storage
                    && self.sums(extents) <= MATRIX_SUMS
            }
        }
    }

    /// Reads a name; `None` where it names no variant of this version.
    pub fn parse(name: &str) -> Option<Variant> {
        let mut words = name.split(' ');
        let pair = |text: &str| {
            let (a, b) = text.split_once('x')?;
            Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?))
        };
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
            "coop" => {
                let (rows, block) = pair(words.next()?)?;
                let (down, across) = pair(words.next()?.strip_prefix("subgroups=")?)?;
                let mut number = |key| words.next()?.strip_prefix(key)?.parse::<u32>().ok();
                Variant::Coop { rows, block, down, across, size: number("size=")?, lanes: number("lanes=")? }
            }
            _ => return None,
        };
        (variant.to_string() == name && variant.sound()).then_some(variant)
    }

    /// Whether the numbers make a kernel: names come from files, and not all of [`STRIPS`] suit all subgroups.
    fn sound(&self) -> bool {
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
            Variant::Coop { rows, block, down, across, size, lanes } => {
                let within = |n: u32, most: u32| (1..=most).contains(&n);
                [8, 16].contains(&size)
                    && within(rows, 256)
                    && within(block, 128)
                    && within(down, 16)
                    && within(across, 4)
                    && (4..=64).contains(&lanes)
                    && rows.is_multiple_of(down * size)
                    && block.is_multiple_of(across * size)
                    // each invocation owns a row's share of the block
                    && (down * across * lanes).is_multiple_of(rows)
                    && block.is_multiple_of(down * across * lanes / rows)
            }
        }
    }

    /// Rows of a workgroup.
    pub fn rows(&self) -> u32 {
        match *self {
            Variant::Lanes { lanes, per } | Variant::Uniform { lanes, per, .. } => lanes * per,
            Variant::Rows => ROW_INVOCATIONS,
            Variant::Tiled { rows, .. } | Variant::Coop { rows, .. } => rows,
        }
    }

    /// How the kernel sees q, k, v and do.
    pub fn view(&self) -> View {
        if let Variant::Coop { .. } = self { View::Matrix } else { View::Vec4 }
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
            Variant::Coop { .. } => coop,
        }
    }

    pub fn define(&self, dispatch: Dispatch, head_dim: usize, turned: bool) -> Dispatch {
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
            Variant::Coop { rows, block, down, across, size, lanes } => dispatch
                .define("ROWS", rows)
                .define("BLOCK", block)
                .define("DOWN", down)
                .define("ACROSS", across)
                .define("SIZE", size)
                .define("LANES", lanes)
                .define("SPAN", self.span(head_dim as u32, turned).unwrap_or_default()),
        }
    }

    /// Columns of a result that leave the matrix units at a time, through the place of the scores: the most that fit and that
    /// divide the head; both halves of pairs that are turned. `None` where the head's columns are not all subgroups' alike.
    fn span(&self, head_dim: u32, turned: bool) -> Option<u32> {
        let Variant::Coop { block, across, size, .. } = *self else { return None };
        let step = across * size * if turned { 2 } else { 1 };
        let divides = |span: &u32| head_dim.is_multiple_of(*span);
        (1..=block / step).rev().map(|n| n * step).find(divides)
    }

    fn invocations(&self) -> u32 {
        match *self {
            Variant::Lanes { lanes, .. } | Variant::Uniform { lanes, .. } => lanes,
            Variant::Rows => ROW_INVOCATIONS,
            Variant::Tiled { rows, block, per_rows, per_cols, .. } => rows / per_rows * (block / per_cols),
            Variant::Coop { down, across, lanes, .. } => down * across * lanes,
        }
    }

    /// Floats of the results that an invocation sums; of a block's scores too where they are matrices.
    fn sums(&self, extents: &Extents) -> u32 {
        let results = if extents.pass == Pass::GradientKeyValue { 2 } else { 1 };
        match *self {
            Variant::Tiled { block, per_rows, per_cols, .. } => {
                let share = (extents.head_dim as u32 / 4).div_ceil(block / per_cols);
                results * per_rows * 4 * share
            }
            Variant::Coop { rows, block, .. } => {
                rows * (results * extents.head_dim as u32 + block) / self.invocations()
            }
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
            Variant::Lanes { .. } | Variant::Uniform { .. } | Variant::Rows | Variant::Coop { .. } => 0,
        }
    }

    /// Whole rows of `head4` groups that are staged together: as many as the chunks' place takes.
    fn lines(&self, head4: u32) -> u32 {
        let Variant::Tiled { block, .. } = *self else { return 0 };
        let fitting = |&lines: &u32| block.is_multiple_of(lines) && lines * head4 <= self.staged();
        [64, 32, 16, 8].into_iter().find(fitting).unwrap_or(4)
    }

    /// Workgroup memory, as the shaders declare it.
    fn workgroup_bytes(&self, extents: &Extents) -> u32 {
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
            Variant::Coop { rows, block, down, across, .. } => {
                // scores, gradients of weights; weights, weights of dk
                let of_score = match extents.pass {
                    Pass::Forward => 4 + 2,
                    Pass::GradientQuery => 8 + 2,
                    Pass::GradientKeyValue => 8 + 4,
                };
                let parts = if self.invocations() > rows { 4 * self.invocations() } else { 0 };
                let outgrown = if extents.pass == Pass::Forward { 4 * down * across } else { 0 };
                rows * block * of_score + parts + outgrown
            }
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
            Variant::Coop { rows, block, down, across, size, lanes } => {
                write!(f, "coop {rows}x{block} subgroups={down}x{across} size={size} lanes={lanes}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::SharedMatrices;

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::GradientQuery, Pass::GradientKeyValue];

    #[test]
    fn names_read_back_and_others_are_refused() {
        let uniform = Variant::Uniform { lanes: 16, per: 2, keys: 4 };
        let units = on_matrix_units(Cooperative { size: 8, lanes: 32 }).filter(Variant::sound);
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
            "coop 64x32 size=16 lanes=32",
            "coop 64x32 subgroups=4x0 size=16 lanes=32",
            "coop 60x32 subgroups=4x1 size=16 lanes=32",
            "coop 64x32 subgroups=1x1 size=16 lanes=32",
        ];
        for name in wrong {
            assert_eq!(Variant::parse(name), None, "{name}");
        }
    }

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
        for size in [8, 16] {
            let device = DeviceProfile {
                cooperative: Some(Cooperative { size, lanes: 32 }),
                shared_matrices: Some(SharedMatrices::Elements),
                ..DeviceProfile::typical_gpu()
            };
            for (pass, head_dim) in PASSES.into_iter().flat_map(|pass| [(pass, 64), (pass, 128)]) {
                let turned = pass != Pass::Forward;
                let extents = Extents { pass, head_dim, rows: 512, turned, matrix: Some(16) };
                let candidates = Variant::candidates(&device, &extents);
                let units = candidates.iter().filter(|v| matches!(v, Variant::Coop { .. })).count();
                assert!(units >= 2, "{size} {extents:?}: {candidates:?}");
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
