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
{% set WEIGHED_TURNED = BOTH_WAYS %}
{% include "shared/attention_coop.wgsl" %}
var<workgroup> gradients: array<f32, {{ SCORE_LINE * BLOCK }}>;
var<workgroup> gradient_weights: array<{{ HALF }}, {{ WEIGHT_LINE * ROWS }}>;
{{ tile("q") }}
{{ tile("d_o") }}
{% if BOTH_WAYS %}
{{ turned_tile("q") }}
{{ turned_tile("d_o") }}
{% endif %}

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
    let out_base = first_head * {{ HEAD4 }}u;
{% else %}
    let kv_head = tile % params.heads;
    let first_head = kv_head * params.group;
    let last_head = first_head + params.group - 1u;
{% endif %}
    // under a causal mask the first keys are seen most: they begin first
    let row0 = tile / params.heads * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let q_stride = params.q_stride * {{ GROUP }}u;
    let kv_stride = params.kv_stride * {{ GROUP }}u;
    let kv_base = kv_head * {{ HEAD4 }}u;
{{ place() }}
{{ factors() }}
    let end = query_ends[row_at];
    let last = query_ends[last_row];
{{ resident("k") }}
{{ resident("v") }}
{{ zero("dk", D_TILES) }}
{{ zero("dv", D_TILES) }}
    for (var head = first_head; head <= last_head; head += 1u) {
        let q_base = head * {{ HEAD4 }}u;
        let lse_base = head * params.lse_stride;
        for (var first = row0; first < last; first += {{ BLOCK }}u) {
{{ columns() }}
{{ stage_all(["q", "d_o"], ["q", "d_o"]) }}
{{ product("s", "k", "q") }}
{{ spill("s", "scores", range(S_TILES)) }}
{{ product("dp", "v", "d_o") }}
{{ spill("dp", "gradients", range(S_TILES)) }}
            workgroupBarrier();
{{ own_columns("row", "end") }}
            let of_query = vec4<u32>(lse_base) + min(column, vec4<u32>(params.rows - 1u));
            let row_lse = vec4<f32>(lse[of_query.x], lse[of_query.y], lse[of_query.z], lse[of_query.w]);
            let row_delta = vec4<f32>(delta[of_query.x], delta[of_query.y], delta[of_query.z], delta[of_query.w]);
            let score = {{ capped4(four("g") ~ " * params.scale") }};
            let p = select(vec4<f32>(), exp(score - row_lse), seen);
{{ weigh("weights", "p") }}
            let ds = p * ({{ four("g", "gradients") }} - row_delta{% if SCALED %} * larger{% endif %}){{ sloped4("score") }};
{{ weigh("gradient_weights", bounded("ds")) }}
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
