"""Chaos: kill -9 at a random moment of a worker, a nanny, the flow's process, the scheduler or Prefect's server.

Runs of the demo at a small size (a simulated province of 160 pixels, the shipped model, 8 blocks of 64 pixels), by
Prefect, on a Dask scheduler with two workers. What was killed is started again at once, as a service manager does;
Prefect's server in half of the cases only after the run. After a rerun the product is the undisturbed one's to the
byte, but for times. CLEARCAUSE_CHAOS=100 runs seeds 0 to 99, CLEARCAUSE_CHAOS=40-60 some of them; each says in a line
where it struck.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import yaml
from prefect_server import free_port
from run_samples import ROOT, run
from test_same_bytes import assert_same_bytes, timeless

from flows.runtime import TRIES
from pipeline.config import load_config
from pipeline.demo import province_config, write_province
from pipeline.errors import ConfigError
from pipeline.plan import PLAN_FILE
from pipeline.simulate import ProvinceParams
from pipeline.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
VICTIMS = ("worker", "nanny", "flow", "scheduler", "prefect")
BLOCKS = 9
ENDS = 500
"""Seconds within which a disturbed run must have ended by itself: the patience without a scheduler is 300."""


def seeds():
    first, _, last = os.environ.get("CLEARCAUSE_CHAOS", "5").rpartition("-")
    return range(int(first or 0), int(last))


class Site:
    """A Prefect server, a scheduler, two workers with their nannies, and the program with its libraries loaded.

    What is dead is started again by `mend`; all of it lives on between runs.
    """

    def __init__(self, folder):
        self.folder, self.alive, self.log = folder, {}, folder / "run.log"
        self.port, self.prefect_port = free_port(), free_port()
        self.environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'flows'}", "PREFECT_HOME": str(folder / "prefect"),
            "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }  # fmt: skip
        self.mend()
        reached = {"PREFECT_API_URL": f"http://127.0.0.1:{self.prefect_port}/api"}
        self.program = subprocess.Popen(
            [sys.executable, "-m", "warm_program"], cwd=ROOT, env=self.environment | reached, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.program.stdout.readline() == "ready\n"

    @property
    def address(self):
        return f"tcp://127.0.0.1:{self.port}"

    def restart(self, prefect=True):
        """Start what is dead, as a service manager does; a worker ends some time after its scheduler."""
        home, dask = ("--host", "127.0.0.1"), "distributed.cli.dask_"
        if prefect:
            self._mend("prefect", "prefect", "server", "start", *home, "--port", self.prefect_port)
        self._mend("scheduler", f"{dask}scheduler", *home, "--port", self.port, "--no-dashboard")
        for name in ("one", "two"):
            limits = ("--nthreads", 1, "--memory-limit", "3GiB", "--no-dashboard")
            self._mend(name, f"{dask}worker", self.address, "--name", name, *limits, *home)

    def mend(self):
        """Start what is dead, and wait until Prefect's server answers."""
        self.restart()
        deadline = time.monotonic() + 300
        while not self._answers():
            assert time.monotonic() < deadline, "Prefect's server did not start"
            time.sleep(0.2)

    def _mend(self, name, *line):
        before = self.alive.get(name)
        if up(before):
            return
        if before is not None:
            before.wait(30)
        with (self.folder / f"{name}.log").open("a") as log:
            started = psutil.Popen(
                [sys.executable, "-m", *map(str, line)], cwd=ROOT, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.alive[name] = started

    def _answers(self):
        import httpx

        try:
            return httpx.get(f"http://127.0.0.1:{self.prefect_port}/api/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def start(self, config):
        """Start a run; its log is a new one."""
        self.log.write_text("")  # there, however early the run is killed
        self.program.stdin.write(json.dumps([["run", str(config)], str(self.log)]) + "\n")
        self.program.stdin.flush()
        return psutil.Process(int(self.program.stdout.readline()))

    def victim(self, kind, flow):
        """The process of a kind; one of the two workers at the moment, None while both are being started."""
        if kind == "flow":
            return flow
        if kind == "worker":
            children = self.alive["one"].children(recursive=True)
            return next((c for c in children if "spawn_main" in " ".join(c.cmdline())), None)
        return self.alive[{"nanny": "one"}.get(kind, kind)]

    def close(self):
        for process in self.alive.values():
            for each in [*(process.children(recursive=True) if up(process) else []), process]:
                kill(each)
        self.program.kill()
        self.program.communicate()


def up(process):
    return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def kill(process):
    try:
        process.kill()
        process.wait(30)
    except psutil.NoSuchProcess:
        return


def ended(process, look_after):
    """Wait for the end of a run; what it needs is looked after meanwhile."""
    deadline = time.monotonic() + ENDS
    while up(process):
        assert time.monotonic() < deadline, "the run hangs"
        look_after()
        time.sleep(0.1)


def state_after(product):
    """What `clearcause status` says; a run that was killed before it had a folder was not begun."""
    try:
        return read_status(product).state
    except ConfigError as error:
        if "no run was begun here" not in str(error):
            raise
        return "not begun"


STAGES = ("plan", "fetch", "workers", *(f"block {k}" for k in range(1, BLOCKS + 1)), "merge", "publish", "ended")


def stage(work, product):
    """Where a run stands, by what lies in its folder: an index of STAGES."""
    if (product / "run.json").exists():
        return STAGES.index("ended")
    if (work / "product").exists():
        return STAGES.index("publish")
    if not (work / PLAN_FILE).exists():
        return STAGES.index("plan")
    done = len([path for path in (work / "blocks").glob("*") if path.name[0] != "."])
    if done == BLOCKS:
        return STAGES.index("merge")
    tries = work / TRIES
    if done or (tries.exists() and any(tries.iterdir())):
        return STAGES.index(f"block {done + 1}")
    return STAGES.index("workers" if tries.exists() else "fetch")


def watch(flow, where):
    """Seconds since the start at which each stage of a run was first seen; it has ended when its product is whole."""
    began, seen = time.monotonic(), {}
    while up(flow):
        for reached in range(max(seen, default=-1) + 1, where() + 1):
            seen[reached] = time.monotonic() - began
        time.sleep(0.02)
    return {**seen, len(STAGES) - 1: seen.get(len(STAGES) - 1, time.monotonic() - began)}


def busy(kind, usual, chance):
    """The part of a run, within 0..1, in which to strike: Dask's processes mostly while they have blocks."""
    if kind in ("flow", "prefect") or chance < 0.25:
        return 0.0, 1.0
    return tuple(usual[STAGES.index(name)] / usual[STAGES.index("ended")] for name in ("block 1", "merge"))


def strike_at(share, usual, flow, where):
    """Wait until so much of the run, 0..1, is over; a busy machine makes a stage longer, and it is waited for."""
    moment = share * usual[len(STAGES) - 1]
    planned = max(k for k, seconds in usual.items() if seconds <= moment)
    while up(flow) and where() < planned:
        time.sleep(0.01)
    end = time.monotonic() + moment - usual[planned]
    while up(flow) and where() == planned and time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Writes the configuration of a small demo into a folder; the province is simulated once."""
    params = ProvinceParams(size=360, seed=5, dates=1, before=1)
    province = write_province(tmp_path_factory.mktemp("demo") / "province", params)

    def configure(folder, executor):
        # a block is a cell of the lattice at least
        tiling = ("tiling.overlap=128", "grid.block=128")
        changes = (*tiling, f"compute.executor={executor}", "compute.workers=1")
        made = province_config(ROOT / "configs" / "demo.yaml", province, folder / "product", *changes)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
        return path

    return configure


@pytest.fixture(scope="module")
def calm(demo, tmp_path_factory):
    """The undisturbed product, of threads of this process without Prefect."""
    folder = tmp_path_factory.mktemp("calm")
    config = demo(folder, "threads")
    product = run(config).product
    assert len(list((load_config(config).work / "blocks").iterdir())) == BLOCKS
    return timeless(product, folder)


@pytest.fixture(scope="module")
def usual(site, demo, calm, tmp_path_factory):
    """Seconds at which an undisturbed run on the site reaches each stage here."""
    folder = tmp_path_factory.mktemp("usual")
    config = demo(folder, site.address)
    parsed = load_config(config)
    for _ in range(2):  # the first one finds workers without their libraries
        for path in (parsed.work, parsed.output.dir):
            shutil.rmtree(path, ignore_errors=True)
        seconds = watch(site.start(config), partial(stage, parsed.work, parsed.output.dir))
    assert_same_bytes(timeless(parsed.output.dir, folder), calm)
    print("\nundisturbed:", ", ".join(f"{STAGES[k]} {at:.1f} s" for k, at in seconds.items()))
    return seconds


@pytest.mark.parametrize("seed", seeds())
def test_killed_at_a_random_moment_and_run_again(seed, site, calm, usual, demo, tmp_path):
    dice = random.Random(seed)
    kind, at_once = dice.choice(VICTIMS), dice.random() < 0.5
    share = dice.uniform(*busy(kind, usual, dice.random()))
    config = demo(tmp_path, site.address)
    parsed = load_config(config)
    where, product = partial(stage, parsed.work, parsed.output.dir), parsed.output.dir
    site.mend()
    began = time.monotonic()
    flow = site.start(config)
    strike_at(share, usual, flow, where)
    struck, stood, going = site.victim(kind, flow), STAGES[where()], up(flow)
    if struck is not None:
        kill(struck)
    ended(flow, partial(site.restart, prefect=at_once))
    first = site.log.read_text().splitlines()[-1:]
    state = state_after(product)
    site.mend()
    ended(site.start(config), site.restart)
    said = site.log.read_text()
    print(
        f"\nseed {seed}: {kind} {'killed' if struck else 'not there'} at {share:.2f} in {stood}"
        f"{'' if going else ' (the run had ended)'}; then {state}, {first}; {time.monotonic() - began:.0f} s"
    )
    assert state in ("not begun", "planning", "interrupted", "unpublished", "current")
    assert state == "current" or kind in ("flow", "prefect"), "the run did not go on by itself"
    assert said.splitlines()[-1:] == ["exit 0"], said
    assert "Traceback" not in said
    assert_same_bytes(timeless(product, tmp_path), calm)
    assert (read_status(product).state, read_status(product).failed) == ("current", {})
