//! What is added to a product where it is stored: a bias on each row, and a residual.

use crate::graph::{GraphError, ReferenceTensor, Shape, TensorType};
use crate::ops::expect;

/// The inputs of a product by what they are: its own, then a bias and a residual where it has them.
pub(crate) fn split_sums<T>(inputs: &[T], bias: bool, residual: bool) -> (&[T], Option<&T>, Option<&T>) {
    let (inputs, residual) = inputs.split_at(inputs.len() - usize::from(residual));
    let (own, bias) = inputs.split_at(inputs.len() - usize::from(bias));
    (own, bias.first(), residual.first())
}

/// That a bias and a residual fit the product.
pub(crate) fn expect_sums(
    name: &'static str,
    output: TensorType,
    bias: Option<&TensorType>,
    residual: Option<&TensorType>,
) -> Result<(), GraphError> {
    let fits = |b: &TensorType| b.shape == Shape::vector(output.cols()) && b.dtype.is_float();
    for (sum, fits) in [(bias, bias.is_none_or(fits)), (residual, residual.is_none_or(|r| *r == output))] {
        expect(name, fits, || format!("{} cannot be added to {output}", sum.unwrap_or(&output)))?;
    }
    Ok(())
}

/// What a product is added to: the residual, or zeros, and the bias on each row.
pub(crate) fn reference_sums(
    output: &TensorType,
    bias: Option<&ReferenceTensor>,
    residual: Option<&ReferenceTensor>,
) -> ReferenceTensor {
    let mut out = residual.cloned().unwrap_or_else(|| ReferenceTensor::zeros(output.shape));
    if let Some(bias) = bias {
        let cols = out.cols();
        out.data.iter_mut().enumerate().for_each(|(i, v)| *v += bias.data[i % cols]);
    }
    out
}
