// Gradients of y = silu(gate) * up: dgate = dy * up * (s + g * s * (1 - s)), dup = dy * g * s, s = sigmoid(gate).
// An invocation owns one group of four. REPLACES_GATE, REPLACES_UP: the gradient lies where its tensor lay.
{% include "shared/swiglu.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let g = load_{{ "dgate" if REPLACES_GATE else "gate" }}(i);
        let u = load_{{ "dup" if REPLACES_UP else "up" }}(i);
        let dy = load_dy(i);
        let s = sigmoid(g);
        store_dgate(i, dy * u * (s + g * s * (1.0 - s)));
        store_dup(i, dy * g * s);
    }
}
