"""The plan: what will be done, frozen in one file before anything is done. Only the plan asks the catalog.

Scenes are chosen per WRS path/row and loss year, never per block, so that a pixel's composite does not depend on how
the region is cut into blocks.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.artifacts import code_digest, digest, stamp, write_json
from pipeline.auxiliary.record import AuxiliarySource
from pipeline.candidates import footprint, wrs_place
from pipeline.catalog.scene import Asset, Catalog, Refusal, Scene, SceneGrid
from pipeline.catalog.select import refuse as refuse
from pipeline.config import Imagery
from pipeline.grid import Block, RunGrid, reproject
from pipeline.lattice import PATCH, BlockLoss, PatchLayout, covered_pixels, lattice_window, meeting, needed, speaking

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

PLAN_FILE = "plan.json"
EVENTS_FILE = "events.parquet"
LABELS_FILE = "labels.tif"
YEARS_AT_ONCE = 3
"""Composites held at once; with the default block each takes 160 MB."""
PATCHES_FILE = "patches.parquet"
_ROW_GROUP = 1 << 16
"""Rows of the patches' file that are read for one block, at most twice as many."""
AUXILIARY_PREFIX = "aux_"
"""Of columns of the planned events that hold predictors sampled for a region head."""


@dataclass(frozen=True)
class PlannedBlock:
    """A block that holds loss: its window, the scenes for each loss year, and how much there is to do.

    `patches` go through the model, if the choice of scenes leaves alike what is alike among the candidates.
    `covered` are the pixels under its patches: those of which scenes are read.
    `late` is 0 for a block of the first plan and k for one of the k-th pass over late images, which computes only the
    events in the rows `only` (see `pipeline.late`).
    """

    block: Block
    scenes: dict[int, tuple[str, ...]]
    events: int
    pixels: int
    patches: int
    late: int = 0
    only: tuple[int, ...] = ()
    covered: int = 0

    @property
    def place(self) -> str:
        """Id of the block of the first plan at this place."""
        return self.block.id.partition("+")[0]


@dataclass(frozen=True)
class Plan:
    """A frozen run: grid, patch layout, model, scenes (chosen and refused), blocks; `inputs` digests its sources.

    `model` digests what pixels depend on: the card less its region head, which only the merge knows. `before` names,
    by loss year, scenes from before the loss, which are in `before_scenes`: pictures are made of them, blocks never
    see them. `cache` is where files of remote scenes lie. `archive` digests the local files of the imagery source, and
    `known` those of each scene that it gave, chosen or refused (`files_of`).

    Which scenes serve is settled in two steps. The catalog's answer gives `candidates` by loss year; the fetch stage
    looks at their clouds over the loss and takes the `chosen` ones (see `pipeline.survey`). Those stand in `scenes`,
    the others in `spare`, from where they replace a scene that turns out not to be had. `undecided` lists the loss
    years and path/rows whose choice is still to be made: until then every candidate counts as chosen. `said` holds the
    warnings about the scenes as they stand.
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
    archive: str = ""
    known: dict[str, str] = field(default_factory=dict)
    candidates: dict[int, tuple[str, ...]] = field(default_factory=dict)
    chosen: dict[int, tuple[str, ...]] = field(default_factory=dict)
    spare: dict[str, Scene] = field(default_factory=dict)
    undecided: tuple[tuple[int, str], ...] = ()
    max_scenes: int | None = None
    said: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write the plan to `plan.json` in a folder."""
        write_json(folder / PLAN_FILE, _to_json(self))

    def counts(self) -> dict[str, Any]:
        """Say how much the plan asks for: counts, megapixels, and bytes of imagery to read.

        Before the choice of scenes `scenes` and `bytes` are upper bounds: of `scenes_candidates`, at most `max_scenes`
        of a path/row and loss year will be read.
        """
        patches = sum(b.patches for b in self.blocks)
        megapixels = patches * self.layout.size**2 / 1e6
        margin = [lattice_window(b.block, self.layout)[2:] for b in self.blocks]
        read = sum(
            h * w * 2 * (len(self.bands) + 1) * sum(map(self._at_most, b.scenes.values()))
            for (h, w), b in zip(margin, self.blocks, strict=True)
        )
        return {
            "events": self.event_count,
            "loss_ha": round(self.event_ha, 2),
            "events_below_min_area": self.below_count,
            "blocks": len(self.blocks),
            "scenes": self._most_scenes(),
            "scenes_candidates": len(self.scenes) + len(self.spare),
            "scenes_refused": len(self.refused),
            "scenes_before": len(set(self.before_scenes) - set(self.scenes)),
            "patches": patches,
            "megapixels": round(megapixels, 1),
            "bytes": read,
        }

    def _at_most(self, ids: Sequence[str]) -> int:
        """How many of some scenes of one loss year are read at most."""
        places = Counter(wrs_place(self.scenes[key]) for key in ids)
        return sum(min(n, self.max_scenes or n) for n in places.values())

    def _most_scenes(self) -> int:
        """How many scenes are read at most, over all loss years."""
        if not self.undecided:
            return len(self.scenes)
        return min(len(self.scenes), sum(map(self._at_most, self.chosen.values())))


_CELL = 512


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
            b["late"],
            tuple(b["only"]),
            b["covered"],
        )
        for b in tree["blocks"]
    )
    rest = {
        "grid": RunGrid(**tree["grid"]), "layout": PatchLayout(**tree["layout"]), "scenes": scenes, "refused": refused,
        "blocks": blocks, "years": tuple(tree["years"]), "bands": tuple(tree["bands"]),
        "warnings": tuple(tree["warnings"]), "auxiliary": tuple(_auxiliary(a) for a in tree["auxiliary"]),
        "before": {int(y): tuple(s) for y, s in tree.get("before", {}).items()},
        "before_scenes": {key: _scene(value) for key, value in tree.get("before_scenes", {}).items()},
        **{name: {int(y): tuple(s) for y, s in tree[name].items()} for name in ("candidates", "chosen")},
        "spare": {key: _scene(value) for key, value in tree["spare"].items()},
        "undecided": tuple((int(year), place) for year, place in tree["undecided"]), "said": tuple(tree["said"]),
    }  # fmt: skip
    return Plan(**{**tree, **rest})


def files_of(scene: Scene) -> str:
    """Digest of the local files of a scene (name, size, time); of remote ones only the addresses count."""
    return digest([stamp(Path(asset.href)) for _, asset in sorted(scene.assets.items())])


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
    """A block that holds loss: how many events and loss pixels, its patches, and how many pixels those cover.

    `drawn` are its patches for all years, int32 [n, 7] (see `lattice.PATCH`); `speaking` says by loss year, bool [n],
    which of them speak for its loss.
    """

    block: Block
    events: int
    pixels: int
    speaking: dict[int, np.ndarray]
    covered: int
    drawn: np.ndarray

    def patches(self, scenes: dict[int, tuple[str, ...]], dated: Collection[int]) -> int:
        """How many go through the model; see `groups_of_years`."""
        return sum(
            int(np.logical_or.reduce([self.speaking[year] for year in years]).sum())
            for group in groups_of_years(scenes, dated)
            for years in group
        )


def groups_of_years(
    scenes: Mapping[int, tuple[str, ...]], dated: Collection[int]
) -> Iterator[list[tuple[int, ...]]]:  # fmt: skip
    """Loss years of a block as they are computed: YEARS_AT_ONCE from one reading, and those that see the same as one.

    Years with the same scenes have the same composite, so that a patch is seen once for all of them, except for the
    `dated` ones: where days of the loss are known, what counts of a scene differs from pixel to pixel.
    """
    order = sorted(scenes)
    for start in range(0, len(order), YEARS_AT_ONCE):
        alike: dict[object, list[int]] = {}
        for year in order[start : start + YEARS_AT_ONCE]:
            alike.setdefault(year if year in dated else tuple(scenes[year]), []).append(year)
        yield [tuple(years) for years in alike.values()]


def dated_years(years: np.ndarray, last_day: np.ndarray) -> set[int]:
    """Loss years of which at least one event has a day, from both by event (0 = no day is known)."""
    return {int(year) for year in np.unique(years[last_day > 0])}


def read_block_loss(labels: rasterio.DatasetReader, block: Block, layout: PatchLayout) -> BlockLoss:
    """Read the loss of a block and around it from the label raster; there is none outside the run's grid."""
    row0, col0, height, width = lattice_window(block, layout)
    out = np.zeros((height, width), np.int32)
    r0, c0, r1, c1 = max(row0, 0), max(col0, 0), min(row0 + height, labels.height), min(col0 + width, labels.width)
    out[r0 - row0 : r1 - row0, c0 - col0 : c1 - col0] = labels.read(1, window=Window(c0, r0, c1 - c0, r1 - r0))
    return BlockLoss(block, row0, col0, out)


def find_blocks(
    events: GeoDataFrame, grid: RunGrid, labels: Path, layout: PatchLayout, drawn: np.ndarray
) -> list[FoundBlock]:
    """Blocks that hold loss, in row-major order; `drawn` are the run's patches."""
    years = events["loss_year"].to_numpy()
    found = []
    with rasterio.open(labels) as raster:
        for block in grid.blocks():
            loss = read_block_loss(raster, block, layout)
            if loss.inside.any():
                found.append(find_block(loss, years, layout.size, meeting(drawn, layout.size, block)))
    return found


def find_block(loss: BlockLoss, years: np.ndarray, size: int, drawn: np.ndarray) -> FoundBlock:
    """What a block holds.

    Args:
        loss: the block's loss; labels are event row + 1.
        years: loss year by event row.
        size: patch in pixels.
        drawn: int32 [n, 7], patches that meet the block.
    """
    inside = loss.inside
    rows = np.unique(inside[inside > 0]) - 1
    drawn, several = needed(drawn, size, loss), np.unique(years[rows])
    heard = {int(year): np.ones(len(drawn), bool) for year in several}
    if len(several) > 1:
        year_of = np.concatenate([[0], years])[loss.labels]
        heard = {int(year): speaking(drawn, size, loss.only(year_of == year)) for year in several}
    covered = covered_pixels(drawn, size)
    return FoundBlock(loss.block, len(rows), int(np.count_nonzero(inside)), heard, covered, drawn)


def save_patches(folder: Path, found: Sequence[FoundBlock]) -> None:
    """Write the patches of all blocks beside the plan."""
    names = [part.block.id for part in found for _ in part.drawn]
    drawn = np.concatenate([np.zeros((0, len(PATCH)), np.int32), *(part.drawn for part in found)])
    columns = {name: pa.array(drawn[:, k], pa.int32()) for k, name in enumerate(PATCH)}
    pq.write_table(pa.table({"block": pa.array(names, pa.string()), **columns}), folder / PATCHES_FILE, _ROW_GROUP)


def read_patches(folder: Path, planned: PlannedBlock) -> np.ndarray:
    """The patches of a block, int32 [n, 7] (see `lattice.PATCH`); a late block has those of its place."""
    table = pq.read_table(folder / PATCHES_FILE, columns=list(PATCH), filters=[("block", "==", planned.place)])
    return np.stack([table.column(name).to_numpy() for name in PATCH], axis=1)


def ask_catalog(
    catalog: Catalog, aoi: Geometry, years: Sequence[int], imagery: Imagery
) -> tuple[list[Scene], list[Refusal]]:
    """Ask for all scenes of the whole window of image years and of the years before the loss, once."""
    first = date(min(years) + min(imagery.window.first_year, -imagery.before_years), 1, 1)
    last = date(max(years) + imagery.window.last_year, 12, 31)
    found = list(catalog.search(aoi, first, last))
    return [s for s in found if isinstance(s, Scene)], [r for r in found if isinstance(r, Refusal)]


def assign_scenes(
    block: Block, years: Iterable[int], chosen: dict[int, list[Scene]], grid: RunGrid, layout: PatchLayout
) -> dict[int, tuple[str, ...]]:
    """Name the scenes each loss year of a block reads: those that meet the block with its margin, by id."""
    row0, col0, height, width = lattice_window(block, layout)
    # boxes in degrees of windows in a projected CRS bulge, hence the dense edges and a small buffer
    box = shapely.buffer(outline(grid, row0, col0, height, width), 0.01)
    shapely.prepare(box)
    return {
        int(year): tuple(sorted(s.id for s in chosen[int(year)] if shapely.intersects(box, footprint(s.footprint))))
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


def plan_block(
    found: FoundBlock, chosen: dict[int, list[Scene]], grid: RunGrid, layout: PatchLayout, dated: Collection[int]
) -> PlannedBlock:
    """Freeze one block; `dated` as for `groups_of_years`."""
    scenes = assign_scenes(found.block, found.speaking, chosen, grid, layout)
    patches = found.patches(scenes, dated)
    return PlannedBlock(found.block, scenes, found.events, found.pixels, patches, covered=found.covered)


def fingerprint(value: object) -> str:
    """Digest of everything a plan was made from."""
    return digest(["plan 1", value])


def product_digest(plan: Plan) -> str:
    """What a product is a function of: the plan as it stands (less scenes found unreadable later) and all code."""
    return digest([state_digest(plan), code_digest(whole=True)])


def state_digest(plan: Plan) -> str:
    """What the answers are a function of: what the plan was made from, its scenes with their files, and its blocks."""
    blocks = [planned.block.id for planned in plan.blocks]
    files = {key: plan.known.get(key) for key in {**plan.before_scenes, **plan.scenes}}
    return digest([plan.inputs, files, plan.chosen, blocks])


def now() -> str:
    """Time of day in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
