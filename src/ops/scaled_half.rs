//! A tensor in f16 for matrix units, times one power of two, wherever its magnitudes lie.
//!
//! What is summed over rows cannot be scaled row by row, as `round_rows.wgsl` does. f16 has bf16's precision and more; of its range, what
//! is up to 2^20 times smaller than the largest is held in full, and to within 2^-31 of the largest what is smaller.

use super::elementwise;
use crate::graph::{Binding, DType, Dispatch, Place, Shader, TensorType, View};

pub const MAGNITUDES: Shader = crate::shader!("magnitudes");
pub const ROUND_SCALED: Shader = crate::shader!("round_scaled");
pub const POWER_OF_TWO: Shader = crate::shader!("shared/power_of_two");

/// Workgroups that look for the largest magnitude of a tensor, of as many invocations each.
const GROUPS: usize = 256;

/// Bytes that the largest magnitudes take meanwhile, and the number that takes the power of two out again.
pub const LARGEST_BYTES: u64 = 4 * GROUPS as u64;
pub const UNSCALE_BYTES: u64 = 16;

/// Makes the copy `y` of a tensor `x` of this type. `largest` is scratch space; `unscale` gets what the copy is to be multiplied by.
pub fn scaled_half(
    ty: TensorType,
    x: Binding,
    y: Binding,
    largest: Place,
    unscale: Place,
    detail: String,
) -> [Dispatch; 2] {
    let count = ty.rows() * ty.cols4();
    let groups = GROUPS.min(count.div_ceil(GROUPS));
    let sized = |name, place, bytes, write| Binding {
        size: Some(bytes),
        ..Binding::new(name, place, DType::F32, View::Scalar, write)
    };
    let magnitudes = Dispatch::new(MAGNITUDES, groups)
        .param("count", count)
        .param("groups", groups)
        .bind(x)
        .bind(sized("largest", largest, LARGEST_BYTES, true))
        .cost(0.0, ty.bytes() as f64);
    let scaled = elementwise(ROUND_SCALED, count)
        .param("groups", groups)
        .bind(x)
        .bind(sized("largest", largest, LARGEST_BYTES, false))
        .bind(y)
        .bind(sized("unscale", unscale, UNSCALE_BYTES, true))
        .detail(detail)
        .cost(0.0, (ty.bytes() + TensorType::new(ty.shape, DType::F16).bytes()) as f64);
    [magnitudes, scaled]
}
