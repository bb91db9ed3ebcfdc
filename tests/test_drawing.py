"""Patches come from a process of their own, and are those that would have been drawn here."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from run_samples import ROOT, write_config

from pipeline.drawing import Drawing
from pipeline.grid import make_grid, read_region
from pipeline.lattice import PatchLayout
from pipeline.patches import draw_patches

PLAN = """
import sys
from pathlib import Path
from pipeline.config import load_config
from pipeline.request import Request
from pipeline.steps import plan_run
plan = plan_run(Request(load_config(Path(sys.argv[1]))))
print(len(plan.blocks), sorted(name for name in ("torch", "torchgeo") if name in sys.modules))
"""
REFUSED = """
from pipeline.drawing import Drawing
with Drawing() as drawing:
    drawing.draw(None, None, None)
"""
RUN = """
import sys
from pipeline import cli, cli_run
class Told(cli_run.Drawing):
    def __enter__(self):
        print("entered with the stages loaded:", "pipeline.steps" in sys.modules, flush=True)
        return super().__enter__()
cli_run.Drawing = Told
sys.argv = ["clearcause", "run", sys.argv[1], "--no-prefect"]
cli.main()
"""


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_plan_is_made_without_torch_in_its_process(world, tiny_model, tmp_path):
    ended = in_a_process(PLAN, write_config(tmp_path, world, tiny_model))
    assert ended.returncode == 0, ended.stderr
    blocks, loaded = ended.stdout.split(maxsplit=1)
    assert int(blocks) > 0
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("mode", ["grid", "events"])
def test_the_other_process_draws_the_same(mode, world, monkeypatch):
    grid = make_grid(read_region(world.aoi), "auto", 30.0, 96)
    layout = PatchLayout(mode, 64, 48)
    bounds = np.array([[3, 5, 9, 70], [0, 0, 0, 0], [50, 50, 130, 131]])
    here = draw_patches(layout, grid, bounds)
    monkeypatch.delitem(sys.modules, "pipeline.patches")
    with Drawing() as drawing:
        there = drawing.draw(layout, grid, bounds)
        assert "pipeline.patches" not in sys.modules, "it was drawn here"
    assert there.dtype == here.dtype
    np.testing.assert_array_equal(there, here)
    assert len(here) > 3


def test_what_the_other_process_says_is_told():
    ended = in_a_process(REFUSED)
    assert (
        "RuntimeError: the process that draws patches ended with 1: AttributeError: 'NoneType' object" in ended.stderr
    )


def test_it_is_not_waited_for_by_a_plan_that_fails(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.patches")
    with Drawing() as drawing:
        process = drawing._process
        assert process is not None
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL


def test_it_is_begun_once_and_ended_once(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.patches")
    with Drawing() as early:
        process = early._process
        with early as again:
            assert again._process is process
        assert process is not None
        assert process.returncode == -signal.SIGKILL


def test_the_first_run_begins_it_before_it_loads_anything(world, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model)
    first, second = (in_a_process(RUN, config) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines()[0] == "entered with the stages loaded: False"
    assert "entered" not in second.stdout, "a rerun has nothing to draw"
