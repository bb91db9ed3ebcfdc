"""A search of a STAC API cut into pieces: by place where a region is scattered, by time where an answer is too long.

Servers page without end or up to some ten thousand items, whichever way they are built; a search that stays far below
that is whole on all of them. What two pieces both find counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from datetime import date, timedelta

import numpy as np
import shapely
from shapely import Geometry

_FULL = 0.5
"""A region that fills this share of its convex hull is asked for at once."""
_SMALL = 9.0
"""Square degrees of a hull that is not worth cutting: a Landsat scene covers some three."""
_MOST = 64

Days = tuple[date, date]


class TooLong(Exception):
    """A search finds more items than one search should."""


def cut_area(area: Geometry) -> list[Geometry]:
    """Return parts of an area (EPSG:4326) whose hulls hold little else; a compact area stays whole."""
    parts = [area]
    while len(parts) < _MOST:
        full, hulls = shapely.area(parts), shapely.area(shapely.convex_hull(parts))
        loose = np.flatnonzero(hulls > np.maximum(_SMALL, full / _FULL))
        if not len(loose):
            break
        parts += _halves(parts.pop(int(loose[np.argmax((hulls - full)[loose])])))
    return parts


def _halves(area: Geometry) -> list[Geometry]:
    """Cut an area through the middle of the longer side of its bounds; parts without an area go."""
    west, south, east, north = shapely.bounds(area)
    x, y = (west + east) / 2, (south + north) / 2
    boxes = (
        (shapely.box(west, south, x, north), shapely.box(x, south, east, north))
        if east - west > north - south
        else (shapely.box(west, south, east, y), shapely.box(west, y, east, north))
    )
    return [part for box in boxes if shapely.area(part := shapely.intersection(area, box)) > 0]


def in_pieces[K: Hashable, T](
    area: Geometry, days: Days, search: Callable[[Geometry, Days], Mapping[K, T]], most: int
) -> dict[K, T]:
    """Return everything that a search finds, piece by piece; raises TooLong beyond `most` items, or on a single day.

    `search` raises TooLong for a piece that is to be cut further.
    """
    found: dict[K, T] = {}
    for part in cut_area(area):
        waiting = [days]
        while waiting:
            first, last = waiting.pop()
            try:
                found.update(search(part, (first, last)))
            except TooLong:
                if first >= last:
                    raise
                middle = first + timedelta(days=(last - first).days // 2)
                waiting += [(middle + timedelta(days=1), last), (first, middle)]
            if len(found) > most:
                raise TooLong
    return found
