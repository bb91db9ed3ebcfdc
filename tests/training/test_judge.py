"""Judging by hand-made numbers, against scikit-learn, and by the laws intervals must keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training.calibrate import wilson
from pipeline.training.differences import difference, paired
from pipeline.training.intervals import Bootstrap, class_f1, confusion, macro_f1, resampled
from pipeline.training.judge import NO_PREDICTION, error_matrix, judge, reliability, risk_coverage
from pipeline.training.results import About, Judgement

ABC = ("a", "b", "c")


def about(model: str = "m", classes: tuple[str, ...] = ABC) -> About:
    return About(model, "hand-made", "all", classes, simulated=True)


def table(labels: list[int], **columns: object) -> pd.DataFrame:
    n = len(labels)
    base = {"event_id": [f"e{k}" for k in range(n)], "label": labels, "fault": [""] * n}
    random = np.random.default_rng(0)
    places = {"latitude": random.uniform(-5, 5, n), "longitude": random.uniform(100, 110, n)}
    return pd.DataFrame({**base, **places, **columns})


def onehot(predicted: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[predicted]


def noisy(labels: np.ndarray, wrong: float, seed: int, classes: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    flipped = np.where(random.random(len(labels)) < wrong, (labels + 1) % classes, labels)
    p = np.eye(classes)[flipped] + random.uniform(0, 0.8, (len(labels), classes))
    return p / p.sum(1, keepdims=True)


def test_figures_by_hand() -> None:
    # reference a a a b b c; predicted a a b b b b
    result = judge(table([0, 0, 0, 1, 1, 2]), onehot([0, 0, 1, 1, 1, 1]), about())
    assert result.confusion == ((2, 1, 0), (0, 2, 0), (0, 1, 0))
    assert result.accuracy.value == pytest.approx(4 / 6)
    assert (result.accuracy.low, result.accuracy.high) == pytest.approx(wilson(4, 6))
    a, b, c = result.per_class
    assert (a.precision.value, a.recall.value, a.f1.value) == pytest.approx((1, 2 / 3, 0.8))
    assert (b.precision.value, b.recall.value, b.f1.value) == pytest.approx((0.5, 1, 2 / 3))
    assert (c.precision.value, c.precision.n) == (None, 0)
    assert (c.recall.value, c.f1.value) == (0, 0)
    assert result.macro_f1.value == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    # two of six events were called certain and are wrong: -ln of the floor each
    assert result.log_loss == pytest.approx(2 * -np.log(1e-6) / 6)
    assert result.ece == pytest.approx(2 / 6)


def test_a_class_never_wrong_has_an_interval_all_the_same() -> None:
    result = judge(table([0, 0, 0, 1, 1]), onehot([0, 0, 0, 1, 1]), about())
    f1 = result.per_class[0].f1
    # J = 3 of 3, and F1 = 2 J / (1 + J)
    low = wilson(3, 3)[0]
    assert (f1.low, f1.high) == pytest.approx((2 * low / (1 + low), 1))
    assert result.per_class[2].f1.value is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    labels, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    matrix = confusion(labels, predicted, 4)
    assert macro_f1(matrix.astype(float)) == pytest.approx(
        f1_score(labels, predicted, average="macro", zero_division=0)
    )
    present = np.isfinite(class_f1(matrix.astype(float)))
    assert present.tolist() == [k in {*labels, *predicted} for k in range(4)]


def test_every_event_is_accounted_for() -> None:
    events = table([0, 1, 2, 0, 1], fault=["", "no region", "", "", ""])
    p = onehot([0, 1, 2, 0, 1])
    p[[2, 3]] = np.nan
    reasons = np.array(["", "", "all cloud", "", ""], object)
    result = judge(events, p, about(), reasons=reasons)
    assert result.events == result.judged + len(result.invalid) == 5
    assert {gone.event_id: gone.reason for gone in result.invalid} == {
        "e1": "no region",
        "e2": "all cloud",
        "e3": NO_PREDICTION,
    }


def test_json_brings_everything_back() -> None:
    labels = np.arange(30) % 3
    result = judge(table(labels.tolist()), noisy(labels, 0.3, 1), about(), block_km=200)
    assert Judgement.from_json(result.to_json()) == result
    with pytest.raises(InputError, match="not a result of judging"):
        Judgement.from_json(result.to_json().replace('"log_loss"', '"loss"'))


def test_order_of_events_does_not_matter() -> None:
    labels = np.arange(60) % 3
    events, p = table(labels.tolist()), noisy(labels, 0.3, 1)
    turned = np.random.default_rng(2).permutation(60)
    one, two = judge(events, p, about()), judge(events.iloc[turned].reset_index(drop=True), p[turned], about())
    assert (one.accuracy, one.confusion) == (two.accuracy, two.confusion)
    assert one.risk_coverage == two.risk_coverage
    assert one.log_loss == pytest.approx(two.log_loss)


def test_risk_coverage_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.7, 0.3]])
    curve = risk_coverage(p, np.array([0, 1, 0, 1]))
    # right, wrong, then a tie of one right and one wrong: half an error each
    assert curve.coverage == (0.25, 0.5, 0.75, 1.0)
    assert curve.risk == pytest.approx((0, 1 / 2, 1.5 / 3, 2 / 4))
    assert curve.area == pytest.approx((0 + 0.5 + 0.5 + 0.5) / 4)


def test_reliability_bins_hold_every_event() -> None:
    labels = np.arange(200) % 3
    p = noisy(labels, 0.3, 3)
    bins = reliability(p, labels)
    assert sum(each.right.n for each in bins) == 200
    assert all(each.low < each.confidence <= each.high for each in bins)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # 200 samples of 150 events from a model that is right 70 % of the time in every class
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, 150)
        predicted = np.where(random.random(150) < 0.7, labels, 1 - labels)
        draws = macro_f1(resampled(labels, [predicted], np.arange(150), 2, Bootstrap(300, seed))[0])
        low, high = np.percentile(draws, [2.5, 97.5])
        held += low <= 0.7 <= high
    assert 180 <= held <= 198


def test_events_of_a_block_count_as_one() -> None:
    # 12 places of 25 events that are right and wrong together
    random = np.random.default_rng(4)
    place = np.repeat(np.arange(12), 25)
    right = np.repeat(random.random(12) < 0.6, 25)
    labels = np.arange(300) % 3
    events = table(labels.tolist(), latitude=place * 2.0, longitude=place * 2.0 + 100)
    p = onehot(np.where(right, labels, (labels + 1) % 3).tolist())
    free, blocked = judge(events, p, about()), judge(events, p, about(), block_km=50)
    assert width(blocked.macro_f1) > 3 * width(free.macro_f1)
    assert width(blocked.accuracy) > 3 * width(free.accuracy)
    assert width(blocked.per_class[0].recall) > 2 * width(free.per_class[0].recall)


def width(figure) -> float:
    return figure.high - figure.low


def test_differences_are_paired() -> None:
    labels = np.arange(400) % 3
    events = table(labels.tolist())
    p = noisy(labels, 0.4, 5)
    better = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != labels)[:12]
    better[wrong] = np.eye(3)[labels[wrong]]
    low, high = judge(events, p, about("low")), judge(events, better, about("high"))
    found = difference(high, low)
    # the same 12 events separate them: sure, although each model's own interval is three times as wide as the gap
    assert found.figure.value == pytest.approx(12 / 400)
    assert not found.within_noise
    assert width(high.accuracy) > 2 * 12 / 400
    assert difference(low, high).figure.value == pytest.approx(-12 / 400)
    same = difference(low, low, "macro_f1")
    assert (same.figure.value, same.figure.low, same.figure.high) == (0, 0, 0)
    assert same.within_noise


def test_differences_of_other_events_are_refused() -> None:
    labels = np.arange(30) % 3
    events, p = table(labels.tolist()), noisy(labels, 0.3, 1)
    one = judge(events, p, about("one"))
    with pytest.raises(InputError, match="different events"):
        difference(one, judge(events[:29], p[:29], about("two")))
    moved = events.assign(label=(labels + 1) % 3)
    with pytest.raises(InputError, match="label the same events differently"):
        difference(one, judge(moved, p, about("two")))
    with pytest.raises(InputError, match="different classes"):
        difference(one, judge(events, p, about("two", ("a", "b", "d"))))


def test_events_that_one_model_left_out_are_counted() -> None:
    labels = np.arange(30) % 3
    events, p = table(labels.tolist()), noisy(labels, 0.3, 1)
    gaps = p.copy()
    gaps[:4] = np.nan
    found = difference(judge(events, p, about()), judge(events, gaps, about("gaps")))
    assert (found.figure.n, found.unpaired) == (26, 4)
    blocked = [judge(events, each, about(), block_km=100) for each in (p, gaps)]
    assert len(paired(blocked)[0]) == 26


def test_error_matrix_is_mapped_by_reference() -> None:
    result = judge(table([0, 0, 0, 1, 1, 2]), onehot([0, 0, 1, 1, 1, 1]), about())
    matrix = error_matrix(result)
    assert matrix.counts == ((2, 0, 0), (1, 2, 1), (0, 0, 0))
    assert matrix.mapped_shares == pytest.approx((2 / 6, 4 / 6, 0))
    areas = error_matrix(result, np.array([5.0, 1, 1, 1, 1, 1]))
    assert areas.mapped_shares == pytest.approx((0.6, 0.4, 0))
    with pytest.raises(InputError, match="areas for 6"):
        error_matrix(result, np.ones(3))


@pytest.mark.parametrize("row", [[0.5, 0.2, 0.2], [1.2, -0.2, 0.0], [0.5, np.nan, 0.5]])
def test_what_is_no_probability_is_refused(row: list[float]) -> None:
    p = onehot([0, 1, 2])
    p[1] = row
    with pytest.raises(InputError, match="event e1 are negative or do not sum to 1"):
        judge(table([0, 1, 2]), p, about())


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(InputError, match="event e0 is asked about twice"):
        judge(table([0, 1]).assign(event_id="e0"), onehot([0, 1]), about())
    with pytest.raises(InputError, match="0 of 3 events can be judged"):
        judge(table([0, 1, 2]), np.full((3, 3), np.nan), about())
    with pytest.raises(InputError, match="probabilities"):
        judge(table([0, 1]), onehot([0, 1, 2]), about())
    with pytest.raises(InputError, match="smaller blocks"):
        judge(table([0, 1], latitude=[1.0, 1.0], longitude=[1.0, 1.0]), onehot([0, 1]), about(), block_km=100)
