// dx = rstd * (w dy - x rstd^2 mean(w dy x)), plus a RESIDUAL, per row; w is the weight, or 1 + weight, UNIT_OFFSET. LANES
// invocations share a row.
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
    var products = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        products = fma({{ factor }} * load_dy(base + i), load_x(base + i), products);
    }
    let mean = row_sum(lane, products.x + products.y + products.z + products.w) / params.cols;
    if (row >= params.rows) {
        return;
    }
    let scale = rstd[row];
    let pull = scale * scale * mean;
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        let value = scale * ({{ factor }} * load_dy(base + i) - load_x(base + i) * pull);
        store_gradient(base + i, value{% if RESIDUAL %} + load_residual(base + i){% endif %});
    }
}
