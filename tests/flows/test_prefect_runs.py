"""The program as users call it: Prefect around Dask, with a temporary server, in a process of its own."""

from __future__ import annotations

import json

import pytest
from run_samples import assert_same_results, program, write_config

from pipeline.config import load_config

pytestmark = pytest.mark.slow


def test_prefect_and_dask_give_the_same_results(world, reference, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model, compute__executor="local", compute__workers=2)
    environment = {"PREFECT_HOME": str(tmp_path / "prefect")}
    ended = program("run", config, "--json", timeout=400, **environment)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["status"] == "published"
    product = load_config(config).output.dir
    assert_same_results(product, reference)

    again = program("run", config, "--json", **environment)
    assert (again.code, json.loads(again.out)["status"]) == (0, "current")
    assert "Prefect server" not in again.err, "a run with nothing to do waits for no server"


def test_an_error_inside_a_flow_keeps_its_exit_code(world, tiny_model, tmp_path):
    config = write_config(tmp_path, world, tiny_model)
    ended = program("run", config, "--blocks", "r9999c0000", timeout=400, PREFECT_HOME=str(tmp_path / "prefect"))
    assert ended.code == 2
    assert "error: --blocks r9999c0000" in ended.err
    assert "Traceback" not in ended.err
    assert not load_config(config).output.dir.exists()
