from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.drivers import CLASSIFIED, FAILED, NO_IMAGERY, UNCERTAIN, DriverParams, decide
from pipeline.events import LogitSums, to_fixed_point
from pipeline.labels import FOREST_LOSS_DRIVERS, DriverClass, LabelScheme
from pipeline.models.card import Calibration


def tempered(temperature):
    return Calibration(method="temperature", temperature=temperature)


TWO = LabelScheme((DriverClass(1, "farm", "Farm", "#000000"), DriverClass(7, "mine", "Mine", "#ffffff")))


def decide_two(logits, clear=None, failed=None, params=None):
    """Drivers of events given by their logits."""
    logits = np.array(logits, float).reshape(-1, 2)
    clear = np.array(clear if clear is not None else np.ones(len(logits)), np.int64)
    failed = np.zeros(len(logits), bool) if failed is None else np.array(failed)
    return decide(logits, clear, failed, TWO, params or DriverParams())


def test_one_event():
    # logits (ln 3, 0), so p = 3/4, 1/4
    found = decide_two([[np.log(3), 0]], [2])
    assert found.probabilities[0] == pytest.approx([0.75, 0.25], abs=1e-5)
    assert found.status.tolist() == [CLASSIFIED]
    assert found.best.tolist() == [0]
    assert found.confidence[0] == found.probabilities[0].max()


def test_temperature_softens():
    found = decide_two([[np.log(9), 0]], params=DriverParams(tempered(2)))
    assert found.probabilities[0] == pytest.approx([0.75, 0.25], abs=1e-5)


def test_every_status():
    found = decide_two(
        [[4, 0], [0, 0.1], [0, 0], [9, 0]], [1, 1, 0, 5], [False, False, False, True], DriverParams(uncertain_below=0.6)
    )
    assert found.status.tolist() == [CLASSIFIED, UNCERTAIN, NO_IMAGERY, FAILED]
    assert found.best.tolist() == [0, 1, -1, -1]
    assert np.isnan(found.probabilities[2:]).all()
    assert np.isnan(found.confidence).tolist() == [False, False, True, True]


def test_failed_goes_before_no_imagery():
    assert decide_two([[0, 0]], [0], [True]).status.tolist() == [FAILED]


@pytest.mark.parametrize(("threshold", "status"), [(0.5, CLASSIFIED), (0.500001, UNCERTAIN), (0, CLASSIFIED)])
def test_an_event_at_the_threshold_is_classified(threshold, status):
    assert decide_two([[0, 0]], params=DriverParams(uncertain_below=threshold)).status.tolist() == [status]


def test_no_events_at_all():
    found = decide_two(np.zeros((0, 2)))
    assert (len(found.status), found.probabilities.shape, len(found.confidence)) == (0, (0, 2), 0)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5), st.floats(0, 1), st.sampled_from([0.1, 5, 4000]))
def test_probabilities_are_probabilities(seed, temperature, threshold, spread):
    rng = np.random.default_rng(seed)
    clear, failed = rng.integers(0, 4, 12), rng.random(12) < 0.2
    logits = np.where(clear[:, None] > 0, rng.normal(0, spread, (12, 4)), np.nan)
    found = decide(logits, clear, failed, FOREST_LOSS_DRIVERS, DriverParams(tempered(temperature), threshold))
    known = np.isin(found.status, (CLASSIFIED, UNCERTAIN))
    assert (known == ((clear > 0) & ~failed)).all()
    p = found.probabilities[known]
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-8)
    assert ((p >= 0) & (p <= 1)).all()
    assert np.isnan(found.probabilities[~known]).all()
    assert (found.confidence[known] == p.max(axis=1)).all()
    assert (found.best[known] == p.argmax(axis=1)).all()
    assert ((found.status[known] == UNCERTAIN) == (p.max(axis=1) < threshold)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_drivers_do_not_depend_on_how_the_pixels_were_split(seed, parts):
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 5, 60), to_fixed_point(rng.normal(0, 3, (60, 4)))
    owner = rng.integers(0, parts, 60)

    def answer(pieces):
        sums = LogitSums.nothing(5, 4)
        for piece in pieces:
            present, rows = np.unique(labels[piece], return_inverse=True)
            sums.add(present, LogitSums.of_pixels(rows, logits[piece], len(present)))
        return decide(sums.mean(), sums.clear, np.zeros(5, bool), FOREST_LOSS_DRIVERS, DriverParams(tempered(1.3)))

    one = answer([np.ones(60, bool)])
    many = answer([owner == part for part in rng.permutation(parts)])
    assert many.probabilities.tobytes() == one.probabilities.tobytes()
    assert many.status.tolist() == one.status.tolist()
