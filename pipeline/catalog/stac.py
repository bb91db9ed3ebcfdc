"""Scenes from STAC: a static catalog on disk, or a STAC API. What the other side says is untrusted."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import shapely
from pystac import STACError
from pystac.link import Link
from pystac_client import Client, ItemSearch
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.warnings import PystacClientWarning
from shapely import Geometry

from pipeline.catalog.api import PoliteIO
from pipeline.catalog.faults import FetchFault, FetchPolicy
from pipeline.catalog.hrefs import any_href, local_path, remote_href, shown, shown_href
from pipeline.catalog.items import scene_from_item
from pipeline.catalog.pieces import Days, TooLong, in_pieces
from pipeline.catalog.scene import Refusal, Scene
from pipeline.catalog.select import one_per_acquisition, within
from pipeline.errors import ConfigError

_MAX_CATALOG, _MAX_ITEM = 256_000_000, 5_000_000
_MAX_ITEMS = 100_000
_ONE_SEARCH = 5_000
"""Items of one search beyond which it is cut: servers that page by number end at 10,000."""
_MAX_EMPTY = 50
_PAGE = 100
"""Items a page: Earth Search and USGS answer with 6 MB at most, some 200 of their items; others allow 1000."""
_MAX_VERTICES = 500
_MALFORMED = (
    APIError, ClientTypeError, STACError, NotImplementedError, ValueError, KeyError, TypeError, AttributeError,
    RecursionError,
)  # fmt: skip
"""What pystac-client lets through from an answer that is no STAC API's."""


@dataclass(frozen=True)
class StaticStac:
    """A STAC Catalog, Collection, ItemCollection or Item in a local JSON file.

    Nothing is fetched, and nothing outside its folder is read. Raises ConfigError from `search` where the file is
    none of these or leads to no item.
    """

    path: Path

    def search(self, aoi: Geometry, first: date, last: date) -> Iterator[Scene | Refusal]:
        """Yield every item as Scene or Refusal (see `Catalog`)."""
        path = self.path.resolve()
        try:
            root = _read_json(path, _MAX_CATALOG)
        except ValueError as error:
            raise ConfigError(f"imagery.source: {self.path}: {error}") from error
        kind = _kind(root)
        if not kind:
            raise ConfigError(
                f"imagery.source: {self.path} is not a STAC Catalog, Collection, ItemCollection or Item; check the file"
            )
        found = list(_walk(path, root, path.parent))
        if not found:
            raise ConfigError(f"imagery.source: the catalog {self.path} leads to no item")
        return iter(one_per_acquisition(within(item, aoi, first, last) for item in found))


def _read_json(path: Path, most: int) -> Any:
    """Return the parsed file; raises ValueError with the reason where it cannot be read."""
    if not os.path.isfile(path):
        raise ValueError("there is no such file")
    try:
        if path.stat().st_size > most:
            raise ValueError(f"larger than {most // 1_000_000} MB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"not valid JSON ({shown(str(error))})") from error


def _kind(node: Any) -> str:
    """Return what a JSON document is; catalogs before STAC 1.0 carry no `type`."""
    if not isinstance(node, dict):
        return ""
    kind = node.get("type")
    if kind in ("Feature", "FeatureCollection", "Catalog", "Collection"):
        return str(kind)
    return "Catalog" if kind is None and "stac_version" in node and isinstance(node.get("links"), list) else ""


def _walk(start: Path, node: Any, root: Path) -> Iterator[Scene | Refusal]:
    """Yield the items at and below one document; a link that cannot be followed is a refusal of its own."""
    pending, seen = [(start, node)], {start}
    while pending:
        path, node = pending.pop()
        kind, name = _kind(node), str(path.relative_to(root))
        if kind in ("Feature", "FeatureCollection"):
            features = [node] if kind == "Feature" else node.get("features")
            resolve = partial(any_href, folder=path.parent, root=root)
            yield from (
                scene_from_item(item, resolve, name) for item in (features if isinstance(features, list) else [])
            )
        elif not kind:
            yield Refusal(shown(name), "not a STAC document")
        else:
            for link in _links(node):
                try:
                    target = local_path(link.get("href"), path.parent, root)
                    if target not in seen:
                        seen.add(target)
                        most = _MAX_ITEM if link["rel"] == "item" else _MAX_CATALOG
                        pending.append((target, _read_json(target, most)))
                except ValueError as error:
                    yield Refusal(shown_href(link.get("href")), f"link in {shown(name)} cannot be followed: {error}")


def _links(node: dict[str, Any]) -> list[dict[str, Any]]:
    links = node.get("links")
    wanted = ("child", "item", "items")
    return (
        [link for link in links if isinstance(link, dict) and link.get("rel") in wanted]
        if isinstance(links, list)
        else []
    )


@dataclass(frozen=True)
class StacApi:
    """A STAC API with item search. Only the search: hrefs are kept unsigned, nothing is downloaded.

    Raises ConfigError from `search` where the server cannot be searched or its answer is not whole.
    """

    url: str
    collections: tuple[str, ...]
    allow_hosts: tuple[str, ...] = ()
    policy: FetchPolicy = field(default_factory=FetchPolicy)

    def search(self, aoi: Geometry, first: date, last: date) -> Iterator[Scene | Refusal]:
        """Yield every item that the server finds (see `Catalog`); what it returns outside area and days is left out."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PystacClientWarning)
                found = in_pieces(aoi, (first, last), self._search, _MAX_ITEMS)
        except TooLong:
            raise ConfigError(
                f"imagery.source: the STAC API {self.url} finds over {_MAX_ITEMS} scenes, or {_ONE_SEARCH} of one day; "
                "narrow region.aoi or imagery.window"
            ) from None
        except FetchFault as fault:
            raise ConfigError(f"imagery.source: {self.url} cannot be searched as a STAC API: {fault.reason}") from None
        except _MALFORMED as error:
            # what the error quotes comes from the other side, and may be anything
            detail = f"its answer is not that of one ({type(error).__name__})"
            raise ConfigError(f"imagery.source: {self.url} cannot be searched as a STAC API: {detail}") from None
        kept = [i for i in found.values() if isinstance(i, Refusal) or i == within(i, aoi, first, last)]
        return iter(one_per_acquisition(kept))

    def _search(self, area: Geometry, days: Days) -> dict[tuple[str, str], Scene | Refusal]:
        # whom the configuration names as its source may be asked, wherever that host is
        io = PoliteIO(self.policy, (*self.allow_hosts, urlsplit(self.url).hostname or ""))
        return _fetch(io, self.url, self.collections, area, days)


def _fetch(
    io: PoliteIO, address: str, collections: tuple[str, ...], aoi: Geometry, days: Days
) -> dict[tuple[str, str], Scene | Refusal]:
    """Return all items of one search by collection and id.

    Raises:
        ConfigError: paging loops or breaks off.
        TooLong: it brings too many.
    """
    client = Client.open(address, stac_io=io)
    methods = {str(link.extra_fields.get("method") or "GET").upper() for link in client.get_links("search")}
    search = client.search(
        method="GET" if methods == {"GET"} else "POST",
        collections=list(collections),
        intersects=json.loads(shapely.to_geojson(_simple(aoi))),
        datetime=f"{days[0].isoformat()}/{days[1].isoformat()}",
        limit=_PAGE,
    )
    where = f"imagery.source: the STAC API {address}"
    items: dict[tuple[str, str], Scene | Refusal] = {}
    unnamed: list[Scene | Refusal] = []
    matched: int | None = None
    for page in _pages(io, search, where):
        features = page.get("features") or []
        known = len(items)
        for feature in features:
            if isinstance(feature, dict) and isinstance(feature.get("id"), str):
                # the scene is kept, not the item: a hostile server's items may be large
                items[str(feature.get("collection")), feature["id"]] = scene_from_item(feature, remote_href, address)
            else:
                unnamed.append(scene_from_item(feature, remote_href, address))
        if features and len(items) == known:
            raise ConfigError(f"{where} repeats the same items page after page; its answer cannot be trusted")
        matched = _matched(page) if matched is None else matched
        if max(len(items) + len(unnamed), matched or 0) > _ONE_SEARCH:
            raise TooLong
    # more than it said is harmless (some servers stop counting at 10000); fewer means that pages are missing
    if matched is not None and len(items) + len(unnamed) < matched:
        raise ConfigError(f"{where} says {matched} items match and gave {len(items) + len(unnamed)}; try again")
    return items | {(f"{shapely.bounds(aoi)} {days}", str(number)): refusal for number, refusal in enumerate(unnamed)}


def _pages(io: PoliteIO, search: ItemSearch, where: str) -> Iterator[dict[str, Any]]:
    """Yield result pages by their `next` links, past empty ones too, where pystac-client would end in silence."""
    url, parameters = search.url, search.get_parameters()
    page = io.read_json(url, method=search.method, parameters=parameters)
    seen: set[str] = set()
    empty = 0
    while True:
        if not isinstance(page, dict) or not isinstance(page.get("features", []), list):
            raise TypeError("its answer is not an ItemCollection")
        yield page
        empty = 0 if page.get("features") else empty + 1
        if empty > _MAX_EMPTY:
            raise ConfigError(f"{where} goes on with empty pages; its answer cannot be trusted")
        links = [link for link in page.get("links") or [] if link.get("rel") == "next"]
        if not links:
            return
        key = json.dumps(links[0], sort_keys=True)
        if key in seen:
            raise ConfigError(f"{where} goes round in circles: its `next` link repeats")
        seen.add(key)
        target = urljoin(url, str(links[0].get("href")))
        if urlsplit(target).hostname != urlsplit(url).hostname:
            raise ConfigError(f"{where} sends on to another host, {shown(urlsplit(target).hostname)}; name that one")
        page = io.read_json(Link.from_dict({**links[0], "href": target}), parameters=parameters)


def _matched(page: dict[str, Any]) -> int | None:
    context = page.get("context")
    told = page.get("numberMatched", context.get("matched") if isinstance(context, dict) else None)
    return told if isinstance(told, int) and not isinstance(told, bool) else None


def _simple(aoi: Geometry) -> Geometry:
    """Return the area to ask for: a detailed outline is replaced by hulls, one on each side of the antimeridian."""
    if shapely.get_num_coordinates(aoi) <= _MAX_VERTICES:
        return aoi
    halves = [shapely.intersection(aoi, shapely.box(w, -90, w + 180, 90)) for w in (-180, 0)]
    return shapely.union_all([half.convex_hull for half in halves if not half.is_empty])
