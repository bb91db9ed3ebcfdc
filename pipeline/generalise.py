"""Fewer and simpler patches for those who ask: a smallest area, borders without the steps of pixels. Off by default.

Only the layer `patches` changes: events, rasters and every sum of areas stay those of the pixels. Patches go on filling
their event: only the borders between them are simplified. Copies with simplified outlines are made by an export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import CRS

from pipeline.coverage import merge_small, simplify_coverage, with_neighbours
from pipeline.grid import area_ha, reproject

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_DEGREE_M = 111_320.0
_DEGREES = "EPSG:4326"


@dataclass(frozen=True)
class Generalised:
    """What was done to polygons, for the run record; areas in hectares."""

    merged: int = 0
    kept_below_min: int = 0
    left_unsimplified: int = 0
    area_before_ha: float = 0.0
    area_after_ha: float = 0.0
    area_moved_ha: float = 0.0

    @property
    def area_change_percent(self) -> float:
        """Change of the whole area in percent."""
        return 100 * (self.area_after_ha / self.area_before_ha - 1) if self.area_before_ha else 0.0

    @property
    def area_moved_percent(self) -> float:
        """Area that simplified borders moved from one patch to its neighbour, in percent of all."""
        return 100 * self.area_moved_ha / self.area_before_ha if self.area_before_ha else 0.0

    def warnings(self, simplify_m: float, min_patch_ha: float) -> list[str]:
        """Say what a reader of the layer must know; nothing where nothing was asked for."""
        said = []
        if min_patch_ha > 0:
            said.append(
                f"patches below {min_patch_ha:g} ha were merged into a neighbour of their event: {self.merged}; "
                f"{self.kept_below_min} are their event's only patch and stay"
            )
        if simplify_m > 0:
            left = f"; {self.left_unsimplified} whose borders do not match stay as they were"
            said.append(
                f"borders between patches are simplified with {simplify_m:g} m: the area changes by "
                f"{self.area_change_percent:+.3f} %, {self.area_moved_percent:.3f} % of it moved to a neighbour"
                + left
                * bool(self.left_unsimplified)
            )
        return said

    def record(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "merged": self.merged,
            "kept_below_min": self.kept_below_min,
            "left_unsimplified": self.left_unsimplified,
            # rounded so that it does not say -0.0
            "area_change_percent": round(self.area_change_percent, 4) + 0.0,
            "area_moved_percent": round(self.area_moved_percent, 4),
        }


def generalise_patches(
    patches: GeoDataFrame, crs: str, simplify_m: float, min_patch_ha: float
) -> tuple[GeoDataFrame, Generalised]:
    """Merge small patches inside their events and simplify shared borders once for both sides.

    A merged patch takes driver and code of the neighbour that it joins; the confidence of a patch stays the mean over
    those of its pixels that say its driver. `area_ha` is that of the new polygon.

    Args:
        patches: the layer `patches`, Polygon in EPSG:4326, neighbours sharing every vertex of their border.
        crs: the run's CRS, in which lengths are measured.
        simplify_m: tolerance in metres, 0 = off.
        min_patch_ha: smallest patch in hectares, 0 = off.
    """
    before = float(patches["area_ha"].sum())
    if not len(patches) or (simplify_m <= 0 and min_patch_ha <= 0):
        return patches, Generalised(area_before_ha=before, area_after_ha=before)
    merged = kept = left = 0
    moved = 0.0
    out = patches
    if min_patch_ha > 0:
        out, merged, kept = _merged(out, crs, min_patch_ha)
    if simplify_m > 0:
        given = np.asarray(out.geometry.values)
        shapes, left = _inside_events(given, out["event_id"].to_numpy(object), crs, simplify_m)
        moved = float(np.abs(area_ha(shapes) - area_ha(given)).sum()) / 2
        out = out.set_geometry(list(shapes), crs=_DEGREES)
    out = out.explode(ignore_index=True)
    out["area_ha"] = np.asarray(area_ha(np.asarray(out.geometry.values)), float).reshape(-1)
    return out, Generalised(merged, kept, left, before, float(out["area_ha"].sum()), moved)


def _inside_events(polygons: np.ndarray, events: np.ndarray, crs: str, simplify_m: float) -> tuple[np.ndarray, int]:
    """Simplify the borders between patches of one event; its outline stays."""
    out, left = polygons.copy(), 0
    order = np.argsort(events, kind="stable")
    starts = np.flatnonzero(np.append(True, events[order][1:] != events[order][:-1]))
    for rows in np.split(order, starts[1:]):
        if len(rows) > 1:
            out[rows], unchanged = simplify_degrees(polygons[rows], crs, simplify_m, outline=False)
            left += unchanged
    return out, left


def simplify_degrees(polygons: np.ndarray, crs: str, simplify_m: float, outline: bool = True) -> tuple[np.ndarray, int]:
    """Simplify a coverage given in EPSG:4326, measuring in `crs`: (polygons in EPSG:4326, how many were left)."""
    tolerance = simplify_m / _DEGREE_M if CRS.from_user_input(crs).is_geographic else simplify_m
    flat = reproject(polygons, _DEGREES, crs)
    done = simplify_coverage(flat, tolerance, outline)
    out = polygons.copy()
    moved = ~done.left
    out[moved] = _returned(done.polygons[moved], flat, polygons)
    broken = with_neighbours(polygons, moved & ~shapely.is_valid(out))
    out[broken] = polygons[broken]
    return out, int((done.left | broken).sum())


def _returned(shapes: np.ndarray, flat: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Shapes made of vertices of `flat`, with the coordinates that those vertices have in `given`.

    Projecting back would move them by the last digit, and neighbours that were not projected would share no border any
    more.
    """
    places = shapely.get_coordinates(flat) @ np.array([1, 1j])
    order = np.argsort(places)
    degrees = shapely.get_coordinates(given)[order]

    def back(points: np.ndarray) -> np.ndarray:
        return np.asarray(degrees[np.searchsorted(places[order], points @ np.array([1, 1j]))])

    return np.asarray(shapely.transform(shapes, back))


def _merged(patches: GeoDataFrame, crs: str, smallest: float) -> tuple[GeoDataFrame, int, int]:
    shapes = reproject(np.asarray(patches.geometry.values), _DEGREES, crs)
    group = patches["event_id"].astype("category").cat.codes.to_numpy()
    kind, area = patches["driver_code"].to_numpy(), patches["area_ha"].to_numpy(float)
    done = merge_small(shapes, group, kind, area, smallest)
    own = done.kind[done.member] == kind
    weight = np.bincount(done.member[own], area[own], len(done.source))
    mean = np.bincount(done.member[own], (area * patches["confidence"].to_numpy(float))[own], len(done.source)) / weight
    grown = np.bincount(done.member, minlength=len(done.source)) > 1
    out = patches.iloc[done.source].reset_index(drop=True)
    out["confidence"] = np.where(grown, np.round(mean, 4), out["confidence"])
    geometry = np.asarray(out.geometry.values).copy()
    geometry[grown] = _returned(done.polygons[grown], shapes, np.asarray(patches.geometry.values))
    return out.set_geometry(list(geometry), crs=_DEGREES), done.merged, done.kept
