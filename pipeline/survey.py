"""Which scenes serve: QA_PIXEL of every candidate is read at the loss, before any band of any scene is.

The catalog knows how cloudy a scene is as a whole; what counts is how cloudy it is over the loss. The choice is made
for each WRS path/row and loss year, never for a block, and rests on the pixels of the run's grid alone: whatever the
blocks, the workers and the source of the files are, the same scenes are chosen.

QA_PIXEL is read at full resolution. Its overviews hold categories that were resampled in ways nobody tells, bundles
have none, and an event of five pixels would be missed between the pixels of a coarser grid; it is a small file, since
its categories compress some ten times better than reflectance.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.alerts import day_number
from pipeline.candidates import cloudiness, footprint, wrs_place
from pipeline.catalog.scene import QA_PIXEL, Refusal, Scene
from pipeline.catalog.select import refuse
from pipeline.config import Imagery
from pipeline.errors import SceneError
from pipeline.grid import RunGrid, reproject
from pipeline.gridded import MARGIN, QA_FILL, BandOnGrid, clear_mask, file_name, readable_window
from pipeline.plan import EVENTS_FILE, LABELS_FILE, Plan
from pipeline.plan_scenes import with_chosen, without_scenes

Bring = Callable[[Scene, str], Scene]
"""Brings one band of a scene to this machine: the scene with local files; raises SceneError."""
Rectangle = tuple[int, int, int, int]
"""First row, first column, height and width in pixels of the run's grid."""
_TILE = 256
"""Loss is looked for in squares of this many pixels, those of Landsat's files."""
_CHOSEN = "path/row "
"""How a warning about the choice for one path/row begins."""
_NEAR = 512
"""Pixels around a footprint in which its scene is still looked for: catalogs draw footprints roughly."""


@dataclass(frozen=True)
class Sight:
    """What one scene shows of the loss of one path/row and loss year.

    Attributes:
        clear: bool [loss pixels] packed into uint8, where the ground is seen.
        count: how many those are.
        seen: loss pixels over which the scene has data, clouds included.
        trust: how far `clear` is to be believed, 0..1: a scene without QA_PIXEL does not tell clouds from ground.
    """

    clear: np.ndarray
    count: int
    seen: int
    trust: float = 1.0

    @property
    def told(self) -> str:
        """How clear the scene is over the loss, in words."""
        share = 100 * self.count / max(self.seen, 1)
        return f"{share:.0f} % of the loss under it is clear" if self.seen else "no loss lies under it"


@dataclass(frozen=True)
class LossWindow:
    """Loss inside a window of the run's grid: its pixels by row and column of the window, and by row of the events."""

    place: Rectangle
    rows: np.ndarray
    cols: np.ndarray
    events: np.ndarray


@dataclass(frozen=True)
class Look:
    """What the candidates of a WRS path/row show of its loss.

    Attributes:
        group: the candidates of each loss year.
        windows: its loss, in the order of the pixels of a sight.
        years: int16 [loss pixels], their loss years.
        sights: (loss year, scene id) to what that scene shows.
        lost: candidates whose clouds cannot be read.
    """

    group: dict[int, list[Scene]]
    windows: list[LossWindow]
    years: np.ndarray
    sights: dict[tuple[int, str], Sight]
    lost: list[Refusal]


def decide(plan: Plan, work: Path, imagery: Imagery, bring: Bring, settled: Collection[str] = ()) -> Plan:
    """Choose the scenes of every undecided path/row and loss year of a plan.

    Args:
        plan: with candidates; what is decided already stays as it is.
        work: the run's folder with its label raster and events.
        imagery: `enough_clear`, `max_scenes` and `least_gain`.
        bring: makes a band of a candidate readable here.
        settled: blocks that keep their scenes.

    Returns:
        The plan of the chosen scenes. A candidate whose clouds cannot be read leaves it with its reason.
    """
    known = {**plan.spare, **plan.scenes}
    chosen = {year: set(ids) for year, ids in plan.chosen.items()}
    told: dict[str, tuple[int, str]] = {}
    lost: list[Refusal] = []
    decided = tuple(_named(place, year) for year, place in plan.undecided)
    warnings = [text for text in plan.said if text.startswith(_CHOSEN) and not text.startswith(decided)]
    for place, look in look_at_loss(plan, work, bring):
        lost += look.lost
        for year, scenes in look.group.items():
            sights = {s.id: look.sights[year, s.id] for s in scenes if (year, s.id) in look.sights}
            order = sorted(sights, key=lambda key: (cloudiness(known[key]), known[key].datetime, key))
            choice = choose({key: sights[key] for key in order}, int((look.years == year).sum()), imagery)
            chosen[year] = chosen[year] - {s.id for s in scenes} | set(choice.taken)
            for key, reason in choice.reasons.items():
                told[key] = max(told.get(key, reason), reason)
            if choice.missed:
                warnings.append(
                    f"{_named(place, year)}{choice.missed} loss pixels are clear only in scenes beyond "
                    f"imagery.max_scenes {imagery.max_scenes}; raise it to see them"
                )
    thinner = without_scenes(plan, lost, settled) if lost else plan
    final = {year: tuple(sorted(ids)) for year, ids in chosen.items()}
    used = {key for ids in final.values() for key in ids}
    refused = [refuse(known[key], reason) for key, (_, reason) in told.items() if key not in used]
    return with_chosen(thinner, final, refused, warnings, settled)


def _named(place: str, year: int) -> str:
    return f"{_CHOSEN}{place}, loss year {year}: "


def look_at_loss(plan: Plan, work: Path, bring: Bring) -> Iterator[tuple[str, Look]]:
    """Read the clouds of the candidates of each undecided path/row over its loss, one path/row after the other."""
    years_of: dict[str, list[int]] = defaultdict(list)
    for year, place in plan.undecided:
        years_of[place].append(year)
    known = {**plan.spare, **plan.scenes}
    windows = look_windows(plan, work)
    events = pq.read_table(work / EVENTS_FILE, columns=["loss_year", "last_day"])
    loss_year, last_day = (events.column(name).to_numpy() for name in events.column_names)
    for place, years in sorted(years_of.items()):
        group = {y: [known[key] for key in plan.candidates[y] if wrs_place(known[key]) == place] for y in years}
        loss = _read_loss(work, _near(windows, group, plan.grid))
        rows = np.concatenate([np.zeros(0, np.int64), *(part.events for part in loss)])
        of_year = loss_year[rows].astype(np.int16)
        sights, lost = _look_at_all(plan, group, (loss, of_year, last_day[rows]), bring)
        yield place, Look(group, loss, of_year, sights, lost)


def look_windows(plan: Plan, work: Path) -> list[Rectangle]:
    """Where the choice looks at clouds: the hull of the loss in each square of _TILE pixels of the run's grid."""
    squares: set[tuple[int, int]] = set()
    for planned in plan.blocks:
        b = planned.block
        rows = range(b.row0 // _TILE * _TILE, b.row0 + b.height, _TILE)
        squares |= {(row, col) for row in rows for col in range(b.col0 // _TILE * _TILE, b.col0 + b.width, _TILE)}
    found = []
    with rasterio.open(work / LABELS_FILE) as raster:
        for row, col in sorted(squares):
            height, width = min(_TILE, raster.height - row), min(_TILE, raster.width - col)
            labels = raster.read(1, window=Window(col, row, width, height))
            if labels.any():
                rows, cols = np.nonzero(labels)
                top, left = int(rows.min()), int(cols.min())
                found.append((row + top, col + left, int(rows.max()) - top + 1, int(cols.max()) - left + 1))
    return found


@dataclass(frozen=True)
class Choice:
    """Scenes taken of one path/row and loss year, in order.

    Attributes:
        taken: ids.
        reasons: id of each other scene to (how bad that is, why it was not taken).
        missed: loss pixels that only scenes beyond the limit see clear.
    """

    taken: tuple[str, ...]
    reasons: dict[str, tuple[int, str]]
    missed: int


def choose(sights: Mapping[str, Sight], pixels: int, imagery: Imagery) -> Choice:
    """Choose scenes until every loss pixel has enough clear observations, the scenes run out, or the limit is reached.

    First each pixel gets one observation, then the others that it lacks: so the limit never takes the only observation
    of one pixel for the sake of another's fifth. In both rounds the scene comes next that gives an observation to most
    of the pixels that still lack one; the first of all is the one that is clear over most of the loss.

    Args:
        sights: what the candidates show, by scene id; of equally good ones the first is taken.
        pixels: how many loss pixels there are.
        imagery: `enough_clear`, `max_scenes` and `least_gain`.
    """
    enough, most = imagery.enough_clear, imagery.max_scenes
    have, taken = np.zeros(pixels, np.uint16), list[str]()
    for wanted, least in ((1, 0), (enough, int(imagery.least_gain * pixels))):
        while len(taken) < most and (best := _best(sights, taken, np.packbits(have < wanted), least)) is not None:
            taken.append(best)
            have += np.unpackbits(sights[best].clear, count=pixels)
    unseen, reasons = np.zeros(pixels, bool), dict[str, tuple[int, str]]()
    for key in sights:
        if key not in taken:
            clear = np.unpackbits(sights[key].clear, count=pixels).astype(bool)
            unseen |= clear & (have == 0)
            reasons[key] = _reason(sights[key], have[clear], imagery, len(taken) == most)
    return Choice(tuple(taken), reasons, int(unseen.sum()))


def _best(sights: Mapping[str, Sight], taken: Sequence[str], lacking: np.ndarray, least: int) -> str | None:
    """The scene that shows most of the `lacking` pixels (packed bits), None where none shows more than `least`."""
    best, value = None, -1.0
    for key, sight in sights.items():
        if key not in taken:
            gain = int(np.bitwise_count(sight.clear & lacking).sum())
            if gain > least and gain * sight.trust > value:
                best, value = key, gain * sight.trust
    return best


def _reason(sight: Sight, have: np.ndarray, imagery: Imagery, full: bool) -> tuple[int, str]:
    """Why a scene was not taken; `have` [n] are the observations of the loss pixels that it sees clear."""
    enough, short, none = imagery.enough_clear, int((have < imagery.enough_clear).sum()), int((have == 0).sum())
    if not sight.count:
        return 0, f"not needed: no loss pixel is clear in it ({sight.told})"
    if not short:
        return 1, f"not needed: every loss pixel it sees has {enough} clear observations without it ({sight.told})"
    lacking = f"{short} loss pixels it sees have fewer than {enough} clear observations"
    if not full:
        return 2, f"not needed: only {lacking}, below imagery.least_gain {imagery.least_gain:g} ({sight.told})"
    without = f", {none} of them none" if none else ""
    return 4 if none else 3, f"beyond imagery.max_scenes {imagery.max_scenes}: {lacking}{without} ({sight.told})"


def _near(windows: Sequence[Rectangle], group: Mapping[int, Sequence[Scene]], grid: RunGrid) -> list[Rectangle]:
    """Those of the windows that lie at or near a footprint of the scenes."""
    outlines = {s.footprint for scenes in group.values() for s in scenes}
    shapes = [reproject(shapely.segmentize(footprint(wkt), 0.1), "EPSG:4326", grid.crs) for wkt in sorted(outlines)]
    area = shapely.union_all(shapes).buffer(_NEAR * grid.resolution)
    row, col, height, width = np.array(windows, np.float64).reshape(-1, 4).T * grid.resolution
    left, top = grid.x0 + col, grid.y0 - row
    shapely.prepare(area)
    near = shapely.intersects(area, shapely.box(left, top - height, left + width, top))
    return [window for window, taken in zip(windows, near, strict=True) if taken]


def _read_loss(work: Path, windows: Sequence[Rectangle]) -> list[LossWindow]:
    """The loss pixels of some windows."""
    found = []
    with rasterio.open(work / LABELS_FILE) as raster:
        for row, col, height, width in windows:
            labels = raster.read(1, window=Window(col, row, width, height))
            rows, cols = (where.astype(np.int16) for where in np.nonzero(labels))
            found.append(LossWindow((row, col, height, width), rows, cols, labels[rows, cols] - 1))
    return found


def _look_at_all(
    plan: Plan,
    group: Mapping[int, Sequence[Scene]],
    loss: tuple[Sequence[LossWindow], np.ndarray, np.ndarray],
    bring: Bring,
) -> tuple[dict[tuple[int, str], Sight], list[Refusal]]:
    """What each scene shows of the loss of each year, and the scenes whose files cannot be had or read."""
    windows, of_year, last_day = loss
    scenes = {s.id: s for year in sorted(group) for s in group[year]}
    years = {key: [year for year, own in group.items() if any(s.id == key for s in own)] for key in scenes}
    inside = {year: of_year == year for year in group}

    def look(key: str) -> dict[int, Sight] | str:
        try:
            clear, seen = look_at(scenes[key], plan, windows, bring)
            # before the last day of an event's loss a clear pixel may show the forest that went
            clear = clear & (last_day <= day_number(scenes[key].datetime.date()))
        except SceneError as error:
            return error.reason
        share = _trusted(scenes[key])
        return {year: _sight(clear[inside[year]], seen[inside[year]], share) for year in years[key]}

    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        answers = dict(zip(scenes, pool.map(look, scenes), strict=True))
    sights = {(y, k): sight for k, told in answers.items() if not isinstance(told, str) for y, sight in told.items()}
    return sights, [refuse(scenes[key], told) for key, told in answers.items() if isinstance(told, str)]


def _trusted(scene: Scene) -> float:
    """How far the clear pixels of a scene are to be believed, 0..1: without QA_PIXEL only the catalog knows clouds."""
    return 1.0 if QA_PIXEL in scene.assets else max(1 - cloudiness(scene) / 100, 0.0)


def _sight(clear: np.ndarray, seen: np.ndarray, share: float) -> Sight:
    count = int(clear.sum())
    return Sight(np.packbits(clear), count, int(seen.sum()), share)


def look_at(scene: Scene, plan: Plan, windows: Sequence[LossWindow], bring: Bring) -> tuple[np.ndarray, np.ndarray]:
    """Where the loss pixels of all windows are clear in a scene, and where it has data: bool [pixels] each.

    A scene without QA_PIXEL is looked at in the first band of the model, and clear wherever that has data.
    """
    band = QA_PIXEL if QA_PIXEL in scene.assets else plan.bands[0]
    near = bring(scene, band)
    parts = [np.zeros(0, np.uint16)]
    try:
        with BandOnGrid(near, band, readable_window(plan.grid)) as file:
            for part in windows:
                row, col, height, width = part.place
                values = file.read(Window(col + MARGIN, row + MARGIN, width, height))
                parts.append(values[part.rows, part.cols])
    except RasterioError as error:
        raise SceneError(scene.id, f"{band} unreadable: {file_name(near, band)} ({error})") from error
    values = np.concatenate(parts)
    if band != QA_PIXEL:
        seen = values != file.nodata
        return seen, seen
    return clear_mask(values), (values & QA_FILL) == 0
