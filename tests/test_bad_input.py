"""Bad input: exit code 2, one readable line that names the file or key, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import shapely
from run_samples import (
    LEFT,
    PRODUCTS,
    ROOT,
    TOP,
    layer,
    program,
    run,
    tiny_package,
    write_config,
    write_geojson,
    write_raster,
)

from pipeline.config import load_config
from pipeline.product.inspect import inspect_product


@pytest.fixture
def config(world, tiny_model, tmp_path):
    return write_config(tmp_path, world, tiny_model)


@pytest.fixture
def refused(cli, config, tmp_path):
    """Call `run` with overrides: it must end with 2, one line that holds every given text, and no product."""

    def call(*options, says=(), path=config):
        flags = [part for option in options for part in ("-o", option)]
        ended = cli("run", path, "--no-prefect", *flags)
        assert ended.code == 2, ended
        for text in says:
            assert str(text) in ended.error
        assert len(ended.error) < 600
        assert ended.out == ""
        assert not (tmp_path / "product").exists()
        return ended.error

    return call


# ------------------------------------------------------------------------------------------- configuration


def test_no_such_configuration(refused, tmp_path):
    refused(path=tmp_path / "nowhere.yaml", says=["nowhere.yaml", "no such file"])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("imagery.max_clouds=3", ["unknown key imagery.max_clouds", "did you mean 'max_cloud'"]),
        ("tiling.patches=3", ["unknown key tiling.patches", "did you mean 'patch'"]),
        ("colour=3", ["unknown key colour"]),
        ("imagery.window.frist_year=3", ["unknown key imagery.window.frist_year", "did you mean 'first_year'"]),
        ("tiling.patch=100", ["tiling.patch", "multiple of 32"]),
        ("tiling.overlap=60", ["overlap 60", "half the patch"]),
        ("loss.years=[]", ["loss.years"]),
        ("region.name=../etc", ["region.name"]),
        ("compute.executor=cloud", ["compute.executor", "tcp://host:8786"]),
        ("compute.workers=0", ["compute.workers"]),
        ("grid.crs=EPSG:999999", ["grid.crs", "EPSG:999999"]),
        ("grid.crs=EPSG:4326", ["EPSG:4326", "degrees"]),
        ("imagery.source=nowhere", ["imagery.source", "nowhere"]),
        ("no-equals-sign", ["no-equals-sign", "KEY=VALUE"]),
    ],
)
def test_bad_keys_and_values(key, says, refused):
    refused(key, says=says)


def test_missing_section_and_no_yaml(refused, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("region: {name: a, aoi: [0, 0, 1, 1]}\n")
    refused(path=bad, says=["bad.yaml", "missing"])
    bad.write_text("region: [unclosed\n")
    refused(path=bad, says=["bad.yaml", "not YAML"])


def test_unknown_block(cli, config, tmp_path):
    ended = cli("run", config, "--no-prefect", "--blocks", "r0000c0000,r9999c0000")
    assert ended.code == 2
    assert "r9999c0000" in ended.error
    assert not (tmp_path / "product").exists()


# ------------------------------------------------------------------------------------------- region


def region(refused, tmp_path, geometry, says):
    path = write_geojson(tmp_path / "region.geojson", [geometry] if geometry else [])
    return refused(f"region.aoi={path}", says=says)


def test_empty_region(refused, tmp_path):
    region(refused, tmp_path, None, ["region.aoi", "region.geojson"])
    region(refused, tmp_path, shapely.Polygon(), ["region.aoi", "region.geojson", "no polygon"])


def test_region_of_points(refused, tmp_path):
    region(refused, tmp_path, shapely.Point(-61, -3), ["region.geojson", "needs polygons"])


def test_bow_tie(refused, tmp_path):
    bow_tie = shapely.Polygon([(-61.5, -3.2), (-61.4, -3.1), (-61.5, -3.1), (-61.4, -3.2)])
    region(refused, tmp_path, bow_tie, ["region.geojson", "invalid polygon"])


def test_region_across_the_antimeridian(refused, tmp_path):
    refused("region.aoi=[170, -10, -170, 10]", says=["region.aoi", "antimeridian"])
    both = shapely.MultiPolygon([shapely.box(170, -10, 180, 10), shapely.box(-180, -10, -170, 10)])
    region(refused, tmp_path, both, ["antimeridian"])


@pytest.mark.parametrize("bounds", [[0, 5, 1, 4], [-200, 0, 1, 1], [1, 1, 1, 2]])
def test_region_that_is_no_box(bounds, refused):
    refused(f"region.aoi={bounds}", says=["region.aoi", "[west, south, east, north]"])


def test_region_file_that_is_missing_or_no_vector_file(refused, tmp_path):
    refused(f"region.aoi={tmp_path}/none.gpkg", says=["region.aoi", "none.gpkg", "no such file"])
    (tmp_path / "bad.gpkg").write_bytes(b"this is no GeoPackage")
    refused(f"region.aoi={tmp_path}/bad.gpkg", says=["region.aoi", "bad.gpkg"])


# ------------------------------------------------------------------------------------------- loss


def test_loss_without_crs(refused, world, tmp_path):
    write_raster(tmp_path / "bare.tif", world.drawn, crs=None)
    refused(f"loss.source={tmp_path}/bare.tif", says=["loss.source", "bare.tif", "no CRS"])


def test_loss_elsewhere(refused, world, tmp_path):
    shift = rasterio.transform.Affine(30, 0, LEFT + 90_000, 0, -30, TOP)
    write_raster(tmp_path / "far.tif", world.drawn, transform=shift)
    refused(f"loss.source={tmp_path}/far.tif", says=["loss.source", "far.tif", "does not overlap"])


def test_years_outside_the_raster(refused, world):
    refused("loss.years=[2022, 2024]", says=["loss.years", world.loss, "2022"])
    refused("loss.years=[1999]", says=["loss.years", "2001"])


def test_hansen_name_bounds_the_years(refused, world, tmp_path):
    write_raster(tmp_path / "Hansen_GFC-2021-v1.9_lossyear_00N_070W.tif", np.minimum(world.drawn, 21))
    refused(
        f"loss.source={tmp_path}/Hansen_GFC-2021-v1.9_lossyear_00N_070W.tif", "loss.years=[2022]",
        says=["loss.years", "2021"],
    )  # fmt: skip


def test_truncated_loss(refused, world, tmp_path):
    content = world.loss.read_bytes()
    for share in (0.02, 0.5):
        (tmp_path / "cut.tif").write_bytes(content[: int(len(content) * share)])
        refused(f"loss.source={tmp_path}/cut.tif", says=["loss.source", "cut.tif"])


def test_loss_of_another_kind(refused, world, tmp_path):
    write_raster(tmp_path / "float.tif", world.drawn.astype("float32"))
    refused(f"loss.source={tmp_path}/float.tif", says=["loss.source", "float.tif", "integers"])
    (tmp_path / "text.tif").write_text("no raster")
    refused(f"loss.source={tmp_path}/text.tif", says=["loss.source", "text.tif"])
    refused(f"loss.source={tmp_path}/none.tif", says=["loss.source", "none.tif", "no such file"])


def test_loss_polygons_without_a_year_or_elsewhere(refused, world, tmp_path):
    here = shapely.box(*load_polygon(world.aoi).bounds)
    bare = write_geojson(tmp_path / "bare.geojson", [here])
    refused(f"loss.source={bare}", says=["loss.source", "bare.geojson", "year column"])
    far = write_geojson(tmp_path / "far.geojson", [shapely.box(10, 10, 11, 11)], loss_year=[2021])
    refused(f"loss.source={far}", says=["loss.source", "far.geojson", "does not overlap"])
    old = write_geojson(tmp_path / "old.geojson", [here], loss_year=[2003])
    refused(f"loss.source={old}", says=["loss.years", "old.geojson", "2003"])


def load_polygon(path):
    return shapely.from_geojson(json.dumps(json.loads(path.read_text())["features"][0]["geometry"]))


# ------------------------------------------------------------------------------------------- model


def test_unknown_model_folder(refused, tmp_path):
    refused(f"model={tmp_path}/none", says=["model", "none", "model.json"])


def test_altered_weights(refused, tiny_model, tmp_path):
    altered = tmp_path / "altered"
    shutil.copytree(tiny_model, altered)
    content = bytearray((altered / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (altered / "model.safetensors").write_bytes(content)
    refused(f"model={altered}", says=["altered", "sha256"])


def test_damaged_card(refused, tiny_model, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    card = json.loads((damaged / "model.json").read_text())
    (damaged / "model.json").write_text(json.dumps({**card, "surprise": 1}))
    refused(f"model={damaged}", says=["damaged", "surprise"])
    (damaged / "model.json").write_text("{")
    refused(f"model={damaged}", says=["damaged", "model.json"])


def test_model_that_wants_a_band_no_scene_has(refused, tmp_path):
    model = tiny_package(tmp_path / "coastal", bands=("coastal", "blue", "red"))
    refused(f"model={model}", says=["sample", "coastal"])


def test_patch_of_another_size_than_the_models(refused):
    refused("tiling.patch=96", says=["tiling.patch", "64"])


# ------------------------------------------------------------------------------------------- imagery


def test_scene_without_a_band_is_set_aside_with_its_reason(world, tiny_model, tmp_path):
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    (scenes / PRODUCTS[0] / f"{PRODUCTS[0]}_SR_B5.TIF").unlink()
    (scenes / PRODUCTS[1] / f"{PRODUCTS[1]}_QA_PIXEL.TIF").unlink()
    outcome = run(write_config(tmp_path, world, tiny_model, imagery__source=str(scenes)))
    table = layer(outcome.product, "scenes").set_index("scene_id")
    assert table["used"].to_dict() == {PRODUCTS[0]: False, PRODUCTS[1]: True}
    assert "nir08" in table.loc[PRODUCTS[0], "reason"]
    assert "no QA_PIXEL" in table.loc[PRODUCTS[1], "reason"]
    assert any("no QA_PIXEL" in text for text in json.loads((outcome.product / "run.json").read_text())["warnings"])
    assert inspect_product(outcome.product).sound


def test_no_scene_has_the_band(refused, world, tmp_path):
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    for path in scenes.rglob("*_SR_B5.TIF"):
        path.unlink()
    refused(f"imagery.source={scenes}", says=["nir08"])


def test_folder_without_bundles(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(f"imagery.source={tmp_path}/empty", says=["imagery.source", "no Landsat bundle"])


# ------------------------------------------------------------------------------------------- output


def test_foreign_files_in_the_output_folder(cli, config, tmp_path):
    (tmp_path / "product").mkdir()
    (tmp_path / "product" / "thesis.odt").write_text("years of work")
    ended = cli("run", config, "--no-prefect")
    assert ended.code == 2
    assert "output.dir" in ended.error
    assert str(tmp_path / "product") in ended.error
    assert [p.name for p in (tmp_path / "product").iterdir()] == ["thesis.odt"]


def test_output_below_a_file_or_on_one(refused, cli, config, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "product", tmp_path / "file"):
        ended = cli("run", config, "--no-prefect", "--out", out)
        assert ended.code == 2
        assert "output.dir" in ended.error
        assert str(tmp_path / "file") in ended.error
    assert (tmp_path / "file").read_text() == ""


def test_output_in_use_by_another_process(cli, config, tmp_path):
    work = load_config(config).work
    work.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
         "lock.acquire(); print('held', flush=True); sys.stdin.read()", str(work / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        ended = cli("run", config, "--no-prefect")
        assert ended.code == 2
        assert "in use by another run" in ended.error
        assert not (tmp_path / "product").exists()
    finally:
        holder.communicate(timeout=30)
    assert cli("run", config, "--no-prefect").code == 0


# ------------------------------------------------------------------------------------------- as a process


def test_in_a_process_of_its_own(config, tmp_path):
    """The line on stderr is really the only one: no warning, no traceback, no GDAL chatter."""
    (tmp_path / "cut.tif").write_bytes(b"II*\0 and then nothing")
    ended = program("run", config, "--no-prefect", "-o", f"loss.source={tmp_path}/cut.tif")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "cut.tif" in ended.error
    assert not (tmp_path / "product").exists()
    assert ROOT.as_posix() not in ended.err


def test_wrong_command_line_in_a_process_of_its_own():
    ended = program("run", "config.yaml", "--blcks", "a")
    assert ended.code == 2
    assert "--blcks" in ended.err
    assert "Traceback" not in ended.err
