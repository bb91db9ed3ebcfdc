"""What there is to do for a plan, in the units that take time, and the table of what a unit takes.

The table is of one machine (a Xeon of 2023), in seconds of one core, rounded from a few small runs. Elsewhere it is a
guess, until a run has told how this machine compares (`pipeline.costs.speeds`). It gives the shape of each stage: how
the time grows with the work. Every weight is positive, so more work never costs less.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.candidates import cloudiness, wrs_place
from pipeline.catalog.cache import cached_path
from pipeline.catalog.check import REMOTE
from pipeline.catalog.scene import QA_PIXEL
from pipeline.config import RunConfig
from pipeline.lattice import lattice_window
from pipeline.plan import YEARS_AT_ONCE, Plan, PlannedBlock

LOOK, OPEN, READ, MODEL, MERGE, PUBLISH = "look", "open", "read", "model", "merge", "publish"
START, POOL = "start", "pool"
MEMORY, DISK, NETWORK, BYTES = "memory", "disk", "network", "bytes"

_SQUARE = 256
_START_S = {"none": 0.5, "plain": 2.0, "server": 3.0, "temporary server": 3.0}
_POOL_S = {"threads": 0.5, "local": 3.0}
_LOOK_BASE_S, _LOOK_S = 2.0, 0.0012
"""A scene in a square of 256 pixels that holds loss."""
_OPEN_S = 2.5
_BLOCK_S, _READ_S = 0.3, 0.5
"""A block; a megapixel of the run's grid in one scene, all bands of the model, warped and composited."""
_MODEL_S = 1.2
"""A megapixel of patches of the shipped model with ONNX Runtime."""
_MERGE_S, _EVENT_S, _PICTURE_S, _GRID_S, _LOSS_S = 1.5, 1.5e-3, 0.025, 0.2, 6.0
_PUBLISH_S, _WRITE_EVENT_S, _WRITE_GRID_S, _WRITE_LOSS_S = 1.0, 0.35e-3, 0.15, 1.8
_WORKER_MB, _BASE_MB = 1.0, 900.0
_NETWORK_S = 1 / 10e6
_PACKED = 0.6
"""Bytes on disk for each byte of a Landsat band."""


@dataclass(frozen=True)
class BlockWork:
    """What computing one block takes: megapixels of scenes to read, and megapixels of patches to classify."""

    scene_mpx: float
    model_mpx: float

    @property
    def read_s(self) -> float:
        """Seconds of the table for reading and compositing."""
        return _BLOCK_S + _READ_S * self.scene_mpx

    @property
    def model_s(self) -> float:
        """Seconds of the table inside the model."""
        return _MODEL_S * self.model_mpx


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        blocks: those that have no checkpoint yet, by id.
        looks: scenes whose clouds are looked at, times squares of 256 pixels with loss; 0 where scenes are chosen.
        fetch_bytes: of remote imagery that is not in the cache, as far as the plan can tell.
        events: all events of the run.
        pictures: of events, in the report.
        grid_mpx: megapixels of the run's grid.
        loss_mpx: megapixels of loss.
        composite_mb: of the largest block: its composites and the scenes of one tile.
        planned: blocks of the run.
    """

    blocks: dict[str, BlockWork]
    looks: int
    fetch_bytes: int
    events: int
    pictures: int
    grid_mpx: float
    loss_mpx: float
    composite_mb: float
    planned: int

    @property
    def look_s(self) -> float:
        """Seconds of the table for the choice of scenes."""
        return (_LOOK_BASE_S + _LOOK_S * self.looks) if self.looks else 0.0

    @property
    def merge_s(self) -> float:
        """Seconds of the table for putting the blocks together."""
        return (
            _MERGE_S + _EVENT_S * self.events + _PICTURE_S * self.pictures + _GRID_S * self.grid_mpx
            + _LOSS_S * self.loss_mpx
        )  # fmt: skip

    @property
    def publish_s(self) -> float:
        """Seconds of the table for writing the product."""
        return _PUBLISH_S + _WRITE_EVENT_S * self.events + _WRITE_GRID_S * self.grid_mpx + _WRITE_LOSS_S * self.loss_mpx

    @property
    def network_s(self) -> float:
        """Seconds of the table for what comes over the network."""
        return second_of(self.fetch_bytes)

    @property
    def worker_mb(self) -> float:
        """Megabytes of the table for a worker process."""
        return _BASE_MB + _WORKER_MB * self.composite_mb

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of the table for the run's folder: plan, events, labels, checkpoints of all blocks."""
        return 60e3 + 8e3 * self.planned + 400 * self.events + 1.8e6 * self.loss_mpx

    @property
    def product_bytes(self) -> float:
        """Bytes of the table for the product."""
        return 0.7e6 + 10e3 * self.pictures + 3e3 * self.events + 10e6 * self.loss_mpx


def second_of(count: int) -> float:
    """Seconds of the table for bytes that come over the network."""
    return _NETWORK_S * count


def start_s(orchestrator: str) -> float:
    """Seconds of the table between the command and the stages: `none`, `plain`, `server` or `temporary server`."""
    return _START_S[orchestrator]


def pool_s(executor: str) -> float:
    """Seconds of the table until workers are there, and until they are gone; clusters of others are waited for."""
    return _POOL_S.get(executor, 60.0)


def open_s() -> float:
    """Seconds of the table until a worker has loaded the model."""
    return _OPEN_S


def work_of(plan: Plan, config: RunConfig, done: Collection[str] = ()) -> Work:
    """What a run of this plan has to do, less the blocks that are `done`.

    Where scenes are still to be chosen it goes by how many are usually taken: until every loss pixel should have
    `imagery.enough_clear` clear observations.
    """
    most = {place: _usual(plan, config, *place) for place in plan.undecided}
    blocks = {b.block.id: _block_work(plan, b, most) for b in plan.blocks if b.block.id not in done}
    pictures = min(config.output.chips, plan.event_count) * (2 if plan.before_scenes else 1)
    return Work(
        blocks=blocks,
        looks=_looks(plan),
        fetch_bytes=_fetch_bytes(plan, [b for b in plan.blocks if b.block.id in blocks], most),
        events=plan.event_count,
        pictures=pictures,
        grid_mpx=plan.grid.width * plan.grid.height / 1e6,
        loss_mpx=sum(b.pixels for b in plan.blocks if not b.late) / 1e6,
        composite_mb=max((_composite_mb(plan, b) for b in plan.blocks), default=0.0),
        planned=len(plan.blocks),
    )


def _usual(plan: Plan, config: RunConfig, year: int, place: str) -> int:
    """How many scenes of an undecided loss year and path/row are likely to be taken."""
    scenes = [plan.scenes[key] for key in plan.candidates.get(year, ()) if key in plan.scenes]
    clear = sorted((max(1 - cloudiness(s) / 100, 0.0) for s in scenes if wrs_place(s) == place), reverse=True)
    most, seen = min(len(clear), config.imagery.max_scenes), 0.0
    for taken, share in enumerate(clear[:most]):
        # one scene more than the sum asks for: clouds do not lie where they would have to
        if seen > config.imagery.enough_clear + 1:
            return taken
        seen += share
    return most


def _read_scenes(plan: Plan, ids: Iterable[str], year: int, most: dict[tuple[int, str], int]) -> float:
    """How many of some scenes of a loss year are likely to be read."""
    places = Counter(wrs_place(plan.scenes[key]) for key in ids)
    return sum(min(n, most.get((year, place), n)) for place, n in places.items())


def _block_work(plan: Plan, planned: PlannedBlock, most: dict[tuple[int, str], int]) -> BlockWork:
    """Scenes that several loss years read are read once, so that the year with most of them counts."""
    usual = [_read_scenes(plan, ids, year, most) for year, ids in planned.scenes.items()]
    distinct = len({key for ids in planned.scenes.values() for key in ids})
    scenes = min(sum(usual), float(distinct))
    return BlockWork(planned.covered * scenes / 1e6, planned.patches * plan.layout.size**2 / 1e6)


def _looks(plan: Plan) -> int:
    if not plan.undecided:
        return 0
    squares = sum(
        min(-(-b.block.height // _SQUARE) * -(-b.block.width // _SQUARE), b.pixels) for b in plan.blocks if not b.late
    )
    return squares * len({key for ids in plan.candidates.values() for key in ids})


def _fetch_bytes(plan: Plan, blocks: Sequence[PlannedBlock], most: dict[tuple[int, str], int]) -> int:
    """Bytes of the remote tiles of some blocks that the cache does not hold."""
    wanted: dict[str, float] = {}
    for planned in blocks:
        shares: dict[str, float] = {}
        for year, ids in planned.scenes.items():
            share = _read_scenes(plan, ids, year, most) / max(len(ids), 1)
            shares |= {key: max(share, shares.get(key, 0.0)) for key in ids}
        for key, share in shares.items():
            wanted[key] = wanted.get(key, 0.0) + planned.covered * share
    return round(sum(pixels * 2 * _PACKED * _absent(plan, key) for key, pixels in wanted.items()))


def _absent(plan: Plan, key: str) -> int:
    """How many remote bands of a scene are wanted and not in the cache."""
    scene, cache = plan.scenes[key], Path(plan.cache)
    hrefs = [scene.assets[band].href for band in (*plan.bands, QA_PIXEL) if band in scene.assets]
    remote = [href for href in hrefs if href.lower().startswith(REMOTE)]
    return sum(not cached_path(href, cache).with_suffix(".json").is_file() for href in remote)


def _composite_mb(plan: Plan, planned: PlannedBlock) -> float:
    _, _, height, width = lattice_window(planned.block, plan.layout)
    years = min(len(planned.scenes), YEARS_AT_ONCE)
    scenes = max(map(len, planned.scenes.values()), default=0)
    tile = min(height, 512) * min(width, 512)
    return 4 * len(plan.bands) * (years * height * width + 2 * scenes * tile) / 1e6


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until workers that take blocks in order, one each, have done them all."""
    ends = [0.0] * max(workers, 1)
    for took in seconds:
        heapq.heapreplace(ends, ends[0] + took)
    return max(ends)
