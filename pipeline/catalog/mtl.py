"""The metadata file of a USGS bundle (MTL), as .txt, .json or .xml: the same facts from each. Untrusted input."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml.ElementTree import fromstring

from pipeline.catalog.names import ProductName, parse_product, platform_number, reflective_bands, refused_level
from pipeline.catalog.scene import QA_PIXEL, Asset, SceneGrid
from pipeline.errors import SceneError

MAX_BYTES = 5_000_000
_MAX_SIDE = 50_000
Groups = dict[str, dict[str, str]]
_QA_KEY = "FILE_NAME_QUALITY_L1_PIXEL"


@dataclass(frozen=True)
class Mtl:
    """What the pipeline needs of an MTL.

    Attributes:
        product: the product it describes.
        number: Landsat 4 ... 9.
        datetime: acquisition time, UTC.
        cloud_cover: percent of the whole scene, None where not said.
        files: common band name (and `qa_pixel`) to file name, as written there: may be missing on disk.
        scaling: common band name to (scale, offset), reflectance = DN * scale + offset.
        grid: the reflective grid, None where it is not in UTM or not said.
        shape: rows, columns of that grid, None where not said.
    """

    product: ProductName
    number: int
    datetime: datetime
    cloud_cover: float | None
    files: dict[str, str]
    scaling: dict[str, tuple[float, float]]
    grid: SceneGrid | None
    shape: tuple[int, int] | None


def read_mtl(path: Path) -> Mtl:
    """Read an MTL file (.txt, .json or .xml by its ending); raises SceneError with the reason where it cannot serve."""
    groups = _groups(path)
    contents = groups.get("PRODUCT_CONTENTS") or groups.get("PRODUCT_METADATA") or {}
    header = groups.get("METADATA_FILE_INFO", {})
    level = contents.get("PROCESSING_LEVEL") or contents.get("DATA_TYPE") or ""
    reason = refused_level(level, contents.get("COLLECTION_NUMBER") or header.get("COLLECTION_NUMBER") or "")
    if reason:
        raise SceneError(path.name, reason)
    text = contents.get("LANDSAT_PRODUCT_ID", "")
    product = parse_product(text)
    image = groups.get("IMAGE_ATTRIBUTES", {})
    number = platform_number(image.get("SPACECRAFT_ID", ""))
    if product is None or product.text != text.upper() or not level:
        raise _damaged(path, "no usable LANDSAT_PRODUCT_ID and PROCESSING_LEVEL in PRODUCT_CONTENTS")
    if number is None:
        raise _damaged(path, "no usable SPACECRAFT_ID in IMAGE_ATTRIBUTES")
    bands = reflective_bands(number)
    files = {name: contents[f"FILE_NAME_BAND_{n}"] for n, name in bands.items() if f"FILE_NAME_BAND_{n}" in contents}
    if _QA_KEY in contents:
        files[QA_PIXEL] = contents[_QA_KEY]
    grid, shape = _grid(groups.get("PROJECTION_ATTRIBUTES", {}))
    return Mtl(
        product=product,
        number=number,
        datetime=_acquired(path, image),
        cloud_cover=percent(image.get("CLOUD_COVER")),
        files=files,
        scaling=_scaling(path, groups.get("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", {}), bands),
        grid=grid,
        shape=shape,
    )


def percent(value: object) -> float | None:
    """Return `value` as a percentage 0..100, or None where it is none (USGS writes -1 for unknown)."""
    number = finite(value)
    return number if number is not None and 0 <= number <= 100 else None


def finite(value: object) -> float | None:
    """Return `value` (a number or its text) as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _damaged(path: Path, what: str) -> SceneError:
    return SceneError(path.name, f"damaged MTL {path.name}: {what}")


def _groups(path: Path) -> Groups:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise _damaged(path, f"larger than {MAX_BYTES // 1_000_000} MB")
    readers = {".txt": _from_text, ".json": _from_json, ".xml": _from_xml}
    try:
        return readers[path.suffix.lower()](content)
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        # defusedxml's refusals of entities and DTDs are ValueErrors too
        raise _damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error


def _from_text(content: bytes) -> Groups:
    groups: Groups = {}
    open_groups: list[str] = []
    for line in content.decode("utf-8").splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            open_groups.append(value)
        elif key == "END_GROUP":
            if not open_groups or open_groups.pop() != value:
                raise ValueError(f"END_GROUP = {value[:60]!a} closes nothing")
            if not open_groups:  # some real files end here, without the line END
                return groups
        elif equals and open_groups:
            groups.setdefault(open_groups[-1], {})[key] = value.strip('"')
    raise ValueError("the last END_GROUP is missing: the file is cut off")


def _from_json(content: bytes) -> Groups:
    root = json.loads(content)
    if not isinstance(root, dict) or len(root) != 1:
        raise ValueError("not one object LANDSAT_METADATA_FILE")
    (body,) = root.values()
    if not isinstance(body, dict):
        raise ValueError("LANDSAT_METADATA_FILE is not an object")
    groups = {name: group for name, group in body.items() if isinstance(group, dict)}
    return {name: {key: str(value) for key, value in group.items()} for name, group in groups.items()}


def _from_xml(content: bytes) -> Groups:
    root = fromstring(content, forbid_dtd=True)
    return {group.tag: {item.tag: (item.text or "").strip() for item in group} for group in root}


def _acquired(path: Path, image: dict[str, str]) -> datetime:
    day, time = image.get("DATE_ACQUIRED", ""), image.get("SCENE_CENTER_TIME", "") or "00:00:00Z"
    try:
        when = datetime.fromisoformat(f"{day}T{time}")
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _damaged(path, f"DATE_ACQUIRED {day[:30]!a}, SCENE_CENTER_TIME {time[:30]!a} are no time") from error


def _scaling(path: Path, group: dict[str, str], bands: dict[str, str]) -> dict[str, tuple[float, float]]:
    scaling = {}
    for number, name in bands.items():
        scale = finite(group.get(f"REFLECTANCE_MULT_BAND_{number}", Asset.scale))
        offset = finite(group.get(f"REFLECTANCE_ADD_BAND_{number}", Asset.offset))
        if scale is None or offset is None or scale <= 0:
            raise _damaged(path, f"REFLECTANCE_MULT/ADD_BAND_{number} are no numbers")
        scaling[name] = (scale, offset)
    return scaling


def _grid(group: dict[str, str]) -> tuple[SceneGrid | None, tuple[int, int] | None]:
    """Return the reflective grid and its (rows, columns).

    CORNER_UL_PROJECTION_*_PRODUCT is the centre of the upper-left pixel, and USGS counts northings south of the equator
    negative in the north zone (LSDS-1619, projection attributes).
    """
    cell = finite(group.get("GRID_CELL_SIZE_REFLECTIVE"))
    x, y = finite(group.get("CORNER_UL_PROJECTION_X_PRODUCT")), finite(group.get("CORNER_UL_PROJECTION_Y_PRODUCT"))
    zone, rows, columns = (finite(group.get(key)) for key in ("UTM_ZONE", "REFLECTIVE_LINES", "REFLECTIVE_SAMPLES"))
    if rows is None or columns is None or not (1 <= rows <= _MAX_SIDE and 1 <= columns <= _MAX_SIDE):
        return None, None
    shape = (int(rows), int(columns))
    if group.get("MAP_PROJECTION") != "UTM" or cell is None or x is None or y is None or zone is None:
        return None, shape
    if not 0 < cell <= 10_000 or zone != int(zone) or not 1 <= zone <= 60 or max(abs(x), abs(y)) > 2e7:
        return None, shape
    transform = (cell, 0.0, x - cell / 2, 0.0, -cell, y + cell / 2)
    return SceneGrid(f"EPSG:{32600 + int(zone)}", transform), shape
