"""A run's clock: what each stage took, in seconds of the wall and of this process's cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.costs.forecast import Forecast
    from pipeline.costs.work import Work


@dataclass(frozen=True)
class Spent:
    """Seconds: of the wall, and of all threads of this process."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Clock:
    """Starts when it is made; `work` and `forecast` stand there from when the plan is known."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, Spent] = field(default_factory=dict)
    work: Work | None = None
    forecast: Forecast | None = None
    _running: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of what is done inside to a stage."""
        self._running[name] = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.stages[name] = self.spent(name)
            del self._running[name]

    def spent(self, name: str) -> Spent:
        """What a stage has taken, until now where it is under way."""
        before = self.stages.get(name, Spent())
        if name not in self._running:
            return before
        wall, cpu = self._running[name]
        return Spent(before.wall + time.perf_counter() - wall, before.cpu + time.process_time() - cpu)

    def watching(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call(stage, *arguments)` that puts down how long each stage takes, under its function's name."""

        def watched(stage: Callable[..., Any], *arguments: Any) -> Any:
            with self.stage(stage.__name__):
                return call(stage, *arguments)

        return watched

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def between(self) -> float:
        """Seconds that belong to no stage: loading libraries, starting an orchestrator."""
        names = {*self.stages, *self._running}
        return max(self.total() - sum(self.spent(name).wall for name in names), 0.0)

    def record(self) -> dict[str, Any]:
        """For `timings` of the run record: seconds until now, by stage, and what was expected of the whole."""
        stages = {name: round(self.spent(name).wall, 2) for name in (*self.stages, *self._running)}
        told = {"seconds": round(self.total(), 1), "stages": {**stages, "between": round(self.between(), 2)}}
        return {**told, "expected": self.forecast.record() if self.forecast else None}
