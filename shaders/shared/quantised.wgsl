// Block-quantised weights, as src/graph/blocks.rs lays them out: four words of header (where scales, second scales and map
// begin; groups of four in a row), then the codes.
{% set VALUES = ["-1.0", "-0.6961928", "-0.52507305", "-0.3949175", "-0.28444138", "-0.18477343", "-0.091050036", "0.0", "0.0795803", "0.1609302", "0.2461123", "0.33791524", "0.44070983", "0.562617", "0.72295684", "1.0"] %}
{% if NF4_TABLE %}
// A table in workgroup memory: one look-up per value. fill_nf4_table comes before the first one, with a barrier between.
var<workgroup> nf4_table: array<f32, 16>;

fn fill_nf4_table(lane: u32) {
    if (lane == 0u) {
{% for value in VALUES %}
        nf4_table[{{ loop.index0 }}] = {{ value }};
{% endfor %}
    }
}
{% endif %}

// Four values of the NF4 code book from 16 bits of codes, the first value in the high half of a byte.
fn nf4(bits: u32) -> vec4<f32> {
    let code = (vec4<u32>(bits) >> vec4<u32>(4u, 0u, 12u, 8u)) & vec4<u32>(15u);
{% if NF4_TABLE %}
    return vec4<f32>(nf4_table[code.x], nf4_table[code.y], nf4_table[code.z], nf4_table[code.w]);
{% else %}
{% for i in range(8) %}
    let a{{ i }} = select(vec4<f32>({{ VALUES[2 * i] }}), vec4<f32>({{ VALUES[2 * i + 1] }}), (code & vec4<u32>(1u)) != vec4<u32>());
{% endfor %}
{% for i in range(4) %}
    let b{{ i }} = select(a{{ 2 * i }}, a{{ 2 * i + 1 }}, (code & vec4<u32>(2u)) != vec4<u32>());
{% endfor %}
{% for i in range(2) %}
    let c{{ i }} = select(b{{ 2 * i }}, b{{ 2 * i + 1 }}, (code & vec4<u32>(4u)) != vec4<u32>());
{% endfor %}
    return select(c0, c1, code > vec4<u32>(7u));
{% endif %}
}

fn int8(bits: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(bits)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
