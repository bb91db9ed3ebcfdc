"""Judge probabilities of events: one code and one JSON for forests, networks and finished products.

Every event asked about is either judged or listed as invalid with its reason; the two add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.models.card import ErrorMatrix
from pipeline.training.calibrate import expected_calibration_error
from pipeline.training.intervals import (
    Bootstrap,
    Figure,
    accuracy,
    class_f1,
    confusion,
    f1_figure,
    macro_f1,
    percentile_interval,
    resampled,
    share_figure,
)
from pipeline.training.results import About, Answers, Bin, ClassFigures, Invalid, Judgement, RiskCoverage
from pipeline.training.splits import block_ids

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NO_PREDICTION = "no prediction"
LOG_LOSS_FLOOR = 1e-6
"""Least probability counted in the log-loss: nearest neighbours say 0 and 1, which would cost infinitely much."""
BINS = 15
_POINTS = 200


def judge(
    events: pd.DataFrame,
    p: NDArray[np.floating],
    about: About,
    block_km: float | None = None,
    reasons: NDArray[np.object_] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Judgement:
    """Judge probabilities p [n, classes] of the n events of a table (`base.EVENT_COLUMNS`); a row of NaN = no answer.

    Every row is asked about: give the events of the split only. Events at fault and those without an answer are listed
    as invalid, the latter with `reasons` [n] where given. With `block_km`, intervals resample square blocks of land
    instead of events, as neighbours are right and wrong together. Raises InputError for probabilities that are none,
    or where no event is left to judge.
    """
    valid, why = _accounted(events, p, about, reasons)
    own, k = events[valid], len(about.classes)
    scores, labels = np.asarray(p, np.float64)[valid], own["label"].to_numpy(np.int64)
    predicted = scores.argmax(1)
    blocks = None
    if block_km is not None:
        # of all events, so that models that answered different ones still share their blocks
        blocks = block_ids(events["latitude"].to_numpy(float), events["longitude"].to_numpy(float), block_km)[valid]
    groups, unit = (np.arange(len(own)), "events") if blocks is None else (blocks, "blocks")
    draws = resampled(labels, [predicted], groups, k, bootstrap or Bootstrap())[0]
    matrix = confusion(labels, predicted, k)
    f1 = float(macro_f1(matrix.astype(float)))
    return Judgement(
        about=about,
        events=len(events),
        judged=len(own),
        invalid=tuple(Invalid(str(e), w) for e, w in zip(events["event_id"][~valid], why[~valid], strict=True)),
        block_km=block_km,
        accuracy=share_figure(int(np.trace(matrix)), len(own), None if blocks is None else accuracy(draws)),
        macro_f1=Figure(f1, *percentile_interval(macro_f1(draws)), len(own), f"bootstrap over {unit}"),
        per_class=_per_class(about.classes, matrix, draws, blocks is not None),
        confusion=tuple(tuple(int(n) for n in row) for row in matrix),
        log_loss=float(-np.log(np.maximum(scores[np.arange(len(own)), labels], LOG_LOSS_FLOOR)).mean()),
        ece=expected_calibration_error(scores, labels, BINS),
        reliability=reliability(scores, labels),
        risk_coverage=risk_coverage(scores, labels),
        answers=_answers(own, scores, blocks),
    )


def reliability(p: NDArray[np.float64], labels: NDArray[np.int64], bins: int = BINS) -> tuple[Bin, ...]:
    """Return the bins of the reliability diagram of p [n, K] that hold events; as in `expected_calibration_error`."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    out = []
    for k in np.unique(which):
        own = which == k
        share = share_figure(int(right[own].sum()), int(own.sum()))
        out.append(Bin(float(k / bins), float((k + 1) / bins), float(confidence[own].mean()), share))
    return tuple(out)


def risk_coverage(p: NDArray[np.float64], labels: NDArray[np.int64]) -> RiskCoverage:
    """Return the risk-coverage curve of p [n, K]; events of equal confidence count as answered in random order.

    The area is the mean risk over coverages 1/n, 2/n, ..., 1. Source: Geifman and El-Yaniv 2017, arXiv:1705.08500.
    """
    confidence, wrong = p.max(axis=1), p.argmax(axis=1) != labels
    # equal confidences: the expected error of each is the tie's mean
    _, tie = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(tie, weights=wrong) / np.bincount(tie)
    n = len(labels)
    risk = np.cumsum(mean[np.sort(tie)]) / np.arange(1, n + 1)
    at = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
    return RiskCoverage(tuple(((at + 1) / n).tolist()), tuple(risk[at].tolist()), float(risk.mean()))


def error_matrix(result: Judgement, mapped_ha: NDArray[np.float64] | None = None, note: str = "") -> ErrorMatrix:
    """Return the card's error matrix (rows mapped, columns reference) of a result.

    `mapped_ha` [n] is the area of each judged event, in the order of `answers`; the mapped shares are areas then, else
    counts of events. A product's adjusted areas take the shares of its own map in their place: with W_i a mapped
    class's share of the map, p_ij = W_i n_ij / n_i (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015, equation 4).
    """
    predicted = np.array(result.answers.p).argmax(1)
    weights = np.ones(len(predicted)) if mapped_ha is None else np.asarray(mapped_ha, np.float64)
    if weights.shape != predicted.shape or not weights.sum() > 0:
        raise InputError(f"error matrix: {weights.shape} areas for {len(predicted)} judged events, or none of any size")
    shares = np.bincount(predicted, weights, len(result.about.classes)) / weights.sum()
    counted = "by area" if mapped_ha is not None else "by number of events"
    return ErrorMatrix(
        classes=result.about.classes,
        counts=tuple(zip(*result.confusion, strict=True)),
        mapped_shares=tuple(shares.tolist()),
        split=result.about.split,
        n=result.judged,
        note=note or f"labelled events of {result.about.dataset}, not a probability sample of a map; shares {counted}",
    )


def _accounted(
    events: pd.DataFrame, p: NDArray[np.floating], about: About, reasons: NDArray[np.object_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.object_]]:
    """Which events can be judged, and why the others cannot."""
    if p.shape != (len(events), len(about.classes)):
        raise InputError(
            f"{about.model}: probabilities {p.shape} of {len(events)} events and {len(about.classes)} classes"
        )
    if not events["event_id"].is_unique:
        twice = events.loc[events["event_id"].duplicated(), "event_id"].iloc[0]
        raise InputError(f"{about.model}: event {twice} is asked about twice; judge it once")
    known = np.isfinite(p).any(axis=1)
    sound = (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < 1e-4)
    if (known & ~sound).any():
        event = events["event_id"].to_numpy(dtype=object)[np.argmax(known & ~sound)]
        raise InputError(f"{about.model}: the probabilities of event {event} are negative or do not sum to 1")
    why = events["fault"].to_numpy(dtype=object).copy()
    given = np.full(len(events), "", object) if reasons is None else reasons
    silent = (why == "") & ~known
    why[silent] = np.where(given[silent] == "", NO_PREDICTION, given[silent])
    valid = np.asarray(why == "", bool)
    if valid.sum() < 2:
        raise InputError(f"{about.model}: {int(valid.sum())} of {len(events)} events can be judged; needs two at least")
    outside = ~events["label"][valid].between(0, len(about.classes) - 1)
    if outside.any():
        raise InputError(f"{about.model}: event {events['event_id'][valid][outside].iloc[0]} has an unknown label")
    return valid, why


def _answers(own: pd.DataFrame, p: NDArray[np.float64], blocks: NDArray[np.int64] | None) -> Answers:
    return Answers(
        tuple(str(event) for event in own["event_id"]),
        tuple(int(label) for label in own["label"]),
        tuple(tuple(float(x) for x in row) for row in p),
        None if blocks is None else tuple(int(block) for block in blocks),
    )


def _per_class(
    names: tuple[str, ...], matrix: NDArray[np.int64], draws: NDArray[np.float64], blocked: bool
) -> tuple[ClassFigures, ...]:
    f1, right = class_f1(draws), np.diagonal(draws, axis1=-2, axis2=-1)
    out = []
    for k, name in enumerate(names):
        shares = []
        for axis in (0, 1):
            total = draws.sum(axis - 2)[:, k]
            own = np.where(total > 0, right[:, k] / np.maximum(total, 1), np.nan) if blocked else None
            shares.append(share_figure(int(matrix[k, k]), int(matrix.sum(axis)[k]), own))
        out.append(ClassFigures(name, shares[0], shares[1], f1_figure(matrix, k, f1[:, k])))
    return tuple(out)
