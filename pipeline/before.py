"""Scenes from before the loss: pictures for people are made of them; composites and the model never see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import shapely
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.candidates import cloudiness, wrs_place
from pipeline.catalog.check import check_scene
from pipeline.catalog.scene import Scene
from pipeline.config import Imagery
from pipeline.pictures import picture_bands

_MOST = 2
"""Of a path/row and loss year: the second serves where clouds of the first hide an event."""


def choose_before(
    scenes: Iterable[Scene], loss: dict[int, Geometry], imagery: Imagery, bands: Sequence[str]
) -> dict[int, list[Scene]]:
    """Choose the scenes that show the land of each loss year before the loss: the least cloudy two of a path/row.

    Args:
        scenes: what the catalog gave; files at hand are looked at (headers only).
        loss: loss year to the area (EPSG:4326) where loss is.
        imagery: limits; the `before_years` calendar years before the loss year count.
        bands: common names of the bands that the model sees, of which pictures are made.

    Returns:
        Scenes by loss year, the clearest first (of equally clear ones the latest); years without any are left out.
    """
    shown, chosen = picture_bands(bands), dict[int, list[Scene]]()
    ordered = sorted(scenes, key=lambda s: (cloudiness(s), -s.datetime.timestamp(), s.id))
    sound: dict[str, bool] = {}
    for year, area in loss.items():
        taken: Counter[str] = Counter()
        for scene in ordered:
            if not year - imagery.before_years <= scene.datetime.year < year or taken[wrs_place(scene)] >= _MOST:
                continue
            if (scene.cloud_cover or 0) > imagery.max_cloud:
                continue
            if not shapely.intersects(shapely.from_wkt(scene.footprint), area):
                continue
            if scene.id not in sound:
                sound[scene.id] = check_scene(scene, shown) is None
            if sound[scene.id]:
                taken[wrs_place(scene)] += 1
                chosen.setdefault(year, []).append(scene)
    return chosen
