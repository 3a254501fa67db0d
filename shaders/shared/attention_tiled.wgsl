// What the tiled attention kernels share: tiles in workgroup memory, block products in registers.
//
// A workgroup of ACROSS x DOWN invocations owns ROWS rows (of queries, or of keys where their gradient is made) and meets
// BLOCK columns (of keys, or of queries) per turn. Invocation (x, y) owns the scores of its rows 4 (y + DOWN g) + 0..3,
// g < PER_ROWS / 4, and columns x + ACROSS c, c < PER_COLS. A score's vector runs over four rows: s{g}_{c}; of a result,
// which has the head's D4 groups of four columns, the invocation owns the groups x + ACROSS c of its rows: o{row}_{c}.
//
// A product walks the head dimension in chunks of DEPTH: `tiles` holds the chunk of both operands, line by line of one
// element each. The second products read the scores from `weights`, one line per column, and stage LINES whole rows at a
// time in `tiles`. RESIDENT holds the rows' operands, RESIDENTS of them, in workgroup memory all the while. The kernel that
// includes this says how the operands of each side lie: R_EXTENT, R_STRIDE, R_BASE and C_EXTENT, C_STRIDE, C_BASE; and
// OUT_STRIDE, OUT_BASE, where its result does not lie as the rows.
//
// TURNED: a gradient is turned back by the angle of its row's position before it is stored, as rope.wgsl does, and with the
// same `positions` and `table`.
{% include "shared/soft_cap.wgsl" %}
{% if OUT_STRIDE is undefined %}
{% set OUT_STRIDE = R_STRIDE %}
{% set OUT_BASE = R_BASE %}
{% endif %}
{% set D4 = HEAD_DIM // 4 %}
{% set ACROSS = BLOCK // PER_COLS %}
{% set DOWN = ROWS // PER_ROWS %}
{% set WORKGROUP = ACROSS * DOWN %}
{% set QR = PER_ROWS // 4 %}
{% set QC = PER_COLS // 4 %}
{% set SHARE = (D4 + ACROSS - 1) // ACROSS %}
{% set DEPTH4 = DEPTH // 4 %}
{% set WHOLE4 = (D4 + DEPTH4 - 1) // DEPTH4 * DEPTH4 %}
{# groups of four per line, and one more against bank conflicts #}
{% set R_LINE = ROWS // 4 + 1 %}
{% set C_LINE = BLOCK // 4 + 1 %}
{% set C_START = 0 if RESIDENT else DEPTH * R_LINE %}
{# an invocation owns the other half of every pair that it owns #}
{% set HALF = D4 // 2 %}
{% set OWNS_PAIRS = HALF % ACROSS == 0 %}
{% set EXCHANGED = DOWN * HALF if TURNED and not OWNS_PAIRS else 0 %}
var<workgroup> tiles: array<vec4<f32>, {{ [C_START + DEPTH * C_LINE, LINES * D4, ACROSS * ROWS // 4, EXCHANGED] | max }}>;
var<workgroup> weights: array<vec4<f32>, {{ BLOCK * R_LINE }}>;
{% if RESIDENT %}
var<workgroup> resident: array<vec4<f32>, {{ RESIDENTS * 4 * WHOLE4 * R_LINE }}>;
{% endif %}

{# declares what every invocation knows of its place #}
{% macro place() %}
    let x = lane % {{ ACROSS }}u;
    let y = lane / {{ ACROSS }}u;
{% for g in range(QR) %}
    let rows{{ g }} = min(vec4<u32>(row0 + 4u * (y + {{ g * DOWN }}u)) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>({{ R_EXTENT }} - 1u));
{% endfor %}
{% endmacro %}

{# a number of each of the invocation's rows, from an array #}
{% macro of_rows(array, g, base="") %}vec4<{{ "u32" if base == "" else "f32" }}>({% for j in ["x", "y", "z", "w"] %}{{ array }}[{{ base }}rows{{ g }}.{{ j }}]{{ ", " if not loop.last }}{% endfor %}){% endmacro %}

{# group t + q of four rows that are `step` apart becomes four lines at place `at` #}
{% macro transpose(into, line, at, tensor, row, step, extent, stride, base) %}
{% for j in range(4) %}
            var v{{ j }} = vec4<f32>();
{% endfor %}
{% if D4 % DEPTH4 != 0 %}
            if (t + q < {{ D4 }}u) {
{% else %}
            {
{% endif %}
{% for j in range(4) %}
                v{{ j }} = load_{{ tensor }}(min({{ row }} + {{ step * j }}u, {{ extent }} - 1u) * {{ stride }} + {{ base }} + t + q);
{% endfor %}
            }
{% for j in ["x", "y", "z", "w"] %}
            {{ into }} + (4u * q + {{ loop.index0 }}u) * {{ line }}u + {{ at }}] = vec4<f32>(v0.{{ j }}, v1.{{ j }}, v2.{{ j }}, v3.{{ j }});
{% endfor %}
{% endmacro %}

{# the rows' operand, for the whole walk #}
{% macro reside(tensor, slot) %}
    for (var e = lane; e < {{ ROWS // 4 * WHOLE4 }}u; e += {{ WORKGROUP }}u) {
        let t = 0u;
        let q = e % {{ WHOLE4 }}u;
        let at = e / {{ WHOLE4 }}u;
{{ transpose("resident[" ~ (slot * 4 * WHOLE4 * R_LINE) ~ "u", R_LINE, "at", tensor, "row0 + 4u * at", 1, R_EXTENT, R_STRIDE, R_BASE) }}
    }
{% endmacro %}

{% macro stage_columns(tensor, at) %}
{{ transpose("tiles[" ~ C_START ~ "u", C_LINE, at, tensor, "first + " ~ at if QC == 1 else "first + " ~ at ~ " % " ~ ACROSS ~ "u + " ~ at ~ " / " ~ ACROSS ~ "u * " ~ (4 * ACROSS) ~ "u", ACROSS, C_EXTENT, C_STRIDE, C_BASE) }}
{% endmacro %}

{# name{g}_{c} = rows' operand . columns' operand over the head dimension; the tiles are free before and after #}
{% macro product(name, row_tensor, column_tensor, slot) %}
{% for g in range(QR) %}
{% for c in range(PER_COLS) %}
        var {{ name }}{{ g }}_{{ c }} = vec4<f32>();
{% endfor %}
{% endfor %}
        for (var t = 0u; t < {{ D4 }}u; t += {{ DEPTH4 }}u) {
{% set STAGED = BLOCK // 4 if RESIDENT else (ROWS + BLOCK) // 4 %}
            for (var e = lane; e < {{ STAGED * DEPTH4 }}u; e += {{ WORKGROUP }}u) {
                let q = e % {{ DEPTH4 }}u;
                let at = e / {{ DEPTH4 }}u;
{% if RESIDENT %}
{{ stage_columns(column_tensor, "at") }}
{% else %}
                if (at < {{ ROWS // 4 }}u) {
{{ transpose("tiles[0u", R_LINE, "at", row_tensor, "row0 + 4u * at", 1, R_EXTENT, R_STRIDE, R_BASE) }}
                } else {
                    let column = at - {{ ROWS // 4 }}u;
{{ stage_columns(column_tensor, "column") }}
                }
{% endif %}
            }
            workgroupBarrier();
            for (var i = 0u; i < {{ DEPTH }}u; i += 1u) {
{% for p in range(QC) %}
                let w{{ p }} = tiles[{{ C_START }}u + i * {{ C_LINE }}u + x + {{ p * ACROSS }}u];
{% endfor %}
{% for g in range(QR) %}
{% if RESIDENT %}
                let a{{ g }} = resident[({{ slot * 4 * WHOLE4 }}u + 4u * t + i) * {{ R_LINE }}u + y + {{ g * DOWN }}u];
{% else %}
                let a{{ g }} = tiles[i * {{ R_LINE }}u + y + {{ g * DOWN }}u];
{% endif %}
{% for p in range(QC) %}
{% for j in ["x", "y", "z", "w"] %}
                {{ name }}{{ g }}_{{ 4 * p + loop.index0 }} = fma(a{{ g }}, vec4<f32>(w{{ p }}.{{ j }}), {{ name }}{{ g }}_{{ 4 * p + loop.index0 }});
{% endfor %}
{% endfor %}
{% endfor %}
            }
            workgroupBarrier();
        }
{% endmacro %}

{# name{g} = its sum or largest value over the invocations that share the rows, in their order; needs the tiles free and
   leaves them in use until the next barrier #}
{% macro over_row(name, largest) %}
{% for g in range(QR) %}
        tiles[x * {{ ROWS // 4 }}u + y + {{ g * DOWN }}u] = {{ name }}{{ g }};
{% endfor %}
        workgroupBarrier();
{% for g in range(QR) %}
        {{ name }}{{ g }} = tiles[y + {{ g * DOWN }}u];
{% endfor %}
        for (var i = 1u; i < {{ ACROSS }}u; i += 1u) {
{% for g in range(QR) %}
            let other{{ g }} = tiles[i * {{ ROWS // 4 }}u + y + {{ g * DOWN }}u];
            {{ name }}{{ g }} = {% if largest %}max({{ name }}{{ g }}, other{{ g }}){% else %}{{ name }}{{ g }} + other{{ g }}{% endif %};
{% endfor %}
        }
{% endmacro %}

{# hands the scores to the workgroup: what read the last ones is past a barrier #}
{% macro share(name) %}
{% for g in range(QR) %}
{% for c in range(PER_COLS) %}
        weights[(x + {{ c * ACROSS }}u) * {{ R_LINE }}u + y + {{ g * DOWN }}u] = {{ name }}{{ g }}_{{ c }};
{% endfor %}
{% endfor %}
        workgroupBarrier();
{% endmacro %}

{% macro zero(name) %}
{% for row in range(PER_ROWS) %}
{% for c in range(SHARE) %}
    var {{ name }}{{ row }}_{{ c }} = vec4<f32>();
{% endfor %}
{% endfor %}
{% endmacro %}

{# name{row}_{c} += weights . columns' operand over the block; the tiles are free before and after #}
{% macro accumulate(name, tensor) %}
        for (var line = 0u; line < {{ BLOCK }}u; line += {{ LINES }}u) {
            for (var e = lane; e < {{ LINES * D4 }}u; e += {{ WORKGROUP }}u) {
                let at = min(first + line + e / {{ D4 }}u, {{ C_EXTENT }} - 1u);
                tiles[e] = load_{{ tensor }}(at * {{ C_STRIDE }} + {{ C_BASE }} + e % {{ D4 }}u);
            }
            workgroupBarrier();
            for (var i = 0u; i < {{ LINES }}u; i += 1u) {
{% for c in range(SHARE) %}
{# past the head's end: a sum that is not stored #}
                let w{{ c }} = tiles[i * {{ D4 }}u + {% if (c + 1) * ACROSS > D4 %}min(x + {{ c * ACROSS }}u, {{ D4 - 1 }}u){% else %}x + {{ c * ACROSS }}u{% endif %}];
{% endfor %}
{% for g in range(QR) %}
                let p{{ g }} = weights[(line + i) * {{ R_LINE }}u + y + {{ g * DOWN }}u];
{% for j in ["x", "y", "z", "w"] %}
{% set row = 4 * g + loop.index0 %}
{% for c in range(SHARE) %}
                {{ name }}{{ row }}_{{ c }} = fma(vec4<f32>(p{{ g }}.{{ j }}), w{{ c }}, {{ name }}{{ row }}_{{ c }});
{% endfor %}
{% endfor %}
{% endfor %}
            }
            workgroupBarrier();
        }
{% endmacro %}

{# name{row}_{c} *= the row's factor{g} #}
{% macro scale_rows(name, factor) %}
{% for row in range(PER_ROWS) %}
{% for c in range(SHARE) %}
    {{ name }}{{ row }}_{{ c }} *= {{ factor }}{{ row // 4 }}[{{ row % 4 }}];
{% endfor %}
{% endfor %}
{% endmacro %}

{# turns name{row}_{c} back by the angles of the rows' positions; needs the tiles free and leaves them in use #}
{% macro turn_back(name) %}
{% for row in range(PER_ROWS) %}
    {
        let angle = positions[rows{{ row // 4 }}[{{ row % 4 }}]] * {{ D4 }}u;
{% if OWNS_PAIRS %}
{% for c in range(HALF // ACROSS) %}
{% set second = c + HALF // ACROSS %}
        {
            let cosine = load_table(angle + x + {{ c * ACROSS }}u);
            let sine = load_table(angle + x + {{ second * ACROSS }}u);
            let x1 = {{ name }}{{ row }}_{{ c }};
            let x2 = {{ name }}{{ row }}_{{ second }};
            {{ name }}{{ row }}_{{ c }} = x1 * cosine + x2 * sine;
            {{ name }}{{ row }}_{{ second }} = x2 * cosine - x1 * sine;
        }
{% endfor %}
{% else %}
{# who owns the second half of a pair hands it to who owns the first, and gets it back turned #}
        let line = y * {{ HALF }}u;
{% for c in range(SHARE) %}
        let d{{ c }} = x + {{ c * ACROSS }}u;
        if (d{{ c }} >= {{ HALF }}u && d{{ c }} < {{ D4 }}u) {
            tiles[line + d{{ c }} - {{ HALF }}u] = {{ name }}{{ row }}_{{ c }};
        }
{% endfor %}
        workgroupBarrier();
{% for c in range(SHARE) %}
        if (d{{ c }} < {{ HALF }}u) {
            let cosine = load_table(angle + d{{ c }});
            let sine = load_table(angle + d{{ c }} + {{ HALF }}u);
            let x1 = {{ name }}{{ row }}_{{ c }};
            let x2 = tiles[line + d{{ c }}];
            {{ name }}{{ row }}_{{ c }} = x1 * cosine + x2 * sine;
            tiles[line + d{{ c }}] = x2 * cosine - x1 * sine;
        }
{% endfor %}
        workgroupBarrier();
{% for c in range(SHARE) %}
        if (d{{ c }} >= {{ HALF }}u && d{{ c }} < {{ D4 }}u) {
            {{ name }}{{ row }}_{{ c }} = tiles[line + d{{ c }} - {{ HALF }}u];
        }
{% endfor %}
{% endif %}
    }
{% endfor %}
{% endmacro %}

{# stores the invocation's part of the rows that exist #}
{% macro store(tensor, name, factor="") %}
{% for row in range(PER_ROWS) %}
    {
        let row = row0 + 4u * (y + {{ row // 4 * DOWN }}u) + {{ row % 4 }}u;
        let at = row * {{ OUT_STRIDE }} + {{ OUT_BASE }} + x;
        if (row < {{ R_EXTENT }}) {
{% for c in range(SHARE) %}
{% if (c + 1) * ACROSS > D4 %}
            if (x + {{ c * ACROSS }}u < {{ D4 }}u) {
                store_{{ tensor }}(at + {{ c * ACROSS }}u, {{ name }}{{ row }}_{{ c }}{{ factor }});
            }
{% else %}
            store_{{ tensor }}(at + {{ c * ACROSS }}u, {{ name }}{{ row }}_{{ c }}{{ factor }});
{% endif %}
{% endfor %}
        }
    }
{% endfor %}
{% endmacro %}

{# stores a number of each row, once per row #}
{% macro store_rows(array, name) %}
    if (x == 0u) {
{% for g in range(QR) %}
{% for j in range(4) %}
        if (row0 + 4u * (y + {{ g * DOWN }}u) + {{ j }}u < {{ R_EXTENT }}) {
            {{ array }}[head * params.lse_stride + rows{{ g }}[{{ j }}]] = {{ name }}{{ g }}[{{ j }}];
        }
{% endfor %}
{% endfor %}
    }
{% endmacro %}
