//! The operands of a product: where they lie, what is done to them on the way, which gives the rows.

use super::candidates::{Extents, Running};
use crate::graph::{Binding, DType, DeviceProfile, Launch, Place, Shape, TensorType, View};
use crate::ops::activation::Activation;
use crate::ops::dropout::Dropout;

/// One operand of a launch: where it lies and how it is stored. Of several tensors of one type, the place of the first; the
/// others follow.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub place: Place,
    pub dtype: DType,
    pub offset: u64,
    pub size: Option<u64>,
    /// Stored in f32, though 16 bits of its values do: matrix units may round it, where it gives the rows scaled
    /// ([`Oriented::scales`], [`Oriented::scales_whole`]).
    pub rounds: bool,
}

impl Operand {
    pub fn new(place: Place, dtype: DType) -> Self {
        Operand { place, dtype, offset: 0, size: None, rounds: false }
    }

    pub fn input(launch: &Launch<'_>, input: usize) -> Self {
        Operand::new(Place::Input(input), launch.inputs[input].dtype)
    }

    /// A weight in f32 beside 16-bit rows, for whose product 16 bits do: mixed precision, in which PyTorch rounds it to bf16.
    pub fn beside(self, rows: DType) -> Self {
        Operand { rounds: self.dtype == DType::F32 && rows != DType::F32, ..self }
    }

    pub fn range(self, offset: u64, size: u64) -> Self {
        Operand { offset, size: Some(size), ..self }
    }

    pub(super) fn binding(self, name: &'static str, view: View, write: bool) -> Binding {
        let Operand { place, dtype, offset, size, .. } = self;
        Binding { offset, size, ..Binding::new(name, place, dtype, view, write) }
    }

    pub(super) fn part(self, part: usize) -> Operand {
        let place = match self.place {
            Place::Input(i) => Place::Input(i + part),
            Place::Output(o) => Place::Output(o + part),
            Place::Workspace(w) => Place::Workspace(w + part),
        };
        Operand { place, ..self }
    }
}

/// Dropout inside a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masked {
    pub dropout: Dropout,
    pub on: MaskOn,
}

/// What dropout's mask lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskOn {
    /// The first operand of the first pair.
    Left,
    /// Its second operand.
    Right,
    /// The second pair's product.
    Pair,
}

/// A product as the kernels see it: which operand gives the rows, which the columns.
#[derive(Clone, Copy)]
pub(super) struct Oriented {
    /// The result is stored transposed: the long side of a thin product becomes the columns, which the lanes share.
    pub swapped: bool,
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
    pub parts: usize,
    pub r_inner: bool,
    pub c_inner: bool,
    pub r: Operand,
    pub c: Operand,
    pub terms: Terms,
    pub out: Operand,
    /// Where the factors lie that the sums of scaled operands are multiplied by.
    pub unscale: Option<Unscale>,
    /// What of the operands, as the product was asked for, matrix units can scale as they meet it.
    pub running: Running,
}

/// What takes powers of two out of the sums of scaled operands again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unscale {
    /// A factor for each row.
    Rows(Place),
    /// One for each operand.
    Operands(Place, Place),
}

/// What else goes into a product of two operands, and what is made of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// `(a2, b2, k2)`: the product of a second pair over k2, scaled like the first.
    pub pair: Option<(Operand, Operand, usize)>,
    /// Added to each row, `[n]`.
    pub bias: Option<Operand>,
    /// Added as it is, `[m, n]`.
    pub residual: Option<Operand>,
    /// Dropout, and where the generator's state lies.
    pub mask: Option<(Masked, Place)>,
    /// The first operand is `act(a) * up` with this one, of a's type.
    pub up: Option<Operand>,
    /// The product is the gradient of a gated activation, of which those of gate and up are made and stored.
    pub gradient_of: Option<Gate>,
    /// That of `up` or of `gradient_of`.
    pub activation: Activation,
    /// A product of an adapter's and of activations or their gradient: where these have 16 bits, matrix units may round what is in f32 to
    /// the 11 bits of f16. (PyTorch makes such a product in bf16, of 8 bits.)
    pub low_rank: bool,
}

/// A gated activation whose gradients a product makes; that of the gate is what it stores as its result.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub gate: Operand,
    pub up: Operand,
    pub d_up: Operand,
    /// The gradients lie where gate and up lay.
    pub replaces: [bool; 2],
}

impl Terms {
    pub(super) fn masks(&self, on: MaskOn) -> bool {
        self.mask.is_some_and(|(mask, _)| mask.on == on)
    }
}

impl Oriented {
    pub(super) fn masks_rows(&self) -> bool {
        self.terms.masks(if self.swapped { MaskOn::Right } else { MaskOn::Left })
    }

    pub(super) fn masks_cols(&self) -> bool {
        self.terms.masks(if self.swapped { MaskOn::Left } else { MaskOn::Right })
    }

    pub(super) fn nf4(&self) -> bool {
        [self.r.dtype, self.c.dtype].iter().any(|t| matches!(t, DType::Nf4 | DType::Nf4Double))
    }

    /// Matrix units can take the rows in f16 once each is scaled by a power of two: within a row f16's range does, and bf16 has no
    /// more than its precision. Of the other operand's values, a weight's, f16 holds those that matter as they are.
    pub fn scales(&self) -> bool {
        let weight = self.c.dtype != DType::F32 || self.c.rounds;
        self.r_inner && weight && (self.r.dtype == DType::BF16 || self.r.rounds)
    }

    /// Where both operands are stored with their rows across the sums, as those of a weight's gradient are, matrix units can take each in
    /// f16 times one power of two.
    pub fn scales_whole(&self) -> bool {
        let bf16 = |x: Operand| x.dtype == DType::BF16;
        let either = bf16(self.r) || bf16(self.c);
        let all = (bf16(self.r) || self.r.rounds) && (bf16(self.c) || self.c.rounds);
        !self.r_inner && !self.c_inner && either && all
    }

    /// What of the operands matrix units can take in f16 by the largest magnitude that a workgroup meets: f16 holds in full a value that is
    /// up to 2^28 times smaller.
    pub fn can_run(&self) -> Running {
        let Terms { pair, up, gradient_of, low_rank, .. } = self.terms;
        let of_type = |wanted: &[DType]| [self.r, self.c].iter().any(|x| wanted.contains(&x.dtype));
        let mixed = of_type(&[DType::F32]) && of_type(&[DType::F16, DType::BF16]);
        let sums_alone = self.out.dtype == DType::F32 && pair.is_none() && gradient_of.is_none();
        match up {
            Some(_) => Running::Neither,
            None if sums_alone && (low_rank && mixed || self.scales_whole()) => Running::Both,
            None if self.scales() && self.r.dtype == DType::BF16 => Running::Rows,
            None => Running::Neither,
        }
    }

    /// Whether the second pair's sums can be made with the first's on matrix units, which round it to f16 whatever the result is stored in:
    /// no mask lies on them alone, and what is scaled are rows.
    pub fn can_sum_pair(&self) -> bool {
        self.terms.pair.is_some() && !self.terms.masks(MaskOn::Pair) && (self.r_inner || self.c_inner)
    }

    pub fn quantised(&self) -> bool {
        self.r.dtype.is_quantised() || self.c.dtype.is_quantised()
    }

    /// The rows' operand is a gated activation that is still to be made.
    pub fn gated(&self) -> bool {
        self.terms.up.is_some()
    }

    pub(super) fn r_shape(&self) -> Shape {
        let (rows, cols) = if self.r_inner { (self.rows, self.k) } else { (self.k, self.rows) };
        Shape::matrix(rows, cols)
    }

    /// The rows' operand as a plain tensor, of the other operand's type.
    pub(super) fn r_plain(&self) -> TensorType {
        TensorType::new(self.r_shape(), self.c.dtype)
    }

    pub(super) fn c_shape(&self) -> Shape {
        let (rows, cols) = if self.c_inner { (self.cols, self.k) } else { (self.k, self.cols) };
        Shape::matrix(rows, cols)
    }

    pub(super) fn c_plain(&self) -> TensorType {
        TensorType::new(self.c_shape(), self.r.dtype)
    }

    /// Both operands as the product reads them, with or without staging.
    fn stored(&self, staged: bool) -> [TensorType; 2] {
        [(self.r, self.r_plain()), (self.c, self.c_plain())].map(|(operand, plain)| {
            let plain_type = if staged && operand.dtype.is_quantised() { plain.dtype } else { operand.dtype };
            TensorType::new(plain.shape, plain_type)
        })
    }

    fn out_bytes(&self, dtype: DType) -> u64 {
        let (rows, cols) = if self.swapped { (self.cols, self.rows) } else { (self.rows, self.cols) };
        TensorType::new(Shape::matrix(rows, cols), dtype).bytes()
    }

    /// Whether the device can bind all that a kernel reads and writes, in pieces where it is larger than one binding: a staged
    /// weight takes more of them, and so does a gate that the product itself reads.
    pub fn has_room(&self, device: &DeviceProfile, staged: bool, gates: bool) -> bool {
        let operands = |staged| self.stored(staged).map(|ty| device.bindings(ty.bytes()));
        let ([r, c], [stored_r, stored_c]) = (operands(staged), operands(false));
        let out = device.bindings(self.out_bytes(self.out.dtype));
        let single = usize::from(self.terms.mask.is_some()) + usize::from(self.terms.bias.is_some());
        let others = 2 * usize::from(self.terms.pair.is_some()) + single;
        let residual = if self.terms.residual.is_some() { out } else { 0 };
        let gradients = if self.terms.gradient_of.is_some() { 3 * out } else { 0 };
        let up = if gates { r } else { 0 };
        let product = (r + c + out).max(2 * self.parts + 1) + up + others + residual + gradients;
        let staging = if staged { (r + stored_r).max(c + stored_c) } else { 0 };
        device.binds(product.max(staging))
    }

    /// What decides which variants can serve, with or without staging, and where they make the gate's product themselves or not.
    pub fn extents(&self, device: &DeviceProfile, staged: bool, gates: bool) -> Extents {
        // a staged weight has the type of the other operand
        let half = |x: DType| x == DType::F16 || (staged && x.is_quantised());
        let held = |x: Operand| x.dtype == DType::F16 || x.dtype.is_quantised();
        // matrix units reach no pieces
        let one = |bytes: u64| device.piece(bytes).is_none();
        let bound = self.stored(staged).iter().all(|ty| one(ty.bytes())) && one(self.out_bytes(DType::F32));
        // nor thin products, whose results are stored transposed, nor operands with dropout on their loads
        let masked = self.masks_rows() || self.masks_cols();
        let plain = self.parts == 1 && bound && !masked && !self.swapped;
        let running = match self.running {
            Running::Rows if !plain => Running::Neither,
            running if bound => running,
            _ => Running::Neither,
        };
        Extents {
            rows: self.rows,
            cols: self.cols,
            k: self.k,
            k2: self.terms.pair.map_or(0, |(_, _, k2)| k2),
            matrix: half(self.r.dtype) && half(self.c.dtype) && plain && !gates,
            halves: plain
                && match self.scales() || self.scales_whole() {
                    true => !gates,
                    // in f32 a weight alone is within f16's range as it is
                    false => held(self.r) && (held(self.c) || self.c.rounds),
                },
            outer: !(self.r_inner && self.c_inner),
            running,
        }
    }
}
