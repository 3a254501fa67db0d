{# The workgroup's tile of the result and its share of the inner dimension, groups of four from K_FIRST to K_LAST. SECTIONED: the grid has
   the result's tiles once for each of params.sections sections of params.section_k4 groups, whose sums lie one after the other.
   Surplus groups of a folded grid repeat the last tile's loads and store nothing. #}
{% if SECTIONED %}
    let section = min(index / params.tiles, params.sections - 1u);
    let tile = min(index - section * params.tiles, params.tiles - 1u);
    let surplus = index >= params.sections * params.tiles;
    let k_first = section * params.section_k4;
    let k_last = min(k_first + params.section_k4, params.k_4);
{% else %}
    let tile = min(index, params.tiles - 1u);
    let surplus = index >= params.tiles;
{% endif %}
{% set K_FIRST = "k_first" if SECTIONED else "0u" %}
{% set K_LAST = "k_last" if SECTIONED else "params.k_4" %}
{% include "shared/tile_order.wgsl" %}
