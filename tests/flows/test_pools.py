"""Pools of every kind: opened with the right arguments, workers checked, a poisonous block set aside, losses told."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dask
import psutil
import pytest
import simulated_blocks
from run_samples import ROOT, write_config
from simulated_blocks import POISON, tasks

from flows import clusters, workers
from flows.runtime import TRIES, EarlyPool, open_pool
from flows.workers import TriedBefore
from pipeline.config import Compute, load_config
from pipeline.errors import ConfigError, IncompleteError
from pipeline.ledger import MAX_ATTEMPTS, Ledger, drive
from pipeline.models.exported import export_onnx

PATHS = f"{ROOT}:{ROOT / 'tests' / 'flows'}"


@pytest.fixture
def config(world, tiny_model, tmp_path, monkeypatch):
    """A configuration whose pool is opened; `executor` and `workers` are set by the test."""
    monkeypatch.setenv("PYTHONPATH", PATHS)
    path = write_config(tmp_path, world, tiny_model)

    def make(executor, count="auto"):
        made = load_config(path, (f"compute.executor={executor}", f"compute.workers={count}"))
        made.work.mkdir(exist_ok=True)
        return made

    return make


class Cluster:
    """A scheduler and workers as users start them, each a process of its own, on loopback."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        self.start("scheduler", "scheduler", "--port", "0", "--scheduler-file", folder / "scheduler.json",
                   "--host", "127.0.0.1", "--no-dashboard")  # fmt: skip
        deadline = time.monotonic() + 120
        while not (folder / "scheduler.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        import json

        self.address = json.loads((folder / "scheduler.json").read_text())["address"]

    def start(self, name, kind, *arguments, **environment):
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *map(str, arguments)],
                cwd=self.folder, env={**os.environ, "PYTHONPATH": PATHS, **environment}, stdout=log, stderr=log,
            )  # fmt: skip

    def worker(self, name, *arguments, **environment):
        options = ("--nthreads", 1, "--no-dashboard", "--host", "127.0.0.1", *arguments)
        self.start(name, "worker", self.address, "--name", name, *options, **environment)

    def close(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def cluster(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    yield made
    made.close()


# ---------------------------------------------------------------------------------------------- kinds


def test_workers_as_asked_or_as_the_machine_has():
    assert clusters.worker_count(Compute(workers=7)) == 7
    assert clusters.worker_count(Compute()) >= 1


@pytest.mark.parametrize(
    ("executor", "package"), [("cuda", "dask_cuda"), ("slurm", "dask_jobqueue"), ("kubernetes", "dask_kubernetes")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(executor, package, config, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    asked = config(executor, 2)
    with pytest.raises(ConfigError, match=rf"{executor}: .*{package}.* pip install 'clearcause\[{executor}\]'"):
        open_pool(asked).__enter__()


def test_an_unknown_executor_is_refused_with_the_known_ones(world, tiny_model, tmp_path):
    path = write_config(tmp_path, world, tiny_model, compute__executor="yarn")
    with pytest.raises(ConfigError, match="none of local, threads, cuda, slurm, kubernetes, nor a scheduler address"):
        load_config(path)


needs_jobqueue = pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None and not os.environ.get("CI"), reason="dask-jobqueue is missing"
)


@pytest.fixture
def jobqueue():
    """Its import adds defaults to Dask's configuration, which must not be undone by a test's settings."""
    return importlib.import_module("dask_jobqueue")


SITE = {
    "jobqueue.slurm.cores": 4, "jobqueue.slurm.memory": "24GB", "jobqueue.slurm.processes": 2,
    "jobqueue.slurm.queue": "forest", "jobqueue.slurm.walltime": "02:00:00",
}  # fmt: skip


@needs_jobqueue
def test_slurm_jobs_are_those_of_the_sites_own_file_with_certificates_of_the_run(jobqueue, tmp_path, monkeypatch):
    sent = tmp_path / "sent"
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\ncat "$1" >> {sent}\necho Submitted batch job 7\n')
    (tmp_path / "scancel").write_text("#!/bin/sh\n")
    for name in ("sbatch", "scancel"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    shared = {"jobqueue.slurm.shared-temp-directory": str(tmp_path / "shared"), "jobqueue.slurm.interface": "lo"}
    (tmp_path / "shared").mkdir()
    with dask.config.set({**SITE, **shared}), clusters.open_cluster(Compute(executor="slurm", workers=4)) as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://")
        deadline = time.monotonic() + 30
        while not sent.exists() or sent.read_text().count("#SBATCH -p forest") < 2:
            assert time.monotonic() < deadline, "two jobs of two processes each"
            time.sleep(0.1)
    for line in ("#SBATCH -p forest", "#SBATCH -t 02:00:00", "#SBATCH --mem=23G", "--nworkers 2", "--tls-cert"):
        assert line in script
    for path in (tmp_path / "shared").iterdir():
        assert path.stat().st_mode & 0o077 == 0, "the key of a run is nobody else's"


@needs_jobqueue
def test_slurm_without_a_site_is_refused_with_the_file_to_write():
    with pytest.raises(ConfigError, match=r"jobqueue\.slurm in Dask's configuration"):
        clusters.open_cluster(Compute(executor="slurm", workers=1)).__enter__()
    with pytest.raises(ConfigError, match=r"compute\.workers: say how many workers slurm"):
        clusters.open_cluster(Compute(executor="slurm")).__enter__()


class Recorded:
    """Stands for a cluster class of a package that is not here: keeps how it was called."""

    def __init__(self, **arguments):
        self.arguments = arguments

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("executor", ["cuda", "kubernetes"])
def test_gpus_and_pods_are_asked_for_as_their_packages_take_it(executor, monkeypatch):
    """The classes' real signatures were read (dask-cuda 26.10, dask-kubernetes 2026.3); neither was started here."""
    monkeypatch.setattr(clusters, "_class", lambda extra, module, name: Recorded)
    with clusters.open_cluster(Compute(executor=executor, workers=2)) as made:
        asked = made.arguments
    assert asked["n_workers"] == 2
    if executor == "cuda":
        assert asked["resources"] == {"GPU": asked["threads_per_worker"]}
        assert asked["host"] == "127.0.0.1"


def test_a_local_cluster_answers_nobody_without_its_certificate():
    from distributed import Client

    with clusters.open_cluster(Compute(workers=1)) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        plain = cluster.scheduler_address.replace("tls://", "tcp://")
        with pytest.raises(OSError, match=r"closed|Timed out"):
            Client(plain, timeout="3s")


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_workers_that_are_started_early_serve_once_and_go(config):
    asked, before = config("local", 1), children()
    with EarlyPool(asked) as pool:
        pool.begin()
        begun = pool._pool
        pool.begin()
        assert pool._pool is begun is not None, "once"
        with pool(asked) as opened:
            first = opened.executor.submit(simulated_blocks.whoami, None).result(60)
            assert first in children() - before
        with pool(asked) as opened:
            assert opened.executor.submit(simulated_blocks.whoami, None).result(60) not in {first, *before}
    assert not {first} & children()


def test_workers_that_are_started_early_and_not_needed_go_too(config):
    before = children()
    with EarlyPool(config("local", 2)) as pool:
        pool.begin()
        pool._pool.result()
        assert children() - before
    # the process that workers are forked from stays for the next pool
    assert {psutil.Process(pid).ppid() for pid in children() - before} <= {os.getpid()}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started one by one")
def test_workers_are_forks_of_one_process_that_has_loaded_everything_and_has_no_threads(config):
    asked = config("local", 2)
    with open_pool(asked) as pool:
        first = pool.executor.submit(simulated_blocks.whoami, None).result(60)
        parent = psutil.Process(first).parent()
        assert parent.pid != os.getpid()
        assert len(parent.children()) == 2
        names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{parent.pid}/task").iterdir()]
        # jemalloc (of pyarrow) knows forks; of other threads a fork would have the locks and nobody to open them
        assert len([name for name in names if name != "jemalloc_bg_thd"]) == 1, names
        loaded = {Path(part.path).name.split(".")[0] for part in parent.memory_maps()}
        assert {"libllvmlite", "_multiarray_umath", "_warp"} <= loaded
    assert not parent.children()


def test_workers_have_the_environment_of_their_run_not_of_the_first_one(config, monkeypatch):
    asked = config("local", 1)
    for value in ("first", "second"):
        monkeypatch.setenv("CLEARCAUSE_TESTED", value)
        with open_pool(asked) as pool:
            assert pool.executor.submit(simulated_blocks.environment, "CLEARCAUSE_TESTED").result(60) == value


def test_workers_start_where_the_path_of_temporary_files_is_too_long_for_a_socket(config, monkeypatch, tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with open_pool(config("local", 1)) as pool:
        first = pool.executor.submit(simulated_blocks.whoami, None).result(60)
        assert psutil.Process(first).ppid() == os.getpid(), "not a fork"


ENDING = """
import atexit, os
atexit.register(print, "the slow end", flush=True)
import flows.preload
if os.fork() == 0:
    print("a worker", flush=True)
else:
    os.wait()
    print("their server", flush=True)
"""


def test_the_process_that_workers_are_forked_from_ends_at_once_and_they_as_others_do():
    said = subprocess.run([sys.executable, "-c", ENDING], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["a worker", "the slow end", "their server"]


KILLED = """
import sys, time
import psutil
from flows.clusters import open_cluster
from pipeline.config import Compute
if __name__ == "__main__":
    with open_cluster(Compute(workers=2)):
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        time.sleep(600)
"""


def test_a_run_that_is_killed_leaves_no_worker_and_nothing_that_forks_them(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        processes = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(processes) >= 3
        run.kill()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_workers_that_cannot_be_started_early_are_told_of_when_they_are_needed(config, monkeypatch):
    def broken(*_):
        raise ConfigError("no such cluster")

    monkeypatch.setitem(clusters._KINDS, "local", (*clusters._KINDS["local"][:3], broken))
    asked = config("local", 1)
    with EarlyPool(asked) as pool:
        pool.begin()
        with pytest.raises(ConfigError, match="no such cluster"), pool(asked):
            pass


@pytest.mark.parametrize("executor", ["threads", "tcp://127.0.0.1:9"])
def test_only_workers_of_this_machine_are_started_early(executor, config):
    with EarlyPool(config(executor, 1)) as pool:
        pool.begin()
        assert pool._pool is None


def test_a_pool_that_nobody_began_is_opened_when_it_is_asked_for(config):
    asked = config("local", 1)
    with EarlyPool(asked) as pool, pool(asked) as opened:
        assert opened.executor.submit(simulated_blocks.whoami, None).result(60) in children()


def test_workers_that_are_asked_have_loaded_what_their_first_block_needs(config):
    asked = config("local", 1)
    export_onnx(asked.model)
    with EarlyPool(asked) as pool, pool(asked) as opened:
        found = opened.executor.submit(simulated_blocks.loaded, None).result(60)
    assert found == ["_medians", "_mean", "_nearest", "a model"]


# ---------------------------------------------------------------------------------------------- workers


def needs(config, **changes):
    made = workers.needs_of(config, "token", ())
    return workers.Needs(**{**vars(made), **changes})


def test_a_worker_like_this_process_is_fit(config):
    assert workers.fault(needs(config("threads")), 2**31) == ""


@pytest.mark.parametrize(
    ("changes", "memory", "says"),
    [
        ({"versions": {"numpy": "1.0"}}, 2**31, r"has numpy \S+, the run has 1.0: install the same there"),
        ({"versions": {"dask-moon": "1.0"}}, 2**31, "has dask-moon None"),
        ({"code": "0"}, 2**31, "has other code of clearcause .*: install the same commit"),
        ({"token": "other"}, 2**31, "does not see the run's folder .*: mount the same storage"),
        ({"model_sha256": "0"}, 2**31, "has another model in .*: copy the run's there"),
        ({}, 2**29, "has 512 MiB a thread: give it 1 GiB"),
    ],
)
def test_an_unfit_worker_says_why_and_what_to_do(changes, memory, says, config):
    import re

    assert re.search(says, workers.fault(needs(config("threads"), **changes), memory))


def test_a_worker_without_the_paths_the_model_or_the_right_to_write_is_unfit(config, tmp_path):
    made = config("threads")
    assert "does not see /nowhere" in workers.fault(needs(made, paths=(workers.Path("/nowhere"),)), 2**31)
    assert "cannot use the model" in workers.fault(needs(made, model=tmp_path), 2**31)


def test_a_worker_that_cannot_open_the_model_is_unfit(config):
    asked = config("local", 1)
    broken = asked.model_copy(
        update={"compute": asked.compute.model_copy(update={"precision": "bf16", "engine": "torch"})}
    )
    with pytest.raises(ConfigError, match=r"worker tls://\S+ cannot use the model: .*bf16"), open_pool(broken):
        pass


@pytest.mark.slow
def test_workers_of_a_scheduler_are_checked_at_the_start_and_when_they_join(cluster, config, caplog):
    cluster.worker("small", "--memory-limit", "600MiB")
    asked = config(cluster.address)
    with pytest.raises(ConfigError, match=r"worker tcp://127.0.0.1:\d+ has 600 MiB a thread"), open_pool(asked):
        pass
    cluster.processes["small"].terminate()
    cluster.processes["small"].wait(60)
    cluster.worker("good", "--memory-limit", "3GiB")
    work = asked.work
    # another package of that name hides ours, which may be installed here
    other = cluster.folder / "other" / "flows"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    with caplog.at_level("WARNING", "clearcause"), open_pool(asked) as pool:
        assert pool.slots() == 1
        # one without the right memory, one that cannot load this program, one that will do
        cluster.worker("small", "--memory-limit", "600MiB")
        cluster.worker("bare", "--memory-limit", "3GiB", PYTHONPATH=str(other.parent))
        cluster.worker("late", "--memory-limit", "3GiB")
        deadline = time.monotonic() + 240
        while pool.slots() < 2 or len(caplog.records) < 2:
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.5)
        ledger = drive(tasks(work, [f"b{k}" for k in range(12)]), simulated_blocks.compute, pool)
        assert pool.slots() == 2
    assert "600 MiB a thread" in caplog.text
    assert "cannot load this program" in caplog.text
    assert {r.status for r in ledger.records.values()} == {"done"}
    assert not (work / TRIES).exists()


# ---------------------------------------------------------------------------------------------- deaths


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["local", "scheduler, two threads a worker"])
def test_a_poisonous_block_beside_fifty_good_ones(kind, config, request, tmp_path):
    """It is tried three times, set aside at once, and no committed block is computed twice.

    A scheduler as users start it would try a block four times by itself before it says so.
    """
    if kind == "local":
        asked = config("local", 2)
    else:
        cluster = request.getfixturevalue("cluster")
        for name in ("one", "two"):
            cluster.worker(name, "--nthreads", 2, "--memory-limit", "3GiB")
        asked = config(cluster.address)
    names = [f"b{k:02}" for k in range(50)]
    names.insert(20, POISON)
    with open_pool(asked) as pool:
        ledger = drive(tasks(asked.work, names), simulated_blocks.compute, pool)
        ended = time.time()
    assert [r.block for r in ledger.failed] == [POISON]
    assert "its worker died 3 times" in ledger.records[POISON].reason
    begun = (asked.work / "begun" / POISON).read_text().split()
    assert len(begun) == MAX_ATTEMPTS
    assert ended - float(begun[-1]) < 60
    computed = {path.name: path.read_text() for path in (asked.work / "computed").iterdir()}
    assert computed == dict.fromkeys(set(names) - {POISON}, "x"), "a committed block was computed again"


def test_a_worker_that_dies_with_a_result_that_was_not_fetched_yet(config):
    """The block is told to have been tried; Dask's own executor would wait for it for ever."""
    asked = config("local", 2)
    with open_pool(asked) as pool:
        tried = pool.executor.submit(simulated_blocks.finishes_and_dies, tasks(asked.work, ["b0"])[0])
        with pytest.raises(TriedBefore, match="block b0: this try was begun before"):
            tried.result(120)
        assert drive(tasks(asked.work, ["b1"]), simulated_blocks.compute, pool).records["b1"].status == "done"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_scheduler_that_is_lost(comes_back, cluster, config, monkeypatch):
    """Gone for good, the run ends in one line and keeps what was done; back at its address, the run goes on."""
    monkeypatch.setattr("flows.runtime._USUAL_PATIENCE", 120.0 if comes_back else 10.0)
    for name in ("one", "two"):
        cluster.worker(name, "--memory-limit", "3GiB")
    asked = config(cluster.address)
    ledger = Ledger()
    port = cluster.address.rpartition(":")[2]

    def strike():
        while len(ledger.records) < 5:
            time.sleep(0.05)
        for process in cluster.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait()
        if comes_back:
            cluster.start("again", "scheduler", "--port", port, "--host", "127.0.0.1", "--no-dashboard")
            cluster.worker("three", "--memory-limit", "3GiB")

    striker = threading.Thread(target=strike)
    striker.start()
    work = tasks(asked.work, [f"b{k:02}" for k in range(40)], seconds=0.2)
    try:
        if comes_back:
            with open_pool(asked) as pool:
                drive(work, simulated_blocks.compute, pool, ledger=ledger)
            assert {r.status for r in ledger.records.values()} <= {"done", "existing"}
            assert len(ledger.records) == 40
        else:
            with (
                pytest.raises(IncompleteError, match=r"the Dask scheduler was lost; finished blocks are kept"),
                open_pool(asked) as pool,
            ):
                drive(work, simulated_blocks.compute, pool, ledger=ledger)
            assert 5 <= len(ledger.records) < 40
    finally:
        striker.join()
