"""Loss to events: connected patches of forest loss of one year, from a raster or from polygons, before any imagery.

An event is labelled on the loss source's own grid, so its outline and area are those of the source whatever grid the
run uses. Raster patches are 8-connected pixels of one year; polygons of one year that overlap or share an edge are one.
Where the source tells days (alerts, polygons with a date), an event keeps the first and the last day of its parts.
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

from pipeline.alerts import EPOCH, HANSEN, LAST_DAY, LossRaster, year_of
from pipeline.errors import ConfigError, LossError
from pipeline.grid import area_ha, read_vector, reproject
from pipeline.polygons import CodeRaster, collect

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

HANSEN_EPOCH = 2000
"""Hansen coding: k = lost in 2000 + k, 0 = not lost."""
_STRIP = 1024
_EIGHT = np.ones((3, 3), bool)
_FIRST_ALERTS = 2015
_YEAR_COLUMNS = ("loss_year", "lossyear", "year")
_DATE_COLUMNS = (
    "loss_date", "date", "datetime", "alert_date", "alertdate", "detected", "detection_date", "detected_at",
    "view_date", "viewdate", "image_date", "acq_date", "event_date",
)  # fmt: skip


@dataclass(frozen=True)
class LossParams:
    """What counts as an event: loss `years`, smallest area, for polygons the column of year or date and the layer.

    For rasters the `coding` and the smallest confidence of an alert, 2 to 4 (see `pipeline.alerts`).
    """

    years: tuple[int, ...]
    min_area_ha: float = 0.5
    year_column: str | None = None
    layer: str | None = None
    date_column: str | None = None
    coding: str = HANSEN
    confidence: int = 2


@dataclass(frozen=True)
class _Found:
    """Patches of loss [n]: polygon, a point of it (both EPSG:4326), loss year, first and last day (0 = not known)."""

    geometry: np.ndarray
    points: np.ndarray
    years: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True)
class LossEvents:
    """The events of a region, and what was left out.

    Attributes:
        events: GeoDataFrame in EPSG:4326 sorted by event_id: event_id, loss_year, first_day and last_day of the loss
            (days since 1970-01-01, 0 = not known), area_ha (ellipsoidal), geometry.
        below_count: patches smaller than `min_area_ha`.
        below_ha: their area in hectares.
        description: the source in words, for the run record.
    """

    events: GeoDataFrame
    below_count: int
    below_ha: float
    description: str


def read_loss(source: str, aoi: Geometry, params: LossParams, scratch: Path) -> LossEvents:
    """Find the events of a loss raster (any CRS) or a polygon layer inside `aoi` (EPSG:4326).

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
        with LossRaster(path, params.coding, params.confidence, params.years) as src:
            crs, transform = src.source.crs.to_wkt(), src.source.transform
            window = _aoi_window(src.source, reproject(shapely.segmentize(aoi, 0.05), "EPSG:4326", crs), path)
            _check_years(src, window, params.years, path)
            raster, years, days = _label(src, window, reproject(aoi, "EPSG:4326", crs), params.years, folder)
    except RasterioError as error:
        raise LossError(f"loss.source {path}: cannot be read ({error}); download it again") from error
    codes, geometry = collect(*raster.polygons())
    point = reproject(_first_pixel(geometry, transform), crs, "EPSG:4326")
    found = _Found(reproject(geometry, crs, "EPSG:4326"), point, years[codes], *days[:, codes])
    return _events(found, params, path)


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


def _check_years(raster: LossRaster, window: Window, years: tuple[int, ...], path: Path) -> None:
    """Refuse years that the raster cannot hold.

    A Hansen raster ends where its name says, else at its largest value. GLAD's names tell the year; other alerts go on,
    and a year without any is an answer.
    """
    if raster.years and not set(years) <= set(raster.years):
        raise LossError(f"loss.years {list(years)}: {path} holds alerts of {', '.join(map(str, raster.years))}")
    if raster.dated:
        if min(years) < _FIRST_ALERTS:
            raise LossError(f"loss.years {list(years)}: alerts begin in {_FIRST_ALERTS}")
        return
    src = raster.source
    named = re.search(r"GFC-(\d{4})", path.name)
    last = int(named.group(1)) if named else None
    if last is None:
        whole = Window(0, 0, src.width, src.height)
        found = max(int(src.read(1, window=w).max()) for part in (window, whole) for w in _strips(part))
        last = HANSEN_EPOCH + found
        if found > 255:
            raise LossError(
                f"loss.source {path}: holds {found}; Hansen coding is 0 = none, k = lost in 2000 + k; of alerts, name "
                "the loss.coding"
            )
        if found == 0:  # a region without any loss is a valid, empty answer
            return
    if max(years) > last:
        raise LossError(f"loss.years {list(years)}: {path} ends in {last}; name years from 2001 to {last}")


def _label(
    src: LossRaster, window: Window, aoi: Geometry, years: tuple[int, ...], folder: Path
) -> tuple[CodeRaster, np.ndarray, np.ndarray]:
    """Label 8-connected patches of one year strip by strip, then join across strips.

    Returns:
        Labels, the year of each label, and its first and last day [2, labels].
    """
    grid = src.source
    raster = CodeRaster(
        folder, "labels", (window.height, window.width), grid.crs.to_wkt(), grid.window_transform(window)
    )
    label_years, edges, above = [0], [np.empty((0, 2), np.int64)], None
    spans = [np.zeros((2, 1), np.int32)]
    with raster:
        for strip in _strips(window):
            loss, days = src.read(strip)
            outside = rasterio.features.geometry_mask([aoi], loss.shape, grid.window_transform(strip))
            labels = np.zeros(loss.shape, np.int32)
            before = len(label_years)
            for year in years:
                found, count = scipy.ndimage.label((loss == year) & ~outside, _EIGHT)
                labels[found > 0] = found[found > 0] + (len(label_years) - 1)
                label_years.extend([year] * count)
            spans.append(_spans(labels, days, before, len(label_years)))
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
    first, last = np.concatenate(spans, axis=1)
    span = np.zeros((2, count), np.int32)
    span[0] = np.iinfo(np.int32).max
    np.minimum.at(span[0], joined, first)
    np.maximum.at(span[1], joined, last)
    return raster, joined_years, span


def _spans(labels: np.ndarray, days: np.ndarray | None, start: int, end: int) -> np.ndarray:
    """First and last day int32 [2, end - start] of the labels from `start`; 0 where days are not known."""
    if days is None or start == end:
        return np.zeros((2, end - start), np.int32)
    index = np.arange(start, end)
    ends = scipy.ndimage.minimum(days, labels, index), scipy.ndimage.maximum(days, labels, index)
    return np.stack(ends).astype(np.int32)


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
    year_of_row, day_of_row = _when(frame, params, path)
    frame = frame.to_crs("EPSG:4326")
    if frame.empty or not shapely.intersects(frame.geometry.values, aoi).any():
        raise LossError(f"loss.source {path}: does not overlap region.aoi")
    if not np.isin(year_of_row, params.years).any():
        found = sorted({int(y) for y in year_of_row[np.isfinite(year_of_row)]})
        raise LossError(f"loss.years {list(params.years)}: none in {path}, which holds {found}")
    shapely.prepare(aoi)
    parts: list[np.ndarray] = []
    years: list[np.ndarray] = []
    spans: list[np.ndarray] = []
    for year in params.years:
        rows = np.flatnonzero(year_of_row == year)
        clipped = shapely.intersection(shapely.make_valid(np.asarray(frame.geometry.values)[rows]), aoi)
        patches = shapely.get_parts(shapely.union_all(clipped))
        patches = patches[shapely.get_type_id(patches) == shapely.GeometryType.POLYGON]
        spans.append(_days_of(patches, clipped, day_of_row[rows]))
        parts.append(shapely.multipolygons(patches, indices=np.arange(len(patches))) if len(patches) else patches)
        years.append(np.full(len(patches), year))
    geometry, span = np.concatenate(parts), np.concatenate(spans, axis=1)
    found_all = _Found(geometry, shapely.point_on_surface(geometry), np.concatenate(years), *span)
    return _events(found_all, params, path)


def _when(frame: GeoDataFrame, params: LossParams, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Year (float64, NaN = none) and day (int32 since 1970-01-01, 0 = not known) of each polygon.

    A year column goes before a date column, unless the latter is named.
    """

    def find(named: str | None, known: tuple[str, ...]) -> str | None:
        if named is not None:
            return named if named in frame.columns else None
        return next((str(c) for c in frame.columns if str(c).lower() in known), None)

    year = None if params.date_column else find(params.year_column, _YEAR_COLUMNS)
    if year is not None:
        try:
            return np.asarray(frame[year], dtype="float64"), np.zeros(len(frame), np.int32)
        except (TypeError, ValueError) as error:
            raise LossError(f"loss.source {path}: column {year} must hold years as numbers ({error})") from error
    day = None if params.year_column else find(params.date_column, _DATE_COLUMNS)
    if day is None:
        raise LossError(
            f"loss.source {path}: needs a year column ({', '.join(_YEAR_COLUMNS)}, or name it in loss.year_column) "
            f"or a date column ({', '.join(_DATE_COLUMNS)}, or name it in loss.date_column); "
            f"found {', '.join(map(str, frame.columns))}"
        )
    days = _days(frame[day], day, path)
    return np.where(days > 0, year_of(days), np.nan), days


def _days(column: Any, name: str, path: Path) -> np.ndarray:
    """Days since 1970-01-01 (int32, 0 = none) of a column of dates, times (their day in UTC) or ISO 8601 texts."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        raise LossError(f"loss.source {path}: column {name} holds numbers; dates are written as in 2023-06-30")
    try:
        times = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (TypeError, ValueError, OverflowError) as error:
        detail = " ".join(str(error).split())[:120]
        raise LossError(
            f"loss.source {path}: column {name} must hold dates as in 2023-06-30 ({detail}); write them so"
        ) from error
    days = times.dt.tz_localize(None).to_numpy().astype("datetime64[D]") - EPOCH
    known = ~np.isnat(days)
    count = np.where(known, days.astype(np.int64), 0)
    if known.any() and (count[known].min() < 1 or count.max() >= LAST_DAY):
        raise LossError(f"loss.source {path}: column {name} holds a date outside 1970 to 2099")
    return count.astype(np.int32)


def _days_of(patches: np.ndarray, polygons: np.ndarray, days: np.ndarray) -> np.ndarray:
    """First and last day int32 [2, patches] of the polygons that were joined to each patch; 0 where none is known."""
    span = np.zeros((2, len(patches)), np.int32)
    if not days.any() or not len(patches):
        return span
    pieces, owner = shapely.get_parts(polygons, return_index=True)
    whole = shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON
    pieces, owner = pieces[whole], owner[whole]
    # each piece lies in one patch; a point on its surface says in which
    piece, patch = shapely.STRtree(patches).query(shapely.point_on_surface(pieces), predicate="intersects")
    span[0] = np.iinfo(np.int32).max
    np.minimum.at(span[0], patch, days[owner[piece]])
    np.maximum.at(span[1], patch, days[owner[piece]])
    span[0, span[1] == 0] = 0
    return span


def _events(found: _Found, params: LossParams, path: Path) -> LossEvents:
    """Name the events, measure them, and set aside those below the smallest area (all in EPSG:4326)."""
    import geopandas as gpd

    area = np.asarray(area_ha(found.geometry), dtype=np.float64).reshape(-1)
    lon, lat = shapely.get_x(found.points), shapely.get_y(found.points)
    names = [
        f"{year}_{'S' if y < 0 else 'N'}{abs(y):09.6f}_{'W' if x < 0 else 'E'}{abs(x):010.6f}"
        for year, x, y in zip(found.years, lon, lat, strict=True)
    ]
    # an area that equals the limit but for rounding is not below it
    small = area < params.min_area_ha * (1 - 1e-9)
    table = {
        "event_id": names,
        "loss_year": found.years.astype(np.int64),
        "first_day": found.first,
        "last_day": found.last,
        "area_ha": area,
    }
    frame = gpd.GeoDataFrame(table, geometry=found.geometry, crs="EPSG:4326")
    kept = frame[~small].sort_values("event_id", ignore_index=True)
    if kept["event_id"].duplicated().any():
        raise LossError(
            f"loss.source {path}: two events share the place {kept['event_id'][kept['event_id'].duplicated()].iloc[0]}"
        )
    return LossEvents(kept, int(small.sum()), float(area[small].sum()), path.name)
