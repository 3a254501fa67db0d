// Gradient of attention for GPUs, first pass: dq, and delta [heads, T] = rowsum(do * o) for the second pass.
//
// With s = cap(scale * q kᵀ), p = exp(s - lse) and ds = p (do vᵀ - delta) cap': dq = scale * ds k. A workgroup owns ROWS query rows of one
// head; rows and keys as in attention_tiled.wgsl.
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "params.q_stride" %}
{% set R_BASE = "q_base" %}
{% set C_EXTENT = "params.keys" %}
{% set C_STRIDE = "params.kv_stride" %}
{% set C_BASE = "kv_base" %}
{% set RESIDENTS = 2 %}
{% include "shared/attention_tiled.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
    let head = tile % params.heads;
    let row0 = (params.row_tiles - 1u - tile / params.heads) * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let q_base = head * {{ D4 }}u;
    let kv_base = head / params.group * {{ D4 }}u;
{{ place() }}
    let common_start = starts[last_row];
    let common_end = ends[row0];
    let last = ends[last_row];
    let lse_base = head * params.lse_stride;
{% for g in range(QR) %}
    let start{{ g }} = {{ of_rows("starts", g) }};
    let end{{ g }} = {{ of_rows("ends", g) }};
    let lse{{ g }} = {{ of_rows("lse", g, "lse_base + ") }};
    var delta{{ g }} = vec4<f32>();
{% endfor %}
    for (var d = x; d < {{ D4 }}u; d += {{ ACROSS }}u) {
{% for g in range(QR) %}
{% for j in range(4) %}
        {
            let at = rows{{ g }}[{{ j }}] * params.q_stride + q_base + d;
            delta{{ g }}[{{ j }}] += dot(load_d_o(at), load_o(at));
        }
{% endfor %}
{% endfor %}
    }
{{ over_row("delta", false) }}
{{ zero("dq") }}
{% if RESIDENT %}
{{ reside("q", 0) }}
{{ reside("d_o", 1) }}
{% endif %}
    workgroupBarrier();
    for (var first = starts[row0]; first < last; first += {{ BLOCK }}u) {
{{ product("s", "q", "k", 0) }}
{{ product("dp", "d_o", "v", 1) }}
{% for g in range(QR) %}
{% for c in range(PER_COLS) %}
        let score{{ g }}_{{ c }} = {{ capped4("s" ~ g ~ "_" ~ c ~ " * params.scale") }};
        s{{ g }}_{{ c }} = exp(score{{ g }}_{{ c }} - lse{{ g }}) * (dp{{ g }}_{{ c }} - delta{{ g }}){{ sloped4("score" ~ g ~ "_" ~ c) }};
{% endfor %}
{% endfor %}
        if (first < common_start || first + {{ BLOCK }}u > common_end) {
{% for c in range(PER_COLS) %}
            let key{{ c }} = vec4<u32>(first + x + {{ c * ACROSS }}u);
{% for g in range(QR) %}
            s{{ g }}_{{ c }} = select(vec4<f32>(), s{{ g }}_{{ c }}, (key{{ c }} >= start{{ g }}) & (key{{ c }} < end{{ g }}));
{% endfor %}
{% endfor %}
        }
{{ share("s") }}
{{ accumulate("dq", "k") }}
    }
{% if TURNED %}
{{ turn_back("dq") }}
{% endif %}
    if (index >= params.tiles) {
        return;
    }
{{ store("dq", "dq", " * params.scale") }}
{{ store_rows("delta", "delta") }}
}
