<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.0" styleCategories="Symbology|Fields">
{{ body }}
{% if layer.geometry %}
  <layerGeometryType>2</layerGeometryType>
{% endif %}
</qgis>
