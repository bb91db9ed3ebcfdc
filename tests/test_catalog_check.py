from __future__ import annotations

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import rasterio
from catalog_samples import write_tiff
from rasterio.errors import NotGeoreferencedWarning

from pipeline.catalog.check import check_scene, open_header, wrs_key
from pipeline.catalog.scene import Asset, Scene, SceneGrid


def scene_of(grid=None, **hrefs):
    assets = {band: Asset(str(href)) for band, href in hrefs.items()}
    return Scene("s", datetime(2020, 1, 1, tzinfo=UTC), "landsat-8", 1.0, 231, 62, "POINT EMPTY", assets, grid)


def reason(scene, *bands):
    found = check_scene(scene, bands)
    assert found is not None
    assert "\n" not in found
    return found


def test_a_sound_scene_serves_and_qa_pixel_may_be_missing(tmp_path):
    red, nir = write_tiff(tmp_path / "a.tif"), write_tiff(tmp_path / "b.tif", tiled=True, blockxsize=16, blockysize=16)
    assert check_scene(scene_of(red=red, nir08=nir), ("red", "nir08")) is None


def test_each_missing_band_is_named(tmp_path):
    red = write_tiff(tmp_path / "a.tif")
    assert reason(scene_of(red=red), "red", "swir16", "swir22").startswith("no swir16, swir22 band; it has red")


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"compress": "deflate"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "lzw", "blockysize": 1},
    ],
)
@pytest.mark.parametrize("band", ["red", "qa_pixel"])
def test_a_file_cut_off_anywhere_in_its_pixels_is_truncated(tmp_path, profile, band):
    whole = write_tiff(tmp_path / "whole.tif", shape=(100, 100), **profile)
    cut = shutil.copy(whole, tmp_path / "cut.tif")
    # GDAL writes the directory before the pixels: cut the last byte, which is a pixel's
    with open(cut, "r+b") as file:
        file.truncate(whole.stat().st_size - 1)
    scene = scene_of(**{"red": whole, "nir08": whole, band: cut})
    assert reason(scene, "red", "nir08").startswith(f"{band} file cut.tif: truncated")
    assert check_scene(scene_of(red=whole), ("red",)) is None


def test_what_is_no_tiff_is_unreadable(tmp_path):
    vrt = tmp_path / "vrt.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="1" rasterYSize="1"><SRS>EPSG:32620</SRS><VRTRasterBand dataType="UInt16" band="1">'
        "<SimpleSource><SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    html = tmp_path / "html.tif"
    html.write_text("<html>login</html>")
    header = write_tiff(tmp_path / "header.tif")
    header.write_bytes(header.read_bytes()[:6])
    empty = tmp_path / "empty.tif"
    empty.touch()
    for path in (vrt, html, header, empty):
        assert "unreadable: not a TIFF" in reason(scene_of(red=path), "red")
    assert reason(scene_of(red=tmp_path / "no.tif"), "red") == "red file no.tif: missing"
    assert "missing" in reason(scene_of(red=f"{tmp_path}/{'x' * 5000}"), "red")
    assert "missing" in reason(scene_of(red=tmp_path), "red")


def test_a_file_needs_a_place_on_earth(tmp_path):
    bare, placed = write_tiff(tmp_path / "bare.tif", crs=None), write_tiff(tmp_path / "placed.tif")
    assert "no CRS" in reason(scene_of(red=bare), "red")
    grid = SceneGrid("EPSG:32620", (30.0, 0.0, 672285.0, 0.0, -30.0, -344685.0))
    assert check_scene(scene_of(grid, red=bare), ("red",)) is None
    assert check_scene(scene_of(grid, red=bare, nir08=placed), ("red", "nir08")) is None
    moved = replace(grid, transform=(30.0, 0.0, 672315.0, 0.0, -30.0, -344685.0))
    assert "different grids" in reason(scene_of(moved, red=bare, nir08=placed), "red", "nir08")


@pytest.mark.parametrize("other", [{"shape": (20, 31)}, {"crs": "EPSG:32621"}, {"cell": 60.0}, {"centre": (0.0, 0.0)}])
def test_bands_on_different_grids_are_refused_qa_pixel_too(tmp_path, other):
    red, odd = write_tiff(tmp_path / "a.tif"), write_tiff(tmp_path / "b.tif", **other)
    assert reason(scene_of(red=red, nir08=odd), "red", "nir08").startswith("red and nir08 lie on different grids")
    assert reason(scene_of(red=red, qa_pixel=odd), "red").startswith("red and qa_pixel lie on different grids")
    assert check_scene(scene_of(red=red, nir08=odd), ("red",)) is None


def test_of_remote_files_only_the_bands_are_checked():
    scene = scene_of(red="https://example.org/a.tif", nir08="s3://bucket/b.tif")
    assert check_scene(scene, ("red", "nir08")) is None
    assert reason(scene, "blue").startswith("no blue band")


def test_wrs_key_is_path_and_row_or_nothing():
    scene = scene_of()
    assert wrs_key(scene) == "231/62"
    assert wrs_key(replace(scene, row=None)) == ""


def test_threads_open_files_without_a_place_and_nobody_is_warned(tmp_path):
    """Filters of warnings belong to the process; the tests' own make an error of every warning."""
    path, filters = tmp_path / "nowhere.tif", list(warnings.filters)
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        rasterio.open(path, "w", driver="GTiff", width=1, height=1, count=1, dtype="uint8").close()

    def look(_: int) -> int:
        with open_header(path) as header:
            return header.count

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(look, range(400))) == {1}
    assert list(warnings.filters) == filters
