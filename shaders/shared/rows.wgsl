// Row kernels: LANES invocations share a row, ROWS rows share a workgroup.
{% set WORKGROUP = ROWS * LANES %}
{% if LANES > 1 %}
var<workgroup> partial: array<f32, {{ WORKGROUP }}>;

// Sum of v over the LANES invocations of a row; every invocation of the workgroup must call it.
fn row_sum(lane: u32, v: f32) -> f32 {
    partial[lane] = v;
    workgroupBarrier();
    for (var step = {{ LANES // 2 }}u; step > 0u; step = step >> 1u) {
        if (lane % {{ LANES }}u < step) {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    let sum = partial[lane - lane % {{ LANES }}u];
    workgroupBarrier();
    return sum;
}

fn row_max(lane: u32, v: f32) -> f32 {
    partial[lane] = v;
    workgroupBarrier();
    for (var step = {{ LANES // 2 }}u; step > 0u; step = step >> 1u) {
        if (lane % {{ LANES }}u < step) {
            partial[lane] = max(partial[lane], partial[lane + step]);
        }
        workgroupBarrier();
    }
    let largest = partial[lane - lane % {{ LANES }}u];
    workgroupBarrier();
    return largest;
}
{% else %}
fn row_sum(lane: u32, v: f32) -> f32 {
    return v;
}

fn row_max(lane: u32, v: f32) -> f32 {
    return v;
}
{% endif %}
