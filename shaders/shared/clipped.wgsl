    // The group `i` of four and the `factor` on its gradient: the inverse of the loss scale, and less where the norm is over the clip;
    // none where the gradient comes clipped already (not CLIPS).
    // Returns where there is no such group, or the gradient is not finite.
    let i = group_index(group, groups) * 256u + lane;
    // by its bits: compilers may assume that floats are finite
    let finite = (bitcast<u32>(norm2[0]) & 0x7f800000u) != 0x7f800000u;
    if (i >= params.count || !finite) {
        return;
    }
{% if CLIPS %}
    let norm = sqrt(norm2[0]) * hyper[6];
    var factor = hyper[6];
    if (hyper[5] > 0.0) {
        factor *= min(1.0, hyper[5] / (norm + 1e-6));
    }
{% else %}
    let factor = 1.0;
{% endif %}
