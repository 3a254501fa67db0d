// Attention with online softmax on matrix units, forward: o = softmax(cap(scale * q kᵀ)) v and lse [heads, T].
//
// The same tensors and ranges as in attention.wgsl. A workgroup owns ROWS query rows of one head and walks the keys from its
// first row's start to its last row's end, BLOCK at a time. KEEP stores lse. See shared/attention_coop.wgsl.
//
// The sums of a row can be rescaled only through workgroup memory. So the score that its weights are relative to is not the
// largest so far, but follows it where that is LAZY above: weights stay below exp(LAZY), which f16 holds, and after its
// first block hardly a row is rescaled (the same idea as in FlashAttention-4's conditional rescaling).
{% set R_EXTENT = "params.rows" %}
{% set R_STRIDE = "q_stride" %}
{% set R_BASE = "q_base" %}
{% set C_EXTENT = "params.keys" %}
{% set C_STRIDE = "kv_stride" %}
{% set C_BASE = "kv_base" %}
{% set LAZY = "8.0" %}
{% set WEIGHED_TURNED = STAGED %}
{% include "shared/attention_coop.wgsl" %}
{{ tile("k") }}
{{ turned_tile("v") }}
// whether a row of the subgroup's invocations is to be rescaled
var<workgroup> outgrown: array<u32, {{ (DOWN * ACROSS + 3) // 4 * 4 }}>;

@compute @workgroup_size({{ WORKGROUP }})
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    // surplus groups of a folded grid repeat the last tile and store nothing
    let index = group_index(group, groups);
    let tile = min(index, params.tiles - 1u);
    let head = tile % params.heads;
    // under a causal mask the last rows see most: they begin first
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
    // what the weights are relative to; above a masked score, so that exp of one is zero in a row that has seen nothing yet
    var base = -1e20;
    // of the invocation's own columns
    var sum = 0.0;
{{ resident("q") }}
{{ zero("o", D_TILES) }}
    for (var first = starts[row0] / {{ ALIGNMENT }}u * {{ ALIGNMENT }}u; first < last; first += {{ BLOCK }}u) {
{{ columns() }}
{% if STAGED %}
{{ stage("k") }}
        workgroupBarrier();
{% endif %}
{{ product("s", "q", "k") }}
{{ spill("s", "scores", range(S_TILES)) }}
        workgroupBarrier();
{% if STAGED %}
        // on its way while weights are made
{{ stage_turned("v") }}
{% endif %}
        var largest = -1e20;
{{ own_columns("start", "end") }}
            let score = select(vec4<f32>(-1e20), {{ capped4(four("g") ~ " * params.scale") }}, seen);
            largest = max(largest, max(max(score.x, score.y), max(score.z, score.w)));
        }
{{ over_row("largest", true) }}
        let outgrows = largest > base + {{ LAZY }};
        // a row that has seen nothing has no sums yet
        let rescales = outgrows && base > -1e19;
        let shrink = select(1.0, exp(base - largest), rescales);
        base = select(base, largest, outgrows);
        sum *= shrink;
{{ own_columns("start", "end") }}
            let score = {{ capped4(four("g") ~ " * params.scale") }};
            let weight = select(vec4<f32>(), exp(score - base), seen);
            sum += weight.x + weight.y + weight.z + weight.w;
{{ weigh("weights", "weight") }}
        }
        let any = subgroupAny(rescales);
        if (in_subgroup == 0u) {
            outgrown[subgroup] = u32(any);
        }
        workgroupBarrier();
        if (({% for s in range(DOWN * ACROSS) %}outgrown[{{ s }}]{{ " | " if not loop.last }}{% endfor %}) != 0u) {
{% for q in range(HEAD_DIM // SPAN) %}
{% set tiles = range(q * SPAN_TILES, (q + 1) * SPAN_TILES) | list %}
{{ spill("o", "scores", tiles) }}
            workgroupBarrier();
            for (var column = part; column < {{ SPAN }}u; column += {{ PARTS }}u) {
                scores[column * {{ SCORE_LINE }}u + own] *= shrink;
            }
            workgroupBarrier();
{{ fetch("o", "scores", tiles) }}
            workgroupBarrier();
{% endfor %}
        }
{{ accumulate("o", "weights", "v") }}
    }
{{ over_row("sum", false) }}
    let inverse = select(0.0, 1.0 / sum, sum > 0.0);
{{ store("o", "o", "inverse") }}
{% if KEEP %}
    if (index < params.tiles && row < params.rows && part == 0u) {
        lse[head * params.lse_stride + row] = base + log(max(sum, 1e-30));
    }
{% endif %}
}
