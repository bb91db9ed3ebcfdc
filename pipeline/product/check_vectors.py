"""Checks of `drivers.gpkg`; each returns what it found or raises ProductError with the first fault and its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely

from pipeline.errors import ProductError
from pipeline.labels import LabelScheme
from pipeline.product.geopackage import read_only, verify
from pipeline.product.layers import STATUSES, WITHOUT_DRIVER, Layer, layers

_GEOD = pyproj.Geod(ellps="WGS84")
_SUM = 1e-6  # relative: what the three sums of area may differ by
_AREA = 0.01  # relative: pixel areas are summed, polygons have straight edges between corners


@dataclass(frozen=True)
class Vectors:
    """Everything read from `drivers.gpkg`: layer name to rows, the layers expected, the classes."""

    frames: dict[str, pd.DataFrame]
    plan: tuple[Layer, ...]
    scheme: LabelScheme

    @property
    def events(self) -> gpd.GeoDataFrame:
        """Return the events in the stored CRS."""
        return gpd.GeoDataFrame(self.frames["events"])


def load(path: Path, scheme: LabelScheme) -> Vectors:
    """Read every layer; raises ProductError naming a missing layer, DataSourceError for an unreadable file."""
    if not path.is_file():
        raise ProductError(f"{path}: not there")
    plan = layers(scheme)
    present = set(pyogrio.list_layers(path)[:, 0])
    missing = [layer.name for layer in plan if layer.name not in present]
    if missing:
        raise ProductError(f"layers {missing} are missing")
    frames = {layer.name: pyogrio.read_dataframe(path, layer=layer.name, use_arrow=True) for layer in plan}
    return Vectors(frames, plan, scheme)


def container(path: Path, scheme: LabelScheme) -> str:
    """Check the database: integrity, counts, spatial indexes."""
    if not path.is_file():
        raise ProductError(f"{path}: not there")
    vector = [layer for layer in layers(scheme) if layer.geometry]
    counts = {}
    with closing(read_only(path)) as database:
        for layer in vector:
            query = f'SELECT count(*), count(CASE WHEN ST_IsEmpty("geom") = 0 THEN 1 END) FROM "{layer.name}"'
            database.create_function("ST_IsEmpty", 1, _is_empty, deterministic=True)
            counts[layer.name] = tuple(database.execute(query).fetchone())
    verify(path, counts)
    return f"integrity, counts and spatial indexes of {len(vector)} layers"


def columns(vectors: Vectors) -> str:
    """Check that each layer has the columns of the contract, the right geometry type and one CRS."""
    systems = set()
    for layer in vectors.plan:
        frame = vectors.frames[layer.name]
        missing = [column.name for column in layer.columns if column.name not in frame]
        if missing:
            raise ProductError(f"layer {layer.name}: columns {missing} are missing")
        if layer.geometry:
            if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
                raise ProductError(f"layer {layer.name}: has no geometry or no CRS")
            systems.add(frame.crs.to_string())
            kinds = set(frame.geometry.dropna().geom_type) - {layer.geometry}
            if kinds:
                raise ProductError(f"layer {layer.name}: holds {sorted(kinds)} instead of {layer.geometry}")
    if len(systems) != 1:
        raise ProductError(f"layers are stored in different systems: {sorted(systems)}")
    return f"{len(vectors.plan)} layers in {systems.pop()}"


def geometries(vectors: Vectors) -> str:
    """Check that every geometry is valid, and none of events, patches and blocks is missing."""
    number = 0
    for layer in vectors.plan:
        if layer.geometry:
            values = _shapes(vectors.frames[layer.name])
            empty = shapely.is_missing(values) | shapely.is_empty(values)
            bad = ~empty & ~shapely.is_valid(values)
            if layer.name in ("events", "patches", "blocks"):
                bad |= empty
            _refuse(bad, vectors.frames[layer.name][layer.order[0]], f"layer {layer.name}: missing or invalid geometry")
            number += len(values)
    return f"{number} geometries"


def identifiers(vectors: Vectors) -> str:
    """Check that event identifiers are present and unique, and that patches name existing events."""
    ids = vectors.events["event_id"]
    _refuse(ids.isna() | ids.duplicated(), ids, "event_id empty or repeated")
    patch = vectors.frames["patches"]["event_id"]
    _refuse(~patch.isin(ids), patch, "patch of an event that is not there")
    return f"{len(ids)} events"


def statuses(vectors: Vectors) -> str:
    """Check status, driver, code and the uncertain flag against each other."""
    events, scheme = vectors.events, vectors.scheme
    ids, status = events["event_id"], events["status"]
    _refuse(~status.isin(list(STATUSES)), ids, f"status is none of {', '.join(STATUSES)}")
    codes = dict(zip(scheme.names, scheme.codes, strict=True))
    without = status.isin(WITHOUT_DRIVER)
    _refuse(without & (events["driver"].notna() | events["driver_code"].notna()), ids, "a driver without imagery")
    _refuse(~without & ~events["driver"].isin(list(codes)), ids, "driver is no class of the label scheme")
    _refuse(~without & (events["driver"].map(codes) != events["driver_code"]), ids, "driver_code is not the driver's")
    flag = events["uncertain"].astype("boolean").fillna(False).astype(bool)
    _refuse(flag != (status == "uncertain"), ids, "uncertain does not agree with status")
    counts = status.value_counts()
    return ", ".join(f"{counts.get(name, 0)} {name}" for name in STATUSES)


def probabilities(vectors: Vectors) -> str:
    """Check that p_* sum to 1, that confidence is their maximum and that of the driver, and that nulls are null."""
    events, names = vectors.events, [f"p_{name}" for name in vectors.scheme.names]
    ids, without = events["event_id"], events["status"].isin(WITHOUT_DRIVER).to_numpy()
    table = np.column_stack([pd.to_numeric(events[name]).to_numpy(float, na_value=np.nan) for name in names])
    confidence = pd.to_numeric(events["confidence"]).to_numpy(float, na_value=np.nan)
    everything = np.column_stack([table, confidence])
    _refuse(without & ~np.isnan(everything).all(axis=1), ids, "probabilities without imagery")
    _refuse(~without & np.isnan(everything).any(axis=1), ids, "a probability is empty")
    _refuse(~without & ((table < 0) | (table > 1)).any(axis=1), ids, "a probability outside 0..1")
    _refuse(~without & ~(np.abs(table.sum(axis=1) - 1) <= 1e-6), ids, "probabilities do not sum to 1")
    _refuse(~without & ~(np.abs(table.max(axis=1) - confidence) <= 1e-6), ids, "confidence is not the largest p_*")
    position = events["driver"].map({name: k for k, name in enumerate(vectors.scheme.names)}).fillna(0).astype(int)
    own = table[np.arange(len(table)), position.to_numpy()]
    _refuse(~without & ~(np.abs(own - confidence) <= 1e-6), ids, "the driver is not the class with the largest p_*")
    return f"{int((~without).sum())} events with probabilities"


def places(vectors: Vectors) -> str:
    """Check that `lon`, `lat` lie inside the event."""
    events = vectors.events
    points = gpd.GeoSeries(gpd.points_from_xy(events["lon"], events["lat"]), crs="EPSG:4326").to_crs(events.crs)
    inside = shapely.intersects(_shapes(events), np.asarray(points.array))
    _refuse(~inside, events["event_id"], "lon, lat do not lie inside the event")
    return f"{len(events)} points"


def areas(vectors: Vectors) -> str:
    """Check `area_ha` of events and patches against the geodesic area of their polygons (WGS 84), to 1 %."""
    number = 0
    for name in ("events", "patches"):
        frame = gpd.GeoDataFrame(vectors.frames[name])
        shapes = frame.geometry.to_crs("EPSG:4326")
        measured = np.array([abs(_GEOD.geometry_area_perimeter(shape)[0]) / 1e4 for shape in shapes])
        given = pd.to_numeric(frame["area_ha"]).to_numpy(float, na_value=np.nan)
        off = ~(np.abs(given - measured) <= _AREA * measured)
        _refuse(off, frame["event_id"], f"layer {name}: area_ha differs from the polygon by more than 1 %")
        number += len(frame)
    return f"{number} polygons"


def sums(vectors: Vectors) -> str:
    """Check the law of sums: events = summary = units, in all, per year and driver, and per unit, to 1e-6."""
    events, summary, units = (vectors.frames[name] for name in ("events", "summary", "units"))
    total = float(events["area_ha"].sum())
    for name, value in (("summary", summary["area_ha"].sum()), ("units", units["loss_ha"].sum())):
        _equal(float(value), total, total, f"area over {name} against area over events")
    status, driver = events["status"].astype(object), events["driver"].astype(object)
    rows = pd.DataFrame(events[["loss_year", "area_ha"]]).assign(driver=driver.where(driver.notna(), status))
    _same(rows, summary.astype({"driver": object}), total)
    by_unit = summary.groupby("unit_id")["area_ha"].sum()
    names = [*(f"{name}_ha" for name in vectors.scheme.names), "no_imagery_ha", "failed_ha"]
    parts = units[names].sum(axis=1)
    for unit, loss, inner in zip(units["unit_id"], units["loss_ha"], parts, strict=True):
        _equal(float(inner), float(loss), total, f"unit {unit}: sum of its columns against loss_ha")
        _equal(float(by_unit.get(unit, 0.0)), float(loss), total, f"unit {unit}: summary against loss_ha")
    unknown = sorted(set(by_unit.index.astype(str)) - set(units["unit_id"].astype(str)))
    if unknown:
        raise ProductError(f"summary names units that are not in the layer units: {unknown[:5]}")
    return f"{total:.4f} ha in events, summary and units"


def dominant(vectors: Vectors) -> str:
    """Check that the main driver of a unit is the class with the largest area, and empty where there is none."""
    units, names = vectors.frames["units"], vectors.scheme.names
    table = units[[f"{name}_ha" for name in names]].to_numpy(float)
    largest = table.max(axis=1, initial=0.0)
    position = units["dominant_driver"].map({name: k for k, name in enumerate(names)})
    own = np.where(position.isna(), 0.0, table[np.arange(len(units)), position.fillna(0).astype(int)])
    _refuse(np.abs(own - largest) > _SUM * largest, units["unit_id"], "dominant_driver is not the largest class")
    return f"{len(units)} units"


def estimates(vectors: Vectors) -> str:
    """Check adjusted areas: they add up to the mapped ones of their place, lie in their interval, and have a source.

    Loss without a driver has none. The layer `estimates` agrees with `summary` on what is mapped.
    """
    summary, table = vectors.frames["summary"], vectors.frames["estimates"]
    names = {"adjusted_ha": "area_ha_adjusted", "low_ha": "area_ha_low", "high_ha": "area_ha_high"}
    renamed = table.rename(columns={**names, "mapped_ha": "area_ha"})
    for layer, frame in (("summary", summary), ("estimates", renamed)):
        place = ["unit_id", "loss_year", *(["scope"] if "scope" in frame else [])]
        ids = frame["unit_id"].fillna("region") + " " + frame["loss_year"].astype(str) + " " + frame["driver"]
        adjusted, low, high = (pd.to_numeric(frame[name]).to_numpy(float, na_value=np.nan) for name in names.values())
        told, bounded = ~np.isnan(adjusted), ~np.isnan(low) & ~np.isnan(high)
        without = frame["driver"].isin(WITHOUT_DRIVER).to_numpy()
        slack = _SUM * np.maximum(np.nan_to_num(adjusted), 1.0)
        _refuse(without & (told | bounded), ids, f"{layer}: an estimate of loss without a driver")
        _refuse(told != frame["interval_source"].notna().to_numpy(), ids, f"{layer}: an estimate without its source")
        _refuse(np.isnan(low) != np.isnan(high), ids, f"{layer}: half an interval")
        inside = (low >= 0) & (low <= adjusted + slack) & (adjusted <= high + slack)
        _refuse(bounded & ~inside, ids, f"{layer}: the estimate lies outside its interval")
        _refuse(bounded & (frame["reference_n"].fillna(0) < 1), ids, f"{layer}: an interval without reference events")
        _adding_up(frame[~without].assign(adjusted=adjusted[~without]), place, layer)
    if len(table):
        _mapped_alike(summary, table)
    return f"{int(summary['area_ha_adjusted'].notna().sum())} of {len(summary)} rows of summary, {len(table)} estimates"


def _adding_up(frame: pd.DataFrame, place: list[str], layer: str) -> None:
    """Compare the adjusted with the mapped area of each place that has adjusted areas."""
    grouped = frame.assign(told=frame["adjusted"].notna()).groupby(place, dropna=False)
    sums = grouped.agg(mapped=("area_ha", "sum"), adjusted=("adjusted", "sum"), told=("told", "all")).reset_index()
    off = (sums["adjusted"] - sums["mapped"]).abs() > _SUM * sums["mapped"]
    where = sums["unit_id"].fillna("region").astype(str) + " " + sums["loss_year"].astype(str)
    _refuse(sums["told"] & off, where, f"{layer}: adjusted areas against mapped")


def _mapped_alike(summary: pd.DataFrame, table: pd.DataFrame) -> None:
    """Compare what is mapped by driver: region, region and year, unit."""
    year = table["loss_year"].astype(str)
    parts = (
        (["driver"], (table["scope"] == "region") & (year == "all")),
        (["loss_year", "driver"], (table["scope"] == "region") & (year != "all")),
        (["unit_id", "driver"], table["scope"] == "unit"),
    )
    rows = summary.assign(loss_year=summary["loss_year"].astype(str), unit_id=summary["unit_id"].astype(str))
    for keys, chosen in parts:
        given = rows.groupby(keys)["area_ha"].sum()
        found = table[chosen].astype({"unit_id": str, "loss_year": str}).groupby(keys)["mapped_ha"].sum()
        for key in given.index.union(found.index):
            value, expected = float(found.get(key, 0.0)), float(given.get(key, 0.0))
            _equal(value, expected, float(given.sum()), f"estimates of {key}: mapped_ha against summary")


def containment(vectors: Vectors) -> str:
    """Check that each patch lies inside its event, to 1 % of its area: corners differ, so straight edges do too."""
    patches, events = gpd.GeoDataFrame(vectors.frames["patches"]), vectors.events.drop_duplicates("event_id")
    rows = pd.Index(events["event_id"]).get_indexer(pd.Index(patches["event_id"]))
    inner, outer = _shapes(patches), _shapes(events)[rows]
    rest = shapely.area(shapely.difference(inner, outer))
    _refuse((rows < 0) | (rest > _AREA * shapely.area(inner)), patches["event_id"], "a patch reaches out of its event")
    return f"{len(patches)} patches"


CHECKS: tuple[tuple[str, Callable[[Vectors], str]], ...] = (
    ("geometries valid", geometries),
    ("event identifiers", identifiers),
    ("status and driver", statuses),
    ("probabilities", probabilities),
    ("points inside events", places),
    ("areas geodesic", areas),
    ("sums agree", sums),
    ("estimates", estimates),
    ("main drivers", dominant),
    ("patches inside events", containment),
)


def _shapes(frame: pd.DataFrame) -> np.ndarray:
    return np.asarray(gpd.GeoDataFrame(frame).geometry.array)


def _is_empty(blob: bytes | None) -> int | None:
    """Return the empty flag of a GeoPackage geometry header (bit 4 of byte 3), None for null."""
    return None if blob is None else (blob[3] >> 4) & 1


def _refuse(bad: pd.Series | np.ndarray, ids: pd.Series, fault: str) -> None:
    mask = np.asarray(bad, bool)
    if mask.any():
        first = ", ".join(str(value) for value in ids[mask][:3])
        raise ProductError(f"{fault}: {int(mask.sum())} rows, first {first}")


def _equal(value: float, expected: float, total: float, what: str) -> None:
    if not abs(value - expected) <= _SUM * max(abs(expected), 1e-3 * total):
        raise ProductError(f"{what}: {value:.6f} ha and {expected:.6f} ha")


def _same(events: pd.DataFrame, summary: pd.DataFrame, total: float) -> None:
    """Compare area and number of events per loss year and driver."""
    keys = ["loss_year", "driver"]
    given = events.groupby(keys, as_index=False).agg(area=("area_ha", "sum"), count=("area_ha", "size"))
    found = summary.groupby(keys, as_index=False).agg(mapped=("area_ha", "sum"), listed=("events", "sum"))
    both = given.merge(found, on=keys, how="outer").fillna({"area": 0.0, "count": 0, "mapped": 0.0, "listed": 0})
    for row in both.to_dict("records"):
        what = f"summary of {row['loss_year']} {row['driver']} against events"
        _equal(float(row["mapped"]), float(row["area"]), total, what)
        if int(row["listed"]) != int(row["count"]):
            raise ProductError(f"{what}: {int(row['listed'])} and {int(row['count'])} events")
