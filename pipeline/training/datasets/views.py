"""Data sets made of data sets: several as one, and one at a coarser resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.training.datasets.base import DriverDataset, Look, check_events

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Joined(DriverDataset):
    """Several data sets of the same bands, resolution and classes as one; events keep their order."""

    def __init__(self, parts: Sequence[DriverDataset]) -> None:
        first = parts[0]
        for part in parts[1:]:
            for key in ("bands", "resolution", "scheme"):
                if getattr(part, key) != getattr(first, key):
                    raise InputError(f"data sets {first.name} and {part.name} differ in {key}; train on one of them")
        self.parts = tuple(parts)
        self.name = " + ".join(part.name for part in parts)
        self.bands, self.resolution, self.scheme = first.bands, first.resolution, first.scheme
        self.chip_m = max(part.chip_m for part in parts)
        self.simulated = any(part.simulated for part in parts)
        self.licence = "; ".join(dict.fromkeys(part.licence for part in parts))
        self._starts = np.cumsum([0, *(part.images for part in parts)])
        tables = [
            part.events.assign(image=part.events["image"].where(part.events["image"] < 0, part.events["image"] + start))
            for part, start in zip(parts, self._starts, strict=False)
        ]
        self.events = pd.concat(tables, ignore_index=True)
        frames = [part.auxiliary for part in parts]
        known = [frame for frame in frames if frame is not None]
        if len(known) not in (0, len(frames)) or any(set(f) != set(known[0]) for f in known):
            raise InputError(f"data sets {self.name} differ in their auxiliary columns; give each the same")
        self.auxiliary = pd.concat(known, ignore_index=True) if known else None
        check_events(self.events, self.scheme, self.name)

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return int(self._starts[-1])

    def looks(self, image: int) -> tuple[Look, ...]:
        """Return the looks of an image, the composite first."""
        part, own = self._part(image)
        return part.looks(own)

    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [bands, H, W] reflectance, NaN = not observed."""
        part, own = self._part(image)
        return part.read(own, look)

    def regions(self, image: int) -> NDArray[np.int32]:
        """Return int32 [H, W]: the number of the event each pixel belongs to, 0 = none."""
        part, own = self._part(image)
        return part.regions(own)

    def _part(self, image: int) -> tuple[DriverDataset, int]:
        which = int(np.searchsorted(self._starts, image, side="right")) - 1
        return self.parts[which], image - int(self._starts[which])


class Coarser(DriverDataset):
    """A data set with pixels `factor` times as wide: means of what was observed, the most frequent event.

    ForestNet's archive has pixels of 15 m where scenes have 30 m; a model for scenes is trained at theirs.
    """

    def __init__(self, source: DriverDataset, factor: int) -> None:
        self._source, self._factor = source, factor
        self.name, self.bands, self.scheme, self.events = source.name, source.bands, source.scheme, source.events
        self.resolution, self.chip_m = source.resolution * factor, source.chip_m
        self.auxiliary, self.simulated, self.licence = source.auxiliary, source.simulated, source.licence

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return self._source.images

    def looks(self, image: int) -> tuple[Look, ...]:
        """Return the looks of an image, the composite first."""
        return self._source.looks(image)

    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [bands, H // factor, W // factor]; NaN where none of the pixels was observed."""
        cells = self._cells(self._source.read(image, look))
        seen = np.isfinite(cells)
        count = seen.sum(axis=-1)
        total = np.where(seen, cells, 0).sum(axis=-1, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            mean: NDArray[np.float32] = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
        return mean

    def regions(self, image: int) -> NDArray[np.int32]:
        """Return int32 [H // factor, W // factor]: the event at least half of whose pixels there are its own."""
        cells = self._cells(self._source.regions(image))
        out = np.zeros(cells.shape[:-1], np.int32)
        for number in np.unique(cells[cells > 0]):
            out[(cells == number).sum(axis=-1) * 2 >= self._factor**2] = number
        return out

    def _cells[T: np.generic](self, array: NDArray[T]) -> NDArray[T]:
        """[..., H, W] -> [..., H // factor, W // factor, factor * factor]; a remainder at the far sides is cut off."""
        k = self._factor
        height, width = (side // k for side in array.shape[-2:])
        cut = array[..., : height * k, : width * k].reshape(*array.shape[:-2], height, k, width, k)
        return np.moveaxis(cut, -3, -2).reshape(*array.shape[:-2], height, width, k * k)


def at_resolution(dataset: DriverDataset, resolution: float | None) -> DriverDataset:
    """Return the data set at `resolution` metres a pixel; raises InputError unless that is a multiple of its own."""
    if resolution is None or abs(resolution - dataset.resolution) < 1e-6:
        return dataset
    factor = round(resolution / dataset.resolution)
    if factor < 2 or abs(factor * dataset.resolution - resolution) > 1e-6:
        raise InputError(
            f"data set {dataset.name}: resolution {resolution:g} m is no multiple of its {dataset.resolution:g} m"
        )
    return Coarser(dataset, factor)
