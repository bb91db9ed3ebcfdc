"""The plan: what will be done, frozen in one file before anything is done. Only the plan asks the catalog.

Scenes are chosen per WRS path/row and loss year, never per block, so that a pixel's composite does not depend on how
the region is cut into blocks.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.artifacts import digest, write_json
from pipeline.auxiliary.record import AuxiliarySource
from pipeline.catalog.scene import Asset, Catalog, Refusal, Scene, SceneGrid
from pipeline.config import Imagery
from pipeline.grid import Block, RunGrid, reproject
from pipeline.lattice import PatchLayout, lattice_window

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PLAN_FILE = "plan.json"
EVENTS_FILE = "events.parquet"
LABELS_FILE = "labels.tif"
AUXILIARY_PREFIX = "aux_"
"""Of columns of the planned events that hold predictors sampled for a region head."""


@dataclass(frozen=True)
class PlannedBlock:
    """A block that holds loss: its window, the scenes for each loss year, and how much there is to do."""

    block: Block
    scenes: dict[int, tuple[str, ...]]
    events: int
    pixels: int
    patches: int


@dataclass(frozen=True)
class Plan:
    """A frozen run: grid, patch layout, model, scenes (chosen and refused), blocks; `inputs` digests its sources.

    `model` digests what pixels depend on: the card less its region head, which only the merge knows. `before` names,
    by loss year, scenes from before the loss, which are in `before_scenes`: pictures are made of them, blocks never
    see them. `cache` is where files of remote scenes lie.
    """

    inputs: str
    region: str
    years: tuple[int, ...]
    aoi: str
    grid: RunGrid
    layout: PatchLayout
    model: str
    bands: tuple[str, ...]
    event_count: int
    event_ha: float
    below_count: int
    below_ha: float
    loss: str
    scenes: dict[str, Scene]
    refused: tuple[Refusal, ...]
    blocks: tuple[PlannedBlock, ...]
    warnings: tuple[str, ...]
    auxiliary: tuple[AuxiliarySource, ...] = ()
    before: dict[int, tuple[str, ...]] = field(default_factory=dict)
    before_scenes: dict[str, Scene] = field(default_factory=dict)
    cache: str = ""

    def save(self, folder: Path) -> None:
        """Write the plan to `plan.json` in a folder."""
        write_json(folder / PLAN_FILE, _to_json(self))

    def counts(self, workers: int) -> dict[str, Any]:
        """Say how much the plan asks for: counts, megapixels, bytes of imagery to read, and seconds as a guess."""
        patches = sum(b.patches for b in self.blocks)
        megapixels = patches * self.layout.size**2 / 1e6
        margin = [lattice_window(b.block, self.layout)[2:] for b in self.blocks]
        read = sum(
            h * w * 2 * (len(self.bands) + 1) * sum(map(len, b.scenes.values()))
            for (h, w), b in zip(margin, self.blocks, strict=True)
        )
        return {
            "events": self.event_count,
            "loss_ha": round(self.event_ha, 2),
            "events_below_min_area": self.below_count,
            "blocks": len(self.blocks),
            "scenes": len(self.scenes),
            "scenes_refused": len(self.refused),
            "scenes_before": len(set(self.before_scenes) - set(self.scenes)),
            "patches": patches,
            "megapixels": round(megapixels, 1),
            "bytes": read,
            "seconds": round(_START_SECONDS + (megapixels / _MPX_PER_SECOND + read / _BYTES_PER_SECOND) / workers),
        }


_CELL = 512
_START_SECONDS, _MPX_PER_SECOND, _BYTES_PER_SECOND = 25.0, 0.5, 60e6


def _to_json(plan: Plan) -> dict[str, Any]:
    tree = dataclasses.asdict(plan)
    tree["blocks"] = [
        {**dataclasses.asdict(b), "scenes": {str(y): s for y, s in b.scenes.items()}} for b in plan.blocks
    ]
    return tree


def read_plan(folder: Path) -> Plan:
    """Read `plan.json` of a run's folder."""
    tree = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    scenes = {key: _scene(value) for key, value in tree["scenes"].items()}
    refused = tuple(Refusal(**{**r, "datetime": _time(r["datetime"])}) for r in tree["refused"])
    blocks = tuple(
        PlannedBlock(
            Block(**b["block"]),
            {int(y): tuple(s) for y, s in b["scenes"].items()},
            b["events"],
            b["pixels"],
            b["patches"],
        )
        for b in tree["blocks"]
    )
    rest = {
        "grid": RunGrid(**tree["grid"]), "layout": PatchLayout(**tree["layout"]), "scenes": scenes, "refused": refused,
        "blocks": blocks, "years": tuple(tree["years"]), "bands": tuple(tree["bands"]),
        "warnings": tuple(tree["warnings"]), "auxiliary": tuple(_auxiliary(a) for a in tree["auxiliary"]),
        "before": {int(y): tuple(s) for y, s in tree.get("before", {}).items()},
        "before_scenes": {key: _scene(value) for key, value in tree.get("before_scenes", {}).items()},
    }  # fmt: skip
    return Plan(**{**tree, **rest})


def _auxiliary(tree: dict[str, Any]) -> AuxiliarySource:
    return AuxiliarySource(**{**tree, "columns": tuple(tree["columns"])})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _scene(tree: dict[str, Any]) -> Scene:
    grid = SceneGrid(tree["grid"]["crs"], tuple(tree["grid"]["transform"])) if tree["grid"] else None
    assets = {band: Asset(**asset) for band, asset in tree["assets"].items()}
    return Scene(**{**tree, "datetime": datetime.fromisoformat(tree["datetime"]), "assets": assets, "grid": grid})


@dataclass(frozen=True)
class FoundBlock:
    """A block that holds loss: how many events and loss pixels, and the patches of each loss year in it."""

    block: Block
    events: int
    pixels: int
    patches: dict[int, int]


def find_blocks(events: GeoDataFrame, grid: RunGrid, labels: Path, layout: PatchLayout) -> dict[str, FoundBlock]:
    """Blocks that hold loss, by id, in row-major order."""
    years = events["loss_year"].to_numpy()
    found = {}
    with rasterio.open(labels) as raster:
        for block in grid.blocks():
            part = raster.read(1, window=Window(block.col0, block.row0, block.width, block.height))
            if not part.any():
                continue
            rows = np.unique(part[part > 0]) - 1
            year_of = np.concatenate([[0], years])[part]
            patches = {int(y): _count_patches(year_of == y, block, layout) for y in np.unique(years[rows])}
            found[block.id] = FoundBlock(block, len(rows), int(np.count_nonzero(part)), patches)
    return found


def _count_patches(loss: np.ndarray, block: Block, layout: PatchLayout) -> int:
    """Lattice patches that touch `loss` [block.height, block.width]; an estimate where patches are laid by events."""
    row0, col0, height, width = lattice_window(block, layout)
    integral = np.zeros((loss.shape[0] + 1, loss.shape[1] + 1), np.int64)
    integral[1:, 1:] = loss.cumsum(0, dtype=np.int64).cumsum(1)
    tops = np.arange(row0, row0 + height - layout.size + 1, layout.stride) - block.row0
    lefts = np.arange(col0, col0 + width - layout.size + 1, layout.stride) - block.col0
    r0, r1 = (np.clip(tops + k, 0, loss.shape[0]) for k in (0, layout.size))
    c0, c1 = (np.clip(lefts + k, 0, loss.shape[1]) for k in (0, layout.size))
    sums = integral[np.ix_(r1, c1)] - integral[np.ix_(r0, c1)] - integral[np.ix_(r1, c0)] + integral[np.ix_(r0, c0)]
    return int(np.count_nonzero(sums))


def ask_catalog(
    catalog: Catalog, aoi: Geometry, years: Sequence[int], imagery: Imagery
) -> tuple[list[Scene], list[Refusal]]:
    """Ask for all scenes of the whole window of image years and of the years before the loss, once."""
    first = date(min(years) + min(imagery.window.first_year, -imagery.before_years), 1, 1)
    last = date(max(years) + imagery.window.last_year, 12, 31)
    found = list(catalog.search(aoi, first, last))
    return [s for s in found if isinstance(s, Scene)], [r for r in found if isinstance(r, Refusal)]


def choose_scenes(
    scenes: Iterable[Scene], loss: dict[int, Geometry], imagery: Imagery
) -> tuple[dict[int, list[Scene]], list[Refusal]]:
    """Choose the scenes of each loss year: least cloudy first, at most `max_scenes` of a WRS path/row.

    Args:
        scenes: what can serve.
        loss: loss year to the area (EPSG:4326) where imagery is needed.
        imagery: limits.

    Returns:
        Scenes by loss year, and a refusal with its reason for each scene that no year takes.
    """
    chosen: dict[int, list[Scene]] = {year: [] for year in loss}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    ordered = sorted(scenes, key=lambda s: (cloudiness(s), s.datetime, s.id))
    for year, area in loss.items():
        taken: Counter[str] = Counter()
        for scene in ordered:
            reason = _unfit(scene, year, area, imagery, taken)
            if reason:
                reasons[scene.id][reason] += 1
            else:
                taken[wrs_place(scene)] += 1
                chosen[year].append(scene)
    used = {scene.id for group in chosen.values() for scene in group}
    refused = [_refuse(s, reasons[s.id].most_common(1)[0][0]) for s in ordered if s.id not in used and reasons[s.id]]
    return chosen, sorted(refused, key=lambda r: r.scene_id)


def cloudiness(scene: Scene) -> float:
    """Cloud cover for sorting: unknown comes last."""
    return 101.0 if scene.cloud_cover is None else scene.cloud_cover


def _unfit(scene: Scene, year: int, area: Geometry, imagery: Imagery, taken: Counter[str]) -> str | None:
    first, last = year + imagery.window.first_year, year + imagery.window.last_year
    if not first <= scene.datetime.year <= last:
        return f"wrong date: {scene.datetime.date()} is not in imagery.window of any loss year"
    if scene.cloud_cover is not None and scene.cloud_cover > imagery.max_cloud:
        return f"cloud cover {scene.cloud_cover:g} % is above imagery.max_cloud {imagery.max_cloud:g} %"
    if not shapely.intersects(shapely.from_wkt(scene.footprint), area):
        return "outside the area around the loss"
    if taken[wrs_place(scene)] >= imagery.max_scenes:
        return f"not needed: imagery.max_scenes {imagery.max_scenes} clearer ones of its path/row were taken"
    return None


def wrs_place(scene: Scene) -> str:
    """The scene's path/row; where the catalog gives none, the degree its centre lies in, which is finer than a row."""
    if scene.path is not None and scene.row is not None:
        return f"{scene.path}/{scene.row}"
    centre = shapely.centroid(shapely.from_wkt(scene.footprint))
    return f"{round(centre.x)} {round(centre.y)}"


def _refuse(scene: Scene, reason: str) -> Refusal:
    return Refusal(scene.id, reason, scene.datetime, scene.cloud_cover, scene.footprint)


def assign_scenes(
    block: Block, years: Iterable[int], chosen: dict[int, list[Scene]], grid: RunGrid, layout: PatchLayout
) -> dict[int, tuple[str, ...]]:
    """Name the scenes each loss year of a block reads: those that meet the block with its margin, by id."""
    row0, col0, height, width = lattice_window(block, layout)
    # boxes in degrees of windows in a projected CRS bulge, hence the dense edges and a small buffer
    box = shapely.buffer(outline(grid, row0, col0, height, width), 0.01)
    return {
        int(year): tuple(
            sorted(s.id for s in chosen[int(year)] if shapely.intersects(shapely.from_wkt(s.footprint), box))
        )
        for year in years
    }


def outline(grid: RunGrid, row0: int, col0: int, height: int, width: int) -> Geometry:
    """Outline of a window of the grid as a polygon in EPSG:4326, edges densified."""
    extent = grid.window(row0, col0, height, width).extent.geom
    polygon: Geometry = reproject(shapely.segmentize(extent, grid.resolution * 256), grid.crs, "EPSG:4326")
    return polygon


def loss_areas(events: GeoDataFrame, grid: RunGrid, layout: PatchLayout) -> dict[int, Geometry]:
    """Where imagery of each loss year is needed (EPSG:4326), in cells of the run's grid; years without loss are absent.

    Cells, not blocks: which scenes are chosen must not depend on how the run is cut into blocks.
    """
    areas = {}
    for year, group in events[events["pixels"] > 0].groupby("loss_year"):
        bounds = group[["row0", "col0", "row1", "col1"]].to_numpy()
        first = (bounds[:, :2] - layout.size) // _CELL
        last = (bounds[:, 2:] - 1 + layout.size) // _CELL
        cells = {
            (int(row), int(col))
            for (r0, c0), (r1, c1) in zip(first, last, strict=True)
            for row in range(r0, r1 + 1)
            for col in range(c0, c1 + 1)
        }
        boxes = [grid.window(row * _CELL, col * _CELL, _CELL, _CELL).extent.geom for row, col in sorted(cells)]
        areas[int(year)] = reproject(shapely.union_all(boxes), grid.crs, "EPSG:4326")
    return areas


def plan_block(found: FoundBlock, chosen: dict[int, list[Scene]], grid: RunGrid, layout: PatchLayout) -> PlannedBlock:
    """Freeze one block."""
    scenes = assign_scenes(found.block, found.patches, chosen, grid, layout)
    return PlannedBlock(found.block, scenes, found.events, found.pixels, sum(found.patches.values()))


def without_scenes(plan: Plan, refused: Sequence[Refusal]) -> Plan:
    """The plan less some scenes, which move to the refused ones."""
    gone = {refusal.scene_id for refusal in refused}
    blocks = tuple(
        replace(b, scenes={year: tuple(s for s in ids if s not in gone) for year, ids in b.scenes.items()})
        for b in plan.blocks
    )
    kept, early = (
        {key: scene for key, scene in group.items() if key not in gone} for group in (plan.scenes, plan.before_scenes)
    )
    before = {year: tuple(s for s in ids if s not in gone) for year, ids in plan.before.items()}
    everything = tuple(sorted([*plan.refused, *refused], key=lambda r: r.scene_id))
    return replace(plan, scenes=kept, refused=everything, blocks=blocks, before=before, before_scenes=early)


def fingerprint(value: object) -> str:
    """Digest of everything a plan was made from."""
    return digest(["plan 1", value])


def now() -> str:
    """Time of day in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
