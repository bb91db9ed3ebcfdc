"""Pixels of a file looked up where those of another grid lie: the nearest one for categories, a mean for measurements.

GDAL's warp takes some 250 ns for a pixel, most of it for masks and for a place in the file that every band works out
anew. Here places are worked out once for all bands and dates of a CRS, exactly at the corners of cells of CELL pixels
and linearly within (UTM to UTM that is a ten-thousandth of a pixel off), and a compiled loop does the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from pyproj import Transformer
from rasterio.transform import Affine

CELL = 16
"""Pixels a side of the cells within which places are interpolated; counted from the corner of the grid."""
_COARSER = 1 / 0.95
"""Pixels that are larger than the file's by this factor are means over their own width, smaller ones bilinear."""
_TIE = 1e-6
"""Between two pixels the later one is the nearest: rounding errors of a projection must not decide."""
Six = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Places:
    """Where the pixels of a window of a grid lie in a file.

    Attributes:
        rows: float64 [n, m], rows of the file (0 = its upper edge) at the corners of cells; not finite where a place
            does not exist in the file's CRS.
        cols: the same for columns.
        inset: row and column of the window's first pixel, counted from the first corner.
        shape: height and width of the window.
        reach: half width of the mean (rows, columns) in pixels of the file; 1 is bilinear interpolation.
    """

    rows: np.ndarray
    cols: np.ndarray
    inset: tuple[int, int]
    shape: tuple[int, int]
    reach: tuple[float, float]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Pixels of the file that may be looked at: first row, first column, and those after the last."""
        known = np.isfinite(self.rows) & np.isfinite(self.cols)
        if not known.any():
            return 0, 0, 0, 0
        rows, cols = self.rows[known], self.cols[known]
        down, right = (math.ceil(reach) for reach in self.reach)
        return (
            math.floor(rows.min()) - down,
            math.floor(cols.min()) - right,
            math.ceil(rows.max()) + down,
            math.ceil(cols.max()) + right,
        )


def find_places(
    target: tuple[str, Six], source: tuple[str, Affine], window: tuple[int, int, int, int], reach: tuple[float, float]
) -> Places:  # fmt: skip
    """Work out where a window of a grid lies in a file.

    A pixel's place does not depend on the window it is worked out in.

    Args:
        target: CRS (WKT) and affine of the grid.
        source: CRS (WKT) and affine of the file.
        window: row, column, height and width in pixels of the grid.
        reach: that of `mean_reach`.
    """
    row0, col0, height, width = window
    i0, j0 = row0 // CELL, col0 // CELL
    i1, j1 = -(-(row0 + height) // CELL), -(-(col0 + width) // CELL)
    x, y = _corners(*target, source[0], (i0, j0, i1 + 1, j1 + 1))
    cols, rows = ~source[1] @ (x, y)
    return Places(rows, cols, (row0 - i0 * CELL, col0 - j0 * CELL), (height, width), reach)


@lru_cache(maxsize=256)
def _corners(crs: str, affine: Six, source: str, cells: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the CRS `source` of the corners of cells [i0, i1) x [j0, j1): x and y, each [n, m]."""
    i0, j0, i1, j1 = cells
    col, row = np.meshgrid(np.arange(j0, j1) * float(CELL), np.arange(i0, i1) * float(CELL))
    x, y = Affine(*affine) @ (col, row)
    found = np.array(transformer(crs, source).transform(x, y))
    # infinite where there is no place, with which sums would warn
    found[~np.isfinite(found)] = np.nan
    return found[0], found[1]


@lru_cache(maxsize=32)
def transformer(source: str, target: str) -> Transformer:
    """Transformer between two CRSs, x before y."""
    return Transformer.from_crs(source, target, always_xy=True)


def mean_reach(target: tuple[str, Six], source: tuple[str, Affine], shape: tuple[int, int]) -> tuple[float, float]:
    """Half width (rows, columns; pixels of the file) of the mean that makes a pixel of the grid.

    It is that at the middle of the file, so that no pixel's value depends on the window it is read with.
    """
    step, affine = Affine(*target[1]), source[1]
    x, y = affine @ (shape[1] / 2, shape[0] / 2)
    middle = np.array(~step @ transformer(source[0], target[0]).transform(x, y))
    if not np.isfinite(middle).all():
        return 1.0, 1.0
    ends = [step @ tuple(middle + np.array(move)) for move in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    x, y = np.array(ends).T
    cols, rows = ~affine @ transformer(target[0], source[0]).transform(x, y)
    found = (math.hypot(v[1] - v[0], v[3] - v[2]) for v in (rows, cols))
    down, right = (size if math.isfinite(size) and size > _COARSER else 1.0 for size in found)
    return down, right


def take_nearest(part: np.ndarray, origin: tuple[int, int], places: Places, fill: int) -> np.ndarray:
    """The file's pixel nearest to the middle of each pixel, in the file's dtype; `fill` outside the file.

    Args:
        part: [h, w], what was read of the file: `places.box` as far as the file reaches.
        origin: row and column of the file at which `part` starts.
        places: of the pixels.
        fill: value where there is no file.
    """
    out = np.full(places.shape, fill, part.dtype)
    if part.size:
        _nearest(part, *origin, places.rows, places.cols, *places.inset, out)
    return out


def take_mean(part: np.ndarray, origin: tuple[int, int], places: Places, nodata: float) -> np.ndarray:
    """The weighted mean of the file's pixels around the middle of each pixel, float32; `nodata` where it has none.

    There is data where the nearest pixel of the file has some. Weights fall linearly with the distance along rows and
    columns to 0 at `places.reach`; pixels without data do not count. `part` and `origin` as in `take_nearest`.
    """
    out = np.full(places.shape, nodata, np.float32)
    if part.size:
        # as the file's own pixels hold it
        value = float(part.dtype.type(nodata)) if part.dtype.kind == "f" else float(nodata)
        _mean(part, *origin, places.rows, places.cols, *places.inset, *places.reach, value, out)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _along(corners, i, j, v):  # type: ignore[no-untyped-def]
    """Value at share `v` of the height of cell (i, j), at its left edge, and how much it grows to its right edge."""
    left = corners[i, j] + (corners[i + 1, j] - corners[i, j]) * v
    right = corners[i, j + 1] + (corners[i + 1, j + 1] - corners[i, j + 1]) * v
    return left, right - left


@njit(cache=True, nogil=True, error_model="numpy")
def _nearest(part, top, left, rows, cols, inset_row, inset_col, out):  # type: ignore[no-untyped-def]
    """Fill `out` [height, width] where `part` has a nearest pixel."""
    for r in range(out.shape[0]):
        i, v = (r + inset_row) // CELL, ((r + inset_row) % CELL + 0.5) / CELL
        for start in range(-(inset_col % CELL), out.shape[1], CELL):
            j = (start + inset_col) // CELL
            row, row_step = _along(rows, i, j, v)
            col, col_step = _along(cols, i, j, v)
            for c in range(max(start, 0), min(start + CELL, out.shape[1])):
                u = (c - start + 0.5) * (1 / CELL)
                y, x = np.floor(row + row_step * u + _TIE) - top, np.floor(col + col_step * u + _TIE) - left
                # also False where there is no place
                if 0 <= y < part.shape[0] and 0 <= x < part.shape[1]:
                    out[r, c] = part[np.uint64(y), np.uint64(x)]


@njit(cache=True, nogil=True, error_model="numpy")
def _mean(part, top, left, rows, cols, inset_row, inset_col, down, right, nodata, out):  # type: ignore[no-untyped-def]
    """Fill `out` [height, width] where the nearest pixel of `part` has data."""
    height, width = part.shape
    bilinear = down == 1 and right == 1
    for r in range(out.shape[0]):
        i, v = (r + inset_row) // CELL, ((r + inset_row) % CELL + 0.5) / CELL
        for start in range(-(inset_col % CELL), out.shape[1], CELL):
            j = (start + inset_col) // CELL
            row, row_step = _along(rows, i, j, v)
            col, col_step = _along(cols, i, j, v)
            for c in range(max(start, 0), min(start + CELL, out.shape[1])):
                u = (c - start + 0.5) * (1 / CELL)
                # whole numbers less are exact, so that a value stays the same whatever part was read
                y, x = row + row_step * u - top, col + col_step * u - left
                if not (-_TIE <= y < height and -_TIE <= x < width):
                    continue
                up, before = np.floor(y - 0.5), np.floor(x - 0.5)
                if bilinear and 0 <= up < height - 1 and 0 <= before < width - 1:
                    k, m = np.uint64(up), np.uint64(before)
                    a, b = np.float64(part[k, m]), np.float64(part[k, m + np.uint64(1)])
                    d, e = np.float64(part[k + np.uint64(1), m]), np.float64(part[k + np.uint64(1), m + np.uint64(1)])
                    share = x - 0.5 - before
                    upper, lower = a + (b - a) * share, d + (e - d) * share
                    mean = np.float32(upper + (lower - upper) * (y - 0.5 - up))
                    whole = a != nodata and b != nodata and d != nodata and e != nodata
                    if whole and mean == mean and mean != nodata:
                        out[r, c] = mean
                        continue
                out[r, c] = _mean_of_some(part, y, x, down, right, nodata, out[r, c])


@njit(cache=True, nogil=True, error_model="numpy")
def _mean_of_some(part, y, x, down, right, nodata, fill):  # type: ignore[no-untyped-def]
    """Mean around a place (y, x) of those pixels of `part` that have data; `fill` where the nearest has none."""
    height, width = part.shape
    near_y, near_x = np.floor(y + _TIE), np.floor(x + _TIE)
    if not (0 <= near_y < height and 0 <= near_x < width):
        return fill
    near = part[int(near_y), int(near_x)]
    if near == nodata or near != near:
        return fill
    total = weights = 0.0
    for k in range(max(int(np.ceil(y - 0.5 - down)), 0), min(int(np.floor(y - 0.5 + down)), height - 1) + 1):
        across = 1 - abs(k + 0.5 - y) / down
        for m in range(max(int(np.ceil(x - 0.5 - right)), 0), min(int(np.floor(x - 0.5 + right)), width - 1) + 1):
            value = part[k, m]
            if value != nodata and value == value:
                weight = across * (1 - abs(m + 0.5 - x) / right)
                total += weight * value
                weights += weight
    mean = np.float32(total / weights)
    return np.float32(near) if mean == nodata else mean
