{# PARTIAL: rows of params.cols elements end within a group of four, of which the rest is zero and stays so #}
fn within_row(i: u32, v: vec4<f32>) -> vec4<f32> {
{% if PARTIAL %}
    return select(vec4<f32>(), v, vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols));
{% else %}
    return v;
{% endif %}
}
