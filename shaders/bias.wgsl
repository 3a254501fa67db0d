// y = x + b on every row of x [T, d]. LANES invocations share a row.
{% include "shared/rows.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.cols4;
    for (var i = lane % {{ LANES }}u; i < params.cols4; i += {{ LANES }}u) {
        store_y(base + i, load_x(base + i) + load_b(i));
    }
}
