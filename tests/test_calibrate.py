"""Calibration on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.models.calibration import calibrated
from pipeline.models.card import Calibration
from pipeline.training.calibrate import (
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    fit_vector,
    log_losses,
    wilson,
)


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


def drawn(scale: list[float], bias: list[float], n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(scale * logits + bias)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, len(scale)))
    z = logits * np.array(scale) + np.array(bias)
    return logits, (z + random.gumbel(size=z.shape)).argmax(1)


def test_vector_scaling_finds_what_the_labels_were_drawn_from() -> None:
    logits, labels = drawn([0.5, 1.0, 2.0], [1.0, -1.0, 0.0], 20000)
    scale, bias = fit_vector(logits, labels)
    assert scale == pytest.approx([0.5, 1.0, 2.0], rel=0.06)
    assert bias == pytest.approx([1.0, -1.0, 0.0], abs=0.06)


def test_vector_scaling_does_not_mind_the_scale_of_logits() -> None:
    logits, labels = drawn([0.5, 1.0, 2.0], [1.0, -1.0, 0.0], 500)
    (scale, bias), (large, same) = fit_vector(logits, labels), fit_vector(logits * 7, labels)
    assert large * 7 == pytest.approx(scale, rel=1e-3)
    assert same == pytest.approx(bias, abs=1e-3)


def test_a_class_that_validation_lacks_stays_finite() -> None:
    logits, labels = drawn([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 200)
    scale, bias = fit_vector(logits[labels < 2], labels[labels < 2])
    assert (scale > 0).all()
    assert np.abs(bias).max() < 10
    p = calibrated(logits, Calibration(method="vector", scale=tuple(scale), bias=tuple(bias)))
    assert np.isfinite(p).all()


@pytest.mark.parametrize(
    ("scale", "bias", "method"),
    [
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "none"),
        ([0.3, 0.3, 0.3], [0.0, 0.0, 0.0], "temperature"),
        ([0.3, 0.3, 1.5], [1.5, -1.5, 0.0], "vector"),
    ],
)
def test_auto_finds_the_simplest_that_serves(scale: list[float], bias: list[float], method: str) -> None:
    logits, labels = drawn(scale, bias, 600)
    found = fit_calibration(logits, labels, "val")
    assert (found.method, found.split, found.ece) == (method, "val", None)
    fresh, truth = drawn(scale, bias, 4000, seed=1)
    assert expected_calibration_error(calibrated(fresh, found), truth) < 0.04
    raw = calibrated(fresh, Calibration())
    assert log_losses(calibrated(fresh, found), truth).mean() <= log_losses(raw, truth).mean()


def test_richer_calibration_does_not_win_by_luck() -> None:
    chosen = [fit_calibration(*drawn([0.3] * 4, [0.0] * 4, 120, seed), "val").method for seed in range(20)]
    assert chosen.count("temperature") >= 16


def test_calibration_is_never_fitted_on_test() -> None:
    logits, labels = drawn([1.0, 1.0], [0.0, 0.0], 50)
    with pytest.raises(InputError, match="never on test"):
        fit_calibration(logits, labels, "test")
    with pytest.raises(InputError, match="too few"):
        fit_calibration(logits[:5], labels[:5], "val")
