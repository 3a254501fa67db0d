// y[t, :] = scale * table[tokens[t], :]. An invocation owns one group of four of y [T, d].
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let row = i / params.cols4;
        store_y(i, params.scale * load_table(tokens[row] * params.cols4 + i % params.cols4));
    }
}
