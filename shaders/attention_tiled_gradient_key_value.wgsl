// Gradient of attention for GPUs, second pass: dk and dv, summed over the query heads that share a KV head.
//
// With p and ds as in attention_tiled_gradient_query.wgsl: dv = pᵀ do, dk = scale * dsᵀ q. Key row s is seen by the query
// rows s .. query_ends[s], which only grow with s. A workgroup owns ROWS key rows of one KV head and walks the queries from
// its first row to its last row's end, BLOCK at a time, for one query head after the other. BY_HEAD: for one query head, whose
// dk and dv lie as its queries do, and attention_sum_heads.wgsl adds them up.
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "params.kv_stride" %}
{% set R_BASE = "kv_base" %}
{% set C_EXTENT = "params.rows" %}
{% set C_STRIDE = "params.q_stride" %}
{% set C_BASE = "q_base" %}
{% set OUT_STRIDE = "params.q_stride" if BY_HEAD else R_STRIDE %}
{% set OUT_BASE = "out_base" if BY_HEAD else R_BASE %}
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
{% if BY_HEAD %}
    let first_head = tile % params.heads;
    let last_head = first_head;
    let kv_head = first_head / params.group;
    let out_base = first_head * {{ D4 }}u;
{% else %}
    let kv_head = tile % params.heads;
    let first_head = kv_head * params.group;
    let last_head = first_head + params.group - 1u;
{% endif %}
    // under a causal mask the first keys are seen most: they begin first
    let row0 = tile / params.heads * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let kv_base = kv_head * {{ D4 }}u;
{{ place() }}
    let common_end = query_ends[row0];
    let last = query_ends[last_row];
{% for g in range(QR) %}
    let end{{ g }} = {{ of_rows("query_ends", g) }};
{% endfor %}
{{ zero("dk") }}
{{ zero("dv") }}
{% if RESIDENT %}
{{ reside("k", 0) }}
{{ reside("v", 1) }}
{% endif %}
    for (var head = first_head; head <= last_head; head += 1u) {
        let q_base = head * {{ D4 }}u;
        for (var first = row0; first < last; first += {{ BLOCK }}u) {
{{ product("s", "k", "q", 0) }}
{{ product("dp", "v", "d_o", 1) }}
{% for c in range(PER_COLS) %}
            let query{{ c }} = vec4<u32>(first + x + {{ c * ACROSS }}u);
            let at{{ c }} = head * params.lse_stride + min(query{{ c }}.x, params.rows - 1u);
            let lse{{ c }} = lse[at{{ c }}];
            let delta{{ c }} = delta[at{{ c }}];
{% for g in range(QR) %}
            let score{{ g }}_{{ c }} = {{ capped4("s" ~ g ~ "_" ~ c ~ " * params.scale") }};
            s{{ g }}_{{ c }} = exp(score{{ g }}_{{ c }} - vec4<f32>(lse{{ c }}));
{% endfor %}
{% endfor %}
            if (first < last_row || first + {{ BLOCK }}u > common_end) {
{% for c in range(PER_COLS) %}
{% for g in range(QR) %}
                s{{ g }}_{{ c }} = select(vec4<f32>(), s{{ g }}_{{ c }}, (query{{ c }} >= rows{{ g }}) & (query{{ c }} < end{{ g }}));
{% endfor %}
{% endfor %}
            }
{% for c in range(PER_COLS) %}
{% for g in range(QR) %}
            dp{{ g }}_{{ c }} = s{{ g }}_{{ c }} * (dp{{ g }}_{{ c }} - vec4<f32>(delta{{ c }})){{ sloped4("score" ~ g ~ "_" ~ c) }};
{% endfor %}
{% endfor %}
{{ share("s") }}
{{ accumulate("dv", "d_o") }}
{{ share("dp") }}
{{ accumulate("dk", "q") }}
        }
    }
{% if TURNED %}
{{ turn_back("dk") }}
{% endif %}
    if (index >= params.tiles) {
        return;
    }
{{ store("dk", "dk", " * params.scale") }}
{{ store("dv", "dv") }}
}
