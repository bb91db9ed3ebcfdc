"""One Landsat band file seen on the run's grid, and what its QA_PIXEL calls clear. Knows neither torch nor torchgeo."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine
from rasterio.windows import Window

from pipeline.catalog.check import open_header
from pipeline.catalog.scene import QA_PIXEL, Asset, Scene
from pipeline.errors import SceneError
from pipeline.grid import RunGrid
from pipeline.resample import Places, find_places, mean_reach, take_mean, take_nearest

NOT_CLEAR = 0b111111
"""QA_PIXEL bits 0-5: fill, dilated cloud, cirrus, cloud, cloud shadow, snow (Landsat Collection 2, LSDS-1619)."""
QA_FILL = 1
"""QA_PIXEL where a scene holds no data."""
MARGIN = 1024
"""Pixels around the run's grid that may be read: no patch reaches further out."""
_ALIGNED = 1e-4
_POINTS = 9
"""Points along each side of an area, at which its place in another CRS is worked out."""
_AROUND = 64
_EVERYTHING = 1 << 30


def clear_mask(qa: np.ndarray) -> np.ndarray:
    """Bool mask of the pixels that QA_PIXEL (uint16, Collection 2) calls clear land or water."""
    return np.asarray((qa & NOT_CLEAR) == 0)


def readable_window(grid: RunGrid) -> GeoBox:
    """The run's grid with MARGIN pixels around it, over which bands are read."""
    return grid.window(-MARGIN, -MARGIN, grid.height + 2 * MARGIN, grid.width + 2 * MARGIN)


class BandOnGrid:
    """One band file seen on the run's grid: a plain read where the grids coincide, resampled elsewhere."""

    def __init__(self, scene: Scene, band: str, window: GeoBox) -> None:
        """Open a local file; raises RasterioError or SceneError. `window` is the grid's `readable_window`."""
        self.asset: Asset = scene.assets[band]
        self.fill = QA_FILL if band == QA_PIXEL else 0
        self.nodata = self.fill if self.asset.nodata is None or band == QA_PIXEL else self.asset.nodata
        self._nearest = band == QA_PIXEL
        self._stack = ExitStack()
        try:
            source = self._stack.enter_context(open_header(self.asset.href))
            crs = source.crs if source.crs else rasterio.CRS.from_user_input(scene.grid.crs) if scene.grid else None
            if crs is None:
                raise SceneError(scene.id, f"{band}: no CRS in {file_name(scene, band)} and none in its MTL")
            affine = source.transform if source.crs or scene.grid is None else Affine(*scene.grid.transform)
            self._source, self._shift = source, _shift(crs, affine, window)
            if self._shift is None:
                affine_of_grid: Any = tuple(window.affine)[:6]
                self._target, self._place = (_wkt(window), affine_of_grid), (str(crs.to_wkt()), affine)
                self._reach = mean_reach(self._target, self._place, source.shape)
        except BaseException:
            self._stack.close()
            raise

    def read(self, window: Window) -> np.ndarray:
        """Read band 1 over a window in pixels of the grid's readable window.

        The file's own values where the grids coincide, and always of QA_PIXEL; else float32 means of them. The value
        of `fill` or `nodata` where it has none.
        """
        if self._shift is None:
            places = self._places(window)
            part, origin = self._cut(places.box)
            if self._nearest:
                return take_nearest(part, origin, places, self.fill)
            return take_mean(part, origin, places, self.nodata)
        row0, col0 = window.row_off + self._shift[0], window.col_off + self._shift[1]
        part, (top, left) = self._cut((row0, col0, row0 + window.height, col0 + window.width))
        if part.shape == (window.height, window.width):
            return part
        out = np.full((window.height, window.width), self.fill, part.dtype)
        out[top - row0 : top - row0 + part.shape[0], left - col0 : left - col0 + part.shape[1]] = part
        return out

    def source_boxes(self, windows: Sequence[Window]) -> list[tuple[int, int, int, int]]:
        """Pixels of the file (first row and column, and those after the last) that `read` of each window touches.

        They may reach out of the file.
        """
        if self._shift is None:
            return [self._places(window).box for window in windows]
        down, right = self._shift
        tops = [(w.row_off + down, w.col_off + right, w.height, w.width) for w in windows]
        return [(row, col, row + height, col + width) for row, col, height, width in tops]

    def _places(self, window: Window) -> Places:
        place = (window.row_off, window.col_off, window.height, window.width)
        return find_places(self._target, self._place, place, self._reach)

    def _cut(self, box: tuple[int, int, int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Read a box of the file as far as that reaches, and tell where what was read starts."""
        top, left = max(box[0], 0), max(box[1], 0)
        bottom, right = min(box[2], self._source.height), min(box[3], self._source.width)
        if top >= bottom or left >= right:
            return np.zeros((0, 0), self._source.dtypes[0]), (0, 0)
        return np.asarray(self._source.read(1, window=Window(left, top, right - left, bottom - top))), (top, left)

    def __enter__(self) -> BandOnGrid:
        """Return the open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._stack.close()


def warp_boxes(
    crs: Any, bounds: np.ndarray, steps: float | np.ndarray, source_crs: Any, source_affine: Affine
) -> list[tuple[int, int, int, int]]:  # fmt: skip
    """Pixels of a file that GDAL may read to warp some areas from it.

    More than it does: the hull of the area, the radius of the filter (which grows where pixels are made coarser), and
    some pixels for what its approximations leave out. All of the file where a part of an area has no place in its CRS.

    Args:
        crs: of the areas.
        bounds: float64 [n, 4], x and y of their upper left and lower right corners.
        steps: size of the pixels that are made, in units of `crs`; [n] or the same for all.
        source_crs: of the file.
        source_affine: of the file.

    Returns:
        First row and column, and those after the last, for each area; they may lie outside the file.
    """
    along = np.linspace(0.0, 1.0, _POINTS)
    x = bounds[:, [0]] + np.outer(bounds[:, 2] - bounds[:, 0], np.tile(along, _POINTS))
    y = bounds[:, [1]] + np.outer(bounds[:, 3] - bounds[:, 1], np.repeat(along, _POINTS))
    moved = rasterio.warp.transform(crs, source_crs, x.ravel(), y.ravel())
    col, row = (np.reshape(v, x.shape) for v in ~source_affine @ tuple(np.array(moved)))
    found = np.stack([row.min(axis=1), col.min(axis=1), row.max(axis=1), col.max(axis=1)], axis=1)
    known = np.isfinite(found).all(axis=1)
    found[~known] = 0
    pixels = np.maximum(np.abs(bounds[:, 2] - bounds[:, 0]), np.abs(bounds[:, 3] - bounds[:, 1])) / steps
    coarser = np.maximum(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]) / pixels
    more = (_AROUND + np.ceil(4 * np.maximum(coarser, 1.0)))[:, None]
    low, high = np.floor(found[:, :2]) - more, np.ceil(found[:, 2:]) + more
    low[~known], high[~known] = 0, _EVERYTHING
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in np.hstack([low, high])]


def file_name(scene: Scene, band: str) -> str:
    """Name of a band's file, without its folder."""
    return scene.assets[band].href.rsplit("/", 1)[-1]


def _wkt(window: GeoBox) -> str:
    assert window.crs is not None
    return str(window.crs.to_wkt())


def _shift(crs: Any, affine: Affine, window: GeoBox) -> tuple[int, int] | None:
    """Offset (rows, columns) from the window to the file where both share one pixel grid, else None."""
    same = np.allclose((affine.a, affine.b, affine.d, affine.e), window.affine[:2] + window.affine[3:5], atol=1e-9)
    if not same or crs != rasterio.CRS.from_user_input(_wkt(window)):
        return None
    col, row = ~affine @ (window.affine.c, window.affine.f)
    if abs(col - round(col)) > _ALIGNED or abs(row - round(row)) > _ALIGNED:
        return None
    return round(row), round(col)
