// Matrix product on matrix units: cooperative matrices (see shared/matrix.wgsl), f16 operands, f32 sums.
//
// A workgroup is one subgroup of LANES invocations and owns ROWS x COLS elements of
//     sums[row, col] = sum over k of r[row, k] * c[col, k]
// r, c are stored with k innermost ([row, k]) or outermost ([k, row]): R_INNER, C_INNER. All extents are multiples of the
// tile's. Operands are loaded straight from storage and sums stored straight to it, for matmul_finish.wgsl to read in a
// dispatch of its own: nothing is shared within one, and the module needs no memory operands (see gpu/spirv.rs).
{% include "shared/matrix.wgsl" %}
{% set DOWN = ROWS // M %}
{% set ACROSS = COLS // N %}
@compute @workgroup_size({{ LANES }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    // surplus groups of a folded grid make the last tile once more: naga wants no return before cooperative operations
    let tile = min(group_index(group, groups), params.tiles - 1u);
{% include "shared/tile_order.wgsl" %}
    let k = params.k;
    let rows = params.rows;
    let cols = params.cols;
{% for i in range(DOWN) %}
{% for j in range(ACROSS) %}
    var s{{ i }}_{{ j }} = {{ MATRIX }}<f32, C>();
{% endfor %}
{% endfor %}
    for (var t = 0u; t < k; t += {{ K }}u) {
{% for i in range(DOWN) %}
{% if R_INNER %}
        let a{{ i }} = coopLoadT<{{ MATRIX }}<f16, A>>(&r[(row_tile + {{ i * M }}u) * k + t], k);
{% else %}
        let a{{ i }} = coopLoad<{{ MATRIX }}<f16, A>>(&r[t * rows + row_tile + {{ i * M }}u], rows);
{% endif %}
{% endfor %}
{% for j in range(ACROSS) %}
{% if C_INNER %}
        let b{{ j }} = coopLoad<{{ MATRIX }}<f16, B>>(&c[(col_tile + {{ j * N }}u) * k + t], k);
{% else %}
        let b{{ j }} = coopLoadT<{{ MATRIX }}<f16, B>>(&c[t * cols + col_tile + {{ j * N }}u], cols);
{% endif %}
{% for i in range(DOWN) %}
        s{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, s{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
    }
{% for i in range(DOWN) %}
{% for j in range(ACROSS) %}
    let at{{ i }}_{{ j }} = (row_tile + {{ i * M }}u) * cols + col_tile + {{ j * N }}u;
    coopStoreT(s{{ i }}_{{ j }}, &sums[at{{ i }}_{{ j }}], cols);
{% endfor %}
{% endfor %}
}
