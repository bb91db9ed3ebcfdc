"""What a model package says about labelled events: by the engine, region head and calibration that a run uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.models.calibration import calibrated
from pipeline.models.engines import open_segmenter
from pipeline.models.region import fused_logits, region_features
from pipeline.training.crops import Images
from pipeline.training.windows import EventWindows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.card import Calibration, ModelCard
    from pipeline.training.datasets.base import DriverDataset

LookChoice = Literal["composite", "closest_year", "least_cloudy", "furthest_year"]
UNSEEN = "no observed pixel"


@dataclass(frozen=True)
class EventAnswers:
    """Of the events `rows` int64 [n]: float64 event `logits` [n, classes], NaN where an event has no answer; why not.

    `pixels` int64 [n] counts the observed pixels of each.
    """

    rows: NDArray[np.int64]
    logits: NDArray[np.float64]
    pixels: NDArray[np.int64]
    reasons: NDArray[np.object_]

    def probabilities(self, calibration: Calibration) -> NDArray[np.float64]:
        """Return calibrated p [n, classes], NaN where there is no answer."""
        p = np.full(self.logits.shape, np.nan)
        known = np.isfinite(self.logits).all(axis=1)
        p[known] = calibrated(self.logits[known], calibration)
        return p


def answer(
    package: Path, dataset: DriverDataset, rows: NDArray[np.int64], look: LookChoice = "composite", threads: int = 2
) -> EventAnswers:  # fmt: skip
    """Ask a package about the events `rows` of a data set.

    Raises InputError where bands or classes of data set and package differ, or a predictor of its region head lacks.
    """
    segmenter = open_segmenter(package, device="auto", threads=threads)
    card = segmenter.card
    _check(card, dataset)
    images = Images(dataset, rows.tolist())
    windows = EventWindows(images, card.patch.size, _looks(dataset, look))
    scores, events = [np.zeros((0, len(card.scheme)), np.float32)], [np.zeros(0, np.int64)]
    for index in range(len(windows)):
        window = windows[index]
        inside = window["events"].numpy() > 0
        if inside.any():
            scores.append(segmenter.logits(window["image"].numpy()[None])[0][:, inside].T)
            events.append(window["events"].numpy()[inside] - 1)
    return _answers(package, card, dataset, rows, (np.concatenate(scores), np.concatenate(events)))


def _answers(
    package: Path, card: ModelCard, dataset: DriverDataset, rows: NDArray[np.int64],
    pixels: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> EventAnswers:  # fmt: skip
    scores, events = pixels
    found, index, counts = np.unique(events, return_inverse=True, return_counts=True)
    features = region_features(torch.from_numpy(scores).double(), torch.from_numpy(index), len(found)).numpy()
    logits = features[:, : len(card.scheme)]
    if card.region is not None and len(found):
        names = [column.name for column in card.region.auxiliary]
        auxiliary = np.zeros((len(found), 0))
        if names:
            assert dataset.auxiliary is not None
            auxiliary = dataset.auxiliary[names].to_numpy(np.float64)[found]
        logits = fused_logits(package, card, features, auxiliary)
    place = {int(row): k for k, row in enumerate(found)}
    at = np.array([place.get(int(row), -1) for row in rows], np.int64)
    out = np.full((len(rows), len(card.scheme)), np.nan)
    out[at >= 0] = logits[at[at >= 0]]
    number = np.where(at >= 0, counts[at], 0) if len(found) else np.zeros(len(rows), np.int64)
    reasons = np.where(at >= 0, "", UNSEEN).astype(object)
    return EventAnswers(rows, out, number.astype(np.int64), reasons)


def _check(card: ModelCard, dataset: DriverDataset) -> None:
    if card.bands != dataset.bands:
        raise InputError(
            f"model {card.name} takes the bands {', '.join(card.bands)}; {dataset.name} has {', '.join(dataset.bands)}"
        )
    if card.scheme.names != dataset.scheme.names:
        raise InputError(
            f"model {card.name} knows the classes {', '.join(card.scheme.names)}; {dataset.name} is labelled with "
            f"{', '.join(dataset.scheme.names)}"
        )
    wanted = [column.name for column in card.region.auxiliary] if card.region else []
    given = [] if dataset.auxiliary is None else list(dataset.auxiliary)
    missing = [name for name in wanted if name not in given]
    if missing:
        raise InputError(
            f"model {card.name} wants the auxiliary predictors {', '.join(missing)}; {dataset.name} lacks them"
        )


def _looks(dataset: DriverDataset, choice: LookChoice) -> Sequence[int] | None:
    """The look of each image; the composite where an image has no dated scene."""
    if choice == "composite":
        return None
    years = dataset.events.groupby("image")["loss_year"].median()
    chosen = []
    for image in range(dataset.images):
        dated = [(k, look) for k, look in enumerate(dataset.looks(image)) if look.date is not None]
        if not dated:
            chosen.append(0)
        elif choice == "least_cloudy":
            chosen.append(min(dated, key=lambda item: item[1].cloud if item[1].cloud is not None else 101.0)[0])
        else:
            sign = 1 if choice == "closest_year" else -1
            year = float(years.get(image, 0))
            chosen.append(min(dated, key=lambda item: sign * abs(item[1].date.year - year))[0])  # type: ignore[union-attr]
    return chosen
