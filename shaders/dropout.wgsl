// y = x / (1 - p) where the generator keeps the element, else 0. An invocation owns one group of four.
// The mask depends on (rng, key, element) alone, so recomputation and the reverse pass see the same one.
fn mix(value: u32) -> u32 {
    var h = value;
    h = (h ^ (h >> 16u)) * 0x7feb352du;
    h = (h ^ (h >> 15u)) * 0x846ca68bu;
    return h ^ (h >> 16u);
}

fn random_bits(element: u32) -> u32 {
    return mix(mix(mix(mix(element ^ rng[0]) + rng[1]) ^ rng[2]) + params.key);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_index(group, groups) * 256u + lane;
    if (i < params.count) {
        let bits = vec4<u32>(random_bits(4u * i), random_bits(4u * i + 1u), random_bits(4u * i + 2u), random_bits(4u * i + 3u));
        let keep = (bits >> vec4<u32>(8u)) >= vec4<u32>(params.threshold);
        store_y(i, select(vec4<f32>(), load_x(i) * params.scale, keep));
    }
}
