from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.workers import TriedBefore
from pipeline.blocks import BlockRecord, BlockTask
from pipeline.errors import IncompleteError, ModelError, SceneError
from pipeline.ledger import MAX_ATTEMPTS, Ledger, drive
from pipeline.request import Pool


class KilledWorker(Exception):
    """Named like Dask's own: the ledger knows it by name, so that it need not import Dask."""


class OutOfMemoryError(RuntimeError):
    """Named like torch's own."""


def tasks_of(*blocks, batch=None):
    return [BlockTask(Path("work"), "inputs", block, Path("model"), batch=batch) for block in blocks]


def done(task):
    """A record whose checkpoint tells which scenes were left out, as the real name does."""
    return BlockRecord(task.block, "done", checkpoint=",".join(task.excluded))


def run(tasks, compute, slots=2, progress=lambda _: None):
    with ThreadPoolExecutor(slots) as executor:
        return drive(tasks, compute, Pool(executor, lambda: slots, "test"), progress)


def test_all_done_and_each_reported_once():
    said = []
    ledger = run(tasks_of("a", "b", "c"), done, progress=said.append)
    assert sorted(ledger.records) == sorted(r.block for r in said) == ["a", "b", "c"]
    assert {r.status for r in ledger.records.values()} == {"done"}
    assert {r.attempts for r in ledger.records.values()} == {1}
    assert (ledger.failed, ledger.excluded) == ([], {})


def test_nothing_to_do():
    assert run([], done).records == {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("odd\n shape"), "ValueError: odd shape"),
        (ModelError("model m: damaged"), "model m: damaged"),
        (RuntimeError(), "RuntimeError: "),
    ],
)
def test_one_fails_with_its_reason_and_the_others_are_done(error, reason):
    calls = Counter()

    def compute(task):
        calls[task.block] += 1
        if task.block == "b":
            raise error
        return done(task)

    ledger = run(tasks_of("a", "b", "c"), compute)
    assert {b: r.status for b, r in ledger.records.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert [r.reason for r in ledger.failed] == [reason]
    assert calls["b"] == 1  # what cannot get better is not tried again


@pytest.mark.parametrize("slots", [1, 3])
def test_an_unreadable_scene_goes_from_all_blocks_even_those_done_before(slots):
    calls = []

    def compute(task):
        calls.append((task.block, task.excluded))
        if task.block == "c" and "S1" not in task.excluded:
            raise SceneError("S1", "red unreadable")
        return done(task)

    ledger = run(tasks_of("a", "b", "c"), compute, slots)
    assert ledger.excluded == {"S1": "red unreadable"}
    assert {r.checkpoint for r in ledger.records.values()} == {"S1"}
    assert not ledger.failed
    assert {("a", ("S1",)), ("b", ("S1",)), ("c", ("S1",))} <= set(calls)


def test_two_unreadable_scenes_found_one_after_the_other():
    def compute(task):
        for scene, block in (("S1", "a"), ("S2", "c")):
            if task.block == block and scene not in task.excluded:
                raise SceneError(scene, "gone")
        return done(task)

    ledger = run(tasks_of("a", "b", "c"), compute, 1)
    assert sorted(ledger.excluded) == ["S1", "S2"]
    assert {r.checkpoint for r in ledger.records.values()} == {"S1,S2"}


def test_a_scene_that_fails_although_it_was_left_out_ends_the_block_and_not_the_run():
    def compute(task):
        raise SceneError("S1", "gone")

    ledger = run(tasks_of("a"), compute)
    assert [r.reason for r in ledger.failed] == ["scene S1: gone"]


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemoryError])
@pytest.mark.parametrize(("given", "batches"), [(None, [None, 1, 1]), (8, [8, 4, 2])])
def test_out_of_memory_is_tried_again_with_smaller_batches(kind, given, batches):
    seen = []

    def compute(task):
        seen.append(task.batch)
        if len(seen) < 3:
            raise kind("no room")
        return done(task)

    ledger = run(tasks_of("a", batch=given), compute)
    assert seen == batches
    assert (ledger.records["a"].status, ledger.records["a"].attempts) == ("done", 3)


def test_out_of_memory_does_not_go_on_for_ever():
    def compute(task):
        raise MemoryError("no room")

    record = run(tasks_of("a"), compute).records["a"]
    assert (record.status, record.reason, record.attempts) == ("failed", "MemoryError: no room", MAX_ATTEMPTS)


@pytest.mark.parametrize(
    "error", [KilledWorker("block a"), CancelledError(), TriedBefore()], ids=lambda e: type(e).__name__
)
def test_a_block_that_kills_its_worker_three_times_is_set_aside_and_the_others_are_done(error):
    calls = Counter()

    def compute(task):
        calls[task.block] += 1
        if task.block == "b":
            raise error
        return done(task)

    ledger = run(tasks_of("a", "b", "c", "d"), compute)
    assert calls == {"a": 1, "b": MAX_ATTEMPTS, "c": 1, "d": 1}
    assert ledger.records["b"].attempts == MAX_ATTEMPTS
    assert f"its worker died {MAX_ATTEMPTS} times" in ledger.records["b"].reason
    assert type(error).__name__ in ledger.records["b"].reason


def test_a_worker_that_dies_twice_is_forgiven():
    calls = Counter()

    def compute(task):
        calls[task.block] += 1
        if calls[task.block] < MAX_ATTEMPTS:
            raise KilledWorker
        return done(task)

    record = run(tasks_of("a"), compute).records["a"]
    assert (record.status, record.attempts) == ("done", MAX_ATTEMPTS)


def test_an_interrupt_is_no_failure_of_a_block():
    def compute(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tasks_of("a"), compute)


def test_the_last_try_of_a_suspect_is_alone_so_that_no_neighbour_is_set_aside_for_it():
    """A worker with two threads: whatever runs beside the poisonous block dies with it."""
    beside, tries, lock = set(), Counter(), threading.Lock()

    def compute(task):
        with lock:
            beside.add(task.block)
            tries[task.block] += 1
        time.sleep(0.05)
        with lock:
            poisoned = "poison" in beside
            beside.discard(task.block)
        if task.block == "poison" or poisoned:
            time.sleep(0.05 if task.block == "poison" else 0)
            raise KilledWorker
        return done(task)

    ledger = run(tasks_of("a", "poison", "b", "c", "d"), compute, 2)
    assert [r.block for r in ledger.failed] == ["poison"]
    assert tries["poison"] == MAX_ATTEMPTS
    assert "its worker died 3 times" in ledger.records["poison"].reason


def test_a_batch_that_was_too_large_is_remembered_for_the_blocks_that_follow():
    seen = []

    def compute(task):
        seen.append((task.block, task.batch))
        if task.batch is None or task.batch > 4:
            raise MemoryError("no room")
        return done(task)

    ledger = run(tasks_of("a", "b", batch=8) + tasks_of("c"), compute, 1)
    assert not ledger.failed
    assert ledger.batch == 4
    assert seen == [("a", 8), ("b", 4), ("c", 4), ("a", 4)]


def test_blocks_wait_while_there_is_no_worker():
    asked = []

    def slots():
        asked.append(1)
        return 0 if len(asked) < 3 else 1

    with ThreadPoolExecutor(1) as executor:
        ledger = drive(tasks_of("a"), done, Pool(executor, slots, "test"))
    assert (ledger.records["a"].status, len(asked)) == ("done", 3)


def test_a_pool_without_hope_ends_the_run_and_what_was_done_is_in_the_ledger():
    ledger, asked, stop = Ledger(), [], threading.Event()

    def slots():
        asked.append(1)
        if ledger.records:
            raise IncompleteError("no worker is left")
        return 2

    def compute(task):
        if task.block != "a":
            stop.wait(20)
        return done(task)

    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(IncompleteError, match="no worker is left"):
            drive(tasks_of("a", "b", "c"), compute, Pool(executor, slots, "test"), ledger=ledger)
        stop.set()
    assert set(ledger.records) == {"a"}


class CountingPool(ThreadPoolExecutor):
    """Knows the largest number of blocks that were handed over and not finished."""

    def __init__(self, workers):
        super().__init__(workers)
        self.open, self.most = [], 0

    def submit(self, function, /, *args, **kwargs):
        self.open = [future for future in self.open if not future.done()]
        future = super().submit(function, *args, **kwargs)
        self.open.append(future)
        self.most = max(self.most, len(self.open))
        return future


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_never_more_blocks_are_handed_over_than_there_are_slots(slots):
    def compute(task):
        time.sleep(0.01)
        if task.block == "5" and "S" not in task.excluded:
            raise SceneError("S", "gone")
        return done(task)

    with CountingPool(8) as pool:
        ledger = drive(tasks_of(*map(str, range(12))), compute, Pool(pool, lambda: slots, "test"))
    assert len(ledger.records) == 12
    assert pool.most == slots


faults = st.lists(st.sampled_from(["value", "memory", "killed", "S1", "S2", "wrong S1"]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(faults, min_size=1, max_size=6), st.integers(1, 3))
def test_every_block_ends_in_a_counted_state_whatever_its_worker_does(scripts, slots):
    """Each block follows a script of faults; what is read twice is found to be there ("existing")."""
    left = {str(k): list(script) for k, script in enumerate(scripts)}
    kept, lock = set(), threading.Lock()

    def compute(task):
        with lock:
            fault = left[task.block].pop(0) if left[task.block] else None
        if fault in ("value", "memory", "killed"):
            raise {"value": ValueError, "memory": MemoryError, "killed": KilledWorker}[fault]("scripted")
        if fault in ("S1", "S2") and fault not in task.excluded:
            raise SceneError(fault, "scripted")
        if fault == "wrong S1":
            raise SceneError("S1", "scripted")
        name = (task.block, task.excluded)
        with lock:
            status = "existing" if name in kept else "done"
            kept.add(name)
        return BlockRecord(task.block, status, checkpoint=",".join(task.excluded))

    said = []
    ledger = run(tasks_of(*left), compute, slots, said.append)
    states = Counter(record.status for record in ledger.records.values())
    assert sorted(ledger.records) == sorted(left)
    assert set(states) <= {"done", "existing", "failed"}
    assert states["done"] + states["existing"] + states["failed"] == len(scripts)
    assert len(ledger.failed) == states["failed"]
    assert set(ledger.excluded) <= {"S1", "S2"}
    final = ",".join(sorted(ledger.excluded))
    for block, record in ledger.records.items():
        assert record.block == block
        assert record.attempts <= MAX_ATTEMPTS
        if record.status == "failed":
            assert record.reason
        else:  # no block that was kept has used a scene that is out
            assert record.checkpoint == final
    assert {record.block for record in said} == set(left)
