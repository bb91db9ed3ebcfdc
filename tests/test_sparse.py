"""Files with some tiles of an archive's TIFF: those at hand read as there, the others are errors, never "no data"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.errors import RasterioError
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from pipeline.catalog.check import check_scene
from pipeline.catalog.sparse import Layout, SparseWriter, Unfit, local_layout, read_layout

SHAPE, TILE = (210, 300), 64
PLACE = {"crs": "EPSG:32748", "transform": from_origin(500_010, 9_900_015, 30, 30)}


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7000, 9000, SHAPE).astype(np.uint16)


def write(path: Path, **profile: Any) -> Path:
    size = {"width": SHAPE[1], "height": SHAPE[0], "count": 1, "dtype": "uint16", "nodata": 0}
    tiles = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", **{**size, **PLACE, **tiles, **profile}) as dataset:
        for band in range(1, dataset.count + 1):
            dataset.write(values(band - 1), band)
    return path


def reading(path: Path) -> tuple[Callable[[int, int], bytes], int]:
    content = path.read_bytes()
    return lambda first, end: content[first:end], len(content)


def layout_of(path: Path) -> Layout:
    return read_layout(*reading(path))


def with_tiles(path: Path, source: Path, tiles: set[int]) -> Layout:
    layout, content = layout_of(source), source.read_bytes()
    with SparseWriter(path, layout) as writer:
        for k in sorted(tiles, reverse=True):
            writer.add(k, content[layout.offsets[k] : layout.offsets[k] + layout.sizes[k]])
    return layout


PROFILES = {
    "deflate": {},
    "predictor": {"predictor": 2},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "none": {"compress": "none"},
    "bigtiff": {"BIGTIFF": "YES"},
    "big endian": {"ENDIANNESS": "BIG", "predictor": 2},
    "big endian bigtiff": {"ENDIANNESS": "BIG", "BIGTIFF": "YES"},
}


@pytest.mark.parametrize("name", PROFILES)
def test_tiles_at_hand_read_as_in_the_archive_and_the_others_are_errors(tmp_path: Path, name: str) -> None:
    source, sparse = write(tmp_path / "a.tif", **PROFILES[name]), tmp_path / "sparse.tif"
    have = {0, 3, 7, 12, 19}
    layout = with_tiles(sparse, source, have)
    assert len(layout.offsets) == 4 * 5
    with rasterio.open(source) as whole, rasterio.open(sparse) as some:
        assert (some.crs, some.transform, some.shape) == (whole.crs, whole.transform, whole.shape)
        assert (some.nodata, some.dtypes) == (whole.nodata, whole.dtypes)
        for _, window in whole.block_windows(1):
            tile = int(window.row_off // TILE * 5 + window.col_off // TILE)
            if tile in have:
                np.testing.assert_array_equal(some.read(1, window=window), whole.read(1, window=window))
            else:
                with pytest.raises(RasterioError):
                    some.read(1, window=window)
    assert set(local_layout(sparse).tags) == set(layout.tags)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_no_way_of_reading_takes_an_absent_tile_for_no_data(tmp_path: Path, threads: str) -> None:
    source, sparse = write(tmp_path / "a.tif"), tmp_path / "sparse.tif"
    with_tiles(sparse, source, {0, 1, 5, 6})
    hows: list[dict[str, Any]] = [
        {}, {"out_shape": (20, 30)}, {"masked": True}, {"window": Window(TILE, TILE, TILE + 1, 5)},
    ]  # fmt: skip
    with rasterio.Env(GDAL_NUM_THREADS=threads):
        for how in hows:
            with rasterio.open(sparse) as some:
                some.read(1, window=Window(0, 0, 2 * TILE, 2 * TILE))
                # with several threads GDAL itself keeps what it failed to read, hence one thread in `imagery`
                for _ in range(2 if threads == "1" else 1):
                    with pytest.raises(RasterioError):
                        some.read(1, **how)
        with rasterio.open(sparse) as some, pytest.raises(RasterioError):
            some.dataset_mask()
        for crs in ("EPSG:32748", "EPSG:32749", "EPSG:6933"):
            with (
                rasterio.open(sparse) as some,
                WarpedVRT(some, crs=crs, src_nodata=0, nodata=0) as warped,
                pytest.raises(RasterioError),
            ):
                warped.read(1)


def test_tiles_that_the_archive_has_not_stay_no_data(tmp_path: Path) -> None:
    source, sparse = tmp_path / "a.tif", tmp_path / "sparse.tif"
    size = {"width": 300, "height": 210, "count": 1, "dtype": "uint16", "blockxsize": TILE, "blockysize": TILE}
    with rasterio.open(source, "w", driver="GTiff", sparse_ok=True, tiled=True, nodata=3, **size, **PLACE) as dataset:
        dataset.write(np.full((TILE, TILE), 9, np.uint16), 1, window=Window(TILE, 0, TILE, TILE))
    with_tiles(sparse, source, set())
    with rasterio.open(sparse) as some:
        assert (some.read(1, window=Window(0, 0, TILE, TILE)) == 3).all()
        with pytest.raises(RasterioError):
            some.read(1, window=Window(TILE, 0, TILE, TILE))


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ({"tiled": False, "blockysize": 16}, "strips"),
        ({"count": 2}, "several bands"),
        ({"compress": "packbits"}, "compression"),
    ],
)
def test_other_files_are_not_understood(tmp_path: Path, profile: dict[str, Any], why: str) -> None:
    with pytest.raises(Unfit, match=why):
        layout_of(write(tmp_path / "a.tif", **profile))


@pytest.mark.parametrize("content", [b"", b"II", b"<html>a page that is no picture</html>", b"II*\0" + b"\xff" * 60])
def test_what_is_no_tiff_is_refused(content: bytes) -> None:
    with pytest.raises((Unfit, ValueError)):
        read_layout(lambda first, end: content[first:end], len(content))


RAW = st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01", b"\x10"])


@pytest.mark.parametrize("big", ["YES", "NO"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 900), RAW), min_size=1, max_size=4))
def test_a_damaged_header_ends_in_a_refusal_or_a_layout_inside_the_file(
    tmp_path: Path, big: str, damage: list[tuple[int, bytes]]
) -> None:
    path = tmp_path / "fuzz.tif"
    if not path.exists():
        write(path, BIGTIFF=big)
    content = bytearray(path.read_bytes())
    for at, raw in damage:
        content[at : at + len(raw)] = raw
    asked = 0

    def read(first: int, end: int) -> bytes:
        nonlocal asked
        asked += end - first
        return bytes(content[first:end])

    try:
        layout = read_layout(read, len(content))
        with SparseWriter(tmp_path / "out.tif", layout):
            pass
        assert layout.tiles_of((0, 0, 1 << 30, 1 << 30)) == set(range(len(layout.offsets)))
    except (Unfit, ValueError):
        pass
    assert asked <= 2 * len(content) + 1000


def test_the_check_of_a_scene_takes_a_file_of_windows_and_notices_one_that_is_cut_off(tmp_path: Path) -> None:
    from test_catalog_fetch import scene_at

    source, sparse = write(tmp_path / "a.tif"), tmp_path / "sparse.tif"
    for tiles in (set[int](), {0, 7}, set(range(20))):
        with_tiles(sparse, source, tiles)
        assert check_scene(scene_at(str(sparse)), ("red",)) is None
    sparse.write_bytes(sparse.read_bytes()[:-20])
    assert "truncated" in str(check_scene(scene_at(str(sparse)), ("red",)))


@given(st.integers(-50, 400), st.integers(-50, 400), st.integers(0, 400), st.integers(0, 400))
def test_boxes_lie_in_the_tiles_that_hold_their_pixels(row: int, col: int, height: int, width: int) -> None:
    layout = Layout("<", {}, SHAPE, (TILE, TILE), 0, "none", (), ())
    inside = {
        r // TILE * 5 + c // TILE
        for r in range(max(row, 0), min(row + height, SHAPE[0]))
        for c in range(max(col, 0), min(col + width, SHAPE[1]))
    }
    assert layout.tiles_of((row, col, row + height, col + width)) == inside
