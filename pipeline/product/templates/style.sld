<?xml version="1.0" encoding="UTF-8"?>
{% macro equal(name, value) %}
<ogc:PropertyIsEqualTo><ogc:PropertyName>{{ name }}</ogc:PropertyName><ogc:Literal>{{ value }}</ogc:Literal></ogc:PropertyIsEqualTo>
{%- endmacro %}
<StyledLayerDescriptor xmlns="http://www.opengis.net/sld" xmlns:ogc="http://www.opengis.net/ogc" xmlns:se="http://www.opengis.net/se" version="1.1.0">
  <NamedLayer>
    <se:Name>{{ layer.name }}</se:Name>
    <UserStyle>
      <se:Name>{{ layer.name }}</se:Name>
      <se:FeatureTypeStyle>
{% for category in categories %}
        <se:Rule>
          <se:Name>{{ category.title }}</se:Name>
          <se:Description><se:Title>{{ category.title }}</se:Title></se:Description>
{% if category.conditions | length > 1 %}
          <ogc:Filter><ogc:And>{% for name, value in category.conditions %}{{ equal(name, value) }}{% endfor %}</ogc:And></ogc:Filter>
{% elif category.conditions %}
          <ogc:Filter>{{ equal(*category.conditions[0]) }}</ogc:Filter>
{% else %}
          <se:ElseFilter/>
{% endif %}
          <se:PolygonSymbolizer>
{% if category.pattern == "solid" %}
            <se:Fill><se:SvgParameter name="fill">{{ category.colour }}</se:SvgParameter></se:Fill>
{% elif category.pattern == "hatch" %}
            <se:Fill><se:GraphicFill><se:Graphic><se:Mark><se:WellKnownName>slash</se:WellKnownName><se:Stroke><se:SvgParameter name="stroke">{{ category.colour }}</se:SvgParameter></se:Stroke></se:Mark><se:Size>6</se:Size></se:Graphic></se:GraphicFill></se:Fill>
{% endif %}
            <se:Stroke>
              <se:SvgParameter name="stroke">{{ "#3c3c3c" if category.pattern == "solid" else category.colour }}</se:SvgParameter>
              <se:SvgParameter name="stroke-width">{{ "0.4" if category.pattern == "solid" else "1.2" }}</se:SvgParameter>
            </se:Stroke>
          </se:PolygonSymbolizer>
        </se:Rule>
{% endfor %}
      </se:FeatureTypeStyle>
    </UserStyle>
  </NamedLayer>
</StyledLayerDescriptor>
