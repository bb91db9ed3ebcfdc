"""Helpers for due diligence under the EU Deforestation Regulation, (EU) 2023/1115. They decide nothing.

The Regulation asks whether land was forest on 31 December 2020 and was turned to agriculture afterwards. What is known
here is the calendar year of the loss and the most likely driver seen from space, each with its error; whether the land
was forest as the Regulation defines it, what grows there now and whose it is, is for the operator to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely

from pipeline.labels import AGRICULTURE, LabelScheme

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

CUTOFF_YEAR = 2020
"""Forest lost after 31 December of this year counts."""
AFTER_CUTOFF, CONVERSION = "eudr_after_cutoff", "eudr_conversion"
POINT_BELOW_HA = 4.0
"""Plots below this may be given as a point (Article 2(28)), except for cattle."""
MAX_BYTES = 25_000_000
"""Largest file that the Information System takes."""
_DECIMALS = 7


def eudr_columns(loss_year: pd.Series, driver: pd.Series, scheme: LabelScheme) -> pd.DataFrame:
    """Flags of events: loss after the cut-off (bool), and driver is conversion to agriculture (bool, NA = not known).

    What counts as agriculture stands in `pipeline.labels`; timber plantations, which the class `plantation` includes,
    are degradation and not deforestation under the Regulation.
    """
    known = scheme.agriculture
    conversion = pd.array([known.get(name) if isinstance(name, str) else None for name in driver], dtype="boolean")
    after = (loss_year.astype(int) > CUTOFF_YEAR).astype("boolean")
    return pd.DataFrame({AFTER_CUTOFF: after, CONVERSION: conversion}, index=loss_year.index)


def eudr_doubts(scheme: LabelScheme) -> list[str]:
    """Name the classes of which nobody says whether they are agriculture, for the run's warnings."""
    silent = [c.name for c in scheme if c.agriculture is None and not {c.name, c.parent} & set(AGRICULTURE)]
    if not silent:
        return []
    return [f"eudr_conversion is empty for {', '.join(silent)}: whether these are agriculture is not known"]


@dataclass(frozen=True)
class Place:
    """One feature of the EU's file: a Polygon without holes, or a Point with its area in hectares."""

    name: str
    geometry: shapely.Geometry
    area_ha: float


def places(events: GeoDataFrame, points: bool) -> Iterator[Place]:
    """Features of the events lost after the cut-off (EPSG:4326): one per part, holes opened by cutting.

    The Information System takes neither holes nor parts that touch along an edge in one MultiPolygon, so every piece is
    a feature; those of one event carry its identifier as ProductionPlace.

    Args:
        events: layer `events` in EPSG:4326.
        points: give events below 4 ha as their point inside.
    """
    wanted = events[events["loss_year"] > CUTOFF_YEAR]
    for event_id, geometry, area, lon, lat in zip(
        wanted["event_id"], wanted.geometry, wanted["area_ha"], wanted["lon"], wanted["lat"], strict=True
    ):
        if points and area < POINT_BELOW_HA:
            yield Place(str(event_id), shapely.Point(lon, lat), float(area))
            continue
        whole = area / geometry.area  # hectares per square degree, near enough inside one event
        for part in shapely.get_parts(geometry):
            for piece in without_holes(part):
                yield Place(str(event_id), piece, float(piece.area * whole))


def without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Cut a polygon along a meridian through each hole until no piece has one; the pieces have its area together."""
    done, todo = [], [polygon]
    while todo:
        piece = todo.pop()
        if not piece.interiors:
            done.append(piece)
            continue
        west, south, east, north = piece.bounds
        hole = piece.interiors[0].bounds
        cut = (hole[0] + hole[2]) / 2
        halves = [shapely.box(west, south, cut, north), shapely.box(cut, south, east, north)]
        parts = shapely.get_parts(shapely.get_parts(shapely.intersection(piece, halves)))
        todo += parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON].tolist()
    return done


def geojson_files(found: Sequence[Place], country: str = "", limit: int = MAX_BYTES) -> Iterator[bytes]:
    """GeoJSON as the EU's file description has it: [lon, lat], seven decimals written out, closed rings, <= `limit`.

    Only what is known is said: ProductionPlace (the event), Area (hectares) and, if given, ProducerCountry (two
    letters). Files are cut between features.
    """
    head, tail = b'{"type":"FeatureCollection","features":[\n', b"\n]}\n"
    lines: list[bytes] = []
    size = len(head) + len(tail)
    for place in found:
        line = _feature(place, country).encode()
        if lines and size + len(line) + 2 > limit:
            yield head + b",\n".join(lines) + tail
            lines, size = [], len(head) + len(tail)
        lines.append(line)
        size += len(line) + 2
    yield head + b",\n".join(lines) + tail


def _feature(place: Place, country: str) -> str:
    import json

    properties: dict[str, object] = {"ProductionPlace": place.name, "Area": round(place.area_ha, 4)}
    if country:
        properties["ProducerCountry"] = country
    if isinstance(place.geometry, shapely.Point):
        kind, written = "Point", _pair(place.geometry.x, place.geometry.y)
    else:
        kind, written = "Polygon", f"[[{','.join(_ring(place.geometry))}]]"
    text = json.dumps(properties, ensure_ascii=False)
    return f'{{"type":"Feature","properties":{text},"geometry":{{"type":"{kind}","coordinates":{written}}}}}'


def _ring(polygon: shapely.Geometry) -> Iterator[str]:
    """Corners of the outer ring, counter-clockwise, without repeats after rounding, first = last."""
    ring = np.round(shapely.get_coordinates(shapely.get_exterior_ring(shapely.orient_polygons(polygon))), _DECIMALS)
    keep = np.append(True, (np.diff(ring, axis=0) != 0).any(axis=1))
    for x, y in ring[keep]:
        yield _pair(x, y)


def _pair(x: float, y: float) -> str:
    # written with all its decimals: a JSON number drops trailing zeros, and fewer than six are refused
    return f"[{x:.{_DECIMALS}f},{y:.{_DECIMALS}f}]"
