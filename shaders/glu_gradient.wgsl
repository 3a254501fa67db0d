// Gradients of the gated activation from dy, the gradient of its result. An invocation owns one group of four.
{% include "shared/glu_gradient.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        store_gradients(i, load_dy(i));
    }
}
