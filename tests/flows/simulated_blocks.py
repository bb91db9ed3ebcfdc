"""Blocks that cost nothing, for workers of a cluster: importable by name there, without the libraries of a model."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

POISON = "poison"


@dataclass(frozen=True)
class Task:
    """As much of a `BlockTask` as the ledger looks at."""

    work: Path
    block: str
    batch: int | None = None
    excluded: tuple[str, ...] = ()
    seconds: float = 0.05


def compute(task: Task) -> object:
    """Commit a block by a file of its name; a try is noted before, a computation after. One block kills its worker."""
    from pipeline.blocks import BlockRecord

    done = task.work / "blocks" / task.block
    if done.exists():
        return BlockRecord(task.block, "existing", task.block)
    note(task.work / "begun" / task.block, f"{time.time()} ")
    if task.block.startswith(POISON):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.seconds)
    note(task.work / "computed" / task.block, "x")
    done.write_text(task.block)
    return BlockRecord(task.block, "done", task.block)


def note(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def tasks(work: Path, names: list[str], **changes: float) -> list[Task]:
    for folder in ("begun", "computed", "blocks"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    return [replace(Task(work, name), **changes) for name in names]


def whoami(_task: object) -> int:
    """The process that a block would be computed in."""
    return os.getpid()


def environment(name: object) -> str | None:
    """A variable of the environment that a block would see."""
    return os.environ.get(str(name))


class Fatal:
    """What kills the process that sends it."""

    def __reduce__(self) -> tuple[object, ...]:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)
        return (Fatal,)


def finishes_and_dies(_task: object) -> Fatal:
    """A block that is done, and whose worker dies when it is asked for the result."""
    return Fatal()


def loaded(_: object) -> list[str]:
    """Which of the libraries of a block this process has, whether their compiled loops are there, and a model."""
    from pipeline.composite import _medians
    from pipeline.models.engines import segmenter_for_worker
    from pipeline.resample import _mean, _nearest

    found = [kernel.__name__ for kernel in (_medians, _mean, _nearest) if kernel.overloads]
    return [*found, *["a model"] * segmenter_for_worker.cache_info().currsize]
