"""Prefect's server is killed midway, and comes back or not: the run goes on and publishes what it would have."""

from __future__ import annotations

import time

import pytest
from prefect_server import prefect_server, process, served, until
from run_samples import assert_same_results, blobs, checkpoints, command, draw_world, run, write_config

from pipeline.artifacts import run_lock
from pipeline.config import load_config
from pipeline.errors import OutputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "clearcause-region/lost"


@pytest.fixture(scope="module")
def land(tmp_path_factory):
    """A region of 81 blocks."""
    return draw_world(tmp_path_factory.mktemp("land"), blobs(4, (288, 288)))


@pytest.fixture(scope="module")
def alone(land, tiny_model, tmp_path_factory):
    """Its product, made without any server."""
    folder = tmp_path_factory.mktemp("alone")
    return run(write_config(folder, land, tiny_model, region__name="lost", grid__block=32)).product


def free(work):
    try:
        with run_lock(work):
            return True
    except OutputError:
        return False


def midway(config, count=3):
    until("first blocks", 500, lambda: len(checkpoints(config)) >= count)
    assert not load_config(config).output.dir.exists()


def test_a_served_run_goes_on_and_says_so_when_the_server_is_back(land, alone, tiny_model, tmp_path):
    config = write_config(tmp_path / "lost", land, tiny_model, region__name="lost", grid__block=32)
    parsed = load_config(config)
    with (
        prefect_server(tmp_path / "prefect") as first,
        served(first, tmp_path / "serve.log", config, "--rollup", tmp_path / "rollup") as serving,
    ):
        started = first.started(NAME)
        midway(config)
        first.kill()
        lost = time.monotonic()
        until("product", 700, (parsed.output.dir / "run.json").is_file)
        assert_same_results(parsed.output.dir, alone)
        until("free folder, so that others can work in it", 120, lambda: free(parsed.work))
        time.sleep(max(0, lost + 30 - time.monotonic()))
        assert serving.poll() is None, (tmp_path / "serve.log").read_text()
        with prefect_server(tmp_path / "prefect", port=first.port) as second:
            assert second.ended(started, 300)["state_type"] == "COMPLETED"
            page = second.artifacts(started)["lost-summary"]["data"]
            assert page.startswith("# Drivers of forest loss, lost, 2021 to 2022")
            # its slot is free again, and serving has gone on
            again = second.ended(second.started(NAME))
            assert "current" in again["state"]["message"]
            # a cancellation still arrives
            other = second.started(NAME, variant="other")
            until("first blocks", 500, lambda: list((parsed.work.parent / "product-other.work/blocks").glob("r*")))
            cancelling = {"state": {"type": "CANCELLING"}, "force": False}
            second.client.post(f"/flow_runs/{other}/set_state", json=cancelling).raise_for_status()
            assert second.ended(other, 120)["state_type"] == "CANCELLED"


def test_a_run_of_the_program_publishes_though_its_server_is_gone_for_good(land, alone, tiny_model, tmp_path):
    config = write_config(tmp_path / "lost", land, tiny_model, region__name="lost", grid__block=32)
    log = tmp_path / "run.log"
    with (
        prefect_server(tmp_path / "prefect") as prefect,
        process(command("run", config), log, prefect.environment) as program,
    ):
        midway(config)
        prefect.kill()
        assert program.wait(900) == 0, log.read_text()
    assert_same_results(load_config(config).output.dir, alone)
    said = log.read_text()
    assert "published: " in said
    assert "Traceback" not in said
