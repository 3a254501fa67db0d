// The power of two that brings `largest` to at least 2^magnitude and below twice that, and its inverse. Zero, and what is hardly
// more, gets the largest power that has an inverse.
fn to_magnitude(largest: f32, magnitude: u32) -> vec2<f32> {
    // exponents as f32 store them
    let exponent = min(254u + magnitude - (bitcast<u32>(largest) >> 23u), 253u);
    let power = bitcast<f32>(exponent << 23u);
    return vec2<f32>(power, inverse_power(power));
}

// The inverse of a power of two, exactly, which a division need not give.
fn inverse_power(power: f32) -> f32 {
    return bitcast<f32>((254u << 23u) - bitcast<u32>(power));
}
