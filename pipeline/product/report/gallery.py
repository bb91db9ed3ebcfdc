"""Pictures before and after the loss of the largest and of the least certain events, as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.labels import LabelScheme
from pipeline.pictures import ChipPair, Picture

_MISSING = "no clear picture at hand"
_TOO_MANY = "left out, as the pictures of this page would be too large"


@dataclass(frozen=True)
class Shot:
    """One picture of a pair: `src` is a data URI, or "" with the reason in `note`."""

    when: str
    src: str
    width: int
    height: int
    day: str
    scene_id: str
    note: str


@dataclass(frozen=True)
class Card:
    """One event of the gallery: its pictures and what is said beside them; areas in hectares."""

    event_id: str
    driver: str
    colour: str
    status: str
    confidence: float | None
    area: float
    year: int
    unit: str
    shots: tuple[Shot, Shot]


@dataclass(frozen=True)
class Gallery:
    """The cards: events with the largest areas, then of the others those with the least confidence."""

    largest: tuple[Card, ...]
    unsure: tuple[Card, ...]


def gallery(chips: Sequence[ChipPair], events: pd.DataFrame, scheme: LabelScheme, most: int) -> Gallery:
    """Return the pictures of events in at most `most` characters of data URIs, the first half the largest events.

    Pairs of events that the product does not hold are left out. Pictures beyond `most` say that they were.
    """
    known = events.drop_duplicates("event_id").set_index("event_id")
    pairs = {pair.event_id: pair for pair in chips if pair.event_id in known.index}
    rows = known.loc[list(pairs)].reset_index()
    by_area = rows.sort_values(["area_ha", "event_id"], ascending=[False, True])
    half = (len(rows) + 1) // 2
    rest = by_area.iloc[half:].sort_values(["confidence", "event_id"])
    left, groups = most, []
    for group in (by_area.head(half), rest):
        cards = []
        for row in group.to_dict("records"):
            pair = pairs[row["event_id"]]
            shots = []
            for when, picture in (("Before", pair.before), ("After", pair.after)):
                shot = _shot(when, picture, pair.note, left)
                left -= len(shot.src)
                shots.append(shot)
            cards.append(_card({str(k): v for k, v in row.items()}, scheme, (shots[0], shots[1])))
        groups.append(tuple(cards))
    return Gallery(*groups)


def _shot(when: str, picture: Picture | None, note: str, left: int) -> Shot:
    if picture is None:
        own = [part for part in note.split("; ") if when.lower() in part.lower()]
        return Shot(when, "", 0, 0, "", "", "; ".join(own) or note or _MISSING)
    src = "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode("ascii")
    fits = len(src) <= left
    place = (picture.width, picture.height, picture.day.isoformat(), picture.scene_id)
    return Shot(when, src if fits else "", *place, "" if fits else _TOO_MANY)


def _card(row: dict[str, object], scheme: LabelScheme, shots: tuple[Shot, Shot]) -> Card:
    item = next((c for c in scheme if c.name == row["driver"]), None)
    confidence = row["confidence"]
    return Card(
        event_id=str(row["event_id"]),
        driver=item.title if item else "Driver not known",
        colour=item.colour if item else "#ffffff",
        status=str(row["status"]).replace("_", " "),
        confidence=None if pd.isna(confidence) else float(confidence),  # type: ignore[call-overload,arg-type]
        area=float(row["area_ha"]),  # type: ignore[arg-type]
        year=int(row["loss_year"]),  # type: ignore[call-overload]
        unit=str(row["unit_name"]),
        shots=shots,
    )
