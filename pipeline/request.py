"""What a run is asked for and how it ends: the values that pass between the program, the flow and the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.blocks import BlockRecord
from pipeline.config import Compute, RunConfig

Progress = Callable[[BlockRecord], None]


@dataclass(frozen=True)
class Pool:
    """Where blocks are computed: a `concurrent.futures` executor, how many blocks at once, and its name."""

    executor: Executor
    slots: int
    name: str


PoolFactory = Callable[[Compute], AbstractContextManager[Pool]]


@contextmanager
def thread_pool(compute: Compute) -> Iterator[Pool]:
    """The plain executor: threads of this process, one block each."""
    slots = 1 if compute.workers == "auto" else compute.workers
    with ThreadPoolExecutor(slots, "block") as executor:
        yield Pool(executor, slots, f"{slots} thread{'s' if slots > 1 else ''} of this process")


@dataclass(frozen=True)
class Request:
    """A run as asked for: the configuration, which blocks (all by default), and what may be left out."""

    config: RunConfig
    blocks: tuple[str, ...] = ()
    allow_incomplete: bool = False
    replan: bool = False
    pool: PoolFactory = field(default=thread_pool, compare=False)
    progress: Progress = field(default=lambda _: None, compare=False)

    @property
    def work(self) -> Path:
        """Folder of the run's state."""
        return self.config.work


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` current, published, or partial (only some blocks were asked for), and the counts."""

    status: str
    product: Path
    counts: dict[str, Any]
