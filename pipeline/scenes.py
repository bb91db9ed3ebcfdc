"""Landsat scenes as a torchgeo dataset on the run's grid: reflectance where the ground was seen, NaN elsewhere.

Each scene is warped once, straight onto the run's grid: bands bilinear, QA_PIXEL nearest. A scene that already lies on
that grid is copied pixel by pixel. torchgeo's own RasterDataset warps foreign zones by nearest neighbour onto a grid of
its own and merges dates by "first file wins", so the dataset here derives from GeoDataset directly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from torchgeo.datasets import GeoDataset

from pipeline.catalog.check import open_header
from pipeline.catalog.scene import QA_PIXEL, Asset, Scene
from pipeline.errors import SceneError
from pipeline.grid import RunGrid, reproject

NOT_CLEAR = 0b111111
"""QA_PIXEL bits 0-5: fill, dilated cloud, cirrus, cloud, cloud shadow, snow (Landsat Collection 2, LSDS-1619)."""
MARGIN = 1024
"""Pixels around the run's grid that may be read: no patch reaches further out."""
_QA_FILL = 1
_ALIGNED = 1e-4
_TOLERANCE = 0.01


def clear_mask(qa: np.ndarray) -> np.ndarray:
    """Bool mask of the pixels that QA_PIXEL (uint16, Collection 2) calls clear land or water."""
    return np.asarray((qa & NOT_CLEAR) == 0)


class LandsatScenes(GeoDataset):
    """Landsat scenes of one block, indexed like any torchgeo dataset by [x, y, t] in the grid's CRS.

    A sample holds `image`, float32 [scenes, bands, height, width]: surface reflectance, NaN where a scene has no clear
    observation (fill in any band, or a QA_PIXEL flag; scenes without QA_PIXEL are masked by fill only).

    Raises:
        SceneError: from construction or reading, when a scene's file cannot be read.
    """

    def __init__(self, scenes: Sequence[Scene], grid: RunGrid, bands: Sequence[str]) -> None:
        """Open the scenes' files; close them with `close` or a with statement."""
        self.scenes, self.grid, self.bands = tuple(scenes), grid, tuple(bands)
        self.window = grid.window(-MARGIN, -MARGIN, grid.height + 2 * MARGIN, grid.width + 2 * MARGIN)
        self._res = (grid.resolution, grid.resolution)
        footprints = [reproject(shapely.from_wkt(s.footprint), "EPSG:4326", grid.crs) for s in self.scenes]
        times = pd.to_datetime([s.datetime for s in self.scenes], utc=True).tz_localize(None)
        index = pd.IntervalIndex.from_arrays(times, times, closed="both", name="datetime")
        self.index = gpd.GeoDataFrame(
            {"scene_id": [s.id for s in self.scenes]}, geometry=footprints, crs=grid.crs, index=index
        )
        self._files = ExitStack()
        self._readers: dict[str, dict[str, _Reader]] = {}
        try:
            for scene in self.scenes:
                self._readers[scene.id] = self._open(scene)
        except BaseException:
            self.close()
            raise

    def _open(self, scene: Scene) -> dict[str, _Reader]:
        readers = {}
        for band in (*self.bands, *([QA_PIXEL] if QA_PIXEL in scene.assets else [])):
            try:
                readers[band] = self._files.enter_context(_Reader(scene, band, self.window))
            except RasterioError as error:
                raise SceneError(scene.id, f"{band} unreadable: {_name(scene, band)} ({error})") from error
        return readers

    def __getitem__(self, query: Any) -> dict[str, Any]:
        """Read all scenes of the dataset over a window [x, y] (pixel-aligned slices of the grid)."""
        x, y, _ = self._disambiguate_slice(query)
        inverse = ~self.grid.geobox.affine
        col0, row0 = (round(v) for v in inverse @ (x.start, y.stop))
        col1, row1 = (round(v) for v in inverse @ (x.stop, y.start))
        return {"image": torch.from_numpy(self.read(row0, col0, row1 - row0, col1 - col0))}

    def read(
        self, row0: int, col0: int, height: int, width: int, only: Collection[str] | None = None
    ) -> np.ndarray:  # fmt: skip
        """Read a window in pixels of the grid, up to MARGIN outside it: float32 [scenes, bands, height, width].

        NaN = not clear. `only` names the scenes to read; their order stays that of `scenes`.
        """
        scenes = [scene for scene in self.scenes if only is None or scene.id in only]
        out = np.empty((len(scenes), len(self.bands), height, width), np.float32)
        # GDAL warps a request larger than a VRT block as one piece of its own, which would tie values to the window
        with rasterio.Env(GDAL_VRT_WARP_USE_DATASET_RASTERIO="NO"):
            for image, scene in zip(out, scenes, strict=True):
                self._read_scene(scene, Window(col0 + MARGIN, row0 + MARGIN, width, height), image)
        return out

    def _read_scene(self, scene: Scene, window: Window, out: np.ndarray) -> None:
        readers = self._readers[scene.id]
        band = QA_PIXEL
        try:
            clear = clear_mask(readers[QA_PIXEL].read(window)) if QA_PIXEL in readers else np.ones(out.shape[1:], bool)
            if not clear.any():
                out[:] = np.nan
                return
            for layer, band in zip(out, self.bands, strict=True):
                reader = readers[band]
                values = reader.read(window)
                clear &= values != reader.nodata
                np.multiply(values, np.float32(reader.asset.scale), out=layer)
                layer += np.float32(reader.asset.offset)
        except RasterioError as error:
            raise SceneError(scene.id, f"{band} unreadable: {_name(scene, band)} ({error})") from error
        out[:, ~clear] = np.nan

    def close(self) -> None:
        """Close every file."""
        self._files.close()

    def __enter__(self) -> LandsatScenes:
        """Return the open dataset."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every file."""
        self.close()


class _Reader:
    """One band file seen on the run's grid: a plain read where the grids coincide, a WarpedVRT elsewhere."""

    def __init__(self, scene: Scene, band: str, window: GeoBox) -> None:
        self.asset: Asset = scene.assets[band]
        self.fill = _QA_FILL if band == QA_PIXEL else 0
        self.nodata = self.fill if self.asset.nodata is None or band == QA_PIXEL else self.asset.nodata
        self._stack = ExitStack()
        try:
            source = self._stack.enter_context(open_header(self.asset.href))
            crs = source.crs if source.crs else rasterio.CRS.from_user_input(scene.grid.crs) if scene.grid else None
            if crs is None:
                raise SceneError(scene.id, f"{band}: no CRS in {_name(scene, band)} and none in its MTL")
            affine = source.transform if source.crs or scene.grid is None else Affine(*scene.grid.transform)
            self._source, self._shift = source, _shift(crs, affine, window)
            if self._shift is None:
                self._source = self._stack.enter_context(_warped(source, crs, affine, window, band, self.nodata))
        except BaseException:
            self._stack.close()
            raise

    def read(self, window: Window) -> np.ndarray:
        """Read band 1 over a window in pixels of the block; outside the file the fill value stands."""
        if self._shift is None:
            return np.asarray(self._source.read(1, window=window))
        row0, col0 = window.row_off + self._shift[0], window.col_off + self._shift[1]
        top, left = max(row0, 0), max(col0, 0)
        bottom, right = min(row0 + window.height, self._source.height), min(col0 + window.width, self._source.width)
        out = np.full((window.height, window.width), self.fill, self._source.dtypes[0])
        if top < bottom and left < right:
            part = self._source.read(1, window=Window(left, top, right - left, bottom - top))
            out[top - row0 : bottom - row0, left - col0 : right - col0] = part
        return out

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _name(scene: Scene, band: str) -> str:
    return scene.assets[band].href.rsplit("/", 1)[-1]


def _wkt(window: GeoBox) -> str:
    assert window.crs is not None
    return str(window.crs.to_wkt())


def _shift(crs: Any, affine: Affine, window: GeoBox) -> tuple[int, int] | None:
    """Offset (rows, columns) from the window to the file where both share one pixel grid, else None."""
    same = np.allclose((affine.a, affine.b, affine.d, affine.e), window.affine[:2] + window.affine[3:5], atol=1e-9)
    if not same or crs != rasterio.CRS.from_user_input(_wkt(window)):
        return None
    col, row = ~affine @ (window.affine.c, window.affine.f)
    if abs(col - round(col)) > _ALIGNED or abs(row - round(row)) > _ALIGNED:
        return None
    return round(row), round(col)


def _warped(source: Any, crs: Any, affine: Affine, window: GeoBox, band: str, nodata: float) -> Any:
    """A view of the file on the whole run's grid.

    GDAL warps it in blocks counted from the grid's corner and interpolates coordinates within each (to a hundredth of
    a pixel), so a pixel's value does not depend on the window it is read with. A view of one block's window would.
    """
    height, width = window.shape
    return WarpedVRT(
        source,
        src_crs=crs,
        src_transform=affine,
        src_nodata=nodata,
        nodata=nodata,
        crs=rasterio.CRS.from_user_input(_wkt(window)),
        transform=window.affine,
        height=height,
        width=width,
        resampling=Resampling.nearest if band == QA_PIXEL else Resampling.bilinear,
        tolerance=_TOLERANCE,
    )
