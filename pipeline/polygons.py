"""Rasters of integers to polygons, in one pass over a file, so that neither memory nor blocks shape the result.

Pixels are joined along edges (4 neighbours): such polygons are always valid. Parts that meet only at a corner and
carry the same value become one MultiPolygon with `collect`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from rasterio.transform import Affine
from rasterio.windows import Window

if TYPE_CHECKING:
    from pipeline.tracing import Rings

_STRIP = 4_000_000
"""Pixels read at once."""
_CHUNK = 200_000
"""Polygons built at once: their coordinates are held twice for that long."""


class CodeRaster:
    """A temporary GeoTIFF of int32 codes (0 = nothing), written window by window."""

    def __init__(self, folder: Path, stem: str, shape: tuple[int, int], crs: str, transform: Affine) -> None:
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "crs": crs, "transform": transform,
            "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd", "sparse_ok": True,
            "bigtiff": "if_safer",
        }  # fmt: skip
        self.codes = folder / f"{stem}.tif"
        self._codes = rasterio.open(self.codes, "w", dtype="int32", nodata=0, **profile)

    def write(self, codes: np.ndarray, row0: int, col0: int) -> None:
        """Write int32 codes [h, w] at a pixel offset; windows that hold nothing stay unwritten (sparse)."""
        if codes.any():
            window = Window(col0, row0, codes.shape[1], codes.shape[0])
            self._codes.write(codes.astype(np.int32, copy=False), 1, window=window)

    def __enter__(self) -> CodeRaster:
        """Return the open raster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._codes.close()

    def remap(self, lookup: np.ndarray) -> None:
        """Replace each code by `lookup[code]` in the closed file, tile row by tile row."""
        with rasterio.open(self.codes, "r+") as raster:
            for row0 in range(0, raster.height, 256):
                window = Window(0, row0, raster.width, min(256, raster.height - row0))
                codes = raster.read(1, window=window)
                if codes.any():
                    raster.write(lookup[codes].astype(np.int32), 1, window=window)

    def polygons(self, junctions: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (int64 codes [n], polygons [n] in the raster's CRS), one per 4-connected patch of one code.

        They are those of GDAL's polygonize, ordered by their first pixel from the upper left. With `junctions`,
        neighbours share every vertex of their common border, so that they stay neighbours in any CRS.
        """
        # compiled, and only needed here
        from pipeline.tracing import Sweep

        with rasterio.open(self.codes) as raster:
            sweep = Sweep(raster.width, junctions)
            rows = max(_STRIP // raster.width // 256, 1) * 256
            for row0 in range(0, raster.height, rows):
                sweep.add(raster.read(1, window=Window(0, row0, raster.width, min(rows, raster.height - row0))))
            rings = sweep.rings()
            parts = [
                _from_rings(rings, begin, min(begin + _CHUNK, len(rings.codes)), raster.transform)
                for begin in range(0, len(rings.codes), _CHUNK)
            ]
        return rings.codes.astype(np.int64), np.concatenate(parts) if parts else np.empty(0, object)


def _from_rings(rings: Rings, begin: int, end: int, transform: Affine) -> np.ndarray:
    """Build polygons from flat arrays of coordinates, which is several times faster than one by one."""
    pixel, ring_ends, polygon_ends = rings.ragged(begin, end)
    flat = np.empty_like(pixel)
    flat[:, 0] = transform.a * pixel[:, 0] + transform.b * pixel[:, 1] + transform.c
    flat[:, 1] = transform.d * pixel[:, 0] + transform.e * pixel[:, 1] + transform.f
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, flat, (ring_ends, polygon_ends)))


def collect(codes: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join polygons of equal code into MultiPolygons: (sorted distinct codes, MultiPolygons)."""
    order = np.argsort(codes, kind="stable")
    distinct, groups = np.unique(codes[order], return_inverse=True)
    return distinct, np.asarray(shapely.multipolygons(polygons[order], indices=groups))
