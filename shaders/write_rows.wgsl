// cache[offset + t, :] = x[t, :] for rows inside the cache. An invocation owns one group of four of x [T, d].
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let row = offset[0] + i / params.cols4;
        if (row < params.cache_rows) {
            store_cache(row * params.cols4 + i % params.cols4, load_x(i));
        }
    }
}
