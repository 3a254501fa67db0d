{# The second pair of a product on matrix units, summed in f32 where the result is stored. PAIR_MASKED: with dropout on it. #}
{% if PAIR %}
// The t-th group of four along k2 of a row.
fn pair_row(row: u32, t: u32) -> vec4<f32> {
{% if R_INNER %}
    return load_r2(row * params.k2_4 + t);
{% else %}
    var a = vec4<f32>();
{% for q in range(4) %}
    if (4u * t + {{ q }}u < params.k2) {
        a[{{ q }}] = load_r2((4u * t + {{ q }}u) * params.rows4 + row / 4u)[row % 4u];
    }
{% endfor %}
    return a;
{% endif %}
}

// And of four columns: one of them after the other (C_INNER), or one place along k2 after the other.
fn pair_columns(col4: u32, t: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
{% for q in range(4) %}
{% if C_INNER %}
        load_c2(min(4u * col4 + {{ q }}u, params.cols - 1u) * params.k2_4 + t),
{% else %}
        load_c2(min(4u * t + {{ q }}u, params.k2 - 1u) * params.cols4 + col4),
{% endif %}
{% endfor %}
    );
}

// What the group adds to four columns of the row.
fn pair_term(row: vec4<f32>, columns: mat4x4<f32>) -> vec4<f32> {
    return {{ "row * columns" if C_INNER else "columns * row" }};
}
{% endif %}
