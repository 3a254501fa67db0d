// Matrix product for CPU devices, where a barrier costs much: none, or one for many multiply-adds.
//
// A workgroup is SUBGROUPS subgroups of LANES invocations and owns ROWS x (4 LANES SUBGROUPS) elements of the product
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. Each invocation owns four
// columns and all rows. How the rows reach the lanes:
// - DEPTH > 0: through workgroup memory, DEPTH groups of four along k at a time, for vectors so wide that the subgroups'
//   shared loads outweigh the barriers; every lane reads the same address, which such drivers load once. The second pair
//   is short and goes the next way;
// - UNIFORM: every lane loads every row; for drivers that load once where all lanes want the same address;
// - otherwise the workgroup is one subgroup: each lane loads a piece, subgroupBroadcast hands it on.
// UNROLL groups of four along k are taken together; they must divide the inner dimension. R_OCTETS, C_OCTETS: an operand
// with k innermost is bound in groups of eight and loaded in such.
// AHEAD loads a turn's columns a turn earlier: with k innermost each lies in a cache line of its own.
// TRANSPOSED stores out[col, row] instead, so that a thin product can use its long side as columns.
// PAIR adds the second pair. Masks, gates, parts, and what is added to the result or made of it: see the includes.
{% include "shared/operands.wgsl" %}
{% include "shared/result.wgsl" %}
{% set ROW4 = ROWS // 4 %}
{% set LOADS = ROWS // LANES %}
{% set WORKGROUP = LANES * SUBGROUPS %}
{% set BROADCAST = DEPTH == 0 and not UNIFORM %}
{% if DEPTH > 0 %}
// [row, k]
var<workgroup> block: array<vec4<f32>, {{ ROWS * DEPTH }}>;
{% endif %}

{# lets {{ to }}0_{{ i }} and on be a turn's groups of four of one row or column, whose first is group `at` #}
{% macro line(name, to, i, at) %}
{% for u in range(UNROLL) %}
{% if not ((name == "r" and R_OCTETS) or (name == "c" and C_OCTETS)) %}
        let {{ to }}{{ u }}_{{ i }} = {{ load(name, at ~ " + t" ~ u) }};
{% elif u % 2 == 0 %}
        let {{ to }}_both{{ u }}_{{ i }} = raw_{{ name }}(({{ at }} + t{{ u }}) / 2u);
        let {{ to }}{{ u }}_{{ i }} = {{ kept(name, "low_" ~ name ~ "(" ~ to ~ "_both" ~ u ~ "_" ~ i ~ ")", at ~ " + t" ~ u) }};
{% else %}
        let {{ to }}{{ u }}_{{ i }} = {{ kept(name, "high_" ~ name ~ "(" ~ to ~ "_both" ~ (u - 1) ~ "_" ~ i ~ ")", at ~ " + t" ~ u) }};
{% endif %}
{% endfor %}
{% endmacro %}

{# a turn's columns as they are stored; what lies in one cache line is loaded together #}
{% macro ahead(c, k, t, declare) %}
{% for j in range(4) %}
{% for u in range(UNROLL) %}
        {{ "var " if declare else "" }}n{{ u }}_{{ j }} = raw_{{ c }}(col_{{ j }} * params.{{ k }}_4 + {{ t }} + {{ u }}u);
{% endfor %}
{% endfor %}
{% endmacro %}

{% macro columns(c, k) %}
{% for u in range(UNROLL) %}
        let t{{ u }} = t + {{ u }}u;
{% endfor %}
{% if C_INNER %}
{% for j in range(4) %}
{% if AHEAD and c == "c" %}
{% for u in range(UNROLL) %}
        let c{{ u }}_{{ j }} = decode_c(n{{ u }}_{{ j }});
{% endfor %}
{% else %}
{{ line(c, "c", j, "col_" ~ j ~ " * params." ~ k ~ "_4") }}
{% endif %}
{% endfor %}
{% if AHEAD and c == "c" %}
{{ ahead(c, k, "min(t + " ~ UNROLL ~ "u, params." ~ k ~ "_4 - " ~ UNROLL ~ "u)", false) }}
{% endif %}
{% for u in range(UNROLL) %}
{% for q in ["x", "y", "z", "w"] %}
        let w{{ u }}_{{ loop.index0 }} = vec4<f32>(c{{ u }}_0.{{ q }}, c{{ u }}_1.{{ q }}, c{{ u }}_2.{{ q }}, c{{ u }}_3.{{ q }});
{% endfor %}
{% endfor %}
{% else %}
{% for u in range(UNROLL) %}
{% for q in range(4) %}
        let w{{ u }}_{{ q }} = {{ load(c, "min(4u * t" ~ u ~ " + " ~ q ~ "u, params." ~ k ~ " - 1u) * params.cols4 + col4") }};
{% endfor %}
{% endfor %}
{% endif %}
{% endmacro %}

{# the lanes' loads of the rows' operand, which pieces hand out #}
{% macro share(r, k) %}
{% if BROADCAST %}
{% for i in range(LOADS) %}
{% if R_INNER %}
{{ line(r, "r", i, "min(row0 + " ~ LANES * i ~ "u + lane, params.rows - 1u) * params." ~ k ~ "_4") }}
{% else %}
{# piece e = k within four * ROW4 + group of four rows; lane l loads the pieces i * LANES + l #}
{% for u in range(UNROLL) %}
        let k{{ u }}_{{ i }} = 4u * t{{ u }} + ({{ i * LANES }}u + lane) / {{ ROW4 }}u;
        let r{{ u }}_{{ i }} = select(
            vec4<f32>(),
            {{ rows_of(r, "min(k" ~ u ~ "_" ~ i ~ ", params." ~ k ~ " - 1u)", k, "min(row0 / 4u + (" ~ i * LANES ~ "u + lane) % " ~ ROW4 ~ "u, params.rows4 - 1u)") }},
            k{{ u }}_{{ i }} < params.{{ k }});
{% endfor %}
{% endif %}
{% endfor %}
{% endif %}
{% endmacro %}

{# R_INNER or from the block: four k of row e; otherwise four rows of one k #}
{% macro piece(r, k, u, e) %}
{% if DEPTH > 0 and r == "r" %}
        let a{{ u }}_{{ e }} = block[{{ e * DEPTH }}u + t{{ u }} - first];
{% elif BROADCAST %}
        let a{{ u }}_{{ e }} = subgroupBroadcast(r{{ u }}_{{ e // LANES }}, {{ e % LANES }}u);
{% elif R_INNER %}
        let a{{ u }}_{{ e }} = {{ load(r, "min(row0 + " ~ e ~ "u, params.rows - 1u) * params." ~ k ~ "_4 + t" ~ u) }};
{% else %}
        let k{{ u }}_{{ e }} = 4u * t{{ u }} + {{ e // ROW4 }}u;
        let a{{ u }}_{{ e }} = select(
            vec4<f32>(),
            {{ rows_of(r, "min(k" ~ u ~ "_" ~ e ~ ", params." ~ k ~ " - 1u)", k, "min(row0 / 4u + " ~ e % ROW4 ~ "u, params.rows4 - 1u)") }},
            k{{ u }}_{{ e }} < params.{{ k }});
{% endif %}
{% endmacro %}

{# the next DEPTH groups of four along k, for all lanes #}
{% macro stage(r, k) %}
        for (var i = lane; i < {{ ROWS * DEPTH }}u; i += {{ WORKGROUP }}u) {
{% if R_INNER %}
            block[i] = {{ load(r, "min(row0 + i / " ~ DEPTH ~ "u, params.rows - 1u) * params." ~ k ~ "_4 + min(first + i % " ~ DEPTH ~ "u, params." ~ k ~ "_4 - 1u)") }};
{% else %}
            let k = 4u * first + i / {{ ROW4 }}u;
            let rows = select(
                vec4<f32>(),
                {{ rows_of(r, "min(k, params." ~ k ~ " - 1u)", k, "min(row0 / 4u + i % " ~ ROW4 ~ "u, params.rows4 - 1u)") }},
                k < params.{{ k }});
            let at = i % {{ ROW4 }}u * {{ 4 * DEPTH }}u + i / {{ 4 * ROW4 }}u;
{% for q in range(4) %}
            block[at + {{ q * DEPTH }}u][i / {{ ROW4 }}u % 4u] = rows[{{ q }}];
{% endfor %}
{% endif %}
        }
{% endmacro %}

{% macro product(r, c, k) %}
{% set staged = DEPTH > 0 and r == "r" %}
{% if staged %}
    for (var first = 0u; first < params.{{ k }}_4; first += {{ DEPTH }}u) {
        let end = min(first + {{ DEPTH }}u, params.{{ k }}_4);
{{ stage(r, k) }}
        workgroupBarrier();
{% if AHEAD %}
{{ ahead(c, k, "first", true) }}
{% endif %}
    for (var t = first; t < end; t += {{ UNROLL }}u) {
{% else %}
    for (var t = 0u; t < params.{{ k }}_4; t += {{ UNROLL }}u) {
{% endif %}
{{ columns(c, k) }}
{{ share(r, k) }}
{# the sums of few rows stay in registers while they meet all k at hand #}
{% if R_INNER or staged %}
{% for e in range(ROWS) %}
{% for u in range(UNROLL) %}
{{ piece(r, k, u, e) }}
{% for q in ["x", "y", "z", "w"] %}
        s{{ e }} = fma(vec4<f32>(a{{ u }}_{{ e }}.{{ q }}), w{{ u }}_{{ loop.index0 }}, s{{ e }});
{% endfor %}
{% endfor %}
{% endfor %}
{% else %}
{% for row4 in range(ROW4) %}
{% if not BROADCAST %}
{% for u in range(UNROLL) %}
{% for j in range(4) %}
{{ piece(r, k, u, j * ROW4 + row4) }}
{% endfor %}
{% endfor %}
{% endif %}
{% for i in range(4) %}
{% for u in range(UNROLL) %}
{% for j in range(4) %}
{% set e = j * ROW4 + row4 %}
{% if BROADCAST %}
{# handed out where it is used: 16 of them at once would leave the registers #}
{% set one = "subgroupBroadcast(r" ~ u ~ "_" ~ e // LANES ~ "[" ~ i ~ "], " ~ e % LANES ~ "u)" %}
{% else %}
{% set one = "a" ~ u ~ "_" ~ e ~ "[" ~ i ~ "]" %}
{% endif %}
        s{{ 4 * row4 + i }} = fma(vec4<f32>({{ one }}), w{{ u }}_{{ j }}, s{{ 4 * row4 + i }});
{% endfor %}
{% endfor %}
{% endfor %}
{% endfor %}
{% endif %}
    }
{% if staged %}
        workgroupBarrier();
    }
{% endif %}
{% endmacro %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
{% if DEPTH > 0 %}
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) within: u32,
) {
    // llvmpipe divides for local_invocation_index, anew in every turn of a kernel with barriers
    let lane = subgroup * {{ LANES }}u + within;
{% elif BROADCAST %}
    @builtin(subgroup_invocation_id) lane: u32,
) {
{% else %}
    @builtin(local_invocation_index) lane: u32,
) {
{% endif %}
    let tile = group_index(group, groups);
    if (tile >= params.tiles) {
        return;
    }
    let row0 = tile / params.col_tiles * {{ ROWS }}u;
    let col0 = (tile % params.col_tiles * {{ WORKGROUP }}u + lane) * 4u;
    let col4 = min(col0 / 4u, params.cols4 - 1u);
{% if C_INNER %}
{% for j in range(4) %}
    let col_{{ j }} = min(col0 + {{ j }}u, params.cols - 1u);
{% endfor %}
{% endif %}
{% for i in range(ROWS) %}
    var s{{ i }} = vec4<f32>();
{% endfor %}
{% if MASKED %}
    let seed = mask_seed();
{% endif %}
{% if PAIR %}
{{ product("r2", "c2", "k2") }}
{% endif %}
{% if PAIR_MASKED %}
{% for i in range(ROWS) %}
    s{{ i }} = dropped(s{{ i }}, (row0 + {{ i }}u) * params.cols4 + col4, seed);
{% endfor %}
{% endif %}
{{ product("r", "c", "k") }}
{% if TRANSPOSED %}
{% for j in range(4) %}
    if (col0 + {{ j }}u < params.cols) {
{% for i in range(ROW4) %}
        if (row0 + {{ 4 * i }}u < params.rows) {
            let at = {{ transposed("col0 + " ~ j ~ "u", "(row0 / 4u + " ~ i ~ "u)") }};
            let valid = vec4<u32>(row0 + {{ 4 * i }}u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.rows);
            let v = select(vec4<f32>(), params.alpha * vec4<f32>(s{{ 4 * i }}[{{ j }}], s{{ 4 * i + 1 }}[{{ j }}], s{{ 4 * i + 2 }}[{{ j }}], s{{ 4 * i + 3 }}[{{ j }}]), valid);
            {{ put("at", "v") }}
        }
{% endfor %}
    }
{% endfor %}
{% else %}
    if (col0 >= params.cols) {
        return;
    }
    let valid = vec4<u32>(col0) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
{% for i in range(ROWS) %}
    if (row0 + {{ i }}u < params.rows) {
        let at = (row0 + {{ i }}u) * params.cols4 + col4;
        let v = select(vec4<f32>(), params.alpha * s{{ i }}, valid);
        {{ put("at", "v") }}
    }
{% endfor %}
{% endif %}
}
