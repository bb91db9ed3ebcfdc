"""Stratified random sampling: totals, ratios and their variances, whatever the strata are.

Strata h hold N_h units, n_h of them drawn at random without replacement. For a value y of each unit

    total      Y = sum_h N_h mean_h(y)
    variance   V(Y) = sum_h N_h^2 (1 - n_h / N_h) s_h^2(y) / n_h
    ratio      R = Y / X,   V(R) = V(y - R x) / X^2        (combined ratio estimator)

Sources: Cochran 1977, Sampling Techniques, 3rd edition, equations 5.7 and 6.44 to 6.51; Stehman 2014, International
Journal of Remote Sensing 35: 4923-4939, doi:10.1080/01431161.2014.930207, equations 2, 3 and 25 to 28.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Z = 1.96
"""Standard errors either side of a 95 % interval; the papers round the normal quantile so."""

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimates:
    """Values and their standard errors, of one shape."""

    value: Floats
    se: Floats

    @property
    def interval(self) -> tuple[Floats, Floats]:
        """Lower and upper end of the 95 % interval, not cut off anywhere."""
        return self.value - Z * self.se, self.value + Z * self.se


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a map of K classes: overall [], user's [K] and producer's [K], NaN for a class that does not occur.

    `areas` [K] is the share of each reference class, or its area where areas were given; `matrix` [K, K] holds
    estimated shares of the whole, rows mapped, columns reference.
    """

    overall: Estimates
    users: Estimates
    producers: Estimates
    areas: Estimates
    matrix: Floats


@dataclass(frozen=True)
class Design:
    """A stratified random sample: `stratum` int [n] of each unit, `population` [H] units of each stratum.

    `finite` False: the population is so large that nothing is known for certain by looking (points in an area;
    `population` is then any measure of size). Raises InputError where a stratum is empty of sample or overdrawn, or
    holds a single unit of several, which has no variance.
    """

    stratum: NDArray[np.int64]
    population: Floats
    finite: bool = True

    def __post_init__(self) -> None:
        """Refuse a sample whose variance cannot be known."""
        counts = self.counts
        for h, (n, size) in enumerate(zip(counts, self.population, strict=True)):
            if n == 0 and size > 0:
                raise InputError(f"stratum {h + 1}: {size:g} units and none sampled; join it with another")
            if self.finite and n > size:
                raise InputError(f"stratum {h + 1}: {n} units sampled of {size:g}")
            if n == 1 and not (self.finite and size == 1):
                raise InputError(f"stratum {h + 1}: one unit sampled of {size:g} has no variance; join it with another")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Sampled units of each stratum, int [H]."""
        return np.bincount(self.stratum, minlength=len(self.population)).astype(np.int64)

    @property
    def weights(self) -> Floats:
        """Units that each sampled unit stands for, [n]."""
        return np.asarray((self.population / np.maximum(self.counts, 1))[self.stratum], np.float64)

    def total(self, y: Floats) -> Floats:
        """Estimated total of y [n] or [n, k] over the population."""
        return np.asarray(self.weights @ y, np.float64)

    def covariance(self, y: Floats) -> Floats:
        """Estimated covariance [k, k] of the totals of y [n, k]."""
        out = np.zeros((y.shape[1], y.shape[1]))
        for h, n in enumerate(self.counts):
            left = 1 - n / self.population[h] if self.finite and n else 1.0
            if n < 2 or left <= 0:
                continue
            part = y[self.stratum == h]
            part = part - part.mean(axis=0)
            out += self.population[h] ** 2 * left / n * (part.T @ part) / (n - 1)
        return out

    def ratio(self, y: Floats, x: Floats) -> Estimates:
        """Ratio of the totals of y [n] and x [n]; NaN where the total of x is 0."""
        below = float(self.total(x))
        if below == 0:
            return Estimates(np.array(np.nan), np.array(np.nan))
        value = float(self.total(y)) / below
        variance = self.covariance((y - value * x)[:, None])[0, 0] / below**2
        return Estimates(np.array(value), np.sqrt(variance))


def stehman(
    design: Design, mapped: NDArray[np.int64], reference: NDArray[np.int64], classes: int, size: Floats | None = None
) -> Accuracy:
    """Accuracy and shares of reference classes by a stratified sample whose strata need not be the map's classes.

    Args:
        design: the sample.
        mapped: class index of each sampled unit on the map, [n].
        reference: class index of each sampled unit as it is, [n].
        classes: number of classes.
        size: what each unit counts, [n]: 1 by default; its area where units differ in area.

    Source: Stehman 2014 (see the module), equations 2 to 4 and 14 to 28.
    """
    one = np.ones(len(mapped)) if size is None else np.asarray(size, np.float64)
    is_mapped = (mapped[:, None] == np.arange(classes)) * one[:, None]
    is_class = (reference[:, None] == np.arange(classes)) * one[:, None]
    right = is_mapped * (reference == mapped)[:, None]
    whole = float(design.total(one))
    cells = (is_mapped[:, :, None] * (reference[:, None] == np.arange(classes))[:, None, :]).reshape(len(mapped), -1)

    def ratios(above: Floats, below: Floats) -> Estimates:
        parts = [design.ratio(above[:, k], below[:, k]) for k in range(classes)]
        return Estimates(np.array([p.value for p in parts]), np.array([p.se for p in parts]))

    return Accuracy(
        overall=design.ratio(right.sum(axis=1), one),
        users=ratios(right, is_mapped),
        producers=ratios(right, is_class),
        areas=ratios(is_class, np.repeat(one[:, None], classes, axis=1)),
        matrix=design.total(cells).reshape(classes, classes) / whole,
    )
