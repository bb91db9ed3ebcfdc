"""Layer styles (QML for QGIS 3.22 and newer, SLD 1.1) generated from the label scheme: one source of truth.

The same categories draw the map and the legend of the report, and the layers of the stored QGIS project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.labels import LabelScheme
from pipeline.product.layers import Column, Layer, domains

NO_IMAGERY_COLOUR = "#9e9e9e"
FAILED_COLOUR = "#4a2c3a"
NO_LOSS_COLOUR = "#f2f2ee"
_STATUS_TITLES = {"no_imagery": ("No clear imagery", NO_IMAGERY_COLOUR), "failed": ("Failed", FAILED_COLOUR)}


@dataclass(frozen=True)
class Category:
    """One legend entry: `value` of the style's expression, the column conditions that mean the same, and its look."""

    value: str
    title: str
    colour: str
    conditions: tuple[tuple[str, str], ...]
    pattern: Literal["solid", "hatch", "outline"] = "solid"

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Return the colour as three numbers 0..255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


@dataclass(frozen=True)
class LayerStyle:
    """The default style of one layer: `qml` and `sld` documents; a table has no `sld`, its `qml` no colours.

    `body` is what stands inside `qml`, for the stored QGIS project.
    """

    layer: str
    qml: str
    sld: str | None
    body: Markup


def event_categories(scheme: LabelScheme) -> tuple[Category, ...]:
    """Return the legend of `events`: each driver, each driver uncertain (hatched), no imagery (grey), failed."""
    sure = [_driver(item.name, item.title, item.colour) for item in scheme]
    unsure = [
        Category(
            f"uncertain:{item.name}",
            f"{item.title}, uncertain",
            item.colour,
            (("status", "uncertain"), ("driver", item.name)),
            "hatch",
        )
        for item in scheme
    ]
    rest = [Category(f"status:{k}", t, c, (("status", k),)) for k, (t, c) in _STATUS_TITLES.items()]
    return (*sure, *unsure, *rest)


def styles(
    plan: tuple[Layer, ...], columns: Mapping[str, tuple[Column, ...]], scheme: LabelScheme
) -> dict[str, LayerStyle]:
    """Return one default style for each layer and table; `columns` are the stored ones (see `stored_columns`)."""
    return {layer.name: _render(layer, columns[layer.name], scheme) for layer in plan}


def outline(columns: tuple[Column, ...], scheme: LabelScheme) -> Markup:
    """Return the style of a layer's borders alone: for units drawn over events."""
    border = Category("", "Unit", "#3c3c3c", (), "outline")
    return _body(columns, scheme, "''", (border,))


def _driver(name: str, title: str, colour: str) -> Category:
    return Category(f"driver:{name}", title, colour, (("status", "classified"), ("driver", name)))


def _rules(layer: str, scheme: LabelScheme) -> tuple[str, tuple[Category, ...]]:
    """Return the QGIS expression that a layer is categorised by, and its categories."""
    if layer == "events":
        expression = (
            "CASE WHEN \"status\" = 'classified' THEN 'driver:' || \"driver\" "
            "WHEN \"status\" = 'uncertain' THEN 'uncertain:' || \"driver\" ELSE 'status:' || \"status\" END"
        )
        return expression, event_categories(scheme)
    if layer == "scenes":
        used = Category("1", "Used", "#2166ac", (("used", "1"),), "outline")
        return 'if("used", 1, 0)', (used, Category("0", "Not used", "#b2182b", (("used", "0"),), "outline"))
    if layer == "blocks":
        failed = Category("failed", "Failed", "#b2182b", (("status", "failed"),), "hatch")
        idle = Category("not_run", "Not run", "#d08a00", (("status", "not_run"),), "outline")
        return "status", (failed, idle, Category("", "Done", "#777777", (), "outline"))
    column = "driver" if layer == "patches" else "dominant_driver"
    drivers = tuple(Category(c.name, c.title, c.colour, ((column, c.name),)) for c in scheme)
    return column, (*drivers, Category("", "No driver known", NO_LOSS_COLOUR, ()))


def _render(layer: Layer, columns: tuple[Column, ...], scheme: LabelScheme) -> LayerStyle:
    expression, categories = _rules(layer.name, scheme) if layer.geometry else ("", ())
    body = _body(columns, scheme, expression, categories)
    qml = environment().get_template("style.qml").render(layer=layer, body=body)
    sld = environment().get_template("style.sld").render(layer=layer, categories=categories) if categories else None
    return LayerStyle(layer.name, qml, sld, body)


def _body(
    columns: tuple[Column, ...], scheme: LabelScheme, expression: str, categories: tuple[Category, ...]
) -> Markup:
    values = {"expression": expression, "categories": categories, "fields": columns, "domains": domains(scheme)}
    return Markup(environment().get_template("style_body.xml").render(values))


@cache
def environment() -> Environment:
    """Return the environment of the product's XML templates."""
    return Environment(
        loader=PackageLoader("pipeline.product"),
        autoescape=True,  # the templates are XML: every title and name is escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
