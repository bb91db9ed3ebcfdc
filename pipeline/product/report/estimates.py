"""Estimated areas for the page: the layer `estimates`, as rows and plots. Mapped areas stand beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from pipeline.labels import LabelScheme
from pipeline.product.layers import REFERENCE_FLAGS
from pipeline.product.report.plots import Bar, Interval, Part, bars

if TYPE_CHECKING:
    from pipeline.product.write import ProductInputs

_ALL = "all"  # value of `loss_year` in rows over all years


@dataclass(frozen=True)
class Row:
    """One estimate: mapped and adjusted hectares, the 95 % interval, accuracies 0..1 with standard errors."""

    title: str
    colour: str
    events: int
    mapped: float
    adjusted: float | None
    interval: Interval | None
    users: tuple[float, float] | None
    producers: tuple[float, float] | None
    reference_n: int | None
    flag: str


@dataclass(frozen=True)
class Estimates:
    """The estimates of a product; `notes` say what they rest on. Empty where nothing allows any."""

    table: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Return whether there is any adjusted area."""
        return bool(self.table["adjusted_ha"].notna().any())

    def of_driver(self, name: str) -> Interval | None:
        """Return the region's adjusted area of a driver over all years with its interval."""
        found = self._region(_ALL)
        return _interval(found[found["driver"] == name].to_dict("records"))

    def rows(self, scheme: LabelScheme) -> list[Row]:
        """Return the region's estimates over all years, one for each class that has one."""
        return _rows(self._region(_ALL), scheme)

    def by_year(self, scheme: LabelScheme, years: Sequence[int]) -> list[tuple[str, list[Row | None]]]:
        """Return (year, one estimate or None for each class)."""
        return [(str(year), _aligned(self._region(str(year)), scheme)) for year in years]

    def by_unit(self, scheme: LabelScheme, units: Mapping[Any, str]) -> list[tuple[str, list[Row | None]]]:
        """Return (unit, one estimate or None for each class) over all years; `units` are names by unit_id."""
        table = self.table[self.table["scope"] == "unit"]
        keys = table["unit_id"].astype(str)
        return [(name, _aligned(table[keys == str(key)], scheme)) for key, name in units.items()]

    def _region(self, year: str) -> pd.DataFrame:
        table = self.table
        return table[(table["scope"] == "region") & (table["loss_year"].astype(str) == year)]


def read(inputs: ProductInputs) -> Estimates:
    """Return the estimates of a product."""
    notes = inputs.estimates["note"].dropna().astype(str)
    return Estimates(inputs.estimates, tuple(dict.fromkeys(notes)))


def interval_plots(
    places: Sequence[tuple[str, list[Row | None]]], scheme: LabelScheme, axis: str
) -> list[tuple[str, Markup]]:
    """Return (class title, plot) for each class with an interval anywhere: mapped area and interval of each place."""
    found = []
    for k, item in enumerate(scheme):
        rows = [
            Bar(label, (Part("mapped", row.mapped, item.colour),) if row else (), row.interval if row else None)
            for label, row in ((label, own[k]) for label, own in places)
        ]
        if any(row.interval for row in rows):
            found.append((item.title, bars(f"{item.title}: mapped area and 95 % interval", rows, axis)))
    return found


def _aligned(table: pd.DataFrame, scheme: LabelScheme) -> list[Row | None]:
    own = {row.title: row for row in _rows(table, scheme)}
    return [own.get(item.title) for item in scheme]


def _rows(table: pd.DataFrame, scheme: LabelScheme) -> list[Row]:
    records = {record["driver"]: record for record in table.to_dict("records")}
    rows = []
    for item in scheme:
        if item.name not in records:
            continue
        record = {str(key): (None if pd.isna(value) else value) for key, value in records[item.name].items()}
        count = record["reference_n"]
        rows.append(
            Row(
                title=item.title,
                colour=item.colour,
                events=int(record["events"] or 0),
                mapped=float(record["mapped_ha"] or 0.0),
                adjusted=record["adjusted_ha"],
                interval=_interval([record]),
                users=_measure(record, "users_accuracy"),
                producers=_measure(record, "producers_accuracy"),
                reference_n=None if count is None else int(count),
                flag=REFERENCE_FLAGS.get(str(record["reference_flag"]), ""),
            )
        )
    return rows


def _measure(record: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    value, error = record[name], record[f"{name}_se"]
    return None if value is None or error is None else (float(value), float(error))


def _interval(records: Sequence[Mapping[Any, Any]]) -> Interval | None:
    for record in records:
        values = [record[name] for name in ("adjusted_ha", "low_ha", "high_ha")]
        if not any(pd.isna(value) for value in values):
            return Interval(*map(float, values))
    return None
