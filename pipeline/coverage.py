"""Polygon coverages: many polygons that share borders, simplified and merged without a gap or an overlap between them.

A coverage is valid when no two polygons overlap and neighbours share every vertex of their common border. Simplifying
such polygons one by one leaves slivers; here a border is simplified once, for both sides.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree


@dataclass(frozen=True)
class Simplified:
    """Polygons [n] after simplification, and what it did.

    Attributes:
        polygons: as given where their neighbourhood is no valid coverage, else simplified.
        left: bool [n], polygons left as they were.
        area_before: area of all polygons, square units of their CRS.
        area_after: the same afterwards.
    """

    polygons: np.ndarray
    left: np.ndarray
    area_before: float
    area_after: float

    @property
    def change_percent(self) -> float:
        """Change of the whole area in percent."""
        return 100 * (self.area_after / self.area_before - 1) if self.area_before else 0.0


def simplify_coverage(polygons: np.ndarray, tolerance: float, outline: bool = True) -> Simplified:
    """Simplify polygons [n] of a metric CRS so that shared borders stay shared.

    Groups of touching polygons that are no valid coverage (they overlap, or a vertex lies on a neighbour's edge) are
    left as they are: simplified, they would come apart.

    Args:
        polygons: Polygon or MultiPolygon, none of them empty.
        tolerance: in units of the CRS: about the square root of the area of the triangles that go.
        outline: also simplify borders that are not shared; without it the union stays what it was.

    Source: Visvalingam and Whyatt 1993, doi:10.1179/000870493786962263, as in GEOS 3.12.
    """
    area = float(shapely.area(polygons).sum())
    left = _unsound(polygons)
    if left.all() or tolerance <= 0:
        return Simplified(polygons, np.ones(len(polygons), bool) if tolerance <= 0 else left, area, area)
    out = polygons.copy()
    out[~left] = shapely.coverage_simplify(polygons[~left], tolerance, simplify_boundary=outline)
    # a simplifier must never damage what it was given
    broken = with_neighbours(polygons, ~shapely.is_valid(out))
    out[broken], left = polygons[broken], left | broken
    return Simplified(out, left, area, float(shapely.area(out).sum()))


def _unsound(polygons: np.ndarray) -> np.ndarray:
    """Bool [n]: polygons whose group of touching polygons is no valid coverage."""
    if not len(polygons):
        return np.zeros(0, bool)
    faults = ~shapely.is_empty(np.atleast_1d(shapely.coverage_invalid_edges(polygons)))
    return with_neighbours(polygons, faults | ~shapely.is_valid(polygons))


def with_neighbours(polygons: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Bool [n]: the marked polygons, and all that touch them, directly or through others."""
    if not marked.any():
        return marked
    one, two = STRtree(polygons).query(polygons, predicate="intersects")
    graph = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(polygons),) * 2)
    groups = connected_components(graph, directed=False)[1]
    return np.asarray(np.isin(groups, np.unique(groups[marked])))


@dataclass(frozen=True)
class Merged:
    """The result of a minimum mapping unit.

    Attributes:
        polygons: Polygon or MultiPolygon [m].
        kind: [m], the kind of the largest part.
        source: index [m] of a polygon that gave the row its kind.
        member: index [n] of the row that each polygon became part of.
        merged: how many polygons were merged into a neighbour.
        kept: how many stay below the limit because they have no neighbour.
    """

    polygons: np.ndarray
    kind: np.ndarray
    source: np.ndarray
    member: np.ndarray
    merged: int
    kept: int


def merge_small(polygons: np.ndarray, group: np.ndarray, kind: np.ndarray, area: np.ndarray, smallest: float) -> Merged:
    """Merge every polygon below an area into the neighbour of its group with which it shares the longest border.

    The smallest goes first and the area grows along, so a chain of small neighbours becomes one; equal lengths are
    decided by the larger neighbour, then by the order given. Neighbours of one group and kind are one in the end.
    Nothing is added and nothing is lost: the union stays what it was.

    Args:
        polygons: a valid coverage [n] in a metric CRS, for lengths of borders.
        group: [n], merging never crosses groups (events).
        kind: [n], what a polygon is (driver code).
        area: [n], in the unit of `smallest`.
        smallest: polygons below this are merged.
    """
    borders = _borders(polygons, group)
    owner = np.arange(len(polygons))
    size = np.asarray(area, float).copy()
    merged = kept = 0
    queue = [(float(size[k]), int(k)) for k in np.flatnonzero(size < smallest)]
    heapq.heapify(queue)
    while queue:
        listed, k = heapq.heappop(queue)
        if owner[k] != k or listed != size[k]:
            continue
        if not borders[k]:
            kept += 1
            continue
        target = max(borders[k], key=lambda j: (borders[k][j], size[j], -j))
        _absorb(borders, owner, size, target, k)
        merged += 1
        if size[target] < smallest:
            heapq.heappush(queue, (float(size[target]), target))
    final = np.array([_find(owner, int(k)) for k in range(len(polygons))], dtype=np.int64)
    for k in np.unique(final):  # neighbours that have become of one kind
        for j in sorted(borders[int(k)]):
            one, two = _find(owner, int(k)), _find(owner, int(j))
            if one != two and kind[one] == kind[two]:
                owner[max(one, two)] = min(one, two)
    final = np.array([_find(owner, int(k)) for k in range(len(polygons))], dtype=np.int64)
    source, member = np.unique(final, return_inverse=True)
    counts = np.bincount(member)
    out = polygons[source].copy()
    order = np.argsort(member, kind="stable")
    for row, parts in enumerate(np.split(polygons[order], np.cumsum(counts)[:-1]) if len(polygons) else []):
        if len(parts) > 1:
            out[row] = shapely.coverage_union_all(parts)
    return Merged(out, kind[source], source, member, merged, kept)


def _borders(polygons: np.ndarray, group: np.ndarray) -> dict[int, dict[int, float]]:
    """Length of the border that each polygon shares with each neighbour of its group."""
    found: dict[int, dict[int, float]] = defaultdict(dict)
    if not len(polygons):
        return found
    one, two = STRtree(polygons).query(polygons, predicate="intersects")
    near = (one < two) & (group[one] == group[two])
    one, two = one[near], two[near]
    shared = shapely.length(shapely.intersection(shapely.boundary(polygons[one]), shapely.boundary(polygons[two])))
    for i, j, length in zip(one.tolist(), two.tolist(), np.round(shared, 6).tolist(), strict=True):
        if length > 0:
            found[i][j] = found[j][i] = length
    return found


def _absorb(borders: dict[int, dict[int, float]], owner: np.ndarray, size: np.ndarray, target: int, gone: int) -> None:
    owner[gone] = target
    size[target] += size[gone]
    for neighbour, length in borders.pop(gone).items():
        del borders[neighbour][gone]
        if neighbour != target:
            joined = borders[target].get(neighbour, 0.0) + length
            borders[target][neighbour] = borders[neighbour][target] = joined


def _find(owner: np.ndarray, k: int) -> int:
    while owner[k] != k:
        k = int(owner[k])
    return k
