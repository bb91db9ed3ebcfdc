"""Files written whole, their digests, and the run record `run.json`, whose presence says that a product is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ProductError

RUN_FILE = "run.json"
ITEM_FILE = "item.json"
REPORT_FILE = "report.html"
VECTOR_FILE = "drivers.gpkg"
DRIVERS_FILE = "drivers.tif"
CONFIDENCE_FILE = "confidence.tif"
CATEGORIES_FILE = "drivers.tif.aux.xml"
"""Class titles of `drivers.tif`: GeoTIFF has no place for them, so GDAL, QGIS and ArcGIS read them from this name."""
COLLECTION_FILE = "collection.json"
PRODUCT_FILES = (
    VECTOR_FILE,
    DRIVERS_FILE,
    CATEGORIES_FILE,
    CONFIDENCE_FILE,
    ITEM_FILE,
    COLLECTION_FILE,
    REPORT_FILE,
    RUN_FILE,
)

TIMINGS = "timings"
"""Key of the run record that holds whatever differs between two equal runs; it appears in `run.json` only."""


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a fresh folder beside `path`; flush and rename it into place on success.

    The name is kept because GDAL goes by suffixes and puts journals and temporary overviews beside its target;
    on an error all of it is removed and nothing appears at `path`.

    Raises:
        OSError, ProductError: the disk is full or the folder not writable; names the path, which libraries do not.
    """
    folder = path.parent / f".{path.name}.part"
    folder.mkdir()
    try:
        temporary = folder / path.name
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"could not be written whole ({error.strerror or error})", str(path)) from error
    except RuntimeError as error:  # GDAL's errors by way of pyogrio
        told = " ".join(str(error).split())[:200]
        raise ProductError(f"{path}: could not be written whole ({told}); check the free space") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write bytes whole, flushed and read back; raises OSError or ProductError naming the path."""
    with staged(path) as temporary:
        temporary.write_bytes(data)
        if temporary.read_bytes() != data:
            raise ProductError(f"{path}: what was read back differs from what was written; check the disk")


def to_json(value: object) -> bytes:
    """Return readable UTF-8 JSON; raises ValueError for NaN and infinities, which are not JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def sha256(path: Path) -> str:
    """Return the lower-case hexadecimal SHA-256 of a file; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def product_title(run: Mapping[str, object]) -> str:
    """Return the title of a product: its region and years, as its record names them."""
    years = run.get("years")
    known = sorted(years) if isinstance(years, list) and years else []
    span = "" if not known else f", {known[0]}" if known[0] == known[-1] else f", {known[0]} to {known[-1]}"
    return f"Drivers of forest loss, {run.get('region', 'unnamed region')}{span}"


def stable(run: Mapping[str, object]) -> dict[str, object]:
    """Return the record without its timings: the part that equal runs share, for the GeoPackage and the report."""
    return {key: value for key, value in run.items() if key != TIMINGS}


def write_run(folder: Path, run: Mapping[str, object]) -> None:
    """Write `run.json` last: the record plus `files`, name to SHA-256 of every other file of the product.

    Raises:
        ProductError: a file of the product is missing.
        OSError: the disk is full.
    """
    others = [name for name in PRODUCT_FILES if name != RUN_FILE]
    missing = [name for name in others if not (folder / name).is_file()]
    if missing:
        raise ProductError(f"{folder}: {', '.join(missing)} not there, so {RUN_FILE} is not written")
    write_file(folder / RUN_FILE, to_json({**run, "files": {name: sha256(folder / name) for name in others}}))


def read_run(folder: Path) -> dict[str, object]:
    """Read the run record of a product folder; raises ProductError when it is absent or not a JSON object."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise ProductError(f"{path}: not there, so this is no whole product; run it again or name its folder")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProductError(f"{path}: not readable as JSON ({error}); the product is damaged") from error
    if not isinstance(record, dict):
        raise ProductError(f"{path}: not a JSON object; the product is damaged")
    return record


def flatten_record(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for a nested record; lists are given as JSON."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten_record(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
