{# The second pair of a product on matrix units, summed in f32 where the result is stored. PAIR_MASKED: with dropout on it. #}
{% if PAIR %}
fn pair_sum(row: u32, col4: u32{% if PAIR_MASKED %}, seed: vec2<u32>{% endif %}) -> vec4<f32> {
    var v = vec4<f32>();
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
        v[{{ q }}] += dot(a, load_c2(min(4u * col4 + {{ q }}u, params.cols - 1u) * params.k2_4 + t));
{% else %}
        v = fma(vec4<f32>(a[{{ q }}]), load_c2(min(4u * t + {{ q }}u, params.k2 - 1u) * params.cols4 + col4), v);
{% endif %}
{% endfor %}
    }
{% if PAIR_MASKED %}
    return dropped(v, row * params.cols4 + col4, seed);
{% else %}
    return v;
{% endif %}
}
{% endif %}
