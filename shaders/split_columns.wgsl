// y[row, y_first + c] = x[row, x_first + c] for c < width4, in groups of four: columns of one tensor to columns of another. An
// invocation owns one group.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let row = i / params.width4;
        let column = i % params.width4;
        store_y(row * params.y_cols4 + params.y_first + column, load_x(row * params.x_cols4 + params.x_first + column));
    }
}
