// Gradient of attention, second pass: dk and dv, summed over the query heads that share a KV head.
//
// With p and ds as in attention_gradient_query.wgsl: dv = pᵀ do, dk = scale * dsᵀ q. Key row s is seen by the query
// rows s .. query_ends[s], which only grow with s. An invocation owns one key row of one KV head.
{% include "shared/attention.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = min(group_index(group, groups), params.tiles - 1u);
    let kv_head = index / params.row_tiles;
    let row0 = index % params.row_tiles * {{ WORKGROUP }}u;
    let row = min(row0 + lane, params.rows - 1u);
    let kv_base = row * params.kv_stride + kv_head * {{ D4 }}u;
    let end = query_ends[row];
    let last = query_ends[min(row0 + {{ WORKGROUP - 1 }}u, params.rows - 1u)];
{% for d in range(D4) %}
    let k{{ d }} = load_k(kv_base + {{ d }}u) * params.scale;
    let v{{ d }} = load_v(kv_base + {{ d }}u);
    var dk{{ d }} = vec4<f32>();
    var dv{{ d }} = vec4<f32>();
{% endfor %}
    for (var head = kv_head * params.group; head < (kv_head + 1u) * params.group; head += 1u) {
        let q_base = head * {{ D4 }}u;
        for (var first = row0; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("q", "d_o", "params.rows", "params.q_stride", "q_base") }}
            for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
                let at = j * {{ D4 }}u;
                let query = head * params.lse_stride + min(first + j, params.rows - 1u);
                var s = 0.0;
                var dp = 0.0;
{% for d in range(D4) %}
                { let x = block1[at + {{ d }}u]; {{ dot_add("s", "k" ~ d, "x") }} }
                { let x = block2[at + {{ d }}u]; {{ dot_add("dp", "v" ~ d, "x") }} }
{% endfor %}
                let seen = first + j >= row && first + j < end;
                let p = select(0.0, exp(s - lse[query]), seen);
                let ds = p * (dp - delta[query]);
{% for d in range(D4) %}
                dv{{ d }} = fma(vec4<f32>(p), block2[at + {{ d }}u], dv{{ d }});
                dk{{ d }} = fma(vec4<f32>(ds), block1[at + {{ d }}u], dk{{ d }});
{% endfor %}
            }
{% else %}
{% for j in range(BLOCK) %}
            var s{{ j }} = 0.0;
            var dp{{ j }} = 0.0;
{% endfor %}
{% for d in range(D4) %}
{{ piece("q", "params.rows", "params.q_stride", "q_base", d) }}
{{ piece("d_o", "params.rows", "params.q_stride", "q_base", d) }}
{% for j in range(BLOCK) %}
            { let x = {{ get("q", j, d) }}; {{ dot_add("s" ~ j, "k" ~ d, "x") }} }
            { let x = {{ get("d_o", j, d) }}; {{ dot_add("dp" ~ j, "v" ~ d, "x") }} }
{% endfor %}
{% endfor %}
            let query = head * params.lse_stride + min(first + lane, params.rows - 1u);
            let query_lse = lse[query];
            let query_delta = delta[query];
{% for j in range(BLOCK) %}
            let seen{{ j }} = first + {{ j }}u >= row && first + {{ j }}u < end;
            let p{{ j }} = select(0.0, exp(s{{ j }} - subgroupBroadcast(query_lse, {{ j }}u)), seen{{ j }});
            let ds{{ j }} = p{{ j }} * (dp{{ j }} - subgroupBroadcast(query_delta, {{ j }}u));
{% endfor %}
{% for d in range(D4) %}
{% for j in range(BLOCK) %}
            dv{{ d }} = fma(vec4<f32>(p{{ j }}), {{ get("d_o", j, d) }}, dv{{ d }});
            dk{{ d }} = fma(vec4<f32>(ds{{ j }}), {{ get("q", j, d) }}, dk{{ d }});
{% endfor %}
{% endfor %}
{% endif %}
        }
    }
    if (group_index(group, groups) >= params.tiles || row0 + lane >= params.rows) {
        return;
    }
{% for d in range(D4) %}
    store_dk(kv_base + {{ d }}u, dk{{ d }} * params.scale);
    store_dv(kv_base + {{ d }}u, dv{{ d }});
{% endfor %}
}
