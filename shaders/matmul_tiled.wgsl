// Matrix product for GPUs: tiles of both operands in workgroup memory, a block of the product in registers.
//
// A workgroup of (COLS / 4) x (ROWS / PER) invocations owns ROWS x COLS elements of
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. Each invocation owns PER rows
// and four columns. TRANSPOSED stores out[col, row]; PAIR adds the second pair; ACCUMULATE adds to what is there.
{% set DEPTH = 16 %}
{% set ACROSS = COLS // 4 %}
{% set WORKGROUP = ACROSS * ROWS // PER %}
var<workgroup> r_tile: array<f32, {{ DEPTH * ROWS }}>;
var<workgroup> c_tile: array<f32, {{ DEPTH * COLS }}>;

{% macro stage(name, tile, inner, k, extent, extent4, first, width) %}
{% if inner %}
        for (var e = lane; e < {{ width * DEPTH // 4 }}u; e += {{ WORKGROUP }}u) {
            let at = e / {{ DEPTH // 4 }}u;
            let q = e % {{ DEPTH // 4 }}u;
            var v = vec4<f32>();
            if (t + q < params.{{ k }}_4) {
                v = load_{{ name }}(min({{ first }} + at, params.{{ extent }} - 1u) * params.{{ k }}_4 + t + q);
            }
            {{ tile }}[(4u * q) * {{ width }}u + at] = v.x;
            {{ tile }}[(4u * q + 1u) * {{ width }}u + at] = v.y;
            {{ tile }}[(4u * q + 2u) * {{ width }}u + at] = v.z;
            {{ tile }}[(4u * q + 3u) * {{ width }}u + at] = v.w;
        }
{% else %}
        for (var e = lane; e < {{ width * DEPTH // 4 }}u; e += {{ WORKGROUP }}u) {
            let at = e % {{ width // 4 }}u;
            let row = e / {{ width // 4 }}u;
            var v = vec4<f32>();
            if (4u * t + row < params.{{ k }}) {
                v = load_{{ name }}((4u * t + row) * params.{{ extent4 }} + min({{ first }} / 4u + at, params.{{ extent4 }} - 1u));
            }
            {{ tile }}[row * {{ width }}u + 4u * at] = v.x;
            {{ tile }}[row * {{ width }}u + 4u * at + 1u] = v.y;
            {{ tile }}[row * {{ width }}u + 4u * at + 2u] = v.z;
            {{ tile }}[row * {{ width }}u + 4u * at + 3u] = v.w;
        }
{% endif %}
{% endmacro %}

{% macro product(r, c, k) %}
    for (var t = 0u; t < params.{{ k }}_4; t += {{ DEPTH // 4 }}u) {
{{ stage(r, "r_tile", R_INNER, k, "rows", "rows4", "row_tile", ROWS) }}
{{ stage(c, "c_tile", C_INNER, k, "cols", "cols4", "col_tile", COLS) }}
        workgroupBarrier();
        for (var i = 0u; i < {{ DEPTH }}u; i += 1u) {
            let b = i * {{ COLS }}u + 4u * x;
            let w = vec4<f32>(c_tile[b], c_tile[b + 1u], c_tile[b + 2u], c_tile[b + 3u]);
            let a = i * {{ ROWS }}u + {{ PER }}u * y;
{% for p in range(PER) %}
            s{{ p }} = fma(vec4<f32>(r_tile[a + {{ p }}u]), w, s{{ p }});
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
    // surplus groups of a folded grid repeat the last tile's loads and store nothing
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
    let row_tile = tile / params.col_tiles * {{ ROWS }}u;
    let col_tile = tile % params.col_tiles * {{ COLS }}u;
    let x = lane % {{ ACROSS }}u;
    let y = lane / {{ ACROSS }}u;
{% for p in range(PER) %}
    var s{{ p }} = vec4<f32>();
{% endfor %}
{{ product("r", "c", "k") }}
{% if PAIR %}
{{ product("r2", "c2", "k2") }}
{% endif %}
    let row0 = row_tile + {{ PER }}u * y;
    let col0 = col_tile + 4u * x;
    if (index >= params.tiles || col0 >= params.cols) {
        return;
    }
{% if TRANSPOSED %}
{% for j in range(4) %}
    if (col0 + {{ j }}u < params.cols) {
{% for i in range(PER // 4) %}
        if (row0 + {{ 4 * i }}u < params.rows) {
            let at = (col0 + {{ j }}u) * params.rows4 + row0 / 4u + {{ i }}u;
            let valid = vec4<u32>(row0 + {{ 4 * i }}u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.rows);
            let v = select(vec4<f32>(), params.alpha * vec4<f32>(s{{ 4 * i }}[{{ j }}], s{{ 4 * i + 1 }}[{{ j }}], s{{ 4 * i + 2 }}[{{ j }}], s{{ 4 * i + 3 }}[{{ j }}]), valid);
            store_out(at, v{% if ACCUMULATE %} + load_out(at){% endif %});
        }
{% endfor %}
    }
{% endfor %}
{% else %}
    let valid = vec4<u32>(col0) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
{% for p in range(PER) %}
    if (row0 + {{ p }}u < params.rows) {
        let at = (row0 + {{ p }}u) * params.cols4 + col0 / 4u;
        store_out(at, select(vec4<f32>(), params.alpha * s{{ p }}, valid){% if ACCUMULATE %} + load_out(at){% endif %});
    }
{% endfor %}
{% endif %}
}
