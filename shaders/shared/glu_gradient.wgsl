// REPLACES_GATE, REPLACES_UP: the gradient lies where its tensor lay.
{% include "shared/glu.wgsl" %}

// Gradients of y = gate * s * up, s = sigmoid(v(gate)): dgate = dy * up * (s + gate * v' * s * (1 - s)), dup = dy * gate * s.
fn store_gradients(i: u32, dy: vec4<f32>) {
    let g = load_{{ "dgate" if REPLACES_GATE else "gate" }}(i);
    let u = load_{{ "dup" if REPLACES_UP else "up" }}(i);
    let s = passing(g);
{% if GELU %}
    let slope = 1.5957691216057308 * g * (1.0 + 0.134145 * g * g);
{% else %}
    let slope = g;
{% endif %}
    store_dgate(i, dy * u * (s + slope * s * (1.0 - s)));
    store_dup(i, dy * g * s);
}
