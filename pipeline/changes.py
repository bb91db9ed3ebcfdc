"""Two products of one region compared: an older run with a newer one, or two models on the same loss.

Events are matched by `event_id`, which is the same in every run on the same loss data. Where the loss differs, events
without a match are also compared by place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely

from pipeline.errors import ProductError
from pipeline.grid import EQUAL_AREA
from pipeline.product.record import staged
from pipeline.tables import Product, open_product

_MOVED = 0.1
"""A confidence that moves by more is said to have changed."""
_OVERLAP = 0.5
"""Events of one year that share at least this part of the smaller one are taken for the same place."""


@dataclass(frozen=True)
class Changes:
    """What differs between two products.

    Attributes:
        settings: (what, old, new) of everything that differs in how the two were made.
        counts: events of old and new, and how many appeared, are gone, are in both, and changed in what.
        drivers: events in both by old and new driver (or status): columns old, new, events, area_ha (new).
        units: area by unit and driver (or status): columns unit_id, unit_name, driver, old_ha, new_ha, change_ha.
        events: the events that changed, appeared or are gone, with geometry in EPSG:4326.
    """

    settings: tuple[tuple[str, str, str], ...]
    counts: dict[str, int | float]
    drivers: pd.DataFrame
    units: pd.DataFrame
    events: gpd.GeoDataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, events left out."""
        return {
            "settings": [{"name": name, "old": old, "new": new} for name, old, new in self.settings],
            "counts": self.counts,
            "drivers": self.drivers.to_dict("records"),
            "units": self.units.to_dict("records"),
        }


def compare_products(old: Path, new: Path) -> Changes:
    """Compare two product folders; raises ConfigError or ProductError where one of them is not whole."""
    one, two = open_product(old), open_product(new)
    before, after = _events(one), _events(two)
    joined = pd.merge(
        before.drop(columns="geometry"), after.drop(columns="geometry"), how="outer", left_index=True, right_index=True,
        suffixes=("_old", "_new"),
    )  # fmt: skip
    in_old, in_new = joined.index.isin(before.index), joined.index.isin(after.index)
    both = in_old & in_new
    driver = both & (joined["label_old"] != joined["label_new"]).to_numpy()
    status = both & (joined["status_old"] != joined["status_new"]).to_numpy()
    moved = (joined["confidence_new"] - joined["confidence_old"]).abs().gt(_MOVED).to_numpy(bool) & both
    joined["change"] = np.select(
        [~in_old, ~in_new, driver, status, moved],
        ["appeared", "gone", "driver", "status", "confidence"],
        default="",
    )
    counts: dict[str, int | float] = {
        "events_old": len(before),
        "events_new": len(after),
        "in_both": int(both.sum()),
        "appeared": int((~in_old).sum()),
        "gone": int((~in_new).sum()),
        "driver_changed": int(driver.sum()),
        "status_changed": int(status.sum()),
        "confidence_moved": int(moved.sum()),
        "area_old_ha": round(float(before["area_ha"].sum()), 4),
        "area_new_ha": round(float(after["area_ha"].sum()), 4),
        "driver_changed_ha": round(float(joined.loc[driver, "area_ha_new"].sum()), 4),
    }
    gone, appeared = before[~before.index.isin(after.index)], after[~after.index.isin(before.index)]
    counts |= _by_place(gone, appeared)
    return Changes(
        tuple(_settings(one, two)), counts, _matrix(joined[both]), _units(before, after), _rows(joined, before, after)
    )


def _events(product: Product) -> gpd.GeoDataFrame:
    frame = product.read("events", "EPSG:4326").set_index("event_id")
    if not frame.index.is_unique:
        raise ProductError(f"{product.folder}: an event_id is there twice; the product is damaged")
    label = frame["driver"].where(frame["driver"].notna(), frame["status"]).astype(str)
    kept = ["loss_year", "status", "confidence", "area_ha", "unit_id", "unit_name", "geometry"]
    frame = frame[kept].assign(label=label)
    for column in ("status", "unit_id", "unit_name"):
        frame[column] = frame[column].astype(object)
    return frame


def _settings(one: Product, two: Product) -> list[tuple[str, str, str]]:
    """What differs in how two products were made."""

    def said(product: Product) -> dict[str, str]:
        run = product.run
        model, config, inputs = run.get("model", {}), run.get("config", {}), run.get("inputs", {})
        classes = ", ".join(f"{c.code} {c.name}" for c in product.scheme)
        values = {
            "region": run.get("region"),
            "loss years": ", ".join(map(str, run.get("years", []))),
            "model": f"{model.get('name')} {model.get('version')}",
            "model weights": str(model.get("sha256"))[:12],
            "classes": classes,
            "loss": inputs.get("loss"),
            "smallest area (ha)": config.get("loss", {}).get("min_area_ha"),
            "uncertain below": config.get("output", {}).get("uncertain_below"),
            "grid": " ".join(str(v) for v in run.get("grid", {}).values()),
            "complete": run.get("complete"),
            "simulated": run.get("simulated"),
            "version": run.get("versions", {}).get("clearcause"),
        }
        return {name: str(value) for name, value in values.items()}

    old, new = said(one), said(two)
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]


def _matrix(both: pd.DataFrame) -> pd.DataFrame:
    """Events in both products by old and new driver."""
    table = both.groupby(["label_old", "label_new"], as_index=False).agg(
        events=("area_ha_new", "size"), area_ha=("area_ha_new", "sum")
    )
    return table.rename(columns={"label_old": "old", "label_new": "new"}).astype({"events": int})


def _units(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Area by unit and driver in both products; a unit is known by its identifier, its name is the newer one."""
    keys = ["unit_id", "label"]
    old, new = (frame.groupby(keys)["area_ha"].sum() for frame in (before, after))
    names = {**dict(zip(before["unit_id"], before["unit_name"], strict=True)),
             **dict(zip(after["unit_id"], after["unit_name"], strict=True))}  # fmt: skip
    table = pd.DataFrame({"old_ha": old, "new_ha": new}).fillna(0.0).sort_index().reset_index()
    table.insert(1, "unit_name", table["unit_id"].map(names))
    table["change_ha"] = table["new_ha"] - table["old_ha"]
    return table.rename(columns={"label": "driver"})


def _by_place(gone: gpd.GeoDataFrame, appeared: gpd.GeoDataFrame) -> dict[str, int | float]:
    """Of the events without a match, how many lie in the same place and year, and how many of these agree."""
    if not len(gone) or not len(appeared):
        return {"same_place": 0, "same_place_same_driver": 0}
    ours, theirs = (np.asarray(f.geometry.to_crs(EQUAL_AREA).values) for f in (gone, appeared))
    one, two = shapely.STRtree(theirs).query(ours, predicate="intersects")
    year = gone["loss_year"].to_numpy()[one] == appeared["loss_year"].to_numpy()[two]
    one, two = one[year], two[year]
    shared = shapely.area(shapely.intersection(ours[one], theirs[two]))
    same = shared >= _OVERLAP * np.minimum(shapely.area(ours[one]), shapely.area(theirs[two]))
    one, two, shared = one[same], two[same], shared[same]
    order = np.lexsort((two, -shared, one))
    first = order[np.unique(one[order], return_index=True)[1]]
    agree = gone["label"].to_numpy()[one[first]] == appeared["label"].to_numpy()[two[first]]
    return {"same_place": len(first), "same_place_same_driver": int(agree.sum())}


def _rows(joined: pd.DataFrame, before: gpd.GeoDataFrame, after: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    changed = joined[joined["change"] != ""].sort_index()
    shapes = after.geometry.reindex(changed.index)
    shapes = shapes.where(shapes.notna(), before.geometry.reindex(changed.index))
    table = pd.DataFrame(
        {
            "event_id": changed.index.astype(str),
            "change": changed["change"].to_numpy(),
            "loss_year": changed["loss_year_new"].fillna(changed["loss_year_old"]).to_numpy(int),
            **{
                f"{name}_{side}": _nulls(changed[f"{column}_{side}"])
                for name, column in (("driver", "label"), ("status", "status"))
                for side in ("old", "new")
            },
            "confidence_old": changed["confidence_old"].to_numpy(float, na_value=np.nan),
            "confidence_new": changed["confidence_new"].to_numpy(float, na_value=np.nan),
            "area_ha": changed["area_ha_new"].fillna(changed["area_ha_old"]).to_numpy(float),
        }
    )
    return gpd.GeoDataFrame(table, geometry=list(shapes), crs="EPSG:4326")


def _nulls(values: pd.Series) -> np.ndarray:
    return values.astype(object).where(values.notna(), None).to_numpy(object)


def write_changes(changes: Changes, path: Path) -> None:
    """Write a GeoPackage with the layer `changes` and the tables `drivers` and `units`, whole or not at all."""
    with staged(path) as temporary:
        pyogrio.write_dataframe(
            changes.events, temporary, layer="changes", driver="GPKG", geometry_type="MultiPolygon",
            promote_to_multi=True, use_arrow=True,
        )  # fmt: skip
        for name in ("drivers", "units"):
            pyogrio.write_dataframe(getattr(changes, name), temporary, layer=name, driver="GPKG", use_arrow=True)


def render_changes(changes: Changes) -> str:
    """Return the comparison as plain text."""
    count = changes.counts
    lines = [f"{name}: {old} -> {new}" for name, old, new in changes.settings] or ["made in the same way"]
    lines += [
        "",
        f"events: {count['events_old']:,} -> {count['events_new']:,}; {count['in_both']:,} in both, "
        f"{count['appeared']:,} appeared, {count['gone']:,} gone",
        f"area: {count['area_old_ha']:,.1f} -> {count['area_new_ha']:,.1f} ha",
        f"in both: driver changed in {count['driver_changed']:,} ({count['driver_changed_ha']:,.1f} ha), status in "
        f"{count['status_changed']:,}, confidence moved by more than {_MOVED:g} in {count['confidence_moved']:,}",
    ]
    if count["appeared"] and count["gone"]:
        lines.append(
            f"the loss data differ: {count['same_place']:,} of {count['gone']:,} events that are gone lie where one of "
            f"the same year appeared, {count['same_place_same_driver']:,} with the same driver"
        )
    changed = changes.drivers[changes.drivers["old"] != changes.drivers["new"]]
    if len(changed):
        lines += ["", f"{'old driver':<26}{'new driver':<26}{'events':>9}{'ha':>14}"]
        lines += [f"{r.old:<26}{r.new:<26}{r.events:>9,}{r.area_ha:>14,.1f}" for r in changed.itertuples()]
    lines += ["", f"{'unit':<32}{'driver':<26}{'old ha':>13}{'new ha':>13}{'change':>13}"]
    lines += [
        f"{str(r.unit_name or r.unit_id)[:31]:<32}{r.driver:<26}{r.old_ha:>13,.1f}{r.new_ha:>13,.1f}"
        f"{r.change_ha:>+13,.1f}"
        for r in changes.units.itertuples()
    ]
    return "\n".join(lines)
