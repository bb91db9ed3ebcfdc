"""A product in the formats that others read. Files appear whole or not at all; attributes are those of the product."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely

from pipeline import eudr
from pipeline.errors import ConfigError
from pipeline.generalise import simplify_degrees
from pipeline.grid import area_ha
from pipeline.product.record import staged, write_file
from pipeline.tables import Product, open_product

if TYPE_CHECKING:
    from openpyxl.worksheet._write_only import WriteOnlyWorksheet

SUFFIXES = {
    "geoparquet": ".parquet", "flatgeobuf": ".fgb", "geojson": ".geojson", "pmtiles": ".pmtiles", "csv": ".csv",
    "xlsx": ".xlsx", "eudr": ".geojson",
}  # fmt: skip
_DRIVERS = {"flatgeobuf": "FlatGeobuf", "geojson": "GeoJSON", "pmtiles": "PMTiles"}
_SHEETS = ("summary", "units", "estimates", "events")
_SHEET_ROWS = 1_048_575
"""Rows of an Excel sheet, less the header."""
_HOUR = re.compile(rb"<dcterms:(created|modified)\b.*?</dcterms:\1>", re.DOTALL)
_DEGREES = "EPSG:4326"
_MAX_ZOOM = 13
"""Vector tiles place corners to 1.2 m there; a Landsat pixel has 30 m."""


@dataclass(frozen=True)
class ExportParams:
    """What to export.

    Attributes:
        to: a key of `SUFFIXES`.
        layers: layers of the product; xlsx and eudr have their own.
        per_unit: one file for each unit.
        simplify_m: tolerance in metres for polygons, with shared borders kept; 0 = off.
        points: eudr only: events below 4 ha as points.
        country: eudr only: two letters for ProducerCountry.
    """

    to: str
    layers: tuple[str, ...] = ("events",)
    per_unit: bool = False
    simplify_m: float = 0.0
    points: bool = False
    country: str = ""


@dataclass
class Exported:
    """Files written, as (path, rows, unit or empty), and what the reader must know about them."""

    files: list[tuple[Path, int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export_product(folder: Path, out: Path, params: ExportParams) -> Exported:
    """Write a product's layers into folder `out`; files of the same name are replaced.

    Raises:
        ConfigError: an unknown format or layer, a layer without units or without geometry where these are needed,
            a folder inside the product, or too many rows for a sheet.
        ProductError: the product is not whole.
        OSError: the disk is full.
    """
    _check(params)
    product = open_product(folder)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out}: lies inside the product, which holds its own files only; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    done = Exported()
    if params.to == "xlsx":
        _workbooks(product, out, params, done)
    elif params.to == "eudr":
        _eudr(product, out, params, done)
    else:
        for layer in params.layers:
            _layer(product, layer, out, params, done)
    return done


def _check(params: ExportParams) -> None:
    if params.to not in SUFFIXES:
        raise ConfigError(f"--to {params.to}: one of {', '.join(SUFFIXES)}")
    if params.country and not re.fullmatch(r"[A-Z]{2}", params.country):
        raise ConfigError(f"--country {params.country}: two capital letters (ISO 3166-1), as in ID")
    if params.simplify_m and params.to in ("xlsx", "csv"):
        raise ConfigError(f"--simplify: {params.to} holds no polygons")


def _layer(product: Product, layer: str, out: Path, params: ExportParams, done: Exported) -> None:
    frame = product.read(layer, _DEGREES if params.to in ("geojson", "pmtiles", "csv") else None)
    if params.to != "csv" and not isinstance(frame, gpd.GeoDataFrame):
        raise ConfigError(f"layer {layer}: has no geometry; export it with --to csv or xlsx")
    if params.simplify_m:
        frame = _simplified(product, frame, layer, params.simplify_m, done)
    for unit, rows in _by_unit(product, layer, frame) if params.per_unit else [("", frame)]:
        path = out / f"{layer}{'-' + safe_name(unit) if unit else ''}{SUFFIXES[params.to]}"
        if params.to == "pmtiles" and not _drawable(rows).any():
            done.notes.append(f"{path.name}: not written, there is no polygon and so no tile")
            continue
        _write(path, rows, layer, params.to)
        done.files.append((path, len(rows), unit))


def _by_unit(product: Product, layer: str, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if "unit_id" in frame:
        owner = frame["unit_id"]
    elif "event_id" in frame:
        events = product.read("events")
        owner = frame["event_id"].map(events.set_index("event_id")["unit_id"])
    else:
        raise ConfigError(f"layer {layer}: does not say units; leave --per-unit away")
    for unit, rows in _rows_by(owner).items():
        yield unit, frame.iloc[rows].reset_index(drop=True)


def _rows_by(owner: pd.Series) -> dict[str, np.ndarray]:
    """Row numbers by value, in order; rows without a value are left out."""
    rows = np.flatnonzero(owner.notna())
    names, inverse = np.unique(owner.iloc[rows].astype(str).to_numpy(str), return_inverse=True)
    parts = np.split(rows[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    return dict(zip(names.tolist(), parts, strict=False))


def safe_name(text: str) -> str:
    """A file name of any text: letters, digits, dot, dash, underscore; a digest where something was lost."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:60]
    if plain and plain == text.lower():
        return plain
    # names that differ in case only are one file on Windows and on a Mac
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _simplified(
    product: Product, frame: gpd.GeoDataFrame, layer: str, simplify_m: float, done: Exported
) -> gpd.GeoDataFrame:
    shapes = np.asarray(frame.geometry.to_crs(_DEGREES).values).copy()
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    before = float(np.sum(area_ha(shapes[there])))
    shapes[there], left = simplify_degrees(shapes[there], product.grid_crs, simplify_m)
    change = 100 * (float(np.sum(area_ha(shapes[there]))) / before - 1) if before else 0.0
    kept = f"; {left} polygons whose borders do not match stay as they were" if left else ""
    done.notes.append(
        f"{layer}: simplified with {simplify_m:g} m, area of the polygons changes by {change:+.3f} %{kept}; "
        "areas in the columns stay those of the product"
    )
    return frame.set_geometry(gpd.GeoSeries(shapes, index=frame.index, crs=_DEGREES)).to_crs(frame.crs)


# ---------------------------------------------------------------------------------------------- formats


def _write(path: Path, frame: pd.DataFrame, layer: str, to: str) -> None:
    _remove_leftovers(path)
    with staged(path) as temporary:
        if to == "csv":
            # with a byte order mark, without which Excel garbles every script but Latin
            with_point(frame).to_csv(temporary, index=False, encoding="utf-8-sig", lineterminator="\n")
        elif to == "geoparquet":
            frame.to_parquet(temporary, compression="zstd", write_covering_bbox=True)
        else:
            _write_gdal(temporary, frame, layer, to)


def _write_gdal(path: Path, frame: pd.DataFrame, layer: str, to: str) -> None:
    options: dict[str, dict[str, str]] = {
        "flatgeobuf": {"layer_options": {"SPATIAL_INDEX": "YES"}},
        "geojson": {"layer_options": {"RFC7946": "YES", "COORDINATE_PRECISION": "7"}},
        # large limits, since the driver leaves features out of tiles that reach them
        "pmtiles": {
            "dataset_options": {
                "MINZOOM": "2", "MAXZOOM": str(_MAX_ZOOM), "MAX_SIZE": "50000000", "MAX_FEATURES": "2000000",
                "SIMPLIFICATION_MAX_ZOOM": "0", "NAME": path.stem, "DESCRIPTION": path.stem,
            }
        },
    }[to]  # fmt: skip
    if to == "pmtiles":
        frame = frame[_drawable(frame)]
    kind = "Unknown" if to == "pmtiles" else None
    # in memory first: GDAL does not tell of a disk that was full when it closed a file
    made = io.BytesIO()
    pyogrio.write_dataframe(
        frame, made, layer=layer, driver=_DRIVERS[to], use_arrow=True, geometry_type=kind or _kind(frame), **options
    )
    made.seek(0)
    with path.open("wb") as stream:
        shutil.copyfileobj(made, stream)


def _drawable(frame: pd.DataFrame) -> Any:
    return ~(frame.geometry.isna() | frame.geometry.is_empty)


def _kind(frame: pd.DataFrame) -> str:
    kinds = set(frame.geom_type.dropna())
    return "MultiPolygon" if "MultiPolygon" in kinds or not kinds else kinds.pop()


def with_point(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without geometry; where they have no `lon`, `lat` yet, with those of a point inside (EPSG:4326)."""
    if not isinstance(frame, gpd.GeoDataFrame):
        return frame
    out = pd.DataFrame(frame.drop(columns=frame.geometry.name))
    if "lon" not in out:
        points = shapely.point_on_surface(np.asarray(frame.geometry.to_crs(_DEGREES).values))
        out["lon"], out["lat"] = np.round(shapely.get_x(points), 7), np.round(shapely.get_y(points), 7)
    return out


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed export of this file left."""
    shutil.rmtree(path.parent / f".{path.name}.part", ignore_errors=True)


# ---------------------------------------------------------------------------------------------- workbook


def _workbooks(product: Product, out: Path, params: ExportParams, done: Exported) -> None:
    frames = {name: with_point(product.read(name, _DEGREES)) for name in _SHEETS}
    parts = {name: _rows_by(frame["unit_id"]) for name, frame in frames.items()} if params.per_unit else {}
    about = _about(product)
    for unit in parts["events"] if params.per_unit else [""]:
        own = {
            name: frame.iloc[parts[name].get(unit, [])] if params.per_unit else frame for name, frame in frames.items()
        }
        for name, frame in own.items():
            if len(frame) > _SHEET_ROWS:
                raise ConfigError(f"{name}: {len(frame):,} rows do not fit a sheet; use --per-unit, or --to csv")
        path = out / f"product{'-' + safe_name(unit) if unit else ''}.xlsx"
        _remove_leftovers(path)
        with staged(path) as temporary:
            write_workbook(temporary, {**own, "about": about})
        done.files.append((path, len(own["events"]), unit))


def _about(product: Product) -> pd.DataFrame:
    """What the columns mean, and what made them."""
    run, model = product.run, product.run.get("model", {})
    rows = [("", "region", str(run.get("region"))), ("", "loss years", ", ".join(map(str, run.get("years", []))))]
    rows += [("", "model", f"{model.get('name')} {model.get('version')}")]
    rows += [("", "warning", str(text)) for text in run.get("warnings", [])]
    if run.get("complete") is False:
        rows.append(("", "warning", "the run was incomplete: some blocks have no result"))
    rows += [(s, c.name, f"{c.title}. {c.description}") for s in _SHEETS for c in product.layers[s].columns]
    return pd.DataFrame(rows, columns=["sheet", "name", "text"])


def write_workbook(path: Path, frames: dict[str, pd.DataFrame]) -> None:
    """Write one sheet per table; text is text, also where it begins like a formula."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    for name, frame in frames.items():
        _write_sheet(book.create_sheet(name), frame)
    made = io.BytesIO()
    book.save(made)
    with zipfile.ZipFile(made) as written, zipfile.ZipFile(path, "w") as archive:
        for name in written.namelist():
            # openpyxl notes the hour of writing, here and for every entry: equal tables shall be equal bytes
            content = _HOUR.sub(b"", written.read(name)) if name == "docProps/core.xml" else written.read(name)
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _write_sheet(sheet: WriteOnlyWorksheet, frame: pd.DataFrame) -> None:
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.utils import get_column_letter

    def text(value: str) -> Any:
        cell = WriteOnlyCell(sheet, value=value)
        cell.data_type = "s"  # what begins with "=" would be taken for a formula, "#N/A" for an error
        return cell

    sheet.freeze_panes = "A2"
    for k, name in enumerate(frame.columns, 1):
        sheet.column_dimensions[get_column_letter(k)].width = max(10, min(len(str(name)) + 2, 40))
    sheet.append([text(str(name)) for name in frame.columns])
    columns = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame.columns]
    for row in zip(*columns, strict=True):
        sheet.append([text(value) if isinstance(value, str) else _plain(value) for value in row])


def _plain(value: Any) -> Any:
    """A value as Excel knows it: no time zones."""
    if isinstance(value, pd.Timestamp):
        return value.tz_localize(None).to_pydatetime() if value.tzinfo else value.to_pydatetime()
    return value.item() if isinstance(value, np.generic) else value


# ---------------------------------------------------------------------------------------------- EUDR


def _eudr(product: Product, out: Path, params: ExportParams, done: Exported) -> None:
    events = product.read("events", _DEGREES)
    if params.simplify_m:
        events = _simplified(product, events, "events", params.simplify_m, done)
    for unit, rows in _by_unit(product, "events", events) if params.per_unit else [("", events)]:
        places = list(eudr.places(rows, params.points))
        files = list(eudr.geojson_files(places, params.country))
        for number, content in enumerate(files, 1):
            stem = f"eudr{'-' + safe_name(unit) if unit else ''}{f'-part{number}' if len(files) > 1 else ''}"
            path = out / f"{stem}.geojson"
            _remove_leftovers(path)
            write_file(path, content)
            done.files.append((path, content.count(b'"type":"Feature",'), unit))
    done.notes.append(
        f"events lost after 31 December {eudr.CUTOFF_YEAR}: {int((events['loss_year'] > eudr.CUTOFF_YEAR).sum())} of "
        f"{len(events)}. A help for due diligence: loss year and driver are estimates, and whether a place was forest "
        "as the Regulation defines it is not known here"
    )
