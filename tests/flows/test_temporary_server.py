"""The Prefect server that a run brings along: it answers, says why it cannot, and never outlives its owner."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect_server import until
from run_samples import ROOT, program, write_config

import flows.temporary_server
from flows import regions
from flows.temporary_server import temporary_server
from pipeline.cli_run import Orchestrator, run_config
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.plan import PLAN_FILE
from pipeline.request import Request

OWNER = """
import time
from flows.temporary_server import temporary_server
with temporary_server():
    print("begun", flush=True)
    time.sleep(600)
"""


def test_it_answers_until_its_owner_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with temporary_server() as address:
        url = address()
        assert url.startswith("http://127.0.0.1:"), "it is open to this machine only"
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            assert answer.read() == b"true"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=10)


def test_it_is_found_where_programs_go_through_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "corp.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead.getsockname()[1]}")
        with temporary_server() as address, temporary_settings({PREFECT_API_URL: address()}):
            assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "corp.example,127.0.0.1"
            with get_client(sync_client=True) as client:
                assert client.api_healthcheck() is None


def test_a_run_with_one_of_its_own_sends_no_heartbeats(tmp_path, monkeypatch, world, tiny_model):
    heard = []
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = load_config(write_config(tmp_path, world, tiny_model))
    watched = lambda *_: heard.append(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value())  # noqa: E731
    monkeypatch.setattr(regions, "_watched", watched)
    with temporary_server() as address:
        regions.run_request(Request(config), "one of its own", address)
        with temporary_settings({PREFECT_API_URL: address()}):
            regions.run_request(Request(config), "one that stays", address)
    assert heard == [None, 180]


def test_it_ends_with_an_owner_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"begun\n"
        [server] = psutil.Process(owner.pid).children()
        owner.kill()
    until("end of the server", 60, lambda: not server.is_running())


@pytest.mark.parametrize("by", ["function", "program"])
def test_one_that_cannot_start_is_told_in_a_line(by, tmp_path, monkeypatch, request):
    nowhere = "sqlite+aiosqlite:////proc/nowhere/prefect.db"
    if by == "function":
        monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", nowhere)
        with (
            temporary_server() as address,
            pytest.raises(ConfigError, match=r"^Prefect: its temporary server ended .*unable to open"),
        ):
            address()
        return
    config = write_config(tmp_path, request.getfixturevalue("world"), request.getfixturevalue("tiny_model"))
    ended = program("run", config, PREFECT_HOME=str(tmp_path / "home"), PREFECT_API_DATABASE_CONNECTION_URL=nowhere)
    assert ended.code == 2
    [line] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "unable to open database file" in line
    assert "run with --no-prefect" in line
    assert "Traceback" not in ended.err


def test_a_run_that_plans_anew_is_as_quiet_as_the_first_one(world, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model)
    for chips in (1, 2):
        ended = program("run", config, "-o", f"output.chips={chips}", PREFECT_HOME=str(tmp_path / "home"))
        assert ended.code == 0, ended.err
        assert "Flow run" not in ended.out + ended.err


def test_a_rerun_with_nothing_to_do_starts_none(world, tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = load_config(write_config(tmp_path, world, tiny_model))

    def run(prefect):
        with Orchestrator(prefect) as by:
            return run_config(config, (), allow_incomplete=False, replan=False, by=by).status

    class StartedError(Exception):
        pass

    def started():
        raise StartedError

    assert run(prefect=False) == "published"
    monkeypatch.setattr(flows.temporary_server, "temporary_server", started)
    assert run(prefect=True) == "current"
    (config.work / PLAN_FILE).unlink()
    with pytest.raises(StartedError):
        run(prefect=True)
