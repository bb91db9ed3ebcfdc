"""Global Forest Change by tile, from a real HTTP server on loopback: names, borders between tiles, sea, versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from fault_server import Plan, serve
from rasterio.transform import from_origin

from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.fetch import Fetcher
from pipeline.errors import LossError
from pipeline.gfc import Tile, fetch_loss, tiles_of
from pipeline.loss import LossParams, read_loss

VERSION = "GFC-2024-v1.12"
PIXEL = 0.01  # coarser than the real tiles, so that a tile is a megapixel


def write_tile(folder: Path, tile: Tile, loss: np.ndarray) -> None:
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    path = folder / VERSION / f"Hansen_{VERSION}_lossyear_{tile.name}.tif"
    place = {"transform": from_origin(tile.west, tile.north, PIXEL, PIXEL), "crs": "EPSG:4326"}
    size = {"width": 1000, "height": 1000, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", compress="lzw", tiled=True, **size, **place) as dataset:
        dataset.write(loss, 1)


def fetcher(cache: Path) -> Fetcher:
    return Fetcher(cache, ("127.0.0.1",), policy=FetchPolicy(attempts=3, backoff_s=0.01, most_backoff_s=0.02))


def test_tiles_are_named_by_their_upper_left_corner() -> None:
    assert [t.name for t in tiles_of(shapely.box(101.0, -1.0, 102.0, 1.0))] == ["10N_100E", "00N_100E"]
    assert [t.name for t in tiles_of(shapely.box(-71.0, 17.5, -69.5, 19.5))] == ["20N_080W", "20N_070W"]
    assert [t.name for t in tiles_of(shapely.box(-60.0, -20.0, -50.0, -10.0))] == ["10S_060W"]
    assert [t.name for t in tiles_of(shapely.box(-0.5, -0.5, 0.5, 0.5))] == [
        "10N_010W", "10N_000E", "00N_010W", "00N_000E",
    ]  # fmt: skip


def test_an_event_across_four_tiles_is_one_and_what_is_beside_the_region_is_left(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = np.where(random.random((2000, 2000)) < 0.001, 5, 0).astype(np.uint8)
    whole[990:1010, 995:1003] = 20
    for row, north in enumerate((10, 0)):
        for column, west in enumerate((100, 110)):
            part = whole[1000 * row : 1000 * (row + 1), 1000 * column : 1000 * (column + 1)]
            write_tile(tmp_path / "www", Tile(north, west), part)
    aoi = shapely.box(109.213, -0.807, 110.504, 0.911)
    with serve(tmp_path / "www") as server:
        path, warnings = fetch_loss(aoi, VERSION, server.url("").rstrip("/"), fetcher(tmp_path / "cache"), tmp_path)
    assert warnings == []
    with rasterio.open(path) as dataset:
        assert dataset.bounds == pytest.approx((109.21, -0.81, 110.51, 0.92))
        np.testing.assert_array_equal(dataset.read(1), whole[908:1081, 921:1051])
    found = read_loss(str(path), aoi, LossParams((2020,)), tmp_path).events
    assert len(found) == 1
    # the version's year is known from the file's name
    with pytest.raises(LossError, match="ends in 2024"):
        read_loss(str(path), aoi, LossParams((2025,)), tmp_path)


def test_a_tile_of_the_sea_is_said_and_a_region_of_sea_is_refused(tmp_path: Path) -> None:
    write_tile(tmp_path / "www", Tile(0, 100), np.full((1000, 1000), 3, np.uint8))
    with serve(tmp_path / "www") as server:
        one, where = fetcher(tmp_path / "cache"), server.url("")
        path, warnings = fetch_loss(shapely.box(101, -1, 102, 1), VERSION, where, one, tmp_path)
        assert warnings == [f"loss.source gfc: {VERSION} has no tile 10N_100E; taken as sea, without loss"]
        with rasterio.open(path) as dataset:
            band = dataset.read(1)
        assert (band[:100] == 0).all()
        assert (band[100:] == 3).all()
        with pytest.raises(LossError, match=r"no tile 10N_120E; check loss\.version"):
            fetch_loss(shapely.box(121, 1, 122, 2), VERSION, where, one, tmp_path)
        server.plan = Plan(share=1.0, faults=("503",))
        with pytest.raises(LossError, match=r"tile 00N_110E of GFC-2024-v1\.12: the server answers 503"):
            fetch_loss(shapely.box(111, -2, 112, -1), VERSION, where, one, tmp_path)
    with pytest.raises(LossError, match="80 N to 60 S"):
        fetch_loss(shapely.box(0, 82, 1, 83), VERSION, where, one, tmp_path)
