"""Distance from polygons to the nearest feature of a layer, and the share of polygons inside a layer's polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import Geod, Proj
from shapely import STRtree

from pipeline.grid import EQUAL_AREA, reproject

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry as Geometry

_GEOD = Geod(ellps="WGS84")
_TURNS = (-360.0, 0.0, 360.0)
_VERTICES = 32
_STEP_DEGREES = 0.1
"""Edges are cut to this length: straight in degrees and straight on the ground then differ by metres."""
_DEGREE_KM, _POLAR_RADIUS_KM = 110.57, 6356.75
"""Shortest degree of latitude, smallest radius of the ellipsoid: search boxes come out too large, never too small."""


def distance_km(polygons: NDArray[np.object_], features: NDArray[np.object_]) -> NDArray[np.float64]:
    """Geodesic distance (WGS 84) in km [n] of each polygon's nearest point to the nearest feature, all in EPSG:4326.

    0 where they touch or a feature holds the polygon; NaN for an empty polygon, and everywhere without features. The
    antimeridian is no border: longitudes are taken modulo a turn.
    """
    out = np.full(len(polygons), np.nan)
    solid, pieces = _pieces(features)
    parts, owner = shapely.get_parts(_unwrapped(polygons), return_index=True)
    if not len(pieces) or not len(parts):
        return out
    tree, moved = STRtree(pieces), [_moved(parts, turn) for turn in _TURNS]
    inside = np.zeros(len(parts), bool)
    areas = STRtree(solid)
    for shapes in moved:
        inside[areas.query(shapes, predicate="intersects")[0]] = True
    first = np.stack([tree.nearest(shapes) for shapes in moved])
    for k, part in enumerate(parts):
        km = 0.0 if inside[k] else _nearest_km(part, pieces, tree, first[:, k])
        out[owner[k]] = np.fmin(out[owner[k]], km)
    return out


def _nearest_km(part: Geometry, pieces: NDArray[np.object_], tree: STRtree, first: NDArray[np.int64]) -> float:
    """Nearest in degrees is a bound only: whatever may lie within that many kilometres is looked at."""
    bound = _closest_km(part, pieces[np.unique(first)])
    if bound == 0:
        return 0.0
    west, south, east, north = part.bounds
    reach = bound * 1.01
    south, north = south - reach / _DEGREE_KM, north + reach / _DEGREE_KM
    angle, parallel = reach / _POLAR_RADIUS_KM, np.cos(np.radians(min(max(-south, north), 90.0)))
    sideways = 180.0
    if angle < np.pi / 2 and np.sin(angle) < parallel:
        sideways = float(np.degrees(np.arcsin(np.sin(angle) / parallel)))
    boxes = [shapely.box(west - sideways + turn, south, east + sideways + turn, north) for turn in _TURNS]
    near = np.unique(tree.query(boxes)[1])
    return min(bound, _closest_km(part, pieces[near]))


def _closest_km(part: Geometry, pieces: NDArray[np.object_]) -> float:
    """Geodesic km between a polygon and the closest of some features.

    The nearest points are found in an azimuthal equidistant projection around the polygon, where they differ little
    from the true ones; the length between them is the geodesic's.
    """
    centre = part.centroid
    flat = Proj(proj="aeqd", lat_0=centre.y, lon_0=centre.x, ellps="WGS84")
    ours, theirs = (shapely.transform(g, lambda xy: np.column_stack(flat(xy[:, 0], xy[:, 1]))) for g in (part, pieces))
    links = np.asarray(shapely.shortest_line(ours, theirs))
    length = shapely.length(links)
    if length.min() == 0:
        return 0.0
    ends = shapely.get_coordinates(links[length <= length.min() * 1.02])
    lon, lat = flat(ends[:, 0], ends[:, 1], inverse=True)
    _, _, metres = _GEOD.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    return float(np.min(metres)) / 1000


def _pieces(features: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Polygons among the features, and all features as points and short lines (a polygon as its outline)."""
    parts = _unwrapped(_simple(features))
    kind = shapely.get_type_id(parts)
    solid = parts[kind == shapely.GeometryType.POLYGON]
    outlines = shapely.get_parts(shapely.boundary(solid))
    lines = np.concatenate([parts[np.isin(kind, (1, 2))], outlines])
    points = parts[kind == shapely.GeometryType.POINT]
    return solid, np.concatenate([points, _cut(shapely.segmentize(lines, _STEP_DEGREES))])


def _simple(features: NDArray[np.object_]) -> NDArray[np.object_]:
    """Parts of features without nested collections, empty ones left out, two dimensions."""
    parts = shapely.get_parts(shapely.get_parts(features[~shapely.is_missing(features)]))
    return np.asarray(shapely.force_2d(parts[~shapely.is_empty(parts)]))


def _unwrapped(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Shapes drawn across the antimeridian (179 to -179) made continuous (179 to 181)."""
    xy, index = shapely.get_coordinates(shapes, return_index=True)
    step = np.diff(xy[:, 0], prepend=xy[:1, 0])
    step[np.diff(index, prepend=-1) != 0] = 0.0
    # a step of exactly one turn is the edge of a layer that spans the world
    across = (np.abs(step) > 180) & (np.abs(step) < 360)
    if not across.any():
        return shapes
    turns = np.cumsum(np.where(across, -360.0 * np.sign(step), 0.0))
    start = np.searchsorted(index, index)
    xy[:, 0] += turns - turns[start]
    return np.asarray(shapely.set_coordinates(shapes.copy(), xy))


def _moved(shapes: NDArray[np.object_], turn: float) -> NDArray[np.object_]:
    return np.asarray(shapely.transform(shapes, lambda xy: np.add(xy, [turn, 0.0])))


def _cut(lines: NDArray[np.object_]) -> NDArray[np.object_]:
    """Lines cut at vertices into pieces of few edges: the box of a coast says little about where it runs."""
    xy, index = shapely.get_coordinates(lines, return_index=True)
    if not len(xy):
        return np.empty(0, object)
    start = np.searchsorted(index, index)
    place = np.arange(len(xy)) - start
    joint = (place > 0) & (place % _VERTICES == 0)
    last = np.append(index[1:] != index[:-1], True)
    # a vertex at a joint ends one piece and begins the next, unless the line ends there
    piece = np.cumsum((place == 0) | (joint & ~last)) - 1
    copies = np.where(joint & ~last, 2, 1)
    ids, points = np.repeat(piece, copies), np.repeat(xy, copies, axis=0)
    first_copy = np.cumsum(copies) - copies
    ids[first_copy[joint & ~last]] -= 1
    return np.asarray(shapely.linestrings(points, indices=ids))


def share_inside(polygons: NDArray[np.object_], features: NDArray[np.object_]) -> NDArray[np.float64]:
    """Share 0..1 [n], by area, of each polygon inside the layer's polygons, all in EPSG:4326.

    Outside every polygon of the layer is 0; NaN for an empty polygon, and everywhere if the layer has no polygon.
    """
    out = np.full(len(polygons), np.nan)
    shapes = _simple(shapely.make_valid(features))
    shapes = shapes[shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON]
    if not len(shapes):
        return out
    out[~(shapely.is_missing(polygons) | shapely.is_empty(polygons))] = 0.0
    event, shape = STRtree(shapes).query(polygons, predicate="intersects")
    order = np.argsort(event, kind="stable")
    found, starts = np.unique(event[order], return_index=True)
    for k, own in zip(found, np.split(shape[order], starts[1:]), strict=False):
        ours, theirs = reproject(polygons[k], "EPSG:4326", EQUAL_AREA), reproject(shapes[own], "EPSG:4326", EQUAL_AREA)
        inside = shapely.intersection(ours, shapely.union_all(theirs)).area
        out[k] = min(inside / ours.area, 1.0)
    return out
