"""Scenes of a block to one composite for each loss year, read tile by tile, only where a patch will look.

Loss years close to each other share most of their scenes, so the years of a group are composited from one reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import rasterio

from pipeline import gdal
from pipeline.alerts import day_number
from pipeline.catalog.scene import Scene
from pipeline.composite import median_composite
from pipeline.grid import Block, RunGrid
from pipeline.lattice import BlockLoss, Patch, PatchLayout, lattice_window
from pipeline.stack import SceneStack

_TILE = 512


@dataclass
class YearImage:
    """One loss year of a block, or several that see the same scenes.

    Attributes:
        loss: of this year, or these.
        scenes: what the composite is made of.
        patches: where the model will look.
        image: float32 [bands, height, width] over the block's lattice window, NaN = not seen (`fill_composites`).
        seen: (event row, scene id) to clear loss pixels of that event in that scene (`fill_composites`).
        since: int32 over the lattice window, days since 1970-01-01: what scenes of earlier days show of a pixel does
            not count, as its forest still stood; None where no day is known.
    """

    loss: BlockLoss
    scenes: Sequence[Scene]
    patches: Sequence[Patch]
    image: np.ndarray
    seen: dict[tuple[int, str], int] = field(default_factory=dict)
    since: np.ndarray | None = None


@dataclass(frozen=True)
class Read:
    """A window of the run's grid (row, column, height, width) that is read, for those `years` of a group."""

    window: tuple[int, int, int, int]
    years: tuple[int, ...]


def list_reads(group: Sequence[Sequence[Patch]], block: Block, layout: PatchLayout) -> Iterator[Read]:
    """What is read of the scenes of a group of years of one block: nothing but the hull of patches in each tile.

    The fetch stage brings the files' tiles by this list.

    Args:
        group: patches of each year; none for a year that reads nothing.
        block: the block.
        layout: how patches are laid.
    """
    for tile in _tiles(*lattice_window(block, layout)):
        needed = {k: part for k, patches in enumerate(group) if (part := _needed(patches, layout.size, tile))}
        if needed:
            yield Read(_hull(list(needed.values())), tuple(needed))


def fill_composites(
    years: Sequence[YearImage], block: Block, grid: RunGrid, layout: PatchLayout, bands: Sequence[str]
) -> None:
    """Fill `image` and `seen` of several loss years of one block, reading each scene once.

    Raises:
        SceneError: a scene cannot be read.
    """
    scenes = sorted({s.id: s for year in years if year.patches for s in year.scenes}.values(), key=lambda s: s.id)
    row0, col0, _, _ = lattice_window(block, layout)
    # with several threads GDAL serves a tile that it failed to read when it is asked for it a second time
    limits = rasterio.Env(GDAL_CACHEMAX=gdal.CACHE, GDAL_NUM_THREADS="1")
    with limits, SceneStack(scenes, grid, bands) as files:
        for read in list_reads([year.patches if year.scenes else () for year in years], block, layout):
            top, left, h, w = read.window
            needed = [years[k] for k in read.years]
            wanted = {s.id for year in needed for s in year.scenes}
            at = {s.id: k for k, s in enumerate(s for s in scenes if s.id in wanted)}
            stack = files.read(top, left, h, w, wanted)
            for year in needed:
                chosen = stack[[at[s.id] for s in year.scenes]]
                inside = slice(top - row0, top - row0 + h), slice(left - col0, left - col0 + w)
                if year.since is not None:
                    _hide_early(chosen, year.scenes, year.since[inside])
                year.image[:, *inside], _ = median_composite(chosen)
                _count_seen(year, _cut(year.loss.inside, block, (top, left, h, w)), chosen)


def _tiles(row0: int, col0: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a window into tiles (row, column, height, width) along multiples of _TILE of the run's grid."""
    for top in range(row0 // _TILE * _TILE, row0 + height, _TILE):
        for left in range(col0 // _TILE * _TILE, col0 + width, _TILE):
            r0, c0 = max(top, row0), max(left, col0)
            yield r0, c0, min(top + _TILE, row0 + height) - r0, min(left + _TILE, col0 + width) - c0


def _needed(
    patches: Sequence[Patch], size: int, tile: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:  # fmt: skip
    """The part of a tile (row, column, height, width) that patches cover, None where they cover none."""
    top, left, height, width = tile
    parts = []
    for patch in patches:
        r0, c0 = max(patch.row0, top), max(patch.col0, left)
        r1, c1 = min(patch.row0 + size, top + height), min(patch.col0 + size, left + width)
        if r0 < r1 and c0 < c1:
            parts.append((r0, c0, r1 - r0, c1 - c0))
    return _hull(parts) if parts else None


def _hull(parts: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    top, left = min(p[0] for p in parts), min(p[1] for p in parts)
    return top, left, max(p[0] + p[2] for p in parts) - top, max(p[1] + p[3] for p in parts) - left


def _cut(loss: np.ndarray, block: Block, window: tuple[int, int, int, int]) -> np.ndarray:
    """The block's loss labels over a window of the run's grid; 0 outside the block."""
    top, left, height, width = window
    out = np.zeros((height, width), loss.dtype)
    r0, r1 = max(top, block.row0), min(top + height, block.row0 + block.height)
    c0, c1 = max(left, block.col0), min(left + width, block.col0 + block.width)
    if r0 < r1 and c0 < c1:
        part = loss[r0 - block.row0 : r1 - block.row0, c0 - block.col0 : c1 - block.col0]
        out[r0 - top : r1 - top, c0 - left : c1 - left] = part
    return out


def _hide_early(stack: np.ndarray, scenes: Sequence[Scene], since: np.ndarray) -> None:
    """Set to NaN what scenes [scenes, bands, h, w] show of pixels before their day `since` [h, w], in place."""
    for layers, scene in zip(stack, scenes, strict=True):
        layers[:, since > day_number(scene.datetime.date())] = np.nan


def _count_seen(year: YearImage, loss: np.ndarray, stack: np.ndarray) -> None:
    """Add the clear loss pixels of each event in each scene of `stack` [scenes, bands, h, w]."""
    lost = np.nonzero(loss)
    rows = loss[lost] - 1
    for scene, layers in zip(year.scenes, stack, strict=True):
        events, counts = np.unique(rows[~np.isnan(layers[0][lost])], return_counts=True)
        for event, count in zip(events, counts, strict=True):
            key = int(event), scene.id
            year.seen[key] = year.seen.get(key, 0) + int(count)
