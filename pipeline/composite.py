"""Clear observations to one image: the per-pixel median of each band."""

from __future__ import annotations

import numpy as np


def median_composite(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-pixel median over scenes.

    Args:
        stack: float32 [scenes, bands, height, width] reflectance; NaN = not clear, in all bands of a pixel or in none.

    Returns:
        image: float32 [bands, height, width], NaN where no scene saw the ground.
        count: uint16 [height, width], clear observations.
    """
    scenes = len(stack)
    count = np.sum(~np.isnan(stack[:, 0]), axis=0, dtype=np.uint16) if scenes else np.zeros(stack.shape[2:], np.uint16)
    if scenes == 0:
        return np.full(stack.shape[1:], np.nan, np.float32), count
    ordered = np.sort(stack, axis=0)  # NaN last, so the clear values of a pixel come first
    upper = np.minimum(count // 2, scenes - 1)[None, None].astype(np.intp)
    lower = (np.maximum(count, 1) - 1)[None, None].astype(np.intp) // 2
    high = np.take_along_axis(ordered, upper, axis=0)[0]
    low = np.take_along_axis(ordered, lower, axis=0)[0]
    return np.where(count > 0, (low + high) * np.float32(0.5), np.float32(np.nan)), count
