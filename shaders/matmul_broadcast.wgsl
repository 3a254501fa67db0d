// Matrix product for CPU devices: operands are shared through subgroup broadcast, not workgroup memory.
//
// A workgroup is one subgroup of LANES invocations and owns ROWS x (4 LANES) elements of the product
//     out[row, col] (+)= alpha * sum over k of r[row, k] * c[col, k]  (+ the same over the pair r2, c2)
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. Each invocation owns four
// columns and all rows; the rows' operand is loaded one piece per lane and broadcast.
// TRANSPOSED stores out[col, row] instead, so that a thin product can use its long side as columns.
// PAIR adds the second pair; ACCUMULATE adds to what is there.
{% set ROW4 = ROWS // 4 %}
{% set LOADS = ROWS // LANES %}

{% macro product(r, c, k) %}
    for (var t = 0u; t < params.{{ k }}_4; t += 1u) {
{% if C_INNER %}
{% for j in range(4) %}
        let c{{ j }} = load_{{ c }}(col_{{ j }} * params.{{ k }}_4 + t);
{% endfor %}
        let w0 = vec4<f32>(c0.x, c1.x, c2.x, c3.x);
        let w1 = vec4<f32>(c0.y, c1.y, c2.y, c3.y);
        let w2 = vec4<f32>(c0.z, c1.z, c2.z, c3.z);
        let w3 = vec4<f32>(c0.w, c1.w, c2.w, c3.w);
{% else %}
{% for q in range(4) %}
        let w{{ q }} = load_{{ c }}(min(4u * t + {{ q }}u, params.{{ k }} - 1u) * params.cols4 + col4);
{% endfor %}
{% endif %}
{% if R_INNER %}
{% for i in range(LOADS) %}
        let r{{ i }} = load_{{ r }}(min(row0 + {{ LANES * i }}u + lane, params.rows - 1u) * params.{{ k }}_4 + t);
{% endfor %}
{% for i in range(LOADS) %}
{% for l in range(LANES) %}
        let a{{ i * LANES + l }} = subgroupBroadcast(r{{ i }}, {{ l }}u);
{% for q in ["x", "y", "z", "w"] %}
        s{{ i * LANES + l }} = fma(vec4<f32>(a{{ i * LANES + l }}.{{ q }}), w{{ loop.index0 }}, s{{ i * LANES + l }});
{% endfor %}
{% endfor %}
{% endfor %}
{% else %}
{# piece e = k within four * ROW4 + group of four rows; lane l loads the pieces i * LANES + l #}
{% for i in range(LOADS) %}
        let k{{ i }} = 4u * t + ({{ i * LANES }}u + lane) / {{ ROW4 }}u;
        let r{{ i }} = select(
            vec4<f32>(),
            load_{{ r }}(min(k{{ i }}, params.{{ k }} - 1u) * params.rows4 + min(row0 / 4u + ({{ i * LANES }}u + lane) % {{ ROW4 }}u, params.rows4 - 1u)),
            k{{ i }} < params.{{ k }});
{% endfor %}
{% for e in range(ROWS) %}
        let a{{ e }} = subgroupBroadcast(r{{ e // LANES }}, {{ e % LANES }}u);
{% for q in ["x", "y", "z", "w"] %}
        s{{ 4 * (e % ROW4) + loop.index0 }} = fma(vec4<f32>(a{{ e }}.{{ q }}), w{{ e // ROW4 }}, s{{ 4 * (e % ROW4) + loop.index0 }});
{% endfor %}
{% endfor %}
{% endif %}
    }
{% endmacro %}

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
{{ product("r", "c", "k") }}
{% if PAIR %}
{{ product("r2", "c2", "k2") }}
{% endif %}
{% if TRANSPOSED %}
{% for j in range(4) %}
    if (col0 + {{ j }}u < params.cols) {
{% for i in range(ROW4) %}
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
    if (col0 >= params.cols) {
        return;
    }
    let valid = vec4<u32>(col0) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols);
{% for i in range(ROWS) %}
    if (row0 + {{ i }}u < params.rows) {
        let at = (row0 + {{ i }}u) * params.cols4 + col4;
        store_out(at, select(vec4<f32>(), params.alpha * s{{ i }}, valid){% if ACCUMULATE %} + load_out(at){% endif %});
    }
{% endfor %}
{% endif %}
}
