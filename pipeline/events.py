"""Events on the run's grid: burned once into a label raster, summed per block, and put together again.

Sums are integers (logits in fixed point), so that they add up to the same whatever the blocks were and in whatever
order they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
SQUARE_SPLIT = 1 << 28
"""Squares of fixed-point logits (at most 2**56) are summed in two halves, by this factor."""
_KINDS = ("total", "low", "high", "square_high", "square_low")


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


@dataclass(frozen=True)
class LogitSums:
    """What the clear pixels of n events say, in integers that merge exactly over blocks, in whatever order.

    Attributes:
        clear: int64 [n], clear pixels.
        total: int64 [n, classes], logits summed in fixed point.
        low, high: int64 [n, classes], smallest and largest logit in fixed point.
        square_high, square_low: int64 [n, classes], squares of the fixed-point logits, summed as
            high * SQUARE_SPLIT + low: a square has up to 56 bits, so one int64 would overflow after 128 pixels, and
            each half lets an event have 2**34 of them.
    """

    clear: np.ndarray
    total: np.ndarray
    low: np.ndarray
    high: np.ndarray
    square_high: np.ndarray
    square_low: np.ndarray

    @classmethod
    def nothing(cls, events: int, classes: int) -> LogitSums:
        """The sums of no pixels: what adding changes nothing."""
        zero, most = np.zeros((events, classes), np.int64), int(_MOST) * FIXED_POINT
        return cls(np.zeros(events, np.int64), zero, zero + most, zero - most, zero.copy(), zero.copy())

    @classmethod
    def of_pixels(cls, rows: np.ndarray, fixed: np.ndarray, events: int) -> LogitSums:
        """Sum the fixed-point logits int64 [pixels, classes] of pixels by their event's row [pixels]."""
        sums = cls.nothing(events, fixed.shape[1])
        square = fixed * fixed
        halves = square // SQUARE_SPLIT, square % SQUARE_SPLIT
        sums.add(rows, cls(np.ones(len(rows), np.int64), fixed, fixed, fixed, *halves))
        return sums

    def add(self, rows: np.ndarray, other: LogitSums) -> None:
        """Add the sums of a part (or of single pixels) to the events in `rows`, in place."""
        np.add.at(self.clear, rows, other.clear)
        np.add.at(self.total, rows, other.total)
        np.minimum.at(self.low, rows, other.low)
        np.maximum.at(self.high, rows, other.high)
        np.add.at(self.square_high, rows, other.square_high)
        np.add.at(self.square_low, rows, other.square_low)

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of a checkpoint: `clear`, and one for each sum and class."""
        parts = {f"{kind}_{name}": getattr(self, kind)[:, k] for k, name in enumerate(names) for kind in _KINDS}
        return {"clear": self.clear, **parts}

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> LogitSums:
        """The sums as `columns` gave them."""
        kinds = {kind: np.stack([columns[f"{kind}_{name}"] for name in names], axis=1) for kind in _KINDS}
        return cls(columns["clear"], **kinds)

    def mean(self) -> np.ndarray:
        """Mean logits float64 [n, classes]; NaN without a clear pixel."""
        pixels = np.where(self.clear > 0, self.clear, np.nan)[:, None]
        return np.asarray(self.total / FIXED_POINT / pixels)

    def statistics(self) -> np.ndarray:
        """Mean, std (population), min and max of the logits float64 [n, 4 * classes]; NaN without a clear pixel."""
        seen = (self.clear > 0)[:, None]
        # exact integers of any length: n * sum(x^2) - sum(x)^2 cancels, and is exactly 0 where all pixels are equal
        pixels, total = self.clear.astype(object)[:, None], self.total.astype(object)
        square = self.square_high.astype(object) * SQUARE_SPLIT + self.square_low.astype(object)
        spread = (pixels * square - total * total).astype(np.float64)
        std = np.sqrt(spread) / np.where(seen, self.clear[:, None], 1)
        ends = [np.where(seen, part / FIXED_POINT, np.nan) for part in (std, self.low, self.high)]
        return np.concatenate([self.mean(), *ends], axis=1)
