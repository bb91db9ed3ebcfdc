"""Faults of scenes, blocks and disks: each ends in a counted state, and the product of an earlier run stays whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
from run_samples import (
    PRODUCTS,
    assert_same_results,
    blobs,
    cut,
    draw_world,
    layer,
    raster,
    ruin_pixels,
    run,
    snapshot,
    write_config,
)

from pipeline import steps
from pipeline.config import load_config
from pipeline.graph import plainly, run_region
from pipeline.product.inspect import inspect_product, render_text
from pipeline.request import Request

BAD = "r0001c0001"


@pytest.fixture
def own_world(world, tmp_path):
    """A copy of the drawn world's scenes that a test may damage."""
    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    return scenes


@pytest.fixture
def broken_block(monkeypatch):
    """One block cannot be computed, for a reason nobody foresaw."""
    compute = steps.compute_block

    def sometimes(task):
        if task.block == BAD:
            raise RuntimeError("the labels\nare gone")
        return compute(task)

    monkeypatch.setattr(steps, "compute_block", sometimes)


@pytest.mark.parametrize(
    ("damage", "band", "says"),
    [(cut, "SR_B5", "truncated"), (ruin_pixels, "SR_B5", "nir08 unreadable"), (ruin_pixels, "QA_PIXEL", "unreadable")],
)
def test_a_scene_damaged_after_the_plan_is_left_out(damage, band, says, world, own_world, tiny_model, tmp_path):
    config = load_config(write_config(tmp_path, world, tiny_model, imagery__source=str(own_world)))

    def call(stage, *arguments):
        result = plainly(stage, *arguments)
        if stage is steps.plan_run:
            damage(next((own_world / PRODUCTS[0]).glob(f"*_{band}.TIF")))
        return result

    outcome = run_region(Request(config), call)
    scenes = layer(outcome.product, "scenes").set_index("scene_id")
    assert scenes["used"].to_dict() == {PRODUCTS[0]: False, PRODUCTS[1]: True}
    assert says in scenes.loc[PRODUCTS[0], "reason"]
    report = inspect_product(outcome.product)
    assert report.sound, render_text(report)

    # the same as if the scene had never been there: blocks that had used it before it failed are computed again
    shutil.rmtree(own_world / PRODUCTS[0])
    alone = write_config(tmp_path / "alone", world, tiny_model, imagery__source=str(own_world))
    assert_same_results(outcome.product, run(alone).product, ("events", "patches", "units", "summary"))


def test_without_any_readable_scene_all_events_have_no_imagery(world, own_world, tiny_model, tmp_path):
    for path in own_world.rglob("*_SR_B3.TIF"):
        cut(path)
    product = run(write_config(tmp_path, world, tiny_model, imagery__source=str(own_world))).product
    scenes = layer(product, "scenes")
    assert not scenes["used"].any()
    assert scenes["reason"].str.contains("_SR_B3.TIF").all()
    assert scenes["reason"].str.contains("truncated").all()
    assert set(layer(product, "events")["status"]) == {"no_imagery"}
    assert (raster(product) == 255).all()


def test_a_failed_block_withholds_the_product(world, tiny_model, tmp_path, broken_block, cli):
    config = write_config(tmp_path, world, tiny_model)
    ended = cli("run", config, "--no-prefect")
    assert ended.code == 3
    assert BAD in ended.error
    assert "the labels are gone" in ended.error
    assert "--allow-incomplete" in ended.error
    assert not load_config(config).output.dir.exists()
    assert "Traceback" in (load_config(config).work / "run.log").read_text()


def test_a_failed_block_leaves_the_old_product_untouched(world, own_world, tiny_model, tmp_path, monkeypatch, cli):
    config = write_config(tmp_path, world, tiny_model, imagery__source=str(own_world))
    product = run(config).product
    before = snapshot(product)
    os.utime(next(own_world.rglob("*_SR_B4.TIF")))  # so that blocks are computed again
    compute = steps.compute_block

    def sometimes(task):
        if task.block == BAD:
            raise MemoryError
        return compute(task)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "compute_block", sometimes)
        ended = cli("run", config, "--no-prefect")
    assert (ended.code, snapshot(product)) == (3, before)
    assert "MemoryError" in ended.error
    assert cli("run", config, "--no-prefect").code == 0
    assert snapshot(product) != before


def test_allow_incomplete_publishes_and_says_so(world, reference, tiny_model, tmp_path, broken_block, cli):
    config = write_config(tmp_path, world, tiny_model)
    ended = cli("run", config, "--no-prefect", "--allow-incomplete", "--json")
    assert ended.code == 0, ended.err
    product = load_config(config).output.dir
    record = json.loads((product / "run.json").read_text())
    assert record["complete"] is False
    assert record["counts"]["blocks_without_result"] == 1
    blocks = layer(product, "blocks").set_index("block_id")
    assert blocks.loc[BAD, "status"] == "failed"
    assert "the labels are gone" in blocks.loc[BAD, "reason"]
    assert (blocks.drop(index=BAD)["status"] == "done").all()
    assert "incomplete" in (product / "report.html").read_text(encoding="utf-8").lower()
    said = layer(product, "run").set_index("key")["value"]
    assert said["complete"] == "false"
    report = inspect_product(product)
    assert report.sound, render_text(report)
    # every planned event is a row: those that touch the block failed, the others are as ever
    events, whole = layer(product, "events"), layer(reference, "events")
    assert list(events["event_id"]) == list(whole["event_id"])
    failed = events["status"] == "failed"
    assert failed.sum() == blocks.loc[BAD, "events"]
    kept = ["event_id", "status", "driver", "confidence", "clear_share"]
    assert events.loc[~failed, kept].equals(whole.loc[~failed, kept])
    assert events.loc[failed, "driver"].isna().all()


def test_an_incomplete_product_is_completed_by_the_next_run(world, reference, tiny_model, tmp_path, monkeypatch, cli):
    config = write_config(tmp_path, world, tiny_model)
    compute = steps.compute_block
    with monkeypatch.context() as patch:
        patch.setattr(steps, "compute_block", lambda task: 1 / 0 if task.block == BAD else compute(task))
        assert cli("run", config, "--no-prefect", "--allow-incomplete").code == 0
    assert cli("run", config, "--no-prefect").code == 0
    product = load_config(config).output.dir
    assert json.loads((product / "run.json").read_text())["complete"] is True
    assert_same_results(product, reference)


@contextmanager
def largest_file(size):
    """Let writes beyond `size` bytes fail, as a full disk does; sizes are per file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [300, 2_000, 8_000, 15_000, 40_000, 100_000])
def test_a_write_that_fails_leaves_no_half_product(size, tiny_model, tmp_path, cli):
    loss = blobs(4, (120, 120))
    world = draw_world(tmp_path / "world", loss)
    config = write_config(tmp_path, world, tiny_model)
    product = load_config(config).output.dir
    with largest_file(size):
        ended = cli("run", config, "--no-prefect")
    if ended.code == 0:
        assert inspect_product(product).sound
        return
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert not product.exists()
    assert not (load_config(config).work / "product").exists()
    # and with room again the run goes on to the very product
    assert cli("run", config, "--no-prefect").code == 0
    calm = run(write_config(tmp_path / "calm", world, tiny_model)).product
    assert_same_results(product, calm)


def test_too_little_room_is_said_before_work_starts(world, tiny_model, tmp_path, cli, monkeypatch):
    """A file system of 3 MB where one can be mounted, else the same answer from the system's call."""
    config = write_config(tmp_path, world, tiny_model)
    if os.system(f"mkdir -p {tmp_path}/small && mount -t tmpfs -o size=3m tmpfs {tmp_path}/small 2>/dev/null") == 0:
        try:
            ended = cli("run", config, "--no-prefect", "--out", tmp_path / "small" / "product")
        finally:
            assert os.system(f"umount {tmp_path}/small") == 0
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        ended = cli("run", config, "--no-prefect", "--out", tmp_path / "small" / "product")
    assert ended.code == 2
    assert "MB free" in ended.error
