"""`Scene`: one Landsat acquisition as the rest of the pipeline sees it; `Catalog`: where scenes come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Protocol

from shapely import Geometry

BANDS = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
"""STAC common names of the reflective Landsat bands; bundles of every sensor are mapped to these."""
QA_PIXEL = "qa_pixel"


@dataclass(frozen=True)
class Asset:
    """One band file: `href` (path or URL, never signed), and reflectance = DN * scale + offset, `nodata` in DN.

    `checksum` is STAC's `file:checksum` (a hexadecimal multihash) where the catalog tells it.
    """

    href: str
    scale: float = 0.0000275
    offset: float = -0.2
    nodata: float | None = 0.0
    checksum: str | None = None


@dataclass(frozen=True)
class SceneGrid:
    """The scene's grid where its files carry none (taken from the MTL): CRS as text, affine (a, b, c, d, e, f)."""

    crs: str
    transform: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """One Landsat Collection 2 Level-2 acquisition.

    Attributes:
        id: Landsat product or STAC Item id.
        datetime: acquisition time, UTC.
        platform: landsat-4 ... landsat-9.
        cloud_cover: percent of the whole scene, None where the catalog does not say.
        path: WRS-2 path, None where unknown.
        row: WRS-2 row, None where unknown.
        footprint: polygon in EPSG:4326, as WKT.
        assets: common band name (and `qa_pixel`) to Asset.
        grid: only for files without georeference of their own.
    """

    id: str
    datetime: datetime
    platform: str
    cloud_cover: float | None
    path: int | None
    row: int | None
    footprint: str
    assets: dict[str, Asset] = field(hash=False)
    grid: SceneGrid | None = None


@dataclass(frozen=True)
class Refusal:
    """A scene that cannot serve, and why; `footprint` is WKT in EPSG:4326 or None where not even that is known."""

    scene_id: str
    reason: str
    datetime: datetime | None = None
    cloud_cover: float | None = None
    footprint: str | None = None


class Catalog(Protocol):
    """Where scenes come from: a folder of bundles, a static STAC catalog, a STAC API."""

    def search(self, aoi: Geometry, first: date, last: date) -> Iterator[Scene | Refusal]:
        """Yield every scene that meets `aoi` (EPSG:4326) between two days, both included, or its refusal.

        What lies outside the area or the days is refused too where the catalog had to look at it (folders),
        so that every file a user put there is accounted for. Order is by id.
        """
        ...
