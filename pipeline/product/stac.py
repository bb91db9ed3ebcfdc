"""`item.json` and `collection.json`: where the product lies, what its classes and columns mean, what it came from.

The Item describes this product; the Collection says how such products are made: the model (MLM extension), the classes
and the layers. Extensions are checked against the schemas beside this module, so without a network.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping
from contextlib import closing
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
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from shapely.geometry import mapping

from pipeline.labels import NO_DATA, LabelScheme
from pipeline.models.card import ModelCard
from pipeline.product import record
from pipeline.product.geopackage import read_only

_BASE = "https://stac-extensions.github.io"
_SCHEMAS = ("projection-v2.0.0", "raster-v1.1.0", "classification-v2.0.0", "file-v2.1.0", "processing-v1.1.0",
            "table-v1.2.0", "mlm-v1.4.0")  # fmt: skip
_URIS = {name: f"{_BASE}/{name.replace('-', '/')}/schema.json" for name in _SCHEMAS}
ITEM_EXTENSIONS = tuple(uri for name, uri in _URIS.items() if not name.startswith("mlm"))
COLLECTION_EXTENSIONS = tuple(uri for name, uri in _URIS.items() if not name.startswith("file"))
_SHA256_MULTIHASH = "1220"  # multihash code 0x12 = sha2-256, length 0x20 bytes


def make_item(
    folder: Path,
    card: ModelCard,
    years: tuple[int, ...],
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
    region = str(run.get("region", ""))
    item = pystac.Item(
        id=_slug(f"{region}-{min(years)}-{max(years)}"),
        geometry=shape,
        bbox=[round(value, 7) for value in antimeridian.bbox(shape)],
        datetime=None,
        start_datetime=datetime(min(years), 1, 1, tzinfo=UTC),
        end_datetime=datetime(max(years), 12, 31, 23, 59, 59, tzinfo=UTC),
        properties={
            "title": record.product_title(run),
            **_processing(run),
            "processing:expression": {
                "format": "stac-mlm",
                "expression": {
                    "href": f"./{record.COLLECTION_FILE}",
                    "mlm:name": card.name,
                    "version": card.version,
                    "sha256": card.sha256,
                },
            },
            "clearcause:complete": bool(run.get("complete", True)),
            "clearcause:simulated": bool(run.get("simulated", False)),
            "clearcause:scenes": sorted(used["scene_id"].astype(str)),
        },
        stac_extensions=list(ITEM_EXTENSIONS),
        collection=_collection_id(region),
    )
    item.add_link(pystac.Link("collection", f"./{record.COLLECTION_FILE}", "application/json"))
    for key, asset in _assets(folder, card.scheme).items():
        item.add_asset(key, asset)
    for href in sorted(set(used["href"].dropna())) if "href" in used else ():
        item.add_link(pystac.Link("derived_from", href, "application/json"))
    return item


def make_collection(folder: Path, card: ModelCard, item: pystac.Item, run: Mapping[str, object]) -> dict[str, Any]:
    """Return the STAC Collection of products made as `item` was, with the model in its summaries.

    Raises:
        OSError, sqlite3.Error: the GeoPackage in `folder` cannot be read.
    """
    software = {"name": "clearcause", "roles": ["processor"], **_processing(run)}
    common = item.common_metadata
    collection = pystac.Collection(
        id=_collection_id(str(run.get("region", ""))),
        title=f"Drivers of forest loss, {run.get('region', '')}",
        description="Why forest went: one driver for each connected patch of forest loss of one year, from Landsat "
        "images after the loss, with calibrated probabilities, areas by unit, and what was not seen.",
        extent=pystac.Extent(
            pystac.SpatialExtent([item.bbox or []]),
            pystac.TemporalExtent([[common.start_datetime, common.end_datetime]]),
        ),
        license="other",
        providers=[pystac.Provider.from_dict(software)],
        keywords=["forest loss", "deforestation", "drivers", "Landsat"],
        stac_extensions=list(COLLECTION_EXTENSIONS),
        summaries=pystac.Summaries(_model(card)),
        extra_fields={"table:tables": _tables(folder / record.VECTOR_FILE)},
    )
    data = collection.to_dict(include_self_link=False)
    data["item_assets"] = {key: _definition(asset.to_dict()) for key, asset in item.assets.items()}
    data["links"] = [{"rel": "item", "href": f"./{record.ITEM_FILE}", "type": "application/geo+json"}]
    return data


def _model(card: ModelCard) -> dict[str, Any]:
    """Return the model as summaries; the schema of the MLM extension wants each to be a JSON Schema, not a list."""
    tasks = ["semantic-segmentation", "classification"]
    return {
        "mlm:name": {"type": "string", "const": card.name},
        "mlm:architecture": {"type": "string", "const": f"{card.architecture} ({card.backbone.name})"},
        "mlm:tasks": {"type": "array", "items": {"type": "string", "enum": tasks}},
        "version": {"type": "string", "const": card.version},
        "clearcause:model_sha256": {"type": "string", "const": card.sha256},
    }


def validate(data: Mapping[str, Any]) -> None:
    """Validate an Item or Collection against STAC and each extension it names, without a network.

    Raises:
        STACValidationError: it does not follow a schema, which is named.
        ValueError: it names an extension whose schema is not shipped.
    """
    validator = JsonSchemaSTACValidator()
    folder = importlib.resources.files("pipeline.product") / "schemas"
    for name, uri in _URIS.items():
        validator.schema_cache[uri] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    kind = pystac.STACObjectType.ITEM if data.get("type") == "Feature" else pystac.STACObjectType.COLLECTION
    validator.validate_core(dict(data), kind, data["stac_version"])
    for uri in data["stac_extensions"]:
        if uri not in validator.schema_cache:
            raise ValueError(f"extension {uri} is not among those shipped")
        validator.validate_extension(dict(data), kind, data["stac_version"], uri)


def public_href(href: object) -> str:
    """Return a remote address without query, fragment and credentials, or "" for a local path (which is nobody's)."""
    parts = urlsplit(str(href))
    if parts.scheme not in {"http", "https", "s3", "gs"} or not parts.hostname:
        return ""
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def write_stac(folder: Path, item: pystac.Item, collection: Mapping[str, Any]) -> None:
    """Write both, without links to where they happen to lie; raises OSError or ProductError."""
    record.write_file(folder / record.ITEM_FILE, record.to_json(item.to_dict(include_self_link=False)))
    record.write_file(folder / record.COLLECTION_FILE, record.to_json(collection))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def _collection_id(region: str) -> str:
    return _slug(f"forest-loss-drivers-{region}")


def _processing(run: Mapping[str, object]) -> dict[str, Any]:
    return {
        "processing:level": "L4",
        "processing:software": {"clearcause": str(_version(run))},
        "processing:lineage": "Landsat composites after each loss, classified per event (ForestNet method)",
    }


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
    drivers = {
        "bands": [{"name": "driver", "description": "Class code"}],
        "classification:classes": [*classes, nothing],
    }
    confidence = {"bands": [{"name": "confidence", "description": "Confidence of the driver"}], "unit": "%"}
    table = (
        (record.VECTOR_FILE, "Events, patches, units, scenes, blocks, areas", pystac.MediaType.GEOPACKAGE, "data"),
        (record.DRIVERS_FILE, "Drivers", pystac.MediaType.COG, "data"),
        (record.CATEGORIES_FILE, "Class titles of drivers.tif, for GDAL", pystac.MediaType.XML, "metadata"),
        (record.CONFIDENCE_FILE, "Confidence", pystac.MediaType.COG, "data"),
        (record.REPORT_FILE, "Report", pystac.MediaType.HTML, "overview"),
        (record.RUN_FILE, "Run record", pystac.MediaType.JSON, "metadata"),
    )
    bands: dict[str, dict[str, Any]] = {record.DRIVERS_FILE: drivers, record.CONFIDENCE_FILE: confidence}
    assets = {}
    for name, title, media, role in table:
        fields: dict[str, Any] = _raster_fields(folder / name, bands[name]) if name in bands else {}
        if name == record.VECTOR_FILE:
            fields = _table_fields(folder / name)
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
        resolution = {} if dataset.crs.is_geographic else {"spatial_resolution": abs(dataset.transform.a)}
        return {
            **projection,
            "proj:shape": list(dataset.shape),
            "proj:transform": list(dataset.transform)[:6],
            "data_type": "uint8",
            "nodata": NO_DATA,
            **band,
            "raster:bands": [{"data_type": "uint8", "nodata": NO_DATA, "sampling": "area", **resolution}],
        }


def _table_fields(path: Path) -> dict[str, Any]:
    """Return the columns of the events, with type and meaning, and their number."""
    query = (
        "SELECT i.name, i.type, c.description FROM pragma_table_info('events') AS i "
        "LEFT JOIN gpkg_data_columns AS c ON c.table_name = 'events' AND c.column_name = i.name ORDER BY i.cid"
    )
    with closing(read_only(path)) as database:
        rows = database.execute(query).fetchall()
        (count,) = database.execute("SELECT count(*) FROM events").fetchone()
    columns = [
        {"name": name, "type": kind.lower(), **({"description": text} if text else {})} for name, kind, text in rows
    ]
    return {"table:primary_geometry": "geom", "table:row_count": count, "table:columns": columns}


def _tables(path: Path) -> list[dict[str, str]]:
    query = "SELECT table_name, description FROM gpkg_contents WHERE table_name != 'layer_styles' ORDER BY rowid"
    with closing(read_only(path)) as database:
        return [{"name": name, "description": text} for name, text in database.execute(query)]


def _definition(asset: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same for every product of a Collection: no place, no size, no grid."""
    own = ("href", "file:", "proj:shape", "proj:transform", "table:row_count")
    return {key: value for key, value in asset.items() if not key.startswith(own)}
