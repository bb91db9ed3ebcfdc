"""What share of a mapped class is which class: from an error matrix or a sample, and areas and accuracy from it.

For mapped class i and reference class j the share q_ij is estimated, and its covariances. For mapped areas A_i

    adjusted area     sum_i A_i q_ij                      sums over j to sum_i A_i
    its variance      sum over i, i' of A_i A_i' cov(q_ij, q_i'j)

An error matrix of counts gives q_ij = n_ij / n_i and cov(q_ij, q_ij') = q_ij (d_jj' - q_ij') / (n_i - 1): Olofsson
et al. 2014, Remote Sensing of Environment 148: 42-57, doi:10.1016/j.rse.2014.02.015, equations 4 to 11.

Sampled events differ in area. With a_u the area of event u, m its mapped and r its reference class,
q_ij = sum_u w_u a_u [m = i, r = j] / sum_u w_u a_u [m = i] (combined ratio estimator over the strata, Cochran 1977,
6.11; with the map's own A_i this is post-stratification by mapped class), and covariances follow from the residuals
a_u [m = i] ([r = j] - q_ij) / A_i (Taylor linearisation; Stehman 2014, equation 28). With one stratum for each mapped
class, units of equal area and few of them sampled, both are Olofsson's.

Shares that were learnt elsewhere (other land, or the whole region for one of its units) predict what the few events of
a place really are. Besides the shares' own error these events then vary as drawn from them:
sum_u a_u^2 q_ij (1 - q_ij) is added to the variance. It vanishes where events are many and small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.areas.stratified import Accuracy, Design, Estimates, Floats
from pipeline.errors import InputError


@dataclass(frozen=True)
class Shares:
    """Shares q [I, J] of mapped class I that are class J, their covariances [I, J, I, J], and the numbers behind them.

    `known` [I]: enough was looked at to say anything of this mapped class. `mapped_n` [I] and `reference_n` [J] count
    the labels. `census`: everything was looked at, so a variance of 0 is a fact and no want of data.
    """

    q: Floats
    cov: Floats
    known: NDArray[np.bool_]
    mapped_n: NDArray[np.int64]
    reference_n: NDArray[np.int64]
    census: bool = False


def shares_of_counts(counts: NDArray[np.int64]) -> Shares:
    """Shares from an error matrix of counts [K, K], rows mapped, columns reference; at least two for a known row."""
    table = np.asarray(counts, np.int64)
    n = table.sum(axis=1)
    known = n >= 2
    q = table / np.maximum(n, 1)[:, None]
    size = len(table)
    cov = np.zeros((size, size, size, size))
    for i in np.flatnonzero(known):
        cov[i, :, i, :] = (np.diag(q[i]) - np.outer(q[i], q[i])) / (n[i] - 1)
    return Shares(q, cov, known, n, table.sum(axis=0))


def shares_of_sample(
    design: Design, mapped: NDArray[np.int64], reference: NDArray[np.int64], size: Floats, classes: int
) -> Shares:
    """Shares by size (area, or 1 to count events) from a stratified sample.

    Args:
        design: the sample, units outside the part asked about included.
        mapped: class index of each sampled unit on the map [n]; -1 = outside the part of the map asked about.
        reference: class index of each sampled unit as it is [n].
        size: area of each unit [n], or ones.
        classes: number of classes.
    """
    inside = (mapped[:, None] == np.arange(classes)) * np.asarray(size, np.float64)[:, None]
    is_class = (reference[:, None] == np.arange(classes)).astype(np.float64)
    whole = design.total(inside)
    below = np.where(whole > 0, whole, 1.0)
    q = design.total((inside[:, :, None] * is_class[:, None, :]).reshape(len(mapped), -1)).reshape(classes, classes)
    q = q / below[:, None]
    residual = inside[:, :, None] * (is_class[:, None, :] - q[None]) / below[None, :, None]
    cov = design.covariance(residual.reshape(len(mapped), -1)).reshape((classes,) * 4)
    counts = np.zeros((classes, classes), np.int64)
    own = mapped >= 0
    np.add.at(counts, (mapped[own], reference[own]), 1)
    looked = design.finite and bool(np.allclose(design.weights[own], 1.0))
    all_seen = np.array([design.finite and bool(np.allclose(design.weights[mapped == i], 1.0)) for i in range(classes)])
    n = counts.sum(axis=1)
    return Shares(q, cov, (n >= 2) | ((n > 0) & all_seen), n, counts.sum(axis=0), looked)


def adjusted_areas(shares: Shares, areas: Floats, squares: Floats | None = None) -> Estimates:
    """Adjusted areas [D, J] of D places with mapped areas [D, I]; NaN where a mapped class there has no known shares.

    `squares` [D, I] are sums of squared event areas: given where the shares were learnt elsewhere.
    """
    areas = np.atleast_2d(np.asarray(areas, np.float64))
    value = areas @ shares.q
    by_class = np.stack([shares.cov[:, j, :, j] for j in range(shares.q.shape[1])])
    variance = np.einsum("di,jik,dk->dj", areas, by_class, areas)
    if squares is not None:
        variance = variance + np.atleast_2d(squares) @ (shares.q * (1 - shares.q))
    unknown = ((areas > 0) & ~shares.known).any(axis=1)
    value[unknown], variance[unknown] = np.nan, np.nan
    return Estimates(value, np.sqrt(np.maximum(variance, 0.0)))


def accuracy(shares: Shares, areas: Floats) -> Accuracy:
    """Accuracy of a map with mapped areas [K], by area; NaN for a class that does not occur or has no known shares.

    User's accuracy is q_ii, producer's A_j q_jj / sum_i A_i q_ij, overall sum_i A_i q_ii / sum_i A_i.
    """
    areas = np.asarray(areas, np.float64)
    if areas.shape != shares.known.shape or not areas.sum() > 0:
        raise InputError(f"accuracy: mapped areas {areas.tolist()} of {len(shares.known)} classes, or none of any size")
    size, whole = len(areas), float(areas.sum())
    diagonal = np.arange(size)
    unknown = bool(((areas > 0) & ~shares.known).any())
    adjusted = adjusted_areas(shares, areas)
    right = shares.q[diagonal, diagonal]
    own = shares.cov[diagonal, diagonal][:, diagonal, diagonal]
    overall = np.array(np.nan if unknown else areas @ right / whole)
    overall_se = np.array(np.nan if unknown else np.sqrt(np.maximum(areas @ own @ areas, 0.0)) / whole)
    users = np.where(shares.known, right, np.nan)
    users_se = np.where(shares.known, np.sqrt(np.maximum(own[diagonal, diagonal], 0.0)), np.nan)
    producers, producers_se = np.full(size, np.nan), np.full(size, np.nan)
    for j in range(size):
        total = adjusted.value[0, j]
        if not total > 0:
            continue
        producers[j] = areas[j] * right[j] / total
        slope = areas * np.where(diagonal == j, 1 - producers[j], -producers[j])
        producers_se[j] = np.sqrt(np.maximum(slope @ shares.cov[:, j, :, j] @ slope, 0.0)) / total
    return Accuracy(
        Estimates(overall, overall_se),
        Estimates(users, users_se),
        Estimates(producers, producers_se),
        Estimates(adjusted.value[0], adjusted.se[0]),
        np.asarray(areas[:, None] * shares.q / whole),
    )


def olofsson(counts: NDArray[np.int64], areas: Floats) -> Accuracy:
    """Accuracy and adjusted areas from an error matrix of counts [K, K] and mapped areas [K], in the unit of `areas`.

    Source: Olofsson et al. 2014 (see the module), equations 1 to 11.
    """
    return accuracy(shares_of_counts(counts), areas)
