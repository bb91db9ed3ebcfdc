"""The page: everything the template says, computed from the inputs of a product and the run's record."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.pictures import BEFORE_ONLY
from pipeline.product.layers import STATUSES
from pipeline.product.record import RUN_FILE, VECTOR_FILE, flatten_record, write_file
from pipeline.product.report import estimates, mapview, plots, tables
from pipeline.product.report.gallery import gallery
from pipeline.product.report.text import number, percent

if TYPE_CHECKING:
    from pipeline.product.write import ProductInputs

_MOST_UNITS = 300  # rows of the table of units; the layer `units` has all
_PLOTTED_UNITS = 20
_PLOTTED_YEARS = 25
_GALLERY_CHARACTERS = 2_000_000
_LONGEST_VALUE = 2_000  # characters of one entry of the run record: an outline of a country is longer than the page
_STYLE, _SCRIPTS = "report.css", ("report_data.js", "report_map.js")


def write_report(path: Path, inputs: ProductInputs, run: Mapping[str, object]) -> None:
    """Write the report of a product; `run` is the record without timings. Raises OSError or ProductError."""
    write_file(path, render(inputs, run).encode("utf-8"))


def render(inputs: ProductInputs, run: Mapping[str, object]) -> str:
    """Return the report as HTML text; works for any number of events, none included.

    Equal inputs give equal text. The page allows itself one script and pictures inside itself, nothing else.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    context: dict[str, Any] = {
        "region": inputs.region,
        "years": sorted(inputs.years),
        "card": inputs.card,
        "run": run,
        "style": Markup(_source(_STYLE)),
        "script": Markup(script),
        "script_digest": digest,
        "classes": list(inputs.card.scheme),
        "statuses": {key: text.partition(":")[0] for key, text in STATUSES.items()},
        "files": {"vector": VECTOR_FILE, "run": RUN_FILE},
        **_state(inputs, run),
        **_areas(inputs),
        **_confidence(inputs, run),
        **_work(inputs),
        "overlays": tables.overlay_rows(inputs, run),
        "cutoff": tables.cutoff_rows(inputs.events),
        "map": mapview.map_view(inputs),
        "gallery": gallery(inputs.chips, inputs.events, inputs.card.scheme, _GALLERY_CHARACTERS),
        "facts": _facts(inputs, run),
        "details": [(key, _shortened(value)) for key, value in flatten_record(run)],
    }
    return _environment().get_template("report.html").render(context)


def _state(inputs: ProductInputs, run: Mapping[str, object]) -> dict[str, Any]:
    """Return how complete and how sure the product is."""
    events = inputs.events
    everything = tables.seen_by(events, pd.Series("all", index=events.index), {"all": "All loss"})
    return {
        "simulated": bool(run.get("simulated", False)) or inputs.card.simulated,
        "complete": bool(run.get("complete", True)),
        "warnings": _texts(run.get("warnings")),
        "events": len(events),
        "seen": everything[0],
        "counts": {status: int((events["status"] == status).sum()) for status in STATUSES},
        "awaiting": int(events["awaiting"].sum()),
        "headline": next((s for s in inputs.card.scores if s.name == "accuracy"), next(iter(inputs.card.scores), None)),
        "state_plot": plots.bars(
            "Share of the loss area by status",
            tables.seen_bars(everything, inputs.card.scheme, shares=True),
            "Percent of the loss area",
            100,
            figures=False,
        ),
    }


def _areas(inputs: ProductInputs) -> dict[str, Any]:
    """Return the tables and plots of areas: mapped ones, and estimates with intervals where there are any."""
    scheme, years, events = inputs.card.scheme, sorted(inputs.years), inputs.events
    drivers, known = tables.driver_rows(inputs), estimates.read(inputs)
    units = tables.unit_rows(inputs, _MOST_UNITS)
    plotted = units[:_PLOTTED_UNITS]
    by_year = tables.seen_by(events, events["loss_year"], {year: str(year) for year in years})
    labels = {unit["unit_id"]: str(unit["unit_name"]) for unit in plotted}
    by_unit = tables.seen_by(events, events["unit_id"], labels)
    year_estimates = known.by_year(scheme, years)
    unit_estimates = known.by_unit(scheme, labels)
    rows = [plots.Bar(row.title, tables.driver_parts(row), known.of_driver(row.name)) for row in drivers]
    return {
        "drivers": drivers,
        "estimates": known,
        "estimate_rows": known.rows(scheme),
        "year_estimates": year_estimates,
        "unit_estimates": unit_estimates,
        "year_interval_plots": estimates.interval_plots(year_estimates[-_PLOTTED_YEARS:], scheme, "Hectares"),
        "unit_interval_plots": estimates.interval_plots(unit_estimates, scheme, "Hectares"),
        "units": units,
        "units_left": max(len(inputs.units) - len(units), 0),
        "plotted": len(plotted),
        "by_year": by_year,
        "driver_plot": plots.bars("Area by driver", rows, "Hectares"),
        "year_plot": plots.bars("Mapped area by year and driver", tables.year_bars(drivers, years), "Hectares, mapped"),
        "unit_plot": plots.bars("Mapped area by unit, driver", tables.unit_bars(plotted, scheme), "Hectares, mapped"),
        "year_seen_plot": plots.bars(
            "Loss seen by year", tables.seen_bars(by_year, scheme), "Hectares of loss, mapped", figures=False
        ),
        "unit_seen_plot": plots.bars(
            "Loss seen by unit",
            tables.seen_bars(by_unit, scheme, shares=True),
            "Percent of the unit's loss",
            100,
            figures=False,
        ),
        "seen_colour": tables.SEEN_COLOUR,
    }


def _confidence(inputs: ProductInputs, run: Mapping[str, object]) -> dict[str, Any]:
    below = _inner(run, "config", "output", "uncertain_below")
    mark = (float(below), f"uncertain below {percent(below, 0)}") if isinstance(below, int | float) else None
    rows = tables.histogram(inputs.events, inputs.card.scheme)
    scores = [plots.Bar(s.name, (), plots.Interval(s.value, s.low, s.high)) for s in inputs.card.scores]
    return {
        "histogram": rows,
        "confidence_plot": plots.columns("Events by confidence and driver", rows, "Confidence in percent", mark),
        "score_plot": plots.bars("Scores of the model with 95 % intervals", scores, "Score", 1.0),
    }


def _work(inputs: ProductInputs) -> dict[str, Any]:
    """Return what became of scenes and blocks."""
    scenes, blocks = inputs.scenes, inputs.blocks
    used = scenes["used"].fillna(False).astype(bool)
    pictures = ~used & (scenes["reason"] == BEFORE_ONLY).fillna(False).astype(bool)
    return {
        "scenes_used": int(used.sum()),
        "scenes_skipped": int((~used & ~pictures).sum()),
        "scenes_for_pictures": int(pictures.sum()),
        "scenes_seen": tables.records(scenes[used & scenes["reason"].isna()], "scene_id"),
        "remarks": tables.records(scenes[~used | scenes["reason"].notna()], "scene_id"),
        "unfinished": tables.records(blocks[blocks["status"] != "done"], "block_id"),
        "blocks": len(blocks),
    }


def _facts(inputs: ProductInputs, run: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return what was run in a few lines; what the record does not hold is left out."""
    years = sorted(inputs.years)
    grid = _inner(run, "grid", "crs"), _inner(run, "grid", "resolution")
    rows = [
        ("Region", inputs.region),
        ("Loss years", ", ".join(map(str, years))),
        ("Loss data", _inner(run, "inputs", "loss")),
        ("Smallest event (ha)", _inner(run, "config", "loss", "min_area_ha")),
        ("Smaller patches left out", _inner(run, "counts", "events_below_min_area")),
        ("Their area (ha)", _inner(run, "counts", "below_min_area_ha")),
        ("Model", f"{inputs.card.name} {inputs.card.version}"),
        ("Image source", _inner(run, "config", "imagery", "source")),
        ("Grid", f"{grid[0]}, {grid[1]:g} m" if isinstance(grid[1], int | float) else None),
        ("Program", _inner(run, "versions", "clearcause")),
        ("Run digest", _inner(run, "digest")),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _inner(record: object, *path: str) -> Any:
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _texts(value: object) -> list[str]:
    if not value:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[:_LONGEST_VALUE]}… ({number(len(text), 0)} characters; whole in {RUN_FILE})"


def as_json(value: object) -> Markup:
    """Return JSON that is safe inside a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


@cache
def _script() -> str:
    return "".join(map(_source, _SCRIPTS))


@cache
def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.product"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "as_json": as_json}
    return environment
