"""What the page needs to draw its map: the packed events and borders, the legend, and the static picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np

from pipeline.product import maps
from pipeline.product.layers import STATUSES
from pipeline.product.report.mapdata import encode_borders, encode_events
from pipeline.product.report.tables import ranked_units
from pipeline.product.styles import Category, event_categories

if TYPE_CHECKING:
    from pipeline.product.write import ProductInputs

MOST_CHARACTERS = 10_000_000  # of the packed events; pictures, tables and the static map need some 3 million more


def map_view(inputs: ProductInputs) -> dict[str, Any] | None:
    """Return the parts of the map, None where there is nothing that has a place."""
    categories = event_categories(inputs.card.scheme)
    units, events = ranked_units(inputs.units), inputs.events
    frame = maps.frame_of(events, units) or maps.frame_of(inputs.blocks)
    if frame is None:
        return None
    rows = {unit: k for k, unit in enumerate(units["unit_id"])}
    data = encode_events(events, frame, categories, rows, MOST_CHARACTERS)
    unfinished = inputs.blocks[inputs.blocks["status"] != "done"]
    codes = maps.event_codes(events, categories)
    return {
        "frame": frame,
        "data": data,
        "borders": encode_borders(units, frame),
        "blocks": encode_borders(unfinished, frame),
        "left_out": len(events) - data.shown,
        "picture": maps.picture(events, categories, frame),
        "static_borders": maps.borders(units, frame),
        "static_blocks": maps.borders(unfinished, frame),
        "labels": maps.labels(units, frame),
        "scale": frame.scale_bar(),
        "legend": [category for k, category in enumerate(categories, 1) if (codes == k).any()],
        "drivers": _tally(events, "driver"),
        "statuses": _tally(events, "status"),
        "config": {
            "bounds": [frame.west, frame.south, frame.east, frame.north],
            "first_year": data.first_year,
            "categories": [_category(category) for category in categories],
            "units": _names(units, frame),
        },
    }


def _tally(events: gpd.GeoDataFrame, column: str) -> dict[str, int]:
    return {str(key): int(count) for key, count in events[column].value_counts().items()}


def _category(category: Category) -> dict[str, Any]:
    """Return a category as the page's script reads it: its look, and what it says of an event."""
    conditions: Mapping[str, str] = dict(category.conditions)
    return {
        "colour": category.colour,
        "hatched": category.pattern == "hatch",
        "driver": category.title.removesuffix(", uncertain") if "driver" in conditions else "",
        "status": STATUSES[conditions["status"]].partition(":")[0],
        "driver_key": conditions.get("driver", ""),
        "status_key": conditions["status"],
    }


def _names(units: gpd.GeoDataFrame, frame: maps.Frame) -> list[dict[str, Any]]:
    """Return name and place (millionths of a degree, None without geometry) of each unit."""
    return [
        {"name": str(name), "x": None, "y": None}
        if np.isnan(x)
        else {"name": str(name), "x": round(x * 1e6), "y": round(y * 1e6)}
        for name, (x, y) in zip(units["unit_name"], maps.inside(units, frame).tolist(), strict=True)
    ]
