"""The lattice of patches: where they lie, which events each of them speaks for, and how overlaps are weighted.

All patches of a run lie on one lattice anchored at the run's grid, whatever the blocks are: squeeze-and-excitation lets
every pixel see its whole patch, so a lattice that moved with the block would change answers. Patches overlap, their
cells do not: an event is spoken for by the patches in whose cells it lies, so that the fewest patches are computed that
show each pixel's surroundings. Where several of them speak for one event they are blended, so there is no seam in it.
Nothing but the event itself decides who speaks for it: its answer does not depend on what other loss there is.

Blocks are whole cells, so that two blocks share only the patches of events that cross their border.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.grid import Block

EVERY_EVENT = 0
"""As `Patch.event`: the patch speaks for any event in its cell."""


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
    """A model input window on the run's grid.

    Attributes:
        row0, col0: its first row and column.
        event: label of the one event it may speak for, or EVERY_EVENT.
        top, left, bottom, right: its cell, first and last + 1 row and column: it speaks for events that have a pixel
            there.
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

    With mode `grid` they are those of the lattice patches that meet the block; with `events` a patch starts anywhere.
    """

    def span(start: int, length: int) -> tuple[int, int]:
        if layout.mode == "events":
            return start - layout.size + 1, length + 2 * (layout.size - 1)
        first = math.ceil((start - layout.size + 1 + layout.margin) / layout.stride)
        last = (start + length - 1 + layout.margin) // layout.stride
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
    """First and last + 1 row (or column) of the cell of each of an event's patches, by its start."""
    cuts = [found[0], *(start + layout.margin for start in found[1:]), found[-1] + layout.size]
    return list(itertools.pairwise(cuts))


class BlockLoss:
    """The loss of a block and around it.

    Attributes:
        block: the block.
        row0, col0: first row and column, on the run's grid, of its lattice window.
        labels: int32 over that window, the event's label, 0 = no loss.
    """

    def __init__(self, block: Block, row0: int, col0: int, labels: np.ndarray) -> None:
        """See the class."""
        self.block, self.row0, self.col0, self.labels = block, row0, col0, labels
        self._spoken = np.zeros(int(labels.max(initial=0)) + 1, bool)

    def only(self, chosen: np.ndarray) -> BlockLoss:
        """The part of it that is `chosen`, bool over the same window."""
        return BlockLoss(self.block, self.row0, self.col0, np.where(chosen, self.labels, 0))

    @property
    def inside(self) -> np.ndarray:
        """Labels int32 [block.height, block.width]."""
        top, left = self.block.row0 - self.row0, self.block.col0 - self.col0
        part: np.ndarray = self.labels[top : top + self.block.height, left : left + self.block.width]
        return part

    def spoken(
        self, patch: Patch, size: int, labels: np.ndarray
    ) -> tuple[tuple[slice, slice], tuple[slice, slice], np.ndarray]:
        """What a patch of `size` pixels says of the block.

        Returns:
            Slices of the patch's part inside the block, of the block's array and of the patch's array, and bool over
            that part: where `labels` [block.height, block.width] is an event that the patch speaks for.
        """
        outer, inner = overlap(patch, size, self.block)
        cell = self.labels[
            patch.top - self.row0 : patch.bottom - self.row0, patch.left - self.col0 : patch.right - self.col0
        ]
        self._spoken[cell] = True
        self._spoken[0] = False
        own = self._spoken[labels[outer]]
        self._spoken[cell] = False
        if patch.event != EVERY_EVENT:
            own &= labels[outer] == patch.event
        return outer, inner, own


def overlap(patch: Patch, size: int, block: Block) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of a patch's part inside a block: of the block's array, and of the patch's array."""
    top, left = patch.row0 - block.row0, patch.col0 - block.col0
    rows = slice(max(top, 0), max(min(top + size, block.height), 0))
    cols = slice(max(left, 0), max(min(left + size, block.width), 0))
    inside = slice(rows.start - top, max(rows.stop - top, 0)), slice(cols.start - left, max(cols.stop - left, 0))
    return (rows, cols), inside


def meeting(patches: np.ndarray, size: int, block: Block) -> np.ndarray:
    """Those of the patches, int32 [n, 7] of `size` pixels, that meet a block."""
    first, end = np.searchsorted(patches[:, 0], (block.row0 - size + 1, block.row0 + block.height))
    rows = patches[first:end]
    inside: np.ndarray = rows[(rows[:, 1] > block.col0 - size) & (rows[:, 1] < block.col0 + block.width)]
    return inside


def needed(patches: np.ndarray, size: int, loss: BlockLoss, clear: np.ndarray | None = None) -> np.ndarray:
    """Those of the patches, int32 [n, 7] of `size` pixels that meet a block, which speak for loss of it.

    `clear` are the labels inside the block less those that no image shows; by default nothing is hidden.
    """
    chosen: np.ndarray = patches[speaking(patches, size, loss, clear)]
    return chosen


def speaking(patches: np.ndarray, size: int, loss: BlockLoss, clear: np.ndarray | None = None) -> np.ndarray:
    """Which of the patches are `needed`, bool [n]."""
    seen = loss.inside if clear is None else clear
    hit = np.zeros(len(patches), bool)
    for k, patch in enumerate(listed(patches) if seen.any() else ()):
        outer, _ = overlap(patch, size, loss.block)
        hit[k] = seen[outer].any() and loss.spoken(patch, size, seen)[2].any()
    return hit


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


def blend_weights(size: int) -> np.ndarray:
    """Integer pyramid [size, size], int64, at least 1 everywhere: the middle of a patch knows most of its surroundings.

    Integers below 2**24 keep the weighted mean of equal values exact in float64.
    """
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.int64)
    return np.outer(ramp, ramp)
