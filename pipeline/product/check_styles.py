"""Checks of how `drivers.gpkg` opens: default styles, lists of values, and the stored QGIS project."""

from __future__ import annotations

import zipfile
from contextlib import closing
from pathlib import Path

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipeline.errors import ProductError
from pipeline.labels import LabelScheme
from pipeline.product import record
from pipeline.product.geopackage import read_only
from pipeline.product.layers import domains, layers
from pipeline.product.project import PROJECT_NAME, read_project
from pipeline.product.styles import event_categories


def default_styles(path: Path, scheme: LabelScheme) -> str:
    """Check that each layer and table has a default style, that of the events the classes and colours of the scheme."""
    with closing(read_only(path)) as database:
        rows = database.execute("SELECT f_table_name, styleQML, styleSLD FROM layer_styles WHERE useAsDefault")
        found = {name: (qml, sld) for name, qml, sld in rows}
    unstyled = [layer.name for layer in layers(scheme) if layer.name not in found]
    flat = [
        layer.name for layer in layers(scheme) if layer.geometry and layer.name in found and not found[layer.name][1]
    ]
    if unstyled or flat:
        raise ProductError(f"layers {[*unstyled, *flat]} have no default style")
    wanted = [(item.value, item.title, item.rgb) for item in event_categories(scheme)]
    if _categories(found["events"][0]) != wanted:
        raise ProductError("the style of events does not show the classes and colours of the label scheme")
    return f"{len(found)} layers and tables"


def value_lists(path: Path, scheme: LabelScheme) -> str:
    """Check the lists of values (gpkg_schema) against the label scheme, and that each column has a title."""
    with closing(read_only(path)) as database:
        rows = database.execute(
            "SELECT constraint_name, value, description FROM gpkg_data_column_constraints"
        ).fetchall()
        titled = set(database.execute("SELECT table_name, column_name FROM gpkg_data_columns WHERE title != ''"))
    found: dict[str, dict[str, str]] = {}
    for name, value, title in rows:
        found.setdefault(name, {})[value] = title
    if found != domains(scheme):
        raise ProductError("lists of values are not those of the label scheme")
    missing = [
        f"{layer.name}.{c.name}"
        for layer in layers(scheme)
        for c in layer.columns
        if (layer.name, c.name) not in titled
    ]
    if missing:
        raise ProductError(f"columns {missing} have no title")
    return f"{len(found)} lists, {len(titled)} columns with a title"


def stored_project(path: Path, scheme: LabelScheme) -> str:
    """Check that the stored QGIS project can be read and shows each layer and raster by a path relative to its own."""
    query = "SELECT content FROM qgis_projects WHERE name = ?"
    with closing(read_only(path)) as database:
        row = database.execute(query, (PROJECT_NAME,)).fetchone()
    if row is None:
        raise ProductError(f"no QGIS project {PROJECT_NAME!r} is stored")
    try:
        root = fromstring(read_project(row[0]))
    except (ValueError, TypeError, zipfile.BadZipFile, KeyError, ParseError, DefusedXmlException) as error:
        raise ProductError(f"the stored QGIS project cannot be read ({error})") from error
    sources = {item.text for item in root.iter("datasource")}
    wanted = {f"./{record.VECTOR_FILE}|layername={layer.name}" for layer in layers(scheme)}
    wanted |= {f"./{record.DRIVERS_FILE}", f"./{record.CONFIDENCE_FILE}"}
    if sources != wanted:
        raise ProductError(f"the stored QGIS project differs in {sorted(map(str, sources ^ wanted))}")
    return f"{len(sources)} sources, all relative"


def _categories(qml: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return value, title and colour of each category of a QML document."""
    root = fromstring(qml)
    colours = {}
    for symbol in root.iter("symbol"):
        fill = next(item.get("v", "") for item in symbol.iter("prop") if item.get("k") == "color")
        colours[symbol.get("name")] = tuple(int(part) for part in fill.split(",")[:3])
    return [
        (item.get("value", ""), item.get("label", ""), colours[item.get("symbol")]) for item in root.iter("category")
    ]
