// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), per row of x [T, d]; rstd [T] is kept for the gradient
// where somebody reads it (KEEP). UNIT_OFFSET: 1 + weight stands for the weight. RESIDUAL: it is added to y. LANES invocations share a
// row.
{% include "shared/rows.wgsl" %}
{% set factor = "(1.0 + load_weight(i))" if UNIT_OFFSET else "load_weight(i)" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    let base = min(row, params.rows - 1u) * params.cols4;
    var squares = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        let v = load_x(base + i);
        squares = fma(v, v, squares);
    }
    let scale = inverseSqrt(row_sum(lane, squares.x + squares.y + squares.z + squares.w) / params.cols + params.eps);
    if (row >= params.rows) {
        return;
    }
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        store_y(base + i, load_x(base + i) * scale * {{ factor }}{% if RESIDUAL %} + load_residual(base + i){% endif %});
    }
{% if KEEP %}
    if (lane % {{ LANES }}u == 0u) {
        rstd[row] = scale;
    }
{% endif %}
}
