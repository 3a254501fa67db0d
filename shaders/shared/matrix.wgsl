// Cooperative matrices of a product of M x K by K x N. WGSL names square ones alone: others are written as the larger square, and get
// their rows and columns by their role, A, B or C, when the kernel is compiled (gpu/spirv.rs).
{% set MATRIX = "coop_mat8x8" if M == 8 and N == 8 and K == 8 else "coop_mat16x16" %}
