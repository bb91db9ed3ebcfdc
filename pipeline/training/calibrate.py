"""Calibration of event probabilities, and honest intervals for scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from pipeline.errors import InputError
from pipeline.models.calibration import calibrated
from pipeline.models.card import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG_RANGE = (np.log(0.05), np.log(20.0))
_SCALE_RANGE = 8.0
"""Vector scales stay within a factor e^8 of each other's middle; a class that never occurs would drive them away."""
_RIDGE = 0.5
"""Weight of the prior, in events, that pulls vector scaling to temperature scaling: one that few events outweigh."""
_FOLDS = 5
LEAST_FOR_AUTO = 2 * _FOLDS
"""Events that choosing a method by cross-validation takes."""
type _Fitted = Literal["none", "temperature", "vector"]
_METHODS: tuple[_Fitted, ...] = ("none", "temperature", "vector")
type Method = Literal["none", "temperature", "vector", "auto"]
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


def fit_vector(
    logits: NDArray[np.floating], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positive scale [k] and bias [k], summing to 0, that make softmax(scale * logits + bias) most likely.

    logits [n, k], labels [n]. A weak prior holds both to the best temperature: a class that validation hardly has
    keeps it. Raises InputError where there is nothing to fit to. Source: Guo et al. 2017, arXiv:1706.04599, 4.2.
    """
    temperature = fit_temperature(logits, labels)
    scores, rows = logits.astype(np.float64) / temperature, np.arange(len(labels))
    n, k = scores.shape

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = np.exp(x[:k]), x[k:]
        z = scale * scores + bias
        gap = softmax(z, axis=1)
        gap[rows, labels] -= 1
        slope = np.concatenate([(gap * scores).sum(0) * scale, gap.sum(0)]) + 2 * _RIDGE * x
        value = -log_softmax(z, axis=1)[rows, labels].sum() + _RIDGE * (x @ x)
        return float(value / n), slope / n

    bounds = [(-_SCALE_RANGE, _SCALE_RANGE)] * k + [(None, None)] * k
    best = minimize(loss, np.zeros(2 * k), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    return np.exp(best[:k]) / temperature, best[k:] - best[k:].mean()


def fit_calibration(
    logits: NDArray[np.floating], labels: NDArray[np.integer], split: str, method: Method = "auto", seed: int = 0
) -> Calibration:
    """Return the card's calibration of event logits [n, k] with class indices labels [n] of the split named.

    `auto` takes the method of least log-loss in 5-fold cross-validation; a richer one must win by a standard error of
    the difference, or the simpler stays. `ece` stays empty: it is to be measured on events not fitted to. Raises
    InputError for the test split, which is to judge by, and where there is nothing to fit to.
    """
    if split == "test":
        raise InputError("calibration: fitted on validation, never on test; give the val split")
    if method == "auto":
        method = _least_loss(logits, labels, seed)
    return _fit(logits, labels, method).model_copy(update={"split": split})


def log_losses(p: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return float64 [n]: minus the log of the probability p [n, k] gave to each label, p counted as 1e-12 at least."""
    return np.asarray(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)), np.float64)


def _fit(logits: NDArray[np.floating], labels: NDArray[np.integer], method: str) -> Calibration:
    if method == "vector":
        scale, bias = fit_vector(logits, labels)
        return Calibration(method="vector", scale=tuple(scale.tolist()), bias=tuple(bias.tolist()))
    if method == "temperature":
        return Calibration(method="temperature", temperature=fit_temperature(logits, labels))
    if method != "none":
        raise InputError(f"calibration {method!r}: known are {', '.join(_METHODS)} and auto")
    return Calibration()


def _least_loss(
    logits: NDArray[np.floating], labels: NDArray[np.integer], seed: int
) -> Literal["none", "temperature", "vector"]:
    """The simplest method that none beats by a standard error, over cross-validated log-losses of the same events."""
    if len(labels) < LEAST_FOR_AUTO:
        raise InputError(f"calibration auto: {len(labels)} events are too few; name a method")
    order = np.random.default_rng(seed).permutation(len(labels))
    # dealt out by class, so that every fold is fitted with every class there is enough of
    fold = np.empty(len(labels), np.int64)
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % _FOLDS
    losses = {}
    for method in _METHODS:
        own = np.empty(len(labels))
        for k in range(_FOLDS):
            fitted = _fit(logits[fold != k], labels[fold != k], method)
            own[fold == k] = log_losses(calibrated(logits[fold == k], fitted), labels[fold == k])
        losses[method] = own
    best: _Fitted = "none"
    for method in _METHODS[1:]:
        gain = losses[best] - losses[method]
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            best = method
    return best


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
