"""Rasters of integers to polygons, in one pass over a file, so that neither memory nor blocks shape the result.

Pixels are joined along edges (4 neighbours): such polygons are always valid. Parts that meet only at a corner and
carry the same value become one MultiPolygon with `collect`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from rasterio.transform import Affine
from rasterio.windows import Window


class CodeRaster:
    """A pair of temporary GeoTIFFs, int32 codes (0 = nothing) and their mask, written window by window."""

    def __init__(self, folder: Path, stem: str, shape: tuple[int, int], crs: str, transform: Affine) -> None:
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "crs": crs, "transform": transform,
            "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd", "sparse_ok": True,
            "bigtiff": "if_safer",
        }  # fmt: skip
        self.codes, self.mask = folder / f"{stem}.tif", folder / f"{stem}-mask.tif"
        self._codes = rasterio.open(self.codes, "w", dtype="int32", nodata=0, **profile)
        self._mask = rasterio.open(self.mask, "w", dtype="uint8", **profile)

    def write(self, codes: np.ndarray, row0: int, col0: int) -> None:
        """Write int32 codes [h, w] at a pixel offset; windows that hold nothing stay unwritten (sparse)."""
        if not codes.any():
            return
        window = Window(col0, row0, codes.shape[1], codes.shape[0])
        self._codes.write(codes.astype(np.int32, copy=False), 1, window=window)
        self._mask.write((codes != 0).astype(np.uint8), 1, window=window)

    def __enter__(self) -> CodeRaster:
        """Return the open pair."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both files."""
        self._codes.close()
        self._mask.close()

    def remap(self, lookup: np.ndarray) -> None:
        """Replace each code by `lookup[code]` in the closed file, tile row by tile row."""
        with rasterio.open(self.codes, "r+") as raster:
            for row0 in range(0, raster.height, 256):
                window = Window(0, row0, raster.width, min(256, raster.height - row0))
                codes = raster.read(1, window=window)
                if codes.any():
                    raster.write(lookup[codes].astype(np.int32), 1, window=window)

    def polygons(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (int64 codes [n], polygons [n] in the raster's CRS), one per 4-connected patch of one code."""
        with rasterio.open(self.codes) as codes, rasterio.open(self.mask) as mask:
            shapes = rasterio.features.shapes(
                rasterio.band(codes, 1), mask=rasterio.band(mask, 1), connectivity=4, transform=codes.transform
            )
            return _from_shapes(shapes)


def _from_shapes(shapes: Iterator[tuple[dict[str, Any], float]]) -> tuple[np.ndarray, np.ndarray]:
    """Build polygons from flat arrays of coordinates, which is several times faster than one by one."""
    values: list[float] = []
    coordinates: list[Any] = []
    ring_ends, polygon_ends = [0], [0]
    points = 0
    for geometry, value in shapes:
        for ring in geometry["coordinates"]:
            coordinates.extend(ring)
            points += len(ring)
            ring_ends.append(points)
        polygon_ends.append(len(ring_ends) - 1)
        values.append(value)
    if not values:
        return np.empty(0, np.int64), np.empty(0, object)
    flat = np.asarray(coordinates, dtype=np.float64)
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, flat, (np.asarray(ring_ends), np.asarray(polygon_ends))
    )
    return np.asarray(values).astype(np.int64), polygons


def collect(codes: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join polygons of equal code into MultiPolygons: (sorted distinct codes, MultiPolygons)."""
    order = np.argsort(codes, kind="stable")
    distinct, groups = np.unique(codes[order], return_inverse=True)
    return distinct, np.asarray(shapely.multipolygons(polygons[order], indices=groups))
