"""How fast this machine is: the table's seconds against those that its last runs took, stage by stage.

Kept as one small JSON file for each kind of machine (CPU model and cores) in the user's state folder, or in
$CLEARCAUSE_STATE. It is no input of a run and no part of a product: losing it costs nothing but the next forecast.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_state_dir

from pipeline.artifacts import code_digest, digest, write_json

STATE_VARIABLE = "CLEARCAUSE_STATE"
VERSION = 1
_RUNS, _KEPT = 7, 60
"""Runs that a factor is the median of, and runs that are kept, of all models and executors."""
_GUESS = 0.4, 2.5
"""What a factor may be where nothing was measured."""
_SPREAD = 0.8, 1.25
"""Least room around what was measured: two runs of the same never take the same time."""
_LOCK_SECONDS = 5.0
_log = logging.getLogger("clearcause")


@dataclass(frozen=True)
class Measured:
    """What one run took of a stage, in seconds of the table: `cpu` of cores, `wall` as it passed for one worker."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Factor:
    """Seconds here for a second of the table: likely, at best and at worst; `runs` it was measured in (0 = a guess)."""

    likely: float
    best: float
    worst: float
    runs: int = 0


@dataclass(frozen=True)
class RunSpeeds:
    """One run's entry: when it was, with which code, and its factors by stage; stages of the model carry its key."""

    measured: str
    code: str
    stages: dict[str, Measured]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """CPU model and cores, in words."""
    name = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {cores()} cores"


def speeds_file() -> Path:
    """Where the speeds of this machine are kept."""
    folder = Path(os.environ.get(STATE_VARIABLE) or user_state_dir("clearcause", appauthor=False))
    return folder / f"speeds-{digest(machine())[:12]}.json"


class Speeds:
    """The speeds of this machine as its file tells them; `fault` says in a line why that was of no use."""

    def __init__(self, runs: tuple[RunSpeeds, ...] = (), path: Path | None = None, fault: str = "") -> None:
        self.runs, self.path, self.fault = runs, path, fault

    def factor(self, *stages: str) -> Factor:
        """The factor of a stage from the last runs that had it; the first of several names that any run had counts.

        Runs of this very code come before others. Work is counted in seconds of cores, of which the median is taken;
        how much longer it took by the clock is taken from the run that was disturbed least.
        """
        name = next((name for name in stages if any(name in run.stages for run in self.runs)), None)
        if name is None:
            return Factor(1.0, *_GUESS)
        runs = [run for run in self.runs if name in run.stages]
        code = code_digest()
        own = [run.stages[name] for run in ([r for r in runs if r.code == code] or runs)][-_RUNS:]
        work = sorted(one.cpu for one in own)
        stretch = sorted(one.wall / one.cpu for one in own)
        likely = statistics.median(work) * stretch[0]
        best, worst = work[0] * stretch[0], work[-1] * stretch[-1]
        return Factor(likely, min(best, likely * _SPREAD[0]), max(worst, likely * _SPREAD[1]), len(own))

    @property
    def newest(self) -> str:
        """When a run was measured last, ISO 8601; empty where none was."""
        return max((run.measured for run in self.runs), default="")


def read_speeds() -> Speeds:
    """Read this machine's file; one that is broken or another machine's is ignored, and `fault` says so."""
    path = speeds_file()
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.get("version") != VERSION:
            raise ValueError("it is of another version")
        if tree.get("machine") != machine():
            raise ValueError("it is of another machine")
        return Speeds(tuple(_run(entry) for entry in tree["runs"]), path)
    except FileNotFoundError:
        return Speeds(path=path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = " ".join(str(error).split())[:120]
        return Speeds(
            path=path, fault=f"{path}: not used ({told or type(error).__name__}); the next run writes it anew"
        )


def _run(entry: Any) -> RunSpeeds:
    stages = {str(name): Measured(float(one["cpu"]), float(one["wall"])) for name, one in entry["stages"].items()}
    if not all(_sound(one) for one in stages.values()):
        raise ValueError("a factor is no positive number")
    when = datetime.fromisoformat(entry["measured"])
    if when.tzinfo is None:
        raise ValueError("a time without its zone")
    return RunSpeeds(entry["measured"], str(entry["code"]), stages)


def _sound(one: Measured) -> bool:
    return all(math.isfinite(value) and 0 < value < 1e6 for value in (one.cpu, one.wall))


def add_run(stages: Mapping[str, Measured]) -> bool:
    """Add what a run took to this machine's file; False where it cannot be kept, which is logged and nothing else."""
    sound = {name: one for name, one in stages.items() if _sound(one)}
    if not sound:
        return False
    path = speeds_file()
    entry = RunSpeeds(datetime.now(UTC).isoformat(timespec="seconds"), code_digest(), sound)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            runs = [*read_speeds().runs, entry][-_KEPT:]
            tree = {"version": VERSION, "machine": machine(), "runs": [asdict(run) for run in runs]}
            write_json(path, tree)
    except (OSError, Timeout) as error:
        _log.info("the speeds of this machine could not be kept in %s: %s", path, error)
        return False
    return True
