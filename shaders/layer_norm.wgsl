// y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps), per row of x [T, d]; mean and rstd [T] are kept for the
// gradient where somebody reads them (KEEP). PARTIAL: d is no multiple of four. LANES invocations share a
// row.
{% include "shared/rows.wgsl" %}
{% include "shared/whole_row.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    let base = min(row, params.rows - 1u) * params.cols4;
    var sums = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        sums += load_x(base + i);
    }
    let middle = row_sum(lane, sums.x + sums.y + sums.z + sums.w) / f32(params.cols);
    var squares = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        let v = within_row(i, load_x(base + i) - middle);
        squares = fma(v, v, squares);
    }
    let scale = inverseSqrt(row_sum(lane, squares.x + squares.y + squares.z + squares.w) / f32(params.cols) + params.eps);
    if (row >= params.rows) {
        return;
    }
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        let y = (load_x(base + i) - middle) * scale * load_weight(i) + load_bias(i);
        store_y(base + i, within_row(i, y));
    }
{% if KEEP %}
    if (lane % {{ LANES }}u == 0u) {
        mean[row] = middle;
        rstd[row] = scale;
    }
{% endif %}
}
