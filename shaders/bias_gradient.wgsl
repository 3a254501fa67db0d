// db (+)= sum over rows of dy.
{% include "shared/column_sum.wgsl" %}

fn term(row: u32, col: u32) -> vec4<f32> {
    return load_dy(row * params.cols4 + col);
}
