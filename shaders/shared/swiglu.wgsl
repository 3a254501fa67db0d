fn sigmoid(g: vec4<f32>) -> vec4<f32> {
    // exp overflows f32 beyond 88; the result is 0 to rounding there
    return 1.0 / (1.0 + exp(-max(g, vec4<f32>(-80.0))));
}

// silu(gate) * up
fn gated(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    return gate * sigmoid(gate) * up;
}
