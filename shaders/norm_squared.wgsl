// sums[group] = sum of the squares (SQUARE) or of the elements of x that this workgroup visits. WIDTH invocations walk x
// with a common stride, then a tree adds their parts in a fixed order. Where x is a range of a tensor, the sums of the
// invocations come from the range before (CONTINUED), or are left for the one after it (CONTINUES) in carry.
{% if not CONTINUES %}
var<workgroup> partial: array<f32, {{ WIDTH }}>;
{% endif %}

@compute @workgroup_size({{ WIDTH }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_index(group, groups);
{% if CONTINUED %}
    var sum = load_carry(index * {{ WIDTH }}u + lane);
{% else %}
    var sum = vec4<f32>();
{% endif %}
    for (var i = index * {{ WIDTH }}u + lane; i < params.count; i += params.stride) {
        let v = load_x(i);
{% if SQUARE %}
        sum = fma(v, v, sum);
{% else %}
        sum += v;
{% endif %}
    }
{% if CONTINUES %}
    store_carry(index * {{ WIDTH }}u + lane, sum);
{% else %}
    partial[lane] = sum.x + sum.y + sum.z + sum.w;
    workgroupBarrier();
    for (var step = {{ WIDTH // 2 }}u; step > 0u; step = step >> 1u) {
        if (lane < step) {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        sums[index] = partial[0];
    }
{% endif %}
}
