"""Blocks on a local Dask cluster: the same results, and a dead worker costs an attempt, not the run."""

from __future__ import annotations

import pytest
import workers_that_die
from run_samples import ROOT, assert_same_results, layer, run, write_config

from flows.runtime import open_pool, worker_count
from pipeline import steps
from pipeline.config import Compute, load_config
from pipeline.errors import ConfigError
from pipeline.product.inspect import inspect_product

pytestmark = pytest.mark.slow


@pytest.fixture
def on_dask(world, tiny_model, tmp_path, monkeypatch):
    """A configuration for two worker processes, which find this package and the functions that die."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'flows'}")
    return write_config(tmp_path, world, tiny_model, compute__executor="local", compute__workers=2)


def computed(config):
    return {path.name[9:]: path.read_text() for path in load_config(config).work.glob("computed-*")}


def test_dask_gives_the_same_results(on_dask, reference):
    outcome = run(on_dask, pool=open_pool)
    assert_same_results(outcome.product, reference)


def test_a_worker_that_dies_during_a_block_changes_nothing(on_dask, reference, monkeypatch):
    monkeypatch.setattr(steps, "compute_block", workers_that_die.dies_once)
    outcome = run(on_dask, pool=open_pool)
    assert (load_config(on_dask).work / "died-once").exists()
    assert_same_results(outcome.product, reference)
    assert set(computed(on_dask).values()) == {"x"}, "a finished block was computed again"
    assert len(computed(on_dask)) == len(layer(outcome.product, "blocks"))


def test_a_block_that_always_kills_its_worker_is_set_aside(on_dask, reference, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(steps, "compute_block", workers_that_die.always_dies)
        outcome = run(on_dask, pool=open_pool, allow_incomplete=True)
    assert (load_config(on_dask).work / "attempts").read_text() == "xxx"
    done = computed(on_dask)
    assert set(done.values()) == {"x"}, "a finished block was computed again"
    blocks = layer(outcome.product, "blocks").set_index("block_id")
    assert set(blocks.index[blocks["status"] == "done"]) == set(done) == set(blocks.index) - {workers_that_die.VICTIM}
    assert "its worker died 3 times" in blocks.loc[workers_that_die.VICTIM, "reason"]
    assert inspect_product(outcome.product).sound
    mended = run(on_dask)
    assert_same_results(mended.product, reference)


def test_a_scheduler_that_is_not_there_is_bad_input(on_dask):
    config = load_config(on_dask, ("compute.executor=tcp://127.0.0.1:9",))
    with pytest.raises(ConfigError, match=r"compute.executor tcp://127.0.0.1:9"), open_pool(config):
        pass


def test_workers_as_asked_or_as_the_machine_has():
    assert worker_count(Compute(workers=7)) == 7
    assert worker_count(Compute()) >= 1
