// total = sum of x, or total += (ACCUMULATE). One workgroup; a tree adds the 256 parts in a fixed order.
var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < params.count; i += 256u) {
        sum += x[i];
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var step = 128u; step > 0u; step = step >> 1u) {
        if (lane < step) {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        total[0] = partial[0]{% if ACCUMULATE %} + total[0]{% endif %};
    }
}
