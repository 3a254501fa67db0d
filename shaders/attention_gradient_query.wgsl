// Gradient of attention, first pass: dq, and delta [heads, T] = rowsum(do * o) for the second pass.
//
// With s = cap(scale * q kᵀ), p = exp(s - lse) and ds = p (do vᵀ - delta) cap': dq = scale * ds k. Rows and keys as in attention.wgsl;
// an invocation owns PER query rows of one head.
{% include "shared/attention.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = min(group_index(group, groups), params.tiles - 1u);
    let head = index / params.row_tiles;
    let first_row = index % params.row_tiles * {{ ROWS }}u;
    let kv_base = head / params.group * {{ D4 }}u;
    let last = ends[min(first_row + {{ ROWS - 1 }}u, params.rows - 1u)];
{% for r in range(PER) %}
{{ own_query(r) }}
    var products{{ r }} = vec4<f32>();
{% for d in range(D4) %}
    let q{{ r }}_{{ d }} = load_q(q_base{{ r }} + {{ d }}u) * params.scale;
    let g{{ r }}_{{ d }} = load_d_o(q_base{{ r }} + {{ d }}u);
    products{{ r }} = fma(g{{ r }}_{{ d }}, load_o(q_base{{ r }} + {{ d }}u), products{{ r }});
    var dq{{ r }}_{{ d }} = vec4<f32>();
{% endfor %}
    let row_delta{{ r }} = products{{ r }}.x + products{{ r }}.y + products{{ r }}.z + products{{ r }}.w;
    let row_lse{{ r }} = lse[head * params.lse_stride + row{{ r }}];
{% endfor %}
    for (var first = starts[first_row]; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("k", "v", "params.keys", "params.kv_stride", "kv_base") }}
        for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
            let at = j * {{ D4 }}u;
            var s = 0.0;
            var dp = 0.0;
{% for d in range(D4) %}
            { let x = block1[at + {{ d }}u]; {{ dot_add("s", "q0_" ~ d, "x") }} }
            { let x = block2[at + {{ d }}u]; {{ dot_add("dp", "g0_" ~ d, "x") }} }
{% endfor %}
            let seen = first + j >= start0 && first + j < end0;
{{ cap_score("s") }}
            let ds = select(0.0, exp(s - row_lse0) * (dp - row_delta0){{ sloped("s") }}, seen);
{% for d in range(D4) %}
            dq0_{{ d }} = fma(vec4<f32>(ds), block1[at + {{ d }}u], dq0_{{ d }});
{% endfor %}
        }
{% else %}
{% for r in range(PER) %}
{% for j in range(BLOCK) %}
        var s{{ r }}_{{ j }} = 0.0;
        var dp{{ r }}_{{ j }} = 0.0;
{% endfor %}
{% endfor %}
{% for d in range(D4) %}
{{ piece("k", "params.keys", "params.kv_stride", "kv_base", d) }}
{{ piece("v", "params.keys", "params.kv_stride", "kv_base", d) }}
{% for j in range(BLOCK) %}
        {
            let x = {{ get("k", "params.keys", "params.kv_stride", "kv_base", j, d) }};
            let y = {{ get("v", "params.keys", "params.kv_stride", "kv_base", j, d) }};
{% for r in range(PER) %}
            {{ dot_add("s" ~ r ~ "_" ~ j, "q" ~ r ~ "_" ~ d, "x") }}
            {{ dot_add("dp" ~ r ~ "_" ~ j, "g" ~ r ~ "_" ~ d, "y") }}
{% endfor %}
        }
{% endfor %}
{% endfor %}
{% for r in range(PER) %}
{% for j in range(BLOCK) %}
{{ cap_score("s" ~ r ~ "_" ~ j) }}
        let seen{{ r }}_{{ j }} = first + {{ j }}u >= start{{ r }} && first + {{ j }}u < end{{ r }};
        let ds{{ r }}_{{ j }} = select(0.0, exp(s{{ r }}_{{ j }} - row_lse{{ r }}) * (dp{{ r }}_{{ j }} - row_delta{{ r }}){{ sloped("s" ~ r ~ "_" ~ j) }}, seen{{ r }}_{{ j }});
{% endfor %}
{% endfor %}
{% for d in range(D4) %}
{% for j in range(BLOCK) %}
        {
            let x = {{ get("k", "params.keys", "params.kv_stride", "kv_base", j, d) }};
{% for r in range(PER) %}
            dq{{ r }}_{{ d }} = fma(vec4<f32>(ds{{ r }}_{{ j }}), x, dq{{ r }}_{{ d }});
{% endfor %}
        }
{% endfor %}
{% endfor %}
{% endif %}
    }
    if (group_index(group, groups) >= params.tiles) {
        return;
    }
{% for r in range(PER) %}
    if (first_row + {{ r * WORKGROUP }}u + lane < params.rows) {
{{ store_gradient("dq", "q_base" ~ r, "row" ~ r, "dq" ~ r) }}
        delta[head * params.lse_stride + row{{ r }}] = row_delta{{ r }};
    }
{% endfor %}
}
