// Attention with online softmax (flash attention), forward: o = softmax(scale * q kᵀ) v and lse [heads, T].
//
// Query row t sees the key rows starts[t] .. ends[t]; both only grow with t, so a workgroup of consecutive rows visits
// the keys from its first row's start to its last row's end and no other. q, o are [T, heads * HEAD_DIM];
// k, v [S, kv_heads * HEAD_DIM]; query head h reads KV head h / group. An invocation owns one row of one head.
{% include "shared/attention.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = min(group_index(group, groups), params.tiles - 1u);
    let head = index / params.row_tiles;
    let row0 = index % params.row_tiles * {{ WORKGROUP }}u;
    let row = min(row0 + lane, params.rows - 1u);
    let q_base = row * params.q_stride + head * {{ D4 }}u;
    let kv_base = head / params.group * {{ D4 }}u;
    let start = starts[row];
    let end = ends[row];
    let last = ends[min(row0 + {{ WORKGROUP - 1 }}u, params.rows - 1u)];
{% for d in range(D4) %}
    let q{{ d }} = load_q(q_base + {{ d }}u) * params.scale;
    var o{{ d }} = vec4<f32>();
{% endfor %}
    var largest = -1e30;
    var sum = 0.0;
    for (var first = starts[row0]; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("k", "v", "params.keys", "params.kv_stride", "kv_base") }}
        for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
            let at = j * {{ D4 }}u;
            var s = 0.0;
{% for d in range(D4) %}
            { let x = block1[at + {{ d }}u]; {{ dot_add("s", "q" ~ d, "x") }} }
{% endfor %}
            let seen = first + j >= start && first + j < end;
            let next = select(largest, max(largest, s), seen);
            let shrink = exp(largest - next);
            let p = select(0.0, exp(s - next), seen);
            largest = next;
            sum = fma(sum, shrink, p);
{% for d in range(D4) %}
            o{{ d }} = fma(vec4<f32>(p), block2[at + {{ d }}u], o{{ d }} * shrink);
{% endfor %}
        }
{% else %}
{% for j in range(BLOCK) %}
        var s{{ j }} = 0.0;
{% endfor %}
{% for d in range(D4) %}
{{ piece("k", "params.keys", "params.kv_stride", "kv_base", d) }}
{% for j in range(BLOCK) %}
        { let x = {{ get("k", j, d) }}; {{ dot_add("s" ~ j, "q" ~ d, "x") }} }
{% endfor %}
{% endfor %}
        var next = largest;
{% for j in range(BLOCK) %}
        let seen{{ j }} = first + {{ j }}u >= start && first + {{ j }}u < end;
        next = select(next, max(next, s{{ j }}), seen{{ j }});
{% endfor %}
        let shrink = exp(largest - next);
        largest = next;
        sum *= shrink;
{% for j in range(BLOCK) %}
        let p{{ j }} = select(0.0, exp(s{{ j }} - largest), seen{{ j }});
        sum += p{{ j }};
{% endfor %}
{% for d in range(D4) %}
{{ piece("v", "params.keys", "params.kv_stride", "kv_base", d) }}
        o{{ d }} *= shrink;
{% for j in range(BLOCK) %}
        o{{ d }} = fma(vec4<f32>(p{{ j }}), {{ get("v", j, d) }}, o{{ d }});
{% endfor %}
{% endfor %}
{% endif %}
    }
    if (group_index(group, groups) >= params.tiles || row0 + lane >= params.rows) {
        return;
    }
    let inverse = select(0.0, 1.0 / sum, sum > 0.0);
{% for d in range(D4) %}
    store_o(q_base + {{ d }}u, o{{ d }} * inverse);
{% endfor %}
{% if KEEP %}
    lse[head * params.lse_stride + row] = largest + log(max(sum, 1e-30));
{% endif %}
}
