"""What a run is asked for and how it ends: the values that pass between the program, the flow and the stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifacts import write_json
from pipeline.blocks import BlockRecord
from pipeline.config import RunConfig
from pipeline.costs.clock import Clock
from pipeline.drawing import Drawing
from pipeline.errors import ConfigError

REQUEST_FILE = "request.json"
ENGINE_FILE = "engine.json"
"""How far the engine of a run agrees with float32, where it is not the plainest one."""
Progress = Callable[[BlockRecord], None]


@dataclass(frozen=True)
class Pool:
    """Where blocks are computed: a `concurrent.futures` executor and its `name`; `dashboard` is Dask's page, or empty.

    `slots` says how many blocks may be computed at once just now. It is asked again and again while blocks wait, looks
    after the workers meanwhile, and raises IncompleteError when there will be none any more.
    """

    executor: Executor
    slots: Callable[[], int]
    name: str
    dashboard: str = ""


PoolFactory = Callable[[RunConfig], AbstractContextManager[Pool]]


@contextmanager
def thread_pool(config: RunConfig) -> Iterator[Pool]:
    """The plain executor: threads of this process, one block each."""
    slots = 1 if config.compute.workers == "auto" else config.compute.workers
    executor = ThreadPoolExecutor(slots, "block")
    try:
        yield Pool(executor, lambda: slots, f"{slots} thread{'s' if slots > 1 else ''} of this process")
    except BaseException:
        # whoever interrupts does not wait for the blocks that are under way
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


@dataclass(frozen=True)
class Request:
    """A run as asked for: the configuration, which blocks (all by default), and what may be left out.

    `workers` (how many there will be, where the caller knows) and `orchestrator` (see `pipeline.costs.forecast`) are
    for the forecast, which `clock` holds against what the run took. `begin_pool` is called once a plan is being made
    and its local inputs have been found good: the pool may start meanwhile. `drawing` draws the patches of a plan; who
    knows that one will be made may have begun it.
    """

    config: RunConfig
    blocks: tuple[str, ...] = ()
    allow_incomplete: bool = False
    replan: bool = False
    pool: PoolFactory = field(default=thread_pool, compare=False)
    progress: Progress = field(default=lambda _: None, compare=False)
    workers: int | None = None
    orchestrator: str = "none"
    clock: Clock = field(default_factory=Clock, compare=False)
    begin_pool: Callable[[], None] = field(default=lambda: None, compare=False)
    drawing: Drawing = field(default_factory=Drawing, compare=False)

    @property
    def work(self) -> Path:
        """Folder of the run's state."""
        return self.config.work

    def remember(self) -> None:
        """Leave the configuration in the run's folder, so that the run can be told about and repeated without it."""
        self.work.mkdir(parents=True, exist_ok=True)
        path = self.work / REQUEST_FILE
        write_json(path, {"config": self.config.model_dump(mode="json")})
        path.chmod(0o600)


def remembered(work: Path) -> RunConfig:
    """The configuration that the last run in this folder was asked with.

    Raises:
        ConfigError: none was run here, or by a version of this program with other keys.
    """
    path = work / REQUEST_FILE
    try:
        return RunConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))["config"])
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: not there, so nothing was run here; use `clearcause run CONFIG`") from error
    except (ValidationError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: is of another version of Clearcause; use `clearcause run CONFIG`") from error


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` current, published, or partial (only some blocks were asked for), and the counts.

    `store` is the address that the product was published to, if any. `seconds` and `expected` are what a published run
    took and what was predicted.
    """

    status: str
    product: Path
    counts: dict[str, Any]
    store: str = ""
    seconds: float | None = None
    expected: float | None = None
