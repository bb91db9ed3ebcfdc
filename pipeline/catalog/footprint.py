"""Footprints in EPSG:4326 as WKT, from a raster's grid or from GeoJSON; never one that wraps the world."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import antimeridian
import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely.geometry import Polygon, box

_EDGE_POINTS = 11  # a 185 km edge between neighbours bends by metres
_MAX_SPAN = 180.0


def grid_footprint(crs: str, transform: Sequence[float], shape: tuple[int, int]) -> str | None:
    """Return the outline of a grid of `shape` (rows, columns) as WKT in EPSG:4326, or None where it cannot be placed.

    `transform` is affine (a, b, c, d, e, f) in units of `crs`. Edges are densified: straight lines in UTM are not
    straight in degrees.
    """
    rows, columns = shape
    a, b, c, d, e, f = transform
    along = np.linspace(0.0, 1.0, _EDGE_POINTS)[:-1]
    corners = np.array([(0, 0), (0, rows), (columns, rows), (columns, 0)], dtype=float)
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ring = np.concatenate([start + along[:, None] * (end - start) for start, end in edges])
    x, y = a * ring[:, 0] + b * ring[:, 1] + c, d * ring[:, 0] + e * ring[:, 1] + f
    try:
        lon, lat = Transformer.from_crs(CRS.from_user_input(crs), "EPSG:4326", always_xy=True).transform(x, y)
    except ProjError:
        return None
    return _polygonal(Polygon(np.column_stack([lon, lat]))) if np.isfinite([lon, lat]).all() else None


def geojson_footprint(geometry: object, bbox: object) -> str | None:
    """Return the WKT of a STAC Item's `geometry`, else of its `bbox` (degrees); None where neither can be used."""
    if isinstance(geometry, dict):
        try:
            shape = shapely.from_geojson(json.dumps(geometry))
        except (shapely.errors.GEOSException, ValueError, TypeError):
            shape = None
        found = _polygonal(shape) if shape is not None else None
        if found:
            return found
    return _box(bbox)


def _box(bbox: object) -> str | None:
    if not isinstance(bbox, list) or len(bbox) not in (4, 6):
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= 360 for v in bbox):
        return None
    west, south, east, north = bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1]
    # GeoJSON writes a box over the antimeridian with west > east
    return _polygonal(box(west, south, east + 360.0 if west > east else east, north))


def _polygonal(shape: shapely.Geometry) -> str | None:
    """Return valid polygons within -180..180, split at the antimeridian, as WKT; None where nothing has an area."""
    parts = [part for part in shapely.get_parts(shapely.force_2d(shape)).tolist() if isinstance(part, Polygon)]
    fixed: list[shapely.Geometry] = []
    for part in parts:
        if part.is_empty or not all(math.isfinite(v) for v in part.bounds):
            return None
        west, south, east, north = part.bounds
        if south < -90 or north > 90 or west < -360 or east > 540:
            return None
        whole = shapely.make_valid(part) if not part.is_valid and east - west <= _MAX_SPAN else part
        if west < -180 or east > 180 or east - west > _MAX_SPAN:
            try:
                whole = antimeridian.fix_polygon(part, fix_winding=True, great_circle=False)
            except (ValueError, IndexError, shapely.errors.GEOSException):
                return None
        fixed.append(shapely.make_valid(whole))
    union = shapely.union_all(fixed) if fixed else None
    if union is None or union.area <= 0:
        return None
    polygons = [g for g in shapely.get_parts(union).tolist() if isinstance(g, Polygon)]
    whole = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    return str(shapely.to_wkt(whole, rounding_precision=9))
