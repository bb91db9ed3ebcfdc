"""A command and all processes below it: seconds of the wall and of cores, memory at its peak, and bytes read."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from benchmarks.cores import Cores

PERIOD = 2.0
"""Seconds between two looks at the memory. Counting the pages of a process of 900 MB takes a core 23 ms, and it gets no
new ones meanwhile: with a look every half second a small run took 17 seconds, not 12."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        wall_s: seconds from its start to its end.
        cpu_s: seconds of cores of it and of all its descendants, as the kernel counts them.
        peak_mb: largest sum over its process tree, MB of 2**20 bytes, of proportional set sizes: a page that several
            processes share counts once. Of resident set sizes where the system knows no such thing.
        largest_mb: largest resident set of one process.
        read_mb: what all of them read from files, pipes and sockets, MB of 2**20 bytes, Python's modules included and
            mapped files left out.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    largest_mb: float
    read_mb: float


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
    cores, before = Cores(), _bytes_read()
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
    sizes = (sampler.peak, sampler.largest, _bytes_read() - before)
    return Usage(wall, cores.seconds, *(size / 2**20 for size in sizes))


def _bytes_read() -> int:
    """Of this process and all that it has waited for: the kernel adds theirs, as it does with seconds of cores."""
    return int(psutil.Process().io_counters().read_chars)
