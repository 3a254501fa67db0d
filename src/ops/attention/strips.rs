//! Attention on matrix units: the tiles of its kernels.

use super::candidates::Extents;
use super::variant::Pass;
use crate::graph::{Dispatch, MatrixShape, SharedMatrices};
use crate::ops::pair;
use std::fmt;

/// Of a workgroup's `rows` and `block`, `down` x `across` subgroups of `lanes` own strips of rows, and in those the matrices of
/// `shape` of every `across`-th column. Tensors are f16, or copied to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    pub rows: u32,
    pub block: u32,
    pub down: u32,
    pub across: u32,
    pub shape: MatrixShape,
    pub lanes: u32,
    pub staging: Staging,
    /// The rows' operands stay with the subgroups, where others load them in every turn.
    pub resident: bool,
}

/// What a block of columns is loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// Storage: each subgroup loads it by itself.
    None,
    /// Workgroup memory, which it is copied to.
    Block,
    /// The same; what scores need in one direction and weights in the other, as gradients do, is copied both ways.
    BothWays,
}

impl Staging {
    fn name(self) -> &'static str {
        match self {
            Staging::None => "",
            Staging::Block => " staged",
            Staging::BothWays => " staged both ways",
        }
    }
}

impl Strips {
    /// Reads what [`fmt::Display`] writes; whether the numbers make a kernel is another question.
    pub fn parse(text: &str) -> Option<Strips> {
        let (text, resident) = text.strip_suffix(" resident").map_or((text, false), |rest| (rest, true));
        let mut words = text.splitn(5, ' ');
        let (rows, block) = pair(words.next()?)?;
        let (down, across) = pair(words.next()?.strip_prefix("subgroups=")?)?;
        let shape = words.next()?.strip_prefix("shape=")?.parse().ok()?;
        let lanes = words.next()?.strip_prefix("lanes=")?.parse().ok()?;
        let rest = words.next().map_or(String::new(), |rest| format!(" {rest}"));
        let all = [Staging::None, Staging::Block, Staging::BothWays];
        let staging = all.into_iter().find(|staging| staging.name() == rest)?;
        Some(Strips { rows, block, down, across, shape, lanes, staging, resident })
    }

    /// Whether the numbers make a kernel.
    pub fn sound(&self) -> bool {
        let Strips { rows, block, down, across, shape, lanes, .. } = *self;
        let within = |n: u32, most: u32| (1..=most).contains(&n);
        within(rows, 256)
            && within(block, 128)
            && within(down, 16)
            && within(across, 4)
            && (4..=64).contains(&lanes)
            && rows.is_multiple_of(down * shape.m)
            && block.is_multiple_of(across * shape.n)
            && block.is_multiple_of(shape.k)
            // blocks begin at a workgroup's first row too
            && rows.is_multiple_of(shape.n.max(shape.k))
            // each invocation owns a row's share of the block, in groups of four
            && self.invocations().is_multiple_of(rows)
            && block.is_multiple_of(4 * (self.invocations() / rows))
    }

    pub fn define(&self, dispatch: Dispatch, span: u32, shared: Option<SharedMatrices>) -> Dispatch {
        dispatch
            .define("ROWS", self.rows)
            .define("BLOCK", self.block)
            .define("DOWN", self.down)
            .define("ACROSS", self.across)
            .matrices(self.shape)
            .define("LANES", self.lanes)
            .define("SPAN", span)
            .flag("STAGED", self.staging != Staging::None)
            .flag("BOTH_WAYS", self.staging == Staging::BothWays)
            .flag("RESIDENT", self.resident)
            .flag("VECTORS", shared == Some(SharedMatrices::Groups))
    }

    pub fn invocations(&self) -> u32 {
        self.down * self.across * self.lanes
    }

    /// Columns of a result that leave the matrix units at a time, through the place of the scores: the most that fit and that
    /// divide the head; of each half of pairs that are turned, through the place of the weights' gradients too. `None` where those
    /// columns are not all subgroups' alike.
    pub fn span(&self, head_dim: u32, turned: bool) -> Option<u32> {
        let step = self.across * self.shape.n;
        let whole = if turned { head_dim / 2 } else { head_dim };
        (1..=self.block / step).rev().map(|n| n * step).find(|&span| whole.is_multiple_of(span))
    }

    /// Floats that an invocation holds in matrices of scores and results, and of the rows' operands, of which two share a register
    /// (RDNA 3 holds them twice).
    pub fn sums(&self, extents: &Extents) -> u32 {
        let head_dim = extents.head_dim as u32;
        let (results, operands) = match extents.pass {
            Pass::Forward => (1, 1),
            Pass::GradientQuery => (1, 2),
            Pass::GradientKeyValue => (2, 2),
        };
        let resident = if self.resident { operands * self.across * head_dim / 2 } else { 0 };
        self.rows * (results * head_dim + self.block + resident) / self.invocations()
    }

    /// Workgroup memory, as the shaders declare it.
    pub fn workgroup_bytes(&self, extents: &Extents) -> u32 {
        let Strips { rows, block, down, across, staging, .. } = *self;
        // scores, gradients of weights; weights, weights of dk
        let (scores, weights) = match extents.pass {
            Pass::Forward => (1, 1),
            Pass::GradientQuery => (2, 1),
            Pass::GradientKeyValue => (2, 2),
        };
        let head_dim = extents.head_dim as u32;
        let (tile, turned) = (2 * block * (head_dim + 8), 2 * head_dim * (block + 8));
        let tiles = match (staging, extents.pass) {
            (Staging::None, _) => 0,
            // v meets weights alone
            (_, Pass::Forward) => tile + turned,
            (Staging::Block, _) => 2 * tile,
            (Staging::BothWays, Pass::GradientQuery) => 2 * tile + turned,
            (Staging::BothWays, Pass::GradientKeyValue) => 2 * (tile + turned),
        };
        let parts = if self.invocations() > rows { 4 * self.invocations() } else { 0 };
        let outgrown =
            if extents.pass == Pass::Forward { (4 * down * across).next_multiple_of(16) } else { 0 };
        4 * block * (rows + 4) * scores + 2 * rows * (block + 8) * weights + tiles + parts + outgrown
    }
}

impl fmt::Display for Strips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Strips { rows, block, down, across, shape, lanes, staging, resident } = self;
        write!(f, "{rows}x{block} subgroups={down}x{across} shape={shape} lanes={lanes}")?;
        write!(f, "{}{}", staging.name(), if *resident { " resident" } else { "" })
    }
}
