"""Events on the run's grid: burned once into a label raster, summed per block, and put together again.

Sums are integers (logits in fixed point), so that they add up to the same whatever the blocks were and in whatever
order they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from rasterio.windows import Window
from shapely import STRtree

from pipeline.grid import RunGrid, reproject

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

FIXED_POINT = 1 << 16
"""Logits are summed as round(logit * FIXED_POINT): exact, and the same in every order."""
_MOST = float(1 << 12)


@dataclass(frozen=True)
class BurnedEvents:
    """Events on the run's grid, by row of the events table.

    Attributes:
        pixels: int64 [n], grid pixels of each event.
        bounds: int64 [n, 4], first row, first column, last row + 1, last column + 1 (all 0 where pixels is 0).
    """

    pixels: np.ndarray
    bounds: np.ndarray


def burn_events(events: GeoDataFrame, grid: RunGrid, path: Path) -> BurnedEvents:
    """Write the label raster: int32, k + 1 where the pixel's centre lies in event k, 0 elsewhere; tiled and sparse.

    Where events of two years overlap (polygons may), the later year keeps the pixel. An event too small for any pixel
    centre takes the pixel under a point on its surface, if that is free: an event without pixels cannot be seen.
    """
    shapes = reproject(np.asarray(events.geometry.values), "EPSG:4326", grid.crs)
    tree = STRtree(shapes)
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": grid.height, "width": grid.width, "count": 1, "dtype": "int32", "crs": grid.crs,
        "transform": grid.geobox.affine, "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd",
        "sparse_ok": True, "bigtiff": "if_safer",
    }  # fmt: skip
    pixels, bounds = np.zeros(len(shapes), np.int64), _no_bounds(len(shapes))
    rows = 2048
    with rasterio.open(path, "w", **profile) as raster:
        for row0 in range(0, grid.height, rows):
            box = grid.window(row0, 0, min(rows, grid.height - row0), grid.width)
            inside = np.sort(tree.query(box.extent.geom))
            if not len(inside):
                continue
            labels = _burn(shapes, inside, box)
            _count(labels, row0, pixels, bounds)
            raster.write(labels, 1, window=Window(0, row0, grid.width, len(labels)))
    lost = np.flatnonzero(pixels == 0)
    if len(lost):
        _claim(shapes, lost, grid, path, (pixels, bounds))
    bounds[pixels == 0] = 0
    return BurnedEvents(pixels, bounds)


def _no_bounds(count: int) -> np.ndarray:
    big = np.iinfo(np.int64).max
    return np.tile(np.array([big, big, 0, 0], np.int64), (count, 1))


def _burn(shapes: np.ndarray, inside: np.ndarray, box: Any) -> np.ndarray:
    pairs = ((shapes[k], int(k) + 1) for k in inside)
    burned = rasterio.features.rasterize(pairs, out_shape=box.shape, transform=box.affine, fill=0, dtype="int32")
    return np.asarray(burned)


def _count(labels: np.ndarray, row0: int, pixels: np.ndarray, bounds: np.ndarray) -> None:
    """Add a strip's pixels to the counts and bounds of its events, in place."""
    rows, cols = np.nonzero(labels)
    index = labels[rows, cols] - 1
    pixels += np.bincount(index, minlength=len(pixels))
    np.minimum.at(bounds[:, 0], index, rows + row0)
    np.minimum.at(bounds[:, 1], index, cols)
    np.maximum.at(bounds[:, 2], index, rows + row0 + 1)
    np.maximum.at(bounds[:, 3], index, cols + 1)


def _claim(
    shapes: np.ndarray, lost: np.ndarray, grid: RunGrid, path: Path, counts: tuple[np.ndarray, np.ndarray]
) -> None:
    """Give events without a pixel centre the pixel under a point on their surface, where no event has it."""
    inverse = ~grid.geobox.affine
    points = shapely.point_on_surface(shapes[lost])
    pixels, bounds = counts
    with rasterio.open(path, "r+") as raster:
        for k, point in zip(lost, points, strict=True):
            col, row = (int(np.floor(v)) for v in inverse @ (point.x, point.y))
            if not (0 <= row < grid.height and 0 <= col < grid.width):
                continue
            window = Window(col, row, 1, 1)
            if raster.read(1, window=window)[0, 0] == 0:
                raster.write(np.array([[k + 1]], np.int32), 1, window=window)
                pixels[k], bounds[k] = 1, (row, col, row + 1, col + 1)


def to_fixed_point(logits: np.ndarray) -> np.ndarray:
    """Logits as integers in fixed point (int64), clipped to +-4096, far beyond what a probability can show."""
    return np.asarray(np.rint(np.clip(logits, -_MOST, _MOST) * FIXED_POINT).astype(np.int64))


def sum_by_event(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum int64 `values` [n, k] by int label [n]: (labels that occur [m], counts [m], sums int64 [m, k])."""
    present, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), values.shape[1]), np.int64)
    np.add.at(sums, index, values)
    return present, counts, sums
