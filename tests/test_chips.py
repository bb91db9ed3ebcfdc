"""Pictures before and after the loss: on drawn ground whose colours a reader can compute, and on real scenes."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from datetime import date

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from catalog_samples import EVER, WORLD
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_samples import (
    CLEAR,
    CLOUD,
    CRS,
    LEFT,
    TOP,
    YEARS,
    assert_same_results,
    cut,
    layer,
    run,
    write_bundle,
    write_config,
)

from pipeline import chips as drawing
from pipeline.catalog.bundles import BundleFolder
from pipeline.chips import SIDE, chip_ids, chips_record, draw_chips
from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.grid import RunGrid, reproject
from pipeline.lattice import PatchLayout
from pipeline.pictures import ChipPair, Picture
from pipeline.plan import Plan, PlannedBlock, read_plan

SHAPE = (200, 200)
EVENT = (90, 80, 20, 16)
"""Row, column, height and width of the one event, in pixels."""
FOREST = {"blue": 0.02, "green": 0.04, "red": 0.03, "nir08": 0.30, "swir16": 0.15, "swir22": 0.07}
BARE = {"blue": 0.08, "green": 0.11, "red": 0.15, "nir08": 0.25, "swir16": 0.30, "swir22": 0.25}
BANDS = tuple(FOREST)
GRID = RunGrid(CRS, 30, LEFT, TOP, *SHAPE, 128)


def product(year, month=7, sensor="LC08"):
    return f"{sensor}_L2SP_231062_{year}{month:02d}15_{year}{month:02d}24_02_T1"


def draw(folder, name, bare, cloud=None, qa=True):
    """Write a scene of forest, with bare ground on the event if `bare`, and QA_PIXEL cloud in the slices `cloud`."""
    row, col, height, width = EVENT
    dn = np.empty((6, *SHAPE), np.uint16)
    for layer_, band in zip(dn, BANDS, strict=True):
        layer_[:] = round((FOREST[band] + 0.2) / 0.0000275)
        if bare:
            layer_[row : row + height, col : col + width] = round((BARE[band] + 0.2) / 0.0000275)
    quality = np.full(SHAPE, CLEAR, np.uint16)
    if cloud:
        quality[cloud] = CLOUD
    write_bundle(folder / name, name, dn, quality)
    if not qa:
        (folder / name / f"{name}_QA_PIXEL.TIF").unlink()
    return name


def event(row=EVENT[0], col=EVENT[1], height=EVENT[2], width=EVENT[3], year=2021, name="e"):
    shape = shapely.box(LEFT + 30 * col, TOP - 30 * (row + height), LEFT + 30 * (col + width), TOP - 30 * row)
    table = {"event_id": [name], "loss_year": [year], "driver": ["other"], "area_ha": [1.0], "confidence": [0.5]}
    return gpd.GeoDataFrame(table, geometry=[shapely.MultiPolygon([shape])], crs=CRS).to_crs("EPSG:4326")


def plan_of(folder, before=(), after=(), year=2021, bands=BANDS):
    found = {s.id: s for s in BundleFolder(folder).search(WORLD, *EVER)}
    block = next(GRID.blocks())
    return Plan(
        inputs="", region="r", years=(year,), aoi="", grid=GRID, layout=PatchLayout("grid", 64, 48), model="",
        bands=bands, event_count=1, event_ha=1, below_count=0, below_ha=0, loss="",
        scenes={name: found[name] for name in after}, refused=(), warnings=(),
        blocks=(PlannedBlock(block, {year: tuple(after)}, 1, 1, 1),),
        before={year: tuple(before)}, before_scenes={name: found[name] for name in before},
    )  # fmt: skip


def pixels(picture):
    image = Image.open(io.BytesIO(picture.jpeg))
    assert (image.format, image.size, (picture.width, picture.height)) == ("JPEG", (SIDE, SIDE), (SIDE, SIDE))
    return np.asarray(image.convert("RGB")).astype(int)


def shown(colours):
    """What a reader computes: reflectance over the limit of its band, to the power 1 / 1.5, of 255."""
    return [255 * (colours[b] / top) ** (1 / 1.5) for b, top in (("red", 0.20), ("green", 0.18), ("blue", 0.16))]


@pytest.fixture
def two(tmp_path):
    return tmp_path, draw(tmp_path, product(2019), bare=False), draw(tmp_path, product(2022), bare=True)


# ------------------------------------------------------------------------------------------- what is shown


def test_forest_before_and_bare_ground_after(two):
    folder, early, late = two
    (pair,) = draw_chips(plan_of(folder, [early], [late]), event(), ["e"])
    assert (pair.event_id, pair.note) == ("e", "")
    assert (pair.before.scene_id, pair.before.day) == (early, date(2019, 7, 15))
    assert (pair.after.scene_id, pair.after.day) == (late, date(2022, 7, 15))
    # the picture shows 64 pixels around the event's middle (row 100, column 88): 4.5 to one of the grid
    inside = (slice(144 - 27, 144 + 27), slice(144 - 18, 144 + 18))
    corner = (slice(4, 60), slice(4, 60))
    for picture, colours in ((pair.before, FOREST), (pair.after, BARE)):
        np.testing.assert_allclose(np.median(pixels(picture)[inside], axis=(0, 1)), shown(colours), atol=4)
        np.testing.assert_allclose(np.median(pixels(picture)[corner], axis=(0, 1)), shown(FOREST), atol=4)


def test_the_outline_is_drawn_around_the_event_on_both(two):
    folder, early, late = two
    (pair,) = draw_chips(plan_of(folder, [early], [late]), event(), ["e"])
    for picture in (pair.before, pair.after):
        seen = pixels(picture)
        bright = seen[..., :2].min(axis=-1) - seen[..., 2] > 70  # yellow: neither forest nor soil is
        rows, cols = np.nonzero(bright)
        # 20 x 16 pixels of the grid are 90 x 72 of the picture; the line runs 1.5 outside of them
        assert (rows.min(), rows.max()) == (pytest.approx(144 - 46.5, abs=2), pytest.approx(144 + 46.5, abs=2))
        assert (cols.min(), cols.max()) == (pytest.approx(144 - 37.5, abs=2), pytest.approx(144 + 37.5, abs=2))
        for lines in (bright[144, 90:120], bright[144, 170:200], bright[90:110, 144], bright[180:200, 144]):
            assert lines.any()
        assert not bright[110:178, 120:168].any()


def test_equal_plans_give_equal_bytes_in_the_order_asked_for(two):
    folder, early, late = two
    plan = plan_of(folder, [early], [late])
    events = pd.concat([event(name="a"), event(row=10, name="b"), event(col=150, name="c")], ignore_index=True)
    first = draw_chips(plan, events, ["c", "a"])
    assert [pair.event_id for pair in first] == ["c", "a"]
    assert draw_chips(plan, events.sample(frac=1, random_state=1), ["a", "c"]) == first[::-1]
    assert draw_chips(plan, events.to_crs("EPSG:3857"), ["a"])[0].after.jpeg == first[1].after.jpeg
    with pytest.raises(InputError, match="event z: not among the 3 events"):
        draw_chips(plan, events, ["a", "z"])


def test_other_bands_and_one_band_alone_can_be_shown(two):
    folder, early, late = two
    false = draw_chips(plan_of(folder, [early], [late], bands=("red", "nir08", "swir16")), event(), ["e"])[0].after
    expected = [255 * (BARE[b] / top) ** (1 / 1.5) for b, top in (("swir16", 0.45), ("nir08", 0.5), ("red", 0.2))]
    np.testing.assert_allclose(pixels(false)[144, 144], expected, atol=5)
    grey = draw_chips(plan_of(folder, [early], [late], bands=("nir08",)), event(), ["e"])[0].after
    np.testing.assert_allclose(pixels(grey)[144, 144], [255 * 0.5 ** (1 / 1.5)] * 3, atol=3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 190), st.integers(0, 190), st.integers(1, 900), st.integers(1, 900))
def test_an_event_of_any_size_lies_within_its_picture(row, col, height, width):
    shape = event(row, col, height, width).to_crs(CRS).geometry[0]
    frame = drawing._frame(plan_of_nothing(), shape)
    side = frame.extent / 30
    assert side == pytest.approx(round(side), abs=1e-9)  # whole pixels of the grid
    assert 64 <= side <= max(512, 1.2 * max(height, width) + 1)
    west, north, east, south = frame.outline.bounds
    assert min(west, north) > 0
    assert max(east, south) < SIDE
    assert (east - west) == pytest.approx(width * SIDE / side, rel=1e-6)
    assert frame.event.any()
    assert abs((west + east) / 2 - SIDE / 2) <= SIDE / side
    assert abs((north + south) / 2 - SIDE / 2) <= SIDE / side


def plan_of_nothing():
    return dataclasses.replace(
        Plan("", "r", (), "", GRID, PatchLayout("grid", 64, 48), "", BANDS, 0, 0, 0, 0, "", {}, (), (), ())
    )


# ------------------------------------------------------------------------------------------- which scene


def after_of(folder, names, **asked):
    (pair,) = draw_chips(plan_of(folder, [], names, **asked), event(), ["e"])
    return pair.after.scene_id if pair.after else None


def test_the_clearest_scene_is_shown(tmp_path):
    clouded = draw(tmp_path, product(2022), True, cloud=np.s_[70:140, 60:120])
    edge = draw(tmp_path, product(2023), True, cloud=np.s_[70:90, 60:120])
    clear = draw(tmp_path, product(2024), True)
    assert after_of(tmp_path, [clouded, edge, clear]) == clear
    assert after_of(tmp_path, [clouded, edge]) == edge
    assert after_of(tmp_path, [clouded]) is None


def test_of_clear_scenes_the_first_after_the_loss_year_and_those_of_that_year_last(tmp_path):
    names = [draw(tmp_path, product(*when), True) for when in ((2021, 2), (2021, 11), (2022, 3), (2023, 3))]
    assert after_of(tmp_path, names) == names[2]
    assert after_of(tmp_path, names[:2]) == names[1]  # forest may still stand in February of the loss year
    assert after_of(tmp_path, names[3:] + names[:1]) == names[3]


def test_only_scenes_that_the_model_saw_there_are_shown_after_the_loss(two):
    folder, early, late = two
    plan = plan_of(folder, [early], [late])
    (pair,) = draw_chips(plan, event(row=180, height=10), ["e"])  # under a block that has no loss planned
    assert pair.after is None
    assert pair.before.scene_id == early
    assert pair.note == "no clear image after the loss is at hand"


def test_a_scene_without_quality_band_is_masked_by_fill_only(tmp_path):
    name = draw(tmp_path, product(2022), True, qa=False)
    assert after_of(tmp_path, [name]) == name


# ------------------------------------------------------------------------------------------- what cannot be shown


def test_no_scene_before_the_loss_is_said(two):
    folder, _, late = two
    (pair,) = draw_chips(plan_of(folder, [], [late]), event(), ["e"])
    assert pair.before is None
    assert pair.after is not None
    assert pair.note == "no clear image before the loss is at hand"


@pytest.mark.parametrize("band", ["SR_B4", "QA_PIXEL"])
@pytest.mark.parametrize("harm", [lambda path: path.unlink(), cut, lambda path: path.write_text("no TIFF")])
def test_an_unreadable_scene_gives_its_place_to_another_or_is_named(band, harm, two):
    folder, early, late = two
    other = draw(folder, product(2018), False)
    plan = plan_of(folder, [early, other], [late])
    harm(folder / early / f"{early}_{band}.TIF")
    (pair,) = draw_chips(plan, event(), ["e"])
    assert pair.before.scene_id == other
    (pair,) = draw_chips(plan_of(folder, [], [late]), event(), ["e"])
    lone = dataclasses.replace(plan, before={2021: (early,)})
    (pair,) = draw_chips(lone, event(), ["e"])
    assert pair.before is None
    assert pair.after is not None
    assert f"scene {early} cannot be read" in pair.note


# ------------------------------------------------------------------------------------------- which events


def table(*rows):
    names = ["event_id", "driver", "area_ha", "confidence"]
    return gpd.GeoDataFrame(pd.DataFrame(rows, columns=names), geometry=[shapely.Point(0, 0)] * len(rows), crs=CRS)


def test_the_largest_then_the_least_certain_of_the_others():
    events = table(
        ("a", "x", 9, 0.9), ("b", "x", 1, 0.45), ("c", "x", 8, 0.1), ("d", "x", 2, 0.4), ("e", "x", 2, 0.4),
        ("f", None, 99, None), ("g", "x", 1, 0.8),
    )  # fmt: skip
    assert chip_ids(events, 4) == ["a", "c", "d", "e"]
    assert chip_ids(events, 3) == ["a", "c", "d"]
    assert chip_ids(events, 99) == ["a", "c", "d", "e", "b", "g"]
    assert chip_ids(events, 0) == []
    assert chip_ids(events.iloc[:0], 24) == []
    assert chip_ids(events.sample(frac=1, random_state=3), 4) == chip_ids(events, 4)


def test_the_record_counts_pictures_and_names_their_scenes():
    picture = Picture(b"", SIDE, SIDE, date(2020, 1, 1), "one")
    pairs = [ChipPair("a", picture, None), ChipPair("b", picture, dataclasses.replace(picture, scene_id="two"))]
    assert chips_record(pairs) == {"events": 2, "before": 2, "after": 1, "scenes": ["one", "two"]}
    assert chips_record([]) == {"events": 0, "before": 0, "after": 0, "scenes": []}


# ------------------------------------------------------------------------------------------- in a run


@pytest.fixture
def longer(world, tmp_path):
    """The drawn world with a scene of 2019 more."""
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    dn = np.full((6, *world.drawn.shape), 8500, np.uint16)
    write_bundle(scenes / product(2019), product(2019), dn, np.full(world.drawn.shape, CLEAR, np.uint16))
    return dataclasses.replace(world, scenes=scenes), product(2019)


def test_scenes_before_the_loss_are_in_pictures_and_nowhere_else(longer, tiny_model, tmp_path):
    world, early = longer
    with_before = write_config(tmp_path / "with", world, tiny_model, grid__block=256, output__chips=4)
    without = write_config(tmp_path / "without", world, tiny_model, grid__block=256, imagery__before_years=0)
    products = [run(config).product for config in (with_before, without)]
    assert_same_results(*products, layers=("events", "patches", "units", "summary"))
    rows = [layer(product, "scenes").set_index("scene_id") for product in products]
    assert not rows[0].loc[early, "used"]
    assert rows[0].loc[early, "reason"] == "picture before the loss only"
    assert "outside the days" in rows[1].loc[early, "reason"]
    said = [json.loads((product / "run.json").read_text())["pictures"] for product in products]
    assert (said[0]["events"], said[0]["before"]) == (4, 4)
    assert early in said[0]["scenes"]
    assert (said[1]["events"], said[1]["before"]) == (24, 0)
    plan = read_plan(load_config(with_before).work)
    assert plan.before == {year: (early,) for year in YEARS if year - 3 <= 2019}
    assert early not in plan.scenes
    assert run(with_before).status == "current"


def test_a_lost_scene_before_the_loss_is_listed_and_stops_nothing(longer, tiny_model, tmp_path):
    from pipeline import steps
    from pipeline.fetching import fetch_scenes
    from pipeline.request import Request

    world, early = longer
    config = write_config(tmp_path / "with", world, tiny_model, grid__block=256, output__chips=2)
    plan = steps.plan_run(Request(load_config(config)))
    (world.scenes / early / f"{early}_SR_B4.TIF").unlink()
    thinner = fetch_scenes(Request(load_config(config)), plan)
    assert thinner.scenes == plan.scenes
    assert thinner.before_scenes == {}
    (refusal,) = [r for r in thinner.refused if r.scene_id == early]
    assert refusal.reason.startswith("picture before the loss only: red file")
    assert "missing" in refusal.reason


# ------------------------------------------------------------------------------------------- real scenes


@pytest.mark.real
def test_the_mud_of_brumadinho_is_there_after_and_not_before(shared_data, tmp_path):
    """Both dates are of the loss year, so the first is called earlier here; its pixels are the real ones."""
    folder = shared_data / "landsat8-c2l2-brumadinho-pair"
    found = sorted((s for s in BundleFolder(folder).search(WORLD, *EVER) if hasattr(s, "assets")), key=lambda s: s.id)
    early = dataclasses.replace(found[0], datetime=found[0].datetime.replace(year=2018))
    mud = shapely.box(592_335, -2_226_795, 592_485, -2_226_645)  # 5 x 5 pixels in the valley that it filled
    west, north = mud.bounds[0], mud.bounds[3]
    grid = RunGrid("EPSG:32623", 30, west - 3000, north + 3000, 300, 300, 300)
    plan = dataclasses.replace(
        plan_of_nothing(), grid=grid, before={2019: (early.id,)}, before_scenes={early.id: early},
        scenes={found[1].id: found[1]}, blocks=(PlannedBlock(next(grid.blocks()), {2019: (found[1].id,)}, 1, 1, 1),),
    )  # fmt: skip
    events = gpd.GeoDataFrame({"event_id": ["mud"], "loss_year": [2019]}, geometry=[mud], crs="EPSG:32623")
    (pair,) = draw_chips(plan, events, ["mud"])
    assert pair.note == ""
    inside = (slice(137, 152), slice(137, 152))
    before, after = (np.median(pixels(p)[inside], axis=(0, 1)) for p in (pair.before, pair.after))
    assert after[0] > after[1] + 20, "mud is red-brown"
    assert before[1] > before[0], "vegetation is green"


@pytest.mark.real
def test_files_without_georeference_show_what_georeferenced_ones_show(shared_data):
    folder = shared_data / "landsat9-c2l2-manaus"
    pictures = []
    for kind in ("georeferenced", "as-shipped-no-crs"):
        (scene,) = [s for s in BundleFolder(folder / kind).search(WORLD, *EVER) if hasattr(s, "assets")]
        middle = reproject(shapely.from_wkt(scene.footprint).centroid, "EPSG:4326", "EPSG:32621")
        x, y = round(middle.x / 30) * 30 + 15, round(middle.y / 30) * 30 + 15
        grid = RunGrid("EPSG:32621", 30, x - 3000, y + 3000, 200, 200, 200)
        plan = dataclasses.replace(
            plan_of_nothing(), grid=grid, scenes={scene.id: scene},
            blocks=(PlannedBlock(next(grid.blocks()), {2021: (scene.id,)}, 1, 1, 1),),
        )  # fmt: skip
        box = shapely.box(x - 300, y - 300, x + 300, y + 300)
        events = gpd.GeoDataFrame({"event_id": ["e"], "loss_year": [2021]}, geometry=[box], crs="EPSG:32621")
        pictures.append(draw_chips(plan, events, ["e"])[0].after)
    assert pictures[0].jpeg == pictures[1].jpeg
    assert pixels(pictures[0]).std() > 10
