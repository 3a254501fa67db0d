{# GELU: gelu(g) by tanh, 0.5 g (1 + tanh(u)) with u = sqrt(2 / pi) (g + 0.044715 g^3), which is g sigmoid(2 u); else silu(g) = g sigmoid(g) #}
fn sigmoid(g: vec4<f32>) -> vec4<f32> {
    // exp overflows f32 beyond 88; the result is 0 to rounding there
    return 1.0 / (1.0 + exp(-max(g, vec4<f32>(-80.0))));
}

// what of the gate passes
fn passing(gate: vec4<f32>) -> vec4<f32> {
{% if GELU %}
    return sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate));
{% else %}
    return sigmoid(gate);
{% endif %}
}

// activation(gate) * up
fn gated(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    return gate * passing(gate) * up;
}
