// Gradient of attention on matrix units, first pass: dq, and delta [heads, T] = rowsum(do * o) for the second pass.
//
// With s = cap(scale * q kᵀ), p = exp(s - lse) and ds = p (do vᵀ - delta) cap': dq = scale * ds k. A workgroup owns ROWS query rows of one
// head; rows and keys as in attention_coop.wgsl. ds meets k in f16: where do is below 1e-3 that rounds more than the result in f16
// does itself, and the loss scale keeps it above. SCALED: do is as many times larger as `unscale` makes smaller, and so is ds.
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "q_stride" %}
{% set R_BASE = "q_base" %}
{% set C_EXTENT = "params.keys" %}
{% set C_STRIDE = "kv_stride" %}
{% set C_BASE = "kv_base" %}
{% set WEIGHED_TURNED = BOTH_WAYS %}
{% include "shared/attention_coop.wgsl" %}
{{ tile("k") }}
{% if BOTH_WAYS %}
{{ turned_tile("k") }}
{% endif %}
{{ tile("v") }}
var<workgroup> gradients: array<f32, {{ SCORE_LINE * BLOCK }}>;

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
) {
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
    let head = tile % params.heads;
    let row0 = (params.row_tiles - 1u - tile / params.heads) * {{ ROWS }}u;
    let last_row = min(row0 + {{ ROWS - 1 }}u, params.rows - 1u);
    let q_stride = params.q_stride * {{ GROUP }}u;
    let kv_stride = params.kv_stride * {{ GROUP }}u;
    let q_base = head * {{ HEAD4 }}u;
    let kv_base = head / params.group * {{ HEAD4 }}u;
{{ place() }}
    let start = starts[row_at];
    let end = ends[row_at];
    let last = ends[last_row];
    let lse_at = head * params.lse_stride + row_at;
    let row_lse = lse[lse_at];
    let row_base = row_at * q_stride + q_base;
    var delta_sum = 0.0;
    for (var d = part; d < {{ HEAD_DIM // 4 }}u; d += {{ PARTS }}u) {
        let at = row_base + d * {{ GROUP }}u;
        let of_row = vec4<f32>({{ group_of("d_o", "at") }});
        delta_sum += dot(of_row, load_o(at / {{ GROUP }}u));
    }
{{ over_row("delta_sum", false) }}
{{ factors() }}
{{ resident("q") }}
{{ resident("d_o") }}
{{ zero("dq", D_TILES) }}
    for (var first = starts[row0] / {{ ALIGNMENT }}u * {{ ALIGNMENT }}u; first < last; first += {{ BLOCK }}u) {
{{ columns() }}
{{ stage_all(["k", "v"], ["k"]) }}
{{ product("s", "q", "k") }}
{{ spill("s", "scores", range(S_TILES)) }}
{{ product("dp", "d_o", "v") }}
{{ spill("dp", "gradients", range(S_TILES)) }}
        workgroupBarrier();
{{ own_columns("start", "end") }}
            let score = {{ capped4(four("g") ~ " * params.scale") }};
            let p = exp(score - row_lse);
            let ds = p * ({{ four("g", "gradients") }} - delta_sum){{ sloped4("score") }};
{{ weigh("weights", bounded("select(vec4<f32>(), ds, seen)")) }}
        }
        workgroupBarrier();
{{ accumulate("dq", "weights", "k") }}
    }
{% if TURNED %}
{{ store_turned("dq", "dq", "scale_back") }}
{% else %}
{{ store("dq", "dq", "scale_back") }}
{% endif %}
    if (index < params.tiles && row < params.rows && part == 0u) {
        delta[lse_at] = delta_sum{% if SCALED %} * smaller{% endif %};
    }
}
