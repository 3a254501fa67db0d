// REPLACES_GATE, REPLACES_UP: the gradient lies where its tensor lay.
{% include "shared/glu.wgsl" %}

// Gradients of y = gate * s * up: dgate = dy * up * (s + gate * s'), dup = dy * gate * s.
fn store_gradients(i: u32, dy: vec4<f32>) {
    let g = load_{{ "dgate" if REPLACES_GATE else "gate" }}(i);
    let u = load_{{ "dup" if REPLACES_UP else "up" }}(i);
    let s = passing(g);
    store_dgate(i, dy * u * (s + slope(g, s)));
    store_dup(i, dy * g * s);
}
