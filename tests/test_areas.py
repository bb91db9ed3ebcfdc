"""Estimators of area and accuracy: the published examples to the digit, then laws, then simulated samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.areas.shares import accuracy, adjusted_areas, olofsson, shares_of_counts, shares_of_sample
from pipeline.areas.stratified import Design, Z, stehman
from pipeline.errors import InputError

# Olofsson et al. 2014, table 8: deforestation, forest gain, stable forest, stable non-forest
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000.0, 150_000.0, 3_200_000.0, 6_450_000.0])
HA = 0.09

# Stehman 2014, table 2: 40 units in four strata of ten
STRATUM = np.repeat(np.arange(4), 10)
MAPPED = np.array([0] * 7 + [1] * 3 + [0] + [1] * 11 + [2] * 6 + [1] * 2 + [3] * 10)
REFERENCE = np.array([int(k) for k in "0000021012011111001122222331103333333221"])
POPULATION = np.array([40_000.0, 30_000.0, 20_000.0, 10_000.0])


def test_the_areas_of_olofsson_2014() -> None:
    result = olofsson(COUNTS, PIXELS * HA)
    assert result.areas.value.round().tolist() == [21158, 11686, 285770, 581386]
    assert (Z * result.areas.se).round().tolist() == [6158, 3756, 15510, 16282]
    assert round(result.areas.value[0] / HA) == 235_086
    assert result.matrix.round(4).tolist() == [
        [0.0176, 0, 0.0013, 0.0011],
        [0, 0.0110, 0.0016, 0.0024],
        [0.0019, 0, 0.2967, 0.0213],
        [0.0040, 0.0020, 0.0179, 0.6212],
    ]


def test_the_accuracies_of_olofsson_2014() -> None:
    result = olofsson(COUNTS, PIXELS)
    assert result.users.value.round(2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert (Z * result.users.se).round(2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert result.producers.value.round(2).tolist() == [0.75, 0.85, 0.93, 0.96]
    # what equation 7 gives for these counts
    assert (Z * result.producers.se).round(2).tolist() == [0.21, 0.25, 0.03, 0.02]
    assert result.overall.value.round(2) == 0.95
    assert (Z * result.overall.se).round(2) == 0.02


def test_the_example_of_olofsson_2013() -> None:
    """Remote Sensing of Environment 129: 122-131: a mapped area of deforestation doubled by its omissions."""
    counts = np.array([[97, 0, 3], [3, 279, 18], [2, 1, 97]])
    result = olofsson(counts, np.array([22353.0, 1122543, 610228]))
    # that paper takes two standard errors for 95 %
    assert result.areas.value + 2 * result.areas.se == pytest.approx([66615.21, 1085371.36, 697216.04], abs=0.01)
    assert result.areas.value - 2 * result.areas.se == pytest.approx([23609.59, 1014763.18, 622672.62], abs=0.01)
    assert result.producers.value == pytest.approx([0.4806308, 0.9941887, 0.8969259], abs=1e-7)
    assert result.overall.value == pytest.approx(0.9444168, abs=1e-7)


def test_the_example_of_stehman_2014() -> None:
    result = stehman(Design(STRATUM, POPULATION), MAPPED, REFERENCE, 4)
    assert result.areas.value[[0, 2]] == pytest.approx([0.35, 0.20])
    assert result.areas.se[[0, 2]].round(3).tolist() == [0.082, 0.064]
    assert result.overall.value == pytest.approx(0.63)
    assert result.overall.se.round(3) == 0.085
    assert result.users.value[1].round(3) == 0.574
    assert result.users.se[1].round(3) == 0.125
    assert result.producers.value[1].round(3) == 0.794
    # the paper prints 0.114: its table 3 has 0.00 for a variance of stratum D that its table 2 makes 0.10
    assert result.producers.se[1].round(3) == 0.117
    assert result.matrix[1, 2] == pytest.approx(0.08)


def test_stehman_2014_to_seven_digits() -> None:
    """As the R package mapaccuracy gives them for the same sample."""
    result = stehman(Design(STRATUM, POPULATION), MAPPED, REFERENCE, 4)
    assert result.areas.se[[0, 2]] == pytest.approx([0.0822478, 0.06427977], abs=5e-8)
    assert result.overall.se == pytest.approx(0.08464219, abs=5e-9)
    assert (result.users.se[1], result.producers.se[1]) == pytest.approx((0.1247822, 0.1165479), abs=5e-8)


def expanded(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cells = [(i, j) for i in range(len(counts)) for j in range(len(counts)) for _ in range(counts[i, j])]
    mapped, reference = np.array(cells).T
    return mapped, reference


tables = st.lists(st.integers(0, 30), min_size=9, max_size=9).map(
    lambda v: np.array(v).reshape(3, 3) + np.eye(3, dtype=int) * 2
)


@settings(max_examples=60, deadline=None)
@given(tables, st.lists(st.floats(1, 1e6), min_size=3, max_size=3).map(np.array))
def test_strata_that_are_map_classes_make_stehman_olofsson(counts: np.ndarray, areas: np.ndarray) -> None:
    mapped, reference = expanded(counts)
    ours = olofsson(counts, areas)
    design = Design(mapped, areas, finite=False)
    theirs = stehman(design, mapped, reference, 3)
    shares = shares_of_sample(design, mapped, reference, np.ones(len(mapped)), 3)
    third = accuracy(shares, areas)
    for other, scale in ((theirs, areas.sum()), (third, 1.0)):
        assert other.areas.value * scale == pytest.approx(ours.areas.value)
        assert other.areas.se * scale == pytest.approx(ours.areas.se, abs=1e-9 * areas.sum())
        assert other.users.se == pytest.approx(ours.users.se, abs=1e-12)
        assert other.producers.value == pytest.approx(ours.producers.value)
        assert other.producers.se == pytest.approx(ours.producers.se, abs=1e-9)
        assert float(other.overall.se) == pytest.approx(float(ours.overall.se), abs=1e-12)
        assert other.matrix == pytest.approx(ours.matrix)


@settings(max_examples=60, deadline=None)
@given(tables, st.lists(st.floats(0, 1e6), min_size=6, max_size=6).map(lambda v: np.array(v).reshape(2, 3)))
def test_adjusted_areas_add_up_to_the_mapped(counts: np.ndarray, areas: np.ndarray) -> None:
    result = adjusted_areas(shares_of_counts(counts), areas, areas)
    assert result.value.sum(axis=1) == pytest.approx(areas.sum(axis=1))
    assert (result.value >= 0).all()


def test_everything_looked_at_leaves_no_doubt() -> None:
    area = np.array([1.0, 5.0, 2.0, 7.0])
    design = Design(np.array([0, 0, 1, 1]), np.array([2.0, 2.0]))
    shares = shares_of_sample(design, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), area, 2)
    result = adjusted_areas(shares, np.array([6.0, 9.0]))
    assert shares.census
    assert result.value.tolist() == [[1.0, 14.0]]
    assert result.se.tolist() == [[0.0, 0.0]]


def test_a_class_nobody_looked_at_has_no_adjusted_area() -> None:
    shares = shares_of_counts(np.array([[8, 2], [0, 1]]))
    assert shares.known.tolist() == [True, False]
    result = adjusted_areas(shares, np.array([[10.0, 0.0], [10.0, 1.0]]))
    assert result.value[0].tolist() == [8.0, 2.0]
    assert np.isnan(result.value[1]).all()


@pytest.mark.parametrize(
    ("stratum", "population", "text"),
    [([0, 0], [5.0, 3.0], "none sampled"), ([0, 1, 1], [4.0, 2.0], "no variance"), ([0, 0, 0], [2.0], "of 2")],
)
def test_a_sample_without_variance_is_refused(stratum: list[int], population: list[float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Design(np.array(stratum), np.array(population))
    Design(np.array([0]), np.array([1.0]))  # all of a stratum of one


# ---------------------------------------------------------------------------------------------- simulated samples


def simulated_land(rng: np.random.Generator, count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mapped and true class and area (ha, lognormal) of events; small ones are mapped wrong more often."""
    truth = rng.choice(3, count, p=[0.5, 0.35, 0.15])
    area = 0.5 + rng.lognormal(0.5, 1.0, count)
    wrong = rng.random(count) < np.where(area < np.median(area), 0.25, 0.12)
    return np.where(wrong, (truth + rng.integers(1, 3, count)) % 3, truth), truth, area


def strata_by_size(mapped: np.ndarray, area: np.ndarray) -> np.ndarray:
    stratum = np.zeros(len(area), np.int64)
    for k in range(3):
        order = np.flatnonzero(mapped == k)[np.argsort(-area[mapped == k])]
        large = order[: np.searchsorted(np.cumsum(area[order]), area[order].sum() / 2)]
        stratum[order], stratum[large] = 2 * k, 2 * k + 1
    return stratum


def test_intervals_from_sampled_events_cover_the_true_areas() -> None:
    """95 % intervals of area hold the truth in at least 92 % of samples, without bias: strata by driver and size."""
    rng = np.random.default_rng(4)
    mapped, truth, area = simulated_land(rng)
    stratum = strata_by_size(mapped, area)
    true = np.bincount(truth, area, 3)
    areas, population = np.bincount(mapped, area, 3), np.bincount(stratum).astype(float)
    found, inside, error = [], [], []
    for _ in range(600):
        drawn = np.concatenate([rng.choice(np.flatnonzero(stratum == h), 40, replace=False) for h in range(6)])
        design = Design(stratum[drawn], population)
        shares = shares_of_sample(design, mapped[drawn], truth[drawn], area[drawn], 3)
        result = adjusted_areas(shares, areas)
        low, high = result.interval
        found.append(result.value[0])
        error.append(result.se[0])
        inside.append(((low <= true) & (true <= high))[0])
    assert np.mean(inside, axis=0).min() >= 0.92
    assert np.mean(inside) <= 0.98
    assert np.mean(found, axis=0) == pytest.approx(true, rel=0.02)
    assert np.mean(error, axis=0) == pytest.approx(np.std(found, axis=0), rel=0.1)
    # what the estimate is for: the mapped areas are off by more than its bias
    assert np.abs(areas / true - 1).max() > 0.1


def test_intervals_cover_where_strata_are_not_the_map_classes() -> None:
    """The sample was drawn by an older map; areas and accuracy are those of a newer one (Stehman 2014)."""
    rng = np.random.default_rng(7)
    mapped, truth, area = simulated_land(rng)
    older = np.where(rng.random(len(truth)) < 0.3, rng.integers(0, 3, len(truth)), truth)
    stratum = strata_by_size(older, area)
    population, areas, true = (np.bincount(*a) for a in ((stratum,), (mapped, area), (truth, area)))
    right = area[mapped == truth].sum() / area.sum()
    users = np.array([area[(mapped == k) & (truth == k)].sum() / areas[k] for k in range(3)])
    hits = []
    for _ in range(300):
        drawn = np.concatenate([rng.choice(np.flatnonzero(stratum == h), 45, replace=False) for h in range(6)])
        design = Design(stratum[drawn], population.astype(float))
        result = accuracy(shares_of_sample(design, mapped[drawn], truth[drawn], area[drawn], 3), areas)
        other = stehman(design, mapped[drawn], truth[drawn], 3, area[drawn])
        answers = [(result.areas, true), (result.overall, right), (result.users, users), (other.overall, right)]
        hits.append(np.concatenate([np.atleast_1d(np.abs(e.value - t) <= Z * e.se) for e, t in answers]))
    covered = np.mean(hits, axis=0)
    assert covered[:3].min() >= 0.92, covered
    assert covered.min() >= 0.9, covered
    assert covered.mean() >= 0.93


def test_shares_learnt_elsewhere_predict_a_place_of_few_events() -> None:
    """An error matrix of other land: the interval of a place holds its truth because its own events vary too."""
    rng = np.random.default_rng(6)
    q = np.array([[0.9, 0.1], [0.2, 0.8]])
    mapped, area = np.repeat([0, 1], [12, 8]), 0.5 + rng.lognormal(0.5, 0.8, 20)
    areas, squares = np.bincount(mapped, area, 2), np.bincount(mapped, area**2, 2)
    inside, without = [], []
    for _ in range(800):
        counts = np.stack([rng.multinomial(150, row) for row in q])
        truth = (rng.random(20) < q[mapped, 1]).astype(int)
        true = np.bincount(truth, area, 2)[0]
        for kept, given_squares in ((inside, squares), (without, None)):
            result = adjusted_areas(shares_of_counts(counts), areas, given_squares)
            kept.append(abs(result.value[0, 0] - true) <= Z * result.se[0, 0])
    assert 0.92 <= np.mean(inside) <= 0.98
    assert np.mean(without) < 0.7
