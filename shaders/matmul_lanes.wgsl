// Matrix product for CPU devices, whose workgroup memory and barriers cost more than they save.
//
// A workgroup is LANES invocations and owns ROWS x (4 LANES) elements of the product
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. Each invocation owns four
// columns and all rows. How the rows reach the lanes:
// - UNIFORM: every lane loads every row; for drivers that load once where all lanes want the same address;
// - otherwise the workgroup is one subgroup: each lane loads a piece, subgroupBroadcast hands it on.
// UNROLL groups of four along k are taken together; they must divide the inner dimension.
// TRANSPOSED stores out[col, row] instead, so that a thin product can use its long side as columns.
// PAIR adds the second pair; RESIDUAL adds another tensor; ACCUMULATE adds to what is there. Masks and parts: see the include.
{% include "shared/operands.wgsl" %}
{% set ROW4 = ROWS // 4 %}
{% set LOADS = ROWS // LANES %}

{% macro columns(c, k, u) %}
        let t{{ u }} = t + {{ u }}u;
{% if C_INNER %}
{% for j in range(4) %}
        let c{{ u }}_{{ j }} = {{ load(c, "col_" ~ j ~ " * params." ~ k ~ "_4 + t" ~ u) }};
{% endfor %}
{% for q in ["x", "y", "z", "w"] %}
        let w{{ u }}_{{ loop.index0 }} = vec4<f32>(c{{ u }}_0.{{ q }}, c{{ u }}_1.{{ q }}, c{{ u }}_2.{{ q }}, c{{ u }}_3.{{ q }});
{% endfor %}
{% else %}
{% for q in range(4) %}
        let w{{ u }}_{{ q }} = {{ load(c, "min(4u * t" ~ u ~ " + " ~ q ~ "u, params." ~ k ~ " - 1u) * params.cols4 + col4") }};
{% endfor %}
{% endif %}
{% endmacro %}

{# the lanes' loads of the rows' operand, which pieces hand out #}
{% macro share(r, k, u) %}
{% if not UNIFORM %}
{% for i in range(LOADS) %}
{% if R_INNER %}
        let r{{ u }}_{{ i }} = {{ load(r, "min(row0 + " ~ LANES * i ~ "u + lane, params.rows - 1u) * params." ~ k ~ "_4 + t" ~ u) }};
{% else %}
{# piece e = k within four * ROW4 + group of four rows; lane l loads the pieces i * LANES + l #}
        let k{{ u }}_{{ i }} = 4u * t{{ u }} + ({{ i * LANES }}u + lane) / {{ ROW4 }}u;
        let r{{ u }}_{{ i }} = select(
            vec4<f32>(),
            {{ rows_of(r, "min(k" ~ u ~ "_" ~ i ~ ", params." ~ k ~ " - 1u)", k, "min(row0 / 4u + (" ~ i * LANES ~ "u + lane) % " ~ ROW4 ~ "u, params.rows4 - 1u)") }},
            k{{ u }}_{{ i }} < params.{{ k }});
{% endif %}
{% endfor %}
{% endif %}
{% endmacro %}

{# R_INNER: four k of row e; otherwise four rows of one k #}
{% macro piece(r, k, u, e) %}
{% if not UNIFORM %}
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

{% macro product(r, c, k) %}
    for (var t = 0u; t < params.{{ k }}_4; t += {{ UNROLL }}u) {
{% for u in range(UNROLL) %}
{{ columns(c, k, u) }}
{{ share(r, k, u) }}
{% endfor %}
{# the sums of few rows stay in registers while they meet all k at hand #}
{% if R_INNER %}
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
{% for u in range(UNROLL) %}
{% for j in range(4) %}
{% set e = j * ROW4 + row4 %}
{{ piece(r, k, u, e) }}
{% for q in ["x", "y", "z", "w"] %}
        s{{ 4 * row4 + loop.index0 }} = fma(vec4<f32>(a{{ u }}_{{ e }}.{{ q }}), w{{ u }}_{{ j }}, s{{ 4 * row4 + loop.index0 }});
{% endfor %}
{% endfor %}
{% endfor %}
{% endfor %}
{% endif %}
    }
{% endmacro %}

{% macro added() %}{% if RESIDUAL %} + load_residual(at){% endif %}{% if ACCUMULATE %} + load_out(at){% endif %}{% endmacro %}

@compute @workgroup_size({{ LANES }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = group_index(group, groups);
    if (tile >= params.tiles) {
        return;
    }
    let row0 = tile / params.col_tiles * {{ ROWS }}u;
    let col0 = (tile % params.col_tiles * {{ LANES }}u + lane) * 4u;
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
            store_out(at, v{{ added() }});
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
        store_out(at, select(vec4<f32>(), params.alpha * s{{ i }}, valid){{ added() }});
    }
{% endfor %}
{% endif %}
}
