// From the sums of matmul_coop.wgsl to the product as it is stored:
//     out[row, col] (+)= alpha * (sums[row, col] + sum over k2 of r2[row, k2] * c2[col, k2]) + residual[row, col]
// or what is made of it. One invocation per group of four columns. PAIR and PAIR_MASKED as in matmul_tiled.wgsl.
{% include "shared/result.wgsl" %}
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
    if (at >= params.rows * params.cols4) {
        return;
    }
    var v = vec4<f32>();
{% if PAIR %}
    let row = at / params.cols4;
    let col4 = at % params.cols4;
    for (var t = 0u; t < params.k2_4; t += 1u) {
{% if R_INNER %}
        let a = load_r2(row * params.k2_4 + t);
{% else %}
        var a = vec4<f32>();
{% for q in range(4) %}
        if (4u * t + {{ q }}u < params.k2) {
            a[{{ q }}] = load_r2((4u * t + {{ q }}u) * params.rows4 + row / 4u)[row % 4u];
        }
{% endfor %}
{% endif %}
{% for q in range(4) %}
{% if C_INNER %}
        v[{{ q }}] += dot(a, load_c2((4u * col4 + {{ q }}u) * params.k2_4 + t));
{% else %}
        v = fma(vec4<f32>(a[{{ q }}]), load_c2(min(4u * t + {{ q }}u, params.k2 - 1u) * params.cols4 + col4), v);
{% endif %}
{% endfor %}
    }
{% endif %}
{% if PAIR_MASKED %}
    v = dropped(v, at, mask_seed());
{% endif %}
    v = params.alpha * (v + load_sums(at));
    {{ put("at", "v") }}
}
