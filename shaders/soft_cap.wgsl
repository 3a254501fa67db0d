// y = cap tanh(x / cap), or, GRADIENT, gradient = dy (1 - tanh(x / cap)^2). An invocation owns one group of four.
{% set CAPPED = true %}
{% include "shared/soft_cap.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let y = {{ capped4("load_x(i)") }};
{% if GRADIENT %}
        store_gradient(i, load_dy(i){{ sloped4("y") }});
{% else %}
        store_y(i, y);
{% endif %}
    }
}
