"""Which scenes a pass over late images takes; whole runs stand in laws/test_late.py."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.catalog.scene import Asset, Scene
from pipeline.grid import Block, RunGrid
from pipeline.late import choose_late, files_changed, forgotten, read_awaiting, save_awaiting, worth_retrying
from pipeline.lattice import PatchLayout
from pipeline.plan import Plan, PlannedBlock, files_of, product_digest
from pipeline.plan_scenes import without_scenes

GRID = RunGrid("EPSG:32647", 30.0, 600_015.0, 100_005.0, 200, 300, 64)


def scene(name, row=60, day=1, href="https://far/{}.tif"):
    when = datetime(2023, 5, day, tzinfo=UTC)
    return Scene(name, when, "landsat-8", 10.0, 127, row, "POINT (0 0)", {"red": Asset(href.format(name))})


def plan_of(scenes, *blocks):
    return Plan(
        inputs="i", region="riau", years=(2023,), aoi="POINT (0 0)", grid=GRID, layout=PatchLayout("grid", 32, 16),
        model="m", bands=("red",), event_count=3, event_ha=1.0, below_count=0, below_ha=0.0, loss="l",
        scenes={s.id: s for s in scenes}, refused=(), blocks=blocks, warnings=(),
        known={s.id: files_of(s) for s in scenes},
    )  # fmt: skip


def block(name, scenes, late=0, only=()):
    return PlannedBlock(Block(name, 0, 0, 64, 64), {2023: tuple(scenes)}, 2, 9, 4, late, only)


def test_the_scenes_that_show_most_are_taken_and_those_beyond_the_limit_may_come_again():
    plan = plan_of([scene("a"), scene("b", day=2), scene("c", day=3), scene("blind"), scene("east", row=61)])
    clear = {"a": 5, "b": 9, "c": 5, "blind": 0, "east": 1}
    refused, spared = choose_late(plan, clear, 2)
    assert {r.scene_id: r.reason.split(",")[0] for r in refused} == {
        "blind": "not needed: it came late",
        "c": "beyond imagery.max_scenes 2 of a pass over late images",
    }
    assert spared == ["c"]
    assert choose_late(plan, clear, 9)[1] == []
    assert choose_late(plan, dict(reversed(clear.items())), 2) == (refused, spared)


def test_a_pass_that_loses_its_scenes_goes_and_published_blocks_keep_theirs():
    plan = plan_of([scene("a"), scene("new")], block("r", "a"), block("r+1", ["a", "new"], 1, (2,)))
    gone = [refusal for refusal in choose_late(plan, {"new": 0}, 9)[0]]
    thinner = without_scenes(plan, gone, {"r"})
    assert [b.block.id for b in thinner.blocks] == ["r"]
    assert sorted(thinner.scenes) == ["a"]
    # an old scene that cannot be had any more leaves the pass, and stays where its answers were published
    old = choose_late(plan, {"a": 0}, 9)[0]
    thinner = without_scenes(plan, old, {"r"})
    assert [b.scenes[2023] for b in thinner.blocks] == [("a",), ("new",)]
    assert sorted(thinner.scenes) == ["a", "new"]
    assert thinner.refused == ()
    # without an answer to keep it is gone from both
    assert [b.scenes[2023] for b in without_scenes(plan, old).blocks] == [(), ("new",)]


def test_remote_scenes_are_asked_for_again_and_local_ones_when_their_files_change(tmp_path):
    file = tmp_path / "near.tif"
    file.write_bytes(b"one")
    near, far = scene("near", href=str(tmp_path / "{}.tif")), scene("far")
    assert worth_retrying([near, far]) == ["far"]
    plan = plan_of([near, far])
    assert sorted(forgotten(plan, ["far"]).known) == ["far", "near"], "what the plan uses stays known"
    bare = without_scenes(plan, choose_late(plan, {"far": 0}, 1)[0])
    assert sorted(forgotten(bare, ["far"]).known) == ["near"]
    assert not files_changed(plan)
    file.write_bytes(b"another")
    assert files_changed(plan)


def test_waiting_events_belong_to_one_product(tmp_path):
    assert read_awaiting(tmp_path, "x") is None
    save_awaiting(tmp_path, "x", [3, 5])
    assert (read_awaiting(tmp_path, "x"), read_awaiting(tmp_path, "y")) == ([3, 5], None)
    save_awaiting(tmp_path, "y", [])
    assert read_awaiting(tmp_path, "y") == []


@pytest.mark.parametrize("late", [0, 1])
def test_a_pass_makes_another_product(late):
    plan = plan_of([scene("a")], block("r", "a"))
    more = plan_of([scene("a")], block("r", "a"), *([block("r+1", "a", 1, (0,))] if late else []))
    assert (product_digest(plan) == product_digest(more)) == (not late)
