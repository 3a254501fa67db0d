// y = gradient * factor, with adamw.wgsl's hyper: clipping as a kernel of its own. An invocation owns a group of four.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
{% include "shared/clipped.wgsl" %}
    store_y(i, load_gradient(i) * factor);
}
