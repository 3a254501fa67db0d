// REPLACES_GATE, REPLACES_UP: the gradient lies where its tensor lay.
{% include "shared/swiglu.wgsl" %}

// Gradients of y = silu(gate) * up: dgate = dy * up * (s + g * s * (1 - s)), dup = dy * g * s, s = sigmoid(gate).
fn store_gradients(i: u32, dy: vec4<f32>) {
    let g = load_{{ "dgate" if REPLACES_GATE else "gate" }}(i);
    let u = load_{{ "dup" if REPLACES_UP else "up" }}(i);
    let s = sigmoid(g);
    store_dgate(i, dy * u * (s + g * s * (1.0 - s)));
    store_dup(i, dy * g * s);
}
