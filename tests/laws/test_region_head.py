"""Late fusion keeps the laws: the same drivers however a run is cut, and what is missing stays missing."""

from __future__ import annotations

import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import torch
from pandas.testing import assert_series_equal
from rasterio.transform import Affine
from run_samples import (
    CLEAR,
    CRS,
    LEFT,
    TOP,
    assert_same_results,
    checkpoints,
    draw_world,
    layer,
    program,
    run,
    write_config,
    write_raster,
)
from shapely import LineString

from pipeline.models.card import AuxiliaryColumn, RegionParams
from pipeline.models.region import RegionHead, attach_region
from pipeline.product.inspect import inspect_product, render_text

PARAMS = RegionParams(
    auxiliary=(
        AuxiliaryColumn(name="slope", mean=3, std=2, measure="slope"),
        AuxiliaryColumn(name="road_km", mean=1, std=1, measure="distance"),
        AuxiliaryColumn(name="rain", mean=2000, std=300, measure="mean"),
    ),
    hidden=16,
)


def with_head(model, folder, seed=0, params=PARAMS):
    """A copy of a package with a region head; seed None leaves it untrained."""
    package = shutil.copytree(model, folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        head = RegionHead(params, 4)
        for weight in head.parameters() if seed is not None else ():
            torch.nn.init.normal_(weight, 0, 0.25)
    attach_region(package, head)
    return package


@pytest.fixture(scope="module")
def fused_model(tiny_model, tmp_path_factory):
    return with_head(tiny_model, tmp_path_factory.mktemp("model") / "fused")


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """The configuration's list: a hilly elevation model, a road, and rain that is known in the west only."""
    folder = tmp_path_factory.mktemp("predictors")
    rows, cols = np.indices((160, 160))
    write_raster(folder / "dem.tif", (20 * np.sin(rows / 9) + 0.5 * cols).astype(np.float32))
    rain = np.full((4, 2), 1700, np.float32) + 100 * np.arange(4, dtype=np.float32)[:, None]
    write_raster(folder / "rain.tif", rain, transform=Affine(1080, 0, LEFT, 0, -1080, TOP), tiled=False)
    road = LineString([(LEFT - 500, TOP - 200), (LEFT + 3000, TOP - 4000)])
    gpd.GeoDataFrame({"n": [1]}, geometry=[road], crs=CRS).to_file(folder / "road.gpkg", engine="pyogrio")
    return [
        {"name": "slope", "path": str(folder / "dem.tif"), "measure": "slope"},
        {"name": "road_km", "path": str(folder / "road.gpkg"), "measure": "distance"},
        {"name": "rain", "path": str(folder / "rain.tif"), "measure": "mean"},
    ]


@pytest.fixture(scope="module")
def fused(world, fused_model, predictors, tmp_path_factory):
    """The product with late fusion, computed as one block."""
    config = write_config(tmp_path_factory.mktemp("fused"), world, fused_model, grid__block=256, auxiliary=predictors)
    return run(config).product


def test_the_fused_product_is_sound_and_says_something_else(fused, reference):
    report = inspect_product(fused)
    assert report.sound, render_text(report)
    ours, plain = layer(fused, "events"), layer(reference, "events")
    assert ours["driver"].nunique() > 1
    assert (ours["driver"] != plain["driver"]).sum() > 3
    assert ours["p_other"].isna().equals(plain["p_other"].isna()), "fusion makes no driver where nothing was seen"
    record = json.loads((fused / "run.json").read_text())
    assert record["model"]["region_sha256"]
    sources = {source["columns"][0]: source for source in record["inputs"]["auxiliary"]}
    assert sources["rain"]["file"] == "rain.tif"
    assert len(sources["rain"]["sha256"]) == 64


def test_missing_predictors_are_missing_in_the_product_and_no_reason_to_give_up(fused):
    events = layer(fused, "events")
    # 72 of 144 columns have rain
    east = events["lon"] > events["lon"].median()
    missing = events["aux_rain"].isna()
    assert 10 < missing.sum() < len(events) - 10
    assert missing[east].sum() > missing[~east].sum()
    assert (events.loc[~missing, "aux_rain"] >= 1700).all(), "nothing turned into zero"
    assert events.loc[missing & (events["clear_share"] > 0), "driver"].notna().all()
    assert events[["aux_slope", "aux_road_km"]].notna().all(axis=None)
    said = json.loads((fused / "run.json").read_text())["warnings"]
    assert f"auxiliary rain: missing for {missing.sum()} of {len(events)} events" in said


@pytest.mark.parametrize(("block", "workers"), [(40, 2)])
def test_blocks_and_workers_change_nothing(block, workers, world, fused, fused_model, predictors, tmp_path):
    changes = {"grid__block": block, "compute__workers": workers, "auxiliary": predictors}
    assert_same_results(run(write_config(tmp_path, world, fused_model, **changes)).product, fused)


@pytest.mark.slow
def test_processes_change_nothing(world, fused, fused_model, predictors, tmp_path):
    changes = {"compute__executor": "local", "compute__workers": 2, "auxiliary": predictors}
    config = write_config(tmp_path, world, fused_model, **changes)
    ended = program("run", config, "--no-prefect")
    assert ended.code == 0, ended.err
    assert_same_results(tmp_path / "product", fused)


def test_an_event_on_the_corner_of_four_blocks(fused_model, predictors, tmp_path):
    loss = np.zeros((128, 128), np.uint8)
    # blocks are whole cells of 48 pixels
    loss[40:67, 43:55] = 21
    world = draw_world(tmp_path / "world", loss, np.full((2, *loss.shape), CLEAR, np.uint16))
    cut, whole = (
        run(
            write_config(tmp_path / str(b), world, fused_model, grid__block=b, loss__years=[2021], auxiliary=predictors)
        )
        for b in (48, 256)
    )
    assert (cut.counts["blocks"], whole.counts["blocks"]) == (4, 1)
    assert_same_results(cut.product, whole.product)
    assert len(layer(cut.product, "events")) == 1


def test_an_untrained_head_changes_no_driver(world, tiny_model, predictors, reference, tmp_path):
    model = with_head(tiny_model, tmp_path / "model", seed=None)
    product = run(write_config(tmp_path, world, model, auxiliary=predictors)).product
    ours, plain = layer(product, "events"), layer(reference, "events")
    for column in (c for c in plain.columns if c != "geometry"):
        assert_series_equal(ours[column], plain[column], check_exact=True)
    assert_same_results(product, reference, ("patches", "units", "scenes", "summary"))


def test_a_head_without_predictors_asks_for_none(world, tiny_model, reference, tmp_path):
    model = with_head(tiny_model, tmp_path / "model", params=RegionParams(hidden=8))
    events = layer(run(write_config(tmp_path, world, model)).product, "events")
    assert list(events.columns) == list(layer(reference, "events").columns)
    assert not events["confidence"].equals(layer(reference, "events")["confidence"])


def test_another_region_head_decides_anew_over_the_same_blocks(world, tiny_model, fused, predictors, tmp_path):
    model = with_head(tiny_model, tmp_path / "model", seed=7)
    config = write_config(tmp_path, world, model, auxiliary=predictors)
    first = layer(run(config).product, "events")
    before = [(path.name, path.stat().st_mtime_ns) for path in checkpoints(config)]
    shutil.rmtree(model)
    with_head(tiny_model, model)
    outcome = run(config)
    assert outcome.status == "published"
    assert [(path.name, path.stat().st_mtime_ns) for path in checkpoints(config)] == before
    assert not layer(outcome.product, "events")["confidence"].equals(first["confidence"])
    assert_same_results(outcome.product, fused)
    assert run(config).status == "current"


@pytest.mark.slow
def test_a_changed_predictor_decides_anew(world, fused_model, predictors, fused, tmp_path):
    rain = shutil.copy(predictors[2]["path"], tmp_path / "rain.tif")
    mine = [*predictors[:2], {**predictors[2], "path": str(rain)}]
    config = write_config(tmp_path, world, fused_model, auxiliary=mine)
    assert_same_results(run(config).product, fused)
    write_raster(
        tmp_path / "rain.tif",
        np.full((4, 4), 900, np.float32),
        transform=Affine(1080, 0, LEFT, 0, -1080, TOP),
        tiled=False,
    )
    outcome = run(config)
    assert outcome.status == "published"
    events = layer(outcome.product, "events")
    assert (events["aux_rain"] == 900).all()
    assert not events["confidence"].equals(layer(fused, "events")["confidence"])


def test_what_cannot_work_is_said_before_anything_is_done(world, fused_model, tiny_model, predictors, tmp_path, cli):
    def failing(model, auxiliary):
        config = write_config(tmp_path, world, model, auxiliary=auxiliary)
        ended = cli("run", config, "--no-prefect")
        assert ended.code == 2
        assert not (tmp_path / "product.work" / "plan.json").exists()
        return ended.error

    assert (
        "wants 'rain', which the configuration does not give; add {name: rain, path: FILE, measure: mean}"
        in failing(fused_model, predictors[:2])
    )
    leak = shutil.copy(world.loss, tmp_path / "harmless.tif")
    assert "read the answer" in failing(
        fused_model, [*predictors, {"name": "gain", "path": str(leak), "measure": "mean"}]
    )
    (tmp_path / "harmless.tif").unlink()
    (tmp_path / "harmless.tif").hardlink_to(world.loss)
    assert "is also loss.source" in failing(
        fused_model, [*predictors, {"name": "x", "path": str(tmp_path / "harmless.tif"), "measure": "mean"}]
    )
    assert "given twice" in failing(fused_model, [*predictors, predictors[0]])
    assert "did you mean 'measure'" in failing(fused_model, [{**predictors[0], "measures": "mean"}])
    damaged = shutil.copytree(fused_model, tmp_path / "damaged")
    (damaged / "region.safetensors").write_bytes(b"x")
    assert "region.safetensors: sha256 is" in failing(damaged, predictors)
    assert "no such file" in failing(tiny_model, [{**predictors[0], "path": str(tmp_path / "none.tif")}])


@pytest.mark.slow
def test_predictors_that_the_model_does_not_use_are_columns_and_a_warning(
    world, tiny_model, predictors, reference, tmp_path
):
    outcome = run(write_config(tmp_path, world, tiny_model, auxiliary=predictors[:1]))
    events, plain = layer(outcome.product, "events"), layer(reference, "events")
    assert events["aux_slope"].notna().all()
    assert events["confidence"].equals(plain["confidence"])
    assert (
        "auxiliary slope: model sample does not use it"
        in json.loads((outcome.product / "run.json").read_text())["warnings"]
    )
