"""The numbers of the report: sums over events by driver, year and unit. Areas are mapped areas in hectares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.labels import LabelScheme
from pipeline.product.layers import WITHOUT_DRIVER
from pipeline.product.report.plots import Bar, Part
from pipeline.product.styles import event_categories

if TYPE_CHECKING:
    import geopandas as gpd

    from pipeline.product.write import ProductInputs

SHORT = {"no_imagery": "No clear imagery", "failed": "Failed"}


@dataclass(frozen=True)
class DriverRow:
    """One line of the table of drivers: mapped `area`, `share` of all loss 0..1, `years` area per loss year."""

    name: str
    title: str
    colour: str
    events: int
    area: float
    share: float
    uncertain: float
    years: tuple[float, ...]


@dataclass(frozen=True)
class Seen:
    """How much of the loss of one year or unit was answered: mapped areas by status, and the number of events."""

    label: str
    events: int
    classified: float
    uncertain: float
    no_imagery: float
    failed: float

    @property
    def total(self) -> float:
        """Return all loss."""
        return self.classified + self.uncertain + self.no_imagery + self.failed

    @property
    def share(self) -> float | None:
        """Return the share seen in clear imagery 0..1, None where there is no loss."""
        return (self.classified + self.uncertain) / self.total if self.total else None


def driver_rows(inputs: ProductInputs) -> list[DriverRow]:
    """Return one row per class, then no imagery and failed, in the scheme's order."""
    events, years = inputs.events, sorted(inputs.years)
    total = float(events["area_ha"].sum())
    missing = events["status"].isin(WITHOUT_DRIVER)
    wanted = [(c.name, c.title, ~missing & (events["driver"] == c.name)) for c in inputs.card.scheme]
    wanted += [(name, SHORT[name], events["status"] == name) for name in WITHOUT_DRIVER]
    colours, rows = _colours(inputs.card.scheme), []
    for name, title, chosen in wanted:
        part = events[chosen.fillna(False).astype(bool)]
        area = float(part["area_ha"].sum())
        unsure = float(part.loc[part["status"] == "uncertain", "area_ha"].sum())
        by_year = part["area_ha"].groupby(part["loss_year"]).sum()
        by_years = tuple(float(by_year.get(year, 0.0)) for year in years)
        rows.append(
            DriverRow(name, title, colours[name], len(part), area, area / total if total else 0.0, unsure, by_years)
        )
    return rows


def seen_by(events: pd.DataFrame, keys: pd.Series, labels: Mapping[Any, str]) -> list[Seen]:
    """Return how much was seen for each key of `labels`, in that order."""
    area = events["area_ha"].groupby([keys.to_numpy(), events["status"].to_numpy()]).sum().unstack(fill_value=0)
    count = keys.value_counts()
    rows = []
    for key, label in labels.items():
        own: Mapping[str, float] = area.loc[key].to_dict() if key in area.index else {}
        sums = [float(own.get(status, 0.0)) for status in ("classified", "uncertain", *WITHOUT_DRIVER)]
        rows.append(Seen(label, int(count.get(key, 0)), *sums))
    return rows


def seen_bars(rows: list[Seen], scheme: LabelScheme, *, shares: bool = False) -> list[Bar]:
    """Return a bar for each row: seen, no imagery, failed; in hectares or percent of the row."""
    colours = _colours(scheme)
    bars = []
    for row in rows:
        factor = (100 / row.total if row.total else 0.0) if shares else 1.0
        parts = (
            Part("seen, driver given", row.classified * factor, SEEN_COLOUR),
            Part("seen, driver uncertain", row.uncertain * factor, SEEN_COLOUR, hatched=True),
            Part(SHORT["no_imagery"], row.no_imagery * factor, colours["no_imagery"]),
            Part(SHORT["failed"], row.failed * factor, colours["failed"]),
        )
        bars.append(Bar(row.label, parts))
    return bars


SEEN_COLOUR = "#2166ac"


def histogram(events: pd.DataFrame, scheme: LabelScheme) -> list[Bar]:
    """Return ten columns of confidence, events stacked by driver."""
    known = events[events["confidence"].notna()]
    bins = np.clip((known["confidence"].to_numpy(float) * 10).astype(int), 0, 9)
    names = known["driver"].to_numpy(object)
    return [
        Bar(
            f"{10 * k}\u2013{10 * (k + 1)}",
            tuple(Part(c.title, float(((bins == k) & (names == c.name)).sum()), c.colour) for c in scheme),
        )
        for k in range(10)
    ]


def ranked_units(units: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return units in the report's order: those with most loss first."""
    return units.sort_values(["loss_ha", "unit_id"], ascending=[False, True], ignore_index=True)


def unit_rows(inputs: ProductInputs, most: int) -> list[dict[str, Any]]:
    """Return the units with most loss as records, with `seen`, the share seen in clear imagery, and `placed`."""
    units = ranked_units(inputs.units).head(most)
    table = pd.DataFrame(units.drop(columns="geometry")).assign(placed=units.geometry.notna().to_numpy())
    rows: list[dict[str, Any]] = []
    for record in table.to_dict("records"):
        unit: dict[str, Any] = {str(key): (None if pd.isna(value) else value) for key, value in record.items()}
        lost, unseen = unit["loss_ha"], unit["no_imagery_ha"] + unit["failed_ha"]
        rows.append({**unit, "seen": (lost - unseen) / lost if lost else None})
    return rows


@dataclass(frozen=True)
class OverlayRow:
    """One overlay: mapped hectares `inside` of each class and of `all` loss, and `unknown`, where it says nothing.

    `state` says whether it served, and why not.
    """

    title: str
    date: str
    source: str
    state: str
    inside: tuple[float, ...]
    all: float
    unknown: float


def overlay_rows(inputs: ProductInputs, run: Mapping[str, object]) -> list[OverlayRow]:
    """Return what became of each overlay of the run, available or not, in the order of the record."""
    listed = run.get("overlays")
    rows, events = [], inputs.events
    for use in listed if isinstance(listed, list) else []:
        name = str(use.get("name"))
        share = pd.to_numeric(events[name], errors="coerce") if name in events else pd.Series(np.nan, events.index)
        inside = (events["area_ha"] * share.astype(float)).fillna(0.0)
        by_class = inside.groupby(events["driver"].fillna("")).sum()
        reason = str(use.get("reason") or "")
        rows.append(
            OverlayRow(
                title=str(use.get("title") or name),
                date=str(use.get("date") or ""),
                source=str(use.get("source") or use.get("file") or ""),
                state=": ".join(part for part in (str(use.get("status") or ""), reason) if part),
                inside=tuple(float(by_class.get(item.name, 0.0)) for item in inputs.card.scheme),
                all=float(inside.sum()),
                unknown=float(events.loc[share.isna(), "area_ha"].sum()),
            )
        )
    return rows


def cutoff_rows(events: pd.DataFrame) -> list[tuple[str, int, float]]:
    """Return (what, events, mapped hectares) of loss after 2020 by whether it is conversion to agriculture."""
    if not {"eudr_after_cutoff", "eudr_conversion"} <= set(events.columns):
        return []
    after = events["eudr_after_cutoff"].fillna(False).astype(bool)
    conversion = events["eudr_conversion"].astype("boolean")
    kinds = (
        ("Loss after 31 December 2020", after),
        ("of which conversion to agriculture", after & conversion.fillna(False).astype(bool)),
        ("of which another driver", after & (~conversion).fillna(False).astype(bool)),
        ("of which not known", after & conversion.isna()),
    )
    return [(title, int(chosen.sum()), float(events.loc[chosen, "area_ha"].sum())) for title, chosen in kinds]


def unit_bars(units: list[dict[str, Any]], scheme: LabelScheme) -> list[Bar]:
    """Return a bar of mapped areas for each unit: drivers, no imagery, failed."""
    colours = _colours(scheme)
    kinds = [(c.name, c.title) for c in scheme] + list(SHORT.items())
    return [
        Bar(str(unit["unit_name"]), tuple(Part(title, unit[f"{name}_ha"], colours[name]) for name, title in kinds))
        for unit in units
    ]


def driver_parts(row: DriverRow) -> tuple[Part, ...]:
    """Return the bar of one driver: the sure part, then the uncertain part hatched."""
    sure = Part("classified", row.area - row.uncertain, row.colour)
    return (sure, Part("uncertain", row.uncertain, row.colour, hatched=True)) if row.uncertain else (sure,)


def year_bars(rows: list[DriverRow], years: list[int]) -> list[Bar]:
    """Return a bar of mapped areas for each year: drivers, no imagery, failed."""
    return [Bar(str(year), tuple(Part(r.title, r.years[k], r.colour) for r in rows)) for k, year in enumerate(years)]


def records(frame: pd.DataFrame, key: str) -> list[dict[str, Any]]:
    """Return rows as dictionaries without geometry, None for missing values, in the order of `key`."""
    table = pd.DataFrame(frame).sort_values(key)
    rows = table.drop(columns="geometry", errors="ignore").to_dict("records")
    return [{str(k): (None if pd.isna(v) else v) for k, v in row.items()} for row in rows]


def _colours(scheme: LabelScheme) -> dict[str, str]:
    """Return the colour of each class, of no_imagery and of failed, as the styles have them."""
    return {c.value.partition(":")[2]: c.colour for c in event_categories(scheme)}
