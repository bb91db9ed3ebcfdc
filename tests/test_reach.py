"""The tiles that a reading touches are known before it: with those alone, every reading gives the whole file's values.

A tile that was left out would be an error (see test_sparse), so equality proves that none is missing; that many are
absent proves that not all are asked for.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window
from test_sparse import layout_of, with_tiles

from pipeline import chips
from pipeline.catalog.scene import QA_PIXEL, Asset, Scene, SceneGrid
from pipeline.grid import RunGrid
from pipeline.gridded import MARGIN, BandOnGrid, readable_window
from pipeline.resample import CELL

TILE, SIDE = 16, 500
"""Small tiles: what GDAL reads beyond a window crosses their borders."""


def corner(lon: float, lat: float, crs: str) -> tuple[float, float]:
    """Upper-left corner, on Landsat's pixel edges, of a scene whose middle lies at a place."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return (round(x / 30) - SIDE // 2) * 30 + 15.0, (round(y / 30) + SIDE // 2) * 30 + 15.0


def run_grid(lon: float, lat: float, crs: str, resolution: float = 30.0) -> RunGrid:
    """A grid around the scene, with a good piece on each side."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    side = round(1.6 * SIDE * 30 / resolution)
    half, snap = side // 2, resolution / 2
    left = (round(x / resolution) - half) * resolution + snap
    top = (round(y / resolution) + half) * resolution + snap
    return RunGrid(crs, resolution, left, top, side, side, 512)


LAEA = "+proj=laea +lat_0=-2 +lon_0=-60.1 +datum=WGS84 +units=m +no_defs"
CASES: dict[str, tuple[float, float, str, str, float]] = {
    # longitude and latitude of the scene, CRS of the scene and of the run, resolution of the run
    "own zone": (-60.1, -3.1, "EPSG:32620", "EPSG:32620", 30),
    "next zone, south": (-60.1, -12.0, "EPSG:32621", "EPSG:32620", 30),
    "next zone, north": (-59.9, 14.0, "EPSG:32620", "EPSG:32621", 30),
    "next zone, far north": (18.1, 64.0, "EPSG:32633", "EPSG:32634", 30),
    "south zone of its own": (-60.1, -12.0, "EPSG:32720", "EPSG:32620", 30),
    "on the equator": (-60.0, 0.0, "EPSG:32621", "EPSG:32620", 30),
    "equal area": (-60.1, -3.1, "EPSG:32620", LAEA, 30),
    "cylindrical": (-60.1, -33.0, "EPSG:32620", "EPSG:6933", 30),
    "coarser": (-60.1, -12.0, "EPSG:32621", "EPSG:32620", 100),
    "finer": (-60.1, -12.0, "EPSG:32621", "EPSG:32620", 10),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reach")


def write_scene(folder: Path, name: str, placed: bool = True, shift: float = 0.0) -> Scene:
    lon, lat, crs, _, _ = CASES[name]
    left, top = corner(lon, lat, crs)
    place = Affine(30, 0, left + shift, 0, -30, top - shift)
    path = folder / f"{name.replace(' ', '_').replace(',', '')}-{placed}-{shift}.tif"
    if not path.exists():
        values = np.random.default_rng(0).integers(7000, 30_000, (SIDE, SIDE)).astype(np.uint16)
        where: dict[str, Any] = {"crs": crs, "transform": place} if placed else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a file without a place is meant
            with rasterio.open(
                path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16", nodata=0, tiled=True,
                blockxsize=TILE, blockysize=TILE, compress="deflate", **where,
            ) as dataset:  # fmt: skip
                dataset.write(values, 1)
    grid = None if placed else SceneGrid(crs, tuple(place)[:6])  # type: ignore[arg-type]
    assets = {"red": Asset(str(path)), QA_PIXEL: Asset(str(path))}
    return Scene("S", datetime(2020, 1, 1, tzinfo=UTC), "landsat-8", 1.0, 1, 1, "POINT (0 0)", assets, grid)


def only(scene: Scene, band: str, boxes: list[tuple[int, int, int, int]], folder: Path) -> tuple[Scene, float]:
    """The scene with a file that has the tiles of these boxes only, and the share of tiles it has."""
    source = Path(scene.assets[band].href)
    layout = layout_of(source)
    tiles = {k for box in boxes for k in layout.tiles_of(box)}
    with_tiles(folder / "some.tif", source, tiles)
    local = replace(scene, assets={band: replace(scene.assets[band], href=str(folder / "some.tif"))})
    return local, len(tiles) / len(layout.offsets)


def on_grid(scene: Scene, band: str, grid: RunGrid, window: Window) -> np.ndarray:
    with BandOnGrid(scene, band, readable_window(grid)) as file:
        return file.read(window)


def grid_of(name: str) -> RunGrid:
    lon, lat, _, crs, resolution = CASES[name]
    return run_grid(lon, lat, crs, resolution)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("band", ["red", QA_PIXEL])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(-0.05, 1.0), st.floats(-0.05, 1.0), st.integers(1, 512), st.integers(1, 512), st.sampled_from([0, 10]))
@example(0.19, 0.19, 1, 1, 0)
@example(0.185, 0.185, 3, 512, 0)
@example(0.79, 0.79, 60, 60, 0)
@example(0.19, 0.79, 40, 40, 10)
def test_a_window_of_the_grid_reads_no_tile_that_was_not_foreseen(
    folder: Path, name: str, band: str, down: float, right: float, height: int, width: int, shift: int
) -> None:
    scene, grid = write_scene(folder, name, shift=shift), grid_of(name)
    window = Window(MARGIN + int(right * grid.width), MARGIN + int(down * grid.height), width, height)
    with BandOnGrid(scene, band, readable_window(grid)) as file:
        boxes = file.source_boxes([window])
    local, _ = only(scene, band, boxes, folder)
    np.testing.assert_array_equal(on_grid(local, band, grid, window), on_grid(scene, band, grid, window))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("placed", [True, False])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.integers(1, 700))
@example(0.2, 0.2, 8)
@example(0.8, 0.2, 30)
@example(0.875, 0.46875, 278)
def test_a_picture_reads_no_tile_that_was_not_foreseen(
    folder: Path, name: str, placed: bool, down: float, right: float, side: int
) -> None:
    from shapely import box

    scene, grid = write_scene(folder, name, placed), grid_of(name)
    x, y = grid.x0 + right * grid.width * grid.resolution, grid.y0 - down * grid.height * grid.resolution
    event = box(x, y - side * grid.resolution, x + side * grid.resolution / 2, y)
    square = chips._square(grid, event.bounds)
    assume(square[2] < 4000)
    boxes = chips.picture_boxes(scene, "red", {square}, grid)
    local, _ = only(scene, "red", boxes, folder)
    plan = type("HasGrid", (), {"grid": grid})()
    frame = chips._frame(plan, event)
    for pixels in (chips.SIDE, chips._COARSE):
        for kind in ("red", QA_PIXEL):
            whole = replace(scene, assets={kind: scene.assets[kind]})
            some = replace(local, assets={kind: local.assets["red"]})
            np.testing.assert_array_equal(
                chips._read(some, kind, frame, pixels), chips._read(whole, kind, frame, pixels)
            )


def test_boxes_are_tight_enough_to_be_worth_while(folder: Path) -> None:
    """In another zone a window of 100 pixels costs its hull, turned a little, and a cell around it."""
    grid = grid_of("next zone, south")
    scene = write_scene(folder, "next zone, south")
    window = Window(MARGIN + 400, MARGIN + 400, 100, 100)
    with BandOnGrid(scene, "red", readable_window(grid)) as file:
        (found,) = file.source_boxes([window])
    assert found[2] - found[0] <= 100 + 2 * CELL + 8
    assert found[3] - found[1] <= 100 + 2 * CELL + 8
