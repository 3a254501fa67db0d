// y = silu(gate) * up, silu(g) = g / (1 + exp(-g)). An invocation owns one group of four.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let g = load_gate(i);
        // exp overflows f32 beyond 88; silu is 0 to rounding there
        let sigmoid = 1.0 / (1.0 + exp(-max(g, vec4<f32>(-80.0))));
        store_y(i, g * sigmoid * load_up(i));
    }
}
