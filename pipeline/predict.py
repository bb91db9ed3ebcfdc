"""Image to logits: the model over every patch that touches loss, overlaps blended, kept for loss pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.grid import Block
from pipeline.lattice import Patch, blend_weights, overlap
from pipeline.patches import CompositeDataset


class Logits(Protocol):
    """What prediction needs of a model: float32 reflectance [n, bands, h, w], NaN = not observed, to class logits."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return class logits of a batch of patches."""
        ...


def predict_loss(
    dataset: CompositeDataset, origin: tuple[int, int], patches: Sequence[Patch], block: Block, labels: np.ndarray,
    model: Logits, size: int, batch: int,
) -> np.ndarray:  # fmt: skip
    """Blended logits of a block's loss pixels.

    Eight parameters: the image with its place, the patches with their size, the block with its labels, the model with
    its batch; bundling them would only name pairs that live nowhere else.

    Args:
        dataset: composite over the block's lattice window.
        origin: first row and column of that window on the run's grid.
        patches: where the model looks, sorted.
        block: the block.
        labels: int32 [block.height, block.width], 0 = no loss.
        model: gives logits.
        size: patch in pixels.
        batch: patches to a call of the model.

    Returns:
        float64 [loss pixels in row-major order, classes].
    """
    place = np.cumsum(labels.ravel() != 0).reshape(labels.shape) - 1
    flat = labels[labels != 0]
    weights = blend_weights(size)
    total = np.zeros(len(flat), np.int64)
    blended: np.ndarray | None = None
    for start in range(0, len(patches), batch):
        part = patches[start : start + batch]
        images = np.stack([dataset.read(p.row0 - origin[0], p.col0 - origin[1], size, size) for p in part])
        for patch, logits in zip(part, model.logits(images), strict=True):
            if blended is None:
                blended = np.zeros((len(flat), len(logits)), np.float64)
            outer, inner = overlap(patch, size, block)
            spoken = labels[outer] == patch.event if patch.event else labels[outer] != 0
            index, weight = place[outer][spoken], weights[inner][spoken]
            total[index] += weight
            blended[index] += logits[:, inner[0], inner[1]][:, spoken].T.astype(np.float64) * weight[:, None]
    if blended is None:
        return np.zeros((0, 0), np.float64)
    return np.asarray(blended / total[:, None])
