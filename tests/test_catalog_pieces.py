"""Searches in pieces: whatever is cut, everything is found, once."""

from __future__ import annotations

import itertools
from datetime import date, timedelta

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog.pieces import TooLong, cut_area, in_pieces

YEAR = (date(2020, 1, 1), date(2020, 12, 31))
HERE = shapely.box(100, 0, 101, 1)


def test_a_compact_region_stays_whole():
    for area in (HERE, shapely.box(-180, -90, 180, 90), shapely.Point(0, 0).buffer(20)):
        assert cut_area(area) == [area]


def test_a_scattered_region_is_asked_for_where_it_is():
    islands = shapely.union_all([shapely.box(x, y, x + 0.5, y + 0.5) for x, y in ((95, 5), (105, -3), (140, -9))])
    parts = cut_area(islands)
    assert len(parts) == 3
    assert sum(part.convex_hull.area for part in parts) == pytest.approx(islands.area)
    assert islands.convex_hull.area > 50 * islands.area


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_parts_are_the_area(seed, count):
    rng = np.random.default_rng(seed)
    places = rng.uniform((-170, -60), (170, 60), (count, 2))
    area = shapely.union_all([shapely.Point(x, y).buffer(rng.uniform(0.01, 3), 4) for x, y in places])
    parts = cut_area(area)
    assert len(parts) <= 65
    assert shapely.union_all(parts).buffer(1e-9).covers(area)
    assert sum(part.area for part in parts) == pytest.approx(area.area)
    hulls = [part.convex_hull for part in parts]
    assert sum(hull.area for hull in hulls) <= area.convex_hull.area * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 365), max_size=60), st.integers(1, 10))
def test_days_are_halved_until_each_search_is_short_enough(offsets, limit):
    items = {f"{k}": YEAR[0] + timedelta(days=offset) for k, offset in enumerate(offsets)}
    asked = []

    def search(area, days):
        found = {key: day for key, day in items.items() if days[0] <= day <= days[1]}
        if len(found) > limit:
            raise TooLong
        asked.append(days)
        return found

    if max((offsets.count(k) for k in offsets), default=0) > limit:
        with pytest.raises(TooLong):
            in_pieces(HERE, YEAR, search, 1000)
        return
    assert in_pieces(HERE, YEAR, search, 1000) == items
    # every day is asked for exactly once
    assert asked[0][0] == YEAR[0]
    assert asked[-1][1] == YEAR[1]
    assert all(later[0] == first[1] + timedelta(days=1) for first, later in itertools.pairwise(asked))


def test_too_much_in_all_is_too_much():
    with pytest.raises(TooLong):
        in_pieces(HERE, YEAR, lambda area, days: dict.fromkeys(range(5)), 4)


def test_a_search_that_is_too_long_is_cut_by_days_and_finds_the_same(monkeypatch):
    from test_catalog_api import found, serving

    from pipeline.catalog import stac

    with serving("days", count=10, methods=("POST",)) as server:
        for k, item in enumerate(server.items):
            item["properties"]["datetime"] = f"2023-{k + 1:02d}-05T10:00:00Z"
        days = YEAR[0], date(2023, 12, 31)
        whole = found(server, first=days[0], last=days[1])
        assert len(whole) == 10
        asked = len(server.log)
        monkeypatch.setattr(stac, "_ONE_SEARCH", 3)
        assert found(server, first=days[0], last=days[1]) == whole
        assert len({entry[2]["datetime"] for entry in server.log[asked:] if entry[2]}) > 4
