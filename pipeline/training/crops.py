"""Training crops: which event, which look of its image, and where to crop it.

Only forest loss has a driver, so every crop touches some; an event is drawn (each class as often, or as events come),
then a look of its image, then a pixel of the event, then where in the crop that pixel lies: events are not always
centred there, as they are not in a run's lattice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.ndimage
import torch
from cachetools import LRUCache
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import InputError
from pipeline.training.datasets.base import IGNORE, DriverDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sampling = Literal["even", "natural"]
Scenes = Literal["composite", "random"]


@dataclass(frozen=True)
class Crop:
    """One crop of c x c pixels.

    Attributes:
        image: float32 [bands, c, c] reflectance, NaN = not observed.
        target: int64 [c, c] class index, IGNORE outside labelled events and where nothing was observed.
        events: int64 [c, c] row of the event table + 1, 0 = none.
    """

    image: NDArray[np.float32]
    target: NDArray[np.int64]
    events: NDArray[np.int64]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the crop as torch tensors of the same names."""
        return {
            "image": torch.from_numpy(self.image),
            "target": torch.from_numpy(self.target),
            "events": torch.from_numpy(self.events),
        }


class Images:
    """Images of a data set with the usable events of `rows` drawn in; the last ones used stay in memory.

    Pixels of events outside `rows` carry no label: an image may show events of several splits.
    """

    def __init__(self, dataset: DriverDataset, rows: Sequence[int], megabytes: int = 2000) -> None:
        table = dataset.events.iloc[list(rows)]
        usable = (table["fault"] == "") & (table["image"] >= 0)
        self.dataset = dataset
        self.rows = np.asarray(rows, np.int64)[usable.to_numpy()]
        self.labels = dataset.events["label"].to_numpy(np.int64)
        self.image_of = dataset.events["image"].to_numpy(np.int64)
        self._numbers = dataset.events["number"].to_numpy(np.int64)
        self._pixels: LRUCache[tuple[int, int], NDArray[np.float32]] = LRUCache(
            megabytes * 2**20, getsizeof=lambda array: array.nbytes
        )
        self._regions: LRUCache[int, tuple[NDArray[np.int64], dict[int, tuple[slice, slice]]]] = LRUCache(
            megabytes * 2**18, getsizeof=lambda item: item[0].nbytes
        )

    def pixels(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [bands, H, W] of one look."""
        if (image, look) not in self._pixels:
            read = self.dataset.read(image, look)
            if read.nbytes > self._pixels.maxsize:
                return read
            self._pixels[image, look] = read
        return self._pixels[image, look]

    def events(self, image: int) -> tuple[NDArray[np.int64], dict[int, tuple[slice, slice]]]:
        """Return int64 [H, W] of event row + 1 (0 = none), and the bounding box of each row that has a pixel."""
        if image not in self._regions:
            own = self.rows[self.image_of[self.rows] == image]
            regions = self.dataset.regions(image)
            lookup = np.zeros(max(int(regions.max()), int(self._numbers[own].max(initial=0))) + 1, np.int64)
            lookup[self._numbers[own]] = own + 1
            boxes = scipy.ndimage.find_objects(regions)
            found = {int(row): boxes[self._numbers[row] - 1] for row in own if self._numbers[row] <= len(boxes)}
            kept = {row: box for row, box in found.items() if box is not None}
            drawn = lookup[regions]
            if drawn.nbytes > self._regions.maxsize:
                return drawn, kept
            self._regions[image] = drawn, kept
        return self._regions[image]

    def cut(self, image: int, look: int, corner: tuple[int, int], size: int) -> Crop:
        """Cut a crop at (row, column), moved inside the image where it fits; beyond the image nothing is observed."""
        pixels, (drawn, _) = self.pixels(image, look), self.events(image)
        height, width = drawn.shape
        top, left = (max(0, min(at, side - size)) for at, side in zip(corner, (height, width), strict=True))
        rows, columns = slice(top, top + size), slice(left, left + size)
        pad = ((0, max(0, size - height)), (0, max(0, size - width)))
        cropped = np.pad(pixels[:, rows, columns], ((0, 0), *pad), constant_values=np.nan)
        events = np.pad(drawn[rows, columns], pad)
        target = np.where(events > 0, self.labels[events - 1], IGNORE)
        # a run does not judge by pixels nobody saw either
        target[~np.isfinite(cropped).any(axis=0)] = IGNORE
        return Crop(cropped, target, events)


class CropStream(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of training crops; the same seed gives the same crops.

    Args:
        images: whose `rows` are the events to learn from.
        size: pixels a side.
        seed: of this stream; workers of a loader draw streams of their own.
        scenes: `composite`, or `random` = composite or any single scene per draw (scene data augmentation).
        sampling: `even` draws each class as often, `natural` each event.
    """

    def __init__(
        self, images: Images, size: int, seed: Sequence[int], scenes: Scenes = "composite", sampling: Sampling = "even"
    ) -> None:  # fmt: skip
        if not len(images.rows):
            raise InputError(
                f"data set {images.dataset.name}: no usable event to train on; check its splits and faults"
            )
        self._images, self._size, self._seed, self._scenes = images, size, list(seed), scenes
        labels = images.labels[images.rows]
        groups = [images.rows] if sampling == "natural" else [images.rows[labels == k] for k in np.unique(labels)]
        self._groups = groups

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield crops as tensors, without end."""
        worker = get_worker_info()
        random = np.random.default_rng([*self._seed, worker.id if worker else 0])
        while True:
            yield self.draw(random).tensors()

    def draw(self, random: np.random.Generator) -> Crop:
        """Return one crop that holds at least one pixel of the event drawn."""
        images = self._images
        for _ in range(1000):
            group = self._groups[random.integers(len(self._groups))]
            row = int(group[random.integers(len(group))])
            image = int(images.image_of[row])
            drawn, boxes = images.events(image)
            if row in boxes:
                break
        else:
            raise InputError(f"data set {images.dataset.name}: its events have no pixels in their images")
        box = boxes[row]
        inside = np.argwhere(drawn[box] == row + 1)
        pixel = inside[random.integers(len(inside))] + [box[0].start, box[1].start]
        looks = len(images.dataset.looks(image)) if self._scenes == "random" else 1
        look = int(random.integers(looks))
        top, left = (int(at) - int(random.integers(self._size)) for at in pixel)
        return images.cut(image, look, (top, left), self._size)
