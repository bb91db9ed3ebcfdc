"""Figures with 95 % intervals: Wilson for shares, bootstrap over events or over blocks of events for the rest.

A confusion matrix here is [..., K, K], rows reference, columns predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.calibrate import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

type Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_CELLS = 20_000_000
"""Numbers drawn at once: bounds memory to some 160 MB however many events there are."""


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, all None where it is undefined; `n` it is over; `method` of the interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


@dataclass(frozen=True)
class Bootstrap:
    """How to resample: `draws` with a `seed`; the same seed resamples the same events for every model."""

    draws: int = 1000
    seed: int = 0


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return int64 [K, K] counts, rows reference, columns predicted."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of events that are right, of confusion matrices [..., K, K]."""
    return np.asarray(np.trace(matrix, axis1=-2, axis2=-1) / np.maximum(matrix.sum((-2, -1)), 1e-12))


def class_f1(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 [..., K] of confusion matrices [..., K, K]; NaN for a class neither referred to nor predicted."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(-1) + matrix.sum(-2)
    return np.where(both > 0, 2 * right / np.maximum(both, 1e-12), np.nan)


def macro_f1(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean F1 over the classes that occur as reference or prediction, as scikit-learn does by default."""
    scores = class_f1(matrix)
    return np.asarray(np.nansum(scores, -1) / np.maximum(np.isfinite(scores).sum(-1), 1))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}


def resampled(
    labels: NDArray[np.int64],
    predictions: Sequence[NDArray[np.int64]],
    groups: NDArray[np.int64],
    classes: int,
    bootstrap: Bootstrap,
) -> NDArray[np.float64]:
    """Return float64 [models, draws, K, K]: confusion matrices of resampled groups, the same for every model.

    `groups` int64 [n] says which events are drawn together: arange(n) for single events, block numbers for blocks of
    land. Raises InputError for fewer than two groups: nothing can be said about what varies between them.
    """
    from scipy.sparse import csr_array

    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"bootstrap: {len(names)} group of events; give smaller blocks, or none")
    cells = classes * classes
    parts = [
        csr_array((np.ones(len(labels)), (group, labels * classes + predicted)), shape=(len(names), cells))
        for predicted in predictions
    ]
    out = np.empty((len(parts), bootstrap.draws, cells))
    for rows, weights in _weights(len(names), bootstrap):
        for model, part in enumerate(parts):
            out[model, rows] = (part.T @ weights.T).T
    return out.reshape(len(parts), bootstrap.draws, classes, classes)


def percentile_interval(draws: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 2.5 and 97.5 percentiles of draws [d], NaN left out; None where nothing is left."""
    known = draws[np.isfinite(draws)]
    if not known.size:
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def share_figure(k: int, n: int, draws: NDArray[np.float64] | None = None) -> Figure:
    """Figure of the share `k` of `n`: Wilson's interval; with `draws` of blocks the wider of it and theirs."""
    if not n:
        return Figure(None, None, None, 0, "undefined")
    low, high = wilson(k, n)
    method = "wilson"
    if draws is not None:
        # blocks that all agree give no width at all, which is no knowledge: never narrower than independent events
        known = [bound for bound in percentile_interval(draws) if bound is not None]
        low, high = min([low, *known]), max([high, *known])
        method = "wider of wilson and block bootstrap"
    return Figure(k / n, low, high, n, method)


def f1_figure(matrix: NDArray[np.int64], k: int, draws: NDArray[np.float64]) -> Figure:
    """Figure of the F1 of class `k`: percentiles of `draws`; of a class always or never right, from Wilson's interval.

    There every draw is alike. With J = TP / (TP + FP + FN), a share, F1 = 2 J / (1 + J).
    """
    right, union = int(matrix[k, k]), int(matrix[k].sum() + matrix[:, k].sum() - matrix[k, k])
    if not union:
        return Figure(None, None, None, 0, "undefined")
    value = 2 * right / (union + right)
    if right in (0, union):
        low, high = wilson(right, union)
        return Figure(value, 2 * low / (1 + low), 2 * high / (1 + high), union, "wilson")
    low_draw, high_draw = percentile_interval(draws)
    return Figure(value, low_draw, high_draw, union, "bootstrap")


def _weights(groups: int, bootstrap: Bootstrap) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """How often each group is drawn, some draws at a time: (rows, float64 [rows, groups])."""
    random = np.random.default_rng(bootstrap.seed)
    step = max(1, _CELLS // groups)
    for start in range(0, bootstrap.draws, step):
        rows = slice(start, min(start + step, bootstrap.draws))
        drawn = random.integers(0, groups, (rows.stop - rows.start, groups))
        drawn += np.arange(len(drawn))[:, None] * groups
        counts = np.bincount(drawn.ravel(), minlength=len(drawn) * groups)
        yield rows, counts.reshape(len(drawn), groups).astype(np.float64)
