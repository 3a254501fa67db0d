// Attention with online softmax for GPUs, forward: o = softmax(cap(scale * q kᵀ)) v and lse [heads, T].
//
// The same tensors and ranges as in attention.wgsl. A workgroup owns ROWS query rows of one head and walks the keys from its
// first row's start to its last row's end, BLOCK at a time. KEEP stores lse. See shared/attention_tiled.wgsl.
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "params.q_stride" %}
{% set R_BASE = "q_base" %}
{% set C_EXTENT = "params.keys" %}
{% set C_STRIDE = "params.kv_stride" %}
{% set C_BASE = "kv_base" %}
{% set RESIDENTS = 1 %}
{% include "shared/attention_tiled.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // surplus groups of a folded grid repeat the last tile and store nothing
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
    let head = tile % params.heads;
    // under a causal mask the last rows see most: they begin first
    let row0 = (params.row_tiles - 1u - tile / params.heads) * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let q_base = head * {{ D4 }}u;
    let kv_base = head / params.group * {{ D4 }}u;
{{ place() }}
    // the keys that all rows see
    let common_start = starts[last_row];
    let common_end = ends[row0];
    let last = ends[last_row];
{% for g in range(QR) %}
    let start{{ g }} = {{ of_rows("starts", g) }};
    let end{{ g }} = {{ of_rows("ends", g) }};
    // above a masked score, so that exp of one is zero in a row that has seen nothing yet
    var largest{{ g }} = vec4<f32>(-1e20);
    // of the invocation's own columns
    var sum{{ g }} = vec4<f32>();
{% endfor %}
{{ zero("o") }}
{% if RESIDENT %}
{{ reside("q", 0) }}
{% endif %}
    for (var first = starts[row0]; first < last; first += {{ BLOCK }}u) {
{{ product("s", "q", "k", 0) }}
{% for g in range(QR) %}
{% for c in range(PER_COLS) %}
        s{{ g }}_{{ c }} = {{ capped4("s" ~ g ~ "_" ~ c ~ " * params.scale") }};
{% endfor %}
{% endfor %}
        if (first < common_start || first + {{ BLOCK }}u > common_end) {
{% for c in range(PER_COLS) %}
            let key{{ c }} = vec4<u32>(first + x + {{ c * ACROSS }}u);
{% for g in range(QR) %}
            s{{ g }}_{{ c }} = select(vec4<f32>(-1e30), s{{ g }}_{{ c }}, (key{{ c }} >= start{{ g }}) & (key{{ c }} < end{{ g }}));
{% endfor %}
{% endfor %}
        }
{% for g in range(QR) %}
        var next{{ g }} = largest{{ g }};
{% for c in range(PER_COLS) %}
        next{{ g }} = max(next{{ g }}, s{{ g }}_{{ c }});
{% endfor %}
{% endfor %}
{{ over_row("next", true) }}
{% for g in range(QR) %}
        let shrink{{ g }} = exp(largest{{ g }} - next{{ g }});
        largest{{ g }} = next{{ g }};
        sum{{ g }} *= shrink{{ g }};
{% for c in range(PER_COLS) %}
        s{{ g }}_{{ c }} = exp(s{{ g }}_{{ c }} - next{{ g }});
        sum{{ g }} += s{{ g }}_{{ c }};
{% endfor %}
{% endfor %}
{{ scale_rows("o", "shrink") }}
{{ share("s") }}
{{ accumulate("o", "v") }}
    }
{{ over_row("sum", false) }}
    if (index >= params.tiles) {
        return;
    }
{% for g in range(QR) %}
    let inverse{{ g }} = select(vec4<f32>(), 1.0 / sum{{ g }}, sum{{ g }} > vec4<f32>());
{% endfor %}
{{ scale_rows("o", "inverse") }}
{{ store("o", "o") }}
{% if KEEP %}
{% for g in range(QR) %}
    let log_sum{{ g }} = largest{{ g }} + log(max(sum{{ g }}, vec4<f32>(1e-30)));
{% endfor %}
{{ store_rows("lse", "log_sum") }}
{% endif %}
}
