//! Cooperative matrices of a device.

use std::fmt;
use std::str::FromStr;

/// What matrix units multiply, with f16 operands and f32 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cooperative {
    pub shape: MatrixShape,
    /// Invocations of the subgroup that shares one.
    pub lanes: u32,
}

/// The product of an `m` x `k` matrix by one of `k` x `n`. Its text form is as in `16x16x16`: m, n, k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

impl MatrixShape {
    pub const fn square(size: u32) -> Self {
        MatrixShape { m: size, n: size, k: size }
    }

    /// Whether there are kernels for it: naga's matrices have 8 or 16 rows and columns, and tiles are made for square ones and for
    /// Intel's, 8x16x16 and 8x8x16.
    pub fn is_known(&self) -> bool {
        let sizes = [self.m, self.n, self.k].iter().all(|extent| [8, 16].contains(extent));
        sizes && (self.is_square() || (self.m == 8 && self.k == 16))
    }

    /// Whether all its matrices are square, as those are that WGSL names.
    pub fn is_square(&self) -> bool {
        self.m == self.n && self.n == self.k
    }

    /// The rows of a tensor must be a multiple of this, for no matrix to lie across its end, in any role.
    pub fn alignment(&self) -> u32 {
        self.m.max(self.n).max(self.k)
    }

    /// Multiplications.
    pub fn volume(&self) -> u32 {
        self.m * self.n * self.k
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.m, self.n, self.k)
    }
}

impl FromStr for MatrixShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("{text:?} is no shape of matrices that there are kernels for, such as 16x16x16");
        let extents: Vec<u32> =
            text.split('x').map(|part| part.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        let [m, n, k] = extents[..] else { return Err(wrong()) };
        Some(MatrixShape { m, n, k }).filter(MatrixShape::is_known).ok_or_else(wrong)
    }
}

/// What cooperative matrices can be loaded from, in storage as in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedMatrices {
    /// Arrays of their elements.
    Elements,
    /// Arrays of groups of four elements as well.
    Groups,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_read_back_and_others_are_refused() {
        for shape in [MatrixShape::square(8), MatrixShape { m: 8, n: 16, k: 16 }] {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        for wrong in ["", "16", "16x16", "16x16x16x16", "8x16x32", "0x16x16", "8x16x-16", "16x8x16"] {
            assert!(wrong.parse::<MatrixShape>().is_err(), "{wrong}");
        }
    }
}
