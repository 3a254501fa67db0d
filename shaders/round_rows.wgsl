// Rows for matrix units: y[row] = x[row] * 2^e in f16, and unscale[row] = 2^-e, of x [rows, cols]. e brings the largest magnitude
// of the row to at least 2^14 and below 2^15, so f16 holds in full what is up to 2^28 times smaller: of bf16, whose
// range f16 has not, nothing else is lost than what a sum in f32 would lose. LANES invocations share a row. GATED: x is
// act(gate) * up. PAIR: or of the second pair's row, r2, over PAIR_FACTOR, where that is larger: both
// are scaled alike, but for that factor, which matmul_coop_tiled.wgsl moves to the pair's columns.
{% include "shared/rows.wgsl" %}
{% include "shared/power_of_two.wgsl" %}
{% if GATED %}
{% include "shared/glu.wgsl" %}
fn load(at: u32) -> vec4<f32> {
    return gated(load_gate(at), load_up(at));
}
{% else %}
fn load(at: u32) -> vec4<f32> {
    return load_x(at);
}
{% endif %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    let base = min(row, params.rows - 1u) * params.cols4;
    var magnitudes = vec4<f32>();
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        magnitudes = max(magnitudes, abs(load(base + i)));
    }
{% if PAIR %}
    let pair_base = min(row, params.rows - 1u) * params.k2_4;
    for (var i = lane % {{ LANES }}u; i < params.k2_4; i += {{ LANES }}u) {
        magnitudes = max(magnitudes, abs(load_r2(pair_base + i)) / {{ PAIR_FACTOR }}.0);
    }
{% endif %}
    let largest = row_max(lane, max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w)));
    let scales = to_magnitude(largest, 14u);
    if (row >= params.rows) {
        return;
    }
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        store_y(base + i, load(base + i) * scales.x);
    }
    if (lane % {{ LANES }}u == 0u) {
        unscale[row] = scales.y;
    }
}
