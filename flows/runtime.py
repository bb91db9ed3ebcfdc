"""Where blocks are computed: threads, a cluster that is started for the run, or any Dask scheduler by address.

Workers get none of Prefect: with its temporary server every worker that imports a flow starts a server of its own.
Connections to a scheduler by address use the certificates of Dask's configuration (`distributed.comm.tls`): Dask's
ports run whatever they are sent, so a scheduler that others can reach needs TLS.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.clusters import GPU, open_cluster, worker_count
from flows.workers import Needs, examine, needs_of, try_once
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, IncompleteError
from pipeline.request import Pool, thread_pool

__all__ = ["EarlyPool", "open_pool", "worker_count"]

_LOOK = 2.0
"""Seconds between two looks at the workers."""
_UNLOADED = re.compile(r"(ModuleNotFound|Import|Attribute)Error\b")
"""How Dask words an error of loading that it could not send as it was."""
_PATIENCE = {"slurm": 24 * 3600.0, "kubernetes": 3600.0}
_USUAL_PATIENCE = 300.0
"""Seconds without any worker, or without the scheduler, after which a run gives up; jobs may queue for longer."""
_START = 120.0
TRIES = "tries"
_log = logging.getLogger("clearcause")


def open_pool(config: RunConfig) -> AbstractContextManager[Pool]:
    """Open the executor that `compute.executor` names; a factory for `Request.pool`."""
    if config.compute.executor == "threads":
        return thread_pool(config)
    return _cluster_pool(config) if "://" not in config.compute.executor else _scheduler_pool(config)


class EarlyPool:
    """`open_pool` for a run, with workers of this machine that are started beside what comes before the blocks.

    They serve its first use, and end after it, beside what comes next. Workers that are asked for elsewhere are not
    started early: a queue may charge for them.
    """

    def __init__(self, config: RunConfig) -> None:
        """Start nothing yet."""
        self._config = config
        self._thread = ThreadPoolExecutor(1, "pool")
        self._started = ExitStack()
        self._pool: Future[Pool] | None = None
        self._endings: list[Future[None]] = []

    def begin(self) -> None:
        """Start workers now, unless they are started or are not of this machine."""
        if self._config.compute.executor != "local" or self._pool is not None:
            return
        # here, not in the thread: two threads that import packages which import each other may see half of one
        import distributed  # noqa: F401

        self._pool = self._thread.submit(self._started.enter_context, open_pool(self._config))

    @contextmanager
    def __call__(self, config: RunConfig) -> Iterator[Pool]:
        """Open the pool, the one that was begun or another one."""
        if self._pool is None:
            with open_pool(config) as pool:
                yield pool
            return
        begun, self._pool = self._pool, None
        try:
            yield begun.result()
        finally:
            self._end()

    def _end(self) -> None:
        # in the thread that began it: Dask's client keeps a context variable
        self._endings.append(self._thread.submit(self._started.close))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was begun and not used; it cannot be stopped before it has started."""
        self._end()
        for ending in self._endings:
            ending.result()
        self._thread.shutdown()


@contextmanager
def _cluster_pool(config: RunConfig) -> Iterator[Pool]:
    """A cluster of this run's own."""
    from distributed import Client

    # Prefect's logging brings Dask's to the terminal; what matters of it stands in the ledger
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with open_cluster(config.compute) as cluster, Client(cluster) as client, _blocks(client, config) as pool:
        yield pool


@contextmanager
def _scheduler_pool(config: RunConfig) -> Iterator[Pool]:
    """A scheduler that is already there; its workers must have this package and see the same files."""
    import dask
    from distributed import Client

    address = config.compute.executor
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout="20s")
    except (OSError, TypeError) as error:
        # TypeError: what Dask says to a tls:// address without certificates
        raise ConfigError(
            f"compute.executor {address}: no Dask scheduler answers there ({error}); start it, or, for tls://, name "
            "the certificates in Dask's configuration (distributed.comm.tls)"
        ) from error
    # a connection that has gone silent is noticed by this, not by the minutes of TCP
    with dask.config.set({"distributed.comm.timeouts.connect": "30s"}), client, _blocks(client, config) as pool:
        yield pool


@contextmanager
def _blocks(client: Any, config: RunConfig) -> Iterator[Pool]:
    work = config.work
    shutil.rmtree(work / TRIES, ignore_errors=True)
    (work / TRIES).mkdir(parents=True)
    paths = tuple(path for path in (config.imagery.cache, Path(config.imagery.source)) if path.exists())
    token = uuid.uuid4().hex
    workers = _Workers(client, config, needs_of(config, token, paths))
    try:
        workers.first()
        blocks = _Blocks(client, work / TRIES, workers)

        def slots() -> int:
            count = workers.slots()
            blocks.follow()
            return count

        yield Pool(
            blocks,
            slots,
            f"Dask, {config.compute.executor}, {len(workers.fit)} workers",
            client.dashboard_link or "",
        )
    finally:
        workers.close()
        shutil.rmtree(work / TRIES, ignore_errors=True)


@dataclass(eq=False)
class _Try:
    """One try of a block: what its caller waits for, what Dask was asked, and the workers that were allowed then."""

    outer: Future[Any]
    call: tuple[Any, ...]
    mark: Path
    workers: frozenset[str] = frozenset()
    inner: Any = None


class _Blocks(Executor):
    """Blocks on Dask: each submission is begun at most once, and only on workers that were found fit.

    Not Dask's own executor: it never ends a future whose worker dies between the end of a task and the fetching of its
    result, as the scheduler then tries the task again and its error comes out of the fetching.
    """

    def __init__(self, client: Any, tries: Path, workers: _Workers) -> None:
        self._client, self._tries, self._workers = client, tries, workers
        self._guard = threading.Lock()
        self._open: set[_Try] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        """Hand over `fn(task)`; keywords are not taken."""
        (task,) = args
        mark = self._tries / uuid.uuid4().hex
        one = _Try(Future(), (fn, task, mark), mark)
        one.outer.set_running_or_notify_cancel()
        self._open.add(one)
        self._send(one)
        return one.outer

    def follow(self) -> None:
        """Send again what waits for workers that are all gone; had it been begun, its mark would tell."""
        fit = frozenset(self._workers.fit)
        for one in [one for one in list(self._open) if fit and not one.workers & fit]:
            left = one.inner
            self._send(one)
            if left is not None:
                left.cancel()

    def _send(self, one: _Try) -> None:
        one.workers = frozenset(self._workers.fit)
        one.inner = self._client.submit(
            try_once, *one.call, workers=list(one.workers), resources=self._workers.resources, pure=False, retries=0
        )

        def fetch(done: Any) -> None:
            # Dask has one thread for all callbacks, and fetching a result may wait for another try of its task
            threading.Thread(target=self._end, args=(one, done), name="result", daemon=True).start()

        one.inner.add_done_callback(fetch)

    def _end(self, one: _Try, done: Any) -> None:
        """Fetch what a try has come to and hand it on, unless it was sent again meanwhile."""
        result: Any = None
        error: Exception | CancelledError | None = None
        try:
            result = done.result()
        except CancelledError:
            error = CancelledError("the scheduler was lost")
        except Exception as raised:
            error = raised
        with self._guard:
            if one.inner is not done or one not in self._open:
                return
            self._open.discard(one)
        one.mark.unlink(missing_ok=True)
        if error is None:
            one.outer.set_result(result)
        else:
            one.outer.set_exception(error)


class _Workers:
    """The workers of a run: found, checked once each, and counted; says when there are none any more."""

    def __init__(self, client: Any, config: RunConfig, needs: Needs) -> None:
        self._client, self._needs = client, needs
        compute = config.compute
        by_address = "://" in compute.executor
        # a cluster of the run's own has as many workers as were asked for
        self._most = None if compute.workers == "auto" or not by_address else compute.workers
        self._name = compute.executor
        self._patience = _PATIENCE.get(compute.executor, _USUAL_PATIENCE)
        self.fit: dict[str, int] = {}
        self._unfit: set[str] = set()
        self._gpu = False
        self._seen = self._looked = time.monotonic()
        self._jobs = ThreadPoolExecutor(2, "workers")
        self._counting: Future[dict[str, int]] | None = None
        self._asking: Future[dict[str, str]] | None = None
        self._threads: dict[str, int] = {}

    @property
    def resources(self) -> dict[str, int]:
        """Dask resources of a block: a GPU where the cluster has any."""
        return {GPU: 1} if self._gpu else {}

    def first(self) -> None:
        """Wait for workers and check them.

        Raises:
            ConfigError: a worker is not fit, in one line that names it and the remedy.
            IncompleteError: none came.
        """
        start = time.monotonic()
        patience = max(self._patience, _START) if self._name in _PATIENCE else _START
        while not self.fit:
            self._threads = self._client.nthreads()
            said = self._ask(list(self._threads)) if self._threads else {}
            if faults := self._take(said):
                address, why = faults[0]
                more = f" ({len(faults)} of {len(said)} workers are unfit)" if len(faults) > 1 else ""
                raise ConfigError(f"compute.executor {self._name}: worker {address} {why}{more}")
            if not self.fit and time.monotonic() - start > patience:
                raise IncompleteError(
                    f"compute.executor {self._name}: no worker came in {patience:.0f} s; start workers, and run the "
                    "same command again"
                )
            if not self.fit:
                time.sleep(_LOOK / 4)

    def slots(self) -> int:
        """How many blocks may be computed at once now; workers that have come since are checked meanwhile."""
        now = time.monotonic()
        self._look(now)
        if self.fit and self._client.status == "running":
            self._seen = now
        elif now - self._seen > self._patience or self._client.status in ("closed", "closing"):
            what = "no worker is left" if self._client.status == "running" else "the Dask scheduler was lost"
            raise IncompleteError(
                f"compute.executor {self._name}: {what}; finished blocks are kept: start it again, and run the same "
                "command again"
            )
        total = sum(self.fit.values()) if self._client.status == "running" else 0
        return total if self._most is None else min(total, self._most)

    def close(self) -> None:
        """Look no more."""
        self._jobs.shutdown(wait=False, cancel_futures=True)

    def _look(self, now: float) -> None:
        """Count the workers and ask the new ones, beside the run: an answer takes as long as libraries load."""
        if self._counting is not None and self._counting.done():
            if self._counting.exception() is None:
                self._threads = self._counting.result()
                self.fit = {address: count for address, count in self._threads.items() if address in self.fit}
            self._counting = None
        if self._asking is not None and self._asking.done():
            if self._asking.exception() is None:
                for address, why in self._take(self._asking.result()):
                    _log.warning("worker %s is left out: it %s", address, why)
            self._asking = None
        if self._client.status != "running" or now - self._looked < _LOOK:
            return
        self._looked = now
        if self._counting is None:
            self._counting = self._jobs.submit(self._client.nthreads)
        new = [address for address in self._threads if address not in self.fit and address not in self._unfit]
        if new and self._asking is None:
            self._asking = self._jobs.submit(self._ask, new)

    def _take(self, said: dict[str, str]) -> list[tuple[str, str]]:
        """Note what workers said about themselves; returns the unfit ones with the reason."""
        self.fit |= {address: self._threads[address] for address, why in said.items() if not why}
        faults = [(address, why) for address, why in said.items() if why]
        self._unfit |= {address for address, _ in faults}
        return faults

    def _ask(self, addresses: list[str]) -> dict[str, str]:
        """Let workers examine themselves; one that goes meanwhile is not among the answers, and is asked again."""
        answers: dict[str, Any] = self._client.run(examine, self._needs, workers=addresses, on_error="return")
        info = self._client.scheduler_info(n_workers=-1)["workers"]
        self._gpu = self._gpu or any(worker.get("resources", {}).get(GPU) for worker in info.values())
        said = {}
        for address, answer in answers.items():
            text = " ".join(str(answer).split())
            unloaded = type(answer) is Exception and _UNLOADED.match(text)
            if unloaded or isinstance(answer, ImportError | AttributeError):
                said[address] = f"cannot load this program ({text}): install the same clearcause there"
            elif isinstance(answer, Exception) and not isinstance(answer, OSError):
                said[address] = f"cannot be checked ({type(answer).__name__}: {text}): see its log"
            elif isinstance(answer, str):
                said[address] = answer
        return said
