"""Patches drawn by torchgeo samplers over the run's grid: its lattice, or patches centred on each event.

They are drawn once, for the plan, and kept beside it: what computes blocks needs neither torchgeo nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from odc.geo.geobox import GeoBox
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GriddedPatchSampler
from torchgeo.samplers.base import SpatialSampler

from pipeline.grid import Block, RunGrid
from pipeline.lattice import EVERY_EVENT, PATCH, PatchLayout, cells, lattice_window, starts


class RunWindow(GeoDataset):
    """A window of the run's grid as a torchgeo dataset, to draw patches from: a sample tells its `bounds` alone."""

    def __init__(self, window: GeoBox) -> None:
        """Take the place and the resolution of a GeoBox."""
        self._res = (abs(window.affine.a), abs(window.affine.e))
        always = pd.IntervalIndex.from_arrays(
            [pd.Timestamp("1972-07-23")], [pd.Timestamp("2100-01-01")], closed="both", name="datetime"
        )
        self.index = gpd.GeoDataFrame(geometry=[window.extent.geom], crs=str(window.crs), index=always)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        """Return where a query [x, y] lies."""
        return {"bounds": self._slice_to_tensor(query)}


class EventPatchSampler(SpatialSampler):
    """Patches centred on events (the paper's protocol): one for each, several in a row for one larger than a patch.

    Args:
        dataset: what will be sampled; owns the resolution.
        bounds: int [n, 4], first and last + 1 row and column of each event on the grid `origin` starts.
        layout: size of a patch, and the distance of the several patches of a big event.
        origin: x and y of the grid's upper-left corner.

    Attributes:
        windows: of each patch the row of its event, its first row and column, and its cell.
    """

    strategy = "sequential"

    def __init__(
        self, dataset: GeoDataset, bounds: np.ndarray, layout: PatchLayout, origin: tuple[float, float]
    ) -> None:
        """Lay the patches; see the class."""
        super().__init__(dataset)
        self.windows = [
            (k, row0, col0, top, left, bottom, right)
            for k, (first_row, first_col, end_row, end_col) in enumerate(bounds.tolist())
            for row0, (top, bottom) in _laid(first_row, end_row, layout)
            for col0, (left, right) in _laid(first_col, end_col, layout)
        ]
        self.size, self.origin = layout.size, origin

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Yield [x, y] slices in the order of `windows`."""
        res = self.res[0]
        for _, row0, col0, *_ in self.windows:
            x, y = self.origin[0] + col0 * res, self.origin[1] - row0 * res
            yield slice(x, x + self.size * res), slice(y - self.size * res, y)


def _laid(first: int, end: int, layout: PatchLayout) -> list[tuple[int, tuple[int, int]]]:
    """Start and cell, in one direction, of each patch of an event."""
    found = starts(first, end, layout.size, layout.stride)
    return list(zip(found, cells(found, layout), strict=True))


def draw_patches(layout: PatchLayout, grid: RunGrid, bounds: np.ndarray) -> np.ndarray:
    """Draw the patches of a whole run.

    Args:
        layout: mode and sizes.
        grid: the run's grid.
        bounds: int [events, 4], first and last + 1 row and column of each event on the grid, all 0 for one without a
            pixel; used by mode `events`.

    Returns:
        int32 [patches, 7], the columns of `lattice.PATCH`; in row-major order.
    """
    place = RunWindow(grid.window(*lattice_window(Block("", 0, 0, grid.height, grid.width), layout)))
    if layout.mode == "grid":
        lattice = GriddedPatchSampler(place, size=layout.size, stride=layout.stride)
        corners = np.array([grid.pixels(*query)[:2] for query in lattice], np.int32).reshape(-1, 2)
        first = corners + layout.margin
        speaks_for = np.full((len(corners), 1), EVERY_EVENT, np.int32)
        found = np.concatenate([corners, speaks_for, first, first + layout.stride], axis=1)
    else:
        rows = np.flatnonzero(bounds[:, 2] > bounds[:, 0])
        centred = EventPatchSampler(place, bounds[rows], layout, (grid.x0, grid.y0))
        parts = [
            (*grid.pixels(*query)[:2], int(rows[k]) + 1, *cell)
            for query, (k, _, _, *cell) in zip(centred, centred.windows, strict=True)
        ]
        found = np.array(parts, np.int32).reshape(-1, len(PATCH))
    return np.asarray(found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))])
