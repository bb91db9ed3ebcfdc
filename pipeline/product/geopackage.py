"""`drivers.gpkg`: one writer, one file, written beside its place, checked, and renamed.

Besides the layers it holds default styles (`layer_styles`), a QGIS project (`qgis_projects`), column titles and value
lists (gpkg_schema extension) and the run record (gpkg_metadata extension). Version 1.3, which ArcGIS Pro 3.1 and
QGIS 3.22 read.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from pipeline.errors import ProductError
from pipeline.labels import LabelScheme
from pipeline.product.layers import Column, Kind, Layer, domains, layers, stored_columns
from pipeline.product.project import Bounds, ProjectFrame, project_row
from pipeline.product.record import flatten_record, product_title, stable, staged
from pipeline.product.styles import LayerStyle, styles

_DATE = "2000-01-01T00:00:00.000Z"  # fixed, so that equal runs give equal bytes; when it ran stands in run.json
_DECIMALS: dict[Kind, int] = {"area": 8, "share": 8, "degree": 7, "float": 3}
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"


def write_geopackage(
    path: Path,
    frames: Mapping[str, pd.DataFrame],
    run: Mapping[str, object],
    scheme: LabelScheme,
    crs: str,
    grid_crs: str,
) -> None:
    """Write the layers of contract order; vector frames come in EPSG:4326 and are stored in `crs`.

    Args:
        path: where the file goes; nothing appears there unless it is whole.
        frames: layer name to rows, for every layer but `run`. Columns beyond the contract's are kept behind them.
        run: the run record; its timings are left out.
        scheme: the classes, for columns, value lists and styles.
        crs: CRS of the stored geometries.
        grid_crs: CRS of the product's rasters, which the stored project shows too.

    Raises:
        ProductError: a column is missing, the disk is full, or what was read back is not what was given.
    """
    stored = stable(run)
    plan = layers(scheme)
    tables = {layer.name: prepare(layer, _frame(layer, frames, stored), crs) for layer in plan}
    with staged(path) as temporary:
        try:
            with _fixed_date():
                for layer in plan:
                    _write_layer(temporary, layer, tables[layer.name])
            with closing(sqlite3.connect(temporary)) as database, database:
                columns = {layer.name: stored_columns(layer, tables[layer.name].columns, run) for layer in plan}
                looks = styles(plan, columns, scheme)
                _write_schema(database, columns, scheme)
                _write_styles(database, plan, looks)
                frame = ProjectFrame(product_title(run), _note(run), crs, grid_crs, _bounds(tables))
                _write_project(database, project_row(frame, plan, columns, looks, scheme))
                _write_metadata(database, stored)
            verify(temporary, {name: _counts(table) for name, table in tables.items()})
        except (DataSourceError, DataLayerError, sqlite3.Error, pa.ArrowException, ProductError) as error:
            raise ProductError(f"{path}: could not be written whole ({error}); check the free space") from error


def prepare(layer: Layer, frame: pd.DataFrame, crs: str) -> pd.DataFrame:
    """Return the rows as stored: the contract's columns first, exact types, sensible decimals, ordered, in `crs`.

    Raises:
        ProductError: a column of the contract is missing or holds another type; names layer and column.
    """
    missing = [column.name for column in layer.columns if column.name not in frame]
    if missing:
        raise ProductError(f"layer {layer.name}: columns {missing} are missing")
    known = {column.name: column for column in layer.columns}
    geometry = frame.geometry.name if isinstance(frame, gpd.GeoDataFrame) else None
    extra = [name for name in frame.columns if name not in known and name != geometry]
    try:
        data = {str(name): _typed(frame[name], known.get(name)) for name in (*known, *extra)}
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise ProductError(f"layer {layer.name}: {error}") from error
    table = pd.DataFrame(data)
    if layer.geometry:
        table = gpd.GeoDataFrame(table, geometry=_projected(frame, crs), crs=crs)
    if layer.order:
        table = table.sort_values(list(layer.order), kind="stable")
    return table.reset_index(drop=True)


def verify(path: Path, counts: Mapping[str, tuple[int, int]]) -> None:
    """Check a GeoPackage: integrity, rows, GDAL's own count and R-tree rows for {layer: (rows, geometries)}.

    Raises:
        ProductError: the file is damaged or a number differs.
        sqlite3.Error: it is no readable database.
    """
    with closing(read_only(path)) as database:
        found = database.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)] or database.execute("PRAGMA foreign_key_check").fetchall():
            raise ProductError(f"integrity check: {found[0][0]}")
        for layer, (rows, geometries) in counts.items():
            present = _number(database, f'SELECT count(*) FROM "{layer}"')
            listed = _number(database, "SELECT feature_count FROM gpkg_ogr_contents WHERE table_name = ?", layer)
            if (present, listed) != (rows, rows):
                raise ProductError(f"layer {layer}: {present} rows ({listed} listed) instead of {rows}")
            if geometries >= 0 and _number(database, f'SELECT count(*) FROM "rtree_{layer}_geom"') != geometries:
                raise ProductError(f"layer {layer}: its spatial index does not hold {geometries} geometries")


def read_only(path: Path) -> sqlite3.Connection:
    """Open a database without ever touching the file or its folder; raises sqlite3.Error."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def _frame(layer: Layer, frames: Mapping[str, pd.DataFrame], run: Mapping[str, object]) -> pd.DataFrame:
    if layer.name == "run":
        return pd.DataFrame(list(flatten_record(run)), columns=["key", "value"])
    return frames[layer.name]


def _typed(series: pd.Series, column: Column | None) -> pd.Series:
    """Return the column in its stored type; real nulls stay nulls, control characters go."""
    series = series.reset_index(drop=True)
    kind = column.kind if column else ("share" if pd.api.types.is_float_dtype(series) else "key")
    if kind == "key" and not pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_datetime64_any_dtype(series):
        kind = "text"
    if kind == "date":
        days = pd.to_datetime(series).dt.date
        return days.astype(pd.ArrowDtype(pa.date32()))
    if kind == "datetime":
        return pd.to_datetime(series, utc=True).astype("datetime64[ms, UTC]")
    if kind in _DECIMALS:
        return series.astype("Float64").round(_DECIMALS[kind]).astype("float64").replace([np.inf, -np.inf], np.nan)
    if kind == "text":
        return series.astype("string").str.replace(_CONTROL, "", regex=True)
    if kind == "int":
        return series.astype("Int64")
    return series.astype("boolean") if kind == "bool" else series


def _projected(frame: pd.DataFrame, crs: str) -> np.ndarray:
    """Return the geometries in `crs`, made valid where reprojection broke them."""
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise ProductError("a vector layer needs geometries with a CRS")
    values = np.asarray(frame.geometry.to_crs(crs).array)
    broken = ~shapely.is_valid(values) & ~shapely.is_missing(values)
    if broken.any():
        values = values.copy()
        values[broken] = [_polygons(geometry) for geometry in shapely.make_valid(values[broken])]
    return values


def _polygons(geometry: shapely.Geometry) -> shapely.Geometry:
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])


def _counts(table: pd.DataFrame) -> tuple[int, int]:
    if not isinstance(table, gpd.GeoDataFrame):
        return len(table), -1
    return len(table), int((~(table.geometry.isna() | table.geometry.is_empty)).sum())


@contextmanager
def _fixed_date() -> Iterator[None]:
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def _write_layer(path: Path, layer: Layer, table: pd.DataFrame) -> None:
    options = {"IDENTIFIER": layer.title, "DESCRIPTION": layer.description}
    if layer.geometry:
        options |= {"GEOMETRY_NAME": "geom", "SPATIAL_INDEX": "YES"}
    pyogrio.write_dataframe(
        table,
        path,
        layer=layer.name,
        driver="GPKG",
        geometry_type=layer.geometry,
        promote_to_multi=layer.geometry == "MultiPolygon",
        use_arrow=True,  # the only way to true dates and nullable integers
        layer_options=options,
        dataset_options=None if path.exists() else {"VERSION": "1.3"},
    )


_SCHEMA_SQL = """
CREATE TABLE gpkg_data_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT,
  description TEXT, mime_type TEXT, constraint_name TEXT, CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name),
  CONSTRAINT gdc_tn UNIQUE (table_name, name));
CREATE TABLE gpkg_data_column_constraints (constraint_name TEXT NOT NULL, constraint_type TEXT NOT NULL, value TEXT,
  min NUMERIC, min_is_inclusive BOOLEAN, max NUMERIC, max_is_inclusive BOOLEAN, description TEXT,
  CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value));
CREATE TABLE gpkg_metadata (id INTEGER CONSTRAINT m_pk PRIMARY KEY ASC NOT NULL, md_scope TEXT NOT NULL DEFAULT
  'dataset', md_standard_uri TEXT NOT NULL, mime_type TEXT NOT NULL DEFAULT 'text/xml', metadata TEXT NOT NULL
  DEFAULT '');
CREATE TABLE gpkg_metadata_reference (reference_scope TEXT NOT NULL, table_name TEXT, column_name TEXT,
  row_id_value INTEGER, timestamp DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  md_file_id INTEGER NOT NULL, md_parent_id INTEGER, CONSTRAINT crmr_mfi_fk FOREIGN KEY (md_file_id) REFERENCES
  gpkg_metadata(id), CONSTRAINT crmr_mpi_fk FOREIGN KEY (md_parent_id) REFERENCES gpkg_metadata(id));
CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256),
  f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT,
  styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
  update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')));
"""
"""Tables of the specification's schema and metadata extensions, and QGIS's table of styles."""


def _write_schema(database: sqlite3.Connection, columns: Mapping[str, tuple[Column, ...]], scheme: LabelScheme) -> None:
    database.executescript(_SCHEMA_SQL)
    specification = "http://www.geopackage.org/spec121/#extension_"
    for table in ("gpkg_data_columns", "gpkg_data_column_constraints", "gpkg_metadata", "gpkg_metadata_reference"):
        name = "metadata" if "metadata" in table else "schema"
        extension = (table, None, f"gpkg_{name}", f"{specification}{name}", "read-write")
        database.execute("INSERT INTO gpkg_extensions VALUES (?, ?, ?, ?, ?)", extension)
    for domain, values in domains(scheme).items():
        database.executemany(
            "INSERT INTO gpkg_data_column_constraints (constraint_name, constraint_type, value, description) "
            "VALUES (?, 'enum', ?, ?)",
            [(domain, value, title) for value, title in values.items()],
        )
    for layer, known in columns.items():
        times = Counter(column.title for column in known)
        for column in known:
            # titles come from configurations and label schemes; the second name of a column must be unique
            name = column.title if times[column.title] == 1 else f"{column.title} ({column.name})"
            row = (layer, column.name, name, column.title, column.description, column.domain)
            database.execute("INSERT INTO gpkg_data_columns VALUES (?, ?, ?, ?, ?, NULL, ?)", row)


def _write_styles(database: sqlite3.Connection, plan: tuple[Layer, ...], looks: Mapping[str, LayerStyle]) -> None:
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change) "
        "VALUES ('layer_styles', 'attributes', 'layer_styles', 'Default styles', ?)",
        (_DATE,),
    )
    database.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
        "styleQML, styleSLD, useAsDefault, description, owner, update_time) "
        "VALUES ('', '', ?, ?, ?, ?, ?, 1, '', '', ?)",
        [
            (layer.name, "geom" if layer.geometry else "", layer.name, look.qml, look.sld, _DATE)
            for layer, look in ((layer, looks[layer.name]) for layer in plan)
        ],
    )


def _write_project(database: sqlite3.Connection, row: tuple[str, str, str]) -> None:
    # QGIS's own table: it finds projects by this name, and lists none that gpkg_contents would have to know
    database.execute("CREATE TABLE qgis_projects (name TEXT PRIMARY KEY, metadata BLOB, content BLOB)")
    database.execute("INSERT INTO qgis_projects VALUES (?, ?, ?)", row)


def _note(run: Mapping[str, object]) -> str:
    """Return what a reader of the map must know: the model, and whether it is incomplete or simulated."""
    model = run.get("model")
    known = [
        f"Model {model.get('name')} {model.get('version')}." if isinstance(model, Mapping) else "",
        "" if run.get("complete", True) else "Incomplete: some blocks have no result.",
        "Simulated landscape or model." if run.get("simulated") else "",
    ]
    return " ".join(part for part in known if part)


def _bounds(tables: Mapping[str, pd.DataFrame]) -> Bounds | None:
    """Return the extent of the events, else of the units, else of the blocks."""
    for name in ("events", "units", "blocks"):
        west, south, east, north = gpd.GeoDataFrame(tables[name]).total_bounds
        if np.isfinite([west, south, east, north]).all():
            return float(west), float(south), float(east), float(north)
    return None


def _write_metadata(database: sqlite3.Connection, run: Mapping[str, object]) -> None:
    text = json.dumps(run, ensure_ascii=False, allow_nan=False)
    database.execute(
        "INSERT INTO gpkg_metadata VALUES (1, 'dataset', 'https://www.json.org/', 'application/json', ?)", (text,)
    )
    reference = "INSERT INTO gpkg_metadata_reference VALUES ('geopackage', NULL, NULL, NULL, ?, 1, NULL)"
    database.execute(reference, (_DATE,))


def _number(database: sqlite3.Connection, query: str, *values: str) -> int:
    row = database.execute(query, values).fetchone()
    return -1 if row is None else int(row[0])
