"""The demo, on a province that the shipped model has never seen. Everything in it is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.demo import compare, prepare_demo, province_config, true_classes, write_province
from pipeline.graph import run_region
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.product.inspect import inspect_product
from pipeline.request import Request
from pipeline.simulate import ProvinceParams

UNSEEN = 20261


def test_province_is_made_once_and_again_when_its_parameters_change(tmp_path: Path) -> None:
    params = ProvinceParams(size=200, seed=5, dates=1)
    first = write_province(tmp_path / "province", params)
    made = first.truth.stat().st_mtime_ns
    assert write_province(tmp_path / "province", params) == first
    assert first.truth.stat().st_mtime_ns == made
    write_province(tmp_path / "province", ProvinceParams(size=200, seed=6, dates=1))
    assert first.truth.stat().st_mtime_ns != made


def test_true_class_of_an_event_is_that_of_most_of_its_pixels(tmp_path: Path) -> None:
    import geopandas as gpd
    import rasterio
    import rasterio.features
    import shapely

    province = write_province(tmp_path / "province", ProvinceParams(size=300, seed=5, dates=1))
    with rasterio.open(province.truth) as raster:
        truth = raster.read(1)
        rows, cols = np.nonzero(truth != 255)
        k = len(rows) // 2
        x, y = raster.xy(rows[k], cols[k])
        pixel = shapely.box(x - 14, y - 14, x + 14, y + 14)
        lost = gpd.GeoDataFrame(geometry=[pixel, shapely.transform(pixel, lambda xy: xy - 1e6)], crs=raster.crs)
    classes = true_classes(lost, province)
    assert FOREST_LOSS_DRIVERS.codes[classes[0]] == truth[rows[k], cols[k]]
    assert classes[1] == -1, "an event outside the province has no truth"


@pytest.mark.slow
def test_demo_on_an_unseen_province_is_right_about_events_and_areas(tmp_path: Path, root: Path) -> None:
    config, province = prepare_demo(tmp_path / "demo", "small", UNSEEN)
    product = run_region(Request(config)).product
    assert inspect_product(product).sound
    result = compare(product, province)
    assert result.classified > 200
    assert result.right / result.classified >= 0.90
    for name, true in result.true_ha.items():
        assert result.predicted_ha[name] == pytest.approx(true, rel=0.10), name


@pytest.mark.slow
def test_patches_centred_on_events_agree_with_the_lattice_on_most_events(tmp_path: Path, root: Path) -> None:
    import geopandas as gpd

    province = write_province(tmp_path / "province", ProvinceParams(size=500, seed=UNSEEN, dates=3))
    drivers = []
    for mode in ("grid", "events"):
        config = province_config(root / "configs" / "demo.yaml", province, tmp_path / mode, f"tiling.mode={mode}")
        product = run_region(Request(config)).product
        drivers.append(gpd.read_file(product / "drivers.gpkg", layer="events").set_index("event_id")["driver"])
    assert drivers[0].index.equals(drivers[1].index)
    assert (drivers[0] == drivers[1]).mean() > 0.85
