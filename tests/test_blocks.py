"""Processes that compute blocks: what they load, and what they say they took."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from rasterio._env import get_gdal_config
from run_samples import World, checkpoints, run, write_config

from pipeline import imagery
from pipeline.config import load_config
from pipeline.grid import Block, RunGrid
from pipeline.lattice import PatchLayout
from pipeline.plan import PLAN_FILE

COMPUTE = """
import json, sys
from pathlib import Path
from pipeline.artifacts import file_sha256
from pipeline.blocks import BlockTask, compute_block
work, model, block, cache = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
record = compute_block(BlockTask(work, file_sha256(work / "plan.json"), block, model, cache=cache))
heavy = ("torch", "torchgeo", "torchvision", "segmentation_models_pytorch", "geopandas", "prefect", "distributed")
print(json.dumps([record.status, record.checkpoint, [name for name in heavy if name in sys.modules]]))
"""
PEAK = "from pipeline.blocks import peak_rss_mb; print(peak_rss_mb())"


def python(code: str, *arguments: object) -> str:
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def test_a_cpu_worker_computes_the_same_block_without_torch_and_torchgeo(
    world: World, tiny_model: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path, world, tiny_model, compute__engine="onnx")
    run(path)
    config = load_config(path)
    before = checkpoints(path)[0]
    whole = {file.name: file.read_bytes() for file in before.iterdir()}
    shutil.rmtree(before)
    block = json.loads((config.work / PLAN_FILE).read_text())["blocks"][0]["block"]["id"]
    status, name, loaded = json.loads(python(COMPUTE, config.work, config.model, block, config.imagery.cache))
    assert (status, name, loaded) == ("done", before.name, [])
    again = {file.name: file.read_bytes() for file in before.iterdir()}
    assert {key: whole[key] for key in whole if key != "block.json"} == {
        key: again[key] for key in again if key != "block.json"
    }


def test_the_peak_memory_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it() -> None:
    alone = int(python(PEAK))
    large = np.ones(int((alone + 400) * 2**20), np.uint8)
    assert int(python(PEAK)) < alone + 200
    grown = f"import numpy as np; a = np.ones({400 * 2**20}, np.uint8); {PEAK}"
    assert int(python(grown)) > 400 + alone / 2
    assert large[0]


def test_half_precision_is_another_model_and_the_product_says_how_far_it_agrees(
    world: World, tiny_model: Path, tmp_path: Path
) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    path = write_config(tmp_path, world, tiny_model, compute__engine="auto")
    record = run(path).product / "run.json"
    full, before = json.loads(record.read_text()), set(checkpoints(path))
    assert full["timings"]["engine"] is None
    half = json.loads((run(path, "compute.precision=bf16").product / "run.json").read_text())
    assert half["timings"]["engine"]["precision"] == "bf16"
    assert 0.95 < half["timings"]["engine"]["argmax_agreement"] <= 1
    assert [text for text in half["warnings"] if "bf16" in text]
    assert not [text for text in full["warnings"] if "bf16" in text]
    assert len(set(checkpoints(path)) - before) == len(before)
    # back again: every block is found, and what was measured of the other run is not told
    run(path)
    assert json.loads(record.read_text())["timings"]["engine"] is None


def test_gdals_cache_is_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # rasterio hands the number to GDAL as it is: 256 would be less than a line of pixels
    held: list[int] = []
    monkeypatch.setattr(imagery, "list_reads", lambda *_: held.append(get_gdal_config("GDAL_CACHEMAX")) or ())
    grid = RunGrid("EPSG:32620", 30.0, 0.0, 0.0, 64, 64, 64)
    imagery.fill_composites([], Block("b", 0, 0, 64, 64), grid, PatchLayout("grid", 64, 48), ("red",))
    assert held == [64 * 2**20]
