"""Chaos: kill -9 at a random moment of a worker, a nanny, the flow's process, the scheduler or Prefect's server.

After a rerun the product is the undisturbed one's to the byte, but for times. CLEARCAUSE_CHAOS=100 runs seeds 0 to 99.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from run_samples import ROOT, run, write_config
from test_same_bytes import assert_same_bytes, timeless

from pipeline.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
VICTIMS = ("worker", "nanny", "flow", "scheduler", "prefect")
SEEDS = range(int(os.environ.get("CLEARCAUSE_CHAOS", "5")))
PROGRAM = ("-m", "pipeline.cli", "run")
ENDS = 400
"""Seconds within which a disturbed run must have ended by itself."""


class Starter:
    """Starts our programs and Dask's, each in a process group and with a log of its own."""

    def __init__(self, folder):
        self.folder, self.started = folder, []

    def start(self, name, *line, **env):
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, line)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            )  # fmt: skip
        self.started.append(process)
        return psutil.Process(process.pid)

    def close(self):
        for process in self.started:
            process.kill()
            process.wait(30)


class Site:
    """A scheduler, two workers with their nannies, a Prefect server: what is dead is started again by `mend`."""

    def __init__(self, folder):
        self.folder, self.starter, self.alive = folder, Starter(folder), {}
        self.port = free_port()
        self.prefect_port = free_port()
        self.mend()

    @property
    def address(self):
        return f"tcp://127.0.0.1:{self.port}"

    def mend(self):
        if not up(self.alive.get("scheduler")):
            options = ("--host", "127.0.0.1", "--port", self.port, "--no-dashboard")
            self.alive["scheduler"] = self.starter.start("scheduler", "-m", "distributed.cli.dask_scheduler", *options)
        for name in ("one", "two"):
            if not up(self.alive.get(name)):
                options = ("--nthreads", 1, "--memory-limit", "3GiB", "--no-dashboard", "--host", "127.0.0.1")
                self.alive[name] = self.starter.start(
                    name, "-m", "distributed.cli.dask_worker", self.address, "--name", name, *options
                )

    def mend_prefect(self):
        if up(self.alive.get("prefect")):
            return
        line = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", self.prefect_port)
        quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.alive["prefect"] = self.starter.start("prefect", *line, PREFECT_HOME=str(self.folder / "prefect"), **quiet)
        import requests

        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.prefect}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.5)
        pytest.fail("the Prefect server did not start")

    @property
    def prefect(self):
        return f"http://127.0.0.1:{self.prefect_port}/api"

    def victim(self, kind, flow):
        if kind == "flow":
            return flow
        if kind == "worker":
            return next((c for c in self.alive["one"].children(recursive=True) if "spawn_main" in " ".join(c.cmdline())
                        ), None)  # fmt: skip
        return self.alive[{"nanny": "one"}.get(kind, kind)]

    def close(self):
        for process in self.alive.values():
            for each in [*(process.children(recursive=True) if up(process) else []), process]:
                kill(each)
        self.starter.close()


def up(process):
    return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def kill(process):
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(process, seconds):
    deadline = time.monotonic() + seconds
    while up(process):
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def calm(world, tiny_model, tmp_path_factory):
    """The undisturbed product."""
    folder = tmp_path_factory.mktemp("calm")
    return timeless(run(write_config(folder, world, tiny_model, grid__block=32)).product, folder)


@pytest.fixture(scope="module")
def usual(site, world, tiny_model, tmp_path_factory):
    """Seconds that an undisturbed run takes here."""
    config = write_config(
        tmp_path_factory.mktemp("usual"), world, tiny_model, grid__block=32, compute__executor=site.address
    )
    for _ in range(2):  # the first one finds workers without their libraries
        shutil.rmtree(load_config(config).work, ignore_errors=True)
        shutil.rmtree(load_config(config).output.dir, ignore_errors=True)
        started = time.monotonic()
        ended(site.starter.start("usual", *PROGRAM, config, "--no-prefect"), ENDS)
    assert (load_config(config).output.dir / "run.json").exists()
    return time.monotonic() - started


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_a_random_moment_and_run_again(seed, site, calm, usual, world, tiny_model, tmp_path):
    dice = random.Random(seed)
    kind = dice.choice(VICTIMS)
    config = write_config(tmp_path, world, tiny_model, grid__block=32, compute__executor=site.address)
    product = load_config(config).output.dir
    site.mend()
    env, options = {}, ["--no-prefect"]
    if kind == "prefect":
        site.mend_prefect()
        env, options = {"PREFECT_API_URL": site.prefect}, []
    flow = site.starter.start(f"run-{seed}", *PROGRAM, config, *options, **env)
    time.sleep(dice.uniform(0, usual * (2 if kind == "prefect" else 1)))
    struck = site.victim(kind, flow)
    going = up(flow)
    if struck is not None:
        kill(struck)
    if kind == "scheduler":
        time.sleep(1)
        site.mend()
    ended(flow, ENDS)
    site.mend()
    first = (product / "run.json").exists()
    again = site.starter.start(f"run-{seed}-again", *PROGRAM, config, "--no-prefect")
    ended(again, ENDS)
    said = (site.folder / f"run-{seed}-again.log").read_text()
    print(f"seed {seed}: {kind} killed, run going on: {going}, whole before the rerun: {first}")
    assert (product / "run.json").exists(), said
    assert_same_bytes(timeless(product, tmp_path), calm)
    assert "Traceback" not in said
