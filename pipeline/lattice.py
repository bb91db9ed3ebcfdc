"""The lattice of patches: where they lie, which part of a block each one covers, and how overlaps are weighted.

All patches of a run lie on one lattice anchored at the run's grid, whatever the blocks are: squeeze-and-excitation lets
every pixel see its whole patch, so a lattice that moved with the block would change answers. A block computes every
lattice patch that touches its own loss, its outermost ones over a margin of real pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.grid import Block

EVERY_EVENT = 0
"""As `Patch.event`: the patch speaks for all loss inside it."""


@dataclass(frozen=True)
class PatchLayout:
    """How patches are laid: `mode` grid or events, `size` and `stride` in pixels of the run's grid."""

    mode: str = "grid"
    size: int = 256
    stride: int = 192


@dataclass(frozen=True)
class Patch:
    """A model input window: first row and column in pixels of the run's grid, and the label it speaks for."""

    row0: int
    col0: int
    event: int = EVERY_EVENT


def lattice_window(block: Block, layout: PatchLayout) -> tuple[int, int, int, int]:
    """Rows and columns (row0, col0, height, width) that patches of a block may cover.

    With mode `grid` they are those of the lattice patches that meet the block; with `events` a patch starts anywhere.
    """

    def span(start: int, length: int) -> tuple[int, int]:
        if layout.mode == "events":
            return start - layout.size + 1, length + 2 * (layout.size - 1)
        first = math.ceil((start - layout.size + 1) / layout.stride) * layout.stride
        last = (start + length - 1) // layout.stride * layout.stride
        return first, last + layout.size - first

    (row0, height), (col0, width) = span(block.row0, block.height), span(block.col0, block.width)
    return row0, col0, height, width


def starts(first: int, end: int, size: int, stride: int) -> list[int]:
    """Starts of the patches that cover `first..end`, centred on it."""
    count = max(math.ceil((end - first - size) / stride), 0) + 1
    total = size + (count - 1) * stride
    start = (first + end - total) // 2
    return [start + k * stride for k in range(count)]


def overlap(patch: Patch, size: int, block: Block) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of a patch's part inside a block: of the block's array, and of the patch's array."""
    top, left = patch.row0 - block.row0, patch.col0 - block.col0
    rows = slice(max(top, 0), max(min(top + size, block.height), 0))
    cols = slice(max(left, 0), max(min(left + size, block.width), 0))
    inside = slice(rows.start - top, max(rows.stop - top, 0)), slice(cols.start - left, max(cols.stop - left, 0))
    return (rows, cols), inside


def meeting(patches: np.ndarray, size: int, block: Block) -> np.ndarray:
    """Those of the patches, int32 [n, 3] in the order of `patches.draw_patches`, that meet a block."""
    first, end = np.searchsorted(patches[:, 0], (block.row0 - size + 1, block.row0 + block.height))
    rows = patches[first:end]
    inside: np.ndarray = rows[(rows[:, 1] > block.col0 - size) & (rows[:, 1] < block.col0 + block.width)]
    return inside


def touching(patches: np.ndarray, size: int, block: Block, labels: np.ndarray) -> np.ndarray:
    """Those of the patches, int32 [n, 3] of row, column and event, that touch loss of a block they speak for.

    `labels` is int32 [block.height, block.width], the event's label, 0 = no loss.
    """
    if not len(patches) or not labels.any():
        return patches[:0]
    sums = np.zeros((block.height + 1, block.width + 1), np.int64)
    sums[1:, 1:] = (labels != 0).cumsum(0, dtype=np.int64).cumsum(1)
    top, left = patches[:, 0] - block.row0, patches[:, 1] - block.col0
    r0, r1 = (np.clip(top + k, 0, block.height) for k in (0, size))
    c0, c1 = (np.clip(left + k, 0, block.width) for k in (0, size))
    hit = sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0] > 0
    for k in np.flatnonzero(hit & (patches[:, 2] != EVERY_EVENT)):
        hit[k] = (labels[r0[k] : r1[k], c0[k] : c1[k]] == patches[k, 2]).any()
    chosen: np.ndarray = patches[hit]
    return chosen


def covered_pixels(patches: np.ndarray, size: int) -> int:
    """Pixels that lie under at least one of the patches, int32 [n, 3]."""
    if not len(patches):
        return 0
    corners = patches[:, :2] - patches[:, :2].min(axis=0)
    cell = int(np.gcd.reduce(corners.ravel(), initial=size))
    corners, side = corners // cell, size // cell
    seen = np.zeros(corners.max(axis=0) + side, bool)
    for row, col in corners:
        seen[row : row + side, col : col + side] = True
    return int(np.count_nonzero(seen)) * cell**2


def listed(patches: np.ndarray) -> list[Patch]:
    """Patches as records, from int32 [n, 3]."""
    return [Patch(*map(int, row)) for row in patches]


def blend_weights(size: int) -> np.ndarray:
    """Integer pyramid [size, size], int64, at least 1 everywhere: the middle of a patch knows most of its surroundings.

    Integers below 2**24 keep the weighted mean of equal values exact in float64.
    """
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.int64)
    return np.outer(ramp, ramp)
