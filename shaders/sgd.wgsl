// One SGD step with momentum and clipping on a flat f32 buffer, in place: parameter p, momentum m.
// hyper as for AdamW, with the momentum's factor and the weight decay as its elements 13 and 14. Nothing is written where the
// gradient's norm is not finite. An invocation owns a group of four.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
{% include "shared/clipped.wgsl" %}
    var rate = hyper[0];
    if (i >= params.second_from) {
        rate = hyper[11];
    }
    let p = load_p(i);
    let m = hyper[13] * load_m(i) + (load_gradient(i) * factor + hyper[14] * p);
    store_m(i, m);
    store_p(i, p - rate * m);
}
