// Gradient of attention, first pass: dq, and delta [heads, T] = rowsum(do * o) for the second pass.
//
// With p = exp(scale * q kᵀ - lse) and ds = p (do vᵀ - delta): dq = scale * ds k. Rows and keys as in attention.wgsl;
// an invocation owns one query row of one head.
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
    var products = vec4<f32>();
{% for d in range(D4) %}
    let q{{ d }} = load_q(q_base + {{ d }}u) * params.scale;
    let g{{ d }} = load_d_o(q_base + {{ d }}u);
    products = fma(g{{ d }}, load_o(q_base + {{ d }}u), products);
    var dq{{ d }} = vec4<f32>();
{% endfor %}
    let row_delta = products.x + products.y + products.z + products.w;
    let row_lse = lse[head * params.lse_stride + row];
    for (var first = starts[row0]; first < last; first += {{ BLOCK }}u) {
{% if SHARED %}
{{ stage("k", "v", "params.keys", "params.kv_stride", "kv_base") }}
        for (var j = 0u; j < {{ BLOCK }}u; j += 1u) {
            let at = j * {{ D4 }}u;
            var s = 0.0;
            var dp = 0.0;
{% for d in range(D4) %}
            { let x = block1[at + {{ d }}u]; {{ dot_add("s", "q" ~ d, "x") }} }
            { let x = block2[at + {{ d }}u]; {{ dot_add("dp", "g" ~ d, "x") }} }
{% endfor %}
            let seen = first + j >= start && first + j < end;
            let ds = select(0.0, exp(s - row_lse) * (dp - row_delta), seen);
{% for d in range(D4) %}
            dq{{ d }} = fma(vec4<f32>(ds), block1[at + {{ d }}u], dq{{ d }});
{% endfor %}
        }
{% else %}
{% for j in range(BLOCK) %}
        var s{{ j }} = 0.0;
        var dp{{ j }} = 0.0;
{% endfor %}
{% for d in range(D4) %}
{{ piece("k", "params.keys", "params.kv_stride", "kv_base", d) }}
{{ piece("v", "params.keys", "params.kv_stride", "kv_base", d) }}
{% for j in range(BLOCK) %}
        { let x = {{ get("k", j, d) }}; {{ dot_add("s" ~ j, "q" ~ d, "x") }} }
        { let x = {{ get("v", j, d) }}; {{ dot_add("dp" ~ j, "g" ~ d, "x") }} }
{% endfor %}
{% endfor %}
{% for j in range(BLOCK) %}
        let seen{{ j }} = first + {{ j }}u >= start && first + {{ j }}u < end;
        let ds{{ j }} = select(0.0, exp(s{{ j }} - row_lse) * (dp{{ j }} - row_delta), seen{{ j }});
{% endfor %}
{% for d in range(D4) %}
{% for j in range(BLOCK) %}
        dq{{ d }} = fma(vec4<f32>(ds{{ j }}), {{ get("k", j, d) }}, dq{{ d }});
{% endfor %}
{% endfor %}
{% endif %}
    }
    if (group_index(group, groups) >= params.tiles || row0 + lane >= params.rows) {
        return;
    }
{% for d in range(D4) %}
    store_dq(q_base + {{ d }}u, dq{{ d }} * params.scale);
{% endfor %}
    delta[head * params.lse_stride + row] = row_delta;
}
