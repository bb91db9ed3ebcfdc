"""Land-cover pre-training: crops of a class raster, so that a network has seen landscapes before it sees events.

After Irvin et al. 2020, who segment Indonesia's land-cover map first; the head is not transferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from torch.utils.data import IterableDataset

from pipeline.errors import InputError
from pipeline.models.card import Scaling
from pipeline.training.datasets.base import IGNORE
from pipeline.training.datasets.own import OFFSET, SCALE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.training.params import Pretraining

_DRAWS = 3
"""Crops drawn for each that is given: the one with the most labels serves."""


class LandCover:
    """Images with class rasters, as `Pretraining` names them.

    Attributes:
        images: float32 [bands, H, W] reflectance, NaN = not observed.
        targets: int64 [H, W] class index, IGNORE where there is no label.
        codes: raster code of each class index.
    """

    def __init__(self, params: Pretraining, bands: int) -> None:
        self.images: list[NDArray[np.float32]] = []
        rasters: list[NDArray[np.int64]] = []
        for image, classes in zip(params.image, params.classes, strict=True):
            pixels, codes = _read(image, classes, bands)
            codes[np.isin(codes, params.ignore)] = -1
            self.images.append(pixels)
            rasters.append(codes)
        present = sorted({int(code) for codes in rasters for code in np.unique(codes)} - {-1})
        if len(present) < 2:
            raise InputError(f"{params.classes[0]}: {len(present)} classes left to pre-train on; two are needed")
        self.codes = tuple(present)
        lookup = np.full(max(present) + 2, IGNORE, np.int64)
        lookup[present] = np.arange(len(present))
        self.targets = [lookup[codes] for codes in rasters]

    def scaling(self) -> Scaling:
        """Return mean and standard deviation of each band over what was observed (every third pixel)."""
        flat = np.concatenate([image[:, ::3, ::3].reshape(len(image), -1) for image in self.images], axis=1)
        mean, std = np.nanmean(flat, axis=1), np.maximum(np.nanstd(flat, axis=1), 1e-6)
        return Scaling(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


class LandCoverStream(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of crops of a land-cover raster, as `crops.CropStream` gives them, without events."""

    def __init__(self, cover: LandCover, size: int, seed: Sequence[int]) -> None:
        self._cover, self._size, self._seed = cover, size, list(seed)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield crops as tensors, without end."""
        random = np.random.default_rng(self._seed)
        while True:
            yield max((self._draw(random) for _ in range(_DRAWS)), key=lambda item: int((item["target"] >= 0).sum()))

    def _draw(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        which = int(random.integers(len(self._cover.images)))
        image, target = self._cover.images[which], self._cover.targets[which]
        top, left = (int(random.integers(max(1, side - self._size + 1))) for side in target.shape)
        window = (slice(top, top + self._size), slice(left, left + self._size))
        pad = [(0, self._size - side) for side in target[window].shape]
        crop = np.pad(image[:, *window], ((0, 0), *pad), constant_values=np.nan)
        labels = np.pad(target[window], pad, constant_values=IGNORE)
        labels[~np.isfinite(crop).any(axis=0)] = IGNORE
        return {
            "image": torch.from_numpy(crop),
            "target": torch.from_numpy(labels),
            "events": torch.zeros(labels.shape, dtype=torch.int64),
        }


def _read(image: Path, classes: Path, bands: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read an image and, on its grid by nearest neighbour, its classes (-1 = nodata)."""
    path = image
    try:
        with rasterio.open(image) as source:
            if source.count != bands or source.crs is None:
                raise InputError(f"{image}: {source.count} bands, CRS {source.crs}; {bands} bands and a CRS are needed")
            numbers = source.read()
            pixels = np.where(numbers == 0, np.float32(np.nan), numbers * np.float32(SCALE) + np.float32(OFFSET))
            path = classes
            grid = {"crs": source.crs, "transform": source.transform, "width": source.width, "height": source.height}
        with (
            rasterio.open(classes) as raw,
            WarpedVRT(raw, resampling=Resampling.nearest, nodata=raw.nodata, **grid) as raster,
        ):
            codes = raster.read(1, masked=True).astype(np.int64).filled(-1)
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return pixels, codes
