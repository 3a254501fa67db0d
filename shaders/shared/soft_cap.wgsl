{# CAPPED: scores and logits pass c tanh(s / c), c = params.cap, of which the slope is 1 - (y / c)^2 where it gives y #}
{% if CAPPED %}
// tanh is 1 in f32 beyond 10, and drivers overflow further out; what is no number stays so, which a clamp would hide
fn soft_cap4(s: vec4<f32>) -> vec4<f32> {
    let capped = params.cap * tanh(clamp(s / params.cap, vec4<f32>(-10.0), vec4<f32>(10.0)));
    let nan = (bitcast<vec4<u32>>(s) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(capped, s, nan);
}

fn soft_cap(s: f32) -> f32 {
    let capped = params.cap * tanh(clamp(s / params.cap, -10.0, 10.0));
    return select(capped, s, (bitcast<u32>(s) & 0x7fffffffu) > 0x7f800000u);
}

fn cap_slope(y: f32) -> f32 {
    let t = y / params.cap;
    return 1.0 - t * t;
}

fn cap_slope4(y: vec4<f32>) -> vec4<f32> {
    let t = y / params.cap;
    return 1.0 - t * t;
}
{% endif %}
{% macro capped(s) %}{% if CAPPED %}soft_cap({{ s }}){% else %}{{ s }}{% endif %}{% endmacro %}
{% macro capped4(s) %}{% if CAPPED %}soft_cap4({{ s }}){% else %}{{ s }}{% endif %}{% endmacro %}
{# the factor of a gradient that goes back through the cap, which gave y #}
{% macro sloped(y) %}{% if CAPPED %} * cap_slope({{ y }}){% endif %}{% endmacro %}
{% macro sloped4(y) %}{% if CAPPED %} * cap_slope4({{ y }}){% endif %}{% endmacro %}
