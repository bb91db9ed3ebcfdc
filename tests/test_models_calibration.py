"""Calibration and the card's figures: probabilities by hand, and cards that cannot be meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_samples import card_fields
from pydantic import ValidationError
from scipy.special import softmax

from pipeline.models.calibration import calibrated
from pipeline.models.card import Calibration, ModelCard, Part

SHARES = (0.4, 0.3, 0.2, 0.1)
COUNTS = ((9, 1, 0, 0), (0, 8, 2, 0), (0, 0, 10, 0), (1, 0, 0, 9))


def card(**changes: Any) -> ModelCard:
    return ModelCard.model_validate({**card_fields(Part(name="resnet18")), "sha256": "0" * 64, **changes})


def matrix(**changes: Any) -> dict[str, Any]:
    names = tuple(row["name"] for row in card_fields(Part(name="resnet18"))["labels"])
    return {"classes": names, "counts": COUNTS, "mapped_shares": SHARES, "split": "test", "n": 40, **changes}


def test_by_hand() -> None:
    logits = np.array([[np.log(9), 0.0]])
    assert calibrated(logits, Calibration()).tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]]
    assert calibrated(logits, Calibration(method="temperature", temperature=2))[0, 0] == pytest.approx(0.75)
    vector = Calibration(method="vector", scale=(0.5, 1), bias=(0, np.log(3)))
    assert calibrated(logits, vector)[0].tolist() == pytest.approx([0.5, 0.5])
    # the most likely class need not be that of the largest logit
    assert calibrated(logits, Calibration(method="vector", scale=(1, 1), bias=(0, 5)))[0].argmax() == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_vector_of_equal_scales_is_temperature(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, (6, 4))
    vector = Calibration(method="vector", scale=(1 / temperature,) * 4, bias=(0.7,) * 4)
    p = calibrated(logits, vector)
    np.testing.assert_allclose(p, softmax(logits / temperature, axis=1), atol=1e-12)
    np.testing.assert_allclose(p, calibrated(logits, Calibration(method="temperature", temperature=temperature)))
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"method": "vector"}, "positive scale and a bias"),
        ({"method": "vector", "scale": (1, 1), "bias": (0,)}, "positive scale and a bias"),
        ({"method": "vector", "scale": (1, -1), "bias": (0, 0)}, "positive scale"),
        ({"method": "temperature", "scale": (1,), "bias": (0,)}, "belong to method vector"),
        ({"method": "platt"}, "method"),
    ],
)
def test_calibrations_that_cannot_be_meant(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Calibration.model_validate(fields)


def test_a_card_keeps_calibration_and_error_matrix() -> None:
    vector = {"method": "vector", "scale": (1, 2, 3, 4), "bias": (0, 0, 0, 1)}
    made = card(calibration=vector, error_matrix=matrix())
    again = ModelCard.model_validate_json(made.model_dump_json())
    assert again == made
    assert again.error_matrix is not None
    assert np.asarray(again.error_matrix.counts).sum(axis=1).tolist() == [10, 10, 10, 10]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"calibration": {"method": "vector", "scale": (1, 1), "bias": (0, 0)}}, "2 scales for 4 classes"),
        ({"error_matrix": matrix(classes=("a", "b", "c", "d"))}, "the labels are"),
        ({"error_matrix": matrix(counts=COUNTS[:3])}, "must be 4 x 4"),
        ({"error_matrix": matrix(n=39)}, "sum to n = 39, not 40"),
        ({"error_matrix": matrix(mapped_shares=(0.4, 0.3, 0.2, 0.2))}, "sum to 1"),
        ({"scaling": {"mean": [0] * 6, "std": [1] * 6, "clip": (0.3, 0)}}, "clip"),
        ({"graph": {"binary": True}}, "two classes, the card has 4"),
    ],
)
def test_cards_that_cannot_be_meant(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        card(**changes)
