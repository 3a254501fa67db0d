// dweight (+)= sum over rows of dy * (x - mean) * rstd.
{% include "shared/column_sum.wgsl" %}

fn term(row: u32, col: u32) -> vec4<f32> {
    let i = row * params.cols4 + col;
    return load_dy(i) * (load_x(i) - mean[row]) * rstd[row];
}
