// Matrix product for GPUs: tiles of both operands in workgroup memory, a block of the product in registers.
//
// A workgroup of ACROSS x DOWN x SPLIT invocations owns ROWS x COLS elements of
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. Each invocation owns PER_ROWS x
// PER_COLS elements (multiples of four). SPLIT > 1 shares the inner dimension: each slice of invocations sums its part of
// every block of DEPTH * SPLIT, and the slices are added at the end; for products too thin to fill a workgroup otherwise.
// SECTIONED: k is shared by workgroups too, and their sums are added in another dispatch (matmul_finish.wgsl).
// TRANSPOSED stores out[col, row]; PAIR adds the second pair. Masks, gates, parts, and what is added to the result or made of it:
// see the includes.
{% include "shared/operands.wgsl" %}
{% include "shared/result.wgsl" %}
{% set ACROSS = COLS // PER_COLS %}
{% set DOWN = ROWS // PER_ROWS %}
{% set SLICE = ACROSS * DOWN %}
{% set WORKGROUP = SLICE * SPLIT %}
{% set BLOCK = DEPTH * SPLIT %}
{# groups of four per line of a tile, and one more against bank conflicts #}
{% set R_LINE = ROWS // 4 + 1 %}
{% set C_LINE = COLS // 4 + 1 %}
{% set QR = PER_ROWS // 4 %}
{% set QC = PER_COLS // 4 %}
{# both tiles, and after the last product what the slices have summed #}
{% set C_START = BLOCK * R_LINE %}
{# groups of four, or squares of four of them, that a block of an operand is copied in #}
{% set R_ITEMS = ROWS // 4 * (BLOCK // 4 if R_INNER else BLOCK) %}
{% set C_ITEMS = COLS // 4 * (BLOCK // 4 if C_INNER else BLOCK) %}
{% set TILES = BLOCK * (R_LINE + C_LINE) %}
{% set PARTIALS = SLICE * (SPLIT - 1) * PER_ROWS * QC %}
var<workgroup> tiles: array<vec4<f32>, {{ [TILES, PARTIALS] | max }}>;

{# copies a block of the operand, as lines of one k each; `begin` is the invocation's first item #}
{% macro stage(name, start, line, inner, k, extent, first, width, items, begin) %}
{% if inner %}
        for (var e = {{ begin }}; e < {{ items }}u; e += {{ WORKGROUP }}u) {
            let at = e / {{ BLOCK // 4 }}u;
            let q = e % {{ BLOCK // 4 }}u;
{% for j in range(4) %}
            var v{{ j }} = vec4<f32>();
{% endfor %}
            if (t + q < params.{{ k }}_4) {
{% for j in range(4) %}
                v{{ j }} = {{ load(name, "min(" ~ first ~ " + 4u * at + " ~ j ~ "u, params." ~ extent ~ " - 1u) * params." ~ k ~ "_4 + t + q") }};
{% endfor %}
            }
{% for j in ["x", "y", "z", "w"] %}
            tiles[{{ start }}u + (4u * q + {{ loop.index0 }}u) * {{ line }}u + at] = vec4<f32>(v0.{{ j }}, v1.{{ j }}, v2.{{ j }}, v3.{{ j }});
{% endfor %}
        }
{% else %}
        for (var e = {{ begin }}; e < {{ items }}u; e += {{ WORKGROUP }}u) {
            let at = e % {{ width // 4 }}u;
            let row = e / {{ width // 4 }}u;
            var v = vec4<f32>();
            if (4u * t + row < params.{{ k }}) {
{% if extent == "rows" %}
                v = {{ rows_of(name, "4u * t + row", k, "min(" ~ first ~ " / 4u + at, params.rows4 - 1u)") }};
{% else %}
                v = {{ load(name, "(4u * t + row) * params.cols4 + min(" ~ first ~ " / 4u + at, params.cols4 - 1u)") }};
{% endif %}
            }
            tiles[{{ start }}u + row * {{ line }}u + at] = v;
        }
{% endif %}
{% endmacro %}

{% macro product(r, c, k, first, last) %}
    for (var t = {{ first }}; t < {{ last }}; t += {{ BLOCK // 4 }}u) {
{{ stage(r, 0, R_LINE, R_INNER, k, "rows", "row_tile", ROWS, R_ITEMS, "lane") }}
{# whom the rows have left idle begins with the columns #}
{{ stage(c, C_START, C_LINE, C_INNER, k, "cols", "col_tile", COLS, C_ITEMS, "(lane + " ~ (WORKGROUP - R_ITEMS % WORKGROUP) ~ "u) % " ~ WORKGROUP ~ "u") }}
        workgroupBarrier();
        for (var i = 0u; i < {{ DEPTH }}u; i += 1u) {
{% if SPLIT > 1 %}
            let step = i * {{ SPLIT }}u + slice;
{% else %}
            let step = i;
{% endif %}
{% for q in range(QC) %}
            let w{{ q }} = tiles[{{ C_START }}u + step * {{ C_LINE }}u + x + {{ q * ACROSS }}u];
{% endfor %}
{% for q in range(QR) %}
            let a{{ q }} = tiles[step * {{ R_LINE }}u + {{ QR }}u * y + {{ q }}u];
{% for j in ["x", "y", "z", "w"] %}
{% set row = 4 * q + loop.index0 %}
{% for p in range(QC) %}
            s{{ row }}_{{ p }} = fma(vec4<f32>(a{{ q }}.{{ j }}), w{{ p }}, s{{ row }}_{{ p }});
{% endfor %}
{% endfor %}
{% endfor %}
        }
        workgroupBarrier();
    }
{% endmacro %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
{% if NF4_TABLE %}
    fill_nf4_table(lane);
    workgroupBarrier();
{% endif %}
    let index = group_index(group, groups);
{% include "shared/section.wgsl" %}
{% if SPLIT > 1 %}
    let slice = lane / {{ SLICE }}u;
    let within_slice = lane % {{ SLICE }}u;
{% else %}
    let within_slice = lane;
{% endif %}
    let x = within_slice % {{ ACROSS }}u;
    let y = within_slice / {{ ACROSS }}u;
{% for i in range(PER_ROWS) %}
{% for p in range(QC) %}
    var s{{ i }}_{{ p }} = vec4<f32>();
{% endfor %}
{% endfor %}
{% if MASKED %}
    let seed = mask_seed();
{% endif %}
{% if PAIR %}
{{ product("r2", "c2", "k2", "0u", "params.k2_4") }}
{% endif %}
{% if PAIR_MASKED %}
{% for i in range(PER_ROWS) %}
{% for p in range(QC) %}
    s{{ i }}_{{ p }} = dropped(s{{ i }}_{{ p }}, (row_tile + {{ PER_ROWS }}u * y + {{ i }}u) * params.cols4 + col_tile / 4u + x + {{ p * ACROSS }}u, seed);
{% endfor %}
{% endfor %}
{% endif %}
{{ product("r", "c", "k", K_FIRST, K_LAST) }}
{% if SPLIT > 1 %}
    if (slice > 0u) {
{% for i in range(PER_ROWS) %}
{% for p in range(QC) %}
        tiles[((slice - 1u) * {{ PER_ROWS * QC }}u + {{ i * QC + p }}u) * {{ SLICE }}u + within_slice] = s{{ i }}_{{ p }};
{% endfor %}
{% endfor %}
    }
    workgroupBarrier();
    if (slice > 0u) {
        return;
    }
    for (var other = 0u; other < {{ SPLIT - 1 }}u; other += 1u) {
{% for i in range(PER_ROWS) %}
{% for p in range(QC) %}
        s{{ i }}_{{ p }} += tiles[(other * {{ PER_ROWS * QC }}u + {{ i * QC + p }}u) * {{ SLICE }}u + within_slice];
{% endfor %}
{% endfor %}
    }
{% endif %}
    if (surplus) {
        return;
    }
    let row0 = row_tile + {{ PER_ROWS }}u * y;
{% for p in range(QC) %}
    let col{{ p }} = col_tile + 4u * (x + {{ p * ACROSS }}u);
{% if TRANSPOSED %}
{% for j in range(4) %}
    if (col{{ p }} + {{ j }}u < params.cols) {
{% for i in range(QR) %}
        if (row0 + {{ 4 * i }}u < params.rows) {
            let at = {{ transposed("col" ~ p ~ " + " ~ j ~ "u", "(row0 / 4u + " ~ i ~ "u)") }};
            let valid = vec4<u32>(row0 + {{ 4 * i }}u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.rows);
            let v = select(vec4<f32>(), params.alpha * vec4<f32>({% for e in range(4) %}s{{ 4 * i + e }}_{{ p }}[{{ j }}]{{ ", " if e < 3 }}{% endfor %}), valid);
            {{ put("at", "v") }}
        }
{% endfor %}
    }
{% endfor %}
{% else %}
    if (col{{ p }} < params.cols) {
        let valid = vec4<u32>(col{{ p }}) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
{% for i in range(PER_ROWS) %}
        if (row0 + {{ i }}u < params.rows) {
            let at = (row0 + {{ i }}u) * params.cols4 + col{{ p }} / 4u;
            let v = select(vec4<f32>(), params.alpha * s{{ i }}_{{ p }}, valid);
            {{ put("at", "v") }}
        }
{% endfor %}
    }
{% endif %}
{% endfor %}
}
