// The sum of term(row, col), four columns, over all rows: each of 64 invocations sums every 64th row, then a tree adds the 64
// parts in a fixed order.
var<workgroup> partial: array<vec4<f32>, 64>;

fn column_sum(col: u32, lane: u32) -> vec4<f32> {
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
    return partial[0];
}
