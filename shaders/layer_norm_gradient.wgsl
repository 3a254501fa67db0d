// dx = rstd * (w dy - mean(w dy) - n mean(w dy n)) with n = (x - mean) rstd, plus a RESIDUAL, per row. PARTIAL: d is no multiple of
// four. LANES invocations share a row.
{% include "shared/rows.wgsl" %}
{% include "shared/whole_row.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    let at = min(row, params.rows - 1u);
    let base = at * params.cols4;
    let middle = mean[at];
    let scale = rstd[at];
    var sums = vec4<f32>();
    var products = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        // the rest of a last group is zero in the weight
        let g = load_weight(i) * load_dy(base + i);
        sums += g;
        products = fma(g, (load_x(base + i) - middle) * scale, products);
    }
    let shift = row_sum(lane, sums.x + sums.y + sums.z + sums.w) / f32(params.cols);
    let pull = row_sum(lane, products.x + products.y + products.z + products.w) / f32(params.cols);
    if (row >= params.rows) {
        return;
    }
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        let n = (load_x(base + i) - middle) * scale;
        let value = scale * (load_weight(i) * load_dy(base + i) - shift - n * pull);
        store_gradient(base + i, within_row(i, value{% if RESIDUAL %} + load_residual(base + i){% endif %}));
    }
}
