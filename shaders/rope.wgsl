// Rotary embedding of x [T, heads * head_dim], pairs (j, j + head_dim/2) of each head turned by the angle of
// positions[t]: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin; INVERSE turns back (the gradient).
// `table` [positions, head_dim] holds cosines, then sines, of one position in a row.
// An invocation owns one group of four of the first half of a head and its partner in the second.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i >= params.count) {
        return;
    }
    // known beforehand, since a CPU divides lane by lane
    let half4 = {{ HALF4 }}u;
    let j = i % half4;
    let head = i / half4;
    let row = head / {{ HEADS }}u;
    let angle = positions[row] * 2u * half4;
    let cosine = load_table(angle + j);
    let sine = {% if INVERSE %}-{% endif %}load_table(angle + half4 + j);
    let first = head * 2u * half4 + j;
    let x1 = load_x(first);
    let x2 = load_x(first + half4);
    store_y(first, x1 * cosine - x2 * sine);
    store_y(first + half4, x2 * cosine + x1 * sine);
}
