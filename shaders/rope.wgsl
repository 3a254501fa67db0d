// Rotary embedding of x [T, heads * head_dim], of each head's first 2 HALF elements pairs (j, j + HALF) turned by the angle
// of positions[t]: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; INVERSE turns back (the gradient). The others stay.
// `table` [positions, 2 HALF] holds cosines, then sines, of one position in a row.
// An invocation owns one group of four of the first half of a head's turned elements and its partner in the second, or two of the 2 * REST4
// groups that stay; where HALF is no multiple of four, a whole head. A workgroup has those of one of PARTS tensors. REPLACES: y lies
// where x lay.
{% set HALF4 = HALF // 4 %}
{% set APART = HALF % 4 == 0 %}
{# known beforehand, since a CPU divides lane by lane #}
{% macro turn_pairs(part, i, HEADS, REPLACES) %}
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
{% endmacro %}
{# element e of a row of groups of four in the values `name` 0 and on #}
{% macro element(name, e) %}{{ name }}{{ e // 4 }}[{{ e % 4 }}]{% endmacro %}
{% macro turn_head(part, head, HEADS, REPLACES) %}
        let angle = positions[{{ head }} / {{ HEADS }}u] * {{ HALF // 2 }}u;
        let first = {{ head }} * {{ HEAD4 }}u;
{% for g in range(HALF // 2) %}
        let a{{ g }} = load_table(angle + {{ g }}u);
        let x{{ g }} = load_{{ "y" if REPLACES else "x" }}{{ part }}(first + {{ g }}u);
        var t{{ g }} = x{{ g }};
{% endfor %}
{% for j in range(HALF) %}
        {{ element("t", j) }} = {{ element("x", j) }} * {{ element("a", j) }} {{ "+" if INVERSE else "-" }} {{ element("x", j + HALF) }} * {{ element("a", j + HALF) }};
        {{ element("t", j + HALF) }} = {{ element("x", j + HALF) }} * {{ element("a", j) }} {{ "-" if INVERSE else "+" }} {{ element("x", j) }} * {{ element("a", j + HALF) }};
{% endfor %}
{% for g in range(HALF // 2) %}
        store_y{{ part }}(first + {{ g }}u, t{{ g }});
{% endfor %}
{% if not REPLACES %}
        for (var stays = first + {{ HALF // 2 }}u; stays < first + {{ HEAD4 }}u; stays++) {
            store_y{{ part }}(stays, load_x{{ part }}(stays));
        }
{% endif %}
{% endmacro %}
{% macro turn(part, i, HEADS, REPLACES) %}
    if ({{ i }} < params.items{{ part }}) {
{% if APART %}
{{ turn_pairs(part, i, HEADS, REPLACES) }}
{% else %}
{{ turn_head(part, i, HEADS, REPLACES) }}
{% endif %}
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
