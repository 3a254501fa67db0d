// dx = dy act'(x). REPLACES: dx lies where dy lay. An invocation owns one group of four.
{% include "shared/glu.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let x = load_x(i);
        let s = passing(x);
        store_gradient(i, load_{{ "gradient" if REPLACES else "dy" }}(i) * (s + slope(x, s)));
    }
}
