"""The product of one run: its files, written one after the other, `run.json` last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio

from pipeline.errors import ProductError
from pipeline.models.card import ModelCard
from pipeline.pictures import ChipPair
from pipeline.product import record
from pipeline.product.geopackage import write_geopackage
from pipeline.product.rasters import confidence_band, drivers_band, write_categories, write_cog
from pipeline.product.report import write_report
from pipeline.product.stac import make_collection, make_item, public_href, write_stac

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import DataFrame


@dataclass(frozen=True)
class ProductInputs:
    """Everything a product is made of; vectors in EPSG:4326, columns as in `pipeline.product.layers`.

    Attributes:
        region: name of the region.
        years: loss years asked for, at least one.
        card: the model's card; its scheme gives the classes.
        events: MultiPolygon; driver, driver_code, confidence and p_* are null for no_imagery and failed.
        patches: Polygon; same-driver pixel patches inside events.
        units: MultiPolygon; the geometry of the row 'outside any unit' may be None.
        scenes: Polygon or None; an optional `href` becomes a link of the STAC Item.
        blocks: Polygon.
        summary: areas by unit, loss year and driver; no_imagery and failed are rows too.
        estimates: areas and accuracy estimated for the region, its years and its units; may be empty.
        run: nested, JSON-able; whatever differs between two equal runs stands under `timings`, in `run.json` only.
            `complete`, `simulated`, `warnings`, `versions`, `config` and `aoi` (GeoJSON) are used where present.
        drivers: class codes, tiled uint8 GeoTIFF on the run grid, 255 = no data.
        confidence: percent, same grid, 255 exactly where `drivers` is 255.
        crs: CRS of the stored vectors.
        chips: pictures before and after the loss of the events shown in the report.
    """

    region: str
    years: tuple[int, ...]
    card: ModelCard
    events: GeoDataFrame
    patches: GeoDataFrame
    units: GeoDataFrame
    scenes: GeoDataFrame
    blocks: GeoDataFrame
    summary: DataFrame
    estimates: DataFrame
    run: dict[str, object]
    drivers: Path
    confidence: Path
    crs: str = "EPSG:4326"
    chips: tuple[ChipPair, ...] = ()


def write_product(inputs: ProductInputs, folder: Path, timings: Callable[[], dict[str, Any]] = dict) -> None:
    """Write all files of a product into an existing empty `folder`; equal inputs give equal bytes.

    Every file is flushed, read back and compared; `run.json` comes last, so it is there if and only if all is. What
    `timings` says at that moment goes into the record's timings.

    Raises:
        ProductError: the folder is not empty, a column is missing, or a file could not be written whole.
        OSError: the disk is full; names the path.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise ProductError(f"{folder}: a product is written into an existing, empty folder")
    scheme = inputs.card.scheme
    run = _record(inputs)
    names = ("events", "patches", "units", "scenes", "blocks", "summary", "estimates")
    frames = {name: getattr(inputs, name) for name in names}
    if "href" in inputs.scenes:  # an address may carry a signature, a path names somebody's machine
        href = [public_href(value) or None for value in inputs.scenes["href"]]
        frames["scenes"] = inputs.scenes.assign(href=href)
    write_cog(inputs.drivers, folder / record.DRIVERS_FILE, drivers_band(scheme))
    write_categories(folder / record.CATEGORIES_FILE, scheme)
    write_cog(inputs.confidence, folder / record.CONFIDENCE_FILE, confidence_band())
    with rasterio.open(folder / record.DRIVERS_FILE) as dataset:
        grid_crs = dataset.crs.to_wkt()
    write_geopackage(folder / record.VECTOR_FILE, frames, run, scheme, inputs.crs, grid_crs)
    write_report(folder / record.REPORT_FILE, inputs, record.stable(run))
    item = make_item(folder, inputs.card, inputs.years, frames, run)
    write_stac(folder, item, make_collection(folder, inputs.card, item, run))
    known = run.get(record.TIMINGS)
    record.write_run(folder, {**run, record.TIMINGS: {**(known if isinstance(known, dict) else {}), **timings()}})


def _record(inputs: ProductInputs) -> dict[str, object]:
    """Return the run record with what the product itself must say: region, years, model and classes."""
    card = inputs.card
    model = {"name": card.name, "version": card.version, "sha256": card.sha256, "simulated": card.simulated}
    known = inputs.run.get("model")
    own: dict[str, object] = {
        "region": inputs.region,
        "years": list(inputs.years),
        "model": {**known, **model} if isinstance(known, dict) else model,
        "labels": card.scheme.to_list(),
        "crs": inputs.crs,
    }
    return {**own, **{key: value for key, value in inputs.run.items() if key not in own and key != "files"}}
