// Loss of a chunk of rows from their logits [rows, vocab]: losses[first + row] = log sum exp - logit of the target,
// 0 for rows without a target (0xffffffff). GRADIENT turns the logits into (softmax - onehot) * dloss in place, or, ROUNDED, stores that
// in f16 for matrix units, as round_rows.wgsl would: y[row] times a power of two, and its inverse in unscale[row].
// CAPPED: logits pass the soft cap. LANES invocations share a row. The padding of a row stays zero.
{% include "shared/rows.wgsl" %}
{% include "shared/soft_cap.wgsl" %}
{% if ROUNDED %}
{% include "shared/power_of_two.wgsl" %}
{% endif %}

fn logits_at(i: u32) -> vec4<f32> {
    return {{ capped4("load_logits(i)") }};
}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(group, groups) * {{ ROWS }}u + lane / {{ LANES }}u;
    let inside = row < params.rows;
    let base = min(row, params.rows - 1u) * params.cols4;
    let column = lane % {{ LANES }}u;
    // one pass for both: sums are relative to the largest logit so far
    var largest = -1e30;
    var sums = vec4<f32>();
    for (var i = column; i < params.cols4; i += {{ LANES }}u) {
        let valid = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
        let logits = select(vec4<f32>(-1e30), logits_at(base + i), valid);
        let more = max(largest, max(max(logits.x, logits.y), max(logits.z, logits.w)));
        sums = sums * exp(largest - more) + select(vec4<f32>(), exp(logits - more), valid);
        largest = more;
    }
    let top = row_max(lane, largest);
    let sum = row_sum(lane, (sums.x + sums.y + sums.z + sums.w) * exp(largest - top));
    if (!inside) {
        return;
    }
    let target_token = targets[params.first + row];
    let counts = target_token != 0xffffffffu;
    let owner = (target_token / 4u) % {{ LANES }}u;
    if (counts && column == owner) {
        losses[params.first + row] = top + log(sum) - logits_at(base + target_token / 4u)[target_token % 4u];
    }
    if (!counts && column == 0u) {
        losses[params.first + row] = 0.0;
    }
{% if GRADIENT %}
    let scale = select(0.0, dloss[0], counts);
{% if ROUNDED %}
    // no probability is further from what it should be than the target's; rounding of the sum may leave up to 2^-17 less of that, for which
    // f16 has a factor of two where it is 2^-16 or more
    let known = select(0u, target_token, counts);
    let logit = logits_at(base + known / 4u)[known % 4u];
    let furthest = max(1.0 - exp(logit - top) / sum, 1.52587890625e-5);
    let scales = to_magnitude(furthest * abs(dloss[0]), 14u);
    if (column == 0u) {
        unscale[row] = scales.y;
    }
{% endif %}
    for (var i = column; i < params.cols4; i += {{ LANES }}u) {
        let index = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
        let onehot = select(vec4<f32>(), vec4<f32>(1.0), index == vec4<u32>(target_token));
        let logits = logits_at(base + i);
        let p = exp(logits - top) / sum;
        let gradient = select(vec4<f32>(), (p - onehot) * scale{{ sloped4("logits") }}, index < vec4<u32>(params.vocab));
{% if ROUNDED %}
        store_y(base + i, gradient * scales.x);
{% else %}
        store_logits(base + i, gradient);
{% endif %}
    }
{% endif %}
}
