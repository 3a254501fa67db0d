// Groups of four as 64-bit words, for devices that load lane by lane and element by element (llvmpipe): the same
// conversions as in common.wgsl, over half as many elements.

fn split(word: u64) -> vec2<u32> {
    return vec2<u32>(u32(word), u32(word >> 32u));
}

fn join(halves: vec2<u32>) -> u64 {
    return u64(halves.x) | (u64(halves.y) << 32u);
}

fn unpack_f32_wide(words: vec2<u64>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(split(words.x), split(words.y)));
}

fn pack_f32_wide(v: vec4<f32>) -> vec2<u64> {
    let bits = bitcast<vec4<u32>>(v);
    return vec2<u64>(join(bits.xy), join(bits.zw));
}

fn unpack_f16_wide(word: u64) -> vec4<f32> {
    return unpack_f16(split(word));
}

fn pack_f16_wide(v: vec4<f32>) -> u64 {
    return join(pack_f16(v));
}

fn unpack_bf16_wide(word: u64) -> vec4<f32> {
    return unpack_bf16(split(word));
}

fn pack_bf16_wide(v: vec4<f32>) -> u64 {
    return join(pack_bf16(v));
}
