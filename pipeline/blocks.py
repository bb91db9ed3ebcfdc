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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.windows import Window

from pipeline.artifacts import code_digest, committed_folder, digest, file_sha256, stamp, write_json
from pipeline.catalog.fetch import localised
from pipeline.catalog.scene import Scene
from pipeline.composite import median_composite
from pipeline.errors import BlockError
from pipeline.events import FIXED_POINT, sum_by_event, to_fixed_point
from pipeline.grid import Block
from pipeline.labels import NO_DATA
from pipeline.lattice import Patch, lattice_window
from pipeline.plan import EVENTS_FILE, LABELS_FILE, PLAN_FILE, Plan, PlannedBlock, read_plan

_TILE = 512
_GDAL_CACHE_MB = 256
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
    """How a block ended: `status` done, existing or failed, the `reason` of a failure, its checkpoint's folder name."""

    block: str
    status: str
    checkpoint: str = ""
    reason: str = ""
    seconds: float = 0.0
    forward_seconds: float = 0.0
    peak_rss_mb: int = 0
    attempts: int = 1
    device: str = ""


@dataclass(frozen=True)
class YearSums:
    """What one loss year of a block adds: rasters on loss pixels, sums and image counts by event row."""

    pixels: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray
    sums: dict[str, np.ndarray]
    images: list[tuple[int, str, int]]


def checkpoint_name(plan: Plan, planned: PlannedBlock, excluded: tuple[str, ...] = ()) -> str:
    """Folder name of a block's checkpoint: its id and a digest of everything its content depends on."""
    scenes = {year: [s for s in ids if s not in excluded] for year, ids in planned.scenes.items()}
    used = sorted({scene for ids in scenes.values() for scene in ids})
    parts = [
        code_digest(), dataclasses.asdict(plan.grid), dataclasses.asdict(plan.layout), plan.model, plan.loss,
        dataclasses.asdict(planned.block), scenes, [dataclasses.asdict(plan.scenes[s]) for s in used],
        [stamp(Path(asset.href)) for s in used for asset in plan.scenes[s].assets.values()],
    ]  # fmt: skip
    return f"{planned.block.id}-{digest(parts)[:20]}"


@lru_cache(maxsize=1)
def _opened(work: Path, wanted: str) -> tuple[Plan, np.ndarray, np.ndarray]:
    """Plan, loss year and bounds by event row, once per process and plan; `wanted` is the plan file's digest."""
    if file_sha256(work / PLAN_FILE) != wanted:
        raise BlockError(f"{work / PLAN_FILE} is not the plan this run was started with; run again")
    plan = read_plan(work)
    table = pq.read_table(work / EVENTS_FILE, columns=["loss_year", "row0", "col0", "row1", "col1"])
    columns = [table.column(name).to_numpy() for name in ("row0", "col0", "row1", "col1")]
    return plan, table.column("loss_year").to_numpy(), np.stack(columns, axis=1)


def compute_block(task: BlockTask) -> BlockRecord:
    """Compute one block unless its checkpoint is there.

    Raises:
        SceneError: a scene cannot be read; the caller excludes it and asks again.
        ModelError: the model cannot be loaded here.
    """
    from pipeline.models.engines import segmenter_for_worker

    started = time.perf_counter()
    plan, year_of, bounds = _opened(task.work, task.plan)
    planned = next(b for b in plan.blocks if b.block.id == task.block)
    name = checkpoint_name(plan, planned, task.excluded)
    final = task.work / "blocks" / name
    if final.exists():
        return found_block(final, task.block)
    model = _Timed(segmenter_for_worker(task.model, task.engine, "auto", task.precision))
    labels = _read_labels(task.work, planned.block)
    years = np.concatenate([[0], year_of])[labels]
    parts = []
    for year, ids in planned.scenes.items():
        loss = np.where(years == year, labels, 0)
        scenes = tuple(s for s in ids if s not in task.excluded)
        read = [localised(plan.scenes[s], task.cache) for s in scenes]
        parts.append(_predict_year(plan, planned.block, loss, read, bounds, model, task.batch))
    with committed_folder(final) as folder:
        _write(folder, planned.block, parts)
        seconds, device = time.perf_counter() - started, str(getattr(model.segmenter, "device", ""))
        record = BlockRecord(task.block, "done", name, "", seconds, model.seconds, _peak_rss_mb(), device=device)
        write_json(folder / META, dataclasses.asdict(record))
    return record


def found_block(checkpoint: Path, block: str) -> BlockRecord:
    """The record of a block that was computed before, as it stands in its checkpoint."""
    kept = json.loads((checkpoint / META).read_text(encoding="utf-8"))
    return dataclasses.replace(BlockRecord(**kept), block=block, status="existing", checkpoint=checkpoint.name)


class _Timed:
    """A segmenter that keeps the time spent inside its forward pass."""

    def __init__(self, segmenter: Any) -> None:
        self.segmenter, self.card, self.seconds = segmenter, segmenter.card, 0.0

    def logits(self, images: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        result = self.segmenter.logits(images)
        self.seconds += time.perf_counter() - started
        return np.asarray(result)


def _peak_rss_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1024 if sys.platform != "darwin" else peak / 1024**2)


def _read_labels(work: Path, block: Block) -> np.ndarray:
    with rasterio.open(work / LABELS_FILE) as raster:
        return np.asarray(raster.read(1, window=Window(block.col0, block.row0, block.width, block.height)))


def _predict_year(
    plan: Plan, block: Block, loss: np.ndarray, scenes: list[Scene], bounds: np.ndarray, model: _Timed,
    batch: int | None,
) -> YearSums:  # fmt: skip
    """One loss year of a block; seven parameters, all of them the block's own facts."""
    from pipeline.patches import CompositeDataset, lay_patches
    from pipeline.predict import predict_loss

    row0, col0, height, width = lattice_window(block, plan.layout)
    image = np.full((len(plan.bands), height, width), np.nan, np.float32)
    dataset = CompositeDataset(image, plan.grid.window(row0, col0, height, width))
    extents = {int(k): bounds[k - 1] for k in np.unique(loss) if k}
    patches = lay_patches(dataset, plan.layout, plan.grid, block, loss, extents)
    images = _fill_composite(plan, block, loss, scenes, patches, image)
    inside = (
        slice(block.row0 - row0, block.row0 - row0 + block.height),
        slice(block.col0 - col0, block.col0 - col0 + block.width),
    )
    clear = np.where(np.isnan(image[0][inside]), 0, loss)
    # patches without a clear loss pixel say nothing that is kept
    patches = lay_patches(dataset, plan.layout, plan.grid, block, clear, extents) if clear.any() else []
    logits = predict_loss(dataset, (row0, col0), patches, block, clear, model, plan.layout.size, batch or 1)
    return _sum_year(loss, clear, logits, images, model.card)


def _fill_composite(
    plan: Plan, block: Block, loss: np.ndarray, scenes: list[Scene], patches: list[Patch], image: np.ndarray
) -> list[tuple[int, str, int]]:
    """Fill `image` (the block's lattice window) with the composite, tile by tile, only where a patch will look.

    Returns:
        (event row, scene, clear loss pixels of that event in that scene) for each pair that has any.
    """
    from pipeline.scenes import LandsatScenes

    row0, col0, height, width = lattice_window(block, plan.layout)
    seen: dict[tuple[int, str], int] = {}
    if not scenes or not patches:
        return []
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_MB), LandsatScenes(scenes, plan.grid, plan.bands) as dataset:
        for top, left, h, w in _tiles(row0, col0, height, width):
            if not any(_meets(p, plan.layout.size, top, left, h, w) for p in patches):
                continue
            stack = dataset.read(top, left, h, w)
            inside = slice(top - row0, top - row0 + h), slice(left - col0, left - col0 + w)
            image[:, *inside], _ = median_composite(stack)
            part = _loss_of(loss, block, top, left, h, w)
            for scene, observed in zip(scenes, ~np.isnan(stack[:, 0]), strict=True):
                labels, counts = np.unique(part[observed & (part > 0)], return_counts=True)
                for label, count in zip(labels, counts, strict=True):
                    seen[int(label) - 1, scene.id] = seen.get((int(label) - 1, scene.id), 0) + int(count)
    return [(event, scene, count) for (event, scene), count in sorted(seen.items())]


def _tiles(row0: int, col0: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a window into tiles (row, column, height, width) along multiples of _TILE of the run's grid."""
    for top in range(row0 // _TILE * _TILE, row0 + height, _TILE):
        for left in range(col0 // _TILE * _TILE, col0 + width, _TILE):
            r0, c0 = max(top, row0), max(left, col0)
            yield r0, c0, min(top + _TILE, row0 + height) - r0, min(left + _TILE, col0 + width) - c0


def _meets(patch: Patch, size: int, top: int, left: int, height: int, width: int) -> bool:
    rows = patch.row0 < top + height and top < patch.row0 + size
    return rows and patch.col0 < left + width and left < patch.col0 + size


def _loss_of(loss: np.ndarray, block: Block, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The block's loss labels over a window of the run's grid; 0 outside the block."""
    out = np.zeros((height, width), loss.dtype)
    r0, r1 = max(top, block.row0), min(top + height, block.row0 + block.height)
    c0, c1 = max(left, block.col0), min(left + width, block.col0 + block.width)
    if r0 < r1 and c0 < c1:
        part = loss[r0 - block.row0 : r1 - block.row0, c0 - block.col0 : c1 - block.col0]
        out[r0 - top : r1 - top, c0 - left : c1 - left] = part
    return out


def _sum_year(
    loss: np.ndarray, clear: np.ndarray, logits: np.ndarray, images: list[tuple[int, str, int]], card: Any
) -> YearSums:
    """Class and confidence of every loss pixel, and integer sums by event."""
    from scipy.special import softmax

    codes = np.array(card.scheme.codes, np.uint8)
    where = np.flatnonzero(loss)
    label, observed = loss.ravel()[where], clear.ravel()[where] > 0
    fixed = to_fixed_point(logits) if len(logits) else np.zeros((0, len(codes)), np.int64)
    classes, confidence = (np.full(len(where), NO_DATA, np.uint8) for _ in range(2))
    if len(fixed):
        p = softmax(fixed / FIXED_POINT / card.calibration.temperature, axis=1)
        classes[observed] = codes[fixed.argmax(axis=1)]
        confidence[observed] = np.rint(p.max(axis=1) * 100).astype(np.uint8)
    present, pixels, _ = sum_by_event(label, np.zeros((len(label), 1), np.int64))
    seen, clear_pixels, logit_sums = sum_by_event(label[observed], fixed)
    place = np.searchsorted(present, seen)
    sums: dict[str, np.ndarray] = {"event": present - 1, "pixels": pixels, "clear": np.zeros(len(present), np.int64)}
    sums["clear"][place] = clear_pixels
    for k, name in enumerate(card.scheme.names):
        sums[f"logit_{name}"] = np.zeros(len(present), np.int64)
        sums[f"logit_{name}"][place] = logit_sums[:, k]
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
