// Rotary embedding of x [T, heads * head_dim], pairs (j, j + head_dim/2) of each head turned by the angle of
// positions[t]: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; INVERSE turns back (the gradient).
// `table` [positions, head_dim] holds cosines, then sines, of one position in a row.
// An invocation owns one group of four of the first half of a head and its partner in the second; a workgroup those of one of
// PARTS tensors. REPLACES: y lies where x lay.
{# known beforehand, since a CPU divides lane by lane #}
{% macro turn(part, i, HEADS, REPLACES) %}
    if ({{ i }} < params.items{{ part }}) {
        let j = {{ i }} % {{ HALF4 }}u;
        let head = {{ i }} / {{ HALF4 }}u;
        let row = head / {{ HEADS }}u;
        let angle = positions[row] * {{ 2 * HALF4 }}u;
        let cosine = load_table(angle + j);
        let sine = {% if INVERSE %}-{% endif %}load_table(angle + {{ HALF4 }}u + j);
        let first = head * {{ 2 * HALF4 }}u + j;
        let x1 = load_{{ "y" if REPLACES else "x" }}{{ part }}(first);
        let x2 = load_{{ "y" if REPLACES else "x" }}{{ part }}(first + {{ HALF4 }}u);
        store_y{{ part }}(first, x1 * cosine - x2 * sine);
        store_y{{ part }}(first + {{ HALF4 }}u, x2 * cosine + x1 * sine);
    }
{% endmacro %}
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_index(group, groups);
{% if PARTS == 1 %}
    let i0 = index * 256u + lane;
{{ turn(0, "i0", HEADS0, REPLACES0) }}
{% else %}
    if (index < params.groups0) {
        let i0 = index * 256u + lane;
{{ turn(0, "i0", HEADS0, REPLACES0) }}
    } else {
        let i1 = (index - params.groups0) * 256u + lane;
{{ turn(1, "i1", HEADS1, REPLACES1) }}
    }
{% endif %}
}
