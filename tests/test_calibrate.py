"""Calibration on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.training.calibrate import expected_calibration_error, fit_temperature, wilson


def test_temperature_that_makes_confidence_true() -> None:
    # three of four right at a logit gap of 5: p must be 3/4, so the gap must shrink to ln 3
    logits = np.array([[5.0, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(5 / math.log(3), rel=1e-4)


def test_temperature_scales_with_the_logits() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([random.choice(4, p=row) for row in p])
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.06)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-3)


def test_temperature_stays_in_range() -> None:
    assert fit_temperature(np.array([[1.0, 0.0]]), np.array([0])) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(20, rel=1e-3)


def test_calibration_error_by_hand() -> None:
    # bin of .9: two rows, one right -> gap .4, weight 1/2; bin of .6: two rows, both right -> gap .4, weight 1/2
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(p, np.array([0, 1, 0, 0])) == pytest.approx(0.4)
    # gaps of two bins must not cancel: merged into one bin they do, .75 against .75
    assert expected_calibration_error(p, np.array([0, 1, 0, 0]), bins=1) == pytest.approx(0.0)
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


def test_bins_are_closed_above() -> None:
    # .5 belongs to the first of two bins: alone there, right, gap .5; 1.0 in the second, wrong, gap 1
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert expected_calibration_error(p, np.array([0, 1]), bins=2) == pytest.approx((0.5 + 1) / 2)


def test_wilson_by_hand() -> None:
    # Newcombe 1998 (doi:10.1002/sim.777), table I: 81/263, 15/148, 0/20, 1/29
    for (k, n), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 7)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(InputError, match=f"{k} successes of {n} trials"):
        wilson(k, n)


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(InputError, match="n > 0"):
        fit_temperature(np.zeros((0, 4)), np.zeros(0, int))
    with pytest.raises(InputError, match="n > 0"):
        expected_calibration_error(np.zeros((2, 4)), np.zeros(1, int))
