"""Thread settings only work before torch is imported, so a fresh interpreter is asked."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = "{first}; from pipeline.training.environment import prepare_environment; prepare_environment(); {last}"


def run(first: str, last: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = CODE.format(first=first, last=last)
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True, check=False
    )


def test_sets_what_the_user_has_not_set() -> None:
    told = run("import os", "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])", GOMP_SPINCOUNT="9")
    assert told.stdout.split() == ["PASSIVE", "9"]


def test_refuses_when_it_is_too_late() -> None:
    too_late = run("import sys, types; sys.modules['torch'] = types.ModuleType('torch')", "print('went on')")
    assert "went on" not in too_late.stdout
    assert "torch is imported already" in too_late.stderr
