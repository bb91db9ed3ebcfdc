"""A STAC Item (as a plain dictionary, any STAC version, untrusted) into a `Scene` or its `Refusal`.

Items are read as dictionaries on purpose: reading a `pystac.Item` of an old version fetches its collection over the
network, and one malformed item would end the walk over all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline.catalog.footprint import geojson_footprint
from pipeline.catalog.hrefs import shown, shown_href
from pipeline.catalog.mtl import finite, percent
from pipeline.catalog.names import ProductName, parse_product, platform_number, reflective_bands, refused_level
from pipeline.catalog.scene import BANDS, QA_PIXEL, Asset, Refusal, Scene
from pipeline.errors import SceneError

_ALIASES = {"nir": "nir08", "swir1": "swir16", "swir2": "swir22"} | {name: name for name in BANDS}
_CHECKSUM = re.compile(r"[0-9A-Fa-f]{8,200}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FILE = re.compile(r"(?:.*_)?SR_B([1-7])(?:\.TIFF?)?", re.IGNORECASE)
_QA = re.compile(r"(?:.*_)?QA_PIXEL(?:\.TIFF?)?", re.IGNORECASE)
_USGS, _USGS_BUCKET = "https://landsatlook.usgs.gov/data/", "s3://usgs-landsat/"
type Json = dict[str, Any]
type Resolve = Callable[[object], str]


def scene_from_item(item: object, resolve: Resolve, where: str) -> Scene | Refusal:
    """Return the Landsat Collection 2 Level-2 scene that a STAC Item describes, or why it cannot serve.

    Args:
        item: the parsed JSON, of any shape.
        resolve: turns an asset's href into the path or address to keep; raises ValueError where it must not be read.
        where: name of the file or the address the item came from, for an item without a usable id.
    """
    if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not _ID.fullmatch(item["id"]):
        identity = item.get("id") if isinstance(item, dict) else None
        return Refusal(shown(where), f"not a STAC Item with a plain id (id: {shown_href(identity)})")
    properties = _dict(item.get("properties"))
    footprint = geojson_footprint(item.get("geometry"), item.get("bbox"))
    cloud = percent(properties.get("eo:cloud_cover"))
    when = _datetime(properties)
    try:
        return _scene(item, properties, when, footprint, resolve)
    except SceneError as error:
        return Refusal(item["id"], error.reason, when, cloud, footprint)


def _scene(item: Json, properties: Json, when: datetime | None, footprint: str | None, resolve: Resolve) -> Scene:
    identity = item["id"]
    name = parse_product(identity)
    number = _number(properties, name)
    level = str(properties.get("landsat:correction") or (name.level if name else ""))
    collection = str(properties.get("landsat:collection_number") or (name.collection if name else ""))
    reason = refused_level(level, collection)
    if number is None:
        reason = reason or f"not an acquisition of Landsat 4 to 9 (platform {shown_href(properties.get('platform'))})"
    elif when is None:
        reason = reason or "no usable datetime"
    elif footprint is None:
        reason = reason or "no usable geometry or bbox"
    if reason or number is None or when is None or footprint is None:
        raise SceneError(identity, reason or "not usable")
    return Scene(
        id=identity,
        datetime=when,
        platform=f"landsat-{number}",
        cloud_cover=percent(properties.get("eo:cloud_cover")),
        path=_wrs(properties.get("landsat:wrs_path"), name.path if name else None, 233),
        row=_wrs(properties.get("landsat:wrs_row"), name.row if name else None, 248),
        footprint=footprint,
        assets=_assets(identity, item.get("assets"), _list(properties.get("eo:bands")), number, resolve),
    )


def _assets(identity: str, given: object, shared: list[Any], number: int, resolve: Resolve) -> dict[str, Asset]:
    """Return the reflective bands and qa_pixel; raises SceneError naming the band that cannot be had."""
    assets = {key: _dict(value) for key, value in _dict(given).items()}
    chosen: dict[str, Json] = {}
    by_key = [_by_key(key, number) for key in assets]
    by_common_name = [_by_common_name(asset, shared) for asset in assets.values()]
    for names in (by_key, by_common_name):  # a key that says it wins over a description that says it
        for band, asset in zip(names, assets.values(), strict=True):
            if band is not None:
                chosen.setdefault(band, asset)
    if not set(chosen) & set(BANDS):
        have = ascii(", ".join(name[:40] for name in sorted(assets)[:12]))[1:-1][:200]
        raise SceneError(identity, f"no usable band: none of {', '.join(BANDS)} among its assets ({have or 'none'})")
    found: dict[str, Asset] = {}
    for band in (*BANDS, QA_PIXEL):
        if band in chosen:
            try:
                found[band] = _asset(band, chosen[band], resolve)
            except ValueError as error:
                raise SceneError(identity, f"band {band} cannot be used: {error}") from error
    if len({asset.href for asset in found.values()}) < len(found):
        raise SceneError(identity, "several bands have one address (a query, which is not kept, told them apart)")
    return found


def _by_key(key: str, number: int) -> str | None:
    if key.lower() == QA_PIXEL or _QA.fullmatch(key):
        return QA_PIXEL
    file = _FILE.fullmatch(key)
    return reflective_bands(number).get(file.group(1)) if file else _ALIASES.get(key.lower())


def _by_common_name(asset: Json, shared: list[Any]) -> str | None:
    """Return the band by `eo:bands` (before STAC 1.0 an index into the item's own list) or, since STAC 1.1, `bands`."""
    bands = _list(asset.get("eo:bands")) or _list(asset.get("bands"))
    if len(bands) != 1:  # a browse image of several bands is no band
        return None
    band = bands[0]
    if isinstance(band, int) and not isinstance(band, bool) and 0 <= band < len(shared):
        band = shared[band]
    name = _dict(band).get("common_name") or _dict(band).get("eo:common_name")
    return _ALIASES.get(name.lower()) if isinstance(name, str) else None


def _asset(band: str, asset: Json, resolve: Resolve) -> Asset:
    href = _href(asset, resolve)
    checksum = asset.get("file:checksum")
    checksum = checksum if isinstance(checksum, str) and _CHECKSUM.fullmatch(checksum) else None
    raster = _dict(next(iter(_list(asset.get("raster:bands")) or _list(asset.get("bands"))), None))
    if band == QA_PIXEL:
        return Asset(href, scale=1.0, offset=0.0, nodata=1.0, checksum=checksum)
    given = [raster.get(key, raster.get(f"raster:{key}", asset.get(f"raster:{key}"))) for key in ("scale", "offset")]
    # where an item says neither, the scaling of Collection 2; where it says one, STAC's default for the other
    scale, offset = (Asset.scale, Asset.offset) if given == [None, None] else (given[0] or 1.0, given[1] or 0.0)
    scale, offset = finite(scale), finite(offset)
    if scale is None or offset is None or scale <= 0:
        raise ValueError("its scale and offset are no numbers")
    nodata = finite(raster.get("nodata", asset.get("nodata")))
    return Asset(href, scale, offset, 0.0 if nodata is None else nodata, checksum)


def _href(asset: Json, resolve: Resolve) -> str:
    """Return where the file is read: `href`, or in S3 where that cannot be read or wants a person to log in."""
    href, other = asset.get("href"), _dict(_dict(asset.get("alternate")).get("s3")).get("href")
    in_s3 = other if isinstance(other, str) and other.lower().startswith("s3://") else None
    if isinstance(href, str) and href.startswith(_USGS):
        # the same file: the bucket is laid out like the site
        return resolve(in_s3 or href.replace(_USGS, _USGS_BUCKET, 1))
    try:
        return resolve(href)
    except ValueError:
        if in_s3 is None:
            raise
        return resolve(in_s3)


def _number(properties: Json, name: ProductName | None) -> int | None:
    for key in ("platform", "eo:platform"):
        if isinstance(properties.get(key), str):
            return platform_number(properties[key])
    return name.number if name and 4 <= name.number <= 9 else None


def _datetime(properties: Json) -> datetime | None:
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        when = datetime.fromisoformat(text) if isinstance(text, str) else None
        return None if when is None else (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _wrs(value: object, otherwise: int | None, most: int) -> int | None:
    number = finite(value)
    return int(number) if number is not None and 1 <= number <= most and number == int(number) else otherwise


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
