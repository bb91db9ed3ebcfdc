"""Is a product sound? Named checks over its files, for `clearcause inspect` and for tests."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError
from pyogrio.errors import DataLayerError, DataSourceError
from pystac.errors import STACError, STACValidationError
from rasterio.errors import RasterioError
from shapely.errors import ShapelyError

from pipeline.errors import ModelError, ProductError
from pipeline.labels import LabelScheme
from pipeline.product import check_rasters, check_styles, check_vectors, record
from pipeline.product.stac import checksum, validate

_DAMAGE = (
    ProductError,
    ModelError,
    OSError,
    sqlite3.Error,
    DataSourceError,
    DataLayerError,
    RasterioError,
    ShapelyError,
    ParseError,
    DefusedXmlException,
    STACError,
    STACValidationError,
    KeyError,
    TypeError,
    ValueError,
)
"""What reading a damaged file can raise: each means that the check failed, with the reason as its detail."""


_SIDE_FILE = ".aux.xml"  # where GDAL puts the statistics of a raster that was looked at
_LONGEST = 400  # characters of a detail; schema validators print whole documents


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class InspectReport:
    """All checks of one product, in the order they were made."""

    folder: str
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"folder": self.folder, "sound": self.sound, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        """Return the text of `render_text`."""
        return render_text(self)


def render_text(report: InspectReport) -> str:
    """Return plain lines, one per check, and the verdict."""
    width = max(len(check.name) for check in report.checks)
    lines = [f"{'ok  ' if c.ok else 'FAIL'}  {c.name:<{width}}  {c.detail}" for c in report.checks]
    bad = sum(not check.ok for check in report.checks)
    verdict = "sound" if report.sound else f"not sound: {bad} of {len(report.checks)} checks failed"
    return "\n".join([*lines, f"{report.folder}: {verdict}"])


def inspect_product(folder: Path) -> InspectReport:
    """Check a product folder; damage of any kind is a failed check, never an exception."""
    return InspectReport(str(folder), tuple(_checks(folder)))


def _checks(folder: Path) -> Iterator[Check]:
    yield _check("run record", lambda: _run_record(folder))
    yield _check("files", lambda: _files(folder))
    yield _check("digests", lambda: _digests(folder))
    yield _check("remote files", lambda: _remote_files(folder))
    scheme = _scheme(folder)
    if scheme is None:
        yield Check("label scheme", False, f"{record.RUN_FILE} has no usable `labels`, so nothing more is checked")
        return
    database = folder / record.VECTOR_FILE
    yield _check("GeoPackage", lambda: check_vectors.container(database, scheme))
    yield _check("default styles", lambda: check_styles.default_styles(database, scheme))
    yield _check("lists of values", lambda: check_styles.value_lists(database, scheme))
    yield _check("QGIS project", lambda: check_styles.stored_project(database, scheme))
    loaded: list[check_vectors.Vectors] = []
    yield _check("layers and columns", lambda: _load(database, scheme, loaded))
    for vectors in loaded:
        for name, function in check_vectors.CHECKS:
            yield _check(name, partial(function, vectors))
    for name in (record.DRIVERS_FILE, record.CONFIDENCE_FILE):
        yield _check(f"COG {name}", partial(check_rasters.cog, folder / name))
    yield _check("raster values", lambda: check_rasters.values(folder, scheme))
    yield _check("class titles", lambda: check_rasters.titles(folder, scheme))
    yield _check("STAC item", lambda: _item(folder))
    yield _check("STAC collection", lambda: _collection(folder))


def _check(name: str, function: Callable[[], str]) -> Check:
    try:
        return Check(name, True, function())
    except _DAMAGE as error:
        text = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        return Check(name, False, f"missing {text}" if isinstance(error, KeyError) else text)


def _run_record(folder: Path) -> str:
    run = record.read_run(folder)
    if run.get("complete") is False:
        return "present; the run was incomplete and says so"
    return "present"


def _files(folder: Path) -> str:
    if not folder.is_dir():
        raise ProductError(f"{folder}: no such folder")
    present = {path.name for path in folder.iterdir()}
    missing = sorted(set(record.PRODUCT_FILES) - present)
    foreign = sorted(present - set(record.PRODUCT_FILES))
    left = [name for name in foreign if name.removesuffix(_SIDE_FILE) in (record.DRIVERS_FILE, record.CONFIDENCE_FILE)]
    foreign = [name for name in foreign if name not in left]
    if missing or foreign:
        raise ProductError(f"missing: {', '.join(missing) or 'none'}; foreign: {', '.join(foreign) or 'none'}")
    beside = f", and {', '.join(left)} left by a program that opened them" if left else ""
    return f"{len(record.PRODUCT_FILES)} files{beside}"


def _digests(folder: Path) -> str:
    files = record.read_run(folder)["files"]
    if not isinstance(files, dict) or set(files) != set(record.PRODUCT_FILES) - {record.RUN_FILE}:
        raise ProductError(f"{record.RUN_FILE} does not list the digests of the product's files")
    changed = [name for name, digest in files.items() if record.sha256(folder / name) != digest]
    if changed:
        raise ProductError(f"changed since they were written: {', '.join(changed)}")
    return f"{len(files)} files as they were written"


def _remote_files(folder: Path) -> str:
    """Say how the bytes of the imagery were verified; each remote file of the run needs a word about it."""
    run: dict[str, Any] = record.read_run(folder)
    inputs, timings = run.get("inputs") or {}, run.get(record.TIMINGS) or {}
    assets = [(asset["scene"], asset["band"]) for asset in inputs.get("assets") or []]
    log = (timings.get("fetch") or {}).get("scenes") or {}
    told = {(scene, band): log.get(scene, {}).get(band, {}).get("verified") for scene, band in assets}
    silent = sorted(f"{band} of {scene}" for (scene, band), how in told.items() if not how)
    if silent:
        raise ProductError(f"{len(silent)} files without a word on how they were verified, such as {silent[0]}")
    counts = sorted(Counter(str(how) for how in told.values()).items())
    return f"{len(told)} verified: " + "; ".join(f"{n} by {how}" for how, n in counts) if told else "none"


def _scheme(folder: Path) -> LabelScheme | None:
    try:
        rows = record.read_run(folder)["labels"]
        return LabelScheme.from_list(rows) if isinstance(rows, list) else None
    except (ProductError, ModelError, KeyError, TypeError):
        return None


def _load(path: Path, scheme: LabelScheme, into: list[check_vectors.Vectors]) -> str:
    into.append(check_vectors.load(path, scheme))
    return check_vectors.columns(into[0])


def _item(folder: Path) -> str:
    data = json.loads((folder / record.ITEM_FILE).read_text(encoding="utf-8"))
    validate(data)
    described = {asset["href"].removeprefix("./"): asset for asset in data["assets"].values()}
    expected = set(record.PRODUCT_FILES) - {record.ITEM_FILE, record.COLLECTION_FILE}
    if set(described) != expected:
        raise ProductError(f"assets are {sorted(described)} instead of {sorted(expected)}")
    for name in sorted(expected - {record.RUN_FILE}):
        if described[name]["file:checksum"] != checksum(record.sha256(folder / name)):
            raise ProductError(f"file:checksum of {name} is not that of the file")
    return f"STAC {data['stac_version']}, {len(data['stac_extensions'])} extensions, {len(described)} assets"


def _collection(folder: Path) -> str:
    data = json.loads((folder / record.COLLECTION_FILE).read_text(encoding="utf-8"))
    validate(data)
    item = json.loads((folder / record.ITEM_FILE).read_text(encoding="utf-8"))
    if item["collection"] != data["id"]:
        raise ProductError(f"{record.ITEM_FILE} names the collection {item['collection']}, not {data['id']}")
    return f"STAC {data['stac_version']}, {len(data['stac_extensions'])} extensions"
