"""What every catalog does with what it found: keep what meets the area and the days, one scene per acquisition."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import shapely
from shapely import Geometry

from pipeline.catalog.names import parse_product
from pipeline.catalog.scene import Refusal, Scene

_TIERS = ("T1", "T2", "A1", "A2", "RT")


def refuse(scene: Scene, reason: str) -> Refusal:
    """Turn `scene` into its refusal."""
    return Refusal(scene.id, reason, scene.datetime, scene.cloud_cover, scene.footprint)


def within(found: Scene | Refusal, aoi: Geometry, first: date, last: date) -> Scene | Refusal:
    """Return `found`, refused where it is outside the days (UTC, both included) or does not meet `aoi` (EPSG:4326)."""
    if isinstance(found, Refusal):
        return found
    day = found.datetime.date()
    if not first <= day <= last:
        return refuse(found, f"outside the days: {day} is not within {first} to {last}")
    if not shapely.intersects(shapely.from_wkt(found.footprint), aoi):
        return refuse(found, "outside the area that images are needed for")
    return found


def one_per_acquisition(found: Iterable[Scene | Refusal]) -> list[Scene | Refusal]:
    """Return scenes and refusals ordered by id, with one scene per acquisition: the best tier, then the newest.

    The same acquisition is held twice where a real-time scene was later replaced, where it was processed again, or
    where a bundle was copied; each of the others becomes a refusal that names the one that was taken.
    """
    best: dict[tuple[object, ...], Scene] = {}
    result: list[Scene | Refusal] = []
    for item in sorted(found, key=_preference):
        if isinstance(item, Refusal):
            result.append(item)
            continue
        key = _acquisition(item)
        if key in best:
            taken = best[key]
            where = f" in {_home(taken)}" if taken.id == item.id else ""
            result.append(refuse(item, f"the same acquisition as {taken.id}{where}, which was taken"))
        else:
            best[key] = item
            result.append(item)
    return sorted(result, key=lambda item: item.scene_id if isinstance(item, Refusal) else item.id)


def _acquisition(scene: Scene) -> tuple[object, ...]:
    if parse_product(scene.id) is None or scene.path is None or scene.row is None:
        return (scene.id,)
    return (scene.platform, scene.path, scene.row, scene.datetime.date())


def _preference(item: Scene | Refusal) -> tuple[object, ...]:
    if isinstance(item, Refusal):
        return (len(_TIERS) + 1, 0, True, item.scene_id, item.reason)
    name = parse_product(item.id)
    tier = _TIERS.index(name.tier) if name and name.tier else len(_TIERS)
    processed = -int(name.processed) if name and name.processed else 0
    # of two equal ones, the one with an MTL (it knows its cloud cover) serves better
    return (tier, processed, item.cloud_cover is None, item.id, min(asset.href for asset in item.assets.values()))


def _home(scene: Scene) -> str:
    return ascii(min(asset.href for asset in scene.assets.values()).rpartition("/")[0])[:200]
