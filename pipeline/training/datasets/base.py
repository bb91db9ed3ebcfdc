"""What every labelled data set owes training and judging, whatever format it was published in.

An image shows one or many labelled events; an image has one or several looks (the composite first, then single scenes),
all on one grid. Only pixels inside an event carry its label.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torchgeo.datasets import NonGeoDataset

from pipeline.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels import LabelScheme

IGNORE = -100
"""Target of a pixel without a label; torch's cross-entropy ignores it."""

EVENT_COLUMNS = (
    "event_id", "image", "number", "label", "title", "latitude", "longitude", "loss_year", "split", "fault",
)  # fmt: skip
"""Columns of `DriverDataset.events`: str id; int image index (-1 where there is none) and number in `regions` (>= 1);
int class index; the label as published; degrees (EPSG:4326); int year; split as published (train, val, test or "");
why the event cannot be used ("" where it can). Events at fault stay rows: they are counted, never dropped."""


@dataclass(frozen=True)
class Look:
    """One rendering of an image: the `composite`, or a single scene with its date and cloud share in percent."""

    name: str
    date: datetime.date | None = None
    cloud: float | None = None


class DriverDataset(NonGeoDataset):
    """Labelled forest-loss events with imagery, torchgeo style.

    Attributes:
        name: of the data set, for reports.
        bands: common band names in the order of `read`.
        resolution: metres a pixel.
        scheme: the classes; `events.label` indexes it.
        events: one row an event, columns EVENT_COLUMNS, a RangeIndex.
        auxiliary: float64, one row an event, one column a predictor, NaN = missing; None where there are none.
        chip_m: side in metres of what a model sees around an event, for counting overlaps between splits.
        simulated: whether any of it was simulated.
        licence: of the data.
    """

    name: str
    bands: tuple[str, ...]
    resolution: float
    scheme: LabelScheme
    events: pd.DataFrame
    auxiliary: pd.DataFrame | None = None
    chip_m: float
    simulated: bool = False
    licence: str = "unknown"

    @abstractmethod
    def looks(self, image: int) -> tuple[Look, ...]:
        """Return the looks of an image, the composite first."""

    @abstractmethod
    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [bands, H, W] reflectance, NaN = not observed; raises InputError naming the file at fault."""

    @abstractmethod
    def regions(self, image: int) -> NDArray[np.int32]:
        """Return int32 [H, W]: the number of the event each pixel belongs to, 0 = none."""

    @property
    @abstractmethod
    def images(self) -> int:
        """Return how many images there are."""

    def __len__(self) -> int:
        """Return how many images there are."""
        return self.images

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `image` float32 [bands, H, W], `mask` int64 [H, W] (class index or IGNORE), `events` int64 [H, W]."""
        regions = self.regions(index).astype(np.int64)
        return {
            "image": torch.from_numpy(self.read(index)),
            "mask": torch.from_numpy(self.target(index, regions)),
            "events": torch.from_numpy(regions),
        }

    def target(self, image: int, regions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 [H, W]: the class index of each pixel's event, IGNORE outside usable events."""
        own = self.events[(self.events["image"] == image) & (self.events["fault"] == "")]
        lookup = np.full(int(max(regions.max(), own["number"].max() if len(own) else 0)) + 1, IGNORE, np.int64)
        lookup[own["number"].to_numpy()] = own["label"].to_numpy()
        return lookup[regions]


def check_events(events: pd.DataFrame, scheme: LabelScheme, where: str) -> None:
    """Hold an event table to the contract; raises InputError naming `where` and the fault."""
    missing = [column for column in EVENT_COLUMNS if column not in events]
    if missing:
        raise InputError(f"{where}: the event table lacks {', '.join(missing)}")
    if not events["event_id"].is_unique:
        twice = events.loc[events["event_id"].duplicated(), "event_id"].iloc[0]
        raise InputError(f"{where}: event {twice} is there twice; remove one")
    outside = ~events["label"].between(0, len(scheme) - 1)
    if outside.any():
        raise InputError(f"{where}: event {events.loc[outside, 'event_id'].iloc[0]} has a label outside the classes")
