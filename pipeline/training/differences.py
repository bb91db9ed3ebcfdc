"""Differences between models on the same events, with paired intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.intervals import METRICS, Bootstrap, Figure, confusion, percentile_interval, resampled
from pipeline.training.results import Judgement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """`metric` of one model less that of another on the same events; `unpaired` events had no answer of one of them."""

    metric: str
    figure: Figure
    unpaired: int

    @property
    def within_noise(self) -> bool:
        """Whether the interval reaches zero: then it cannot be said which model is better."""
        low, high = self.figure.low, self.figure.high
        return low is None or high is None or low <= 0 <= high


def difference(a: Judgement, b: Judgement, metric: str = "accuracy", bootstrap: Bootstrap | None = None) -> Difference:
    """Return metric (`accuracy` or `macro_f1`) of `a` less that of `b`, bootstrapped over the events both answered.

    Raises InputError where the two were not asked about the same events, labelled alike and in the same blocks.
    """
    labels, predictions, groups = paired([a, b])
    draws = METRICS[metric](resampled(labels, predictions, groups, len(a.about.classes), bootstrap or Bootstrap()))
    whole = [METRICS[metric](confusion(labels, own, len(a.about.classes)).astype(float)) for own in predictions]
    interval = percentile_interval(draws[0] - draws[1])
    unit = "events" if a.answers.block is None else "blocks"
    figure = Figure(
        float(whole[0] - whole[1]),
        *interval,
        len(labels),
        f"paired bootstrap over {unit}",
    )
    return Difference(metric, figure, a.events - len(labels))


def paired(results: Sequence[Judgement]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return labels [n], predictions [n] of each result, and groups [n], of the events that all of them answered.

    Raises InputError where results were not asked about the same events, labelled alike and in the same blocks.
    """
    first = results[0]
    asked = _asked(first)
    for other in results[1:]:
        if other.about.classes != first.about.classes:
            raise InputError(f"{other.about.model} and {first.about.model} know different classes: no comparison")
        if _asked(other) != asked:
            apart = sorted(_asked(other) ^ asked)
            raise InputError(
                f"{other.about.model} and {first.about.model} were judged on different events ({len(apart)} differ, "
                f"such as {apart[0]}): judge both on the same split"
            )
    rows = [_rows(result) for result in results]
    common = [event for event in first.answers.event_id if all(event in own for own in rows)]
    if any(own[event][0::2] != rows[0][event][0::2] for own in rows for event in common):
        raise InputError("results label the same events differently or lie in different blocks: no comparison")
    labels = np.array([rows[0][event][0] for event in common], np.int64)
    predictions = [np.array([own[event][1] for event in common], np.int64) for own in rows]
    blocks = [rows[0][event][2] for event in common]
    groups = np.arange(len(common)) if first.answers.block is None else np.array(blocks, np.int64)
    return labels, predictions, groups


def _asked(result: Judgement) -> set[str]:
    return {*result.answers.event_id, *(gone.event_id for gone in result.invalid)}


def _rows(result: Judgement) -> dict[str, tuple[int, int, int]]:
    """Event id -> (label, predicted class, block)."""
    answers = result.answers
    blocks = answers.block or (-1,) * len(answers.label)
    predicted = np.array(answers.p).argmax(1).tolist()
    return dict(zip(answers.event_id, zip(answers.label, predicted, blocks, strict=True), strict=True))
