"""`clearcause status OUT` and `clearcause retry OUT`: how a run stands, and what goes on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from run_samples import ROOT, assert_same_results, checkpoints, command, run, write_config

from pipeline import steps
from pipeline.artifacts import run_holder, run_lock
from pipeline.config import load_config
from pipeline.plan import PLAN_FILE
from pipeline.request import REQUEST_FILE, Request, remembered

BAD = "r0001c0001"


@pytest.fixture
def told(cli):
    """What `status --json` says of a run's output folder."""

    def ask(config):
        ended = cli("status", load_config(config).output.dir, "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return ask


def test_a_run_that_failed_is_told_about_and_goes_on_by_retry(world, reference, tiny_model, tmp_path, cli, told):
    config = write_config(tmp_path, world, tiny_model)
    compute = steps.compute_block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "compute_block", lambda task: 1 / 0 if task.block == BAD else compute(task))
        assert cli("run", config, "--no-prefect").code == 3
    out = load_config(config).output.dir
    status = told(config)
    assert (status["state"], status["published"]) == ("failed", False)
    assert status["planned"] == status["done"] + 1 == len(checkpoints(config)) + 1
    assert status["failed"] == {BAD: "ZeroDivisionError: division by zero"}
    assert status["next"] == f"clearcause retry {out}"
    text = cli("status", out).out
    assert f"failed {BAD}: ZeroDivisionError" in text
    assert f"go on with: clearcause retry {out}" in text

    config.unlink()  # the run's folder remembers what it was asked
    before = {path.name: path.stat().st_mtime_ns for path in checkpoints_in(out)}
    ended = cli("retry", out, "--no-prefect", "--json")
    assert (ended.code, json.loads(ended.out)["status"]) == (0, "published"), ended.err
    assert ended.err.count("block ") == 1
    assert f"block {BAD} done" in ended.err
    assert {name: stamp for name, stamp in stamps(out).items() if name in before} == before
    assert_same_results(out, reference)
    status = json.loads(cli("status", out, "--json").out)
    assert (status["state"], status["complete"], status["next"], status["failed"]) == ("current", True, "", {})


def checkpoints_in(out):
    return [path for path in (out.with_name(out.name + ".work") / "blocks").iterdir()]


def stamps(out):
    return {path.name: path.stat().st_mtime_ns for path in checkpoints_in(out)}


def test_states_of_a_run(world, tiny_model, tmp_path, told):
    config = write_config(tmp_path, world, tiny_model)
    parsed = load_config(config)
    steps.check_output(parsed)
    Request(parsed).remember()
    assert told(config)["state"] == "planning"
    run(config, blocks=("r0000c0001",))
    status = told(config)
    assert (status["state"], status["done"], status["failed"]) == ("interrupted", 1, {})
    run(config)
    assert told(config)["state"] == "current"
    shutil.rmtree(parsed.output.dir)
    assert (told(config)["state"], told(config)["published"]) == ("unpublished", False)


def test_a_product_of_an_earlier_state_is_told(world, tiny_model, other_model, tmp_path, cli, told):
    config = write_config(tmp_path, world, tiny_model)
    out = run(config).product
    run(config, f"model={other_model}", blocks=("r0000c0001",))
    status = told(config)
    assert (status["state"], status["published"], status["complete"]) == ("interrupted", True, True)
    assert "the product there is of an earlier state" in cli("status", out).out


def test_a_running_run_is_told_and_not_disturbed(world, tiny_model, tmp_path, told):
    config = write_config(tmp_path, world, tiny_model)
    work = load_config(config).work
    run(config, blocks=("r0000c0001",))
    with run_lock(work):
        status = told(config)
        assert (status["state"], status["holder"]["pid"], status["next"]) == ("running", os.getpid(), "")
        assert run_holder(work)[0]
    assert run_holder(work) == (False, {})


HOLD = """
import sys, time
from pathlib import Path
from pipeline.artifacts import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_whose_process_died_is_no_running_one(world, tiny_model, tmp_path, cli, told):
    import sys

    config = write_config(tmp_path, world, tiny_model)
    run(config, blocks=("r0000c0001",))
    work = load_config(config).work
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert told(config)["state"] == "running"
    finally:
        process.kill()
        process.communicate(timeout=30)
    status = told(config)
    assert (status["state"], status["holder"]["pid"]) == ("interrupted", process.pid)
    assert f"its process died: pid {process.pid}" in cli("status", load_config(config).output.dir).out


def test_a_folder_without_a_run_is_refused(tmp_path, cli):
    for name in ("status", "retry"):
        ended = cli(name, tmp_path / "nothing")
        assert ended.code == 2
        assert "no run was begun here" in ended.error


def test_what_is_remembered_is_the_configuration_for_its_owner_only(world, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, world, tiny_model)
    parsed = load_config(config)
    Request(parsed).remember()
    path = parsed.work / REQUEST_FILE
    assert remembered(parsed.work) == parsed
    assert path.stat().st_mode & 0o077 == 0
    path.write_text(path.read_text().replace('"tiling"', '"tilings"'))
    ended = cli("retry", parsed.output.dir)
    assert ended.code == 2
    assert "of another version" in ended.error


def test_a_plan_of_another_version_is_refused_by_name(world, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, world, tiny_model)
    run(config, blocks=("r0000c0001",))
    path = load_config(config).work / PLAN_FILE
    path.write_text(path.read_text().replace('"event_count"', '"events_count"'))
    ended = cli("status", load_config(config).output.dir)
    assert ended.code == 2
    assert f"{PLAN_FILE}: is of another version" in ended.error


@pytest.mark.slow
def test_told_to_end_a_run_ends_in_its_grace_and_can_be_resumed(world, reference, tiny_model, tmp_path, cli):
    """SIGTERM while blocks are computed, as Kubernetes, SLURM and systemd send it."""
    config = write_config(tmp_path, world, tiny_model, grid__block=32)
    process = subprocess.Popen(
        command("run", config, "--no-prefect"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not checkpoints(config):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - sent < 25
    assert err.splitlines()[-1].startswith("interrupted; run the same command again")
    assert "Traceback" not in err
    status = json.loads(cli("status", load_config(config).output.dir, "--json").out)
    assert (status["state"], status["holder"]) == ("interrupted", {})
    assert_same_results(run(config).product, reference)
