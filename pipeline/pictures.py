"""Small pictures of an event before and after its loss: what a reader sees, apart from what the model sees."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date


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
