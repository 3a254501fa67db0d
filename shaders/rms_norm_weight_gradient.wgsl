// dweight (+)= sum over rows of dy * x * rstd. A workgroup of 64 owns one group of four columns.
{% include "shared/column_sum.wgsl" %}

fn term(row: u32, col: u32) -> vec4<f32> {
    let i = row * params.cols4 + col;
    return load_dy(i) * load_x(i) * rstd[row];
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let col = group_index(group, groups);
    let sum = column_sum(min(col, params.cols4 - 1u), lane);
    if (lane == 0u && col < params.cols4) {
        store_dweight(col, sum{% if ACCUMULATE %} + load_dweight(col){% endif %});
    }
}
