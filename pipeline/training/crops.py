"""Training crops: what one image teaches, where to crop it, and how to vary the crop.

Only forest loss has a driver, so every crop touches some; classes are drawn evenly, then events of the class,
then a pixel of the event, then where in the crop that pixel lies, so that events are not always centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.labels import NO_DATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels import LabelScheme

IGNORE = -100
"""Target of a pixel without a label; torch's cross-entropy ignores it."""


@dataclass(frozen=True)
class TrainingImage:
    """One labelled image on one grid.

    Attributes:
        image: float32 [bands, H, W] surface reflectance, NaN = not observed.
        drivers: uint8 [H, W] class codes, 255 = outside loss (or of unknown driver).
        events: int32 [H, W] event numbers, 0 = none.
    """

    image: NDArray[np.float32]
    drivers: NDArray[np.uint8]
    events: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Refuse arrays that do not lie on one grid."""
        if self.image.ndim != 3 or not self.image.shape[1:] == self.drivers.shape == self.events.shape:
            raise InputError(
                f"training image {self.image.shape}, drivers {self.drivers.shape} and events {self.events.shape} "
                "must be [bands, H, W], [H, W] and [H, W] of one grid"
            )


@dataclass(frozen=True)
class LabelledEvent:
    """One event of one image: its `label` (class index) is that of most of its pixels, given as flat `pixels`."""

    image: int
    number: int
    label: int
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Crop:
    """A crop: float32 `image` [bands, c, c]; int64 `target` [c, c] (class index or IGNORE); int64 `events` [c, c]."""

    image: NDArray[np.float32]
    target: NDArray[np.int64]
    events: NDArray[np.int64]


def class_lookup(scheme: LabelScheme) -> NDArray[np.int64]:
    """Return int64 [256]: class code -> class index, IGNORE for every other code."""
    lookup = np.full(256, IGNORE, np.int64)
    lookup[list(scheme.codes)] = np.arange(len(scheme))
    return lookup


def list_events(images: Sequence[TrainingImage], scheme: LabelScheme) -> list[LabelledEvent]:
    """Return every event that has a labelled pixel; raises InputError for a driver code the scheme does not know."""
    lookup = class_lookup(scheme)
    found = []
    for index, image in enumerate(images):
        unknown = set(np.unique(image.drivers)) - set(scheme.codes) - {NO_DATA}
        if unknown:
            raise InputError(
                f"training image {index}: driver codes {sorted(int(code) for code in unknown)} are not in the label "
                f"scheme {list(scheme.codes)}"
            )
        flat, labels = image.events.ravel(), lookup[image.drivers.ravel()]
        pixels = np.flatnonzero((flat > 0) & (labels != IGNORE))
        pixels = pixels[np.argsort(flat[pixels], kind="stable")]
        numbers, starts = np.unique(flat[pixels], return_index=True)
        for number, own in zip(numbers, np.split(pixels, starts[1:]), strict=False):
            label = int(np.bincount(labels[own]).argmax())
            found.append(LabelledEvent(index, int(number), label, own))
    return found


class CropSampler:
    """Draws crops at random; the same seed draws the same crops."""

    def __init__(self, images: Sequence[TrainingImage], scheme: LabelScheme, seed: int) -> None:
        events = list_events(images, scheme)
        if not events:
            raise InputError("training images hold no labelled event; give images with drivers inside events")
        self.events = events
        self._images = images
        self._lookup = class_lookup(scheme)
        self._by_class = [
            own for label in range(len(scheme)) if (own := [event for event in events if event.label == label])
        ]
        self._random = np.random.default_rng(seed)

    def draw(self, size: int) -> Crop:
        """Return one augmented crop of `size` pixels with at least one labelled pixel before augmentation."""
        own = self._by_class[self._random.integers(len(self._by_class))]
        event = own[self._random.integers(len(own))]
        pixel = int(event.pixels[self._random.integers(len(event.pixels))])
        row, column = divmod(pixel, self._images[event.image].drivers.shape[1])
        top, left = (at - int(self._random.integers(size)) for at in (row, column))
        return augment(self.cut(event.image, top, left, size), self._random)

    def centred(self, event: LabelledEvent, size: int) -> Crop:
        """Return the crop centred on the event's bounding box, not augmented."""
        rows, columns = np.divmod(event.pixels, self._images[event.image].drivers.shape[1])
        middle = [(int(axis.min()) + int(axis.max())) // 2 - size // 2 for axis in (rows, columns)]
        return self.cut(event.image, middle[0], middle[1], size)

    def cut(self, index: int, top: int, left: int, size: int) -> Crop:
        """Cut a crop, moved inside the image where it fits; what the image does not cover is not observed."""
        source = self._images[index]
        height, width = source.drivers.shape
        top, left = max(0, min(top, height - size)), max(0, min(left, width - size))
        rows, columns = slice(top, top + size), slice(left, left + size)
        pad = ((0, max(0, size - height)), (0, max(0, size - width)))
        image = np.pad(source.image[:, rows, columns], ((0, 0), *pad), constant_values=np.nan)
        drivers = np.pad(source.drivers[rows, columns], pad, constant_values=NO_DATA)
        events = np.pad(source.events[rows, columns], pad).astype(np.int64)
        return _hide(Crop(image, self._lookup[drivers], events))


def augment(crop: Crop, random: np.random.Generator) -> Crop:
    """Vary a crop as nature does: turned and mirrored, other light, haze, sensor noise, holes left by clouds."""
    turns, mirror = int(random.integers(4)), bool(random.integers(2))
    image = _turn(crop.image, turns, mirror)
    bands = len(image)
    gain = 1 + random.normal(0, 0.05) + random.normal(0, 0.03, bands)
    # haze brightens short waves most; bands come in order of wavelength
    haze = max(0.0, random.normal(0, 0.01)) * np.linspace(1, 0, bands) + random.normal(0, 0.004, bands)
    varied = image * gain[:, None, None] + haze[:, None, None]
    varied += random.normal(0, 0.003, varied.shape)
    for _ in range(int(random.integers(1, 5)) if random.random() < 0.4 else 0):
        _punch(varied, random)
    target, events = _turn(crop.target, turns, mirror), _turn(crop.events, turns, mirror)
    return _hide(Crop(varied.astype(np.float32), target, events))


def _turn[T: np.generic](array: NDArray[T], turns: int, mirror: bool) -> NDArray[T]:
    turned = np.rot90(array, turns, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if mirror else turned)


def _punch(image: NDArray[np.floating], random: np.random.Generator) -> None:
    """Set an ellipse to NaN in place."""
    size = image.shape[-1]
    row, column = random.uniform(0, size, 2)
    radii = random.uniform(0.02, 0.2, 2) * size
    rows, columns = np.ogrid[:size, :size]
    image[:, ((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 < 1] = np.nan


def _hide(crop: Crop) -> Crop:
    """Take the label of pixels without any observation: the run does not judge by them either."""
    unseen = ~np.isfinite(crop.image).any(axis=0)
    return Crop(crop.image, np.where(unseen, IGNORE, crop.target), crop.events)
