"""Which scenes may serve a loss year, by what the catalog says of them: date, cloud cover, footprint, path/row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache

import shapely
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.catalog.scene import QA_PIXEL, Refusal, Scene
from pipeline.catalog.select import refuse
from pipeline.config import Imagery

CANDIDATES = 4
"""Candidates for each scene that may be taken: times imagery.max_scenes, of a path/row and loss year."""


def find_candidates(
    scenes: Iterable[Scene], loss: dict[int, Geometry], imagery: Imagery
) -> tuple[dict[int, list[Scene]], list[Refusal]]:
    """Find the scenes that may serve each loss year; the fetch stage chooses among them (see `pipeline.survey`).

    Of a WRS path/row the least cloudy `CANDIDATES` times `max_scenes` are kept: looking at the clouds over the loss
    costs one small file a scene, and what stands further down the catalog's list is hardly ever among the best.

    Args:
        scenes: what can serve.
        loss: loss year to the area (EPSG:4326) where imagery is needed.
        imagery: limits.

    Returns:
        Scenes by loss year, and a refusal with its reason for each scene that no year takes.
    """
    found: dict[int, list[Scene]] = {year: [] for year in loss}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    ordered = sorted(scenes, key=lambda s: (cloudiness(s), s.datetime, s.id))
    for year, area in loss.items():
        shapely.prepare(area)
        taken: Counter[str] = Counter()
        for scene in ordered:
            reason = _unfit(scene, year, area, imagery, taken)
            if reason:
                reasons[scene.id][reason] += 1
            else:
                taken[wrs_place(scene)] += 1
                found[year].append(scene)
    used = {scene.id for group in found.values() for scene in group}
    refused = [refuse(s, reasons[s.id].most_common(1)[0][0]) for s in ordered if s.id not in used and reasons[s.id]]
    return found, sorted(refused, key=lambda r: r.scene_id)


def cloudiness(scene: Scene) -> float:
    """Cloud cover for sorting: unknown comes last."""
    return 101.0 if scene.cloud_cover is None else scene.cloud_cover


def _unfit(scene: Scene, year: int, area: Geometry, imagery: Imagery, taken: Counter[str]) -> str | None:
    first, last = year + imagery.window.first_year, year + imagery.window.last_year
    if not first <= scene.datetime.year <= last:
        return f"wrong date: {scene.datetime.date()} is not in imagery.window of any loss year"
    if scene.cloud_cover is not None and scene.cloud_cover > imagery.max_cloud:
        return f"cloud cover {scene.cloud_cover:g} % is above imagery.max_cloud {imagery.max_cloud:g} %"
    if not shapely.intersects(area, footprint(scene.footprint)):
        return "outside the area around the loss"
    most = CANDIDATES * imagery.max_scenes
    if taken[wrs_place(scene)] >= most:
        return f"not looked at: {most} less cloudy ones of its path/row are ({CANDIDATES} x imagery.max_scenes)"
    return None


@cache
def footprint(wkt: str) -> Geometry:
    """The polygon of a scene's footprint (EPSG:4326), parsed once."""
    shape: Geometry = shapely.from_wkt(wkt)
    return shape


def wrs_place(scene: Scene) -> str:
    """The scene's path/row; where the catalog gives none, the degree its centre lies in, which is finer than a row."""
    if scene.path is not None and scene.row is not None:
        return f"{scene.path}/{scene.row}"
    centre = shapely.centroid(footprint(scene.footprint))
    return f"{round(centre.x)} {round(centre.y)}"


def scene_warnings(chosen: dict[int, list[Scene]]) -> list[str]:
    """What a reader of the product must know about the scenes of each loss year."""
    used = {scene.id: scene for group in chosen.values() for scene in group}.values()
    masked = "no QA_PIXEL, so masked by fill only; clouds count as ground"
    out = [f"scene {s.id}: {masked}" for s in used if QA_PIXEL not in s.assets]
    empty = [year for year, group in chosen.items() if not group]
    return out + [f"loss year {year}: no scene can serve; its events end as no_imagery" for year in empty]
