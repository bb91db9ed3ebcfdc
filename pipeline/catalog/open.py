"""From the configuration's `imagery.source` to a catalog."""

from __future__ import annotations

from pathlib import Path

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.scene import Catalog
from pipeline.errors import ConfigError

DEFAULT_COLLECTIONS = ("landsat-c2-l2",)
KNOWN = {
    "planetary-computer": ("https://planetarycomputer.microsoft.com/api/stac/v1", ("landsat-c2-l2",)),
    "earth-search": ("https://earth-search.aws.element84.com/v1", ("landsat-c2-l2",)),
    "usgs": ("https://landsatlook.usgs.gov/stac-server", ("landsat-c2l2-sr",)),
}
"""STAC APIs by name: address, and the collection of Landsat Collection 2 Level-2 there.

Assets are named by STAC's common names (`red`, `qa_pixel`) in all three. Planetary Computer: files in Azure, read with
SAS tokens (see `signing`), no checksums. USGS: its addresses want a login, so the same files are read in the bucket
s3://usgs-landsat, which readers pay for (`imagery.requester_pays`, AWS credentials); `file:checksum` on each. Earth
Search: the same bucket.
"""
PARQUET = (".parquet", ".geoparquet")
_CHOICES = (
    f"give {', '.join(KNOWN)}, the https:// address of a STAC API, a STAC catalog.json, a stac-geoparquet file "
    "(items.parquet), or a folder of bundles"
)


def open_catalog(
    source: str,
    collections: tuple[str, ...] = DEFAULT_COLLECTIONS,
    base: Path = Path(),
    allow_hosts: tuple[str, ...] = (),
) -> Catalog:
    """Return the catalog that `imagery.source` names; nothing is searched or fetched yet.

    Args:
        source: a known name, an http(s) address, a STAC JSON or stac-geoparquet file, or a folder of USGS bundles.
        collections: STAC collections to search (APIs only); the default means the one the known API has.
        base: folder that relative paths start from: that of the configuration file.
        allow_hosts: private hosts that an API may lead to; the one named by `source` may be asked anyway.

    Raises:
        ConfigError: where it names none of these, or a path that is not there.
    """
    path = base / source
    if source and "://" not in source and path.is_dir() and source not in KNOWN:
        return BundleFolder(path)
    # pystac-client takes half a second to import: only where STAC is read
    if source in KNOWN or source.lower().startswith(("http://", "https://")):
        if source.lower().endswith((".json", *PARQUET)):
            raise ConfigError(f"imagery.source: {source} is a file; download it, and give its path")
        from pipeline.catalog.stac import StacApi

        url, own = KNOWN.get(source, (source, collections))
        return StacApi(url, own if collections == DEFAULT_COLLECTIONS else collections, allow_hosts)
    if path.suffix.lower() == ".json" and path.is_file():
        from pipeline.catalog.stac import StaticStac

        return StaticStac(path)
    if path.suffix.lower() in PARQUET and path.is_file():
        from pipeline.catalog.geoparquet import StacGeoparquet

        return StacGeoparquet(path)
    if "://" in source or not (path.suffix.lower() in (".json", *PARQUET) or "/" in source):
        raise ConfigError(f"imagery.source: {source!r} is not a known source and no folder; {_CHOICES}")
    raise ConfigError(f"imagery.source: {path} is not there; {_CHOICES}")
