// y[i, :] = scale * x[index[i], :], or zeros where index[i] is 0xffffffff. An invocation owns one group of four of y.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let row = index[i / params.cols4];
        var v = vec4<f32>();
        if (row != 0xffffffffu) {
            v = params.scale * load_x(row * params.cols4 + i % params.cols4);
        }
        store_y(i, v);
    }
}
