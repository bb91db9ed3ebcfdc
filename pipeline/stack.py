"""A stack of Landsat scenes on the run's grid: reflectance where the ground was seen, NaN elsewhere.

Each scene is resampled once, straight onto the run's grid: bands bilinear, QA_PIXEL nearest. A scene that already lies
on that grid is copied pixel by pixel. `pipeline.scenes` shows the same as a torchgeo dataset.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.errors import SceneError
from pipeline.grid import RunGrid
from pipeline.gridded import MARGIN, BandOnGrid, clear_mask, file_name, readable_window


class SceneStack:
    """Landsat scenes of one block with their files open.

    What is read is surface reflectance, NaN where a scene has no clear observation (fill in any band, or a QA_PIXEL
    flag; scenes without QA_PIXEL are masked by fill only).

    Raises:
        SceneError: from construction or reading, when a scene's file cannot be read.
    """

    def __init__(self, scenes: Sequence[Scene], grid: RunGrid, bands: Sequence[str]) -> None:
        """Open the scenes' files; close them with `close` or a with statement."""
        self.scenes, self.grid, self.bands = tuple(scenes), grid, tuple(bands)
        self.window = readable_window(grid)
        self._files = ExitStack()
        self._readers: dict[str, dict[str, BandOnGrid]] = {}
        try:
            for scene in self.scenes:
                self._readers[scene.id] = self._open(scene)
        except BaseException:
            self.close()
            raise

    def _open(self, scene: Scene) -> dict[str, BandOnGrid]:
        readers = {}
        for band in (*self.bands, *([QA_PIXEL] if QA_PIXEL in scene.assets else [])):
            try:
                readers[band] = self._files.enter_context(BandOnGrid(scene, band, self.window))
            except RasterioError as error:
                raise SceneError(scene.id, f"{band} unreadable: {file_name(scene, band)} ({error})") from error
        return readers

    def read(
        self, row0: int, col0: int, height: int, width: int, only: Collection[str] | None = None
    ) -> np.ndarray:  # fmt: skip
        """Read a window in pixels of the grid, up to MARGIN outside it: float32 [scenes, bands, height, width].

        NaN = not clear. `only` names the scenes to read; their order stays that of `scenes`.
        """
        scenes = [scene for scene in self.scenes if only is None or scene.id in only]
        out = np.empty((len(scenes), len(self.bands), height, width), np.float32)
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
            raise SceneError(scene.id, f"{band} unreadable: {file_name(scene, band)} ({error})") from error
        np.copyto(out, np.nan, where=~clear)

    def close(self) -> None:
        """Close every file."""
        self._files.close()

    def __enter__(self) -> SceneStack:
        """Return the open stack."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every file."""
        self.close()
