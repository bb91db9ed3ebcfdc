"""A run as the program does it: the lock, the log file, progress, an orderly end, and the report in words."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.costs.clock import Clock
from pipeline.drawing import Drawing
from pipeline.errors import ClearcauseError, ProductError
from pipeline.memory import collect_rarely

if TYPE_CHECKING:
    from pipeline.blocks import BlockRecord
    from pipeline.config import RunConfig
    from pipeline.request import Outcome, Request

GRACE = 20.0
"""Seconds from SIGTERM to the end of the process; Kubernetes and Prefect give 30 before they kill."""
_ROOM = 1 << 20


class Orchestrator(ExitStack):
    """Who runs the stages; what it starts for that ends with it.

    Attributes:
        kind: As the forecast calls it: `plain`, `server` or `temporary server`.
    """

    def __init__(self, prefect: bool) -> None:
        """Start nothing yet."""
        super().__init__()
        self.kind = orchestrator_kind(prefect)
        self._address: Callable[[], str] | None = None

    def begin(self) -> None:
        """Set Prefect's defaults, and start a server where it has none, beside what the caller does next."""
        if self.kind == "plain" or self._address:
            return
        _quiet_prefect()
        if self.kind == "temporary server":
            from flows.temporary_server import temporary_server

            self._address = self.enter_context(temporary_server())

    def load(self) -> None:
        """Load what `carry_out` needs, where the caller has to wait anyway."""
        # first, as Prefect reads its settings when it is loaded
        self.begin()
        if self.kind != "plain":
            import flows.regions  # noqa: F401

    def carry_out(self, request: Request) -> Outcome:
        """Run the stages of a request."""
        if self.kind == "plain":
            from pipeline import graph

            return graph.run_region(request)
        self.begin()
        from flows.regions import run_name, run_request

        outcome: Outcome = run_request(request, run_name(request.config), self._address)
        return outcome


def orchestrator_kind(prefect: bool) -> str:
    """Who would run the stages, as the forecast calls it."""
    if not prefect:
        return "plain"
    return "server" if os.environ.get("PREFECT_API_URL") else "temporary server"


def run_config(
    config: RunConfig,
    blocks: tuple[str, ...],
    *,
    allow_incomplete: bool,
    replan: bool,
    by: Orchestrator,
    drawing: Drawing | None = None,
) -> Outcome:
    """Run a configuration as the program does: locked, logged, with progress; `drawing` may have been begun.

    Raises:
        ClearcauseError: as `pipeline.graph.run_region`.
        KeyboardInterrupt: it was interrupted, or told to end (SIGTERM).
    """
    clock, drawing = Clock(), drawing or Drawing()
    collect_rarely()
    # where nothing was run yet there will be a plan, and what draws its patches loads beside this process
    with drawing if replan or not config.work.is_dir() else nullcontext():
        from flows.runtime import EarlyPool, worker_count
        from pipeline import steps
        from pipeline.artifacts import run_lock
        from pipeline.plan import PLAN_FILE
        from pipeline.request import Request

        steps.check_output(config)
        with (
            run_lock(config.work), log_file(config.work), _tells_of_full_disk(config.work), _ends_on_sigterm(),
            _progress() as progress, EarlyPool(config) as pool,
        ):  # fmt: skip

            def loss_is_read() -> None:
                # first, as libraries are not to be loaded in two threads at once
                by.load()
                pool.begin()

            request = Request(
                config, blocks, allow_incomplete, replan, pool, progress, worker_count(config.compute), by.kind, clock,
                loss_is_read, drawing,
            )  # fmt: skip
            if replan:
                return by.carry_out(request)
            # a rerun that has nothing to do starts no orchestrator
            if not (config.work / PLAN_FILE).exists():
                by.begin()
            with clock.stage("plan_run"):
                plan = steps.plan_run(request)
            if (done := steps.current(request, plan)) is not None:
                return done
            if {planned.block.id for planned in plan.blocks} <= steps.finished_blocks(config.work, plan):
                return by.carry_out(request)
            pool.begin()
            return by.carry_out(request)


@contextmanager
def _tells_of_full_disk(work: Path) -> Iterator[None]:
    """Name the place and the remedy where a library fails for want of room; many say something else, or no path."""
    try:
        yield
    except ClearcauseError:
        raise
    except Exception as error:
        free = shutil.disk_usage(work).free
        if free < _ROOM or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            told = " ".join(str(error).split())[:200]
            raise ProductError(
                f"{work}: the disk is full, {free:,} bytes are free ({told}); make room, and run the same command again"
            ) from error
        raise


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: nothing new is begun, and the process is gone within the grace it is usually given.

    What is finished is on disk at every moment, so nothing has to be saved, only left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        last = threading.Timer(GRACE, os._exit, (130,))
        last.daemon = True
        last.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_prefect() -> None:
    """Defaults for a run without a Prefect server of its own; whatever the environment says wins."""
    for key, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # errors end in one line of ours; Prefect's view of them, with tracebacks, goes to its server
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    }.items():
        os.environ.setdefault(key, value)


@contextmanager
def log_file(work: Path) -> Iterator[None]:
    """Write everything, tracebacks included, to run.log beside the checkpoints."""
    logger = logging.getLogger("clearcause")
    logger.setLevel(logging.DEBUG)
    handler = logging.FileHandler(work / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        logger.debug("%s", "".join(traceback.format_exception(error)))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, a plain line for each block otherwise."""
    count = 0
    if not sys.stderr.isatty():

        def line(record: BlockRecord) -> None:
            print(_line(record), file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("blocks"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("", total=None)

        def advance(record: BlockRecord) -> None:
            nonlocal count
            count += 1
            bar.update(job, advance=1, description=_line(record))

        yield advance


def _line(record: BlockRecord) -> str:
    text = f"block {record.block} {record.status}"
    return f"{text}: {record.reason}" if record.reason else f"{text} in {record.seconds:.1f} s"


def report(outcome: Outcome, as_json: bool) -> None:
    """Print how a run ended."""
    if as_json:
        product = outcome.store or str(outcome.product)
        told = {"status": outcome.status, "product": product, "counts": outcome.counts}
        print(json.dumps({**told, "seconds": outcome.seconds, "expected_seconds": outcome.expected}))
        return
    counts = outcome.counts
    if outcome.status == "partial":
        print(f"{counts['computed']} of {counts['blocks']} blocks are done; run without --blocks for the product")
        return
    word = "nothing to do, the product is current" if outcome.status == "current" else "published"
    print(f"{word}: {outcome.store or outcome.product}")
    kinds = ("classified", "uncertain", "no_imagery", "failed")
    print(f"{counts['events']} events, {counts['loss_ha']:,.1f} ha: " + ", ".join(f"{counts[k]} {k}" for k in kinds))
    if outcome.seconds is not None and outcome.expected is not None:
        print(f"predicted {outcome.expected:.0f} s, took {outcome.seconds:.0f} s")
    if counts["awaiting"]:
        print(f"{counts['awaiting']} await an image: run again when the archive has later scenes")
