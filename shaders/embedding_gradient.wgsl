// dtable[v, :] += scale * sum of dy[t, :] over all t with tokens[t] = v, without atomics.
// `order` lists the positions sorted by token, so equal tokens are one run; the invocation at the head of
// a run (times groups of four) sums the whole run and owns that row of dtable.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 64u + lane;
    if (i >= params.count) {
        return;
    }
    let head = i / params.cols4;
    let col = i % params.cols4;
    let token = tokens[order[head]];
    if (head > 0u && tokens[order[head - 1u]] == token) {
        return;
    }
    var sum = vec4<f32>();
    for (var next = head; next < params.rows; next += 1u) {
        let row = order[next];
        if (tokens[row] != token) {
            break;
        }
        sum += load_dy(row * params.cols4 + col);
    }
    let out = token * params.cols4 + col;
    store_dtable(out, load_dtable(out) + params.scale * sum);
}
