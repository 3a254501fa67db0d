// y = x / (1 - p) where the generator keeps the element, else 0. An invocation owns one group of four.
{% include "shared/dropout.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        store_y(i, dropped(load_x(i), i, mask_seed()));
    }
}
