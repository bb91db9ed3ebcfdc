"""Late images: what a rerun of the same configuration does about events that no clear image has shown yet.

The rule, in the order in which it is applied by `pipeline.steps.plan_run`:

1. `--replan`, another configuration, model, loss, code or other input file: plan anew, with everything the archive has.
2. A local file of a scene that the plan names has changed or is gone: plan anew.
3. The plan has not led to a product yet: go on with it; where the files of a local source have changed, plan anew
   (blocks whose scenes are the same are found, not computed).
4. Events await an image: ask the catalog for their area and window. Scenes that the plan neither chose nor refused, or
   whose files have changed since they were refused, are new. Of the awaiting events only those that a new scene can
   reach are computed, in a *late pass*; a new scene in which none of them is clear is set aside before its bands are
   read. Without a new scene nothing is written.
5. No event awaits an image: the product is current, whatever came into the archive.

A late pass is a set of further blocks: the block `r0000c0001` becomes `r0000c0001+1` in the first pass, with the event
rows it is for, the scenes of the first plan (the land around an event is composited from them too) and the new ones.
It has checkpoints of its own. An awaiting event has no clear pixel in any earlier block, so sums by event add up, and
the rasters of a pass fill only pixels that were empty: whatever was classified before keeps its answer to the byte.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.windows import Window

from pipeline import plan as planning
from pipeline.alerts import day_number
from pipeline.artifacts import write_json
from pipeline.blocks import checkpoint_name
from pipeline.candidates import find_candidates, wrs_place
from pipeline.catalog.check import REMOTE
from pipeline.catalog.scene import Refusal, Scene
from pipeline.config import RunConfig
from pipeline.models.card import ModelCard
from pipeline.plan import EVENTS_FILE, LABELS_FILE, Plan, PlannedBlock
from pipeline.planner import check_scenes
from pipeline.survey import Bring, LossWindow, look_at

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

AWAITING_FILE = "awaiting.json"
_TILE = 256
"""Loss is looked at in squares of this many pixels."""


def save_awaiting(work: Path, state: str, rows: Iterable[int]) -> None:
    """Record in a run's folder that a plan of this state has led to a whole product, and which event rows wait."""
    write_json(work / AWAITING_FILE, {"plan": state, "events": [int(row) for row in rows]})


def read_awaiting(work: Path, state: str) -> list[int] | None:
    """Event rows that await an image; None where no plan of this state has led to a product."""
    path = work / AWAITING_FILE
    if not path.is_file():
        return None
    kept = json.loads(path.read_bytes())
    return list(kept["events"]) if kept["plan"] == state else None


def files_changed(plan: Plan) -> bool:
    """Whether a local file of a scene that the plan names has changed, or is gone."""
    named = {**plan.before_scenes, **plan.spare, **plan.scenes}
    return any(plan.known.get(key) != planning.files_of(scene) for key, scene in named.items())


def settled_blocks(work: Path, plan: Plan) -> frozenset[str]:
    """Blocks of passes before the latest one that have a checkpoint: nothing that is found out later alters them."""
    latest = max((b.late for b in plan.blocks), default=0)
    return frozenset(
        b.block.id for b in plan.blocks if b.late < latest and (work / "blocks" / checkpoint_name(plan, b)).exists()
    )


def plan_pass(config: RunConfig, card: ModelCard, plan: Plan, rows: list[int]) -> Plan | None:
    """The plan with one more late pass, for those of the event rows that new scenes can reach; None where none can.

    Raises:
        InputError: the catalog cannot be asked.
    """
    import geopandas as gpd

    events = gpd.read_parquet(config.work / EVENTS_FILE)
    waiting = events.iloc[rows]
    areas = planning.loss_areas(waiting, plan.grid, plan.layout)
    new = [s for s in _ask(config, areas) if s.id not in plan.scenes and plan.known.get(s.id) != planning.files_of(s)]
    if not new:
        return None
    fit, unfit = check_scenes(new, card)
    candidates, left = find_candidates(fit, areas, config.imagery)
    blocks = _late_blocks(config.work, plan, events, _reached(waiting, candidates), candidates)
    if not blocks:
        return None
    return _with_pass(plan, blocks, candidates, [*unfit, *left])


def _ask(config: RunConfig, areas: dict[int, Any]) -> list[Scene]:
    from pipeline.catalog.open import open_catalog

    imagery = config.imagery.model_copy(update={"before_years": 0})
    catalog = open_catalog(imagery.source, imagery.collections, Path(), imagery.allow_hosts)
    return planning.ask_catalog(catalog, shapely.union_all(list(areas.values())), sorted(areas), imagery)[0]


def _reached(waiting: GeoDataFrame, chosen: dict[int, list[Scene]]) -> np.ndarray:
    """Rows (labels of `waiting`'s index) of the events that a scene chosen for their loss year can show."""
    reached = np.zeros(len(waiting), bool)
    years, shapes = waiting["loss_year"].to_numpy(), np.asarray(waiting.geometry.values)
    last = waiting["last_day"].to_numpy()
    for year, scenes in chosen.items():
        for scene in scenes:
            near = np.flatnonzero((years == year) & ~reached & (last <= day_number(scene.datetime.date())))
            reached[near] = shapely.intersects(shapely.from_wkt(scene.footprint), shapes[near])
    return np.asarray(waiting.index.to_numpy()[reached])


def _late_blocks(
    work: Path, plan: Plan, events: GeoDataFrame, rows: np.ndarray, chosen: dict[int, list[Scene]]
) -> list[PlannedBlock]:
    """The first plan's blocks that hold one of the event rows and get a new scene, as blocks of the next pass."""
    number = max(b.late for b in plan.blocks) + 1
    years = events["loss_year"].to_numpy()
    dated = planning.dated_years(years, events["last_day"].to_numpy())
    boxes = events[["row0", "col0", "row1", "col1"]].to_numpy()[rows]
    found = []
    with rasterio.open(work / LABELS_FILE) as raster:
        for planned in (b for b in plan.blocks if not b.late):
            block = planned.block
            near = (boxes[:, 0] < block.row0 + block.height) & (boxes[:, 2] > block.row0)
            near &= (boxes[:, 1] < block.col0 + block.width) & (boxes[:, 3] > block.col0)
            if not near.any():
                continue
            loss = planning.read_block_loss(raster, block, plan.layout)
            loss = loss.only(np.isin(loss.labels, rows[near] + 1))
            inside = loss.inside
            if not inside.any():
                continue
            drawn = planning.read_patches(work, planned)
            part = planning.find_block(loss, years, plan.layout.size, drawn)
            late = planning.assign_scenes(block, part.speaking, chosen, plan.grid, plan.layout)
            if any(late.values()):
                scenes = {year: tuple(sorted({*planned.scenes.get(year, ()), *ids})) for year, ids in late.items()}
                only = tuple(int(row) for row in np.unique(inside[inside > 0]) - 1)
                own = dataclasses.replace(block, id=f"{block.id}+{number}")
                patches = part.patches(scenes, dated)
                found.append(PlannedBlock(own, scenes, part.events, part.pixels, patches, number, only, part.covered))
    return found


def _with_pass(plan: Plan, blocks: list[PlannedBlock], chosen: dict[int, list[Scene]], refused: list[Refusal]) -> Plan:
    """The plan with the blocks of a pass. Only scenes that they use are known from now on: others may serve later."""
    used = {s for planned in blocks for ids in planned.scenes.values() for s in ids}
    taken = {s.id: s for group in chosen.values() for s in group if s.id in used}
    said = {r.scene_id: r for r in refused}
    kept = [r for r in plan.refused if r.scene_id not in taken and r.scene_id not in said]
    return dataclasses.replace(
        plan,
        scenes={**plan.scenes, **taken},
        refused=tuple(sorted([*kept, *said.values()], key=lambda r: r.scene_id)),
        blocks=(*plan.blocks, *blocks),
        known={**plan.known, **{key: planning.files_of(scene) for key, scene in taken.items()}},
    )


def unseen_windows(work: Path, plan: Plan) -> dict[str, list[LossWindow]]:
    """Where each scene that is new in the latest pass may show events that await an image: scene id to their loss.

    Only of blocks that are still to be computed.
    """
    latest = max((b.late for b in plan.blocks), default=0)
    first = {(b.block.row0, b.block.col0): b.scenes for b in plan.blocks if not b.late}
    found: dict[str, list[LossWindow]] = {}
    for planned in (b for b in plan.blocks if b.late == latest > 0):
        if (work / "blocks" / checkpoint_name(plan, planned)).exists():
            continue
        known = first[planned.block.row0, planned.block.col0]
        new = {s for year, ids in planned.scenes.items() for s in set(ids) - set(known.get(year, ()))}
        windows = list(_loss_windows(work, planned))
        for scene in sorted(new):
            found.setdefault(scene, []).extend(windows)
    return found


def _loss_windows(work: Path, planned: PlannedBlock) -> Iterator[LossWindow]:
    """The loss of a late block's events, in squares of the run's grid."""
    block = planned.block
    with rasterio.open(work / LABELS_FILE) as raster:
        for row in range(block.row0, block.row0 + block.height, _TILE):
            for col in range(block.col0, block.col0 + block.width, _TILE):
                height, width = min(_TILE, block.row0 + block.height - row), min(_TILE, block.col0 + block.width - col)
                labels = raster.read(1, window=Window(col, row, width, height))
                rows, cols = np.nonzero(np.isin(labels, np.array(planned.only) + 1))
                if len(rows):
                    top, left = int(rows.min()), int(cols.min())
                    place = row + top, col + left, int(rows.max()) - top + 1, int(cols.max()) - left + 1
                    yield LossWindow(place, rows - top, cols - left, labels[rows, cols] - 1)


def clear_pixels(scene: Scene, windows: list[LossWindow], plan: Plan, work: Path, bring: Bring) -> int:
    """How many loss pixels of events that await an image a late scene shows clear.

    Raises:
        SceneError: its clouds cannot be had or read.
    """
    clear, _ = look_at(scene, plan, windows, bring)
    last = pq.read_table(work / EVENTS_FILE, columns=["last_day"]).column("last_day").to_numpy()
    rows = np.concatenate([part.events for part in windows])
    return int((clear & (last[rows] <= day_number(scene.datetime.date()))).sum())


def choose_late(plan: Plan, clear: dict[str, int], most: int) -> tuple[list[Refusal], list[str]]:
    """Of the scenes of a late pass those that are left out, and which of these a later pass may try.

    `clear` are their clear pixels; of each path/row the `most` that have the most of them are taken.
    """
    refused, spared, taken = list[Refusal](), list[str](), Counter[str]()
    for key in sorted(clear, key=lambda s: (-clear[s], plan.scenes[s].datetime, s)):
        scene = plan.scenes[key]
        taken[wrs_place(scene)] += 1
        if not clear[key]:
            refused.append(planning.refuse(scene, "not needed: it came late, and shows no event that awaits an image"))
        elif taken[wrs_place(scene)] > most:
            refused.append(planning.refuse(scene, f"beyond imagery.max_scenes {most} of a pass over late images"))
            spared.append(key)
    return refused, spared


def forgotten(plan: Plan, scenes: Iterable[str]) -> Plan:
    """The plan that does not know some scenes which it does not use: the next late pass may try them again."""
    gone = set(scenes) - set(plan.scenes)
    return dataclasses.replace(plan, known={key: value for key, value in plan.known.items() if key not in gone})


def worth_retrying(scenes: Iterable[Scene]) -> list[str]:
    """Those of the scenes that could not be had which lie elsewhere; local ones are new once their files change."""
    return [s.id for s in scenes if any(asset.href.lower().startswith(REMOTE) for asset in s.assets.values())]
