"""Outlines of equal-valued pixels, compiled: one sweep over the rows, then a walk along the corners that it found.

The sweep keeps one row of the raster, so a raster is read strip by strip and memory grows with the outlines only.
At every corner of a pixel's outline stands a node that knows the next one; a region lies to the left of its edges. Two
parts of one region that meet at a corner are linked across it, which makes every ring simple: an outline never touches
itself, and holes are rings of their own.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# what the columns of the growing tables hold
_X, _Y, _NEXT, _PART = 0, 1, 2, 3
_PARENT, _CODE = 0, 1
_NODES, _LABELS, _PINCHES = 0, 1, 2


class Sweep:
    """Takes int32 codes (0 = nothing) strip by strip from the top; `rings` then gives their outlines.

    Attributes:
        junctions: also put a vertex where an edge runs straight but its other side changes, so that neighbours share
            every vertex of their common border (a coverage).
    """

    def __init__(self, width: int, junctions: bool) -> None:
        self.junctions = junctions
        self._row = 0
        self._codes, self._parts = np.zeros(width, np.int32), np.zeros(width, np.int32)
        self._west, self._east = np.zeros(width + 1, np.int32), np.zeros(width + 1, np.int32)
        self._nodes, self._labels = np.zeros((1024, 4), np.int32), np.zeros((1024, 2), np.int32)
        self._pinches = np.zeros((64, 2), np.int32)
        self._counts = np.array([0, 1, 0], np.int64)  # label 0 is nothing

    def add(self, codes: NDArray[np.int32]) -> None:
        """Take the next rows [h, width]."""
        self._nodes, self._labels, self._pinches = _sweep(
            codes, self._row, self._codes, self._parts, self._west, self._east, self._nodes, self._labels,
            self._pinches, self._counts, self.junctions,
        )  # fmt: skip
        self._row += len(codes)

    def rings(self) -> Rings:
        """Close the raster at its last row and return its outlines; nothing can be added afterwards."""
        self.add(np.zeros((1, len(self._codes)), np.int32))
        count, labels, pinches = (int(k) for k in self._counts)
        nodes = self._nodes[:count]
        starts, lengths, owners, codes = _walk(nodes, self._labels[:labels], self._pinches[:pinches])
        order = np.argsort(owners, kind="stable")
        return Rings(nodes, starts[order], lengths[order], owners[order], codes)


class Rings:
    """Closed rings ordered by polygon, the outer one first; polygons by their first pixel in reading order."""

    def __init__(
        self, nodes: NDArray[np.int32], starts: NDArray[np.int32], lengths: NDArray[np.int32],
        owners: NDArray[np.int32], codes: NDArray[np.int32],
    ) -> None:  # fmt: skip
        self._nodes, self._starts, self._lengths = nodes, starts, lengths
        self.codes = codes
        self.first = np.searchsorted(owners, np.arange(len(codes) + 1))
        """Index of the first ring of each polygon, and one past the last."""

    def ragged(self, begin: int, end: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Columns and rows [points, 2] of polygons begin..end, and where their rings and polygons end."""
        rings = slice(self.first[begin], self.first[end])
        ends = np.concatenate([[0], np.cumsum(self._lengths[rings].astype(np.int64) + 1)])
        xy = np.empty((ends[-1], 2), np.float64)
        _emit(self._nodes, self._starts[rings], ends, xy)
        return xy, ends, (self.first[begin : end + 1] - self.first[begin]).astype(np.int64)


@njit(cache=True)
def _grown(table, used, extra):  # type: ignore[no-untyped-def]
    """Make room for `extra` rows."""
    if used + extra <= len(table):
        return table
    larger = np.zeros((max(used + extra, len(table) + len(table) // 2), table.shape[1]), np.int32)
    larger[:used] = table[:used]
    return larger


@njit(cache=True)
def _root(labels, label):  # type: ignore[no-untyped-def]
    while labels[label, _PARENT] != label:
        labels[label, _PARENT] = labels[labels[label, _PARENT], _PARENT]
        label = labels[label, _PARENT]
    return label


@njit(cache=True)
def _sweep(codes, row0, above, parts, west, east, nodes, labels, pinches, counts, junctions):  # type: ignore[no-untyped-def]
    """Go over the lines above each row; `above` and `parts` are the row before, and become the last one.

    Eleven parameters: the state of the sweep, which numba takes as plain arrays.
    """
    width = codes.shape[1]
    below = np.zeros(width, np.int32)
    for k in range(codes.shape[0]):
        row = codes[k]
        empty = True
        for x in range(width):
            if row[x] != 0 or above[x] != 0:
                empty = False
                break
        if empty:
            continue
        nodes = _grown(nodes, counts[_NODES], 4 * (width + 1))
        labels = _grown(labels, counts[_LABELS], width)
        pinches = _grown(pinches, counts[_PINCHES], 2 * (width + 1))
        _label(row, above, parts, below, labels, counts)
        _line(row0 + k, above, row, parts, below, west, east, nodes, pinches, counts, junctions)
        above[:] = row
        parts[:] = below
    return nodes, labels, pinches


@njit(cache=True)
def _label(row, above, parts, below, labels, counts):  # type: ignore[no-untyped-def]
    """Give each pixel of a row the label of its left or upper neighbour, joining the two where they meet."""
    for x in range(len(row)):
        code = row[x]
        if code == 0:
            below[x] = 0
            continue
        left = x > 0 and row[x - 1] == code
        if above[x] == code:
            below[x] = parts[x]
            if left:
                one, two = _root(labels, below[x - 1]), _root(labels, parts[x])
                labels[max(one, two), _PARENT] = min(one, two)
        elif left:
            below[x] = below[x - 1]
        else:
            new = counts[_LABELS]
            labels[new, _PARENT], labels[new, _CODE] = new, code
            below[x] = new
            counts[_LABELS] = new + 1


@njit(cache=True)
def _line(y, above, row, parts, below, west, east, nodes, pinches, counts, junctions):  # type: ignore[no-untyped-def]
    """Put nodes at the corners on the line between two rows and link them.

    Around a corner the pixels are a, b (above) and c, d (below). `upper` waits for the end of a lower edge of the
    upper row, `lower` of an upper edge of the lower row; `west` and `east` wait, column by column, for the lower end
    of a right edge (of the pixel to the west) and of a left edge (of the pixel to the east).

    Longer than a function should be: it is one case distinction over four pixels, in the innermost loop.
    """
    n = counts[_NODES]
    upper = lower = 0
    width = len(row)
    for x in range(width + 1):
        a = above[x - 1] if x > 0 else 0
        b = above[x] if x < width else 0
        c = row[x - 1] if x > 0 else 0
        d = row[x] if x < width else 0
        if a == b and c == d and a == c:
            continue
        corner_a = a != 0 and c != a and b != a
        corner_b = b != 0 and d != b and a != b
        corner_c = c != 0 and a != c and d != c
        corner_d = d != 0 and b != d and c != d
        if corner_a:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, parts[x - 1]
            nodes[upper, _NEXT] = n
            nodes[n, _NEXT] = west[x]
            n += 1
        if corner_b:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, parts[x]
            nodes[east[x], _NEXT] = n
            upper = n
            n += 1
        if corner_c:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, below[x - 1]
            nodes[n, _NEXT] = lower
            west[x] = n
            n += 1
        if corner_d:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, below[x]
            lower = n
            east[x] = n
            n += 1
        # regions that meet at this corner only: whether they are one is known at the end
        if corner_a and corner_d and a == d:
            first = n - 2 - (1 if corner_b else 0) - (1 if corner_c else 0)
            pinches[counts[_PINCHES], 0], pinches[counts[_PINCHES], 1] = first, n - 1
            counts[_PINCHES] += 1
        if corner_b and corner_c and b == c:
            last = n - 1 - (1 if corner_d else 0)
            pinches[counts[_PINCHES], 0], pinches[counts[_PINCHES], 1] = last - 1, last
            counts[_PINCHES] += 1
        # a region on three sides of the corner, or (for junctions) on two with different neighbours
        if a != 0 and a == b and (a in (c, d) or (junctions and c != d)):
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, parts[x - 1]
            if a == c:  # without d: from below, to the right
                west[x] = n
                upper = n
            elif a == d:  # without c: from the left, down
                nodes[upper, _NEXT] = n
                east[x] = n
            else:
                nodes[upper, _NEXT] = n
                upper = n
            n += 1
        elif c != 0 and c == d and (c in (a, b) or (junctions and a != b)):
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, below[x - 1]
            if a == c:  # without b: from the right, up
                nodes[n, _NEXT] = west[x]
                lower = n
            elif b == c:  # without a: from above, to the left
                nodes[n, _NEXT] = lower
                nodes[east[x], _NEXT] = n
            else:
                nodes[n, _NEXT] = lower
                lower = n
            n += 1
        elif junctions and a != 0 and a == c and b != d:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, parts[x - 1]
            nodes[n, _NEXT] = west[x]
            west[x] = n
            n += 1
        elif junctions and b != 0 and b == d and a != c:
            nodes[n, _X], nodes[n, _Y], nodes[n, _PART] = x, y, parts[x]
            nodes[east[x], _NEXT] = n
            east[x] = n
            n += 1
    counts[_NODES] = n


@njit(cache=True)
def _walk(nodes, labels, pinches):  # type: ignore[no-untyped-def]
    """Follow every ring once: its first node, length and polygon, and the code of each polygon."""
    for k in range(len(pinches)):
        one, two = pinches[k, 0], pinches[k, 1]
        if _root(labels, nodes[one, _PART]) == _root(labels, nodes[two, _PART]):
            following = nodes[one, _NEXT]
            nodes[one, _NEXT] = nodes[two, _NEXT]
            nodes[two, _NEXT] = following
    rings = 0
    lengths = np.zeros(len(nodes) // 4 + 1, np.int32)
    starts = np.zeros(len(nodes) // 4 + 1, np.int32)
    for k in range(len(nodes)):
        if nodes[k, _PART] <= 0:
            continue
        starts[rings] = k
        at, length = k, 0
        part = nodes[k, _PART]
        while nodes[at, _PART] > 0:
            nodes[at, _PART] = -part  # seen; the part is kept
            at = nodes[at, _NEXT]
            length += 1
        lengths[rings] = length
        rings += 1
    polygon = np.full(len(labels), -1, np.int32)
    owners, codes = np.zeros(rings, np.int32), np.zeros(rings, np.int32)
    polygons = 0
    for ring in range(rings):
        part = _root(labels, -nodes[starts[ring], _PART])
        if polygon[part] < 0:  # nodes stand in reading order, so the outer ring comes first
            polygon[part] = polygons
            codes[polygons] = labels[part, _CODE]
            polygons += 1
        owners[ring] = polygon[part]
    return starts[:rings], lengths[:rings], owners, codes[:polygons]


@njit(cache=True)
def _emit(nodes, starts, ends, xy):  # type: ignore[no-untyped-def]
    """Write the closed rings into `xy`."""
    for ring in range(len(starts)):
        at = starts[ring]
        for k in range(ends[ring], ends[ring + 1] - 1):
            xy[k, 0], xy[k, 1] = nodes[at, _X], nodes[at, _Y]
            at = nodes[at, _NEXT]
        xy[ends[ring + 1] - 1] = xy[ends[ring]]
