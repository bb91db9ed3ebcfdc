"""The events and borders of a product as compact data for the page's map: every event with its attributes.

Events stand in Morton order, so that neighbours in the data are neighbours on the ground: that makes their differences
small and lets the page skip whole chunks that are out of sight. Where the outlines of all would be too large, the
largest events keep theirs (simplified) and the rest become squares of equal area; where even the attributes would
be, the smallest events are left to the GeoPackage. Both are counted and said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from pipeline.product import maps
from pipeline.product.report.codec import deltas, packed, signed, varints
from pipeline.product.styles import Category

if TYPE_CHECKING:
    import geopandas as gpd

MICRO = 1_000_000  # places are whole millionths of a degree, the precision of the product
_STEP = 10  # corners of outlines: 1e-5 degrees, about a metre
_TOLERANCES = (0.000135, 0.00027)  # degrees of simplification: half a Landsat pixel, one
_MOST_CORNERS = 3_000_000
_PLACE = re.compile(r"(\d{4})_([SN])(\d{2}\.\d{6})_([WE])(\d{3}\.\d{6})")
_EPOCH = pd.Timestamp("1970-01-01")


@dataclass(frozen=True)
class MapData:
    """Two packed streams (see `codec.packed`) and how many events they hold, of which so many as squares.

    `simplified`: metres by which outlines may be off, 0 where they are exact.
    """

    events: str
    outlines: str
    shown: int
    squares: int
    simplified: int
    ids_from_places: bool
    first_year: int

    @property
    def size(self) -> int:
        """Return the number of characters."""
        return len(self.events) + len(self.outlines)


def encode_events(
    events: gpd.GeoDataFrame,
    frame: maps.Frame,
    categories: tuple[Category, ...],
    units: Mapping[Any, int],
    most: int,
) -> MapData:
    """Return the events (EPSG:4326, see `pipeline.product.layers`) in at most `most` characters.

    Args:
        events: every event of the product.
        frame: extent of the map; where it passes 180 degrees so do the longitudes.
        categories: what they are drawn as; each event's category is its index, `len(categories)` for none.
        units: row of each unit_id in the page's list of units.
        most: characters to stay within.
    """
    table = events.sort_values(["area_ha", "event_id"], ascending=[False, True], ignore_index=True)
    shapes, wraps = maps.along(np.asarray(table.geometry.array), frame), frame.east > 180
    x, y, own_ids = _anchors(table)
    place = np.column_stack([np.where(wraps & (x < 0), x + 360 * MICRO, x), y])
    shown = len(table)
    while True:
        order = np.argsort(_morton(place[:shown]), kind="stable")
        part = table.iloc[order]
        attributes = packed(_attributes(part, categories, units, own_ids) | _places(place[order]))
        if len(attributes) <= 0.8 * most or not shown:
            break
        shown = int(shown * 0.75 * most / len(attributes))
    simple, tolerance = _simplified(shapes[:shown])
    area, corners = part["area_ha"].to_numpy(float), _MOST_CORNERS
    while True:
        columns, squares = _outlines(simple[order], place[order], area, corners)
        outlines = packed(columns)
        if len(attributes) + len(outlines) <= most or squares == shown:
            break
        # a tenth to spare, as text does not shrink quite in proportion; always less, so that this ends
        corners = min(corners, corners_of(columns))
        wanted = corners * 0.9 * (most - len(attributes)) / len(outlines)
        corners = int(min(wanted, corners * 0.7))
    if shown and len(attributes) + len(outlines) > most:
        return encode_events(table.head(int(shown * 0.8)), frame, categories, units, most)
    metres = 0 if squares == shown else round(tolerance * 111_320)
    return MapData(attributes, outlines, shown, squares, metres, not own_ids, _first_year(part))


def corners_of(outlines: Mapping[str, bytes]) -> int:
    """Return how many corners a set of outlines holds: each has one varint of x, whose last byte is below 128."""
    return int((np.frombuffer(outlines["dx"], np.uint8) < 128).sum())


def encode_borders(layer: gpd.GeoDataFrame, frame: maps.Frame, corners: int = 150_000) -> str:
    """Return the borders of polygons (EPSG:4326; rows without geometry have no rings), simplified to so many corners.

    Neighbours are simplified together, so that they keep their common border.
    """
    shapes = maps.along(np.asarray(layer.geometry.array), frame)
    given = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    tolerance, polygons = 0.0, shapes[given]
    while shapely.get_num_coordinates(polygons).sum() > corners and tolerance < 1:
        tolerance = tolerance * 2 or 0.0001
        polygons = shapely.coverage_simplify(shapes[given], tolerance)
    rings, owner = maps.rings(polygons)
    anchor = np.zeros((len(rings), 2), np.int64)
    count = np.zeros(len(shapes), np.int64)
    count[given] = np.bincount(owner, minlength=int(given.sum()))
    return packed({"rings": varints(count), **_corners(rings, np.arange(len(rings)), anchor)})


def _places(place: np.ndarray) -> dict[str, bytes]:
    return {"x": deltas(place[:, 0]), "y": deltas(place[:, 1])}


def _attributes(
    events: gpd.GeoDataFrame, categories: tuple[Category, ...], units: Mapping[Any, int], own_ids: bool
) -> dict[str, bytes]:
    """Return one column of bytes for each attribute, identifiers among them where `own_ids`."""
    dates = [pd.to_datetime(events[name], errors="coerce") for name in ("first_image", "last_image")]
    days = [((day - _EPOCH).dt.days + 1).fillna(0).to_numpy(np.int64) for day in dates]
    codes = maps.event_codes(events, categories).astype(np.int64) - 1
    columns = {
        "category": np.where(codes < 0, len(categories), codes).astype(np.uint8).tobytes(),
        "year": varints(events["loss_year"].to_numpy(np.int64) - _first_year(events)),
        "confidence": varints(_whole(events["confidence"], 1000) + 1),
        "area": varints(_whole(events["area_ha"], 1000)),
        "clear": varints(_whole(events["clear_share"], 100) + 1),
        "unit": varints(events["unit_id"].map(dict(units)).fillna(-1).to_numpy(np.int64) + 1),
        "first": deltas(days[0]),
        "span": varints(np.maximum(days[1] - days[0], 0)),
        "images": varints(events["image_count"].fillna(0).to_numpy(np.int64)),
    }
    if own_ids:
        columns["ids"] = "\n".join(" ".join(str(name).split("\n")) for name in events["event_id"]).encode("utf-8")
    return columns


def _whole(values: pd.Series, factor: int) -> np.ndarray:
    """Return values times `factor` as whole numbers, -1 where there is none."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
    return np.where(np.isnan(numbers), -1, np.round(np.nan_to_num(numbers) * factor)).astype(np.int64)


def _first_year(events: pd.DataFrame) -> int:
    return int(events["loss_year"].min()) if len(events) else 0


def _anchors(events: gpd.GeoDataFrame) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return x, y int64 [n] in millionths of a degree, and whether identifiers do not follow from them.

    The place that an identifier names, where all do so; else the point inside the event.
    """
    found = [_PLACE.fullmatch(str(name)) for name in events["event_id"]]
    if all(found):
        x = np.array([_micro(m[4] == "W", m[5]) for m in found if m], np.int64)
        y = np.array([_micro(m[2] == "S", m[3]) for m in found if m], np.int64)
        signs = [(m[2] == "S", m[4] == "W") for m in found if m]
        same = all(int(m[1]) == year for m, year in zip(found, events["loss_year"], strict=True) if m)
        if same and signs == list(zip((y < 0).tolist(), (x < 0).tolist(), strict=True)):
            return x, y, False
    x, y = (np.round(events[name].to_numpy(float) * MICRO).astype(np.int64) for name in ("lon", "lat"))
    return x, y, True


def _micro(negative: bool, digits: str) -> int:
    value = int(digits.replace(".", ""))
    return -value if negative else value


def _morton(place: np.ndarray) -> np.ndarray:
    """Return the Z-order of places int [n, 2]: the bits of x and y in turn (Morton 1966), 16 of each."""
    code = np.zeros(len(place), np.uint64)
    for shift, values in enumerate(place.T if len(place) else ()):
        size = max(int(values.max() - values.min()), 1)
        cell = ((values - values.min()) * 65_535 // size).astype(np.uint64)
        for bit in range(16):
            code |= ((cell >> np.uint64(bit)) & np.uint64(1)) << np.uint64(2 * bit + shift)
    return code


def _simplified(shapes: np.ndarray) -> tuple[np.ndarray, float]:
    """Return outlines, simplified as far as their number of corners asks for, and the tolerance in degrees."""
    corners = shapely.get_num_coordinates(shapes).sum()
    if corners <= _MOST_CORNERS:
        return shapes, 0.0
    fine, coarse = _TOLERANCES
    tolerance = fine if corners <= 1.3 * _MOST_CORNERS else coarse
    # a picture may cross itself by a pixel: keeping topology takes five times as long
    simple = shapely.simplify(shapes, tolerance, preserve_topology=False)
    simple = np.where(shapely.is_empty(simple), shapes, simple)
    return simple, tolerance


def _outlines(shapes: np.ndarray, place: np.ndarray, area: np.ndarray, most: int) -> tuple[dict[str, bytes], int]:
    """Return rings per event and their corners from the event's place, and how many are squares.

    The largest events keep their outlines as long as these have no more than `most` corners. A square is one ring of
    one corner, its middle; the page takes its side from the area.
    """
    count = shapely.get_num_coordinates(shapes)
    square = np.ones(len(shapes), bool)
    order = np.argsort(-area, kind="stable")
    square[order[np.cumsum(count[order]) <= most]] = False
    kept, owner = maps.rings(shapes[~square])
    every = np.concatenate([kept, shapely.centroid(shapes[square])])
    row = np.concatenate([np.flatnonzero(~square)[owner], np.flatnonzero(square)])
    order = np.argsort(row, kind="stable")
    number = varints(np.bincount(row, minlength=len(shapes)))
    return {"rings": number, **_corners(every[order], row[order], place)}, int(square.sum())


def _corners(rings: np.ndarray, row: np.ndarray, anchors: np.ndarray) -> dict[str, bytes]:
    """Return corners per ring and their steps; the first corner of row k is taken from `anchors[k]`.

    Rings come closed and go without their last corner; neighbouring corners that fall together become one.
    """
    points, ring = shapely.get_coordinates(rings, return_index=True)
    last = np.append(ring[1:] != ring[:-1], True) if len(ring) else np.zeros(0, bool)
    alone = np.bincount(ring, minlength=len(rings))[ring] == 1
    points, ring = points[~last | alone], ring[~last | alone]
    owner = row[ring] if len(ring) else ring
    whole = np.round((points * MICRO - anchors[owner]) / _STEP).astype(np.int64)
    first = np.append(True, ring[1:] != ring[:-1]) if len(ring) else np.zeros(0, bool)
    repeated = np.append(False, (np.diff(whole, axis=0) == 0).all(axis=1))[: len(whole)] & ~first
    whole, ring, owner = whole[~repeated], ring[~repeated], owner[~repeated]
    steps = np.diff(whole, axis=0, prepend=np.zeros((1, 2), np.int64))
    fresh = np.append(True, owner[1:] != owner[:-1]) if len(owner) else np.zeros(0, bool)
    steps[fresh] = whole[fresh]
    return {
        "sizes": varints(np.bincount(ring, minlength=len(rings))),
        "dx": signed(steps[:, 0]),
        "dy": signed(steps[:, 1]),
    }
