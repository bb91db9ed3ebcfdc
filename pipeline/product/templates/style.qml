<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.0" styleCategories="Symbology|Fields">
  <renderer-v2 type="categorizedSymbol" attr="{{ expression }}" forceraster="0" symbollevels="0" enableorderby="0">
    <categories>
{% for category in categories %}
      <category symbol="{{ loop.index0 }}" value="{{ category.value }}" label="{{ category.title }}" render="true"/>
{% endfor %}
    </categories>
    <symbols>
{% for category in categories %}
      <symbol name="{{ loop.index0 }}" type="fill" alpha="1" clip_to_extent="1" force_rhr="0">
        <layer class="SimpleFill" enabled="1" locked="0" pass="0">
{% set rgb = category.rgb | join(",") ~ ",255" %}
{% set solid = category.pattern == "solid" %}
{% for name, value in [
  ("color", rgb),
  ("style", {"solid": "solid", "hatch": "b_diagonal", "outline": "no"}[category.pattern]),
  ("outline_color", "60,60,60,255" if solid else rgb),
  ("outline_style", "solid"),
  ("outline_width", "0.1" if solid else "0.4"),
  ("outline_width_unit", "MM"),
  ("joinstyle", "bevel"),
] %}
          <prop k="{{ name }}" v="{{ value }}"/>
{% endfor %}
        </layer>
      </symbol>
{% endfor %}
    </symbols>
  </renderer-v2>
  <aliases>
{% for field in fields %}
    <alias index="{{ loop.index }}" field="{{ field.name }}" name="{{ field.title }}"/>
{% endfor %}
  </aliases>
  <layerGeometryType>2</layerGeometryType>
</qgis>
