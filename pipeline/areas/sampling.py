"""`clearcause sample`: draw events of a product and write the files to interpret them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.areas.draw import DrawParams, allocate, draw, make_strata
from pipeline.areas.reference import ABOUT_TABLE, KEY_TABLE, POINTS_LAYER, SAMPLE_LAYER, STRATA_TABLE
from pipeline.areas.template import SAMPLE_FILE, SHEET_FILE, TO_FILL, contact_sheet, write_template
from pipeline.artifacts import committed_folder
from pipeline.chips import draw_chips
from pipeline.errors import ConfigError, InputError, ModelError, OutputError, ProductError
from pipeline.labels import LabelScheme
from pipeline.pictures import ChipPair
from pipeline.plan import PLAN_FILE, Plan, read_plan
from pipeline.product import record

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_AT_ONCE = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Product:
    """A finished product as far as samples need it: `events` in EPSG:4326, and the digest of its vectors."""

    folder: Path
    run: dict[str, Any]
    scheme: LabelScheme
    events: GeoDataFrame
    sha256: str


@dataclass(frozen=True)
class Drawn:
    """What was written: folder, strata with `drawn`, how many events have pictures, and why others have none."""

    folder: Path
    strata: pd.DataFrame
    events: int
    pictures: int
    remark: str


def read_product(folder: Path) -> Product:
    """Read a finished product; raises ConfigError for a folder that is none, or one that was changed."""
    import geopandas as gpd

    if not folder.is_dir():
        raise ConfigError(f"product {folder}: no such folder")
    vectors = folder / record.VECTOR_FILE
    try:
        run: dict[str, Any] = dict(record.read_run(folder))
        scheme = LabelScheme.from_list(run["labels"])
        listed = run["files"][record.VECTOR_FILE]
        digest = record.sha256(vectors)
    except (ProductError, ModelError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"product {folder}: is no whole product ({error}); run it again") from error
    if digest != listed:
        raise ConfigError(f"product {vectors}: was changed after the run; sample and assess the product as published")
    events = gpd.read_file(vectors, layer="events", engine="pyogrio").to_crs("EPSG:4326")
    return Product(folder, run, scheme, events, digest)


def make_sample(
    product: Product, folder: Path, params: DrawParams, show: bool, pictures: bool, progress: Progress | None = None
) -> Drawn:
    """Draw a sample of a product and write its folder: sample.gpkg, index.html and pictures.

    Args:
        product: the product.
        folder: a folder that is not there yet.
        params: size, allocation and seed.
        show: the layer to fill in tells the mapped driver; interpretation is blind without.
        pictures: draw pictures before and after the loss, from the run's scenes.
        progress: told the number of events whose pictures are drawn, and of all.

    Raises:
        InputError: the folder is there already, no event has a driver, or the size is too small.
    """
    if folder.exists():
        raise OutputError(f"--out {folder}: is there already; labels in it would be lost, so name another folder")
    events = product.events
    number, strata = make_strata(events, product.scheme.names, params.minimum)
    if strata.empty:
        raise InputError(f"product {product.folder}: no event has a driver, so there is nothing to sample")
    counts = allocate(strata, params)
    strata = strata.assign(drawn=counts)
    rows = draw(number, counts, events["event_id"].to_numpy(object), params.seed)
    chosen = events.iloc[rows].reset_index(drop=True)
    stratum = number[rows]
    pairs, remark = _pictures(product, chosen, progress) if pictures else ({}, "Drawn without pictures, as asked.")
    with committed_folder(folder) as beside:
        named = _save_pictures(beside, chosen, pairs)
        frames = _frames(product, params, chosen, stratum, strata, named)
        write_template(beside / SAMPLE_FILE, frames, product.scheme, show)
        sheet = contact_sheet(
            f"Sample of {product.run['region']}", _cards(chosen, pairs, named), product.scheme, remark
        )
        (beside / SHEET_FILE).write_text(sheet, encoding="utf-8")
    drawn = sum(bool(pair.before or pair.after) for pair in pairs.values())
    return Drawn(folder, strata, len(chosen), drawn, remark)


def _frames(
    product: Product, params: DrawParams, chosen: GeoDataFrame, stratum: np.ndarray, strata: pd.DataFrame,
    named: list[dict[str, str]],
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """The tables of `sample.gpkg`. Six parameters: what a draw consists of."""
    import geopandas as gpd

    number = np.arange(1, len(chosen) + 1)
    layer = chosen[["event_id", "loss_year", "area_ha", "lon", "lat", "confidence", "geometry"]].assign(
        number=number,
        mapped_driver=chosen["driver"],
        before=[pictures.get("before") for pictures in named],
        after=[pictures.get("after") for pictures in named],
        **dict.fromkeys(TO_FILL),
    )
    points = gpd.GeoDataFrame(
        {"number": number, "event_id": chosen["event_id"]},
        geometry=gpd.points_from_xy(chosen["lon"], chosen["lat"]),
        crs="EPSG:4326",
    )
    probability = (strata["drawn"] / strata["population"]).to_numpy()[stratum - 1]
    key = pd.DataFrame({"event_id": chosen["event_id"], "stratum": stratum, "mapped_driver": chosen["driver"]})
    about = {
        "region": product.run["region"],
        "drivers_sha256": product.sha256,
        "model": "{name} {version}".format(**product.run["model"]),
        "size": len(chosen),
        "minimum": params.minimum,
        "allocation": params.allocation,
        "seed": params.seed,
        "classes": ", ".join(product.scheme.names),
    }
    table = pd.DataFrame({"key": list(about), "value": [str(value) for value in about.values()]})
    return {
        SAMPLE_LAYER: layer,
        POINTS_LAYER: points,
        STRATA_TABLE: strata,
        KEY_TABLE: key.assign(probability=probability),
        ABOUT_TABLE: table,
    }


def _pictures(product: Product, chosen: GeoDataFrame, progress: Progress | None) -> tuple[dict[str, ChipPair], str]:
    """Pictures by event, as far as the run's plan and its scenes are at hand, and what to say where they are not."""
    plan = _plan(product)
    if isinstance(plan, str):
        return {}, plan
    ids, pairs = [str(event) for event in chosen["event_id"]], {}
    for start in range(0, len(ids), _AT_ONCE):
        for pair in draw_chips(plan, chosen, ids[start : start + _AT_ONCE]):
            pairs[pair.event_id] = pair
        if progress:
            progress(len(pairs), len(ids))
    blank = sum(not (pair.before or pair.after) for pair in pairs.values())
    return pairs, f"{blank} of {len(ids)} events have no picture." if blank else ""


def _plan(product: Product) -> Plan | str:
    """The plan that the product was made by, or why it is not there."""
    work = product.folder.with_name(product.folder.name + ".work")
    if not (work / PLAN_FILE).is_file():
        return f"No pictures: the run's folder {work.name} is not beside the product."
    try:
        plan = read_plan(work)
    except (KeyError, TypeError, ValueError, OSError):
        return f"No pictures: {work.name}/{PLAN_FILE} cannot be read; it is of another version."
    if plan.inputs != product.run.get("inputs", {}).get("plan"):
        return f"No pictures: the run's folder {work.name} is of another run than the product."
    return plan


def _save_pictures(folder: Path, chosen: GeoDataFrame, pairs: dict[str, ChipPair]) -> list[dict[str, str]]:
    """Write the JPEGs; returns for each event the relative file names by `before` and `after`, as far as there are."""
    out: list[dict[str, str]] = []
    if any(pair.before or pair.after for pair in pairs.values()):
        (folder / "pictures").mkdir()
    for number, event in enumerate(chosen["event_id"], 1):
        names = {}
        pair = pairs.get(str(event))
        for when, picture in (("before", pair.before), ("after", pair.after)) if pair else ():
            if picture:
                names[when] = f"pictures/{number:04d}_{when}_{picture.day.isoformat()}.jpg"
                (folder / names[when]).write_bytes(picture.jpeg)
        out.append(names)
    return out


def _cards(chosen: GeoDataFrame, pairs: dict[str, ChipPair], named: list[dict[str, str]]) -> list[dict[str, Any]]:
    columns = ["event_id", "loss_year", "area_ha", "lon", "lat"]
    out = []
    for number, (row, names) in enumerate(zip(chosen[columns].to_dict("records"), named, strict=True), 1):
        pair = pairs.get(str(row["event_id"]))
        days = {"before": pair.before, "after": pair.after} if pair else {}
        shown = [
            {"file": name, "when": when, "day": picture.day.isoformat()}
            for when, name in names.items()
            if (picture := days[when])
        ]
        out.append({**row, "number": number, "pictures": shown, "remark": pair.note if pair else ""})
    return out
