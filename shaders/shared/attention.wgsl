// How attention kernels share rows of K, V, Q or dO among the invocations of a workgroup, each of which owns PER rows,
// WORKGROUP rows apart.
//
// LANES > 0 (CPU devices): a workgroup is one subgroup. A block is LANES rows, of which every lane loads one piece at a
// time (piece) that is broadcast to all (get); or, UNIFORM, it is KEYS rows that every lane loads itself (get), for drivers
// that load once where all lanes want the same address. Otherwise blocks of BLOCK rows of two tensors lie in workgroup
// memory (stage) and are walked row by row.
//
// TURNED: a gradient is turned back by the angle of its row's position before it is stored, as rope.wgsl does, and with the
// same `positions` and `table`.
{% include "shared/soft_cap.wgsl" %}
{% set D4 = HEAD_DIM // 4 %}
{% set SHARED = LANES == 0 %}
{% set WORKGROUP = 64 if SHARED else LANES %}
{% set ROWS = WORKGROUP * PER %}
{% set BLOCK = (16 if HEAD_DIM <= 128 else 8) if SHARED else KEYS %}
{% if SHARED %}
var<workgroup> block1: array<vec4<f32>, {{ BLOCK * D4 }}>;
var<workgroup> block2: array<vec4<f32>, {{ BLOCK * D4 }}>;
{% endif %}

{# an invocation's query row r of its head, and the keys that it sees #}
{% macro own_query(r) %}
    let row{{ r }} = min(first_row + {{ r * WORKGROUP }}u + lane, params.rows - 1u);
    let q_base{{ r }} = row{{ r }} * params.q_stride + head * {{ D4 }}u;
    let start{{ r }} = starts[row{{ r }}];
    let end{{ r }} = ends[row{{ r }}];
{% endmacro %}

{% macro stage(one, two, rows, stride, base) %}
        workgroupBarrier();
        for (var e = lane; e < {{ BLOCK * D4 }}u; e += {{ WORKGROUP }}u) {
            let at = min(first + e / {{ D4 }}u, {{ rows }} - 1u) * {{ stride }} + {{ base }} + e % {{ D4 }}u;
            block1[e] = load_{{ one }}(at);
            block2[e] = load_{{ two }}(at);
        }
        workgroupBarrier();
{% endmacro %}

{% macro piece(tensor, rows, stride, base, d) %}
{% if not UNIFORM %}
        let {{ tensor }}_piece{{ d }} = load_{{ tensor }}(min(first + lane, {{ rows }} - 1u) * {{ stride }} + {{ base }} + {{ d }}u);
{% endif %}
{% endmacro %}

{% macro get(tensor, rows, stride, base, j, d) %}{% if UNIFORM %}load_{{ tensor }}(min(first + {{ j }}u, {{ rows }} - 1u) * {{ stride }} + {{ base }} + {{ d }}u){% else %}subgroupBroadcast({{ tensor }}_piece{{ d }}, {{ j }}u){% endif %}{% endmacro %}

{# a score passes the cap, where there is one #}
{% macro cap_score(s) %}{% if CAPPED %}
            {{ s }} = soft_cap({{ s }});
{% endif %}{% endmacro %}

// s += a . b
{% macro dot_add(s, a, b) %}{{ s }} = fma({{ a }}.x, {{ b }}.x, fma({{ a }}.y, {{ b }}.y, fma({{ a }}.z, {{ b }}.z, fma({{ a }}.w, {{ b }}.w, {{ s }}))));{% endmacro %}

{# stores a row of a gradient times the scale #}
{% macro store_gradient(tensor, base, row, name) %}
{% if TURNED %}
        let angle = positions[{{ row }}] * {{ D4 }}u;
{% for d in range(D4 // 2) %}
        {
            let cosine = load_table(angle + {{ d }}u);
            let sine = load_table(angle + {{ d + D4 // 2 }}u);
            let x1 = {{ name }}_{{ d }} * params.scale;
            let x2 = {{ name }}_{{ d + D4 // 2 }} * params.scale;
            store_{{ tensor }}({{ base }} + {{ d }}u, x1 * cosine + x2 * sine);
            store_{{ tensor }}({{ base }} + {{ d + D4 // 2 }}u, x2 * cosine - x1 * sine);
        }
{% endfor %}
{% else %}
{% for d in range(D4) %}
        store_{{ tensor }}({{ base }} + {{ d }}u, {{ name }}_{{ d }} * params.scale);
{% endfor %}
{% endif %}
{% endmacro %}
