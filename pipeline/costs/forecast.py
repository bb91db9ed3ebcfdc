"""The forecast of a run: seconds, bytes and memory from its work and this machine's speeds; and what a run teaches."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.blocks import BlockRecord
from pipeline.config import EXECUTORS, Compute, RunConfig
from pipeline.costs import work as table
from pipeline.costs.clock import Clock, Spent
from pipeline.costs.speeds import Measured, Speeds, cores
from pipeline.costs.work import Work, makespan
from pipeline.plan import Plan

_HERE = ("local", "threads")


@dataclass(frozen=True)
class Setting:
    """How a run is made: `executor` kind, `workers`, what names its model's speed, and `orchestrator`.

    The orchestrator is `plain` (the program alone), `server` (a Prefect server that is there), `temporary server`, or
    `none`: called from Python, or served.
    """

    executor: str
    workers: int
    model: str
    orchestrator: str = "none"

    @property
    def crowding(self) -> float:
        """Workers of this machine for each of its cores, 1 at least."""
        return max(self.workers / cores(), 1.0) if self.executor in _HERE else 1.0

    def names(self, stage: str) -> tuple[str, ...]:
        """Under which names the factor of a stage is kept: this executor's, then this machine's others."""
        by_model = stage in (table.OPEN, table.MODEL, table.MEMORY)
        if stage == table.START:
            return (f"{stage}:{self.orchestrator}",)
        if stage not in (table.POOL, table.OPEN, table.READ, table.MODEL, table.MEMORY):
            return (stage,)
        kinds = (
            [self.executor, *_HERE]
            if self.executor in _HERE and stage in (table.READ, table.MODEL)
            else [self.executor]
        )
        return tuple(f"{stage}:{kind}:{self.model}" if by_model else f"{stage}:{kind}" for kind in kinds)


def setting_of(config: RunConfig, plan: Plan, workers: int | None = None, orchestrator: str = "none") -> Setting:
    """How a configuration runs; `workers` where the caller knows them better than `compute.workers` does."""
    compute = config.compute
    kind = compute.executor if compute.executor in EXECUTORS else "address"
    model = f"{plan.model[:12]}:{compute.engine}:{compute.precision}:{plan.layout.size}"
    return Setting(kind, workers or _workers(compute), model, orchestrator)


def _workers(compute: Compute) -> int:
    if compute.workers != "auto":
        return compute.workers
    return 1 if compute.executor == "threads" else cores()


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take; `stages` are seconds by name, `low` and `high` the range of their sum.

    Attributes:
        fetch_bytes: over the network.
        disk_bytes: of the product and of the run's folder beside it.
        worker_mb: peak of a worker process; of this process where it computes the blocks itself.
        measured: in how many runs of this machine the factors were measured: the least of all stages.
        guessed: stages that no run of this machine has measured.
        newest: when this machine was measured last, ISO 8601.
        fault: why its speeds were not used.
    """

    seconds: float
    low: float
    high: float
    stages: dict[str, float]
    fetch_bytes: int
    disk_bytes: int
    worker_mb: int
    workers: int
    measured: int
    guessed: tuple[str, ...]
    newest: str
    fault: str

    def record(self) -> dict[str, Any]:
        """The forecast for `timings` of the run record."""
        return {
            "seconds": round(self.seconds, 1),
            "seconds_low": round(self.low, 1),
            "seconds_high": round(self.high, 1),
            "stages": {name: round(value, 1) for name, value in self.stages.items()},
            "fetch_bytes": self.fetch_bytes,
            "disk_bytes": self.disk_bytes,
            "worker_mb": self.worker_mb,
            "workers": self.workers,
            "measured_runs": self.measured,
            "guessed": list(self.guessed),
        }


def forecast(work: Work, setting: Setting, speeds: Speeds) -> Forecast:
    """Predict a run. More work, or slower factors, never give less."""
    factors = {
        name: speeds.factor(*setting.names(name))
        for name in (
            table.START, table.POOL, table.LOOK, table.OPEN, table.READ, table.MODEL, table.MERGE, table.PUBLISH,
            table.NETWORK, table.MEMORY, table.DISK, table.BYTES,
        )
    }  # fmt: skip
    stages = _stages(work, setting, {name: factor.likely for name, factor in factors.items()})
    ends = [
        sum(_stages(work, setting, {name: getattr(factor, end) for name, factor in factors.items()}).values())
        for end in ("best", "worst")
    ]
    used = [name for name in _used(work) if name in factors]
    return Forecast(
        seconds=sum(stages.values()),
        low=ends[0],
        high=ends[1],
        stages=stages,
        fetch_bytes=round(work.fetch_bytes * factors[table.BYTES].likely),
        disk_bytes=round((work.checkpoint_bytes + work.product_bytes) * factors[table.DISK].likely),
        worker_mb=round(work.worker_mb * factors[table.MEMORY].likely),
        workers=setting.workers,
        measured=min(factors[name].runs for name in used),
        guessed=tuple(name for name in used if not factors[name].runs),
        newest=speeds.newest,
        fault=speeds.fault,
    )


def _used(work: Work) -> list[str]:
    """The stages that a run goes through."""
    blocks = [table.POOL, table.OPEN, table.READ, table.MODEL, table.MEMORY] if work.blocks else []
    look = [table.LOOK] if work.looks else []
    network = [table.NETWORK, table.BYTES] if work.fetch_bytes else []
    return [table.START, *look, *network, *blocks, table.MERGE, table.PUBLISH, table.DISK]


def _stages(work: Work, setting: Setting, factor: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage with these factors."""
    blocks = [
        setting.crowding * (b.read_s * factor[table.READ] + b.model_s * factor[table.MODEL])
        for b in work.blocks.values()
    ]
    begun = table.pool_s(setting.executor) * factor[table.POOL] if blocks else 0.0
    opened = setting.crowding * table.open_s() * factor[table.OPEN] if blocks else 0.0
    return {
        "start": table.start_s(setting.orchestrator) * factor[table.START],
        "look": work.look_s * factor[table.LOOK],
        "fetch": work.network_s * factor[table.NETWORK] * factor[table.BYTES],
        "workers": begun + opened,
        # as they are given out: the longest first
        "blocks": makespan(sorted(blocks, reverse=True), setting.workers),
        "merge": work.merge_s * factor[table.MERGE],
        "publish": work.publish_s * factor[table.PUBLISH],
    }


# ---------------------------------------------------------------------------------------------- what a run teaches


def lessons(work: Work, setting: Setting, clock: Clock, records: Iterable[BlockRecord]) -> dict[str, Measured]:
    """The factors that a run's own stages give, by the names under which `Speeds` keeps them.

    Stages that did nothing teach nothing, and so do blocks that were tried again.
    """
    computed = [r for r in records if r.status == "done" and r.block in work.blocks and r.attempts == 1]
    found = {
        **_of_stages(work, clock),
        table.START: _ratio(Spent(clock.between()), table.start_s(setting.orchestrator)),
    }
    if computed:
        found |= _of_blocks(work, setting, computed, clock.stages.get("predict_blocks", Spent()).wall)
    return {setting.names(name)[0]: one for name, one in found.items() if one is not None}


def _of_stages(work: Work, clock: Clock) -> dict[str, Measured | None]:
    spent = clock.stages
    found: dict[str, Measured | None] = {
        table.MERGE: _ratio(spent.get("merge_blocks", Spent()), work.merge_s),
        table.PUBLISH: _ratio(spent.get("publish_product", Spent()), work.publish_s),
    }
    # what comes over the network has a factor of its own
    if work.looks and not work.fetch_bytes:
        found[table.LOOK] = _ratio(spent.get("fetch_scenes", Spent()), work.look_s)
    return found


def _of_blocks(work: Work, setting: Setting, records: list[BlockRecord], wall: float) -> dict[str, Measured | None]:
    """Factors of starting workers, loading the model, reading, the model, and memory."""
    total, opened, forward = _summed(records, setting)
    count = min(setting.workers, len(records))
    took = makespan([r.seconds - r.open_seconds for r in records], setting.workers)
    mine = [work.blocks[r.block] for r in records]
    reading = Spent(total.wall - opened.wall - forward.wall, total.cpu - opened.cpu - forward.cpu)
    return {
        table.POOL: _waited(wall - took - opened.wall / count, table.pool_s(setting.executor)),
        table.OPEN: _ratio(opened, count * table.open_s(), setting.crowding),
        table.READ: _ratio(reading, sum(b.read_s for b in mine), setting.crowding),
        table.MODEL: _ratio(forward, sum(b.model_s for b in mine), setting.crowding),
        table.MEMORY: _ratio(Spent(max(r.peak_rss_mb for r in records)), work.worker_mb),
    }


def _summed(records: list[BlockRecord], setting: Setting) -> tuple[Spent, Spent, Spent]:
    """Sums over blocks: of all they took, of loading, and inside the model."""
    total = Spent(sum(r.seconds for r in records), sum(r.cpu_seconds for r in records))
    opened = Spent(sum(r.open_seconds for r in records), sum(r.open_cpu_seconds for r in records))
    forward = Spent(sum(r.forward_seconds for r in records), sum(r.forward_cpu_seconds for r in records))
    # a process that holds several blocks at once cannot tell whose its cores' seconds are
    if setting.executor in ("threads", "cuda") and setting.workers > 1:
        return Spent(total.wall), Spent(opened.wall), Spent(forward.wall)
    return total, opened, forward


def _ratio(spent: Spent, unit: float, crowding: float = 1.0) -> Measured | None:
    """What was spent, in seconds of the table; the wall counts where nobody knows the seconds of cores."""
    if spent.wall <= 0 or spent.cpu < 0 or unit <= 0:
        return None
    return Measured((spent.cpu or spent.wall) / unit, spent.wall / crowding / unit)


def _waited(value: float, unit: float) -> Measured | None:
    """What is no work of this process: of several measurements the least disturbed counts, which is the smallest."""
    return Measured(1.0, value / unit) if value > 0 and unit > 0 else None


def bytes_below(*folders: Path) -> int:
    """Bytes of all files in some folders; files that go meanwhile count nothing."""
    total = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                try:
                    total += (Path(where) / name).stat().st_size
                except OSError:
                    continue
    return total


def disk_lessons(work: Work, taken: int) -> dict[str, Measured]:
    """Factor of the bytes that a run leaves on disk."""
    one = _ratio(Spent(taken), work.checkpoint_bytes + work.product_bytes)
    return {table.DISK: one} if one else {}


def fetch_lessons(work: Work, clock: Clock, fetched: int) -> dict[str, Measured]:
    """Factors of the network: seconds for each byte, and bytes for each that was expected."""
    spent = clock.stages.get("fetch_scenes", Spent())
    pairs = {
        table.NETWORK: _waited(spent.wall, table.second_of(fetched)),
        table.BYTES: _ratio(Spent(fetched), work.fetch_bytes),
    }
    return {name: one for name, one in pairs.items() if one is not None}
