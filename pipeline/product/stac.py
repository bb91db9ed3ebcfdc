"""`item.json`: the product as one STAC Item that says where it lies, what its classes mean and what it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import antimeridian
import geopandas as gpd
import numpy as np
import pystac
import rasterio
import rasterio.warp
import shapely
from shapely.geometry import mapping

from pipeline.labels import NO_DATA, LabelScheme
from pipeline.product import record

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
_SHA256_MULTIHASH = "1220"  # multihash code 0x12 = sha2-256, length 0x20 bytes


def make_item(
    folder: Path,
    region: str,
    years: tuple[int, ...],
    scheme: LabelScheme,
    frames: Mapping[str, gpd.GeoDataFrame],
    run: Mapping[str, object],
) -> pystac.Item:
    """Return the STAC Item of a product whose other files lie in `folder`; vectors in EPSG:4326.

    An optional column `href` of the scenes becomes `derived_from` links. The Item's geometry is `run["aoi"]`
    (a GeoJSON geometry in degrees) where given, else that of the blocks, else that of the rasters.

    Raises:
        OSError, RasterioError: a file of the product cannot be read.
    """
    shape = _footprint(folder, frames["blocks"], run)
    scenes = frames["scenes"]
    used = scenes[scenes["used"].fillna(False).astype(bool)]
    item = pystac.Item(
        id=re.sub(r"[^\w.-]+", "-", f"{region}-{min(years)}-{max(years)}").strip("-"),
        geometry=shape,
        bbox=[round(value, 7) for value in antimeridian.bbox(shape)],
        datetime=None,
        start_datetime=datetime(min(years), 1, 1, tzinfo=UTC),
        end_datetime=datetime(max(years), 12, 31, 23, 59, 59, tzinfo=UTC),
        properties={
            "title": f"Drivers of forest loss, {region}, {_span(years)}",
            "processing:software": {"clearcause": str(_version(run))},
            "processing:lineage": "Landsat composites after each loss, classified per event (ForestNet method)",
            "clearcause:complete": bool(run.get("complete", True)),
            "clearcause:simulated": bool(run.get("simulated", False)),
            "clearcause:scenes": sorted(used["scene_id"].astype(str)),
        },
        stac_extensions=list(EXTENSIONS),
    )
    for key, asset in _assets(folder, scheme).items():
        item.add_asset(key, asset)
    for href in sorted(set(used["href"].dropna())) if "href" in used else ():
        item.add_link(pystac.Link("derived_from", href, "application/json"))
    return item


def public_href(href: object) -> str:
    """Return a remote address without query, fragment and credentials, or "" for a local path (which is nobody's)."""
    parts = urlsplit(str(href))
    if parts.scheme not in {"http", "https", "s3", "gs"} or not parts.hostname:
        return ""
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def write_item(path: Path, item: pystac.Item) -> None:
    """Write the Item, without links to where it happens to lie; raises OSError or ProductError."""
    record.write_file(path, record.to_json(item.to_dict(include_self_link=False)))


def _span(years: tuple[int, ...]) -> str:
    return str(min(years)) if min(years) == max(years) else f"{min(years)} to {max(years)}"


def _version(run: Mapping[str, object]) -> object:
    versions = run.get("versions")
    return versions.get("clearcause", "unknown") if isinstance(versions, Mapping) else "unknown"


def _footprint(folder: Path, blocks: gpd.GeoDataFrame, run: Mapping[str, object]) -> dict[str, Any]:
    """Return a GeoJSON geometry in EPSG:4326."""
    aoi = run.get("aoi")
    if isinstance(aoi, Mapping):
        return dict(aoi)
    known = blocks.geometry.dropna()
    if len(known):
        return dict(mapping(shapely.union_all(np.asarray(known.make_valid().array), grid_size=1e-6)))
    with rasterio.open(folder / record.DRIVERS_FILE) as dataset:
        return dict(mapping(shapely.box(*rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds))))


def _assets(folder: Path, scheme: LabelScheme) -> dict[str, pystac.Asset]:
    classes = [{"value": c.code, "name": c.name, "title": c.title, "color_hint": c.colour[1:].upper()} for c in scheme]
    nothing = {"value": NO_DATA, "name": "no_data", "title": "No data", "nodata": True}
    drivers = {"name": "driver", "description": "Class code", "classification:classes": [*classes, nothing]}
    confidence = {"name": "confidence", "description": "Confidence of the driver", "unit": "%"}
    table = (
        (record.VECTOR_FILE, "Events, patches, units, scenes, blocks, summary", pystac.MediaType.GEOPACKAGE, "data"),
        (record.DRIVERS_FILE, "Drivers", pystac.MediaType.COG, "data"),
        (record.CONFIDENCE_FILE, "Confidence", pystac.MediaType.COG, "data"),
        (record.REPORT_FILE, "Report", pystac.MediaType.HTML, "overview"),
        (record.RUN_FILE, "Run record", pystac.MediaType.JSON, "metadata"),
    )
    bands: dict[str, dict[str, Any]] = {record.DRIVERS_FILE: drivers, record.CONFIDENCE_FILE: confidence}
    assets = {}
    for name, title, media, role in table:
        fields: dict[str, Any] = _raster_fields(folder / name, bands[name]) if name in bands else {}
        if name != record.RUN_FILE:  # written last, so it cannot be described here
            path = folder / name
            fields |= {"file:size": path.stat().st_size, "file:checksum": checksum(record.sha256(path))}
        key = name.replace(".", "_")
        assets[key] = pystac.Asset(f"./{name}", title=title, media_type=media, roles=[role], extra_fields=fields)
    return assets


def checksum(sha256: str) -> str:
    """Return a hexadecimal SHA-256 as the multihash that `file:checksum` asks for."""
    return _SHA256_MULTIHASH + sha256


def _raster_fields(path: Path, band: dict[str, Any]) -> dict[str, Any]:
    with rasterio.open(path) as dataset:
        code = dataset.crs.to_authority()
        projection: dict[str, Any] = {"proj:code": ":".join(code) if code else None}
        if not code:
            projection["proj:wkt2"] = dataset.crs.to_wkt(version="WKT2_2019")
        return {
            **projection,
            "proj:shape": list(dataset.shape),
            "proj:transform": list(dataset.transform)[:6],
            "raster:sampling": "area",
            "raster:spatial_resolution": abs(dataset.transform.a),
            "bands": [{**band, "data_type": "uint8", "nodata": NO_DATA}],
        }
