"""The ledger: every block of a run ends in a counted state, whatever its worker does.

Blocks are handed to any `concurrent.futures` executor (a thread pool, or a Dask client's), never more than there are
workers, so that a block which kills its worker takes no waiting neighbour with it. A scene that cannot be read is
excluded for all blocks; a block that runs out of memory is tried with smaller batches; one that kills its worker three
times is set aside with its reason.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass, field

from pipeline.blocks import BlockRecord, BlockTask
from pipeline.errors import ClearcauseError, SceneError

MAX_ATTEMPTS = 3
_DEATHS = ("KilledWorker", "BrokenProcessPool", "CancelledError", "FutureCancelledError", "CommClosedError")
_MEMORY = ("MemoryError", "OutOfMemoryError")


@dataclass
class Ledger:
    """States of all blocks: `records` by block id, and `excluded` scenes with the reason."""

    records: dict[str, BlockRecord] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[BlockRecord]:
        """Blocks that could not be computed."""
        return [r for r in self.records.values() if r.status == "failed"]


def drive(
    tasks: Sequence[BlockTask],
    compute: Callable[[BlockTask], BlockRecord],
    executor: Executor,
    slots: int,
    progress: Callable[[BlockRecord], None] = lambda _: None,
) -> Ledger:
    """Run `compute` over all tasks, at most `slots` at a time, and account for each of them."""
    ledger = Ledger()
    rounds = list(tasks)
    while rounds:
        known = set(ledger.excluded)
        _drive_round(rounds, compute, executor, slots, (ledger, progress))
        # a scene found unreadable midway must go from the blocks that were done with it too; the checkpoint's name
        # tells: a block that never used it is found at once
        again = set(ledger.excluded) != known
        rounds = [task for task in tasks if again and ledger.records[task.block].status != "failed"]
    return ledger


def _drive_round(
    tasks: Sequence[BlockTask],
    compute: Callable[[BlockTask], BlockRecord],
    executor: Executor,
    slots: int,
    book: tuple[Ledger, Callable[[BlockRecord], None]],
) -> None:
    """Run each task until it ends in a record of the ledger."""
    ledger, progress = book
    waiting = deque((task, 1) for task in tasks)
    running: dict[Future[BlockRecord], tuple[BlockTask, int]] = {}
    while waiting or running:
        while waiting and len(running) < slots:
            task, attempt = waiting.popleft()
            task = dataclasses.replace(task, excluded=tuple(sorted(ledger.excluded)))
            running[executor.submit(compute, task)] = (task, attempt)
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task, attempt = running.pop(future)
            outcome = _settle(future, task, attempt, ledger)
            if isinstance(outcome, BlockRecord):
                ledger.records[task.block] = outcome
                progress(outcome)
            else:
                waiting.append(outcome)


def _settle(
    future: Future[BlockRecord], task: BlockTask, attempt: int, ledger: Ledger
) -> BlockRecord | tuple[BlockTask, int]:
    """Return how a block ended, or the task and number of the next attempt."""
    try:
        return dataclasses.replace(future.result(), attempts=attempt)
    except SceneError as error:
        if error.scene_id in task.excluded:
            return BlockRecord(task.block, "failed", reason=str(error), attempts=attempt)
        ledger.excluded[error.scene_id] = error.reason
        return task, attempt
    except (Exception, CancelledError) as error:
        # whatever a worker raises becomes the block's recorded reason: nothing is swallowed, the run goes on
        kind = type(error).__name__
        if attempt < MAX_ATTEMPTS and kind in _DEATHS:
            return task, attempt + 1
        if attempt < MAX_ATTEMPTS and kind in _MEMORY:
            return dataclasses.replace(task, batch=max((task.batch or 2) // 2, 1)), attempt + 1
        return BlockRecord(task.block, "failed", reason=_reason(error, kind, attempt), attempts=attempt)


def _reason(error: BaseException, kind: str, tries: int) -> str:
    if kind in _DEATHS:
        return f"its worker died {tries} times (out of memory, or a crash in a library): {kind}"
    text = " ".join(str(error).split())
    return text if isinstance(error, ClearcauseError) else f"{kind}: {text}"
