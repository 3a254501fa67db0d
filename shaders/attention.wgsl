// Attention with online softmax (flash attention), forward: o = softmax(cap(scale * q kᵀ)) v and lse [heads, T].
//
// Query row t sees the key rows starts[t] .. ends[t]; both only grow with t, so a workgroup of consecutive rows visits
// the keys from its first row's start to its last row's end and no other. q, o are [T, heads * HEAD_DIM];
// k, v [S, kv_heads * HEAD_DIM]; query head h reads KV head h / group. An invocation owns PER rows of one head.
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
{% for d in range(D4) %}
    let q{{ r }}_{{ d }} = load_q(q_base{{ r }} + {{ d }}u) * params.scale;
    var o{{ r }}_{{ d }} = vec4<f32>();
{% endfor %}
    var largest{{ r }} = -1e30;
    var sum{{ r }} = 0.0;
{% endfor %}
    for (var first = starts[first_row]; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("k", "v", "params.keys", "params.kv_stride", "kv_base") }}
        for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
            let at = j * {{ D4 }}u;
            var s = 0.0;
{% for d in range(D4) %}
            { let x = block1[at + {{ d }}u]; {{ dot_add("s", "q0_" ~ d, "x") }} }
{% endfor %}
{{ cap_score("s") }}
            let seen = first + j >= start0 && first + j < end0;
            let next = select(largest0, max(largest0, s), seen);
            let shrink = exp(largest0 - next);
            let p = select(0.0, exp(s - next), seen);
            largest0 = next;
            sum0 = fma(sum0, shrink, p);
{% for d in range(D4) %}
            o0_{{ d }} = fma(vec4<f32>(p), block2[at + {{ d }}u], o0_{{ d }} * shrink);
{% endfor %}
        }
{% else %}
{% for r in range(PER) %}
{% for j in range(BLOCK) %}
        var s{{ r }}_{{ j }} = 0.0;
{% endfor %}
{% endfor %}
{% for d in range(D4) %}
{{ piece("k", "params.keys", "params.kv_stride", "kv_base", d) }}
{% for j in range(BLOCK) %}
        {
            let x = {{ get("k", "params.keys", "params.kv_stride", "kv_base", j, d) }};
{% for r in range(PER) %}
            {{ dot_add("s" ~ r ~ "_" ~ j, "q" ~ r ~ "_" ~ d, "x") }}
{% endfor %}
        }
{% endfor %}
{% endfor %}
{% for r in range(PER) %}
        var next{{ r }} = largest{{ r }};
{% for j in range(BLOCK) %}
{{ cap_score("s" ~ r ~ "_" ~ j) }}
        let seen{{ r }}_{{ j }} = first + {{ j }}u >= start{{ r }} && first + {{ j }}u < end{{ r }};
        next{{ r }} = select(next{{ r }}, max(next{{ r }}, s{{ r }}_{{ j }}), seen{{ r }}_{{ j }});
{% endfor %}
        let shrink{{ r }} = exp(largest{{ r }} - next{{ r }});
        largest{{ r }} = next{{ r }};
        sum{{ r }} *= shrink{{ r }};
{% for j in range(BLOCK) %}
        let p{{ r }}_{{ j }} = select(0.0, exp(s{{ r }}_{{ j }} - largest{{ r }}), seen{{ r }}_{{ j }});
        sum{{ r }} += p{{ r }}_{{ j }};
{% endfor %}
{% endfor %}
{% for d in range(D4) %}
{{ piece("v", "params.keys", "params.kv_stride", "kv_base", d) }}
{% for r in range(PER) %}
        o{{ r }}_{{ d }} *= shrink{{ r }};
{% endfor %}
{% for j in range(BLOCK) %}
        {
            let x = {{ get("v", "params.keys", "params.kv_stride", "kv_base", j, d) }};
{% for r in range(PER) %}
            o{{ r }}_{{ d }} = fma(vec4<f32>(p{{ r }}_{{ j }}), x, o{{ r }}_{{ d }});
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
        let inverse = select(0.0, 1.0 / sum{{ r }}, sum{{ r }} > 0.0);
{% for d in range(D4) %}
        store_o(q_base{{ r }} + {{ d }}u, o{{ r }}_{{ d }} * inverse);
{% endfor %}
{% if KEEP %}
        lse[head * params.lse_stride + row{{ r }}] = largest{{ r }} + log(max(sum{{ r }}, 1e-30));
{% endif %}
    }
{% endfor %}
}
