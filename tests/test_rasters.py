from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.product.rasters import Band, confidence_band, drivers_band, statistics, write_categories, write_cog

SIDE = 1024


def raster(path: Path, pixels: np.ndarray) -> Path:
    profile = {"driver": "GTiff", "height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "dtype": "uint8"}
    place = {"nodata": NO_DATA, "crs": "EPSG:32748", "transform": from_origin(500_010, 9_900_015, 30, 30)}
    with rasterio.open(path, "w", **profile, **place) as dataset:
        dataset.write(pixels, 1)
    return path


@pytest.mark.parametrize(
    ("band", "cell", "wanted"),
    [
        (drivers_band(FOREST_LOSS_DRIVERS), [[1, 4], [4, NO_DATA]], 4),  # the commonest class, never the mean 3
        (drivers_band(FOREST_LOSS_DRIVERS), [[NO_DATA, NO_DATA], [NO_DATA, 2]], 2),
        (confidence_band(), [[40, 60], [NO_DATA, NO_DATA]], 50),
        (confidence_band(), [[90, 80], [70, 60]], 75),
        (confidence_band(), [[NO_DATA, NO_DATA], [NO_DATA, NO_DATA]], NO_DATA),
    ],
)
def test_overviews_are_modes_of_classes_and_means_of_confidences_of_known_pixels(
    tmp_path: Path, band: Band, cell: list[list[int]], wanted: int
) -> None:
    source = raster(tmp_path / "plain.tif", np.tile(np.array(cell, np.uint8), (SIDE // 2, SIDE // 2)))
    write_cog(source, tmp_path / "cog.tif", band)
    with rasterio.open(tmp_path / "cog.tif", overview_level=0) as dataset:
        assert dataset.shape == (SIDE // 2, SIDE // 2)
        assert set(np.unique(dataset.read(1))) == {wanted}


def test_statistics_are_those_of_the_known_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 101, (700, 500)).astype(np.uint8)
    pixels[:300] = NO_DATA
    source = raster(tmp_path / "plain.tif", pixels)
    found = {name.removeprefix("STATISTICS_"): float(value) for name, value in statistics(source).items()}
    known = pixels[300:].astype(float)
    assert (found["MINIMUM"], found["MAXIMUM"]) == (known.min(), known.max())
    assert found["MEAN"] == pytest.approx(known.mean(), rel=1e-5)
    assert found["STDDEV"] == pytest.approx(known.std(), rel=1e-5)
    assert found["VALID_PERCENT"] == pytest.approx(100 * 400 / 700, rel=1e-5)
    write_cog(source, tmp_path / "cog.tif", confidence_band())
    with rasterio.open(tmp_path / "cog.tif") as dataset:
        assert dataset.tags(1)["STATISTICS_MEAN"] == statistics(source)["STATISTICS_MEAN"]
        assert dataset.tags(1)["units"] == "percent"


def test_a_raster_without_a_known_pixel_has_no_statistics(tmp_path: Path) -> None:
    assert statistics(raster(tmp_path / "plain.tif", np.full((64, 64), NO_DATA, np.uint8))) == {}


def test_class_titles_stand_at_their_codes(tmp_path: Path) -> None:
    write_categories(tmp_path / "drivers.tif.aux.xml", FOREST_LOSS_DRIVERS)
    root = ElementTree.fromstring((tmp_path / "drivers.tif.aux.xml").read_bytes())
    names = [item.text for item in root.iter("Category")]
    assert {names[item.code] for item in FOREST_LOSS_DRIVERS} == {item.title for item in FOREST_LOSS_DRIVERS}
    assert names[0] is None
