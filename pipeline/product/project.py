"""The QGIS project stored inside `drivers.gpkg` (`qgis_projects`): written without QGIS, opens in 3.22 and newer.

QGIS keeps a stored project as the hexadecimal text of a .qgz, which is a zip that holds one .qgs (XML). Its data
sources are relative (`./drivers.gpkg|layername=events`), so the product's folder may be moved, its files not renamed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import pyproj
from markupsafe import Markup

from pipeline.labels import LabelScheme
from pipeline.product import record
from pipeline.product.layers import Column, Layer
from pipeline.product.styles import LayerStyle, environment, outline

PROJECT_NAME = "drivers"
Bounds = tuple[float, float, float, float]
"""West, south, east, north."""
_ZIP_DATE = (2000, 1, 1, 0, 0, 0)  # fixed, as every date of the GeoPackage
_PAGE = (200, 172)  # millimetres: the map on the A4 page
_MARGIN = 0.05  # of the extent's longer side, around what is shown first
_TITLES = {
    "events": "Drivers of forest loss",
    "patches": "Drivers inside events",
    "borders": "Unit borders",
    "units": "Main driver by unit",
    "scenes": "Landsat scenes",
    "blocks": "Blocks of work",
}


@dataclass(frozen=True)
class ProjectFrame:
    """What a project shows: its `title`, the `note` under its map, the vectors' `crs` and the rasters' `grid_crs`.

    `bounds` in `crs` is where the map opens; None where the product holds no geometry.
    """

    title: str
    note: str
    crs: str
    grid_crs: str
    bounds: Bounds | None


@dataclass(frozen=True)
class _MapLayer:
    """One entry of the layer tree: `source` relative to the project; `geometry` is QGIS's word; `body` its style."""

    id: str
    title: str
    source: str
    geometry: str
    body: Markup
    crs: pyproj.CRS | None
    abstract: str = ""
    shown: bool = False


@dataclass(frozen=True)
class _Page:
    """The map of the print layout: millimetres, and what it shows."""

    width: int
    height: int
    bounds: Bounds


@dataclass(frozen=True)
class _Group:
    title: str
    layers: tuple[_MapLayer, ...]
    shown: bool = False


def project_row(
    frame: ProjectFrame,
    plan: tuple[Layer, ...],
    columns: Mapping[str, tuple[Column, ...]],
    looks: Mapping[str, LayerStyle],
    scheme: LabelScheme,
) -> tuple[str, str, str]:
    """Return the row of `qgis_projects`: name, metadata (JSON) and content (hexadecimal .qgz); equal for equal input.

    Args:
        frame: title, systems and extent.
        plan: the layers of the GeoPackage.
        columns: the stored columns by layer.
        looks: the styles by layer.
        scheme: the classes, for the rasters.
    """
    text = project_xml(frame, _tree(frame, plan, columns, looks, scheme), scheme)
    metadata = {"last_modified_time": "2000-01-01T00:00:00", "last_modified_user": ""}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo(f"{PROJECT_NAME}.qgs", _ZIP_DATE)
        entry.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(entry, text.encode("utf-8"))
    return PROJECT_NAME, json.dumps(metadata), buffer.getvalue().hex()


def read_project(content: str) -> str:
    """Return the XML of a stored project; raises ValueError, zipfile.BadZipFile or KeyError when it is none."""
    with zipfile.ZipFile(io.BytesIO(bytes.fromhex(content))) as archive:
        return archive.read(f"{PROJECT_NAME}.qgs").decode("utf-8")


def project_xml(frame: ProjectFrame, tree: tuple[_Group, ...], scheme: LabelScheme) -> str:
    """Return the project as QGIS's XML; groups and their layers from top to bottom."""
    layers = [layer for group in tree for layer in group.layers]
    crs = pyproj.CRS(frame.crs)
    return (
        environment()
        .get_template("project.qgs")
        .render(
            frame=frame,
            tree=tree,
            layers=layers,
            srs=_srs,
            crs=crs,
            bounds=frame.bounds and _widened(frame.bounds),
            page=frame.bounds and _Page(*_PAGE, _shaped(_widened(frame.bounds), _PAGE[0] / _PAGE[1])),
            units="degrees" if crs.is_geographic else "meters",
            scheme=scheme,
            legend=[layer for layer in layers if layer.shown],
        )
    )


def _tree(
    frame: ProjectFrame,
    plan: tuple[Layer, ...],
    columns: Mapping[str, tuple[Column, ...]],
    looks: Mapping[str, LayerStyle],
    scheme: LabelScheme,
) -> tuple[_Group, ...]:
    crs, grid = pyproj.CRS(frame.crs), pyproj.CRS(frame.grid_crs)
    known = {layer.name: layer for layer in plan}

    def vector(name: str, shown: bool = False) -> _MapLayer:
        layer = known["units" if name == "borders" else name]
        body = outline(columns[layer.name], scheme) if name == "borders" else looks[name].body
        kind, system = ("Polygon", crs) if layer.geometry else ("No geometry", None)
        source = f"./{record.VECTOR_FILE}|layername={layer.name}"
        return _MapLayer(
            f"clearcause_{name}", _TITLES.get(name, layer.title), source, kind, body, system, layer.description, shown
        )

    def raster(name: str, title: str, file: str) -> _MapLayer:
        body = Markup(environment().get_template("raster_body.xml").render(name=name, scheme=scheme))
        return _MapLayer(f"clearcause_{name}", title, f"./{file}", "raster", body, grid)

    rasters = (
        raster("drivers_raster", "Driver by pixel", record.DRIVERS_FILE),
        raster("confidence_raster", "Confidence by pixel (%)", record.CONFIDENCE_FILE),
    )
    tables = tuple(vector(layer.name) for layer in plan if not layer.geometry)
    return (
        _Group("Map", (vector("borders", shown=True), vector("events", shown=True), vector("patches")), shown=True),
        _Group("Units", (vector("units"),)),
        _Group("Rasters", rasters),
        _Group("How it was made", (vector("scenes"), vector("blocks"))),
        _Group("Tables", tables),
    )


def _srs(crs: pyproj.CRS) -> Markup:
    """Return QGIS's element of a CRS: its authority's code where it has one, its WKT in any case."""
    authority = crs.to_authority(min_confidence=100)
    values = {"wkt": crs.to_wkt("WKT2_2019"), "authid": ":".join(authority) if authority else "", "name": crs.name}
    return Markup(environment().get_template("srs.xml").render(values, geographic=crs.is_geographic))


def _widened(bounds: Bounds) -> Bounds:
    west, south, east, north = bounds
    margin = _MARGIN * max(east - west, north - south)
    return west - margin, south - margin, east + margin, north + margin


def _shaped(bounds: Bounds, ratio: float) -> Bounds:
    """Return the bounds enlarged about their centre to width : height = `ratio`, the shape of the page's map."""
    west, south, east, north = bounds
    width = max(east - west, (north - south) * ratio)
    height = max(north - south, (east - west) / ratio)
    x, y = (west + east) / 2, (south + north) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
