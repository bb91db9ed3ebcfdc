"""Image to logits: the model over every patch that speaks for loss, kept for the loss pixels of its cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.grid import Block
from pipeline.lattice import Patch, spoken


class Logits(Protocol):
    """What prediction needs of a model: float32 reflectance [n, bands, h, w], NaN = not observed, to class logits."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return class logits of a batch of patches."""
        ...


def predict_loss(
    image: np.ndarray, origin: tuple[int, int], patches: Sequence[Patch], block: Block, labels: np.ndarray,
    model: Logits, size: int, batch: int,
) -> np.ndarray:  # fmt: skip
    """Logits of a block's loss pixels, each from the one patch that speaks for it.

    Eight parameters: the image with its place, the patches with their size, the block with its labels, the model with
    its batch; bundling them would only name pairs that live nowhere else.

    Args:
        image: composite, float32 [bands, height, width], NaN = not observed.
        origin: its first row and column on the run's grid.
        patches: where the model looks; their cells hold all loss.
        block: the block.
        labels: int32 [block.height, block.width], 0 = no loss.
        model: gives logits.
        size: patch in pixels.
        batch: patches to a call of the model.

    Returns:
        float32 [loss pixels in row-major order, classes].
    """
    place = np.cumsum(labels.ravel() != 0).reshape(labels.shape) - 1
    found: np.ndarray | None = None
    for start in range(0, len(patches), batch):
        part = patches[start : start + batch]
        images = np.stack([cut_patch(image, p.row0 - origin[0], p.col0 - origin[1], size) for p in part])
        for patch, logits in zip(part, model.logits(images), strict=True):
            if found is None:
                found = np.full((np.count_nonzero(labels), len(logits)), np.nan, np.float32)
            outer, inner = spoken(patch, block)
            own = labels[outer] == patch.event if patch.event else labels[outer] != 0
            found[place[outer][own]] = logits[:, *inner][:, own].T
    return np.zeros((0, 0), np.float32) if found is None else found


def cut_patch(image: np.ndarray, row0: int, col0: int, size: int) -> np.ndarray:
    """Cut a patch from an image [bands, height, width] at a pixel of it; NaN where it reaches outside."""
    out = np.full((len(image), size, size), np.nan, np.float32)
    top, left = max(row0, 0), max(col0, 0)
    bottom, right = min(row0 + size, image.shape[1]), min(col0 + size, image.shape[2])
    if top < bottom and left < right:
        out[:, top - row0 : bottom - row0, left - col0 : right - col0] = image[:, top:bottom, left:right]
    return out
