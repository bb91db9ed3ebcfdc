"""How far two engines agree on one random patch of a model: what is said of every engine but the plainest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.calibration import calibrated
from pipeline.models.prepare import random_patch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard
    from pipeline.models.contracts import Segmenter

AGREEMENT = 0.9999
"""Least share of pixels on which engines of the same precision must name the same class."""


@dataclass(frozen=True)
class Agreement:
    """Share of pixels of the same class, and the largest differences of a logit and of a calibrated probability."""

    argmax_agreement: float
    max_abs_difference: float
    max_probability_difference: float

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"the same class on {self.argmax_agreement:.2%} of a random patch, probabilities within "
            f"{self.max_probability_difference:.1g}"
        )


def compare(one: Segmenter, other: Segmenter) -> Agreement:
    """Run both on the random patch of the card, which they share."""
    patch = random_patch(one.card)
    return compare_logits(one.card, one.logits(patch), other.logits(patch))


def compare_logits(card: ModelCard, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> Agreement:
    """Compare logits [N, classes, H, W] of two engines on the same patches."""
    p, q = (calibrated(np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]), card.calibration) for x in (ours, theirs))
    same = ours.argmax(1) == theirs.argmax(1)
    return Agreement(float(same.mean()), float(np.abs(ours - theirs).max()), float(np.abs(p - q).max()))
