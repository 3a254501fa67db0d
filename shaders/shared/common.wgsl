// What every kernel has: conversions of stored groups of four, and the index of a workgroup.
// The declarations of bindings and parameters are generated in front of this text.

fn unpack_f16(word: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}

// What every device makes the same f16 of: rounded to nearest, ties to even, where f16 is normal, and infinite beyond its range.
// Left to themselves some round toward zero, and give the largest f16 for what is larger (Direct3D asks for that).
fn as_f16(v: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let rounded = (bits + vec4<u32>(0xfffu) + ((bits >> vec4<u32>(13u)) & vec4<u32>(1u))) & vec4<u32>(0xffffe000u);
    let infinite = (bits & vec4<u32>(0x80000000u)) | vec4<u32>(0x7f800000u);
    let normal = magnitude >= vec4<u32>(0x38800000u);
    let beyond = magnitude >= vec4<u32>(0x477ff000u);
    let nan = magnitude > vec4<u32>(0x7f800000u);
    return bitcast<vec4<f32>>(select(select(bits, rounded, normal), select(infinite, bits, nan), beyond));
}

// Nothing is left to the device's own conversion: WGSL leaves open what it makes of what is beyond the range, infinity included.
// Below the normal range f16 has steps of 2^-24, which are those of f32 from a half to one.
fn pack_f16(v: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(as_f16(v));
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let normal = (magnitude >> vec4<u32>(13u)) - vec4<u32>(0x1c000u);
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(magnitude) + 0.5) - vec4<u32>(0x3f000000u);
    let finite = select(normal, subnormal, magnitude < vec4<u32>(0x38800000u));
    let special = select(vec4<u32>(0x7e00u), vec4<u32>(0x7c00u), magnitude == vec4<u32>(0x7f800000u));
    let word = select(finite, special, magnitude >= vec4<u32>(0x7f800000u)) | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
    return vec2<u32>(word.x | (word.y << 16u), word.z | (word.w << 16u));
}

fn unpack_bf16(word: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(word.x << 16u),
        bitcast<f32>(word.x & 0xffff0000u),
        bitcast<f32>(word.y << 16u),
        bitcast<f32>(word.y & 0xffff0000u),
    );
}

// Round to nearest, ties to even; a NaN stays a NaN.
fn pack_bf16(v: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(v);
    let rounded = (bits + vec4<u32>(0x7fffu) + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    let nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let word = select(rounded, (bits >> vec4<u32>(16u)) | vec4<u32>(0x40u), nan);
    return vec2<u32>(word.x | (word.y << 16u), word.z | (word.w << 16u));
}
