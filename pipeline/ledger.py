"""The ledger: every block of a run ends in a counted state, whatever its worker does.

Blocks are handed to any `concurrent.futures` executor (a thread pool, or Dask), never more than it has room for. A
scene that cannot be read is excluded for all blocks. A block that runs out of memory is tried with smaller batches, and
so are all that follow. One whose worker died is tried again among the others, then once more alone, so that no block is
set aside for what its neighbour did; after three tries it is set aside with its reason.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field

from pipeline.blocks import BlockRecord, BlockTask
from pipeline.errors import ClearcauseError, SceneError
from pipeline.request import Pool

MAX_ATTEMPTS = 3
_PAUSE = 1.0
"""Seconds after which the pool is looked after although no block has ended."""
_DEATHS = (
    "KilledWorker", "BrokenProcessPool", "CancelledError", "FutureCancelledError", "CommClosedError", "FutureLostError",
    "TriedBefore",
)  # fmt: skip
_MEMORY = ("MemoryError", "OutOfMemoryError")


@dataclass
class Ledger:
    """States of all blocks: `records` by block id, `excluded` scenes with the reason.

    `batch` is the most patches to a call of the model that memory has allowed; None = what the engine finds.
    """

    records: dict[str, BlockRecord] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    batch: int | None = None

    @property
    def failed(self) -> list[BlockRecord]:
        """Blocks that could not be computed."""
        return [r for r in self.records.values() if r.status == "failed"]


def drive(
    tasks: Sequence[BlockTask],
    compute: Callable[[BlockTask], BlockRecord],
    pool: Pool,
    progress: Callable[[BlockRecord], None] = lambda _: None,
    ledger: Ledger | None = None,
) -> Ledger:
    """Run `compute` over all tasks, as many at a time as the pool has slots, and account for each of them.

    A `ledger` that is given is filled as blocks end, so that it is right whenever this is interrupted.

    Raises:
        IncompleteError: the pool has lost its workers for good.
    """
    ledger = Ledger() if ledger is None else ledger
    rounds = list(tasks)
    while rounds:
        known = set(ledger.excluded)
        _Round(rounds, compute, pool, progress, ledger).run()
        # a scene found unreadable midway must go from the blocks that were done with it too; the checkpoint's name
        # tells: a block that never used it is found at once
        again = set(ledger.excluded) != known
        rounds = [task for task in tasks if again and ledger.records[task.block].status != "failed"]
    return ledger


class _Round:
    """Each task, until it ends in a record of the ledger."""

    def __init__(
        self,
        tasks: Sequence[BlockTask],
        compute: Callable[[BlockTask], BlockRecord],
        pool: Pool,
        progress: Callable[[BlockRecord], None],
        ledger: Ledger,
    ) -> None:
        self.compute, self.pool, self.progress, self.ledger = compute, pool, progress, ledger
        self.waiting = deque((task, 1) for task in tasks)
        self.alone: deque[tuple[BlockTask, int]] = deque()
        self.running: dict[Future[BlockRecord], tuple[BlockTask, int]] = {}

    def run(self) -> None:
        try:
            while self.waiting or self.alone or self.running:
                self._fill(self.pool.slots())
                if not self.running:
                    time.sleep(_PAUSE)
                    continue
                done, _ = wait(self.running, timeout=_PAUSE, return_when=FIRST_COMPLETED)
                for future in done:
                    self._end(future)
        finally:
            for future in self.running:
                future.cancel()

    def _fill(self, slots: int) -> None:
        while self.waiting and len(self.running) < slots:
            self._submit(*self.waiting.popleft())
        if self.alone and slots and not self.running:
            self._submit(*self.alone.popleft())

    def _submit(self, task: BlockTask, attempt: int) -> None:
        known = [batch for batch in (task.batch, self.ledger.batch) if batch]
        task = dataclasses.replace(
            task, excluded=tuple(sorted(self.ledger.excluded)), batch=min(known) if known else None
        )
        self.running[self.pool.executor.submit(self.compute, task)] = (task, attempt)

    def _end(self, future: Future[BlockRecord]) -> None:
        task, attempt = self.running.pop(future)
        outcome = _settle(future, task, attempt, self.ledger)
        if isinstance(outcome, BlockRecord):
            self.ledger.records[task.block] = outcome
            self.progress(outcome)
        elif outcome[1] == MAX_ATTEMPTS and outcome[1] > attempt:
            self.alone.append(outcome)
        else:
            self.waiting.append(outcome)


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
            ledger.batch = min(filter(None, (ledger.batch, max((task.batch or 2) // 2, 1))))
            return task, attempt + 1
        return BlockRecord(task.block, "failed", reason=_reason(error, kind, attempt), attempts=attempt)


def _reason(error: BaseException, kind: str, tries: int) -> str:
    if kind in _DEATHS:
        return f"its worker died {tries} times (out of memory, or a crash in a library): {kind}"
    text = " ".join(str(error).split())
    return text if isinstance(error, ClearcauseError) else f"{kind}: {text}"
