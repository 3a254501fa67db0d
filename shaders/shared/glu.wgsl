{# An activation is x s(x). TANH: gelu by tanh, 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2 u);
   ERF: gelu, of which s is the normal distribution; else silu, x sigmoid(x) #}
fn sigmoid(g: vec4<f32>) -> vec4<f32> {
    // exp overflows f32 beyond 88; the result is 0 to rounding there
    return 1.0 / (1.0 + exp(-max(g, vec4<f32>(-80.0))));
}

{% if ERF %}
// exp(-g^2 / 2); beyond 15 it is 0 in f32, and the square might not be finite
fn bell(g: vec4<f32>) -> vec4<f32> {
    let z = min(abs(g), vec4<f32>(20.0));
    return exp(-0.5 * z * z);
}
{% endif %}

// what of the gate passes: s
fn passing(gate: vec4<f32>) -> vec4<f32> {
{% if TANH %}
    // the result is 0 or 1 long before the square is not finite
    let g = clamp(gate, vec4<f32>(-100.0), vec4<f32>(100.0));
    return sigmoid(1.5957691216057308 * g * (1.0 + 0.044715 * g * g));
{% elif ERF %}
    // Abramowitz & Stegun 7.1.26, of |gate| / sqrt(2)
    let t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * abs(gate));
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let tail = 0.5 * p * bell(gate);
    return select(1.0 - tail, tail, gate < vec4<f32>());
{% else %}
    return sigmoid(gate);
{% endif %}
}

// gate * s'(gate), where s is what passes
fn slope(gate: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
{% if TANH %}
    // as above
    let g = clamp(gate, vec4<f32>(-100.0), vec4<f32>(100.0));
    return 1.5957691216057308 * g * (1.0 + 0.134145 * g * g) * s * (1.0 - s);
{% elif ERF %}
    return 0.3989422804014327 * gate * bell(gate);
{% else %}
    return gate * s * (1.0 - s);
{% endif %}
}

// activation(gate) * up
fn gated(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    return gate * passing(gate) * up;
}
