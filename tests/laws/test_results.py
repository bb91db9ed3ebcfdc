"""What must not matter: blocks, workers, order of scenes. What must hold: pixels, events, no data."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from run_samples import (
    CLEAR,
    CLOUD,
    FILL,
    LEFT,
    PRODUCTS,
    ROOT,
    TOP,
    assert_same_results,
    blobs,
    draw_world,
    layer,
    raster,
    run,
    textures,
    write_bundle,
    write_config,
)
from shapely import box

from pipeline import blocks
from pipeline.config import load_config
from pipeline.grid import reproject
from pipeline.plan import groups_of_years
from pipeline.product.inspect import inspect_product, render_text

CRS = "EPSG:32620"


def counted(product, loss):
    """Clear pixels and all pixels of a product's events, on the grid of `loss`."""
    events = layer(product, "events")
    clear = np.rint(events["clear_share"] * events["pixels"]).astype(int)
    assert raster(product).shape == loss.shape
    return clear.sum(), events["pixels"].sum()


def test_the_reference_product_is_sound_and_says_something(world, reference):
    report = inspect_product(reference)
    assert report.sound, render_text(report)
    events = layer(reference, "events")
    assert len(events) > 30
    assert set(events["status"]) >= {"no_imagery", "classified", "uncertain"}
    assert events["driver"].nunique() > 1, "a model that always says the same notices no seam"
    assert events["confidence"].nunique() > 0.8 * events["confidence"].notna().sum()


@pytest.mark.parametrize("block", [40, 100, 2048])
def test_block_size_changes_nothing(block, world, reference, tiny_model, tmp_path):
    product = run(write_config(tmp_path, world, tiny_model, grid__block=block)).product
    assert_same_results(product, reference)


def test_loss_years_that_see_the_same_scenes_share_patches_and_nothing_changes(
    world, reference, tiny_model, tmp_path, monkeypatch
):
    patches = {}
    for name, dated in (("shared", lambda scenes: ()), ("apart", lambda scenes: scenes)):
        monkeypatch.setattr(
            blocks, "groups_of_years", lambda scenes, _, dated=dated: groups_of_years(scenes, dated(scenes))
        )
        product = run(write_config(tmp_path / name, world, tiny_model)).product
        assert_same_results(product, reference)
        record = json.loads((product / "run.json").read_text())
        patches[name] = record["timings"]["patches"]
    # the plan knows, less the patches on which no image shows any loss
    assert patches["shared"] <= record["counts"]["patches"] < patches["apart"]


@pytest.mark.parametrize("workers", [2])
def test_number_of_workers_changes_nothing(workers, world, reference, tiny_model, tmp_path):
    product = run(write_config(tmp_path, world, tiny_model, grid__block=64, compute__workers=workers)).product
    assert_same_results(product, reference)


def test_order_of_scenes_changes_nothing(world, reference, tiny_model, tmp_path, monkeypatch):
    from pipeline.catalog import open as opening

    class Reversed:
        def __init__(self, catalog):
            self.catalog = catalog

        def search(self, aoi, first, last):
            return reversed(list(self.catalog.search(aoi, first, last)))

    plainly = opening.open_catalog
    monkeypatch.setattr(opening, "open_catalog", lambda *arguments: Reversed(plainly(*arguments)))
    assert_same_results(run(write_config(tmp_path, world, tiny_model)).product, reference)


def test_names_of_scene_folders_change_nothing(world, reference, tiny_model, tmp_path):
    for k, product in enumerate(sorted(PRODUCTS, reverse=True)):
        shutil.copytree(world.scenes / product, tmp_path / "renamed" / f"{k}-some-folder")
    config = write_config(tmp_path, world, tiny_model, imagery__source=str(tmp_path / "renamed"))
    assert_same_results(run(config).product, reference)


def test_events_mode_runs_and_does_not_depend_on_blocks_either(world, reference, tiny_model, tmp_path):
    products = [
        run(write_config(tmp_path / str(b), world, tiny_model, tiling__mode="events", grid__block=b)).product
        for b in (64, 256)
    ]
    assert_same_results(*products)
    assert inspect_product(products[0]).sound
    centred, lattice = layer(products[0], "events"), layer(reference, "events")
    assert list(centred["event_id"]) == list(lattice["event_id"])
    assert (centred["pixels"] == lattice["pixels"]).all()
    assert not np.array_equal(centred["confidence"], lattice["confidence"], equal_nan=True)


def test_choice_of_scenes_does_not_depend_on_blocks(tiny_model, tmp_path):
    # the clearest scene lies beside the loss: whether it takes the one place of its path/row must not depend on blocks
    shape = (64, 400)
    loss = np.zeros(shape, np.uint8)
    loss[20:30, 10:20] = 22
    world = draw_world(tmp_path / "world", loss, np.full((2, *shape), CLEAR, np.uint16))
    aside = "LC08_L2SP_231062_20220715_20220724_02_T1"
    shutil.rmtree(world.scenes / PRODUCTS[1])
    dn = textures(9, (64, 60))
    folder = write_bundle(world.scenes / aside, aside, dn, np.full((64, 60), CLEAR, np.uint16), col0=340)
    metadata = folder / f"{aside}_MTL.txt"
    metadata.write_text(metadata.read_text().replace('"12.50"', '"0.10"'))
    products = [
        run(write_config(tmp_path / str(b), world, tiny_model, grid__block=b, imagery__max_scenes=1)).product
        for b in (64, 2048)
    ]
    assert_same_results(*products)


def test_every_loss_pixel_is_a_class_or_has_no_imagery(world, reference):
    """The mask of the map is known to the pixel: loss that at least one date saw clear."""
    drivers, confidence = raster(reference), raster(reference, "confidence")
    lost, seen = world.drawn > 0, world.clear.any(axis=0)
    assert (lost & ~seen).sum() > 50
    np.testing.assert_array_equal(drivers != 255, lost & seen)
    np.testing.assert_array_equal(confidence != 255, lost & seen)
    assert set(np.unique(drivers)) <= {1, 2, 3, 4, 255}
    clear, pixels = counted(reference, world.drawn)
    assert pixels == lost.sum()
    assert clear == (drivers != 255).sum()
    assert clear + (lost & ~seen).sum() == pixels


def test_clear_share_and_images_of_each_event_are_those_of_its_pixels(world, reference):
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    events = layer(reference, "events")
    shapes = zip(events.to_crs(CRS).geometry, range(1, len(events) + 1), strict=True)
    owner = rasterize(shapes, world.drawn.shape, transform=Affine(30, 0, LEFT, 0, -30, TOP), dtype="int32")
    for k, event in enumerate(events.itertuples(), 1):
        inside = owner == k
        assert inside.sum() == event.pixels
        assert event.clear_share == pytest.approx(world.clear[:, inside].any(axis=0).mean(), abs=1e-6)
        assert event.image_count == world.clear[:, inside].any(axis=1).sum()
        assert (event.status == "no_imagery") == (event.image_count == 0)


def test_numbers_under_clouds_and_fill_change_nothing(world, reference, tiny_model, tmp_path):
    import rasterio

    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    rng = np.random.default_rng(1)
    for k, product in enumerate(PRODUCTS):
        for path in (scenes / product).glob("*_SR_B*.TIF"):
            with rasterio.open(path, "r+") as file:
                dn = file.read(1)
                hidden = ~world.clear[k]
                dn[hidden] = rng.integers(0, 65535, hidden.sum(), dtype=np.uint16)
                file.write(dn, 1)
    product = run(write_config(tmp_path, world, tiny_model, imagery__source=str(scenes))).product
    assert_same_results(product, reference)


def test_no_clear_observation_anywhere_is_no_class_anywhere(tiny_model, tmp_path):
    loss = blobs(4, (100, 100))
    world = draw_world(tmp_path / "world", loss, np.stack([np.full(loss.shape, k, np.uint16) for k in (CLOUD, FILL)]))
    product = run(write_config(tmp_path, world, tiny_model)).product
    assert (raster(product) == 255).all()
    assert (raster(product, "confidence") == 255).all()
    events = layer(product, "events")
    assert set(events["status"]) == {"no_imagery"}
    assert events["driver"].isna().all()
    assert (events["clear_share"] == 0).all()
    assert len(layer(product, "patches")) == 0
    assert not layer(product, "scenes")["used"].any()
    assert inspect_product(product).sound


def test_a_region_without_loss_is_an_empty_sound_product(tiny_model, tmp_path):
    loss = np.zeros((80, 80), np.uint8)
    loss[0, 0] = 22  # outside the region: the raster does reach these years
    world = draw_world(tmp_path / "world", loss)
    inner = reproject(box(LEFT + 300, TOP - 2000, LEFT + 2000, TOP - 300), CRS, "EPSG:4326")
    config = write_config(tmp_path, world, tiny_model, region__aoi=list(inner.bounds))
    product = run(config).product
    assert len(layer(product, "events")) == 0
    assert (raster(product) == 255).all()
    report = inspect_product(product)
    assert report.sound, render_text(report)


def test_an_event_cut_by_block_corners_is_one_row(tiny_model, tmp_path):
    loss = np.zeros((192, 192), np.uint8)
    loss[90:102, 85:110] = 22  # over the corner of four blocks of 96
    world = draw_world(tmp_path / "world", loss, np.full((2, *loss.shape), CLEAR, np.uint16))
    product = run(write_config(tmp_path, world, tiny_model, grid__block=96)).product
    assert len(layer(product, "blocks")) == 4
    (event,) = layer(product, "events").itertuples()
    assert (event.pixels, event.geometry.geom_type, len(event.geometry.geoms)) == (300, "MultiPolygon", 1)
    assert event.area_ha == pytest.approx(27, rel=2e-3)  # 300 pixels of 0.09 ha, but for the scale of UTM
    assert (raster(product)[90:102, 85:110] != 255).all()


@pytest.mark.parametrize("corner", [(40, 40), (95, 95)], ids=["inside a block", "across four blocks"])
def test_diagonal_neighbours_are_one_event_and_other_years_another(corner, tiny_model, tmp_path):
    row, col = corner
    loss = np.zeros((192, 192), np.uint8)
    loss[row - 2 : row + 1, col - 2 : col + 1] = 21
    loss[row + 1 : row + 4, col + 1 : col + 4] = 21  # touches in one corner only
    loss[row + 1 : row + 4, col - 2 : col + 1] = 22  # shares edges with both, of another year
    world = draw_world(tmp_path / "world", loss, np.full((2, *loss.shape), CLEAR, np.uint16))
    events = layer(run(write_config(tmp_path, world, tiny_model, grid__block=96)).product, "events")
    assert list(zip(events["loss_year"], events["pixels"], strict=True)) == [(2021, 18), (2022, 9)]
    assert [len(g.geoms) for g in events.geometry] == [2, 1]
    assert events.geometry.is_valid.all()


def test_warped_scenes_and_loss_keep_the_law(tiny_model, tmp_path):
    """The run's grid is neither that of the loss nor that of the scenes, and blocks still do not matter."""
    loss = blobs(6, (150, 150))
    world = draw_world(tmp_path / "world", loss)
    products = [
        run(write_config(tmp_path / str(b), world, tiny_model, grid__block=b, grid__crs="EPSG:32621")).product
        for b in (64, 2048)
    ]
    assert_same_results(*products)
    events = layer(products[0], "events")
    assert events["pixels"].sum() == pytest.approx((loss > 0).sum(), rel=0.02)
    clear = np.rint(events["clear_share"] * events["pixels"]).sum()
    assert (raster(products[0]) != 255).sum() == clear


def test_smallest_area_and_years_are_kept(world, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model, loss__min_area_ha=2.0, loss__years=[2022])
    outcome = run(config)
    events = layer(outcome.product, "events")
    assert set(events["loss_year"]) == {2022}
    assert events["area_ha"].min() >= 2.0
    assert outcome.counts["events_below_min_area"] > 0
    kept = events["area_ha"].sum() + outcome.counts.get("below_min_area_ha", 0)
    assert kept == pytest.approx((world.drawn == 22).sum() * 0.09, rel=2e-3)


def test_one_pixel_can_be_an_event(tiny_model, tmp_path):
    loss = np.zeros((96, 96), np.uint8)
    loss[50, 50] = 21
    world = draw_world(tmp_path / "world", loss, np.full((2, *loss.shape), CLEAR, np.uint16))
    config = write_config(tmp_path, world, tiny_model, loss__years=[2021])
    (event,) = layer(run(config).product, "events").itertuples()
    assert (event.pixels, event.clear_share) == (1, 1.0)


def test_configs_of_the_project_load():
    found = sorted((ROOT / "configs").glob("*.yaml"))
    assert {path.stem for path in found} >= {"demo", "brumadinho", "manaus", "colombia", "dominican"}
    for path in found:
        config = load_config(path)
        assert config.output.dir.parts[-2] in {"out", "demo"}
