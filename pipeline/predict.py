"""Image to logits: the model over every patch that speaks for loss, blended, kept for loss pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.lattice import BlockLoss, Patch, blend_weights


class Logits(Protocol):
    """What prediction needs of a model: float32 reflectance [n, bands, h, w], NaN = not observed, to class logits."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return class logits of a batch of patches."""
        ...


def predict_loss(
    image: np.ndarray, patches: Sequence[Patch], loss: BlockLoss, clear: np.ndarray, model: Logits, size: int,
    batch: int,
) -> np.ndarray:  # fmt: skip
    """Blended logits of a block's clear loss pixels.

    Seven parameters: the image, the patches with their size, the loss with what of it is clear, the model with its
    batch; bundling them would only name pairs that live nowhere else.

    Args:
        image: composite, float32 [bands, height, width] over the window of `loss`, NaN = not observed.
        patches: where the model looks, in the order of `patches.draw_patches`; each clear pixel has one that speaks
            for it.
        loss: the block's loss of one year.
        clear: int32 [block.height, block.width], the event's label, 0 = no loss or not observed.
        model: gives logits.
        size: patch in pixels.
        batch: patches to a call of the model.

    Returns:
        float64 [clear loss pixels in row-major order, classes].
    """
    place = np.cumsum(clear.ravel() != 0, dtype=np.int32).reshape(clear.shape) - 1
    weights = blend_weights(size)
    total = np.zeros(np.count_nonzero(clear), np.int64)
    blended: np.ndarray | None = None
    for start in range(0, len(patches), batch):
        part = patches[start : start + batch]
        corners = [(patch.row0 - loss.row0, patch.col0 - loss.col0) for patch in part]
        images = np.stack([image[:, row : row + size, col : col + size] for row, col in corners])
        for patch, logits in zip(part, model.logits(images), strict=True):
            if blended is None:
                blended = np.zeros((len(total), len(logits)), np.float64)
            outer, inner, own = loss.spoken(patch, size, clear)
            index, weight = place[outer][own], weights[inner][own]
            total[index] += weight
            blended[index] += logits[:, *inner][:, own].T.astype(np.float64) * weight[:, None]
    if blended is None:
        return np.zeros((0, 0), np.float64)
    return np.asarray(blended / total[:, None])
