"""A data set in memory whose classes are colours: what a small network learns in seconds."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.training.datasets.base import DriverDataset, Look

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")


class MemoryDataset(DriverDataset):
    """Images float32 [looks, bands, H, W] with regions int32 [H, W] and the class of each region's number."""

    def __init__(
        self, stacks: Sequence[np.ndarray], regions: Sequence[np.ndarray], labels: Sequence[Sequence[int]]
    ) -> None:
        self.name, self.bands, self.resolution, self.chip_m = "memory", BANDS, 30.0, 960.0
        self.scheme, self.simulated, self.licence = FOREST_LOSS_DRIVERS, True, "none"
        self._stacks, self._regions = list(stacks), list(regions)
        rows = [(image, k + 1, label) for image, own in enumerate(labels) for k, label in enumerate(own)]
        count = len(rows)
        self.events = pd.DataFrame(
            {
                "event_id": [f"event-{k}" for k in range(count)],
                "image": [row[0] for row in rows],
                "number": [row[1] for row in rows],
                "label": [row[2] for row in rows],
                "title": [FOREST_LOSS_DRIVERS.names[row[2]] for row in rows],
                "latitude": np.linspace(-3, 3, count),
                "longitude": np.linspace(100, 110, count),
                "loss_year": 2015,
                "split": [("train", "train", "train", "val", "test")[row[0] % 5] for row in rows],
                "fault": "",
            }
        )

    @property
    def images(self) -> int:
        return len(self._stacks)

    def looks(self, image: int) -> tuple[Look, ...]:
        dated = (
            Look(f"scene-{k}", datetime.date(2016 + k, 1, 1), 5.0 * k) for k in range(len(self._stacks[image]) - 1)
        )
        return (Look("composite"), *dated)

    def read(self, image: int, look: int = 0) -> np.ndarray:
        return np.asarray(self._stacks[image][look])

    def regions(self, image: int) -> np.ndarray:
        return self._regions[image]


def colours(images: int = 10, size: int = 64, seed: int = 0, looks: int = 1) -> MemoryDataset:
    """Four square events an image, one of each class, each in its class's own band; the rest is forest."""
    random = np.random.default_rng(seed)
    stacks, regions, labels = [], [], []
    half = size // 2
    for _ in range(images):
        image = np.full((len(BANDS), size, size), 0.1, np.float32)
        region = np.zeros((size, size), np.int32)
        own = random.permutation(4)
        for k, label in enumerate(own):
            top, left = (k // 2) * half + random.integers(2, half - 14), (k % 2) * half + random.integers(2, half - 14)
            window = (slice(top, top + 12), slice(left, left + 12))
            region[window] = k + 1
            image[label, *window] = 0.5
        noisy = image[None] + random.normal(0, 0.01, (looks, *image.shape)).astype(np.float32)
        stacks.append(noisy)
        regions.append(region)
        labels.append(own.tolist())
    return MemoryDataset(stacks, regions, labels)
