// Gradient of attention, second pass: dk and dv, summed over the query heads that share a KV head.
//
// With p and ds as in attention_gradient_query.wgsl: dv = pᵀ do, dk = scale * dsᵀ q. Key row s is seen by the query
// rows s .. query_ends[s], which only grow with s. An invocation owns PER key rows of one KV head.
{% include "shared/attention.wgsl" %}

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = min(group_index(group, groups), params.tiles - 1u);
    let kv_head = index / params.row_tiles;
    let first_row = index % params.row_tiles * {{ ROWS }}u;
    let last = query_ends[min(first_row + {{ ROWS - 1 }}u, params.rows - 1u)];
{% for r in range(PER) %}
    let row{{ r }} = min(first_row + {{ r * WORKGROUP }}u + lane, params.rows - 1u);
    let kv_base{{ r }} = row{{ r }} * params.kv_stride + kv_head * {{ D4 }}u;
    let end{{ r }} = query_ends[row{{ r }}];
{% for d in range(D4) %}
    let k{{ r }}_{{ d }} = load_k(kv_base{{ r }} + {{ d }}u) * params.scale;
    let v{{ r }}_{{ d }} = load_v(kv_base{{ r }} + {{ d }}u);
    var dk{{ r }}_{{ d }} = vec4<f32>();
    var dv{{ r }}_{{ d }} = vec4<f32>();
{% endfor %}
{% endfor %}
    for (var head = kv_head * params.group; head < (kv_head + 1u) * params.group; head += 1u) {
        let q_base = head * {{ D4 }}u;
        for (var first = first_row; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("q", "d_o", "params.rows", "params.q_stride", "q_base") }}
            for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
                let at = j * {{ D4 }}u;
                let query = head * params.lse_stride + min(first + j, params.rows - 1u);
                var s = 0.0;
                var dp = 0.0;
{% for d in range(D4) %}
                { let x = block1[at + {{ d }}u]; {{ dot_add("s", "k0_" ~ d, "x") }} }
                { let x = block2[at + {{ d }}u]; {{ dot_add("dp", "v0_" ~ d, "x") }} }
{% endfor %}
{{ cap_score("s") }}
                let seen = first + j >= row0 && first + j < end0;
                let p = select(0.0, exp(s - lse[query]), seen);
                let ds = p * (dp - delta[query]){{ sloped("s") }};
{% for d in range(D4) %}
                dv0_{{ d }} = fma(vec4<f32>(p), block2[at + {{ d }}u], dv0_{{ d }});
                dk0_{{ d }} = fma(vec4<f32>(ds), block1[at + {{ d }}u], dk0_{{ d }});
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
{{ piece("q", "params.rows", "params.q_stride", "q_base", d) }}
{{ piece("d_o", "params.rows", "params.q_stride", "q_base", d) }}
{% for j in range(BLOCK) %}
            {
                let x = {{ get("q", "params.rows", "params.q_stride", "q_base", j, d) }};
                let y = {{ get("d_o", "params.rows", "params.q_stride", "q_base", j, d) }};
{% for r in range(PER) %}
                {{ dot_add("s" ~ r ~ "_" ~ j, "k" ~ r ~ "_" ~ d, "x") }}
                {{ dot_add("dp" ~ r ~ "_" ~ j, "v" ~ r ~ "_" ~ d, "y") }}
{% endfor %}
            }
{% endfor %}
{% endfor %}
{% if not UNIFORM %}
            let query = head * params.lse_stride + min(first + lane, params.rows - 1u);
            let query_lse = lse[query];
            let query_delta = delta[query];
{% endif %}
{% for j in range(BLOCK) %}
{% if UNIFORM %}
            let query{{ j }} = head * params.lse_stride + min(first + {{ j }}u, params.rows - 1u);
            let lse{{ j }} = lse[query{{ j }}];
            let delta{{ j }} = delta[query{{ j }}];
{% else %}
            let lse{{ j }} = subgroupBroadcast(query_lse, {{ j }}u);
            let delta{{ j }} = subgroupBroadcast(query_delta, {{ j }}u);
{% endif %}
{% for r in range(PER) %}
{{ cap_score("s" ~ r ~ "_" ~ j) }}
            let seen{{ r }}_{{ j }} = first + {{ j }}u >= row{{ r }} && first + {{ j }}u < end{{ r }};
            let p{{ r }}_{{ j }} = select(0.0, exp(s{{ r }}_{{ j }} - lse{{ j }}), seen{{ r }}_{{ j }});
            let ds{{ r }}_{{ j }} = p{{ r }}_{{ j }} * (dp{{ r }}_{{ j }} - delta{{ j }}){{ sloped("s" ~ r ~ "_" ~ j) }};
{% endfor %}
{% endfor %}
{% for d in range(D4) %}
{% for j in range(BLOCK) %}
            {
                let x = {{ get("d_o", "params.rows", "params.q_stride", "q_base", j, d) }};
                let y = {{ get("q", "params.rows", "params.q_stride", "q_base", j, d) }};
{% for r in range(PER) %}
                dv{{ r }}_{{ d }} = fma(vec4<f32>(p{{ r }}_{{ j }}), x, dv{{ r }}_{{ d }});
                dk{{ r }}_{{ d }} = fma(vec4<f32>(ds{{ r }}_{{ j }}), y, dk{{ r }}_{{ d }});
{% endfor %}
            }
{% endfor %}
{% endfor %}
{% endif %}
        }
    }
    if (group_index(group, groups) >= params.tiles) {
        return;
    }
{% for r in range(PER) %}
    if (first_row + {{ r * WORKGROUP }}u + lane < params.rows) {
{{ store_gradient("dk", "kv_base" ~ r, "row" ~ r, "dk" ~ r) }}
{% for d in range(D4) %}
        store_dv(kv_base{{ r }} + {{ d }}u, dv{{ r }}_{{ d }});
{% endfor %}
    }
{% endfor %}
}
