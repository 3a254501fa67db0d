// A tensor for matrix units: y = x * 2^e in f16, and unscale[0] = 2^-e. e brings the largest magnitude of all, the largest of
// largest[0 .. groups], 256 at most, to at least 2^6 and below 2^7: f16 holds in full what is up to 2^20 times smaller, and products with it have
// room above. An invocation owns one group of four.
{% set LANES = 256 %}
{% set ROWS = 1 %}
{% include "shared/rows.wgsl" %}
{% include "shared/power_of_two.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let most = row_max(lane, largest[min(lane, params.groups - 1u)]);
    let scales = to_magnitude(most, 6u);
    let i = group_index(group, groups) * {{ WORKGROUP }}u + lane;
    if (i < params.count) {
        store_y(i, load_x(i) * scales.x);
    }
    if (i == 0u) {
        unscale[0] = scales.y;
    }
}
