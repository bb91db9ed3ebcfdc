"""Pixel grids of a simulated province and the way from any of them to the home grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

_LATTICE = 64  # pixels between exactly transformed points; bilinear between them errs by less than a centimetre


@dataclass(frozen=True)
class Grid:
    """North-up pixel grid: `crs` (EPSG text), upper-left corner and pixel size in CRS units, size in pixels."""

    crs: str
    left: float
    top: float
    pixel: float
    height: int
    width: int

    @property
    def transform(self) -> Affine:
        """Affine of the pixel edges, as rasterio wants it."""
        return Affine(self.pixel, 0.0, self.left, 0.0, -self.pixel, self.top)

    def windows(self, side: int) -> list[tuple[range, range]]:
        """Rows and columns of the windows of at most `side` pixels that tile the grid."""
        return [
            (range(r, min(r + side, self.height)), range(c, min(c + side, self.width)))
            for r in range(0, self.height, side)
            for c in range(0, self.width, side)
        ]


class HomeMap:
    """Home-grid pixel coordinates (row, col; 0 is the first pixel's outer edge) of another grid's pixel centres."""

    def __init__(self, home: Grid, target: Grid) -> None:
        """Transform a lattice of the target's pixel centres exactly; the rest is interpolated in absolute steps."""
        self._shift: tuple[float, float] | None = None
        if home.crs == target.crs:
            self._shift = ((home.top - target.top) / home.pixel, (target.left - home.left) / home.pixel)
            return
        rows = np.arange(-_LATTICE, target.height + 2 * _LATTICE, _LATTICE)
        cols = np.arange(-_LATTICE, target.width + 2 * _LATTICE, _LATTICE)
        x = np.broadcast_to(target.left + (cols + 0.5) * target.pixel, (rows.size, cols.size))
        y = np.broadcast_to((target.top - (rows + 0.5) * target.pixel)[:, None], (rows.size, cols.size))
        east, north = Transformer.from_crs(target.crs, home.crs, always_xy=True).transform(x, y)
        self._rows = (home.top - np.asarray(north)) / home.pixel
        self._cols = (np.asarray(east) - home.left) / home.pixel

    @property
    def is_shift(self) -> bool:
        """Whether both grids share the CRS, so that pixels fall on pixels."""
        return self._shift is not None

    def centres(self, rows: range, cols: range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Home rows and columns, each [len(rows), len(cols)], of the target's pixel centres; ranges may have steps."""
        r, c = np.arange(rows.start, rows.stop, rows.step), np.arange(cols.start, cols.stop, cols.step)
        if self._shift is not None:
            down, right = self._shift
            shape = (r.size, c.size)
            # exact whole numbers of pixels: rounding takes away what the division of metres left behind
            home_r, home_c = r + (0.5 + round(down)), c + (0.5 + round(right))
            return np.broadcast_to(home_r[:, None], shape), np.broadcast_to(home_c[None, :], shape)
        return self._bilinear(self._rows, r, c), self._bilinear(self._cols, r, c)

    @staticmethod
    def _bilinear(lattice: NDArray[np.float64], r: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.float64]:
        i, fi = r // _LATTICE + 1, ((r % _LATTICE) / _LATTICE)[:, None]
        j, fj = c // _LATTICE + 1, ((c % _LATTICE) / _LATTICE)[None, :]
        lines = lattice[i] * (1 - fi) + lattice[i + 1] * fi
        value: NDArray[np.float64] = lines[:, j] * (1 - fj) + lines[:, j + 1] * fj
        return value
