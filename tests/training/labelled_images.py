"""A labelled data set in memory: one event an image, everything about it settable. A small real `DriverDataset`."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS, LabelScheme
from pipeline.training.datasets.base import DriverDataset, Look

SIZE = 24


class LabelledImages(DriverDataset):
    """Events on `images` float32 [n, looks, bands, H, W] with `masks` bool [n, H, W], some `broken`."""

    def __init__(self, events: pd.DataFrame, images: np.ndarray, masks: np.ndarray, **auxiliary: np.ndarray) -> None:
        self.name, self.bands, self.resolution = "simulated", ("blue", "green", "red"), 15.0
        self.scheme: LabelScheme = FOREST_LOSS_DRIVERS
        self.events, self.simulated = events, True
        self.chip_m = SIZE * self.resolution
        self.auxiliary = pd.DataFrame(auxiliary) if auxiliary else None
        self.broken: set[int] = set()
        self._images, self._masks = images, masks

    @property
    def images(self) -> int:
        return len(self._images)

    def looks(self, image: int) -> tuple[Look, ...]:
        scenes = range(1, self._images.shape[1])
        year = int(self.events["loss_year"].iloc[image])
        return (Look("composite"), *(Look(f"s{k}", datetime.date(year + k, 6, 1), 5.0) for k in scenes))

    def read(self, image: int, look: int = 0) -> np.ndarray:
        if image in self.broken:
            raise InputError(f"image-{image}.png: not an image")
        return self._images[image, look]

    def regions(self, image: int) -> np.ndarray:
        return self._masks[image].astype(np.int32)


def labelled(n: int = 160, seed: int = 0, skill: float = 1.0) -> LabelledImages:
    """Simulated events whose colour tells the class as well as `skill` says; place, year and shape tell nothing."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    events = pd.DataFrame(
        {
            "event_id": [f"e{k}" for k in range(n)],
            "image": np.arange(n),
            "number": 1,
            "label": labels,
            "title": [FOREST_LOSS_DRIVERS.classes[k].title for k in labels],
            "latitude": random.uniform(-3, 3, n),
            "longitude": random.uniform(100, 106, n),
            "loss_year": random.integers(2012, 2020, n),
            "split": np.where(np.arange(n) % 16 < 10, "train", np.where(np.arange(n) % 16 < 12, "val", "test")),
            "fault": "",
        }
    )
    colour = 0.1 + 0.05 * skill * np.eye(4)[labels][:, :3] + random.normal(0, 0.01, (n, 3))
    images = colour[:, None, :, None, None] + random.normal(0, 0.01, (n, 3, 3, SIZE, SIZE))
    masks = np.zeros((n, SIZE, SIZE), bool)
    for mask in masks:
        height, width, top, left = random.integers(3, 12, 4)
        mask[top : top + height, left : left + width] = True
    return LabelledImages(events, images.astype(np.float32), masks)
