"""Block functions for Dask workers: importable by name in a worker process, unlike a test's own functions."""

from __future__ import annotations

import os
import signal

from pipeline.blocks import BlockRecord, BlockTask, compute_block

VICTIM = "r0001c0001"


def dies_once(task: BlockTask) -> BlockRecord:
    """The first attempt at one block kills its worker in the middle, as the system does when memory runs out."""
    marker = task.work / "died-once"
    if task.block == VICTIM and not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return _noted(task)


def always_dies(task: BlockTask) -> BlockRecord:
    """One block kills every worker that tries it."""
    if task.block == VICTIM:
        with (task.work / "attempts").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return _noted(task)


def _noted(task: BlockTask) -> BlockRecord:
    """Compute, and note every time a block is really computed."""
    record = compute_block(task)
    if record.status == "done":
        with (task.work / f"computed-{task.block}").open("a") as file:
            file.write("x")
    return record
