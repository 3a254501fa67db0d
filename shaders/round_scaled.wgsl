// A tensor for matrix units: y = x * 2^e in f16, and unscale[0] = 2^-e. e brings the largest magnitude of all, the largest of
// largest[0 .. groups], to at least 2^6 and below 2^7: f16 holds in full what is up to 2^20 times smaller, and products with it have
// room above. An invocation owns one group of four.
{% include "shared/power_of_two.wgsl" %}
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var most = 0.0;
    for (var g = 0u; g < params.groups; g += 1u) {
        most = max(most, largest[g]);
    }
    let scales = to_magnitude(most, 6u);
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        store_y(i, load_x(i) * scales.x);
    }
    if (i == 0u) {
        unscale[0] = scales.y;
    }
}
