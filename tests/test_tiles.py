"""Tiles and strips as bytes in their file: all are found, all are decoded, a damaged one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from pipeline.tiles import inflate, tiles

PLACE = {"crs": "EPSG:32748", "transform": from_origin(500_010, 9_900_015, 30, 30)}


def write(path: Path, **profile: object) -> Path:
    values = np.random.default_rng(0).integers(0, 900, (210, 130), np.uint16)
    size = {"width": 130, "height": 210, "count": 1, "dtype": "uint16", **PLACE}
    with rasterio.open(path, "w", driver="GTiff", compress="deflate", **size, **profile) as dataset:
        dataset.write(values, 1)
    return path


@pytest.mark.parametrize(
    ("profile", "count"),
    [({"tiled": True, "blockxsize": 64, "blockysize": 64}, 12), ({"blockysize": 16}, 14), ({"predictor": 2}, None)],
)
def test_tiles_and_strips_are_found_and_decoded(tmp_path: Path, profile: dict[str, object], count: int | None) -> None:
    path = write(tmp_path / "a.tif", **profile)
    found = tiles(path)
    assert count is None or len(found) == count
    assert sum(tile.length for tile in found) >= 210 * 130 * 2
    inflate(path, found)
    content = bytearray(path.read_bytes())
    last = max(found, key=lambda tile: tile.offset or 0)
    assert last.offset is not None
    # the checksum itself, which GDAL's fast path never looks at
    content[last.offset + last.size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"tile {last.column},{last.row} of level None is damaged"):
        inflate(path, found)


def test_overviews_count_and_sparse_tiles_hold_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    assert {tile.level for tile in tiles(path)} == {None, 0}
    inflate(path, tiles(path))
    empty = tmp_path / "sparse.tif"
    size = {"width": 130, "height": 210, "count": 1, "dtype": "uint16", "blockxsize": 64, "blockysize": 64, **PLACE}
    with rasterio.open(empty, "w", driver="GTiff", sparse_ok=True, tiled=True, compress="deflate", **size):
        pass
    assert {tile.offset for tile in tiles(empty)} == {None}
    inflate(empty, tiles(empty))
