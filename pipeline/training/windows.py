"""Where to look when judging: windows of the patch size that show every event whole, as few as may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.training.crops import Images

Box = tuple[slice, slice]


@dataclass(frozen=True)
class EventWindow:
    """One window: `corner` (row, column) in the image, the event `rows` judged in it, and the `cell` that counts.

    The cell (rows, columns of the image) is the whole image but for an event too large for one window, which several
    windows share without counting a pixel twice.
    """

    image: int
    corner: tuple[int, int]
    rows: tuple[int, ...]
    cell: Box


def plan_windows(image: int, boxes: dict[int, Box], shape: tuple[int, int], size: int) -> list[EventWindow]:
    """Cover the events with bounding `boxes` (by row) in an image of `shape` with windows of `size` pixels a side.

    A window is centred on an event; events that lie in it with an eighth of its side to spare share it.
    """
    spare = size // 8
    inner = size - 2 * spare
    everything = (slice(0, shape[0]), slice(0, shape[1]))
    waiting, windows = dict(boxes), []
    while waiting:
        row, box = next(iter(waiting.items()))
        if any(axis.stop - axis.start > inner for axis in box):
            windows += [_part(image, row, cell, (spare, size), shape) for cell in _cells(box, inner)]
            del waiting[row]
            continue
        corner = tuple(_fit((a.start + a.stop - size) // 2, n, size) for a, n in zip(box, shape, strict=True))
        served = tuple(r for r, b in waiting.items() if r == row or _holds(corner, b, size, spare))
        windows.append(EventWindow(image, (corner[0], corner[1]), served, everything))
        for r in served:
            del waiting[r]
    return windows


def _fit(start: int, length: int, size: int) -> int:
    return max(0, min(start, length - size))


def _holds(corner: tuple[int, ...], box: Box, size: int, spare: int) -> bool:
    return all(at + spare <= a.start and a.stop <= at + size - spare for at, a in zip(corner, box, strict=True))


def _cells(box: Box, inner: int) -> list[Box]:
    starts = [range(axis.start, axis.stop, inner) for axis in box]
    return [
        (slice(top, min(top + inner, box[0].stop)), slice(left, min(left + inner, box[1].stop)))
        for top in starts[0]
        for left in starts[1]
    ]


def _part(image: int, row: int, cell: Box, room: tuple[int, int], shape: tuple[int, int]) -> EventWindow:
    spare, size = room
    corner = tuple(_fit(axis.start - spare, n, size) for axis, n in zip(cell, shape, strict=True))
    return EventWindow(image, (corner[0], corner[1]), (row,), cell)


class EventWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows over all usable events of `images`, to judge by; `looks` names the look of each image (0 = composite).

    An item holds `image` float32 [bands, size, size] and `events` int64 [size, size]: row + 1 of the events that count
    in this window, 0 elsewhere and where nothing was observed.
    """

    def __init__(self, images: Images, size: int, looks: Sequence[int] | None = None) -> None:
        self._images, self._size, self._looks = images, size, looks
        self.windows: list[EventWindow] = []
        for image in np.unique(images.image_of[images.rows]):
            drawn, boxes = images.events(int(image))
            self.windows += plan_windows(int(image), boxes, (drawn.shape[0], drawn.shape[1]), size)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one window."""
        window = self.windows[index]
        look = self._looks[window.image] if self._looks is not None else 0
        crop = self._images.cut(window.image, look, window.corner, self._size)
        counts = np.zeros(crop.events.shape, bool)
        top, left = window.corner
        rows, columns = window.cell
        counts[max(0, rows.start - top) : rows.stop - top, max(0, columns.start - left) : columns.stop - left] = True
        counts &= np.isin(crop.events, np.asarray(window.rows) + 1) & np.isfinite(crop.image).any(axis=0)
        return {"image": torch.from_numpy(crop.image), "events": torch.from_numpy(np.where(counts, crop.events, 0))}
