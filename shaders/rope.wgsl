// Rotary embedding of x [T, heads * head_dim], of each head's first rotary_dim elements pairs (j, j + rotary_dim/2) turned by the angle
// of positions[t]: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; INVERSE turns back (the gradient). The others stay.
// `table` [positions, rotary_dim] holds cosines, then sines, of one position in a row.
// An invocation owns one group of four of the first HALF4 of a head and its partner in the second, or two of the 2 * REST4 groups that
// stay; a workgroup those of one of PARTS tensors. REPLACES: y lies where x lay.
{# known beforehand, since a CPU divides lane by lane #}
{% macro turn(part, i, HEADS, REPLACES) %}
    if ({{ i }} < params.items{{ part }}) {
{% set OWN4 = HALF4 + REST4 %}
        let j = {{ i }} % {{ OWN4 }}u;
        let head = {{ i }} / {{ OWN4 }}u;
{% if REST4 %}
        if (j >= {{ HALF4 }}u) {
{% if not REPLACES %}
            let stays = head * {{ 2 * OWN4 }}u + j + {{ HALF4 }}u;
            store_y{{ part }}(stays, load_x{{ part }}(stays));
            store_y{{ part }}(stays + {{ REST4 }}u, load_x{{ part }}(stays + {{ REST4 }}u));
{% endif %}
            return;
        }
{% endif %}
        let row = head / {{ HEADS }}u;
        let angle = positions[row] * {{ 2 * HALF4 }}u;
        let cosine = load_table(angle + j);
        let sine = {% if INVERSE %}-{% endif %}load_table(angle + {{ HALF4 }}u + j);
        let first = head * {{ 2 * OWN4 }}u + j;
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
