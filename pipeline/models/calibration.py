"""Calibration of logits: the one place where class scores become probabilities. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import Calibration


def calibrated(logits: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float64]:
    """Logits [n, classes] -> float64 probabilities [n, classes]; of an event, give the mean of its pixels' logits.

    `temperature`: softmax(logits / T); `vector`: softmax(scale * logits + bias), where the most likely class need
    not be the one of the largest logit. Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    if calibration.method == "vector":
        scores = logits * np.asarray(calibration.scale) + np.asarray(calibration.bias)
    else:
        scores = logits / calibration.temperature
    return np.asarray(softmax(scores, axis=1), np.float64)
