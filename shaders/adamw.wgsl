// One AdamW step with clipping on a flat f32 buffer, in place: parameter p, moments m and v.
// hyper = lr, beta1, beta2, eps, 1 - lr*wd, clip (none if <= 0), inverse scale, 1/(1-beta1^t), 1/(1-beta2^t),
// 1-beta1, 1-beta2, then lr and 1 - lr*wd of the second group of parameters. Nothing is written where the gradient's norm is
// not finite. An invocation owns a group of four.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
{% include "shared/clipped.wgsl" %}
    var rate = hyper[0];
    var decay = hyper[4];
    if (i >= params.second_from) {
        rate = hyper[11];
        decay = hyper[12];
    }
    let g = load_gradient(i) * factor;
    let first = hyper[1] * load_m(i) + hyper[9] * g;
    let second = hyper[2] * load_v(i) + hyper[10] * g * g;
    store_m(i, first);
    store_v(i, second);
    store_p(i, load_p(i) * decay - rate * (first * hyper[7]) / (sqrt(second * hyper[8]) + hyper[3]));
}
