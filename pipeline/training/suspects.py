"""What an image and its mask may give away about the label beyond what they show: outline, painted values, gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.training.datasets.base import DriverDataset

FLAT_SHARE = 0.2
"""Share of a zone's pixels of exactly one value from which the value counts as painted. Real surfaces vary: of 8-bit
imagery some 5 to 10 % share a value."""
FLAT_PIXELS = 5
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
    for image, own in events[events["fault"] == ""].groupby("image", sort=True):
        try:
            pixels, regions = dataset.read(int(image)), dataset.regions(int(image))
            looks = len(dataset.looks(int(image)))
        except InputError:
            # training lists it; what cannot be read cannot leak
            continue
        for at, number in zip(own.index, own["number"], strict=True):
            mask = regions == number
            if not mask.any():
                continue
            outline[at] = _outline(mask)
            inside[at] = painted(pixels[:, mask])
            outside[at] = painted(pixels[:, regions == 0])
            gaps[at] = [*np.isnan(pixels[:, mask]).mean(axis=1), looks]
    return [
        Suspect("outline of the mask", outline, NEARLY_THE_LABEL),
        Suspect("values painted inside the mask", inside, NO_BUSINESS),
        Suspect("values painted outside the mask", outside, NO_BUSINESS),
        Suspect("gaps and number of looks", gaps, NO_BUSINESS),
    ]


def painted(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float64 [2 * bands] of pixels [bands, n]: the value that is painted, NaN if none; the share it has.

    Painted is what FLAT_SHARE of the pixels, and FLAT_PIXELS at least, have exactly. The share is 0 where nothing is
    painted, so that natural differences in texture are no evidence.
    """
    values, shares = np.full(len(pixels), np.nan), np.zeros(len(pixels))
    for band, own in enumerate(pixels):
        seen = own[np.isfinite(own)]
        if not seen.size:
            continue
        found, counts = np.unique(seen, return_counts=True)
        most = int(counts.argmax())
        if counts[most] >= max(FLAT_PIXELS, FLAT_SHARE * seen.size):
            values[band], shares[band] = found[most], counts[most] / seen.size
    return np.concatenate([values, shares])


def _outline(mask: NDArray[np.bool_]) -> list[float]:
    """The figures named in OUTLINE, in pixels; `fill` is the share of the bounding box."""
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    framed = np.pad(mask, 1)
    edges = sum(int((framed != np.roll(framed, 1, axis)).sum()) for axis in (0, 1))
    area = len(rows)
    return [area, height, width, edges, area / (height * width), top, left]
