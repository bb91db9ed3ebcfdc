"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.costs.speeds import STATE_VARIABLE

ROOT = Path(__file__).parents[1]
pytest_plugins = ("run_samples",)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scenes, beside the checkout; its absence is a failure in CI and a skip elsewhere."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing: the tests on real scenes cannot run")
        pytest.skip(f"{folder} is missing: no real scenes here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _patches_are_drawn_here() -> None:
    """Load torchgeo once: hundreds of plans that are made in this process would each start another one to load it."""
    importlib.import_module("pipeline.patches")


@pytest.fixture(scope="session", autouse=True)
def _own_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny runs must not teach this machine's forecasts, nor stand in its user's Prefect; nor meet runs beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(tmp_path_factory.mktemp("state")))
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        yield
