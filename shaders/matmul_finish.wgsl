// From the sums of matmul_coop.wgsl, or, with SECTIONS, of the sections of another kernel, to the product as it is stored:
//     out[row, col] (+)= alpha * (sums[row, col] + sum over k2 of r2[row, k2] * c2[col, k2]) + bias[col] + residual[row, col]
// or what is made of it. One invocation per group of four as the result lies. PAIR and PAIR_MASKED as in matmul_tiled.wgsl.
{% include "shared/result.wgsl" %}
{% include "shared/pair.wgsl" %}
{% if PAIR_MASKED %}
{% include "shared/dropout.wgsl" %}

{% endif %}
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_index(group, groups) * 64u + lane;
    if (at >= params.count) {
        return;
    }
    var v = vec4<f32>();
{% if PAIR %}
    for (var t = 0u; t < params.k2_4; t += 1u) {
        v += pair_term(pair_row(at / params.cols4, t), pair_columns(at % params.cols4, t));
    }
    // padding stays zero
    let valid = vec4<u32>(4u * (at % params.cols4)) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
    v = select(vec4<f32>(), v, valid);
{% if PAIR_MASKED %}
    v = dropped(v, at, mask_seed());
{% endif %}
{% endif %}
{% if SECTIONS %}
    for (var section = 0u; section < params.sections; section += 1u) {
        v += load_sums(section * params.count + at);
    }
    v = params.alpha * v;
{% else %}
    v = params.alpha * (v + load_sums(at));
{% endif %}
    {{ put("at", "v") }}
}
