// gradient (+)= the sum of term(row, col), four columns, over all rows. A workgroup of 64 owns one group of columns: each invocation sums
// every 64th row, then a tree adds the 64 parts in a fixed order.
var<workgroup> partial: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let col = min(group_index(group, groups), params.cols4 - 1u);
    var sum = vec4<f32>();
    for (var row = lane; row < params.rows; row += 64u) {
        sum += term(row, col);
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step = step >> 1u) {
        if (lane < step) {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    if (lane == 0u && group_index(group, groups) < params.cols4) {
        store_gradient(col, partial[0]{% if ACCUMULATE %} + load_gradient(col){% endif %});
    }
}
