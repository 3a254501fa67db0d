// What the attention kernels on matrix units share: block products in cooperative matrices (see matrix.wgsl), and the way of
// their scores through workgroup memory.
//
// A workgroup of DOWN x ACROSS subgroups of LANES owns ROWS rows (of queries, or of keys where their gradient is made) and
// meets BLOCK columns (of keys, or of queries) per turn. A subgroup owns a strip of ROWS / DOWN rows and every ACROSS-th
// column of matrices, of the scores, {name}{i}_{j}, as of a result, which has the head's dimension: {name}{i}_{c}.
//
// The rows' operands are loaded straight from storage, in every turn or, RESIDENT, once for all; and so are the columns', or, STAGED, from workgroup memory, where the whole
// block is copied once for all subgroups; BOTH_WAYS: what meets weights there is turned, so that the block's columns run along its
// lines, beside how it lies where scores need it too. No element of a cooperative matrix can be reached, so scores go to workgroup
// memory (column by column: neighbouring invocations own neighbouring rows), where invocation `lane` owns row
// lane % ROWS and one of PARTS parts of its columns, and come back as weights in f16, row by row; results leave the same way
// as scores, SPAN columns at a time. All rows are multiples of M, N and K, so a matrix lies within a tensor or beyond it; those beyond are
// replaced by the last one, and masked or not stored. The kernel that includes this says how the operands of each side
// lie: R_EXTENT, R_STRIDE, R_BASE and C_EXTENT, C_STRIDE, C_BASE; and OUT_STRIDE, OUT_BASE, where its result does not lie
// as the rows; and WEIGHED_TURNED, whether what meets weights lies turned in workgroup memory.
//
// VECTORS: operands are arrays of groups of four, whose alignment lets a driver load several elements at once (RADV takes one
// after the other from arrays of elements); Metal cannot load matrices from them. Strides and bases count in what the arrays hold.
//
// TURNED: a gradient is turned back by the angle of its row's position before it is stored, as rope.wgsl does, and with the
// same `positions` and `table`.
{% include "shared/soft_cap.wgsl" %}
{% if OUT_STRIDE is undefined %}
{% set OUT_STRIDE = R_STRIDE %}
{% set OUT_BASE = R_BASE %}
{% endif %}
{% include "shared/matrix.wgsl" %}
{% set WORKGROUP = DOWN * ACROSS * LANES %}
{% set STRIP = ROWS // DOWN %}
{% set R_TILES = STRIP // M %}
{% set S_TILES = BLOCK // (N * ACROSS) %}
{% set D_TILES = HEAD_DIM // (N * ACROSS) %}
{% set PARTS = WORKGROUP // ROWS %}
{% set SHARE = BLOCK // PARTS %}
{% set SPAN_TILES = SPAN // (N * ACROSS) %}
{# elements from one column of scores to the next: lines stay at 16 bytes, and apart in the banks #}
{% set SCORE_LINE = ROWS + 4 %}
{# what arrays of halves hold, and how many make a group of four #}
{% set GROUP = 1 if VECTORS else 4 %}
{% set HALF = "vec4<f16>" if VECTORS else "f16" %}
{% set HEAD4 = HEAD_DIM // 4 * GROUP %}
{# where blocks can begin, for matrices of columns to lie within a tensor or beyond it, as operands of both products #}
{% set ALIGNMENT = [N, K] | max %}
{% set N4 = N // 4 * GROUP %}
{% set K4 = K // 4 * GROUP %}
{# from one row of weights, or of a block, to the next #}
{% set WEIGHT_LINE = (BLOCK + 8) // 4 * GROUP %}
{% set TILE_LINE = (HEAD_DIM + 8) // 4 * GROUP %}
// every array is a multiple of 16 bytes, so that what lies behind it stays aligned
var<workgroup> scores: array<f32, {{ SCORE_LINE * BLOCK }}>;
var<workgroup> weights: array<{{ HALF }}, {{ WEIGHT_LINE * ROWS }}>;
{% if PARTS > 1 %}
var<workgroup> partial: array<f32, {{ WORKGROUP }}>;
{% endif %}

{# declares what every invocation knows of its place #}
{% macro place() %}
    // no further than workgroup memory goes, should a driver run smaller subgroups than it says
    let subgroup = min(subgroup_id, {{ DOWN * ACROSS - 1 }}u);
    let across = subgroup % {{ ACROSS }}u;
    let strip = subgroup / {{ ACROSS }}u * {{ STRIP }}u;
    let own = lane % {{ ROWS }}u;
    let part = lane / {{ ROWS }}u;
    let row = row0 + own;
    // of a row beyond the end, the last one's
    let row_at = min(row, {{ R_EXTENT }} - 1u);
{% for i in range(R_TILES) %}
    let r_at{{ i }} = min(row0 + strip + {{ i * M }}u, {{ R_EXTENT }} - {{ M }}u) * {{ R_STRIDE }} + {{ R_BASE }};
{% endfor %}
{% endmacro %}

{# declares what gradients are multiplied by before they are stored, and what scales do #}
{% macro factors() %}
{% if SCALED %}
    let smaller = unscale[0];
    let larger = 1.0 / smaller;
    let scale_back = params.scale * smaller;
{% else %}
    let scale_back = params.scale;
{% endif %}
{% endmacro %}

{# scaled values that f16 holds in any case; what is not finite shows in dv, which is not bounded. Without scale it overflows
   where a network in f16 does, which its loss scale must see #}
{% macro bounded(value) %}{% if SCALED %}clamp({{ value }}, vec4<f32>(-65504.0), vec4<f32>(65504.0)){% else %}as_f16({{ value }}){% endif %}{% endmacro %}

{# name{i}_{j} = zero, in `tiles` columns of matrices #}
{% macro zero(name, tiles) %}
{% for i in range(R_TILES) %}
{% for j in range(tiles) %}
        var {{ name }}{{ i }}_{{ j }} = {{ MATRIX }}<f32, C>();
{% endfor %}
{% endfor %}
{% endmacro %}

{# where the columns' matrices of this turn lie in storage #}
{% macro columns() %}
{% if not STAGED %}
{% for j in range(S_TILES) %}
        let c_at{{ j }} = min(first + (across + {{ ACROSS * j }}u) * {{ N }}u, {{ C_EXTENT }} - {{ N }}u) * {{ C_STRIDE }} + {{ C_BASE }};
{% endfor %}
{% endif %}
{% endmacro %}

{# the block of a columns' operand in workgroup memory, [column, dimension] #}
{% macro tile(tensor) %}
{% if STAGED %}
var<workgroup> {{ tensor }}_tile: array<{{ HALF }}, {{ TILE_LINE * BLOCK }}>;
{% endif %}
{% endmacro %}

{# the same turned, [dimension, column], as weights want it #}
{% macro turned_tile(tensor) %}
{% if STAGED %}
var<workgroup> {{ tensor }}_turned: array<{{ HALF }}, {{ WEIGHT_LINE * HEAD_DIM }}>;
{% endif %}
{% endmacro %}

{# a group of four of an operand #}
{% macro group_of(tensor, at) %}{% if VECTORS %}{{ tensor }}[{{ at }}]{% else %}vec4<f16>({% for j in range(4) %}{{ tensor }}[{{ at }} + {{ j }}u]{{ ", " if not loop.last }}{% endfor %}){% endif %}{% endmacro %}

{# hands a group of four to workgroup memory #}
{% macro keep(area, at, value) %}
            {
                let half = {{ value }};
                let place = {{ at }};
{% if VECTORS %}
                {{ area }}[place] = half;
{% else %}
{% for j in range(4) %}
                {{ area }}[place + {{ j }}u] = half[{{ j }}];
{% endfor %}
{% endif %}
            }
{% endmacro %}

{# copies it there; what read the last one is past a barrier, and one follows #}
{% macro stage(tensor) %}
        for (var e = lane; e < {{ BLOCK * HEAD_DIM // 4 }}u; e += {{ WORKGROUP }}u) {
            let column = e / {{ HEAD_DIM // 4 }}u;
            let g = e % {{ HEAD_DIM // 4 }}u * {{ GROUP }}u;
            let at = min(first + column, {{ C_EXTENT }} - 1u) * {{ C_STRIDE }} + {{ C_BASE }} + g;
{{ keep(tensor ~ "_tile", "column * " ~ TILE_LINE ~ "u + g", group_of(tensor, "at")) }}
        }
{% endmacro %}

{# the same, turned, or, `plain`, both ways: an invocation turns four columns by four dimensions, its neighbours those of other columns,
   which are apart in the banks #}
{% macro stage_turned(tensor, plain=false) %}
        for (var e = lane; e < {{ BLOCK * HEAD_DIM // 16 }}u; e += {{ WORKGROUP }}u) {
            let columns = e % {{ BLOCK // 4 }}u;
            let g = e / {{ BLOCK // 4 }}u;
{% for j in range(4) %}
            let at{{ j }} = min(first + 4u * columns + {{ j }}u, {{ C_EXTENT }} - 1u) * {{ C_STRIDE }} + {{ C_BASE }} + g * {{ GROUP }}u;
            let column{{ j }} = {{ group_of(tensor, "at" ~ j) }};
{% if plain %}
{{ keep(tensor ~ "_tile", "(4u * columns + " ~ j ~ "u) * " ~ TILE_LINE ~ "u + g * " ~ GROUP ~ "u", "column" ~ j) }}
{% endif %}
{% endfor %}
{% for j in range(4) %}
{{ keep(tensor ~ "_turned", "(4u * g + " ~ j ~ "u) * " ~ WEIGHT_LINE ~ "u + columns * " ~ GROUP ~ "u", "vec4<f16>(column0[" ~ j ~ "], column1[" ~ j ~ "], column2[" ~ j ~ "], column3[" ~ j ~ "])") }}
{% endfor %}
        }
{% endmacro %}

{# the blocks of some operands, where they are staged, between barriers: what reads the last ones does so until a turn's end. Those
   that `weighed` names meet weights too #}
{% macro stage_all(tensors, weighed) %}
{% if STAGED %}
        workgroupBarrier();
{% for tensor in tensors %}
{{ stage_turned(tensor, true) if BOTH_WAYS and tensor in weighed else stage(tensor) }}
{% endfor %}
        workgroupBarrier();
{% endif %}
{% endmacro %}

{# an operand of the rows, {tensor}{i}_{t}, where it stays with the subgroup #}
{% macro resident(tensor) %}
{% if RESIDENT %}
{% for i in range(R_TILES) %}
{% for t in range(HEAD_DIM // K) %}
    let {{ tensor }}{{ i }}_{{ t }} = coopLoadT<{{ MATRIX }}<f16, A>>(&{{ tensor }}[r_at{{ i }} + {{ t * K4 }}u], {{ R_STRIDE }});
{% endfor %}
{% endfor %}
{% endif %}
{% endmacro %}

{# name{i}_{j} = rows' operand . columns' operand over the head dimension #}
{% macro product(name, row_tensor, column_tensor) %}
{{ zero(name, S_TILES) }}
{% if RESIDENT %}
{% for t in range(HEAD_DIM // K) %}
        {
            let t = {{ t * K4 }}u;
{{ products(name, column_tensor, row_tensor, "_" ~ t) }}
        }
{% endfor %}
{% else %}
        for (var t = 0u; t < {{ HEAD4 }}u; t += {{ K4 }}u) {
{% for i in range(R_TILES) %}
            let a{{ i }} = coopLoadT<{{ MATRIX }}<f16, A>>(&{{ row_tensor }}[r_at{{ i }} + t], {{ R_STRIDE }});
{% endfor %}
{{ products(name, column_tensor, "a", "") }}
        }
{% endif %}
{% endmacro %}

{# adds the products of the rows' matrices {a}{i}{end} at `t` along the head #}
{% macro products(name, column_tensor, a, end) %}
{% for j in range(S_TILES) %}
{% if STAGED %}
            let b{{ j }} = coopLoad<{{ MATRIX }}<f16, B>>(&{{ column_tensor }}_tile[(across + {{ ACROSS * j }}u) * {{ N * TILE_LINE }}u + t], {{ TILE_LINE }}u);
{% else %}
            let b{{ j }} = coopLoad<{{ MATRIX }}<f16, B>>(&{{ column_tensor }}[c_at{{ j }} + t], {{ C_STRIDE }});
{% endif %}
{% for i in range(R_TILES) %}
            {{ name }}{{ i }}_{{ j }} = coopMultiplyAdd({{ a }}{{ i }}{{ end }}, b{{ j }}, {{ name }}{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
{% endmacro %}

{# where the subgroup's matrix (i, j) lies in workgroup memory #}
{% macro at(i, j) %}(across + {{ ACROSS * j }}u) * {{ N * SCORE_LINE }}u + strip + {{ i * M }}u{% endmacro %}

{# hands the matrices of `tiles` to the workgroup; what read the last ones is past a barrier #}
{% macro spill(name, area, tiles) %}
{% for i in range(R_TILES) %}
{% for c in tiles %}
        coopStore({{ name }}{{ i }}_{{ c }}, &{{ area }}[{{ at(i, loop.index0) }}], {{ SCORE_LINE }}u);
{% endfor %}
{% endfor %}
{% endmacro %}

{# and takes them back #}
{% macro fetch(name, area, tiles) %}
{% for i in range(R_TILES) %}
{% for c in tiles %}
        {{ name }}{{ i }}_{{ c }} = coopLoad<{{ MATRIX }}<f32, C>>(&{{ area }}[{{ at(i, loop.index0) }}], {{ SCORE_LINE }}u);
{% endfor %}
{% endfor %}
{% endmacro %}

{# name = its sum or largest value over the invocations that share the row, in their order; leaves `partial` in use until
   the next barrier #}
{% macro over_row(name, largest) %}
{% if PARTS > 1 %}
        partial[lane] = {{ name }};
        workgroupBarrier();
        {{ name }} = partial[own];
{% for p in range(1, PARTS) %}
        {{ name }} = {% if largest %}max({{ name }}, partial[own + {{ p * ROWS }}u]){% else %}{{ name }} + partial[own + {{ p * ROWS }}u]{% endif %};
{% endfor %}
{% endif %}
{% endmacro %}

{# name{i}_{c} += weights . columns' operand over the block #}
{% macro accumulate(name, area, tensor) %}
        for (var t = 0u; t < {{ BLOCK }}u; t += {{ K }}u) {
{% if WEIGHED_TURNED %}
            let line = across * {{ N * WEIGHT_LINE }}u + t * {{ GROUP }}u / 4u;
{% elif STAGED %}
            let line = t * {{ TILE_LINE }}u + across * {{ N4 }}u;
{% else %}
            let line = min(first + t, {{ C_EXTENT }} - {{ K }}u) * {{ C_STRIDE }} + {{ C_BASE }} + across * {{ N4 }}u;
{% endif %}
{% for i in range(R_TILES) %}
            let a{{ i }} = coopLoadT<{{ MATRIX }}<f16, A>>(&{{ area }}[(strip + {{ i * M }}u) * {{ WEIGHT_LINE }}u + t * {{ GROUP }}u / 4u], {{ WEIGHT_LINE }}u);
{% endfor %}
{% for c in range(D_TILES) %}
{% if WEIGHED_TURNED %}
            let b{{ c }} = coopLoad<{{ MATRIX }}<f16, B>>(&{{ tensor }}_turned[line + {{ c * ACROSS * N * WEIGHT_LINE }}u], {{ WEIGHT_LINE }}u);
{% elif STAGED %}
            let b{{ c }} = coopLoadT<{{ MATRIX }}<f16, B>>(&{{ tensor }}_tile[line + {{ c * ACROSS * N4 }}u], {{ TILE_LINE }}u);
{% else %}
            let b{{ c }} = coopLoadT<{{ MATRIX }}<f16, B>>(&{{ tensor }}[line + {{ c * ACROSS * N4 }}u], {{ C_STRIDE }});
{% endif %}
{% for i in range(R_TILES) %}
            {{ name }}{{ i }}_{{ c }} = coopMultiplyAdd(a{{ i }}, b{{ c }}, {{ name }}{{ i }}_{{ c }});
{% endfor %}
{% endfor %}
        }
{% endmacro %}

{# a group of four columns of the invocation's row in workgroup memory #}
{% macro four(group, area="scores") %}vec4<f32>({% for j in range(4) %}{{ area }}[(4u * ({{ group }}) + {{ j }}u) * {{ SCORE_LINE }}u + own]{{ ", " if not loop.last }}{% endfor %}){% endmacro %}

{# walks the invocation's own columns: group `g` of four of the block, which are rows `column` of the columns' tensors, of which
   its row sees those from `start` to before `end` #}
{% macro own_columns(start, end) %}
        for (var g = part * {{ SHARE // 4 }}u; g < (part + 1u) * {{ SHARE // 4 }}u; g += 1u) {
            let column = vec4<u32>(first + 4u * g) + vec4<u32>(0u, 1u, 2u, 3u);
            let seen = (column >= vec4<u32>({{ start }})) & (column < vec4<u32>({{ end }}));
{% endmacro %}

{# hands the weights of such a group to the workgroup #}
{% macro weigh(area, value) %}
{{ keep(area, "own * " ~ WEIGHT_LINE ~ "u + g * " ~ GROUP ~ "u", "vec4<f16>(" ~ value ~ ")") }}
{% endmacro %}

{# stores the rows that exist, times `factor`; the scores are past their last use and a barrier #}
{% macro store(tensor, name, factor) %}
    let {{ name }}_at = (row_at * {{ OUT_STRIDE }} + {{ OUT_BASE }}) / {{ GROUP }}u;
{% for q in range(HEAD_DIM // SPAN) %}
{{ spill(name, "scores", range(q * SPAN_TILES, (q + 1) * SPAN_TILES)) }}
    workgroupBarrier();
    if (index < params.tiles && row < {{ R_EXTENT }}) {
        for (var g = part; g < {{ SPAN // 4 }}u; g += {{ PARTS }}u) {
            store_{{ tensor }}({{ name }}_at + g + {{ q * SPAN // 4 }}u, {{ four("g") }} * {{ factor }});
        }
    }
    workgroupBarrier();
{% endfor %}
{% endmacro %}

{# the same, turned back by the angles of the rows' positions; the halves of its pairs go through one place each #}
{% macro store_turned(tensor, name, factor) %}
{% set PAIR = HEAD_DIM // 8 %}
    let {{ name }}_at = (row_at * {{ R_STRIDE }} + {{ R_BASE }}) / {{ GROUP }}u;
    let {{ name }}_angle = positions[row_at] * {{ 2 * PAIR }}u;
{% for q in range(HEAD_DIM // 2 // SPAN) %}
{{ spill(name, "scores", range(q * SPAN_TILES, (q + 1) * SPAN_TILES)) }}
{{ spill(name, "gradients", range(D_TILES // 2 + q * SPAN_TILES, D_TILES // 2 + (q + 1) * SPAN_TILES)) }}
    workgroupBarrier();
    if (index < params.tiles && row < {{ R_EXTENT }}) {
        for (var g = part; g < {{ SPAN // 4 }}u; g += {{ PARTS }}u) {
            let d = g + {{ q * SPAN // 4 }}u;
            let x1 = {{ four("g") }};
            let x2 = {{ four("g", "gradients") }};
            let cosine = load_table({{ name }}_angle + d);
            let sine = load_table({{ name }}_angle + d + {{ PAIR }}u);
            store_{{ tensor }}({{ name }}_at + d, (x1 * cosine + x2 * sine) * {{ factor }});
            store_{{ tensor }}({{ name }}_at + d + {{ PAIR }}u, (x2 * cosine - x1 * sine) * {{ factor }});
        }
    }
    workgroupBarrier();
{% endfor %}
{% endmacro %}
