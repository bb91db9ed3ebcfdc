"""The block step: scenes of one block to composite, logits and event sums, committed as one checkpoint.

The only code that runs on workers. It gets a small record, reads the frozen plan, and leaves a folder whose name is a
digest of everything that made it: a block that was computed before is found, not computed.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio

from pipeline.artifacts import code_digest, committed_folder, digest, file_sha256, stamp, write_json
from pipeline.catalog.fetch import localised
from pipeline.catalog.scene import Scene
from pipeline.composite import median_composite
from pipeline.errors import BlockError
from pipeline.events import FIXED_POINT, LogitSums, sum_by_event, to_fixed_point
from pipeline.grid import Block
from pipeline.imagery import YearImage, fill_composites, list_reads
from pipeline.labels import NO_DATA
from pipeline.lattice import BlockLoss, listed, needed
from pipeline.models.calibration import calibrated
from pipeline.plan import (
    EVENTS_FILE,
    LABELS_FILE,
    PLAN_FILE,
    Plan,
    PlannedBlock,
    dated_years,
    groups_of_years,
    read_block_loss,
    read_patches,
    read_plan,
)
from pipeline.predict import predict_loss
from pipeline.resample import Places, take_mean, take_nearest

RASTERS, SUMS, IMAGES, META = "rasters.npz", "sums.parquet", "images.parquet", "block.json"


@dataclass(frozen=True)
class BlockTask:
    """What a worker needs to know: where the plan lies (and its digest), which block, and how to run the model."""

    work: Path
    plan: str
    block: str
    model: Path
    engine: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    excluded: tuple[str, ...] = ()
    cache: Path = Path()


@dataclass(frozen=True)
class BlockRecord:
    """How a block ended: `status` done, existing or failed, the `reason` of a failure, its checkpoint's folder name.

    `open_seconds` is what loading libraries and the model took before anything else: nothing after a process's first
    block. The same in seconds of cores, of its process: `cpu_seconds`, `open_cpu_seconds`, `forward_cpu_seconds`.
    `patches` went through the model: those planned, less those on which no image shows any loss clear.
    """

    block: str
    status: str
    checkpoint: str = ""
    reason: str = ""
    seconds: float = 0.0
    forward_seconds: float = 0.0
    peak_rss_mb: int = 0
    attempts: int = 1
    device: str = ""
    open_seconds: float = 0.0
    cpu_seconds: float = 0.0
    open_cpu_seconds: float = 0.0
    forward_cpu_seconds: float = 0.0
    patches: int = 0


@dataclass(frozen=True)
class YearSums:
    """What one loss year of a block adds: rasters on loss pixels, sums and image counts by event row."""

    pixels: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray
    sums: dict[str, np.ndarray]
    images: list[tuple[int, str, int]]


def checkpoint_name(
    plan: Plan, planned: PlannedBlock, excluded: tuple[str, ...] = (), states: dict[str, str] | None = None
) -> str:
    """Folder name of a block's checkpoint: its id and a digest of everything its content depends on.

    Who names many blocks of a plan gives the same dictionary of `states`, so that a scene is looked at once.
    """
    states = {} if states is None else states
    scenes = {year: [s for s in ids if s not in excluded] for year, ids in planned.scenes.items()}
    used = sorted({scene for ids in scenes.values() for scene in ids})
    for name in used:
        if name not in states:
            scene = plan.scenes[name]
            stamps = [stamp(Path(asset.href)) for asset in scene.assets.values()]
            states[name] = digest([dataclasses.asdict(scene), stamps])
    parts = [
        code_digest(), dataclasses.asdict(plan.grid), dataclasses.asdict(plan.layout), plan.model, plan.loss,
        dataclasses.asdict(planned.block), planned.only, scenes, [states[name] for name in used],
    ]  # fmt: skip
    return f"{planned.block.id}-{digest(parts)[:20]}"


@lru_cache(maxsize=1)
def _opened(work: Path, wanted: str) -> tuple[Plan, np.ndarray, np.ndarray]:
    """Plan, and what `_event_rows` says, once per process and plan; `wanted` is the plan file's digest."""
    if file_sha256(work / PLAN_FILE) != wanted:
        raise BlockError(f"{work / PLAN_FILE} is not the plan this run was started with; run again")
    plan = read_plan(work)
    return plan, *_event_rows(work)


def _event_rows(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Loss year and last day of the loss (days since 1970-01-01, 0 = not known) by event row."""
    table = pq.read_table(work / EVENTS_FILE, columns=["loss_year", "last_day"])
    return table.column("loss_year").to_numpy(), table.column("last_day").to_numpy()


def load_libraries() -> None:
    """Load what the first block of a process would load, the compiled loops included; some two seconds."""
    pixel = np.zeros((1, 1), np.uint16)
    places = Places(np.zeros((2, 2)), np.zeros((2, 2)), (0, 0), (1, 1), (1.0, 1.0))
    take_nearest(pixel, (0, 0), places, 0)
    take_mean(pixel, (0, 0), places, 0)
    median_composite(np.zeros((1, 1, 1, 1), np.float32))


def compute_block(task: BlockTask) -> BlockRecord:
    """Compute one block unless its checkpoint is there.

    Raises:
        SceneError: a scene cannot be read; the caller excludes it and asks again.
        ModelError: the model cannot be loaded here.
    """
    from pipeline.models.engines import segmenter_for_worker

    started, busy = time.perf_counter(), time.process_time()
    plan, *_ = _opened(task.work, task.plan)
    planned = next(b for b in plan.blocks if b.block.id == task.block)
    name = checkpoint_name(plan, planned, task.excluded)
    final = task.work / "blocks" / name
    if final.exists():
        return found_block(final, task.block)
    model = _Timed(segmenter_for_worker(task.model, task.engine, "auto", task.precision))
    opened, opened_cpu = time.perf_counter() - started, time.process_time() - busy
    parts = _predict_block(task, plan, planned, model)
    with committed_folder(final) as folder:
        _write(folder, planned.block, parts)
        seconds, device = time.perf_counter() - started, str(getattr(model.segmenter, "device", ""))
        record = BlockRecord(
            task.block, "done", name, "", seconds, model.seconds, peak_rss_mb(), device=device,
            open_seconds=opened, cpu_seconds=time.process_time() - busy, open_cpu_seconds=opened_cpu,
            forward_cpu_seconds=model.cpu_seconds, patches=model.patches,
        )  # fmt: skip
        write_json(folder / META, dataclasses.asdict(record))
    return record


def found_block(checkpoint: Path, block: str) -> BlockRecord:
    """The record of a block that was computed before, as it stands in its checkpoint."""
    kept = json.loads((checkpoint / META).read_text(encoding="utf-8"))
    return dataclasses.replace(BlockRecord(**kept), block=block, status="existing", checkpoint=checkpoint.name)


class _Timed:
    """A segmenter that keeps the time spent inside its forward pass, and the patches that went through it."""

    def __init__(self, segmenter: Any) -> None:
        self.segmenter, self.card, self.seconds, self.cpu_seconds, self.patches = segmenter, segmenter.card, 0.0, 0.0, 0

    def logits(self, images: np.ndarray) -> np.ndarray:
        started, busy = time.perf_counter(), time.process_time()
        result = self.segmenter.logits(images)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - busy
        self.patches += len(images)
        return np.asarray(result)


def peak_rss_mb() -> int:
    """Peak resident memory of this process in MB.

    On Linux from the kernel's own record of the process: what `getrusage` tells of a process that was started by a
    larger one is the size of that one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1024 if sys.platform != "darwin" else peak / 1024**2)


def _read_loss(work: Path, plan: Plan, planned: PlannedBlock) -> BlockLoss:
    with rasterio.open(work / LABELS_FILE) as raster:
        return read_block_loss(raster, planned.block, plan.layout)


def _predict_block(task: BlockTask, plan: Plan, planned: PlannedBlock, model: _Timed) -> list[YearSums]:
    """All loss years of a block, a few at a time."""
    _, year_of, last = _opened(task.work, task.plan)
    drawn, loss = read_patches(task.work, planned), _read_loss(task.work, plan, planned)
    used = {year: tuple(s for s in ids if s not in task.excluded) for year, ids in planned.scenes.items()}
    parts = []
    for lost in _grouped(loss, planned, year_of, groups_of_years(used, dated_years(year_of, last))):
        group = []
        for years, own in lost.items():
            scenes = [localised(plan.scenes[s], task.cache) for s in used[years[0]]]
            image = _year_image(plan, own, scenes, drawn)
            image.since = _since(loss, np.where(np.isin(year_of, years), last, 0))
            group.append(image)
        fill_composites(group, planned.block, plan.grid, plan.layout, plan.bands)
        batch = task.batch or _patches_at_once(model)
        parts += [_predict_year(plan, year, drawn, model, batch) for year in group]
    return parts


def _since(loss: BlockLoss, last: np.ndarray) -> np.ndarray | None:
    """Day from which on each pixel of the block's lattice window is looked at; None where `last` by event is all 0.

    Over the whole window: what a patch sees around a block may not depend on where the block ends.
    """
    return np.concatenate([[0], last])[loss.labels].astype(np.int32) if last.any() else None


def _grouped(
    loss: BlockLoss, planned: PlannedBlock, year_of: np.ndarray, groups: Iterable[list[tuple[int, ...]]]
) -> Iterator[dict[tuple[int, ...], BlockLoss]]:
    """The loss of a block in the groups that are composited at once, by the years that are one in there."""
    if planned.late:
        loss = loss.only(np.isin(loss.labels, np.array(planned.only) + 1))
    years = np.concatenate([[0], year_of]).astype(np.int16)[loss.labels]
    for group in groups:
        yield {alike: loss.only(np.isin(years, alike)) for alike in group}


def planned_reads(work: Path, plan: Plan, planned: PlannedBlock) -> list[tuple[tuple[int, int, int, int], set[int]]]:
    """Windows (row, column, height, width) of the run's grid that computing a block reads, each with its loss years.

    The windows hold for every choice of scenes: with fewer of them less is read, never more, and years that turn out
    to see the same scenes read what they would have read beside each other.
    """
    year_of, _ = _event_rows(work)
    drawn, size = read_patches(work, planned), plan.layout.size
    found = []
    apart = groups_of_years(planned.scenes, planned.scenes)
    for lost in _grouped(_read_loss(work, plan, planned), planned, year_of, apart):
        group = [listed(needed(drawn, size, loss)) for loss in lost.values()]
        reads = list_reads(group, planned.block, plan.layout)
        found += [(read.window, {year for k, (year,) in enumerate(lost) if k in read.years}) for read in reads]
    return found


def _patches_at_once(model: _Timed) -> int:
    """Patches for one call of the model: on a GPU the engine divides them by its memory, a CPU takes one by one."""
    from pipeline.models.engines import MOST_PATCHES

    return 1 if getattr(model.segmenter, "batch", 1) == 1 else MOST_PATCHES


def _year_image(plan: Plan, loss: BlockLoss, scenes: list[Scene], drawn: np.ndarray) -> YearImage:
    """A loss year, or several, with an empty image and those of the block's patches that speak for its loss."""
    image = np.full((len(plan.bands), *loss.labels.shape), np.nan, np.float32)
    return YearImage(loss, scenes, listed(needed(drawn, plan.layout.size, loss)), image)


def _predict_year(plan: Plan, year: YearImage, drawn: np.ndarray, model: _Timed, batch: int) -> YearSums:
    """Composite of one loss year, or several, to classes of its loss pixels and sums of its events."""
    loss, block, size = year.loss, year.loss.block, plan.layout.size
    rows = slice(block.row0 - loss.row0, block.row0 - loss.row0 + block.height)
    cols = slice(block.col0 - loss.col0, block.col0 - loss.col0 + block.width)
    clear = np.where(np.isnan(year.image[0, rows, cols]), 0, loss.inside)
    # patches without a clear loss pixel say nothing that is kept
    patches = listed(needed(drawn, size, loss, clear))
    logits = predict_loss(year.image, patches, loss, clear, model, size, batch)
    images = [(event, scene, count) for (event, scene), count in sorted(year.seen.items())]
    return _sum_year(loss.inside, clear, logits, images, model.card)


def _sum_year(
    loss: np.ndarray, clear: np.ndarray, logits: np.ndarray, images: list[tuple[int, str, int]], card: Any
) -> YearSums:
    """Class and confidence of every loss pixel, and integer sums by event."""
    codes = np.array(card.scheme.codes, np.uint8)
    where = np.flatnonzero(loss)
    label, observed = loss.ravel()[where], clear.ravel()[where] > 0
    fixed = to_fixed_point(logits) if len(logits) else np.zeros((0, len(codes)), np.int64)
    classes, confidence = (np.full(len(where), NO_DATA, np.uint8) for _ in range(2))
    if len(fixed):
        p = calibrated(fixed / FIXED_POINT, card.calibration)
        classes[observed] = codes[p.argmax(axis=1)]
        confidence[observed] = np.rint(p.max(axis=1) * 100).astype(np.uint8)
    present, pixels, _ = sum_by_event(label, np.zeros((len(label), 1), np.int64))
    logit_sums = LogitSums.of_pixels(np.searchsorted(present, label[observed]), fixed, len(present))
    sums = {"event": present - 1, "pixels": pixels, **logit_sums.columns(card.scheme.names)}
    return YearSums(where, classes, confidence, sums, images)


def _write(folder: Path, block: Block, parts: list[YearSums]) -> None:
    """Write the checkpoint's three files; npz and Parquet both notice a short write and a flipped bit."""
    classes, confidence = (np.full(block.height * block.width, NO_DATA, np.uint8) for _ in range(2))
    for part in parts:
        classes[part.pixels], confidence[part.pixels] = part.classes, part.confidence
    shape = (block.height, block.width)
    np.savez_compressed(folder / RASTERS, drivers=classes.reshape(shape), confidence=confidence.reshape(shape))
    columns = {key: np.concatenate([part.sums[key] for part in parts]) for key in parts[0].sums}
    pq.write_table(pa.table(columns), folder / SUMS)
    images = [row for part in parts for row in part.images]
    table = {
        "event": pa.array([r[0] for r in images], pa.int64()),
        "scene": pa.array([r[1] for r in images], pa.string()),
        "clear": pa.array([r[2] for r in images], pa.int64()),
    }
    pq.write_table(pa.table(table), folder / IMAGES)
