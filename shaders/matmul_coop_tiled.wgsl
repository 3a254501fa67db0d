// Matrix product on matrix units, for GPUs: tiles of both operands in workgroup memory, in f16, however they are stored.
//
// A workgroup of DOWN x ACROSS subgroups of LANES owns ROWS x COLS elements of
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER; their tiles are DEPTH deep and lie as
// they are stored, or, TURNED, with k innermost: from such lines AMD's driver loads a matrix in few instructions. A subgroup owns
// ROWS / DOWN x COLS / ACROSS elements in cooperative matrices (see shared/matrix.wgsl), f16 operands and f32 sums. The sums leave through workgroup
// memory, SPAN columns of a row of matrices at a time.
// SCALED: rows carry a power of two, whose inverse `unscale` takes it out of their sums; SCALED_WHOLE: all rows carry the same, and
// all columns another, whose inverse is `unscale_columns`. VECTORS: tiles are arrays of groups of four, which Metal cannot load
// matrices from. PREFETCHED: the next block is loaded while this one is multiplied; what is RAW (16 bits) waits as it is stored, and
// f16 goes to the tile as it is. WHOLE: k is a multiple of DEPTH. PAIR adds the second pair: PAIR_DEPTH > 0 of its k2 at a time through
// the tiles, or, where a mask lies on it, in f32 to the sums. SECTIONED: k is shared by workgroups, and their sums are added in another
// dispatch (matmul_finish.wgsl). R_RUNS, C_RUNS: the operand is in f32 or bf16, and no pass before has scaled it: it carries the power of
// two that suits the largest magnitude that the workgroup has met, and the sums follow when that grows. TRANSPOSED stores out[col, row].
// Masks, gates, parts, and what is added to the result or made of it: see the includes.
{% include "shared/operands.wgsl" %}
{% include "shared/result.wgsl" %}
{% set PAIR_ON_SUMS = PAIR and PAIR_DEPTH == 0 %}
{% if PAIR_ON_SUMS %}
{% include "shared/pair.wgsl" %}
{% endif %}
{% include "shared/matrix.wgsl" %}
{% set RUNNING = R_RUNS or C_RUNS %}
{% if PAIR and PAIR_DEPTH > 0 and SCALED %}
{% include "shared/power_of_two.wgsl" %}
{% endif %}
{% set WORKGROUP = DOWN * ACROSS * LANES %}
{% set OWN_ROWS = ROWS // DOWN %}
{% set OWN_COLS = COLS // ACROSS %}
{% set SPANS = SPAN // N %}
{# whether k is innermost in the tile #}
{% set R_DEEP = R_INNER or TURNED %}
{% set C_DEEP = C_INNER or TURNED %}
{# groups of four per line of a tile, and two more, which keeps lines at 16 bytes and apart in the banks #}
{% set R_LINE = (DEPTH if R_DEEP else ROWS) // 4 + 2 %}
{% set C_LINE = (DEPTH if C_DEEP else COLS) // 4 + 2 %}
{% set SUM_LINE = SPAN + 8 %}
{% set GROUP = 1 if VECTORS else 4 %}
{% set HALF = "vec4<f16>" if VECTORS else "f16" %}
var<workgroup> r_tile: array<{{ HALF }}, {{ GROUP * R_LINE * (ROWS if R_DEEP else DEPTH) }}>;
var<workgroup> c_tile: array<{{ HALF }}, {{ GROUP * C_LINE * (COLS if C_DEEP else DEPTH) }}>;
var<workgroup> sums: array<f32, {{ DOWN * ACROSS * M * SUM_LINE }}>;
{% if RUNNING %}
// the largest exponents that r and c have shown, as f32 stores them
var<workgroup> met: array<atomic<u32>, 2>;
{% endif %}

{# A group of four of an operand in f16, as the tile has it, of the operand's line `row`. The second pair's rows are scaled like the
   first's, but its columns take PAIR_FACTOR of that: those are the adapter's, which begins at nothing, and would be lost where
   small numbers of f16 are flushed; beside rows in f16 it lets the pair's be as much larger. #}
{% macro half(name, value) %}
{%- if name == "c2" -%}
vec4<f16>(as_f16({{ value }} * {{ PAIR_FACTOR }}.0))
{%- elif name == "r2" and R_RUNS -%}
vec4<f16>({{ value }} * (r_power / {{ PAIR_FACTOR }}.0))
{%- elif name == "r2" and SCALED -%}
vec4<f16>({{ value }} * (inverse_power(unscale[min(row_tile + row, params.rows - 1u)]) / {{ PAIR_FACTOR }}.0))
{%- elif name == "r2" -%}
vec4<f16>(as_f16({{ value }} / {{ PAIR_FACTOR }}.0))
{%- else -%}
vec4<f16>({{ value }})
{%- endif -%}
{% endmacro %}

{# whether the operand's scale is found on the way #}
{% macro runs(name) %}{% if (name == "r" and R_RUNS) or (name == "c" and C_RUNS) %}1{% endif %}{% endmacro %}

{# sums of a row without the powers of two. Of running ones the smaller inverse comes first, beside which the other does not overflow
   what the result would not #}
{% macro without_powers(value, row) %}{% if RUNNING %}{{ value }} * inverses.x * inverses.y{% elif SCALED_WHOLE %}{{ value }} * unscale[0] * unscale_columns[0]{% elif SCALED %}{{ value }} * unscale[{{ row }}]{% else %}{{ value }}{% endif %}{% endmacro %}

{# a group of four in f16 becomes one of the tile's #}
{% macro keep(tile, at, value) %}
            let half = {{ value }};
            let place = {{ at }};
{% if VECTORS %}
            {{ tile }}[place] = half;
{% else %}
{% for j in range(4) %}
            {{ tile }}[4u * place + {{ j }}u] = half[{{ j }}];
{% endfor %}
{% endif %}
{% endmacro %}

{# the inner dimension of an operand #}
{% macro inner_of(name) %}{{ "k2" if name in ["r2", "c2"] else "k" }}{% endmacro %}

{# whether group (row, q) of the block from group t on is within the inner dimension, and where it is stored; one beyond it is read
   from its end and not used, for a branch around a load waits for it #}
{% macro within(name, inner, t) %}{% set k = inner_of(name) %}{% if inner %}{{ t }} + q < params.{{ k }}_4{% else %}4u * ({{ t }}) + row < params.{{ k }}{% endif %}{% endmacro %}
{% macro stored(name, inner, extent, first, t) %}{% set k = inner_of(name) %}{% if name == "r" and PARTS > 1 and not inner %}{{ in_parts("min(4u * (" ~ t ~ ") + row, params.k - 1u)", "k", "min(" ~ first ~ " / 4u + q, params.rows4 - 1u)") }}{% elif inner %}min({{ first }} + row, params.{{ extent }} - 1u) * params.{{ k }}_4 + min({{ t }} + q, params.{{ k }}_4 - 1u){% else %}min(4u * ({{ t }}) + row, params.{{ k }} - 1u) * params.{{ extent }}4 + min({{ first }} / 4u + q, params.{{ extent }}4 - 1u){% endif %}{% endmacro %}

{# zero, of such a type, for a group beyond it #}
{% macro bounded(name, zero, value, inner, t) %}{% if WHOLE and name in ["r", "c"] %}{{ value }}{% else %}select({{ zero }}, {{ value }}, {{ within(name, inner, t) }}){% endif %}{% endmacro %}

{% macro raw_type(name) %}{{ "vec4<f16>" if (R_F16 if name == "r" else C_F16) else "vec2<u32>" }}{% endmacro %}

{# group (row, q), as it waits and as the tile has it #}
{% macro waiting_type(name, raw) %}{% if raw %}{{ raw_type(name) }}{% elif runs(name) %}vec4<f32>{% else %}vec4<f16>{% endif %}{% endmacro %}
{% macro group(name, raw, inner, extent, first, t) %}{% if runs(name) and not raw %}{{ bounded(name, "vec4<f32>()", load(name, "at"), inner, t) }}{% elif raw %}{{ bounded(name, raw_type(name) ~ "()", "raw_" ~ name ~ "(at)", inner, t) }}{% else %}{{ half(name, bounded(name, "vec4<f32>()", load(name, "at"), inner, t)) }}{% endif %}{% endmacro %}
{% macro decoded(name, raw, value) %}{% if raw %}decode_{{ name }}({{ value }}){% else %}{{ value }}{% endif %}{% endmacro %}
{% macro halves(name, raw, value) %}{% if runs(name) %}vec4<f16>({{ decoded(name, raw, value) }} * {{ name }}_power){% elif not raw %}{{ value }}{% elif raw_type(name) == "vec4<f16>" %}{{ value }}{% else %}vec4<f16>(decode_{{ name }}({{ value }})){% endif %}{% endmacro %}

{# row and q of the invocation's group n: its neighbours' follow along a line, or where it turns four rows of four, across the lines,
   for what it makes of them is apart in the banks #}
{% macro own_group(n, inner, width) %}
{% if TURNED and not inner %}
        let row = 4u * ((lane + {{ n // 4 * WORKGROUP }}u) % {{ DEPTH // 4 }}u) + {{ n % 4 }}u;
        let q = (lane + {{ n // 4 * WORKGROUP }}u) / {{ DEPTH // 4 }}u;
{% else %}
{% set PER_LINE = (DEPTH if inner else width) // 4 %}
        let row = (lane + {{ n * WORKGROUP }}u) / {{ PER_LINE }}u;
        let q = (lane + {{ n * WORKGROUP }}u) % {{ PER_LINE }}u;
{% endif %}
{% endmacro %}

{# four groups, `first`0 to `first`3, go to the tile as four, each with an element of every one #}
{% macro turn(tile, line, first) %}
{% for j in range(4) %}
        {
{{ keep(tile, "(4u * q + " ~ j ~ "u) * " ~ line ~ "u + row / 4u", "vec4<f16>(" ~ first ~ "0[" ~ j ~ "], " ~ first ~ "1[" ~ j ~ "], " ~ first ~ "2[" ~ j ~ "], " ~ first ~ "3[" ~ j ~ "])") }}
        }
{% endfor %}
{% endmacro %}

{# copies a block of the operand, `deep` along its inner dimension #}
{% macro stage(name, raw, tile, line, inner, extent, first, width, deep=DEPTH) %}
{% if TURNED and not inner %}
        for (var e = lane; e < {{ width * deep // 16 }}u; e += {{ WORKGROUP }}u) {
            let q = e / {{ deep // 4 }}u;
{% for j in range(4) %}
            var line{{ j }} = vec4<f16>();
            {
                let row = 4u * (e % {{ deep // 4 }}u) + {{ j }}u;
                let at = {{ stored(name, inner, extent, first, "t") }};
                let v = {{ group(name, raw, inner, extent, first, "t") }};
                line{{ j }} = {{ halves(name, raw, "v") }};
            }
{% endfor %}
            let row = 4u * (e % {{ deep // 4 }}u);
{{ turn(tile, line, "line") }}
        }
{% else %}
{% set PER_LINE = (deep if inner else width) // 4 %}
        for (var e = lane; e < {{ width * deep // 4 }}u; e += {{ WORKGROUP }}u) {
            let row = e / {{ PER_LINE }}u;
            let q = e % {{ PER_LINE }}u;
            let at = {{ stored(name, inner, extent, first, "t") }};
            let v = {{ group(name, raw, inner, extent, first, "t") }};
{{ keep(tile, "row * " ~ line ~ "u + q", halves(name, raw, "v")) }}
        }
{% endif %}
{% endmacro %}

{# name{n}, declared or not, = the invocation's groups of the block from group `t` on #}
{% macro fetch(name, raw, declared, inner, extent, first, width, t) %}
{% for n in range(width * DEPTH // 4 // WORKGROUP) %}
{% if declared %}
    var {{ name }}_next{{ n }} = {{ waiting_type(name, raw) }}();
{% endif %}
    {
{{ own_group(n, inner, width) }}
        let at = {{ stored(name, inner, extent, first, t) }};
        {{ name }}_next{{ n }} = {{ group(name, raw, inner, extent, first, t) }};
    }
{% endfor %}
{% endmacro %}

{# hands them to the tile #}
{% macro release(name, raw, tile, line, inner, width) %}
{% for n in range(width * DEPTH // 4 // WORKGROUP) %}
{% if TURNED and not inner %}
{% if n % 4 == 0 %}
        {
{{ own_group(n, inner, width) }}
{% for j in range(4) %}
            let line{{ j }} = {{ halves(name, raw, name ~ "_next" ~ (n + j)) }};
{% endfor %}
{{ turn(tile, line, "line") }}
        }
{% endif %}
{% else %}
        {
{{ own_group(n, inner, width) }}
{{ keep(tile, "row * " ~ line ~ "u + q", halves(name, raw, name ~ "_next" ~ n)) }}
        }
{% endif %}
{% endfor %}
{% endmacro %}

{# tells the workgroup of the exponent of the largest of four magnitudes, where it has met none so large #}
{% macro tell(name, most) %}
            let exponent = bitcast<u32>(max(max({{ most }}.x, {{ most }}.y), max({{ most }}.z, {{ most }}.w))) >> 23u;
            if (exponent > {{ name }}_most) {
                atomicMax(&met[{{ 0 if name == "r" else 1 }}], exponent);
            }
{% endmacro %}

{# the same of the groups that wait #}
{% macro show(name, raw, width) %}
{% if runs(name) %}
        {
            var most = vec4<f32>();
{% for n in range(width * DEPTH // 4 // WORKGROUP) %}
            most = max(most, abs({{ decoded(name, raw, name ~ "_next" ~ n) }}));
{% endfor %}
{{ tell(name, "most") }}
        }
{% endif %}
{% endmacro %}

{# and of a block of the second pair's rows, which is loaded for it #}
{% macro show_pair() %}
        var pair_most = vec4<f32>();
{% set PER_LINE = (PAIR_DEPTH if R_INNER else ROWS) // 4 %}
        for (var e = lane; e < {{ ROWS * PAIR_DEPTH // 4 }}u; e += {{ WORKGROUP }}u) {
            let row = e / {{ PER_LINE }}u;
            let q = e % {{ PER_LINE }}u;
            let at = {{ stored("r2", R_INNER, "rows", "row_tile", "t") }};
            pair_most = max(pair_most, abs({{ bounded("r2", "vec4<f32>()", load("r2", "at"), R_INNER, "t") }}) / {{ PAIR_FACTOR }}.0);
        }
        {
{{ tell("r", "pair_most") }}
        }
{% endmacro %}

{# name_power = what brings the largest magnitude met to at least 2^14 and below 2^15; name_change = what it is of the one before #}
{% macro follow(name) %}
{% if runs(name) %}
        let {{ name }}_met = max({{ name }}_most, atomicLoad(&met[{{ 0 if name == "r" else 1 }}]));
        let {{ name }}_power = bitcast<f32>((268u - {{ name }}_met) << 23u);
        let {{ name }}_change = bitcast<f32>((127u - min({{ name }}_met - {{ name }}_most, 127u)) << 23u);
        {{ name }}_most = {{ name }}_met;
{% endif %}
{% endmacro %}

{# brings the sums to the powers of what has been met since #}
{% macro follow_all() %}
{{ follow("r") }}
{{ follow("c") }}
        let change = {{ "r_change" if R_RUNS }}{{ " * " if R_RUNS and C_RUNS }}{{ "c_change" if C_RUNS }};
{% for i in range(OWN_ROWS // M) %}
{% for j in range(OWN_COLS // N) %}
        s{{ i }}_{{ j }} = s{{ i }}_{{ j }} * change;
{% endfor %}
{% endfor %}
{% endmacro %}

{# a matrix of an operand's tile, from row `row` and depth `depth` on, which are multiples of its own #}
{% macro matrix(tile, line, inner, role, row, depth) %}
{% set across = "coopLoadT" if inner == (role == "A") else "coopLoad" %}
{% set at = "(" ~ row ~ ") * " ~ GROUP * line ~ "u + " ~ depth * GROUP // 4 if inner else (depth * GROUP * line) ~ "u + (" ~ row ~ ") * " ~ GROUP ~ "u / 4u" %}
{{ across }}<{{ MATRIX }}<f16, {{ role }}>>(&{{ tile }}[{{ at }}], {{ GROUP * line }}u){% endmacro %}

{# the products of a block in the tiles, `deep` along k, added to the sums #}
{% macro multiply(deep) %}
{% for depth in range(0, deep, K) %}
        {
{% for i in range(OWN_ROWS // M) %}
            let a{{ i }} = {{ matrix("r_tile", R_LINE, R_DEEP, "A", "own_row + " ~ (i * M) ~ "u", depth) }};
{% endfor %}
{% for j in range(OWN_COLS // N) %}
            let b{{ j }} = {{ matrix("c_tile", C_LINE, C_DEEP, "B", "own_col + " ~ (j * N) ~ "u", depth) }};
{% for i in range(OWN_ROWS // M) %}
            s{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, s{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
        }
{% endfor %}
{% endmacro %}

{# groups of four in a row of a span; an invocation owns EACH of one column of groups, STEP rows apart #}
{% set GROUPS = SPAN // 4 %}
{% set STEP = LANES // GROUPS %}
{% set EACH = (M + STEP - 1) // STEP %}
{% if PAIR_ON_SUMS %}
// Adds the pair to the invocation's own sums of a span, whose first is at (row0, col0); the columns are loaded once for all its rows.
fn add_pair({{ "inverses: vec2<f32>, " if RUNNING }}own_sums: u32, first: u32, own_col: u32, row0: u32, col0: u32) {
    let col4 = (col0 + own_col) / 4u;
{% for n in range(EACH) %}
    var pair{{ n }} = vec4<f32>();
{% endfor %}
    for (var t = 0u; t < params.k2_4; t += 1u) {
        let columns = pair_columns(col4, t);
{% for n in range(EACH) %}
        pair{{ n }} += pair_term(pair_row(min(row0 + first + {{ n * STEP }}u, params.rows - 1u), t), columns);
{% endfor %}
    }
{% if PAIR_MASKED %}
    let seed = mask_seed();
{% endif %}
{% for n in range(EACH) %}
{% set row = "(first + " ~ (n * STEP) ~ "u)" %}
    if ({{ row }} < {{ M }}u) {
{% if PAIR_MASKED %}
        pair{{ n }} = dropped(pair{{ n }}, (row0 + {{ row }}) * params.cols4 + col4, seed);
{% endif %}
{% set at_row = "min(row0 + " ~ row ~ ", params.rows - 1u)" %}
{% for q in range(4) %}
        let at{{ q }} = own_sums + {{ row }} * {{ SUM_LINE }}u + own_col + {{ q }}u;
        sums[at{{ q }}] = {{ without_powers("sums[at" ~ q ~ "]", at_row) }} + pair{{ n }}[{{ q }}];
{% endfor %}
    }
{% endfor %}
}

{% endif %}
// Stores the M x SPAN sums from `own_sums` on, whose first is at (row0, col0).
fn store_span({{ "section: u32, " if SECTIONED }}{{ "inverses: vec2<f32>, " if RUNNING }}own_sums: u32, in_subgroup: u32, row0: u32, col0: u32) {
{% if TRANSPOSED %}
    for (var e = in_subgroup; e < {{ M // 4 * SPAN }}u; e += {{ LANES }}u) {
        let own_row = 4u * (e / {{ SPAN }}u);
        let col = col0 + e % {{ SPAN }}u;
        if (row0 + own_row < params.rows && col < params.cols) {
            let own = own_sums + own_row * {{ SUM_LINE }}u + e % {{ SPAN }}u;
            var v = vec4<f32>(sums[own]{% for j in range(1, 4) %}, sums[own + {{ j * SUM_LINE }}u]{% endfor %});
            let valid = vec4<u32>(row0 + own_row) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.rows);
            v = select(vec4<f32>(), params.alpha * ({{ without_powers("v", "row0 + own_row") }}), valid);
            let at = {{ transposed("col", "((row0 + own_row) / 4u)") }};
            {{ put("at", "v") }}
        }
    }
{% else %}
    let first = in_subgroup / {{ GROUPS }}u;
    let own_col = 4u * (in_subgroup % {{ GROUPS }}u);
    let col = col0 + own_col;
    if (col >= params.cols) {
        return;
    }
{% if PAIR_ON_SUMS %}
    add_pair({{ "inverses, " if RUNNING }}own_sums, first, own_col, row0, col0);
{% endif %}
    let valid = vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
    for (var own_row = first; own_row < {{ M }}u && row0 + own_row < params.rows; own_row += {{ STEP }}u) {
        let own = own_sums + own_row * {{ SUM_LINE }}u + own_col;
        var v = vec4<f32>(sums[own], sums[own + 1u], sums[own + 2u], sums[own + 3u]);
{% if not PAIR_ON_SUMS %}
        v = {{ without_powers("v", "row0 + own_row") }};
{% endif %}
        v = select(vec4<f32>(), params.alpha * v, valid);
        let at = (row0 + own_row) * params.cols4 + col / 4u;
        {{ put("at", "v") }}
    }
{% endif %}
}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
{% if NF4_TABLE %}
    fill_nf4_table(lane);
    workgroupBarrier();
{% endif %}
{% if R_MASKED or C_MASKED %}
    let seed = mask_seed();
{% endif %}
    let index = group_index(group, groups);
{% include "shared/section.wgsl" %}
    // no further than workgroup memory goes, should a driver run smaller subgroups than it says
    let subgroup = min(subgroup_id, {{ DOWN * ACROSS - 1 }}u);
    let own_row = subgroup / {{ ACROSS }}u * {{ OWN_ROWS }}u;
    let own_col = subgroup % {{ ACROSS }}u * {{ OWN_COLS }}u;
{% for i in range(OWN_ROWS // M) %}
{% for j in range(OWN_COLS // N) %}
    var s{{ i }}_{{ j }} = {{ MATRIX }}<f32, C>();
{% endfor %}
{% endfor %}
{% if RUNNING %}
    // the smallest whose power of two, and its inverse, f32 has
    var r_most = 15u;
    var c_most = 15u;
    if (lane < 2u) {
        atomicStore(&met[lane], 0u);
    }
    workgroupBarrier();
{% endif %}
{% if PREFETCHED %}
{{ fetch("r", R_RAW, true, R_INNER, "rows", "row_tile", ROWS, K_FIRST) }}
{{ fetch("c", C_RAW, true, C_INNER, "cols", "col_tile", COLS, K_FIRST) }}
{% endif %}
    for (var t = {{ K_FIRST }}; t < {{ K_LAST }}; t += {{ DEPTH // 4 }}u) {
{% if RUNNING %}
{{ show("r", R_RAW, ROWS) }}
{{ show("c", C_RAW, COLS) }}
        // parts the loads of the block before from what is stored next, too; the barrier after that, what is read of `met` from what the next
        // block shows
        workgroupBarrier();
{{ follow_all() }}
{% endif %}
{% if PREFETCHED %}
{{ release("r", R_RAW, "r_tile", R_LINE, R_INNER, ROWS) }}
{{ release("c", C_RAW, "c_tile", C_LINE, C_INNER, COLS) }}
        workgroupBarrier();
{{ fetch("r", R_RAW, false, R_INNER, "rows", "row_tile", ROWS, "t + " ~ (DEPTH // 4) ~ "u") }}
{{ fetch("c", C_RAW, false, C_INNER, "cols", "col_tile", COLS, "t + " ~ (DEPTH // 4) ~ "u") }}
{% else %}
{{ stage("r", R_RAW, "r_tile", R_LINE, R_INNER, "rows", "row_tile", ROWS) }}
{{ stage("c", C_RAW, "c_tile", C_LINE, C_INNER, "cols", "col_tile", COLS) }}
        workgroupBarrier();
{% endif %}
{{ multiply(DEPTH) }}
{% if not RUNNING %}
        workgroupBarrier();
{% endif %}
    }
{% if PAIR and PAIR_DEPTH > 0 %}
    for (var t = 0u; t < params.k2_4; t += {{ PAIR_DEPTH // 4 }}u) {
{% if RUNNING %}
{{ show_pair() }}
        workgroupBarrier();
{{ follow_all() }}
{% endif %}
{{ stage("r2", false, "r_tile", R_LINE, R_INNER, "rows", "row_tile", ROWS, PAIR_DEPTH) }}
{{ stage("c2", false, "c_tile", C_LINE, C_INNER, "cols", "col_tile", COLS, PAIR_DEPTH) }}
        workgroupBarrier();
{{ multiply(PAIR_DEPTH) }}
{% if not RUNNING %}
        workgroupBarrier();
{% endif %}
    }
{% endif %}
{% if RUNNING %}
    let either = vec2<f32>({% for name in ["r", "c"] %}{% if runs(name) %}bitcast<f32>(({{ name }}_most - 14u) << 23u){% else %}1.0{% endif %}{{ ", " if loop.first }}{% endfor %});
    let inverses = vec2<f32>(min(either.x, either.y), max(either.x, either.y));
{% endif %}
    let own_sums = subgroup * {{ M * SUM_LINE }}u;
{% for i in range(OWN_ROWS // M) %}
{% for first in range(0, OWN_COLS // N, SPANS) %}
{% for j in range(SPANS) %}
    coopStoreT(s{{ i }}_{{ first + j }}, &sums[own_sums + {{ j * N }}u], {{ SUM_LINE }}u);
{% endfor %}
    workgroupBarrier();
    if (!surplus) {
        store_span({{ "section, " if SECTIONED }}{{ "inverses, " if RUNNING }}own_sums, in_subgroup, row_tile + own_row + {{ i * M }}u, col_tile + own_col + {{ first * N }}u);
    }
    workgroupBarrier();
{% endfor %}
{% endfor %}
}
