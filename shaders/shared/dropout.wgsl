// Dropout's mask as a hash of (rng, params.key, element), so that whoever needs it makes it again: elements of the group of
// four `at` are zeroed where their 24 random bits are below params.threshold, the others scaled by params.keep_scale.
fn mix(value: vec4<u32>) -> vec4<u32> {
    var h = value;
    h = (h ^ (h >> vec4<u32>(16u))) * 0x7feb352du;
    h = (h ^ (h >> vec4<u32>(15u))) * 0x846ca68bu;
    return h ^ (h >> vec4<u32>(16u));
}

// What all elements of a tensor share.
fn mask_seed() -> vec2<u32> {
    let state = mix(mix(mix(vec4<u32>(rng[0] + params.key)) ^ vec4<u32>(rng[1])) + rng[2]).x;
    return vec2<u32>(state, mix(vec4<u32>(state ^ 0x9e3779b9u)).x);
}

fn dropped(v: vec4<f32>, at: u32, seed: vec2<u32>) -> vec4<f32> {
    let element = 4u * vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u);
    let bits = mix(mix(element ^ vec4<u32>(seed.x)) + seed.y);
    return select(vec4<f32>(), v * params.keep_scale, (bits >> vec4<u32>(8u)) >= vec4<u32>(params.threshold));
}
