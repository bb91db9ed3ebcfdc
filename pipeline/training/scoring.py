"""Logits of events: what a ready model says about each event of a labelled image, for calibration and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.crops import TrainingImage, list_events

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.contracts import Segmenter


@dataclass(frozen=True)
class EventLogits:
    """Of n events: int32 `numbers` [n], int64 class index `labels` [n], float64 mean `logits` [n, classes].

    `pixels` int64 [n] counts the observed pixels the mean is over; events without any are not in here but
    counted as `unseen`.
    """

    numbers: NDArray[np.int32]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    pixels: NDArray[np.int64]
    unseen: int


def event_logits(image: TrainingImage, segmenter: Segmenter) -> EventLogits:
    """Return each labelled event's mean logits over its observed pixels.

    Patches of the card's size lie at its stride over the image, only where there is an event; where patches
    overlap, their logits are averaged. Raises InputError where the bands are not as many as the card's.
    """
    card = segmenter.card
    if len(image.image) != len(card.bands):
        raise InputError(f"image has {len(image.image)} bands, model {card.name} takes {len(card.bands)}")
    size, (height, width) = card.patch.size, image.events.shape
    below, right = max(0, size - height), max(0, size - width)
    padded = np.pad(image.image, ((0, 0), (0, below), (0, right)), constant_values=np.nan)
    events = np.pad(image.events, ((0, below), (0, right)))
    sums = np.zeros((len(card.scheme), *events.shape), np.float32)
    counts = np.zeros(events.shape, np.float32)
    for top in _starts(events.shape[0], size, card.patch.stride):
        for left in _starts(events.shape[1], size, card.patch.stride):
            window = (slice(top, top + size), slice(left, left + size))
            if events[window].any():
                sums[:, *window] += segmenter.logits(padded[None, :, *window])[0]
                counts[window] += 1
    mean = (sums / np.maximum(counts, 1))[:, :height, :width].reshape(len(card.scheme), -1)
    observed = np.isfinite(image.image).any(axis=0).ravel()
    numbers, labels, logits, pixels, unseen = [], [], [], [], 0
    for event in list_events([image], card.scheme):
        own = event.pixels[observed[event.pixels]]
        if not own.size:
            unseen += 1
            continue
        numbers.append(event.number)
        labels.append(event.label)
        logits.append(mean[:, own].mean(axis=1, dtype=np.float64))
        pixels.append(own.size)
    return EventLogits(
        np.array(numbers, np.int32),
        np.array(labels, np.int64),
        np.array(logits, np.float64).reshape(len(numbers), len(card.scheme)),
        np.array(pixels, np.int64),
        unseen,
    )


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Return where patches start so that they cover `length`; the last one ends at the border."""
    return sorted({*range(0, length - size, stride), length - size})
