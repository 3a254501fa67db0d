//! Shapes and the way a tensor lies in memory.
//!
//! Memory is row-major, and every row is padded with zeros to a multiple of [`LANE`] elements, so
//! that kernels always move four elements at once. Only uploads and readbacks see the padding.

use super::DType;
use std::fmt;

/// Elements that a kernel moves at once; rows are padded to a multiple of it.
pub const LANE: usize = 4;
const MAX_DIMS: usize = 4;

/// Extent of a tensor, outermost dimension first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_DIMS],
    len: u8,
}

impl Shape {
    /// # Panics
    /// With more than four dimensions: a mistake in the program, not in its input.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_DIMS, "a shape has at most {MAX_DIMS} dimensions");
        let mut all = [1; MAX_DIMS];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, len: dims.len() as u8 }
    }

    pub fn scalar() -> Self {
        Shape::new(&[1])
    }

    pub fn vector(n: usize) -> Self {
        Shape::new(&[n])
    }

    pub fn matrix(rows: usize, cols: usize) -> Self {
        Shape::new(&[rows, cols])
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.len as usize]
    }

    /// Length of the last dimension.
    pub fn cols(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        let dims = self.dims();
        dims[..dims.len().saturating_sub(1)].iter().product()
    }

    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Groups of four in a padded row.
    pub fn cols4(&self) -> usize {
        self.cols().div_ceil(LANE)
    }

    /// Elements with each row's padding.
    pub fn padded_elements(&self) -> usize {
        self.rows() * self.cols4() * LANE
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape::new(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// Shape and storage type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    pub shape: Shape,
    pub dtype: DType,
}

impl TensorType {
    pub fn new(shape: Shape, dtype: DType) -> Self {
        TensorType { shape, dtype }
    }

    /// Bytes in device memory, padding and scales included.
    pub fn bytes(&self) -> u64 {
        if self.dtype.is_quantised() {
            return super::blocks::bytes(*self);
        }
        (self.shape.padded_elements() * self.dtype.size()) as u64
    }

    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    pub fn cols4(&self) -> usize {
        self.shape.cols4()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_four() {
        let shape = Shape::new(&[3, 5, 6]);
        assert_eq!((shape.rows(), shape.cols(), shape.cols4()), (15, 6, 2));
        assert_eq!(TensorType::new(shape, DType::BF16).bytes(), 15 * 8 * 2);
        assert_eq!((Shape::scalar().rows(), Shape::scalar().padded_elements()), (1, 4));
    }
}
