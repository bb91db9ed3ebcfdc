"""Small pictures of an event before and after its loss: what a reader sees, apart from what the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

_COLOURS = (("red", "green", "blue"), ("swir16", "nir08", "red"), ("nir08", "red", "green"))
"""Natural colour, and what is closest to it where a band is missing."""
BEFORE_ONLY = "picture before the loss only"
"""Reason in the `scenes` layer of a scene that the model never sees."""


@dataclass(frozen=True)
class Picture:
    """A JPEG of `width` x `height` pixels with the event's outline drawn in, of one scene of one day."""

    jpeg: bytes
    width: int
    height: int
    day: date
    scene_id: str


@dataclass(frozen=True)
class ChipPair:
    """The pictures of one event; None with the reason in `note` where there is no clear image at hand."""

    event_id: str
    before: Picture | None
    after: Picture | None
    note: str = ""


def picture_bands(bands: Sequence[str]) -> tuple[str, ...]:
    """Which bands of a model (common names) are shown as red, green and blue; one alone is shown in grey.

    Pictures are made of the bands that a run reads anyway: natural colour where it reads red, green and blue.
    """
    for colours in _COLOURS:
        if set(colours) <= set(bands):
            return colours
    return tuple(bands[:3]) if len(bands) >= 3 else tuple(bands[:1])
