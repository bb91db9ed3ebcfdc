"""Loss to events: connected patches of forest loss of one year, from a raster or from polygons, before any imagery.

An event is labelled on the loss source's own grid, so its outline and area are those of the source whatever grid the
run uses. Raster patches are 8-connected pixels of one year; polygons of one year that overlap or share an edge are one.
The identifier is the loss year and a point of the event (its first pixel, or a point on its surface), hence the same
in every run over the same loss.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.features
import scipy.ndimage
import shapely
from rasterio.errors import RasterioError
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.errors import ConfigError, LossError
from pipeline.grid import area_ha, read_vector, reproject
from pipeline.polygons import CodeRaster, collect

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

HANSEN_EPOCH = 2000
"""Hansen coding: k = lost in 2000 + k, 0 = not lost."""
_STRIP = 4096
_EIGHT = np.ones((3, 3), bool)
_YEAR_COLUMNS = ("loss_year", "lossyear", "year")


@dataclass(frozen=True)
class LossParams:
    """What counts as an event: loss `years`, smallest area, and for polygons the column of the year and the layer."""

    years: tuple[int, ...]
    min_area_ha: float = 0.5
    year_column: str | None = None
    layer: str | None = None


@dataclass(frozen=True)
class LossEvents:
    """The events of a region, and what was left out.

    Attributes:
        events: GeoDataFrame in EPSG:4326 sorted by event_id: event_id, loss_year, area_ha (ellipsoidal), geometry.
        below_count: patches smaller than `min_area_ha`.
        below_ha: their area in hectares.
        description: the source in words, for the run record.
    """

    events: GeoDataFrame
    below_count: int
    below_ha: float
    description: str


def read_loss(source: str, aoi: Geometry, params: LossParams, scratch: Path) -> LossEvents:
    """Find the events of a loss raster (Hansen coding, any CRS) or a polygon layer inside `aoi` (EPSG:4326).

    Raises:
        LossError: when the source has no CRS, does not meet the region or does not cover the years.
        ConfigError: when it cannot be found or read.
    """
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"loss.source {path}: no such file")
    if min(params.years) <= HANSEN_EPOCH or max(params.years) > HANSEN_EPOCH + 255:
        raise LossError(f"loss.years {list(params.years)}: Hansen coding knows 2001 to 2255")
    if path.suffix.lower() in (".tif", ".tiff", ".vrt"):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return _from_raster(path, aoi, params, Path(folder))
    return _from_polygons(path, aoi, params)


def _from_raster(path: Path, aoi: Geometry, params: LossParams, folder: Path) -> LossEvents:
    """Label, join across strips, polygonise: three passes over a file, memory bounded by one strip."""
    try:
        with rasterio.open(path, driver="GTiff") as src:
            if src.crs is None:
                raise LossError(f"loss.source {path}: has no CRS; assign one (gdal_edit.py -a_srs) and run again")
            if src.count != 1 or np.dtype(src.dtypes[0]).kind not in "ui":
                raise LossError(f"loss.source {path}: needs one band of integers (Hansen lossyear), has {src.dtypes}")
            crs, transform = src.crs.to_wkt(), src.transform
            window = _aoi_window(src, reproject(shapely.segmentize(aoi, 0.05), "EPSG:4326", crs), path)
            _check_years(src, window, params.years, path)
            raster, years = _label(src, window, reproject(aoi, "EPSG:4326", crs), params.years, folder)
    except RasterioError as error:
        raise LossError(f"loss.source {path}: cannot be read ({error}); download it again") from error
    codes, geometry = collect(*raster.polygons())
    first = reproject(_first_pixel(geometry, transform), crs, "EPSG:4326")
    return _events(reproject(geometry, crs, "EPSG:4326"), years[codes], first, params, path)


def _aoi_window(src: Any, aoi: Geometry, path: Path) -> Window:
    """Pixel window of the raster that covers `aoi` (in the raster's CRS); raises LossError where they do not meet."""
    west, south, east, north = aoi.bounds
    corners = [~src.transform @ xy for xy in ((west, north), (east, north), (west, south), (east, south))]
    cols, rows = [c for c, _ in corners], [r for _, r in corners]
    col0, col1 = max(int(np.floor(min(cols))), 0), min(int(np.ceil(max(cols))), src.width)
    row0, row1 = max(int(np.floor(min(rows))), 0), min(int(np.ceil(max(rows))), src.height)
    if col0 >= col1 or row0 >= row1:
        found = [round(b, 4) for b in src.bounds]
        raise LossError(f"loss.source {path}: does not overlap region.aoi; it covers {found} in {src.crs.to_string()}")
    return Window(col0, row0, col1 - col0, row1 - row0)


def _strips(window: Window) -> list[Window]:
    end = window.row_off + window.height
    return [
        Window(window.col_off, row, window.width, min(_STRIP, end - row)) for row in range(window.row_off, end, _STRIP)
    ]


def _check_years(src: Any, window: Window, years: tuple[int, ...], path: Path) -> None:
    """Refuse years later than the raster reaches: its name says so (Hansen), else its largest value does."""
    named = re.search(r"GFC-(\d{4})", path.name)
    last = int(named.group(1)) if named else None
    if last is None:
        whole = Window(0, 0, src.width, src.height)
        found = max(int(src.read(1, window=w).max()) for part in (window, whole) for w in _strips(part))
        last = HANSEN_EPOCH + found
        if found > 255:
            raise LossError(f"loss.source {path}: holds {found}; Hansen coding is 0 = none, k = lost in 2000 + k")
        if found == 0:  # a region without any loss is a valid, empty answer
            return
    if max(years) > last:
        raise LossError(f"loss.years {list(years)}: {path} ends in {last}; name years from 2001 to {last}")


def _label(
    src: Any, window: Window, aoi: Geometry, years: tuple[int, ...], folder: Path
) -> tuple[CodeRaster, np.ndarray]:
    """Label 8-connected patches of one year strip by strip, then join across strips: (labels, year of each label)."""
    raster = CodeRaster(folder, "labels", (window.height, window.width), src.crs.to_wkt(), src.window_transform(window))
    label_years, edges, above = [0], [np.empty((0, 2), np.int64)], None
    with raster:
        for strip in _strips(window):
            loss = src.read(1, window=strip)
            outside = rasterio.features.geometry_mask([aoi], loss.shape, src.window_transform(strip))
            labels = np.zeros(loss.shape, np.int32)
            for year in years:
                found, count = scipy.ndimage.label((loss == year - HANSEN_EPOCH) & ~outside, _EIGHT)
                labels[found > 0] = found[found > 0] + (len(label_years) - 1)
                label_years.extend([year] * count)
            if above is not None:
                edges.append(_touching(above, labels[0], np.asarray(label_years)))
            above = labels[-1]
            raster.write(labels, strip.row_off - window.row_off, 0)
    pairs = np.concatenate(edges)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(label_years),) * 2)
    count, joined = connected_components(graph, directed=False)
    if len(pairs):
        raster.remap(joined)
    joined_years = np.zeros(count, np.int64)
    joined_years[joined] = label_years
    return raster, joined_years


def _touching(above: np.ndarray, below: np.ndarray, years: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of labels in two neighbouring rows that touch (8 neighbours) and are of one year."""
    pairs: list[np.ndarray] = []
    for shift in (-1, 0, 1):
        upper = above[max(shift, 0) : len(above) + min(shift, 0)]
        lower = below[max(-shift, 0) : len(below) + min(-shift, 0)]
        both = (upper > 0) & (lower > 0)
        pairs.append(np.column_stack([upper[both], lower[both]]))
    found = np.unique(np.concatenate(pairs), axis=0)
    return np.asarray(found[years[found[:, 0]] == years[found[:, 1]]])


def _first_pixel(geometry: np.ndarray, transform: Any) -> np.ndarray:
    """Centre of the first pixel in row-major order of each patch, as points in the raster's CRS."""
    points, owner = shapely.get_coordinates(geometry, return_index=True)
    inverse = ~transform
    rows = np.round(inverse.d * points[:, 0] + inverse.e * points[:, 1] + inverse.f)
    cols = np.round(inverse.a * points[:, 0] + inverse.b * points[:, 1] + inverse.c)
    order = np.lexsort((cols, rows, owner))
    starts = order[np.concatenate([[True], np.diff(owner[order]) > 0])] if len(order) else order
    x, y = transform @ (cols[starts] + 0.5, rows[starts] + 0.5)
    return np.asarray(shapely.points(x, y))


def _from_polygons(path: Path, aoi: Geometry, params: LossParams) -> LossEvents:
    """Clip to the region, join what overlaps or shares an edge within a year, keep the connected patches."""
    frame = read_vector(path, params.layer, "loss.source")
    column = params.year_column or next((c for c in frame.columns if str(c).lower() in _YEAR_COLUMNS), None)
    if column is None or column not in frame.columns:
        raise LossError(
            f"loss.source {path}: needs a year column ({', '.join(_YEAR_COLUMNS)}, or name it in loss.year_column); "
            f"found {', '.join(map(str, frame.columns))}"
        )
    frame = frame.to_crs("EPSG:4326")
    try:
        year_of = np.asarray(frame[column], dtype="float64")
    except (TypeError, ValueError) as error:
        raise LossError(f"loss.source {path}: column {column} must hold years as numbers ({error})") from error
    if frame.empty or not shapely.intersects(frame.geometry.values, aoi).any():
        raise LossError(f"loss.source {path}: does not overlap region.aoi")
    if not np.isin(year_of, params.years).any():
        found = sorted({int(y) for y in year_of[np.isfinite(year_of)]})
        raise LossError(f"loss.years {list(params.years)}: none in {path}, which holds {found}")
    shapely.prepare(aoi)
    parts: list[np.ndarray] = []
    years: list[np.ndarray] = []
    for year in params.years:
        chosen = shapely.make_valid(np.asarray(frame.geometry.values)[year_of == year])
        patches = shapely.get_parts(shapely.union_all(shapely.intersection(chosen, aoi)))
        patches = patches[shapely.get_type_id(patches) == shapely.GeometryType.POLYGON]
        parts.append(shapely.multipolygons(patches, indices=np.arange(len(patches))) if len(patches) else patches)
        years.append(np.full(len(patches), year))
    geometry = np.concatenate(parts)
    return _events(geometry, np.concatenate(years), shapely.point_on_surface(geometry), params, path)


def _events(geometry: np.ndarray, years: np.ndarray, points: np.ndarray, params: LossParams, path: Path) -> LossEvents:
    """Name the events, measure them, and set aside those below the smallest area (all in EPSG:4326)."""
    import geopandas as gpd

    area = np.asarray(area_ha(geometry), dtype=np.float64).reshape(-1)
    lon, lat = shapely.get_x(points), shapely.get_y(points)
    names = [
        f"{year}_{'S' if y < 0 else 'N'}{abs(y):09.6f}_{'W' if x < 0 else 'E'}{abs(x):010.6f}"
        for year, x, y in zip(years, lon, lat, strict=True)
    ]
    # an area that equals the limit but for rounding is not below it
    small = area < params.min_area_ha * (1 - 1e-9)
    table = {"event_id": names, "loss_year": years.astype(np.int64), "area_ha": area}
    frame = gpd.GeoDataFrame(table, geometry=geometry, crs="EPSG:4326")
    kept = frame[~small].sort_values("event_id", ignore_index=True)
    if kept["event_id"].duplicated().any():
        raise LossError(
            f"loss.source {path}: two events share the place {kept['event_id'][kept['event_id'].duplicated()].iloc[0]}"
        )
    return LossEvents(kept, int(small.sum()), float(area[small].sum()), path.name)
