"""Which data set a folder holds: ours, ForestNet's archive, Cam-ForestNet's, or labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.datasets.base import DriverDataset, Look, check_events
from pipeline.training.datasets.camforestnet import CamForestNet
from pipeline.training.datasets.forestnet import RESOLUTION, SIDE, ForestNet
from pipeline.training.datasets.own import DATASET_FILE, EventsDataset
from pipeline.training.datasets.tables import Level, read_labels

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


class LabelsOnly(DriverDataset):
    """Label tables without imagery: `events` can be judged by place and year, and nothing can be read."""

    bands = ()
    resolution = RESOLUTION
    chip_m = SIDE * RESOLUTION
    images = 0

    def __init__(self, folder: Path, level: Level = "merged") -> None:
        self.folder, self.name = folder, f"labels of {folder.name}"
        self.events, self.scheme = read_labels(folder, level)
        check_events(self.events, self.scheme, str(folder))

    def looks(self, image: int) -> tuple[Look, ...]:
        """Raise InputError: there are no images."""
        raise self._none(image)

    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Raise InputError: there are no images."""
        raise self._none(image, look)

    def regions(self, image: int) -> NDArray[np.int32]:
        """Raise InputError: there are no images."""
        raise self._none(image)

    def _none(self, image: int, look: int = 0) -> InputError:
        return InputError(
            f"{self.folder}: labels only, so there is no image {image} (look {look}) to read; put the archive's "
            "examples beside the tables, or use what needs places alone (--features location)"
        )


def open_dataset(folder: Path, *, level: Level = "merged") -> DriverDataset:
    """Open a folder of labelled events; `level` chooses the merged or the fine titles of published tables.

    Raises:
        InputError: naming the folder, when it holds no data set of a known format.
    """
    if (folder / DATASET_FILE).is_file():
        return EventsDataset(folder)
    if not folder.is_dir():
        raise InputError(f"data set {folder}: no such folder")
    events, _ = read_labels(folder, level)
    if not any((folder / path).is_dir() for path in events["example_path"]):
        return LabelsOnly(folder, level)
    return CamForestNet(folder, level) if _reversed(events) else ForestNet(folder, level)


def _reversed(events: pd.DataFrame) -> bool:
    """Whether folders are named longitude first; told from the first event whose two numbers differ."""
    places = events[["latitude", "longitude"]].to_numpy(np.float64)
    for name, (latitude, longitude) in zip(events["event_id"], places, strict=True):
        try:
            first, second = (float(part) for part in str(name).split("_"))
        except ValueError:
            continue
        if not np.isclose(first, second, atol=1e-3):
            return bool(np.hypot(first - longitude, second - latitude) < np.hypot(first - latitude, second - longitude))
    return False
