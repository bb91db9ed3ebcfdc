"""Landsat scenes as a torchgeo dataset on the run's grid, to be sampled like any other.

torchgeo's own RasterDataset warps foreign zones by nearest neighbour onto a grid of its own and merges dates by "first
file wins", so the dataset here derives from GeoDataset directly and reads through `pipeline.stack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import geopandas as gpd
import pandas as pd
import shapely
import torch
from torchgeo.datasets import GeoDataset

from pipeline.catalog.scene import Scene
from pipeline.grid import RunGrid, reproject
from pipeline.stack import SceneStack


class LandsatScenes(GeoDataset):
    """Landsat scenes indexed by [x, y, t] in the grid's CRS; close it with `close` or a with statement.

    A sample holds `image`, float32 [scenes, bands, height, width]: what `SceneStack.read` gives of all the scenes over
    a window of pixel-aligned slices, up to `gridded.MARGIN` pixels outside the grid.

    Raises:
        SceneError: from construction or reading, when a scene's file cannot be read.
    """

    def __init__(self, scenes: Sequence[Scene], grid: RunGrid, bands: Sequence[str]) -> None:
        """Open the scenes' files."""
        self.stack = SceneStack(scenes, grid, bands)
        self._res = (grid.resolution, grid.resolution)
        footprints = [reproject(shapely.from_wkt(s.footprint), "EPSG:4326", grid.crs) for s in scenes]
        times = pd.to_datetime([s.datetime for s in scenes], utc=True).tz_localize(None)
        index = pd.IntervalIndex.from_arrays(times, times, closed="both", name="datetime")
        self.index = gpd.GeoDataFrame(
            {"scene_id": [s.id for s in scenes]}, geometry=footprints, crs=grid.crs, index=index
        )

    def __getitem__(self, query: Any) -> dict[str, Any]:
        """Read all scenes over a window [x, y]."""
        x, y, _ = self._disambiguate_slice(query)
        row0, col0, row1, col1 = self.stack.grid.pixels(x, y)
        return {"image": torch.from_numpy(self.stack.read(row0, col0, row1 - row0, col1 - col0))}

    def close(self) -> None:
        """Close every file."""
        self.stack.close()

    def __enter__(self) -> LandsatScenes:
        """Return the open dataset."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every file."""
        self.close()
