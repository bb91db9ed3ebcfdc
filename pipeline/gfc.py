"""Hansen Global Forest Change by tile: which 10-degree tiles meet a region, fetched, and cut to one local raster.

Hansen et al. (2013), doi:10.1126/science.1244693; data by version at storage.googleapis.com, CC BY 4.0. Nothing is
resampled: tiles of one version lie on one grid of 0.00025 degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely import box, intersects
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchFault, Permanent
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Asset
from pipeline.errors import LossError

SIDE = 10
_STRIP = 2048
_NORTH, _SOUTH = 80, -60


@dataclass(frozen=True)
class Tile:
    """A tile by its upper-left corner in whole degrees: `north` -50..80, `west` -180..170."""

    north: int
    west: int

    @property
    def name(self) -> str:
        """Name as in file names: 00N_110E, 10S_060W."""
        return (
            f"{abs(self.north):02d}{'S' if self.north < 0 else 'N'}_{abs(self.west):03d}{'W' if self.west < 0 else 'E'}"
        )


def tiles_of(aoi: Geometry) -> list[Tile]:
    """Tiles that meet an area (EPSG:4326), from the north-west, by rows."""
    west, south, east, north = aoi.bounds
    rows = range(math.ceil(north / SIDE) * SIDE, math.floor(south / SIDE) * SIDE, -SIDE)
    columns = range(math.floor(west / SIDE) * SIDE, math.ceil(east / SIDE) * SIDE, SIDE)
    found = [Tile(row, column) for row in rows for column in columns]
    return [tile for tile in found if intersects(aoi, box(tile.west, tile.north - SIDE, tile.west + SIDE, tile.north))]


def fetch_loss(aoi: Geometry, version: str, archive: str, fetcher: Fetcher, folder: Path) -> tuple[Path, list[str]]:
    """Bring the loss years of a region (EPSG:4326) to this machine: (one uint8 raster, warnings).

    Args:
        aoi: the region.
        version: of Global Forest Change, such as GFC-2024-v1.12.
        archive: address that holds a folder for each version.
        fetcher: brings whole verified files into the cache.
        folder: where the raster is written, cut to the region's bounds.

    Raises:
        LossError: the region lies outside 80 N..60 S, a tile cannot be had, or none exists.
    """
    wanted = tiles_of(aoi)
    if not wanted or any(not _SOUTH < tile.north <= _NORTH for tile in wanted):
        raise LossError("loss.source gfc: Global Forest Change covers 80 N to 60 S, region.aoi reaches beyond")
    paths, absent = [], []
    for tile in wanted:
        href = f"{archive.rstrip('/')}/{version}/Hansen_{version}_lossyear_{tile.name}.tif"
        try:
            fetcher.asset(Asset(href))
        except Permanent as fault:
            # the archive has no tiles of open sea
            if "404" not in fault.reason:
                raise LossError(f"loss.source gfc: tile {tile.name} of {version}: {fault.reason}") from None
            absent.append(tile.name)
        except FetchFault as fault:
            raise LossError(
                f"loss.source gfc: tile {tile.name} of {version}: {fault.reason}; try again later"
            ) from None
        else:
            paths.append(cached_path(href, fetcher.cache))
    if not paths:
        raise LossError(
            f"loss.source gfc: {version} has no tile {', '.join(absent)}; check loss.version, or region.aoi lies at sea"
        )
    out = folder / f"Hansen_{version}_lossyear.tif"
    try:
        _mosaic(paths, aoi, out)
    except RasterioError as error:
        raise LossError(
            f"loss.source gfc: a tile of {version} cannot be read ({error}); empty imagery.cache"
        ) from error
    return out, [f"loss.source gfc: {version} has no tile {name}; taken as sea, without loss" for name in absent]


def _mosaic(paths: list[Path], aoi: Geometry, out: Path) -> None:
    """Copy the tiles' pixels within the region's bounds into one raster, strip by strip; what no tile covers is 0."""
    with rasterio.open(paths[0], driver="GTiff") as first:
        origin, crs = first.transform, first.crs
    across, down = origin.a, -origin.e
    west, south, east, north = aoi.bounds
    # whole pixels on the grid of the tiles, counted from the first one's corner
    col0, row0 = math.floor((west - origin.c) / across), math.floor((origin.f - north) / down)
    col1, row1 = math.ceil((east - origin.c) / across), math.ceil((origin.f - south) / down)
    width, height = max(col1 - col0, 1), max(row1 - row0, 1)
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint8", "crs": crs,
        "transform": origin @ Affine.translation(col0, row0), "compress": "deflate", "tiled": True, "blockxsize": 512,
        "blockysize": 512, "sparse_ok": True, "bigtiff": "if_safer",
    }  # fmt: skip
    beside = out.with_name(f".{out.name}")
    with rasterio.open(beside, "w", **profile) as target:
        for path in paths:
            with rasterio.open(path, driver="GTiff") as tile:
                left = round((tile.transform.c - origin.c) / across) - col0
                top = round((origin.f - tile.transform.f) / down) - row0
                _copy(tile, target, (top, left))
    beside.replace(out)


def _copy(tile: Any, target: Any, corner: tuple[int, int]) -> None:
    top, left = corner
    first_row, last_row = max(top, 0), min(top + tile.height, target.height)
    first_col, last_col = max(left, 0), min(left + tile.width, target.width)
    for row in range(first_row, last_row, _STRIP):
        rows, columns = min(_STRIP, last_row - row), last_col - first_col
        if columns <= 0:
            return
        part = tile.read(1, window=Window(first_col - left, row - top, columns, rows))
        if np.any(part):
            target.write(part, 1, window=Window(first_col, row, columns, rows))
