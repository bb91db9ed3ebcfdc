"""What an image and its mask may give away about the label beyond what they show: outline, painted values, gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from pipeline.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.training.datasets.base import DriverDataset

FLAT_SHARE = 0.2
"""Share of a zone's pixels of exactly one value from which the value may be painted."""
STANDS_OUT, FEW, LEVEL = 4, 4, 1 / 255
"""A painted value stands out from its neighbours: it is STANDS_OUT times as common as all values within 1.5 of a LEVEL
(one step of 8-bit imagery) and FEW pixels more. In 8-bit imagery a fifth and more of a dark, even surface share one
value, but the values beside it are common too: forest, water and haze are no paint."""
NO_BUSINESS = 0.10
NEARLY_THE_LABEL = 0.50
OUTLINE = ("pixels", "height", "width", "perimeter", "fill", "top", "left")


@dataclass(frozen=True)
class Suspect:
    """A `name` and its float64 `values` [events, f], NaN = missing; warned about where its skill passes `threshold`."""

    name: str
    values: NDArray[np.float64]
    threshold: float


def image_suspects(dataset: DriverDataset) -> list[Suspect]:
    """Outline of each event's mask; values painted inside and outside of it; what is not observed; how many looks.

    Read from the composite. Events whose files cannot be read are missing (NaN) in all of them.
    """
    events, bands = dataset.events, len(dataset.bands)
    outline = np.full((len(events), len(OUTLINE)), np.nan)
    inside, outside = (np.full((len(events), 2 * bands), np.nan) for _ in range(2))
    gaps = np.full((len(events), bands + 1), np.nan)
    usable = events[events["fault"] == ""]
    for image in np.unique(usable["image"].to_numpy(np.int64)).tolist():
        own = usable[usable["image"] == image]
        try:
            pixels, regions = dataset.read(image), dataset.regions(image)
            looks = len(dataset.looks(image))
        except InputError:
            # training lists it; what cannot be read cannot leak
            continue
        # what lies outside of all masks is the same for every event of an image
        around, boxes = painted(pixels[:, regions == 0]), scipy.ndimage.find_objects(regions)
        for at, number in zip(own.index, own["number"], strict=True):
            box = boxes[number - 1] if number <= len(boxes) else None
            if box is None:
                continue
            mask = regions[box] == number
            seen = pixels[:, *box][:, mask]
            outline[at] = _outline(mask, (box[0].start, box[1].start))
            inside[at], outside[at] = painted(seen), around
            gaps[at] = [*np.isnan(seen).mean(axis=1), looks]
    return [
        Suspect("outline of the mask", outline, NEARLY_THE_LABEL),
        Suspect("values painted inside the mask", inside, NO_BUSINESS),
        Suspect("values painted outside the mask", outside, NO_BUSINESS),
        Suspect("gaps and number of looks", gaps, NO_BUSINESS),
    ]


def painted(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float64 [2 * bands] of pixels [bands, n]: the value that is painted, NaN if none; the share it has.

    Painted is what FLAT_SHARE of the pixels have exactly and what stands out from the values beside it (STANDS_OUT).
    The share is 0 where nothing is painted, so that natural differences in texture are no evidence.
    """
    values, shares = np.full(len(pixels), np.nan), np.zeros(len(pixels))
    for band, own in enumerate(pixels):
        seen = own[np.isfinite(own)]
        if not seen.size:
            continue
        found, counts = np.unique(seen, return_counts=True)
        most = int(counts.argmax())
        near = int(counts[np.abs(found - found[most]) < 1.5 * LEVEL].sum()) - int(counts[most])
        if counts[most] >= max(FLAT_SHARE * seen.size, STANDS_OUT * (near + FEW)):
            values[band], shares[band] = found[most], counts[most] / seen.size
    return np.concatenate([values, shares])


def _outline(mask: NDArray[np.bool_], corner: tuple[int, int]) -> list[float]:
    """The figures named in OUTLINE, in pixels, of a mask cut to its bounding box; `fill` is the box's share."""
    framed = np.pad(mask, 1)
    edges = sum(int((framed != np.roll(framed, 1, axis)).sum()) for axis in (0, 1))
    return [int(mask.sum()), *mask.shape, edges, float(mask.mean()), *corner]
