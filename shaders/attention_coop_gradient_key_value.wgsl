// Gradient of attention on matrix units, second pass: dk and dv, summed over the query heads that share a KV head.
//
// With p and ds as in attention_coop_gradient_query.wgsl: dv = pᵀ do, dk = scale * dsᵀ q. Key row s is seen by the query
// rows s .. query_ends[s], which only grow with s. A workgroup owns ROWS key rows of one KV head and walks the queries from
// its first row to its last row's end, BLOCK at a time, for one query head after the other. BY_HEAD: for one query head, whose
// dk and dv lie as its queries do, and attention_sum_heads.wgsl adds them up. SCALED: as there, and not of delta.
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "kv_stride" %}
{% set R_BASE = "kv_base" %}
{% set C_EXTENT = "params.rows" %}
{% set C_STRIDE = "q_stride" %}
{% set C_BASE = "q_base" %}
{% set OUT_STRIDE = "q_stride" if BY_HEAD else R_STRIDE %}
{% set OUT_BASE = "out_base" if BY_HEAD else R_BASE %}
{% include "shared/attention_coop.wgsl" %}
var<workgroup> gradients: array<f32, {{ SCORE_LINE * BLOCK }}>;
var<workgroup> gradient_weights: array<f16, {{ WEIGHT_LINE * BLOCK }}>;

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
) {
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
{% if BY_HEAD %}
    let first_head = tile % params.heads;
    let last_head = first_head;
    let kv_head = first_head / params.group;
    let out_base = first_head * {{ HEAD_DIM }}u;
{% else %}
    let kv_head = tile % params.heads;
    let first_head = kv_head * params.group;
    let last_head = first_head + params.group - 1u;
{% endif %}
    // under a causal mask the first keys are seen most: they begin first
    let row0 = tile / params.heads * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let q_stride = 4u * params.q_stride;
    let kv_stride = 4u * params.kv_stride;
    let kv_base = kv_head * {{ HEAD_DIM }}u;
{{ place() }}
{{ factors() }}
    let end = query_ends[row_at];
    let last = query_ends[last_row];
{{ zero("dk", D_TILES) }}
{{ zero("dv", D_TILES) }}
    for (var head = first_head; head <= last_head; head += 1u) {
        let q_base = head * {{ HEAD_DIM }}u;
        let lse_base = head * params.lse_stride;
        for (var first = row0; first < last; first += {{ BLOCK }}u) {
{{ columns() }}
{{ product("s", "k", "q") }}
{{ spill("s", "scores", range(S_TILES)) }}
{{ product("dp", "v", "d_o") }}
{{ spill("dp", "gradients", range(S_TILES)) }}
            workgroupBarrier();
            for (var j = 0u; j < {{ SHARE }}u; j += 1u) {
                let column = part * {{ SHARE }}u + j;
                let query = first + column;
                let at = column * {{ SCORE_LINE }}u + own;
                let weight_at = column * {{ WEIGHT_LINE }}u + own;
                let of_query = lse_base + min(query, params.rows - 1u);
                let seen = query >= row && query < end;
                let p = select(0.0, exp(scores[at] * params.scale - lse[of_query]), seen);
                weights[weight_at] = f16(p);
                let ds = p * (gradients[at] - delta[of_query]{% if SCALED %} * larger{% endif %});
                gradient_weights[weight_at] = f16({{ bounded("ds") }});
            }
            workgroupBarrier();
{{ accumulate("dv", "weights", "d_o") }}
{{ accumulate("dk", "gradient_weights", "q") }}
        }
    }
{% if TURNED %}
{{ store_turned("dk", "dk", "scale_back") }}
{% else %}
{{ store("dk", "dk", "scale_back") }}
{% endif %}
{{ store("dv", "dv", "smaller" if SCALED else "1.0") }}
}
