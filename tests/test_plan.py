from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from pipeline.candidates import find_candidates
from pipeline.catalog.scene import Asset, Refusal, Scene, SceneGrid
from pipeline.config import Imagery, ImageWindow
from pipeline.grid import Block, RunGrid
from pipeline.lattice import PatchLayout, meeting
from pipeline.patches import draw_patches
from pipeline.plan import (
    FoundBlock,
    Plan,
    PlannedBlock,
    ask_catalog,
    assign_scenes,
    find_blocks,
    fingerprint,
    loss_areas,
    outline,
    plan_block,
    read_patches,
    read_plan,
    save_patches,
)
from pipeline.plan_scenes import with_chosen, without_scenes

GRID = RunGrid("EPSG:32647", 30, 720_015, 90_015, 200, 300, 64)
LAYOUT = PatchLayout("grid", 32, 16)
NO_BOUNDS = np.zeros((0, 4), np.int64)
HERE = outline(GRID, 0, 0, GRID.height, GRID.width)
LIMITS = Imagery(source="folder", window=ImageWindow(first_year=0, last_year=1), max_cloud=50, max_scenes=2)


def scene(name, year=2020, cloud=10.0, where=HERE, row=60, month=6):
    when = datetime(year, month, 1, 3, tzinfo=UTC)
    return Scene(name, when, "landsat-8", cloud, 127, row, shapely.to_wkt(where), {"red": Asset(f"/s/{name}.tif")})


def names(scenes):
    return [s.id for s in scenes]


# ---------------------------------------------------------------------------------------------- which scenes


def test_the_least_cloudy_scenes_of_a_path_and_row_are_candidates_four_for_each_that_may_be_taken():
    scenes = [scene(f"c{cloud:02d}", cloud=cloud) for cloud in range(1, 10)]
    found, refused = find_candidates([*reversed(scenes), scene("other row", cloud=40, row=61)], {2020: HERE}, LIMITS)
    assert names(found[2020]) == [*(f"c{cloud:02d}" for cloud in range(1, 9)), "other row"]
    assert [(r.scene_id, r.reason) for r in refused] == [
        ("c09", "not looked at: 8 less cloudy ones of its path/row are (4 x imagery.max_scenes)")
    ]


def test_every_scene_that_is_not_taken_has_its_reason():
    scenes = [
        scene("cloudy", cloud=51),
        scene("early", 2019),
        scene("late", 2022),
        scene("elsewhere", where=box(0, 0, 1, 1)),
        scene("taken", 2021),
    ]
    chosen, refused = find_candidates(scenes, {2020: HERE}, LIMITS)
    assert names(chosen[2020]) == ["taken"]
    reasons = {r.scene_id: r.reason for r in refused}
    assert sorted(reasons) == ["cloudy", "early", "elsewhere", "late"]
    assert "51 % is above imagery.max_cloud 50 %" in reasons["cloudy"]
    assert "wrong date: 2019-06-01" in reasons["early"]
    assert "wrong date: 2022-06-01" in reasons["late"]
    assert reasons["elsewhere"] == "outside the area around the loss"


def test_a_scene_of_unknown_cloud_comes_last_but_may_serve():
    others = [scene(name) for name in "abcdefgh"]
    chosen, _ = find_candidates([scene("unknown", cloud=None), *others], {2020: HERE}, LIMITS)
    assert names(chosen[2020]) == list("abcdefgh")
    chosen, _ = find_candidates([scene("unknown", cloud=None), scene("a")], {2020: HERE}, LIMITS)
    assert names(chosen[2020]) == ["a", "unknown"]


def test_each_loss_year_chooses_for_itself():
    scenes = [scene("2020"), scene("2021", 2021), scene("2022", 2022)]
    chosen, refused = find_candidates(scenes, {2020: HERE, 2021: HERE}, LIMITS)
    assert {year: sorted(names(group)) for year, group in chosen.items()} == {
        2020: ["2020", "2021"],
        2021: ["2021", "2022"],
    }
    assert refused == []


@settings(max_examples=50, deadline=None)
@given(st.permutations([scene(f"s{k}", 2020 + k % 2, [10.0, 10.0, None][k % 3], month=1 + k // 2) for k in range(9)]))
def test_the_order_of_the_catalog_does_not_matter(scenes):
    def answer(given):
        return find_candidates(given, {2020: HERE, 2021: HERE}, LIMITS.model_copy(update={"max_scenes": 1}))

    assert answer(scenes) == answer(sorted(scenes, key=lambda s: s.id))


def test_the_catalog_is_asked_once_for_all_image_years():
    asked = []

    class Folder:
        def search(self, aoi, first, last):
            asked.append((aoi, first, last))
            yield scene("a")
            yield Refusal("b", "no bands")

    found, refused = ask_catalog(Folder(), HERE, (2020, 2022), LIMITS)
    assert asked == [(HERE, date(2017, 1, 1), date(2023, 12, 31))]  # with the three years before the loss
    none = LIMITS.model_copy(update={"before_years": 0})
    ask_catalog(Folder(), HERE, (2020, 2022), none)
    assert asked[1:] == [(HERE, date(2020, 1, 1), date(2023, 12, 31))]
    assert (names(found), [r.scene_id for r in refused]) == (["a"], ["b"])


# ---------------------------------------------------------------------------------------------- which blocks


def labels_file(folder, labels):
    path = folder / "labels.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "int32", "crs": GRID.crs, "transform": GRID.geobox.affine}
    with rasterio.open(path, "w", height=GRID.height, width=GRID.width, **profile) as raster:
        raster.write(labels.astype(np.int32), 1)
    return path


def events_of(*years):
    return gpd.GeoDataFrame({"loss_year": list(years)}, geometry=[HERE] * len(years), crs="EPSG:4326")


def test_blocks_with_loss_and_what_they_hold(tmp_path):
    labels = np.zeros((GRID.height, GRID.width))
    labels[60:70, 10:12] = 1  # across blocks r0c0 and r1c0
    labels[5, 5] = 2
    labels[199, 299] = 3  # the corner that is cut at the grid's edge
    drawn = draw_patches(LAYOUT, GRID, NO_BOUNDS)
    blocks = find_blocks(events_of(2020, 2021, 2021), GRID, labels_file(tmp_path, labels), LAYOUT, drawn)
    found = {f.block.id: f for f in blocks}
    assert {key: (f.events, f.pixels, set(f.speaking)) for key, f in found.items()} == {
        "r0000c0000": (2, 9, {2020, 2021}),
        "r0001c0000": (1, 12, {2020}),
        "r0003c0004": (1, 1, {2021}),
    }
    assert (found["r0003c0004"].block.height, found["r0003c0004"].block.width) == (8, 44)
    assert found["r0003c0004"].speaking[2021].tolist() == [True]  # one cell holds the pixel


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(32, 16), (32, 20), (64, 64)]), st.sampled_from([40, 64, 300]))
def test_patches_are_counted_as_they_will_be_laid(tmp_path_factory, seed, sizes, block):
    rng = np.random.default_rng(seed)
    labels = (rng.random((GRID.height, GRID.width)) < 0.0005).astype(np.int32)
    layout, grid = PatchLayout("grid", *sizes), dataclasses.replace(GRID, block=block)
    folder = tmp_path_factory.mktemp("plan")
    drawn = draw_patches(layout, grid, NO_BOUNDS)
    found = find_blocks(events_of(2020), grid, labels_file(folder, labels), layout, drawn)
    save_patches(folder, found)
    assert sum(f.pixels for f in found) == labels.sum()
    for part in found:
        b = part.block
        # all pixels are one event, which lies in cells of other blocks too
        edge = 2 * layout.stride
        padded = np.pad(labels, edge)
        count = 0
        for row, col, _, top, left, bottom, right in meeting(drawn, layout.size, b).tolist():
            shown = np.zeros_like(padded, bool)
            shown[row + edge : row + edge + layout.size, col + edge : col + edge + layout.size] = True
            mine = padded[b.row0 + edge : b.row0 + edge + b.height, b.col0 + edge : b.col0 + edge + b.width]
            seen = shown[b.row0 + edge : b.row0 + edge + b.height, b.col0 + edge : b.col0 + edge + b.width]
            held = padded[top + edge : bottom + edge, left + edge : right + edge].any()
            count += bool(held and mine[seen].any())
        assert part.patches({2020: ()}, ()) == count
        own = PlannedBlock(dataclasses.replace(b, id=f"{b.id}+2"), {}, 1, 1, 1)
        assert np.array_equal(read_patches(folder, own), part.drawn)
        assert len(part.drawn) == count


def test_imagery_is_needed_where_a_patch_that_touches_the_loss_may_look():
    grid = dataclasses.replace(GRID, height=6000, width=6000)
    bounds = {"row0": [3000, 10, 0], "col0": [3000, 10, 0], "row1": [3010, 20, 0], "col1": [3500, 20, 0]}
    events = events_of(2020, 2021, 2022).assign(**bounds, pixels=[5000, 100, 0])
    areas = loss_areas(events, grid, LAYOUT)
    assert sorted(areas) == [2020, 2021]  # the event of 2022 has no pixel
    for year, window in ((2020, (2968, 2968, 74, 564)), (2021, (-22, -22, 74, 74))):
        assert areas[year].buffer(1e-6).contains(outline(grid, *window))
    assert not areas[2021].intersects(areas[2020])
    # which scenes are chosen must not depend on how the run is cut
    for block in (64, 1024):
        assert loss_areas(events, dataclasses.replace(grid, block=block), LAYOUT) == areas


def test_a_block_reads_the_scenes_that_meet_it_or_its_margin():
    block = Block("b", 64, 64, 64, 64)
    inside, margin = outline(GRID, 80, 80, 4, 4), outline(GRID, 60, 60, 2, 2)
    far = box(101.5, 0, 101.6, 0.1)
    chosen = {2020: [scene("z", where=inside), scene("margin", where=margin), scene("far", where=far)], 2021: []}
    assert assign_scenes(block, (2020, 2021), chosen, GRID, LAYOUT) == {2020: ("margin", "z"), 2021: ()}
    speaking = {2020: np.array([True, True, True, False]), 2021: np.array([False, False, True, True])}
    found = FoundBlock(block, 3, 7, speaking, 900, np.zeros((4, 7), np.int32))
    planned = plan_block(found, chosen, GRID, LAYOUT, ())
    assert (planned.scenes, planned.events, planned.pixels, planned.patches) == (
        {2020: ("margin", "z"), 2021: ()}, 3, 7, 5,
    )  # fmt: skip
    # two loss years that see the same scenes share a patch, unless days of the loss are known
    same = {2020: chosen[2020], 2021: chosen[2020]}
    assert [plan_block(found, same, GRID, LAYOUT, dated).patches for dated in ((), {2021})] == [4, 5]


# ---------------------------------------------------------------------------------------------- the file


def example():
    bare = dataclasses.replace(scene("c", cloud=None), grid=SceneGrid("EPSG:32647", (30.0, 0, 15, 0, -30, 15)))
    scenes = {s.id: s for s in (scene("a"), scene("b", 2021), bare)}
    blocks = tuple(PlannedBlock(b, {2020: ("a", "b"), 2021: ("b",)}, 2, 30, 4) for b in list(GRID.blocks())[:2])
    wet = Refusal("wet", "cloud", datetime(2020, 5, 1, tzinfo=UTC), 99.0, "POINT (0 0)")
    refused = (Refusal("gone", "no bands"), wet)
    return Plan(
        inputs="i", region="riau", years=(2020, 2021), aoi=shapely.to_wkt(HERE), grid=GRID, layout=LAYOUT, model="m",
        bands=("red", "nir08"), event_count=3, event_ha=12.5, below_count=1, below_ha=0.1, loss="l", scenes=scenes,
        refused=refused, blocks=blocks, warnings=("careful",), before={2020: ("b", "early"), 2021: ("early",)},
        before_scenes={"early": scene("early", 2019), "b": scenes["b"]}, cache="/cache",
        candidates={2020: ("a", "b", "spare"), 2021: ("b", "c")}, chosen={2020: ("a", "b"), 2021: ("b", "c")},
        spare={"spare": scene("spare", cloud=40)}, undecided=((2021, "127/60"),), max_scenes=2, said=("few",),
    )  # fmt: skip


def test_a_plan_survives_its_file(tmp_path):
    example().save(tmp_path)
    assert read_plan(tmp_path) == example()


def test_two_plans_of_the_same_are_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    example().save(tmp_path / "a")
    read_plan(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()


def test_scenes_taken_out_of_a_plan_are_refused_ones():
    plan = without_scenes(example(), [Refusal("b", "unreadable: truncated")])
    assert sorted(plan.scenes) == ["a", "c"]
    assert [r.scene_id for r in plan.refused] == ["b", "gone", "wet"]
    assert [b.scenes for b in plan.blocks] == [{2020: ("a",), 2021: ()}] * 2
    assert len(plan.scenes) + len(plan.refused) == len(example().scenes) + len(example().refused)
    assert plan.before == {2020: ("early",), 2021: ("early",)}
    assert sorted(plan.before_scenes) == ["early"]
    assert without_scenes(plan, [Refusal("early", "gone")]).before == {2020: (), 2021: ()}


def test_a_choice_that_loses_a_scene_is_open_again_and_what_was_spare_may_take_its_place():
    plan = dataclasses.replace(example(), undecided=())
    thinner = without_scenes(plan, [Refusal("a", "truncated")])
    assert (thinner.candidates, thinner.chosen) == (
        {2020: ("b", "spare"), 2021: ("b", "c")},
        {2020: ("b",), 2021: ("b", "c")},
    )
    assert thinner.undecided == ((2020, "127/60"),)
    assert without_scenes(plan, [Refusal("spare", "gone")]).undecided == ()
    told = [Refusal("c", "not needed"), Refusal("b", "not needed either")]
    after = with_chosen(thinner, {2020: ("spare",), 2021: ()}, told, ["careful"])
    assert (sorted(after.scenes), sorted(after.spare), after.undecided) == (["spare"], ["b", "c"], ())
    assert [b.scenes for b in after.blocks] == [{2020: ("spare",), 2021: ()}] * 2
    # b keeps its part in pictures
    assert [(r.scene_id, r.reason) for r in after.refused] == [
        ("a", "truncated"), ("c", "not needed"), ("gone", "no bands"), ("wet", "cloud"),
    ]  # fmt: skip
    assert after.said == (
        "careful",
        "scene spare: no QA_PIXEL, so masked by fill only; clouds count as ground",
        "loss year 2021: no scene can serve; its events end as no_imagery",
    )
    again = with_chosen(after, {2020: ("b",), 2021: ("c",)}, [Refusal("spare", "not needed")])
    assert [r.scene_id for r in again.refused] == ["a", "gone", "spare", "wet"]


def test_blocks_whose_answers_stand_keep_their_scenes():
    plan = example()
    first = plan.blocks[0].block.id
    after = with_chosen(plan, {2020: ("spare",), 2021: ()}, [], settled=(first,))
    assert [b.scenes for b in after.blocks] == [plan.blocks[0].scenes, {2020: ("spare",), 2021: ()}]
    assert sorted(after.scenes) == ["a", "b", "spare"]


def test_counts_add_up():
    one = example().counts()
    assert (one["events"], one["blocks"], one["patches"], one["scenes"], one["scenes_refused"]) == (3, 2, 8, 3, 2)
    assert one["scenes_before"] == 1  # the other one is used anyway
    assert one["megapixels"] == pytest.approx(8 * 32 * 32 / 1e6, abs=0.05)
    margin = 64 + 2 * (32 - 8)  # a patch of 32 around each cell of 16 that it meets
    assert one["bytes"] == 2 * 3 * (margin * margin) * 2 * 3  # blocks, scene reads, pixels, bytes, bands with QA


def test_a_fingerprint_changes_with_what_it_is_made_of():
    assert fingerprint({"a": 1}) == fingerprint({"a": 1}) != fingerprint({"a": 2})
