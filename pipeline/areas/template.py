"""The files that an interpreter fills in: `sample.gpkg` and a contact sheet of pictures.

The layer to fill in does not tell what the map says: who has seen the map's answer tends to find it right. Strata and
inclusion probabilities stand in tables of their own, apart from it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyogrio
from jinja2 import Environment

from pipeline.areas.reference import (
    ABOUT_TABLE,
    CANNOT_TELL,
    COLUMN,
    KEY_TABLE,
    POINTS_LAYER,
    SAMPLE_LAYER,
    STRATA_TABLE,
)
from pipeline.labels import LabelScheme
from pipeline.product.geopackage import prepare
from pipeline.product.layers import Column, Layer

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SAMPLE_FILE, SHEET_FILE = "sample.gpkg", "index.html"
TO_FILL = (COLUMN, "interpreter", "reference_date", "note")
_DATE = "2000-01-01T00:00:00.000Z"
"""Fixed, so that equal draws give equal bytes."""
_CRS = "EPSG:4326"
_NUMBER = Column("number", "int", "Number", "Number of the event in this sample, in random order")
_EVENT = Column("event_id", "key", "Event", "Identifier of the event in the product")


def template_layers(shown: bool) -> tuple[Layer, ...]:
    """The layers of `sample.gpkg`; `shown`: the layer to fill in tells the mapped driver."""
    mapped = (
        Column("mapped_driver", "text", "Mapped driver", "What the map says", "driver"),
        Column("confidence", "share", "Confidence", "Calibrated probability of the mapped driver, 0..1"),
    )
    columns = (
        _NUMBER,
        _EVENT,
        Column("loss_year", "int", "Loss year", "Calendar year of the forest loss"),
        Column("area_ha", "area", "Area (ha)", "Geodesic area on WGS 84, hectares"),
        Column("lon", "degree", "Longitude", "Of a point inside the event, WGS 84 degrees"),
        Column("lat", "degree", "Latitude", "Of a point inside the event, WGS 84 degrees"),
        Column("before", "text", "Picture before", "File of the picture before the loss, and the day of its image"),
        Column("after", "text", "Picture after", "File of the picture after the loss, and the day of its image"),
        *(mapped if shown else ()),
        Column(
            COLUMN, "text", "Reference driver", f"To fill in: why the forest went, or {CANNOT_TELL}", "reference_driver"
        ),
        Column("interpreter", "text", "Interpreter", "To fill in: who looked"),
        Column("reference_date", "date", "Date", "To fill in: when"),
        Column("note", "text", "Note", "To fill in: what was seen, in which imagery"),
    )
    fill = f"Fill in {COLUMN} of every row, by imagery other than the map where you can; leave the rest as it is."
    strata = (
        Column("stratum", "int", "Stratum"),
        Column("driver", "text", "Mapped driver", "", "driver"),
        Column("status", "text", "Status", "classified or uncertain events only, or any"),
        Column("sizes", "text", "Sizes", "large events (half of the driver's area) or small ones only, or any"),
        Column("population", "int", "Events", "Events of the product in this stratum"),
        Column("area_ha", "area", "Area (ha)", "Their area"),
        Column("drawn", "int", "Drawn", "Events drawn, each with the same probability"),
    )
    key = (
        _EVENT,
        Column("stratum", "int", "Stratum", "Stratum it was drawn from"),
        Column("mapped_driver", "text", "Mapped driver", "What the map says", "driver"),
        Column("probability", "share", "Inclusion probability", "Drawn over events of the stratum"),
    )
    where, secret = "Where they lie.", "Tells what the map says: not for the interpreter."
    return (
        Layer(SAMPLE_LAYER, "Events to interpret", fill, "MultiPolygon", ("number",), columns),
        Layer(POINTS_LAYER, "Events to interpret, as points", where, "Point", ("number",), (_NUMBER, _EVENT)),
        Layer(STRATA_TABLE, "Strata of the draw", secret, None, ("stratum",), strata),
        Layer(KEY_TABLE, "Key of the draw", secret, None, ("event_id",), key),
        Layer(
            ABOUT_TABLE, "About this sample", "Product and parameters of the draw.", None, (),
            (Column("key", "text", "Key"), Column("value", "text", "Value")),
        ),
    )  # fmt: skip


def write_template(path: Path, frames: Mapping[str, pd.DataFrame], scheme: LabelScheme, shown: bool) -> None:
    """Write `sample.gpkg`; `frames` by layer name, vectors in EPSG:4326. Equal frames give equal bytes."""
    plan = template_layers(shown)
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        for layer in plan:
            # what no layer names must not slip into a file that is to be blind
            kept = [c.name for c in layer.columns] + (["geometry"] if layer.geometry else [])
            _write_layer(path, layer, prepare(layer, frames[layer.name][kept], _CRS))
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
    with closing(sqlite3.connect(path)) as database, database:
        _write_domains(database, plan, scheme)


def _write_layer(path: Path, layer: Layer, table: GeoDataFrame | pd.DataFrame) -> None:
    options = {"IDENTIFIER": layer.title, "DESCRIPTION": layer.description}
    pyogrio.write_dataframe(
        table,
        path,
        layer=layer.name,
        driver="GPKG",
        geometry_type=layer.geometry,
        promote_to_multi=layer.geometry == "MultiPolygon",
        use_arrow=True,
        layer_options=options | ({"GEOMETRY_NAME": "geom", "SPATIAL_INDEX": "YES"} if layer.geometry else {}),
        dataset_options=None if path.exists() else {"VERSION": "1.3"},
    )


def _write_domains(database: sqlite3.Connection, plan: tuple[Layer, ...], scheme: LabelScheme) -> None:
    """Column titles and the lists of values that QGIS and ArcGIS offer (GeoPackage 1.3, schema extension)."""
    database.executescript(
        """
        CREATE TABLE gpkg_data_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT,
          description TEXT, mime_type TEXT, constraint_name TEXT,
          CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name), CONSTRAINT gdc_tn UNIQUE (table_name, name));
        CREATE TABLE gpkg_data_column_constraints (constraint_name TEXT NOT NULL, constraint_type TEXT NOT NULL,
          value TEXT, min NUMERIC, min_is_inclusive BOOLEAN, max NUMERIC, max_is_inclusive BOOLEAN, description TEXT,
          CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value));
        """
    )
    database.executemany(
        "INSERT INTO gpkg_extensions VALUES (?, NULL, 'gpkg_schema', "
        "'http://www.geopackage.org/spec121/#extension_schema', 'read-write')",
        [("gpkg_data_columns",), ("gpkg_data_column_constraints",)],
    )
    classes = {item.name: item.title for item in scheme}
    lists = {"driver": classes, "reference_driver": {**classes, CANNOT_TELL: "Cannot tell"}}
    database.executemany(
        "INSERT INTO gpkg_data_column_constraints (constraint_name, constraint_type, value, description) "
        "VALUES (?, 'enum', ?, ?)",
        [(name, value, title) for name, values in lists.items() for value, title in values.items()],
    )
    database.executemany(
        "INSERT INTO gpkg_data_columns VALUES (?, ?, ?, ?, ?, NULL, ?)",
        [(layer.name, c.name, c.title, c.title, c.description, c.domain) for layer in plan for c in layer.columns],
    )


def contact_sheet(title: str, rows: list[dict[str, Any]], scheme: LabelScheme, remark: str) -> str:
    """A page of the sample's pictures in its order; opens without internet, every text escaped."""
    page = Environment(autoescape=True).from_string(_SHEET)
    return page.render(title=title, rows=rows, classes=list(scheme), remark=remark, cannot_tell=CANNOT_TELL)


_SHEET = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
section { display: grid; grid-template-columns: 13em 1fr 1fr; gap: 1em; border-top: 1px solid #ccc; padding: 1em 0 }
figure { margin: 0 } img { width: 100%; max-width: 20em; display: block } figcaption, p { color: #555 }
h2 { font-size: 1em; margin: 0 } p { margin: .3em 0; overflow-wrap: anywhere }
</style></head><body>
<h1>{{ title }}</h1>
<p>Fill in <code>reference_driver</code> of the same number in <code>sample.gpkg</code>:
{% for item in classes %}<code>{{ item.name }}</code> ({{ item.title }}), {% endfor %}or <code>{{ cannot_tell }}</code>.
The numbers are in random order and tell nothing about the map.</p>
{% if remark %}<p>{{ remark }}</p>{% endif %}
{% for row in rows %}
<section id="e{{ row.number }}"><div><h2>{{ row.number }}</h2><p>{{ row.event_id }}</p>
<p>loss year {{ row.loss_year }}<br>{{ "%.2f"|format(row.area_ha) }} ha<br>
{{ "%.6f"|format(row.lat) }}, {{ "%.6f"|format(row.lon) }}</p>
{% if row.remark %}<p>{{ row.remark }}</p>{% endif %}</div>
{% for picture in row.pictures %}<figure><img src="{{ picture.file }}" alt="{{ picture.when }} the loss" loading="lazy">
<figcaption>{{ picture.when }}: {{ picture.day }}</figcaption></figure>{% endfor %}</section>
{% endfor %}
</body></html>
"""
