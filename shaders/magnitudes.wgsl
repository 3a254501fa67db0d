// largest[g] = the largest magnitude of every groups-th 256 groups of four of x from the g-th on: of all of x the largest of these.
{% set LANES = 256 %}
{% set ROWS = 1 %}
{% include "shared/rows.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var magnitudes = vec4<f32>();
    for (var i = group.x * {{ LANES }}u + lane; i < params.count; i += params.groups * {{ LANES }}u) {
        magnitudes = max(magnitudes, abs(load_x(i)));
    }
    let most = row_max(lane, max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w)));
    if (lane == 0u) {
        largest[group.x] = most;
    }
}
