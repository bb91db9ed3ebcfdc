"""Landsat product names and what follows from them: level, collection, tier, and which band number is which colour."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime

_PRODUCT = re.compile(
    r"(?P<text>L[COTEM]0?(?P<number>[1-9])_(?P<level>L[0-9][A-Z]{2})_(?P<path>[0-9]{3})(?P<row>[0-9]{3})"
    r"_(?P<acquired>[0-9]{8})(?:_(?P<processed>[0-9]{8}))?(?:_(?P<collection>[0-9]{2})_(?P<tier>T1|T2|RT|A1|A2))?)"
    r"(?![0-9A-Z])",
    re.IGNORECASE | re.ASCII,
)
_PLATFORM = re.compile(r"landsat[-_ ]?0?([4-9])", re.IGNORECASE)
_OLI = {"1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir08", "6": "swir16", "7": "swir22"}
_TM = {"1": "blue", "2": "green", "3": "red", "4": "nir08", "5": "swir16", "7": "swir22"}
NEEDED = "Collection 2 Level-2 surface reflectance is needed"


@dataclass(frozen=True)
class ProductName:
    """A Landsat product name taken apart; `processed` (YYYYMMDD), `collection` and `tier` are "" where it has none.

    `text` is the name itself in capitals, without what follows it (`_SR_B2.TIF`, `_MTL.txt`, `_SR`).
    """

    text: str
    number: int
    level: str
    path: int
    row: int
    acquired: date
    processed: str
    collection: str
    tier: str


def parse_product(text: str) -> ProductName | None:
    """Take apart the Landsat product name that `text` starts with; None where it starts with none.

    Source: USGS LSDS-1619 (Landsat 8-9 Collection 2 Level 2 data format), section on file names; STAC ids leave the
    processing date out.
    """
    found = _PRODUCT.match(text)
    if found is None:
        return None
    part = {key: (value or "").upper() for key, value in found.groupdict().items()}
    try:
        acquired = datetime.strptime(part["acquired"], "%Y%m%d").date()
    except ValueError:
        return None
    return ProductName(
        text=part["text"],
        number=int(part["number"]),
        level=part["level"],
        path=int(part["path"]),
        row=int(part["row"]),
        acquired=acquired,
        processed=part["processed"],
        collection=part["collection"],
        tier=part["tier"],
    )


def refused_level(level: str, collection: str) -> str | None:
    """Return why a processing level (`L2SP`, `L1TP`) and a collection (`02`) cannot serve; "" means not said."""
    old = collection.lstrip("0") == "1"
    if level.upper().startswith(("L0", "L1")):
        return f"{'Collection 1 ' if old else ''}Level-1 only; {NEEDED}"
    if old:
        return f"Collection 1; {NEEDED}"
    if level and not level.upper().startswith("L2"):
        return f"processing level {level[:8]!a}; {NEEDED}"
    if collection and collection.lstrip("0") != "2":
        return f"Collection {collection[:8]!a}; {NEEDED}"
    return None


def platform_number(text: str) -> int | None:
    """Return 4 ... 9 for `landsat-8`, `LANDSAT_8`, `Landsat 8`; None for anything else."""
    found = _PLATFORM.fullmatch(text.strip())
    return int(found.group(1)) if found else None


def reflective_bands(number: int) -> dict[str, str]:
    """Return band number in the file name -> STAC common name for Landsat `number`; empty where it has none."""
    if number in (8, 9):
        return _OLI
    return _TM if number in (4, 5, 7) else {}
