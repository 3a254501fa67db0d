// Loss of a chunk of rows from their logits [rows, vocab]: losses[first + row] = log sum exp - logit of the target,
// 0 for rows without a target (0xffffffff). GRADIENT turns the logits into (softmax - onehot) * dloss in place.
// LANES invocations share a row. The padding of a row stays zero.
{% include "shared/rows.wgsl" %}

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
    var largest = vec4<f32>(-1e30);
    for (var i = column; i < params.cols4; i += {{ LANES }}u) {
        let valid = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
        largest = max(largest, select(vec4<f32>(-1e30), load_logits(base + i), valid));
    }
    let top = row_max(lane, max(max(largest.x, largest.y), max(largest.z, largest.w)));
    var sums = vec4<f32>();
    for (var i = column; i < params.cols4; i += {{ LANES }}u) {
        let valid = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.vocab);
        sums += select(vec4<f32>(), exp(load_logits(base + i) - top), valid);
    }
    let sum = row_sum(lane, sums.x + sums.y + sums.z + sums.w);
    if (!inside) {
        return;
    }
    let target_token = targets[params.first + row];
    let counts = target_token != 0xffffffffu;
    let owner = (target_token / 4u) % {{ LANES }}u;
    if (counts && column == owner) {
        losses[params.first + row] = top + log(sum) - load_logits(base + target_token / 4u)[target_token % 4u];
    }
    if (!counts && column == 0u) {
        losses[params.first + row] = 0.0;
    }
{% if GRADIENT %}
    let scale = select(0.0, dloss[0], counts);
    for (var i = column; i < params.cols4; i += {{ LANES }}u) {
        let index = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
        let onehot = select(vec4<f32>(), vec4<f32>(1.0), index == vec4<u32>(target_token));
        let p = exp(load_logits(base + i) - top) / sum;
        store_logits(base + i, select(vec4<f32>(), (p - onehot) * scale, index < vec4<u32>(params.vocab)));
    }
{% endif %}
}
