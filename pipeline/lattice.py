"""The lattice of patches: where they lie, and the cell that each of them speaks for.

All patches of a run lie on one lattice anchored at the run's grid, whatever the blocks are: squeeze-and-excitation lets
every pixel see its whole patch, so a lattice that moved with the block would change answers. Patches overlap, their
cells do not: a pixel is classified once, by the patch in whose middle it lies. So the fewest patches are computed that
let each pixel see as much of its surroundings as the lattice has to give, and a pixel's answer does not depend on what
other loss there is. Blocks are whole cells: no patch is computed twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

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

    @property
    def margin(self) -> int:
        """Pixels between the upper or left edge of a patch and that of its cell."""
        return (self.size - self.stride) // 2

    def whole_cells(self, length: int) -> int:
        """The length of a block's side, in pixels, made up to whole cells of the lattice."""
        return math.ceil(length / self.stride) * self.stride


@dataclass(frozen=True)
class Patch:
    """A model input window on the run's grid, and what it speaks for.

    Attributes:
        row0, col0: its first row and column.
        event: label of the one event it speaks for, or EVERY_EVENT.
        top, left, bottom, right: its cell, first and last + 1 row and column.
    """

    row0: int
    col0: int
    event: int
    top: int
    left: int
    bottom: int
    right: int


PATCH = tuple(field.name for field in fields(Patch))
"""Columns of an array of patches, int32 [n, 7]; everywhere in the order of `patches.draw_patches`."""


def lattice_window(block: Block, layout: PatchLayout) -> tuple[int, int, int, int]:
    """Rows and columns (row0, col0, height, width) that patches of a block may cover.

    With mode `grid` they are those of the patches whose cells meet the block; with `events` a patch starts anywhere.
    """

    def span(start: int, length: int) -> tuple[int, int]:
        if layout.mode == "events":
            return start - layout.size + 1, length + 2 * (layout.size - 1)
        first, last = start // layout.stride, (start + length - 1) // layout.stride
        return first * layout.stride - layout.margin, (last - first) * layout.stride + layout.size

    (row0, height), (col0, width) = span(block.row0, block.height), span(block.col0, block.width)
    return row0, col0, height, width


def starts(first: int, end: int, size: int, stride: int) -> list[int]:
    """Starts of the patches that cover `first..end`, centred on it."""
    count = max(math.ceil((end - first - size) / stride), 0) + 1
    total = size + (count - 1) * stride
    start = (first + end - total) // 2
    return [start + k * stride for k in range(count)]


def cells(found: Sequence[int], layout: PatchLayout) -> list[tuple[int, int]]:
    """First and last + 1 row (or column) that each of an event's patches, by its start, speaks for."""
    cuts = [found[0], *(start + layout.margin for start in found[1:]), found[-1] + layout.size]
    return list(itertools.pairwise(cuts))


def spoken(patch: Patch, block: Block) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of a patch's cell inside a block: of the block's array, and of the patch's array."""
    top, bottom = (min(max(row, block.row0), block.row0 + block.height) for row in (patch.top, patch.bottom))
    left, right = (min(max(col, block.col0), block.col0 + block.width) for col in (patch.left, patch.right))
    outer = slice(top - block.row0, bottom - block.row0), slice(left - block.col0, right - block.col0)
    return outer, (slice(top - patch.row0, bottom - patch.row0), slice(left - patch.col0, right - patch.col0))


def meeting(patches: np.ndarray, size: int, block: Block) -> np.ndarray:
    """Those of the patches, int32 [n, 7] of `size` pixels, whose cell meets a block."""
    first, end = np.searchsorted(patches[:, 0], (block.row0 - size + 1, block.row0 + block.height))
    near = patches[first:end]
    _, _, _, top, left, bottom, right = near.T
    inside = (bottom > block.row0) & (top < block.row0 + block.height)
    inside &= (right > block.col0) & (left < block.col0 + block.width)
    found: np.ndarray = near[inside]
    return found


def needed(patches: np.ndarray, block: Block, labels: np.ndarray) -> np.ndarray:
    """Those of the patches, int32 [n, 7], that speak for loss of a block.

    `labels` is int32 [block.height, block.width], the event's label, 0 = no loss.
    """
    if not len(patches) or not labels.any():
        return patches[:0]
    sums = np.zeros((block.height + 1, block.width + 1), np.int64)
    sums[1:, 1:] = (labels != 0).cumsum(0, dtype=np.int64).cumsum(1)
    r0, r1 = (np.clip(patches[:, k] - block.row0, 0, block.height) for k in (3, 5))
    c0, c1 = (np.clip(patches[:, k] - block.col0, 0, block.width) for k in (4, 6))
    hit = sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0] > 0
    for k in np.flatnonzero(hit & (patches[:, 2] != EVERY_EVENT)):
        hit[k] = (labels[r0[k] : r1[k], c0[k] : c1[k]] == patches[k, 2]).any()
    chosen: np.ndarray = patches[hit]
    return chosen


def covered_pixels(patches: np.ndarray, size: int) -> int:
    """Pixels that lie under at least one of the patches, int32 [n, 7]."""
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
    """Patches as records, from int32 [n, 7]."""
    return [Patch(*map(int, row)) for row in patches]
