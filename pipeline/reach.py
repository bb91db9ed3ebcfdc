"""Which pixels of which remote file a run reads: of every block, of the choice of scenes, and of pictures.

The windows come from the functions that read by them (`imagery.list_reads`, `survey.look_windows`,
`chips.picture_reads`), so that the fetch stage and the reading cannot disagree. A pixel that was left out would be an
error when it is read, never a wrong value (see `catalog.sparse`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import geopandas as gpd
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.blocks import planned_reads
from pipeline.catalog.scene import Scene
from pipeline.catalog.windows import Box, Reach
from pipeline.chips import picture_boxes, picture_reads
from pipeline.errors import SceneError
from pipeline.fetch_log import PICTURES, Need, Needs, Windows
from pipeline.gridded import MARGIN, BandOnGrid, readable_window
from pipeline.plan import EVENTS_FILE, Plan
from pipeline.survey import look_windows


class RunReads:
    """What a run reads; block windows are worked out once, as they do not depend on the choice of scenes."""

    def __init__(self, work: Path, plan: Plan) -> None:
        """Read nothing yet; `plan` may be thinned later."""
        self._work, self._plan = work, plan
        self._blocks: dict[str, list[tuple[tuple[int, int, int, int], set[int]]]] = {}

    @cached_property
    def look(self) -> Windows:
        """Windows in which clouds over the loss are looked at."""
        return look_windows(self._plan, self._work)

    def needs(self, plan: Plan) -> Needs:
        """What each scene of a plan is needed for."""
        windows: dict[str, dict[str, Windows]] = {}
        for planned in plan.blocks:
            name = planned.block.id
            if name not in self._blocks:
                self._blocks[name] = planned_reads(self._work, plan, planned)
            for window, years in self._blocks[name]:
                for scene in {s for year in years for s in planned.scenes.get(year, ())}:
                    windows.setdefault(scene, {}).setdefault(name, []).append(window)
        events = gpd.read_parquet(self._work / EVENTS_FILE, columns=["loss_year", "geometry"])
        squares = picture_reads(plan, events)
        return {
            scene: Need(windows.get(scene, {}), frozenset(squares.get(scene, ()))) for scene in {**windows, **squares}
        }


def reach_of(scene: Scene, band: str, plan: Plan, need: Need) -> Reach:
    """Return how the pixels of a band file that each user reads are found from its header.

    A file without a place on earth is read nowhere: the check of the scene says so.
    """

    def reach(header: Path) -> dict[str, list[Box]]:
        local = replace(scene, assets={band: replace(scene.assets[band], href=str(header))})
        try:
            with BandOnGrid(local, band, readable_window(plan.grid)) as file:
                boxes = {u: file.source_boxes([_shifted(w) for w in group]) for u, group in need.windows.items()}
            squares = need.squares
            return {**boxes, **({PICTURES: picture_boxes(local, band, squares, plan.grid)} if squares else {})}
        except (SceneError, RasterioError):
            return {}

    return reach


def _shifted(window: tuple[int, int, int, int]) -> Window:
    row, col, height, width = window
    return Window(col + MARGIN, row + MARGIN, width, height)
