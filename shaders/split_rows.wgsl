// y[y_first + i] = x[x_first + i], in groups of four: rows of one tensor to rows of another. An invocation owns one group.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        store_y(params.y_first + i, load_x(params.x_first + i));
    }
}
