"""Areas by unit, loss year and driver. Every hectare of every event is counted once in each list of units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from shapely import STRtree

from pipeline.config import UnitLayer
from pipeline.drivers import FAILED, NO_IMAGERY, UNCERTAIN
from pipeline.errors import ConfigError
from pipeline.grid import EQUAL_AREA, read_vector, reproject
from pipeline.labels import LabelScheme

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

OUTSIDE = "outside"
OUTSIDE_NAME = "Outside any unit"
_WHOLE = 1 + 1e-4
"""Shares of an event in all its units that add up to more say that units overlap; less is rounding along borders."""


def read_units(layer: UnitLayer) -> tuple[GeoDataFrame, list[str]]:
    """Read a list of units: GeoDataFrame in EPSG:4326 with unit_id, unit_name, geometry (MultiPolygon), and warnings.

    Invalid rings are repaired and rows of one identifier joined; both are said in the warnings.

    Raises:
        ConfigError: when the file, the CRS or a column is missing, or there is no polygon.
    """
    import geopandas as gpd

    frame = read_vector(layer.path, layer.layer, "region.units")
    for key, column in (("id", layer.id), ("name", layer.name)):
        if column not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ConfigError(f"region.units {layer.path}: no column {column!r} (region.units.{key}); it has {columns}")
    frame = frame.to_crs("EPSG:4326")
    warnings = []
    invalid = int((~frame.geometry.is_valid).sum())
    if invalid:
        warnings.append(f"units {layer.path.name}: {invalid} invalid polygons were repaired")
    polygons = [_polygons_only(g) for g in shapely.make_valid(np.asarray(frame.geometry.values))]
    table = pd.DataFrame(
        {"unit_id": frame[layer.id].astype(str), "unit_name": frame[layer.name].fillna("").astype(str)}
    )
    table["geometry"] = polygons
    table = table[[g is not None for g in polygons]]
    if table.empty:
        raise ConfigError(f"region.units {layer.path}: holds no polygon")
    repeated = int(table["unit_id"].duplicated().sum())
    if repeated:
        warnings.append(f"units {layer.path.name}: {repeated} rows share an identifier and were joined")
    joined = table.groupby("unit_id", sort=True).agg({"unit_name": "first", "geometry": _join}).reset_index()
    return gpd.GeoDataFrame(joined, geometry="geometry", crs="EPSG:4326"), warnings


def _polygons_only(geometry: Any) -> Any:
    """The polygonal part of a repaired geometry as MultiPolygon, None where there is none."""
    if geometry is None or geometry.is_empty:
        return None
    parts = shapely.get_parts(shapely.get_parts(np.array([geometry])))
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return shapely.MultiPolygon(list(polygons)) if len(polygons) else None


def _join(geometries: pd.Series) -> Any:
    return _polygons_only(shapely.union_all(np.asarray(geometries.values)))


def assign_units(events: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Row of the unit that holds most of each event, -1 where none touches it; ties go to the first unit.

    Args:
        events: polygons in EPSG:4326.
        units: polygons in EPSG:4326; where they overlap an event still counts once.
    """
    return assign_and_count(events, units)[0]


def assign_and_count(events: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, int]:
    """The same as `assign_units`, and how many events lie where units overlap."""
    owner = np.full(len(events), -1, np.int64)
    if not len(events) or not len(units):
        return owner, 0
    pairs = STRtree(units).query(events, predicate="intersects")
    event, unit = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    several = np.bincount(event, minlength=len(events))[event] > 1
    shared = np.ones(len(event))
    shared[several] = _shared_area(events, units, event[several], unit[several])
    order = np.lexsort((unit, -shared, event))
    first = order[np.concatenate([[True], np.diff(event[order]) > 0])] if len(order) else order
    owner[event[first]] = unit[first]
    rows = np.unique(event[several])
    total = np.bincount(event[several], shared[several], len(events))[rows]
    doubled = total > _WHOLE * shapely.area(reproject(events[rows], "EPSG:4326", EQUAL_AREA))
    return owner, int(doubled.sum())


def overlap_warning(name: str, doubled: int) -> list[str]:
    """Say that units overlap, if events lie there."""
    if not doubled:
        return []
    return [f"units {name}: {doubled} events lie where units overlap; each counts once, in the unit with most of it"]


def _shared_area(events: np.ndarray, units: np.ndarray, event: np.ndarray, unit: np.ndarray) -> np.ndarray:
    ours, theirs = (reproject(shapes, "EPSG:4326", EQUAL_AREA) for shapes in (events, units))
    return np.asarray(shapely.area(shapely.intersection(ours[event], theirs[unit])))


def unit_table(events: GeoDataFrame, units: GeoDataFrame, scheme: LabelScheme) -> GeoDataFrame:
    """Areas by unit: loss_ha, one <class>_ha each, uncertain_ha (of which), no_imagery_ha, failed_ha, main driver."""
    import geopandas as gpd

    kind = events["driver"].where(events["driver"].notna(), events["status"])
    wide = events["area_ha"].groupby([events["unit_id"], kind]).sum().unstack(fill_value=0.0)
    uncertain = events["area_ha"].where(events["status"] == UNCERTAIN, 0.0).groupby(events["unit_id"]).sum()
    table = units.set_index("unit_id")
    if OUTSIDE in wide.index:
        row = gpd.GeoDataFrame({"unit_name": [OUTSIDE_NAME]}, geometry=[None], index=[OUTSIDE], crs=units.crs)
        table = pd.concat([table, row])
    names = {**{name: f"{name}_ha" for name in scheme.names}, NO_IMAGERY: "no_imagery_ha", FAILED: "failed_ha"}
    areas = wide.reindex(index=table.index, columns=list(names), fill_value=0.0).rename(columns=names).fillna(0.0)
    areas.insert(0, "loss_ha", areas.sum(axis=1))
    areas.insert(len(scheme) + 1, "uncertain_ha", uncertain.reindex(table.index, fill_value=0.0))
    classes = areas[[f"{name}_ha" for name in scheme.names]]
    best = np.array(scheme.names, dtype=object)[classes.to_numpy().argmax(axis=1)]
    dominant = pd.Series(np.where(classes.sum(axis=1) > 0, best, None), index=table.index, name="dominant_driver")
    out = pd.concat(
        [table[["unit_name"]], areas[["loss_ha"]], dominant, areas.drop(columns="loss_ha"), table[["geometry"]]], axis=1
    )
    out.index.name = "unit_id"
    return gpd.GeoDataFrame(out.reset_index(), geometry="geometry", crs=units.crs)


def summary_table(events: GeoDataFrame) -> pd.DataFrame:
    """Areas by unit, loss year and driver (no_imagery and failed are drivers here), with empty estimates.

    A sum of mapped pixels is no estimate: `areas.tables.adjusted_summary` fills in what labels allow to say.
    """
    kind = events["driver"].where(events["driver"].notna(), events["status"]).rename("driver")
    keys: Sequence[Any] = [events["unit_id"], events["unit_name"], events["loss_year"], kind]
    table = (
        events.groupby(list(keys), sort=True).agg(events=("event_id", "size"), area_ha=("area_ha", "sum")).reset_index()
    )
    for column in ("area_ha_adjusted", "area_ha_low", "area_ha_high"):
        table[column] = np.nan
    table["interval_source"] = pd.Series(None, index=table.index, dtype=object)
    table["reference_n"] = pd.Series(pd.NA, index=table.index, dtype="Int64")
    table["reference_flag"] = pd.Series(None, index=table.index, dtype=object)
    out: pd.DataFrame = table
    return out


def region_as_unit(name: str, aoi: Any) -> GeoDataFrame:
    """The region itself as the only unit, where no list of units is given."""
    import geopandas as gpd

    shape = _polygons_only(aoi)
    return gpd.GeoDataFrame({"unit_id": [name], "unit_name": [name]}, geometry=[shape], crs="EPSG:4326")
