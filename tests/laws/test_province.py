"""The laws on a simulated province: two path/rows in two UTM zones, clouds, Hansen loss in degrees, units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_samples import assert_same_results, layer, raster, tiny_package

from flows.runtime import open_pool
from pipeline.demo import province_config, write_province
from pipeline.graph import run_region
from pipeline.product.inspect import inspect_product, render_text
from pipeline.request import Request
from pipeline.simulate import ProvinceParams

pytestmark = pytest.mark.slow
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def province(tmp_path_factory):
    params = ProvinceParams(size=1100, seed=11, loss_years=(2020, 2021), dates=2, loss_share=0.01, cloud=0.2)
    return write_province(tmp_path_factory.mktemp("province"), params)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return tiny_package(tmp_path_factory.mktemp("model") / "tiny", size=128)


@pytest.fixture(scope="module")
def product_of(province, small_model, tmp_path_factory):
    """Run the province with some overrides; the same overrides are run once."""
    kept = {}

    def call(*overrides):
        if overrides not in kept:
            fixed = (f"model={small_model}", "tiling.patch=128", "tiling.overlap=32", "compute.executor=threads",
                     "compute.workers=1", "compute.engine=torch")  # fmt: skip
            config = province_config(DEMO, province, tmp_path_factory.mktemp("run") / "product", *fixed, *overrides)
            kept[overrides] = run_region(Request(config, pool=open_pool)).product
        return kept[overrides]

    return call


def test_the_product_is_sound_and_complete(product_of, province):
    product = product_of("grid.block=384")
    report = inspect_product(product)
    assert report.sound, render_text(report)
    events, blocks = layer(product, "events"), layer(product, "blocks")
    assert 4 < len(blocks) <= 9  # of nine blocks, those that hold loss
    assert len(events) > 40
    assert json.loads((product / "run.json").read_text())["complete"] is True
    true = json.loads(province.truth_table.read_text())["area_ha_by_driver"]
    below = json.loads((product / "run.json").read_text())["counts"]["below_min_area_ha"]
    assert events["area_ha"].sum() + below == pytest.approx(sum(true.values()), rel=0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        ("grid.block=1024",),
        ("grid.block=2048",),
        ("grid.block=384", "compute.workers=2"),
        ("grid.block=1024", "compute.executor=local", "compute.workers=2"),
    ],
    ids=["blocks of 1024", "one block", "two threads", "Dask"],
)
def test_how_a_run_is_cut_and_computed_changes_nothing(overrides, product_of):
    assert_same_results(product_of(*overrides), product_of("grid.block=384"))


def test_pixels_add_up(product_of):
    product = product_of("grid.block=384")
    events = layer(product, "events")
    clear = np.rint(events["clear_share"] * events["pixels"]).astype(int)
    assert (raster(product) != 255).sum() == clear.sum()
    assert clear.sum() + (events["pixels"] - clear).sum() == events["pixels"].sum()
    assert json.loads((product / "run.json").read_text())["counts"]["loss_pixels"] == events["pixels"].sum()


def test_patches_by_events_see_the_same_events(product_of):
    lattice, centred = product_of("grid.block=384"), product_of("grid.block=384", "tiling.mode=events")
    assert inspect_product(centred).sound
    one, other = layer(lattice, "events"), layer(centred, "events")
    for column in ("event_id", "pixels", "clear_share", "image_count", "unit_id"):
        assert one[column].equals(other[column]), column
    np.testing.assert_array_equal(raster(lattice) == 255, raster(centred) == 255)
