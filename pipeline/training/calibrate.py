"""Calibration of event probabilities, and honest intervals for scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG_RANGE = (np.log(0.05), np.log(20.0))
_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution, for 95 % intervals."""


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature in 0.05..20 that makes softmax(logits [n, k] / temperature) most likely for labels [n].

    Raises InputError where there is nothing to fit to. Source: Guo et al. 2017, arXiv:1706.04599.
    """
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise InputError(f"temperature: logits {logits.shape} and labels {labels.shape} must be [n, k] and [n], n > 0")
    scores, rows = logits.astype(np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(scores / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6}).x))


def expected_calibration_error(p: NDArray[np.floating], labels: NDArray[np.integer], bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy of probabilities p [n, k], weighted by bin size.

    Bins of equal width, each open below and closed above. Raises InputError for no rows.
    Source: Naeini et al. 2015, as in Guo et al. 2017.
    """
    if p.ndim != 2 or len(p) != len(labels) or not len(labels):
        raise InputError(f"calibration error: p {p.shape} and labels {labels.shape} must be [n, k] and [n], n > 0")
    confidence, right = p.max(axis=1).astype(np.float64), p.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval for `k` successes of `n` trials; (0, 1) for no trials.

    Raises InputError unless 0 <= k <= n. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= k <= n:
        raise InputError(f"interval: {k} successes of {n} trials")
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    # exact at the ends, where rounding would leave 1e-17
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
