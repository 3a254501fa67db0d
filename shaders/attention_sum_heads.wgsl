// dk and dv of each KV head: the sums of dk_heads and dv_heads over the GROUP query heads that share it, in order.
//
// dk_heads, dv_heads [T, KV_HEADS * GROUP * head_dim] lie as the queries do. TURNED: dk is turned back by the angle of its row's
// position, as rope.wgsl does, and with the same `positions` and `table`. An invocation owns one group of four of a head; TURNED,
// one of the first half and its partner in the second.
{% set HALF4 = HEAD4 // 2 %}
{% set OWN4 = HALF4 if TURNED else HEAD4 %}
{% for name in ["dk", "dv"] %}
fn sum_{{ name }}(first: u32) -> vec4<f32> {
    var sum = load_{{ name }}_heads(first);
    for (var head = 1u; head < {{ GROUP }}u; head += 1u) {
        sum += load_{{ name }}_heads(first + head * {{ HEAD4 }}u);
    }
    return sum;
}

{% endfor %}
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        // of all rows' KV heads
        let head = i / {{ OWN4 }}u;
        let d = i % {{ OWN4 }}u;
        let from_at = head * {{ GROUP * HEAD4 }}u + d;
        let to_at = head * {{ HEAD4 }}u + d;
{% if TURNED %}
        let angle = positions[head / {{ KV_HEADS }}u] * {{ HEAD4 }}u + d;
        let cosine = load_table(angle);
        let sine = load_table(angle + {{ HALF4 }}u);
        let x1 = sum_dk(from_at);
        let x2 = sum_dk(from_at + {{ HALF4 }}u);
        store_dk(to_at, x1 * cosine + x2 * sine);
        store_dk(to_at + {{ HALF4 }}u, x2 * cosine - x1 * sine);
        store_dv(to_at, sum_dv(from_at));
        store_dv(to_at + {{ HALF4 }}u, sum_dv(from_at + {{ HALF4 }}u));
{% else %}
        store_dk(to_at, sum_dk(from_at));
        store_dv(to_at, sum_dv(from_at));
{% endif %}
    }
}
