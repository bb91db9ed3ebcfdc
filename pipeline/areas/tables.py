"""Adjusted areas with intervals as tables: the columns of `summary`, and the layer `estimates`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.areas.shares import Shares, accuracy, adjusted_areas
from pipeline.areas.sources import MODEL_CARD, SAMPLE, SAMPLE_REGION, Source
from pipeline.areas.stratified import Estimates, Floats

FEW = 25
"""Reference events: of a class, below which its figures are flagged; of a place, below which it has none of its own."""
_FEW_MAPPED = 5
"""Reference events of each mapped class that a place needs to be estimated on its own."""
ALL_YEARS = "all"
INTERVAL_COLUMNS = (
    "area_ha_adjusted",
    "area_ha_low",
    "area_ha_high",
    "interval_source",
    "reference_n",
    "reference_flag",
)
_PLACE = ("unit_id", "unit_name", "loss_year")
ESTIMATE_COLUMNS = (
    "scope", "unit_id", "unit_name", "loss_year", "driver", "events", "mapped_ha", "adjusted_ha", "low_ha", "high_ha",
    "se_ha", "users_accuracy", "users_accuracy_se", "producers_accuracy", "producers_accuracy_se", "interval_source",
    "reference_n", "reference_flag", "note",
)  # fmt: skip


@dataclass(frozen=True)
class _Places:
    """D places (unit and year, or less) and what is mapped there: `areas`, `squares`, `events` [D, K] by class."""

    labels: pd.DataFrame
    areas: Floats
    squares: Floats
    events: NDArray[np.int64]


def adjusted_summary(
    summary: pd.DataFrame, events: pd.DataFrame, source: Source, names: tuple[str, ...]
) -> pd.DataFrame:
    """Fill the interval columns of `summary` (see `units.summary_table`) for events with a driver.

    A driver that is not mapped in a unit and year, but is there by the reference labels, gets a row with 0 ha mapped,
    so that the adjusted areas of a unit and year add up to what is mapped there. no_imagery and failed keep nothing.
    """
    rows = _long(_places(events, list(_PLACE), names), source, names)
    rows = rows[(rows["events"] > 0) | (rows["area_ha_adjusted"] > 0)]
    keys = [*_PLACE, "driver"]
    found = rows[[*keys, *INTERVAL_COLUMNS]]
    out = summary.drop(columns=list(INTERVAL_COLUMNS)).merge(found, on=keys, how="outer", sort=True)
    out["events"] = out["events"].fillna(0).astype(np.int64)
    out["area_ha"] = out["area_ha"].fillna(0.0)
    out["reference_n"] = out["reference_n"].astype("Int64")
    return out


def estimates_table(events: pd.DataFrame, source: Source | None, names: tuple[str, ...]) -> pd.DataFrame:
    """The layer `estimates`: the region in all and by year, each unit over all years; empty without a source.

    Each row is estimated for itself: intervals do not add up, and neither do areas of places estimated on their own.
    """
    if source is None or not len(events):
        return pd.DataFrame(columns=list(ESTIMATE_COLUMNS))
    scopes: tuple[tuple[str, list[str]], ...] = (
        ("region", []),
        ("region", ["loss_year"]),
        ("unit", ["unit_id", "unit_name"]),
    )
    out = pd.concat([_scope(events, scope, by, source, names) for scope, by in scopes], ignore_index=True)
    out = out.rename(columns={"area_ha_adjusted": "adjusted_ha", "area_ha_low": "low_ha", "area_ha_high": "high_ha"})[
        list(ESTIMATE_COLUMNS)
    ]
    numbers = ["mapped_ha", "adjusted_ha", "low_ha", "high_ha", "se_ha", *_ACCURACY]
    kinds: dict[str, Any] = {**dict.fromkeys(numbers, float), "events": np.int64, "reference_n": "Int64"}
    return out.astype(kinds)


def _scope(events: pd.DataFrame, scope: str, by: list[str], source: Source, names: tuple[str, ...]) -> pd.DataFrame:
    rows = _long(_places(events, by, names), source, names)
    rows = rows[(rows["events"] > 0) | (rows["area_ha_adjusted"] > 0)]
    without = events[events["driver"].isna()]
    if len(without):
        keys = [*by, "status"]
        rest = without.groupby(keys, as_index=False).agg(events=("area_ha", "size"), mapped_ha=("area_ha", "sum"))
        rows = pd.concat([rows.astype(object), rest.rename(columns={"status": "driver"}).astype(object)])
    rows = rows.assign(scope=scope, note=source.note if scope == "region" else None)
    for column in ("unit_id", "unit_name"):
        if column not in rows:
            rows[column] = None
    rows["loss_year"] = rows["loss_year"].astype(str) if "loss_year" in by else ALL_YEARS
    return rows.astype(object)


def _places(events: pd.DataFrame, by: list[str], names: tuple[str, ...]) -> _Places:
    known = events[events["driver"].notna()]
    grouped = known.groupby(by, sort=True) if by else None
    place = grouped.ngroup().to_numpy() if grouped is not None else np.zeros(len(known), np.int64)
    labels = grouped.size().reset_index()[by] if grouped is not None else pd.DataFrame(index=range(min(len(known), 1)))
    code = known["driver"].map({name: k for k, name in enumerate(names)}).to_numpy(np.int64)
    area = known["area_ha"].to_numpy(float)
    shape = (len(labels), len(names))
    areas, squares, count = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    np.add.at(areas, (place, code), area)
    np.add.at(squares, (place, code), area**2)
    np.add.at(count, (place, code), 1)
    return _Places(labels, areas, squares, count)


def _long(places: _Places, source: Source, names: tuple[str, ...]) -> pd.DataFrame:
    """One row for each place and driver; areas, interval, source, flag, and accuracy where the shares are its own."""
    size = (len(places.labels), len(names))
    whole = places.labels.shape[1] == 0
    kind = MODEL_CARD if source.kind == "model_card" else SAMPLE if whole else SAMPLE_REGION
    elsewhere = kind != SAMPLE
    made = _estimated(source.shares, places.areas, places.squares if elsewhere else None)
    table = {name: np.array(column, dtype=object) for name, column in made.items()}
    table["interval_source"] = np.full(size, kind, object)
    for name in _ACCURACY:
        table[name] = np.full(size, None, object)
    own = {0: source.shares} if whole and size[0] else {}
    for place, shares in ({} if whole else _own_shares(places, source, len(names))).items():
        own[place] = shares
        for name, column in _estimated(shares, places.areas[place : place + 1], None).items():
            table[name][place] = column[0]
        table["interval_source"][place] = SAMPLE
    for place, shares in own.items():
        measured = accuracy(shares, places.areas[place])
        for name, values in zip(_ACCURACY, _flat(measured.users, measured.producers), strict=True):
            table[name][place] = values
    out = places.labels.loc[places.labels.index.repeat(len(names))].reset_index(drop=True)
    out["driver"] = np.tile(np.array(names, dtype=object), size[0])
    out["events"], out["mapped_ha"] = places.events.ravel(), places.areas.ravel()
    for name, column in table.items():
        out[name] = column.ravel()
    floats = ["area_ha_adjusted", "area_ha_low", "area_ha_high", "se_ha", *_ACCURACY]
    out[floats] = out[floats].astype(float)
    out.loc[out["area_ha_adjusted"].isna(), "interval_source"] = None
    return out


_ACCURACY = ("users_accuracy", "users_accuracy_se", "producers_accuracy", "producers_accuracy_se")


def _flat(*measures: Estimates) -> list[Floats]:
    return [values for measure in measures for values in (measure.value, measure.se)]


def _estimated(shares: Shares, areas: Floats, squares: Floats | None) -> dict[str, NDArray[np.object_ | np.float64]]:
    """Adjusted areas [D, K] with interval, standard error, number of reference events and flag.

    No interval is given for a class without reference events, nor where no disagreement was seen at all and not
    everything was looked at: both would be a certainty that few labels cannot give.
    """
    made = adjusted_areas(shares, areas, squares)
    whole = areas.sum(axis=1, keepdims=True)
    low, high = made.interval
    reference_n = np.broadcast_to(shares.reference_n, made.value.shape)
    unsaid = (made.se <= 1e-12 * whole) & (not shares.census)
    blank = np.isnan(made.value) | (reference_n == 0) | unsaid
    flag = np.full(made.value.shape, None, object)
    flag[reference_n < FEW] = "few"
    flag[unsaid] = "no_disagreement"
    flag[np.isnan(made.value) | (reference_n == 0)] = "none"
    return {
        "area_ha_adjusted": made.value,
        "area_ha_low": np.where(blank, np.nan, np.maximum(low, 0.0)),
        "area_ha_high": np.where(blank, np.nan, np.minimum(high, whole)),
        "se_ha": np.where(blank, np.nan, made.se),
        "reference_n": np.array(reference_n, dtype=object),
        "reference_flag": flag,
    }


def _own_shares(places: _Places, source: Source, classes: int) -> dict[int, Shares]:
    """Shares of the places that have reference events enough of their own."""
    sample = source.sample
    if sample is None:
        return {}
    columns = {"unit_id": sample.unit_id, "loss_year": sample.loss_year}
    inside = {name: values for name, values in columns.items() if name in places.labels}
    units = pd.DataFrame(inside)
    units["known"] = sample.mapped >= 0
    counts = units[units["known"]].groupby(list(inside)).size()
    out = {}
    for key in counts.index[counts >= FEW]:
        values = key if isinstance(key, tuple) else (key,)
        at = np.logical_and.reduce([places.labels[n] == v for n, v in zip(inside, values, strict=True)])
        own = np.logical_and.reduce([units[n] == v for n, v in zip(inside, values, strict=True)])
        for place in np.flatnonzero(at):
            shares = sample.shares(classes, own)
            mapped = places.areas[place] > 0
            if (shares.known & ((shares.mapped_n >= _FEW_MAPPED) | shares.census))[mapped].all():
                out[int(place)] = shares
    return out
