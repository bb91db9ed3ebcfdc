"""Patches drawn by torchgeo samplers over a block's composite: the lattice of the run, or one centred on each event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from odc.geo.geobox import GeoBox
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GriddedPatchSampler
from torchgeo.samplers.base import SpatialSampler

from pipeline.grid import Block, RunGrid
from pipeline.lattice import Patch, PatchLayout, overlap, starts


class CompositeDataset(GeoDataset):
    """One composite as a torchgeo dataset: [x, y] of the grid's CRS to `image`, float32 [bands, height, width].

    `image` is the composite of a window of the run's grid (NaN = not observed); queries reach outside it as NaN.
    """

    def __init__(self, image: np.ndarray, window: GeoBox) -> None:
        """Wrap an image [bands, height, width] and the GeoBox it lies on."""
        self.image, self.window = image, window
        self._res = (abs(window.affine.a), abs(window.affine.e))
        always = pd.IntervalIndex.from_arrays(
            [pd.Timestamp("1972-07-23")], [pd.Timestamp("2100-01-01")], closed="both", name="datetime"
        )
        self.index = gpd.GeoDataFrame(geometry=[window.extent.geom], crs=str(window.crs), index=always)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        """Return the image over pixel-aligned slices (x, y)."""
        x, y, _ = self._disambiguate_slice(query)
        inverse = ~self.window.affine
        col0, row0 = (round(v) for v in inverse @ (x.start, y.stop))
        col1, row1 = (round(v) for v in inverse @ (x.stop, y.start))
        return {"image": torch.from_numpy(self.read(row0, col0, row1 - row0, col1 - col0))}

    def read(self, row0: int, col0: int, height: int, width: int) -> np.ndarray:
        """Return a window in pixels of the image, NaN outside it."""
        out = np.full((len(self.image), height, width), np.nan, np.float32)
        top, left = max(row0, 0), max(col0, 0)
        bottom, right = min(row0 + height, self.image.shape[1]), min(col0 + width, self.image.shape[2])
        if top < bottom and left < right:
            out[:, top - row0 : bottom - row0, left - col0 : right - col0] = self.image[:, top:bottom, left:right]
        return out


class EventPatchSampler(SpatialSampler):
    """Patches centred on events (the paper's protocol): one for each, several in a row for one larger than a patch.

    Args:
        dataset: what will be sampled; owns the resolution.
        bounds: int [n, 4], first and last + 1 row and column of each event on the grid `origin` starts.
        size: patch in pixels.
        stride: distance of the several patches of a big event, in pixels.
        origin: x and y of the grid's upper-left corner.
    """

    strategy = "sequential"

    def __init__(
        self, dataset: GeoDataset, bounds: np.ndarray, size: int, stride: int, origin: tuple[float, float]
    ) -> None:
        """Lay the patches; see the class."""
        super().__init__(dataset)
        self.windows = [
            (k, row0, col0)
            for k, (top, left, bottom, right) in enumerate(bounds)
            for row0 in starts(int(top), int(bottom), size, stride)
            for col0 in starts(int(left), int(right), size, stride)
        ]
        self.size, self.origin = size, origin

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Yield [x, y] slices in the order of `windows`."""
        res = self.res[0]
        for _, row0, col0 in self.windows:
            x, y = self.origin[0] + col0 * res, self.origin[1] - row0 * res
            yield slice(x, x + self.size * res), slice(y - self.size * res, y)


def lay_patches(
    dataset: GeoDataset, layout: PatchLayout, grid: RunGrid, block: Block, labels: np.ndarray, bounds: dict[int, Any]
) -> list[Patch]:
    """Draw the patches of a block that touch its loss, in row-major order.

    Args:
        dataset: the block's composite over its lattice window.
        layout: mode and sizes.
        grid: the run's grid.
        block: the block.
        labels: int32 [block.height, block.width], event labels, 0 = no loss.
        bounds: label to (row0, col0, row1, col1) of the whole event on the run's grid; used by `events`.
    """
    if layout.mode == "grid":
        lattice = GriddedPatchSampler(dataset, size=layout.size, stride=layout.stride)
        found = [Patch(*_pixel(query, grid)) for query in lattice]
    else:
        present = [int(label) for label in np.unique(labels) if label]
        extents = np.array([bounds[label] for label in present]).reshape(-1, 4)
        centred = EventPatchSampler(dataset, extents, layout.size, layout.stride, (grid.x0, grid.y0))
        found = [
            Patch(*_pixel(query, grid), present[k]) for query, (k, _, _) in zip(centred, centred.windows, strict=True)
        ]
    touching = [patch for patch in found if _touches(patch, layout.size, block, labels)]
    return sorted(touching, key=lambda patch: (patch.event, patch.row0, patch.col0))


def _pixel(query: tuple[slice, slice], grid: RunGrid) -> tuple[int, int]:
    """Upper-left pixel of a sampler's query on the run's grid."""
    x, y = query
    return round((grid.y0 - y.stop) / grid.resolution), round((x.start - grid.x0) / grid.resolution)


def _touches(patch: Patch, size: int, block: Block, labels: np.ndarray) -> bool:
    part = labels[overlap(patch, size, block)[0]]
    return bool((part == patch.event).any() if patch.event else part.any())
