"""A command and all processes below it: seconds of the wall and of cores, and memory at its peak."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from benchmarks.cores import Cores

PERIOD = 0.5
"""Seconds between two looks at the memory: reading a large process's pages takes some milliseconds of a core."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        wall_s: seconds from its start to its end.
        cpu_s: seconds of cores of it and of all its descendants, as the kernel counts them.
        peak_mb: largest sum over its process tree, MB of 2**20 bytes, of proportional set sizes: a page that several
            processes share counts once. Of resident set sizes where the system knows no such thing.
        largest_mb: largest resident set of one process.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    largest_mb: float


class _Sampler(Thread):
    """Looks at the memory of a process tree until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.over = psutil.Process(pid), Event()
        self.peak = self.largest = 0

    def run(self) -> None:
        while not self.over.wait(PERIOD):
            total = 0
            for process in self._tree():
                try:
                    told = process.memory_full_info()
                except psutil.Error:
                    continue
                total += getattr(told, "pss", told.rss)
                self.largest = max(self.largest, told.rss)
            self.peak = max(self.peak, total)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            return []


def run_measured(line: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> Usage:
    """Run a command in a folder, its output in `log`; raises RuntimeError with the log's end where it fails."""
    cores = Cores()
    with log.open("wb") as target:
        started = time.perf_counter()
        process = subprocess.Popen(line, cwd=folder, env=dict(env), stdout=target, stderr=target)
        sampler = _Sampler(process.pid)
        sampler.start()
        wall = cores.wait(process) - started
    sampler.over.set()
    sampler.join()
    if process.returncode:
        end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(end)} ({log})")
    return Usage(wall, cores.seconds, sampler.peak / 2**20, sampler.largest / 2**20)
