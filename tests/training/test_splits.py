"""Splits: whole blocks, every event once, chips counted on the ground and not in degrees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training import splits


def table(latitude: list[float], longitude: list[float], **columns: list[object]) -> pd.DataFrame:
    n = len(latitude)
    base: dict[str, object] = {"event_id": [f"e{k}" for k in range(n)], "label": [0] * n, "split": [""] * n}
    return pd.DataFrame({**base, "fault": [""] * n, "latitude": latitude, "longitude": longitude, **columns})


def cloud(n: int = 300, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return table(
        list(random.uniform(-6, 6, n)), list(random.uniform(100, 110, n)), label=list(random.integers(0, 3, n))
    )


@pytest.mark.parametrize("make", [splits.random_folds, lambda events: splits.block_folds(events, 50)])
def test_every_event_is_tested_once_and_never_trained_on_then(make) -> None:
    events = cloud()
    split = make(events)
    assert split.scope.tolist() == list(range(len(events)))
    for fold in split.folds:
        assert not set(fold.train) & set(fold.test)
        assert len(fold.train) + len(fold.test) == len(events)


def test_events_at_fault_are_tested_on_but_not_trained_on() -> None:
    events = cloud(50)
    events.loc[7, "fault"] = "no image"
    for split in (splits.random_folds(events), splits.block_folds(events, 30)):
        assert 7 in split.scope
        assert all(7 not in fold.train for fold in split.folds)


def test_a_block_lies_in_one_fold_and_folds_are_even() -> None:
    events = cloud(600)
    split = splits.block_folds(events, 60)
    assert split.blocks is not None
    for fold in split.folds:
        assert not set(split.blocks[fold.train]) & set(split.blocks[fold.test])
        assert len(fold.test) == pytest.approx(120, abs=12)


def test_the_seed_decides_and_nothing_else() -> None:
    events = cloud()

    def dealt(seed: int) -> list[list[int]]:
        return [list(fold.test) for fold in splits.block_folds(events, 50, seed=seed).folds]

    assert dealt(3) == dealt(3)
    assert dealt(3) != dealt(4)


def test_strata_are_even() -> None:
    events = table([0.0] * 100, [0.0] * 100, label=[0] * 90 + [1] * 10)
    for fold in splits.random_folds(events).folds:
        assert (events["label"].iloc[fold.test] == 1).sum() == 2


@settings(max_examples=60, deadline=None)
@given(st.floats(-84, 84), st.floats(-175, 175), st.sampled_from([10.0, 50.0, 200.0]))
def test_blocks_are_no_larger_than_they_say(latitude: float, longitude: float, km: float) -> None:
    side = np.linspace(-1.2, 1.2, 25) * km / 111
    lat, lon = np.meshgrid(latitude + side, longitude + side / np.cos(np.radians(latitude)))
    lat, lon = lat.ravel(), lon.ravel()
    keep = (abs(lat) < 85) & (abs(lon) < 180)
    lat, lon = lat[keep], lon[keep]
    ids = splits.block_ids(lat, lon, km)
    for block in np.unique(ids):
        own = ids == block
        middle = [lon[own].mean()] * 2
        _, _, height = splits.WGS84.inv(*middle[:1], lat[own].min(), *middle[1:], lat[own].max())
        _, _, width = splits.WGS84.inv(lon[own].min(), lat[own].mean(), lon[own].max(), lat[own].mean())
        # at 84 degrees a row of 200 km narrows by a third from one edge to the other
        assert height <= 1.01 * km * 1000
        assert width <= (1.4 if abs(latitude) > 60 else 1.1) * km * 1000


def test_degree_blocks_are_narrow_in_the_north_and_square_blocks_are_not() -> None:
    longitude = np.linspace(10.01, 10.99, 99)
    latitude = np.full(99, 60.1)
    # a degree of longitude at 60 N is 55.6 km: 11 squares of 10 km begin in a degree of 110.6 km, 6 or 7 on the ground
    assert len(set(splits.block_ids(latitude, longitude, 10, "degrees"))) in (11, 12)
    assert len(set(splits.block_ids(latitude, longitude, 10))) in (6, 7)


def test_published_split_is_judged_on_test_where_there_is_one() -> None:
    events = table([0.0] * 6, [0.0] * 6, split=["train", "val", "test", "train", "val", "test"])
    fold = splits.published(events).folds[0]
    assert (fold.train.tolist(), fold.test.tolist()) == ([0, 3], [2, 5])
    assert splits.published(events, with_val=True).folds[0].train.tolist() == [0, 1, 3, 4]
    untested = events[events["split"] != "test"].reset_index(drop=True)
    assert splits.published(untested).folds[0].test.tolist() == [1, 3]
    assert "against val" in splits.published(untested).name
    with pytest.raises(InputError, match="cannot be trained on"):
        splits.published(untested, with_val=True)
    with pytest.raises(InputError, match="random or block folds"):
        splits.published(table([0.0], [0.0]))


def test_chips_overlap_on_the_ground() -> None:
    # at 60 N 0.08 degrees of longitude are 4.46 km, of latitude 8.9 km; a chip is 4.98 km
    events = table([60.0, 60.0, 60.08, 60.0], [10.0, 10.08, 10.0, 10.2])
    east = splits.chip_overlap(events, np.array([0]), np.array([1]), 4980)
    assert (east.overlapping, east.share) == (1, 1)
    assert east.nearest_km_min == pytest.approx(4.463, abs=0.01)
    assert "overlap a training chip" in east.warning
    north = splits.chip_overlap(events, np.array([0]), np.array([2]), 4980)
    assert (north.overlapping, north.warning) == (0, "")
    assert north.nearest_km_min == pytest.approx(8.913, abs=0.01)
    both = splits.chip_overlap(events, np.array([0]), np.array([1, 2, 3]), 4980)
    assert (both.test, both.overlapping) == (3, 1)


def test_corners_overlap_beyond_one_side() -> None:
    # 4 km north and 4 km east: 5.66 km apart, yet squares of 4.98 km overlap at the corner; 4 and 5.1 km do not
    events = table([0.0, 4 / 110.574, 4 / 110.574], [0.0, 4 / 111.32, 5.1 / 111.32])
    found = splits.chip_overlap(events, np.array([0]), np.array([1, 2]), 4980)
    assert found.overlapping == 1


def test_the_antimeridian_is_no_border() -> None:
    events = table([0.0, 0.0], [179.99, -179.99])
    assert splits.chip_overlap(events, np.array([0]), np.array([1]), 4980).overlapping == 1


def test_blocks_dealt_largest_first_by_hand() -> None:
    # blocks of 5, 4, 3, 2 events to two folds: 5 | 4, then 3 to the fold of 4, then 2 to the fold of 5
    longitude = [0.5] * 3 + [1.5] * 5 + [2.5] * 2 + [3.5] * 4
    split = splits.block_folds(table([0.5] * 14, longitude), 110.6, folds=2, seed=None, shape="degrees")
    assert [fold.test.tolist() for fold in split.folds] == [[*range(3, 8), 8, 9], [0, 1, 2, 10, 11, 12, 13]]


@pytest.mark.parametrize("km", [0.0, -5.0, float("nan")])
def test_a_size_that_is_none_is_refused(km: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        splits.block_folds(cloud(20), km)


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="5 folds of 1 blocks of 500 km"):
        splits.block_folds(table([1.0] * 9, [1.0] * 9), 500)
    with pytest.raises(InputError, match="both sides"):
        splits.chip_overlap(cloud(5), np.array([], int), np.array([1]), 5000)
