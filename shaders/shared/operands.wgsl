{# How products read their operands. R_MASKED, C_MASKED: dropout on the first pair's rows or columns; PAIR_MASKED: on the
   second pair's product. PARTS > 1: the rows are those of several tensors of 4 * params.part_rows4 each, one
   after the other, and so are the result's. R_GATED: the rows are act(r) * r_up. #}
{% set MASKED = R_MASKED or C_MASKED or PAIR_MASKED %}
{% if MASKED %}
{% include "shared/dropout.wgsl" %}
{% endif %}

{% if R_GATED %}
{% include "shared/glu.wgsl" %}
{% endif %}

{# a group of four of r or c, with dropout or the gate on it #}
{% macro kept(name, value, at) %}{% if name == "r" and R_GATED %}gated({{ value }}, load_r_up({{ at }})){% elif (name == "r" and R_MASKED) or (name == "c" and C_MASKED) %}dropped({{ value }}, {{ at }}, seed){% else %}{{ value }}{% endif %}{% endmacro %}

{# a group of four of r, r2, c or c2 #}
{% macro load(name, at) %}{{ kept(name, "load_" ~ name ~ "(" ~ at ~ ")", at) }}{% endmacro %}

{# where four rows, from row 4 * row4, of one k lie in rows in PARTS, where k is outermost #}
{% macro in_parts(k, extent, row4) %}{{ row4 }} / params.part_rows4 * (params.{{ extent }} * params.part_rows4) + ({{ k }}) * params.part_rows4 + {{ row4 }} % params.part_rows4{% endmacro %}

{# the same four rows, of either pair #}
{% macro rows_of(name, k, extent, row4) %}{% if PARTS > 1 and name == "r" %}load_r({{ in_parts(k, extent, row4) }}){% else %}{{ load(name, "(" ~ k ~ ") * params.rows4 + " ~ row4) }}{% endif %}{% endmacro %}

{# where four rows of one column are stored in a transposed result #}
{% macro transposed(col, row4) %}{% if PARTS > 1 %}{{ row4 }} / params.part_rows4 * (params.cols * params.part_rows4) + ({{ col }}) * params.part_rows4 + {{ row4 }} % params.part_rows4{% else %}({{ col }}) * params.rows4 + {{ row4 }}{% endif %}{% endmacro %}
