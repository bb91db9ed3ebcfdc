"""What is freed is given back, and what other processes compute with is not held here."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_samples import World, run, write_config

from pipeline.config import RunConfig
from pipeline.memory import loading
from pipeline.models.engines import segmenter_for_worker
from pipeline.request import thread_pool

FRAGMENTS = """
from pathlib import Path
from pipeline.memory import give_back

def resident():
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) >> 10

pieces = [bytearray(60_000) for _ in range(4_000)]
full = resident()
del pieces[:-1]  # the last one lies above the others, which therefore stay with the process
freed = resident()
give_back()
print(full, freed, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    said = subprocess.run([sys.executable, "-c", FRAGMENTS], check=True, capture_output=True, text=True).stdout
    full, freed, given_back = map(int, said.split())
    assert freed > full - 100
    assert given_back < full - 200


@pytest.mark.parametrize(("executor", "held"), [("local", 0), ("threads", 1)])
def test_a_model_is_held_where_it_will_be_used(
    world: World, tiny_model: Path, tmp_path: Path, executor: str, held: int
) -> None:
    models: list[int] = []

    def looking_pool(config: RunConfig) -> Any:
        models.append(segmenter_for_worker.cache_info().currsize)
        return thread_pool(config)

    segmenter_for_worker.cache_clear()
    config = write_config(tmp_path, world, tiny_model, compute__executor=executor, compute__engine="openvino")
    run(config, pool=looking_pool)
    assert models == [held]


def test_nothing_is_collected_while_libraries_load_nor_among_them_later() -> None:
    assert gc.isenabled()
    try:
        with loading():
            assert not gc.isenabled()
            stays = [[] for _ in range(1000)]  # type: ignore[var-annotated]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(stays)
    finally:
        gc.unfreeze()


def test_collecting_stays_off_for_who_has_switched_it_off() -> None:
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
