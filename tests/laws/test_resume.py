"""State is files: what is finished is found, what is missing is computed, what has changed is computed again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from run_samples import (
    ROOT,
    assert_same_results,
    checkpoints,
    command,
    layer,
    program,
    run,
    snapshot,
    write_config,
)

from pipeline import steps
from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.plan import LABELS_FILE
from pipeline.product.inspect import inspect_product
from pipeline.request import Request


@pytest.fixture
def computed(monkeypatch):
    """Blocks that were really computed, in order."""
    names = []
    plainly = steps.compute_block

    def counting(task):
        record = plainly(task)
        if record.status == "done":
            names.append(record.block)
        return record

    monkeypatch.setattr(steps, "compute_block", counting)
    return names


def ids(config):
    return [
        planned["block"]["id"] for planned in json.loads((load_config(config).work / "plan.json").read_text())["blocks"]
    ]


def test_some_blocks_then_all(world, reference, tiny_model, tmp_path, computed):
    config = write_config(tmp_path, world, tiny_model)
    outcome = run(config, blocks=("r0000c0001", "r0001c0001"))
    assert outcome.status == "partial"
    assert computed == ["r0000c0001", "r0001c0001"]
    assert not load_config(config).output.dir.exists()
    outcome = run(config)
    assert outcome.status == "published"
    assert sorted(computed) == sorted(ids(config)), "each block once"
    assert_same_results(outcome.product, reference)


def test_the_last_missing_blocks_by_name_complete_the_product(world, reference, tiny_model, tmp_path, computed):
    config = write_config(tmp_path, world, tiny_model)
    run(config, blocks=("r0000c0001",))
    rest = tuple(name for name in ids(config) if name != "r0000c0001")
    outcome = run(config, blocks=rest)
    assert outcome.status == "published"
    assert_same_results(outcome.product, reference)
    assert len(computed) == len(ids(config))


def test_a_finished_run_does_nothing_when_run_again(world, tiny_model, tmp_path, computed, cli):
    config = write_config(tmp_path, world, tiny_model)
    assert cli("run", config, "--no-prefect").code == 0
    work, product = load_config(config).work, load_config(config).output.dir
    count, before = len(computed), (snapshot(product), snapshot(work / "blocks"), (work / "plan.json").stat())
    ended = cli("run", config, "--no-prefect", "--json")
    assert (ended.code, json.loads(ended.out)["status"]) == (0, "current")
    assert len(computed) == count
    assert (snapshot(product), snapshot(work / "blocks"), (work / "plan.json").stat()) == before


def test_another_model_computes_everything_again(world, reference, tiny_model, other_model, tmp_path, computed):
    config = write_config(tmp_path, world, tiny_model)
    run(config)
    count = len(computed)
    outcome = run(config, f"model={other_model}")
    assert outcome.status == "published"
    assert len(computed) == 2 * count
    changed = layer(outcome.product, "events")
    assert not changed["confidence"].equals(layer(reference, "events")["confidence"])
    # and back: the first model's blocks are still there
    back = run(config)
    assert (back.status, len(computed)) == ("published", 2 * count)
    assert_same_results(back.product, reference)


def test_changed_imagery_computes_again_and_changed_threshold_does_not(world, tiny_model, tmp_path, computed):
    import shutil

    scenes = tmp_path / "scenes"
    shutil.copytree(world.scenes, scenes)
    config = write_config(tmp_path, world, tiny_model, imagery__source=str(scenes))
    first = run(config)
    count = len(computed)
    sure = int((layer(first.product, "events")["status"] == "classified").sum())
    outcome = run(config, "output.uncertain_below=0")
    assert (outcome.status, len(computed)) == ("published", count)
    events = layer(outcome.product, "events")
    assert (events["status"] != "uncertain").all()
    assert (events["status"] == "classified").sum() > sure
    os.utime(next(scenes.rglob("*_SR_B4.TIF")))
    assert run(config).status == "published"
    assert len(computed) > count


def test_damaged_checkpoint_is_not_taken_for_whole(world, reference, tiny_model, tmp_path):
    """What a killed writer leaves behind has another name than what is whole."""
    config = write_config(tmp_path, world, tiny_model)
    run(config, blocks=("r0000c0001",))
    (whole,) = checkpoints(config)
    half = whole.with_name(f".{whole.name}.4711")
    half.mkdir()
    (half / "rasters.npz").write_bytes(b"half")
    for path in whole.iterdir():
        path.unlink()
    whole.rmdir()
    assert_same_results(run(config).product, reference)


def wait_for_blocks(process, config, count):
    """Wait until so many blocks are finished; the run must still be going on."""
    deadline = time.monotonic() + 240
    while len(checkpoints(config)) < count:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_product(world, tiny_model, tmp_path):
    config = write_config(tmp_path / "killed", world, tiny_model, grid__block=32)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command("run", config, "--no-prefect"), cwd=ROOT, stdout=log, stderr=log)
        wait_for_blocks(process, config, 3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    product = load_config(config).output.dir
    assert not product.exists()
    done = checkpoints(config)
    before = {path.name: snapshot(path) for path in done}
    assert 3 <= len(done) < len(ids(config))

    again = program("run", config, "--no-prefect")
    assert again.code == 0, again.err
    assert {path.name: snapshot(path) for path in done} == before, "finished blocks were written again"
    for path in done:
        assert f"block {path.name.split('-')[0]} done" not in again.err
    assert again.err.count(" done in ") == len(ids(config)) - len(done)
    assert inspect_product(product).sound

    straight = write_config(tmp_path / "straight", world, tiny_model, grid__block=32)
    calm = run(straight).product
    assert_same_results(product, calm)
    for name in ("drivers.tif", "confidence.tif"):
        assert (product / name).read_bytes() == (calm / name).read_bytes()
    for one, other in ((layer(product, "blocks"), layer(calm, "blocks")),):
        assert one.drop(columns="seconds").equals(other.drop(columns="seconds"))
    first, second = (json.loads((p / "run.json").read_text()) for p in (product, calm))
    for record in (first, second):
        del record["timings"], record["files"]["drivers.gpkg"], record["files"]["item.json"]
    assert first == second


@pytest.mark.slow
def test_interrupt_is_130_and_can_be_resumed(world, reference, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model, grid__block=32)
    process = subprocess.Popen(
        command("run", config, "--no-prefect"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    wait_for_blocks(process, config, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted; run the same command again")
    assert not load_config(config).output.dir.exists()
    assert_same_results(run(config).product, reference)


def test_the_longest_blocks_come_first(world, tiny_model, tmp_path, computed):
    config = write_config(tmp_path, world, tiny_model, grid__block=48)
    plan = steps.plan_run(Request(load_config(config)))
    patches = {planned.block.id: planned.patches for planned in plan.blocks}
    shortest_first = sorted(patches, key=lambda block: patches[block])
    run(config, blocks=tuple(shortest_first))
    counts = [patches[block] for block in computed]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 1


def test_the_pool_may_begin_once_the_loss_is_read_and_not_for_a_plan_that_is_there(world, tiny_model, tmp_path):
    begun = []
    config = load_config(write_config(tmp_path, world, tiny_model))
    request = Request(config, begin_pool=lambda: begun.append((config.work / LABELS_FILE).is_file()))
    steps.plan_run(request)
    assert begun == [True]
    steps.plan_run(request)
    assert begun == [True]


def test_the_pool_does_not_begin_for_loss_that_cannot_be_read(world, tiny_model, tmp_path):
    begun = []
    config = load_config(write_config(tmp_path, world, tiny_model, loss__source=str(tmp_path / "none.tif")))
    with pytest.raises(InputError, match=r"none\.tif"):
        steps.plan_run(Request(config, begin_pool=lambda: begun.append(1)))
    assert begun == []
