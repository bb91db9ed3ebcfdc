"""`report.html`: one page that opens without internet, with no scripts, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.labels import LabelScheme
from pipeline.product import maps
from pipeline.product.layers import WITHOUT_DRIVER
from pipeline.product.record import RUN_FILE, VECTOR_FILE, flatten_record, write_file
from pipeline.product.styles import Category, event_categories

if TYPE_CHECKING:
    import geopandas as gpd

    from pipeline.product.write import ProductInputs

_MOST_UNITS = 300
_NOTHING = "\u2013"  # en dash
_SHORT = {"no_imagery": "No clear imagery", "failed": "Failed"}


@dataclass(frozen=True)
class DriverRow:
    """One line of the table of drivers: areas in hectares, `share` of all loss 0..1, `years` area per loss year."""

    title: str
    colour: str
    events: int
    area: float
    share: float
    uncertain: float
    years: tuple[float, ...]


def write_report(path: Path, inputs: ProductInputs, run: Mapping[str, object]) -> None:
    """Write the report of a product; `run` is the record without timings. Raises OSError or ProductError."""
    write_file(path, render(inputs, run).encode("utf-8"))


def render(inputs: ProductInputs, run: Mapping[str, object]) -> str:
    """Return the report as HTML text; works for any number of events, none included."""
    scheme, events = inputs.card.scheme, inputs.events
    categories = event_categories(scheme)
    total = float(events["area_ha"].sum())
    seen = float(events.loc[~events["status"].isin(WITHOUT_DRIVER), "area_ha"].sum())
    scenes, blocks = inputs.scenes, inputs.blocks
    used = scenes["used"].fillna(False).astype(bool)
    units = inputs.units.sort_values("loss_ha", ascending=False)
    context: dict[str, Any] = {
        "region": inputs.region,
        "years": sorted(inputs.years),
        "card": inputs.card,
        "run": run,
        "simulated": bool(run.get("simulated", False)) or inputs.card.simulated,
        "complete": bool(run.get("complete", True)),
        "warnings": _texts(run.get("warnings")),
        "total": total,
        "seen": seen / total if total else None,
        "events": len(events),
        "statuses": events["status"].value_counts().to_dict(),
        "drivers": driver_rows(inputs),
        "units": units.head(_MOST_UNITS).to_dict("records"),
        "units_left": max(len(units) - _MOST_UNITS, 0),
        "classes": list(scheme),
        "scenes_used": int(used.sum()),
        "scenes_skipped": int((~used).sum()),
        "remarks": _records(scenes[~used | scenes["reason"].notna()], "scene_id"),
        "unfinished": _records(blocks[blocks["status"] != "done"], "block_id"),
        "blocks": len(blocks),
        "histogram": histogram(events, scheme),
        "intervals": bool(inputs.summary["area_ha_low"].notna().any()),
        "map": _map(inputs, categories),
        "details": list(flatten_record(run)),
        "files": {"vector": VECTOR_FILE, "run": RUN_FILE},
    }
    return _environment().get_template("report.html").render(context)


def driver_rows(inputs: ProductInputs) -> list[DriverRow]:
    """Return one row per class, then no imagery and failed, in the scheme's order; areas in hectares."""
    events = inputs.events
    total = float(events["area_ha"].sum())
    colours = {c.value.removeprefix("status:"): c.colour for c in event_categories(inputs.card.scheme)}
    missing = events["status"].isin(WITHOUT_DRIVER)
    wanted = [(c.name, c.title, c.colour, ~missing & (events["driver"] == c.name)) for c in inputs.card.scheme]
    wanted += [(name, _SHORT[name], colours[name], events["status"] == name) for name in WITHOUT_DRIVER]
    rows = []
    for _, title, colour, chosen in wanted:
        part = events[chosen.fillna(False).astype(bool)]
        area = float(part["area_ha"].sum())
        unsure = float(part.loc[part["status"] == "uncertain", "area_ha"].sum())
        years = tuple(float(part.loc[part["loss_year"] == y, "area_ha"].sum()) for y in sorted(inputs.years))
        rows.append(DriverRow(title, colour, len(part), area, area / total if total else 0.0, unsure, years))
    return rows


def histogram(events: pd.DataFrame, scheme: LabelScheme) -> list[tuple[str, int, list[tuple[str, float]]]]:
    """Return ten bars of confidence: (label, events, [(colour, share of the tallest bar) per class])."""
    known = events[events["confidence"].notna()]
    bins = np.clip((known["confidence"].to_numpy(float) * 10).astype(int), 0, 9)
    counts = np.bincount(bins, minlength=10)
    tallest = max(int(counts.max()), 1)
    names = known["driver"].to_numpy(object)
    return [
        (
            f"{10 * k} to {10 * (k + 1)} %",
            int(counts[k]),
            [(c.colour, float(((bins == k) & (names == c.name)).sum()) / tallest) for c in scheme],
        )
        for k in range(10)
    ]


def _map(inputs: ProductInputs, categories: tuple[Category, ...]) -> dict[str, Any] | None:
    events: gpd.GeoDataFrame = inputs.events
    frame = maps.frame_of(events, inputs.blocks) or maps.frame_of(inputs.units)
    if frame is None:
        return None
    present = set(maps.event_codes(events, categories).tolist())
    return {
        "frame": frame,
        "picture": maps.picture(events, categories, frame),
        "units": maps.borders(inputs.units, frame),
        "blocks": maps.borders(inputs.blocks, frame),
        "labels": maps.labels(inputs.units, frame),
        "scale": frame.scale_bar(),
        "legend": [category for k, category in enumerate(categories, 1) if k in present],
    }


def _records(frame: pd.DataFrame, key: str) -> list[dict[str, Any]]:
    table = pd.DataFrame(frame).sort_values(key)
    rows = table.drop(columns="geometry", errors="ignore").to_dict("records")
    return [{str(k): (None if pd.isna(v) else v) for k, v in row.items()} for row in rows]


def _texts(value: object) -> list[str]:
    if not value:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _number(value: float | None, decimals: int = 1) -> str:
    """Return a number with thin spaces between thousands, a dash for nothing."""
    if value is None or pd.isna(value):
        return _NOTHING
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def _percent(value: float | None) -> str:
    return _NOTHING if value is None or pd.isna(value) else f"{100 * value:.1f}\u202f%"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.product"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent}
    return environment
