"""Crops and windows as Lightning wants them, and the data set a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from pipeline.training.crops import CropStream, Images
from pipeline.training.datasets.open import open_dataset
from pipeline.training.datasets.views import Joined, at_resolution
from pipeline.training.windows import EventWindows

if TYPE_CHECKING:
    from pipeline.training.datasets.base import DriverDataset
    from pipeline.training.division import Division
    from pipeline.training.params import Course, Source

_PIXELS_AT_ONCE = 2**20


def open_source(source: Source) -> DriverDataset:
    """Open the data set (or several as one) that a configuration names, at the resolution it asks for."""
    parts = [at_resolution(open_dataset(path, level=source.level), source.resolution) for path in source.path]
    dataset = parts[0] if len(parts) == 1 else Joined(parts)
    if not dataset.images:
        raise InputError(f"data set {dataset.name}: holds labels only, no images to train on")
    return dataset


class DriverData(lightning.LightningDataModule):
    """Training crops, drawn anew from (seed, epoch), and the validation events' windows."""

    def __init__(self, dataset: DriverDataset, division: Division, course: Course, seed: int) -> None:
        super().__init__()
        self.images = Images(dataset, division.train.tolist(), course.cache_mb)
        self._windows = EventWindows(Images(dataset, division.val.tolist(), course.cache_mb), course.crop)
        if not len(self._windows):
            raise InputError(f"data set {dataset.name}: no usable event to validate by; check its splits and faults")
        self._course, self._seed = course, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this epoch's crops; the seed holds the epoch, so a resumed course draws what it would have drawn."""
        assert self.trainer is not None
        course, epoch = self._course, self.trainer.current_epoch
        size, batch = course.crop, course.batch
        if course.early is not None and epoch < round(course.early.share * course.validations):
            size, batch = course.early.crop, course.early.batch
        seed = (self._seed, epoch, self.trainer.global_rank)
        stream = CropStream(self.images, size, seed, course.scenes, course.sampling)
        return DataLoader(stream, batch_size=batch, num_workers=course.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the windows of all validation events."""
        batch = max(1, _PIXELS_AT_ONCE // (4 * self._course.crop**2))
        return DataLoader(self._windows, batch_size=batch, num_workers=self._course.workers)


def band_statistics(images: Images, most: int = 400) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band over observed pixels of training images (every third).

    At most `most` composites are read, evenly spread. Raises InputError naming a band that is empty or constant.
    """
    used = np.unique(images.image_of[images.rows])
    chosen = used[np.unique(np.linspace(0, len(used) - 1, min(most, len(used))).astype(int))] if len(used) else used
    bands = len(images.dataset.bands)
    total, squares, count = np.zeros(bands), np.zeros(bands), np.zeros(bands)
    for image in chosen:
        values = images.pixels(int(image))[:, ::3, ::3].reshape(bands, -1).astype(np.float64)
        seen = np.isfinite(values)
        total += np.where(seen, values, 0).sum(1)
        squares += np.where(seen, values**2, 0).sum(1)
        count += seen.sum(1)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    for band, spread in zip(images.dataset.bands, std, strict=True):
        if not spread > 0:
            raise InputError(f"data set {images.dataset.name}: band {band} is empty or constant; check its scaling")
    return tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist())
