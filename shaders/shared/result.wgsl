{# How products store their result: SECTIONED, as the sums of a section; with a BIAS on each row and a RESIDUAL; added to what is there, ACCUMULATE; or, where it is the gradient of a gated
   activation, GATE_GRADIENT, as the gradients of gate and up. #}
{% if GATE_GRADIENT %}
{% include "shared/glu_gradient.wgsl" %}
{% endif %}
{% macro put(at, value) %}
{% if SECTIONED %}
store_out(section * params.section_out4 + {{ at }}, {{ value }});
{% elif GATE_GRADIENT %}
store_gradients({{ at }}, {{ value }});
{% else %}
store_out({{ at }}, {{ value }}{% if BIAS %} + load_bias({{ at }} % params.bias4){% endif %}{% if RESIDUAL %} + load_residual({{ at }}){% endif %}{% if ACCUMULATE %} + load_out({{ at }}){% endif %});
{% endif %}
{% endmacro %}
