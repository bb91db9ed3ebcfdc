"""Means of a raster's cells over polygons, and slope and aspect of an elevation raster in whatever CRS it comes.

Windowed reads only: a polygon costs its own cells, never the raster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import rasterio.features
import shapely
from pyproj import CRS, Geod, Transformer
from rasterio.transform import Affine
from rasterio.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from shapely.geometry.base import BaseGeometry as Geometry

WIDTH = {"mean": 1, "slope": 1, "aspect": 2, "share": 1, "known": 1}
"""Columns of each measure of a raster."""
_EXACT = 256
"""Windows of at most so many cells are weighed by the covered part of each cell, larger ones by cell centres."""
_STRIP = 4_000_000
_GEOD = Geod(ellps="WGS84")


@dataclass(frozen=True)
class _Ground:
    """Steps of one column and one row at a place: metres on the ground, and their bearings in radians from north."""

    metres: tuple[float, float]
    bearings: tuple[float, float]


class RasterSampler:
    """Samples one band of an open raster with several measures at once; every window is read once.

    `share` counts cells whose value is one of `classes`, or without these, is not 0; `known` counts cells that have a
    value at all.
    """

    def __init__(
        self, raster: DatasetReader, band: int, measures: Sequence[str], classes: Sequence[float] = ()
    ) -> None:
        self._raster, self._band, self._measures, self._classes = raster, band, tuple(measures), list(classes)
        self._margin = 1 if {"slope", "aspect"} & set(measures) else 0
        crs = CRS.from_user_input(raster.crs)
        self._geographic = crs.is_geographic
        self._degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        self._scale, self._offset = float(raster.scales[band - 1]), float(raster.offsets[band - 1])
        self.columns = sum(WIDTH[measure] for measure in self._measures)

    def sample(self, polygon: Geometry | None) -> NDArray[np.float64]:
        """Means over a polygon (raster's CRS) -> float64 [columns], NaN where no cell inside has a value.

        A cell counts by the part of it that is covered, in large windows by its centre; where no centre lies inside,
        every cell that is touched counts.
        """
        nothing = np.full(self.columns, np.nan)
        if polygon is None or polygon.is_empty:
            return nothing
        polygon = self._shifted(polygon)
        window = self._window(polygon)
        if window is None:
            return nothing
        height, width = window.height, window.width
        for rule in ("exact",) if height * width <= _EXACT else ("centre", "touched"):
            sums, weights, seen = np.zeros(self.columns), np.zeros(self.columns), False
            for strip in _strips(window):
                weight = _weights(polygon, self._raster.window_transform(strip), (strip.height, strip.width), rule)
                if not weight.any():
                    continue
                seen = True
                values = self._derived(strip)
                weight = np.where(np.isfinite(values), weight, 0.0)
                sums += (np.nan_to_num(values) * weight).sum(axis=(1, 2))
                weights += weight.sum(axis=(1, 2))
            if seen:
                break
        return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nan)

    def inside(self, polygon: Geometry) -> float:
        """Share 0..1 of a polygon (raster's CRS, not empty) that lies inside the raster's frame."""
        polygon = self._shifted(polygon)
        size = self._raster.width, self._raster.height
        corners = [self._raster.transform @ (size[0] * x, size[1] * y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
        return float(polygon.intersection(shapely.Polygon(corners)).area / polygon.area)

    def _shifted(self, polygon: Geometry) -> Geometry:
        """The polygon moved by whole turns to where the raster has its longitudes (-180..180 or 0..360)."""
        if not self._geographic:
            return polygon
        bounds, (west, _, east, _) = self._raster.bounds, polygon.bounds
        turns = round(((bounds.left + bounds.right) - (west + east)) / 720)
        moved: Geometry = shapely.transform(polygon, lambda xy: np.add(xy, [360.0 * turns, 0.0]))
        return moved

    def _window(self, polygon: Geometry) -> Window | None:
        west, south, east, north = polygon.bounds
        corners = [~self._raster.transform @ (x, y) for x in (west, east) for y in (south, north)]
        cols, rows = [c for c, _ in corners], [r for _, r in corners]
        col0, row0 = max(math.floor(min(cols)), 0), max(math.floor(min(rows)), 0)
        col1, row1 = min(math.ceil(max(cols)), self._raster.width), min(math.ceil(max(rows)), self._raster.height)
        return Window(col0, row0, col1 - col0, row1 - row0) if col0 < col1 and row0 < row1 else None

    def _derived(self, window: Window) -> NDArray[np.float64]:
        """Float64 [columns, rows, cols] of all measures in a window."""
        around = self._read(window)
        m = self._margin
        inner = around[m : around.shape[0] - m, m : around.shape[1] - m]
        made: list[NDArray[np.float64]] = []
        slope, sine, cosine = horn(around, self._ground(window)) if m else (inner, inner, inner)
        for measure in self._measures:
            if measure == "slope":
                made.append(slope)
            elif measure == "aspect":
                made += [sine, cosine]
            elif measure == "share":
                counted = np.isin(inner, self._classes) if self._classes else inner != 0
                made.append(np.where(np.isfinite(inner), counted, np.nan))
            elif measure == "known":
                made.append(np.isfinite(inner).astype(np.float64))
            else:
                made.append(inner)
        return np.stack(made)

    def _read(self, window: Window) -> NDArray[np.float64]:
        """Values with the margin; NaN for no data and beyond the raster."""
        m = self._margin
        row0, col0 = window.row_off - m, window.col_off - m
        shape = window.height + 2 * m, window.width + 2 * m
        top, left = max(row0, 0), max(col0, 0)
        bottom, right = min(row0 + shape[0], self._raster.height), min(col0 + shape[1], self._raster.width)
        part = self._raster.read(self._band, window=Window(left, top, right - left, bottom - top), masked=True)
        values = np.full(shape, np.nan)
        scaled = part.astype(np.float64) * self._scale + self._offset
        values[top - row0 : bottom - row0, left - col0 : right - col0] = scaled.filled(np.nan)
        return values

    def _ground(self, window: Window) -> _Ground:
        """How far and where to a step in the raster goes at a window's middle, on the ellipsoid."""
        col, row = window.col_off + window.width / 2, window.row_off + window.height / 2
        metres, bearings = [], []
        for step in ((0.5, 0.0), (0.0, 0.5)):
            ends = [self._raster.transform @ (col + sign * step[0], row + sign * step[1]) for sign in (-1, 1)]
            (lon0, lat0), (lon1, lat1) = (self._degrees.transform(*end) for end in ends)
            bearing, _, length = _GEOD.inv(lon0, lat0, lon1, lat1)
            metres.append(float(length))
            bearings.append(math.radians(bearing))
        return _Ground((metres[0], metres[1]), (bearings[0], bearings[1]))


def horn(z: NDArray[np.float64], ground: _Ground) -> tuple[NDArray[np.float64], ...]:
    """Elevation [h + 2, w + 2] in metres -> slope in degrees, sine and cosine of the aspect, each [h, w].

    Aspect is the downhill direction, clockwise from true north; NaN where it is flat, and where any of the nine cells
    is missing. Source: Horn 1981, doi:10.1109/PROC.1981.11918.
    """
    right, left = z[:, 2:], z[:, :-2]
    below, above = z[2:], z[:-2]
    by_column = (_weighted(right, 0) - _weighted(left, 0)) / (8 * ground.metres[0])
    by_row = (_weighted(below, 1) - _weighted(above, 1)) / (8 * ground.metres[1])
    column, row = ground.bearings
    east = by_column * math.sin(column) + by_row * math.sin(row)
    north = by_column * math.cos(column) + by_row * math.cos(row)
    # the middle cell has no weight in the formula, yet without it nothing is known there
    steep = np.where(np.isfinite(z[1:-1, 1:-1]), np.hypot(east, north), np.nan)
    rising = np.where(steep > 0, steep, np.nan)
    return np.degrees(np.arctan(steep)), -east / rising, -north / rising


def _weighted(z: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Three neighbours along an axis, weighed 1, 2, 1."""
    z = np.moveaxis(z, axis, 0)
    return np.moveaxis(z[:-2] + 2 * z[1:-1] + z[2:], 0, axis)


def _strips(window: Window) -> Iterator[Window]:
    rows = max(_STRIP // window.width, 1)
    for row in range(0, window.height, rows):
        yield Window(window.col_off, window.row_off + row, window.width, min(rows, window.height - row))


def _weights(polygon: Geometry, transform: Affine, shape: tuple[int, int], rule: str) -> NDArray[np.float64]:
    """Weight of each cell, float64 `shape`: the covered part of it (`exact`), or 1 and 0."""
    if rule != "exact":
        inside = rasterio.features.rasterize(
            [(polygon, 1)], out_shape=shape, transform=transform, dtype="uint8", all_touched=rule == "touched"
        )
        return np.asarray(inside, np.float64)
    rows, cols = (axis.ravel() for axis in np.indices(shape))
    corners = [transform @ (cols + dx, rows + dy) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))]
    cells = shapely.polygons(np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1))
    shapely.prepare(polygon)
    covered = shapely.area(shapely.intersection(cells, polygon)) / abs(transform.determinant)
    return np.asarray(covered).reshape(shape)
