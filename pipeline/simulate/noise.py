"""Smooth random fields that are a function of absolute pixel coordinates, so that any window equals the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import fft

FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]


def spectral_noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelengths: tuple[float, float], slope: float
) -> FloatArray:
    """Periodic field [rows, cols] of mean 0 and variance 1.

    The amplitude grows as wavelength ** slope between the two wavelengths (pixels) and falls off outside.
    """
    frequency = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :])
    shortest, longest = wavelengths
    floor = max(1.0 / longest, 0.5 / max(shape))
    amplitude = np.where(frequency > 0, np.maximum(frequency, floor) ** -slope, 0.0)
    amplitude *= 1.0 / (1.0 + (frequency * shortest) ** 6)
    field = fft.irfft2(fft.rfft2(rng.standard_normal(shape)) * amplitude, s=shape)
    field -= field.mean()
    result: FloatArray = (field / field.std()).astype(np.float32)
    return result


class NoiseField:
    """Endless field of mean 0 and variance about 1: one periodic tile, or the sum of two whose periods share no factor.

    The sum of two repeats only after the product of the periods (about 960,000 pixels), far beyond any province; one
    tile is enough where the repetition of a fine grain cannot be seen.
    """

    PERIODS = (1024, 937)

    def __init__(self, tiles: tuple[FloatArray, ...]) -> None:
        """Wrap square tiles."""
        self._tiles = tiles

    @classmethod
    def draw(
        cls, rng: np.random.Generator, wavelengths: tuple[float, float], slope: float, tiles: int = 2
    ) -> NoiseField:
        """Draw the tiles; `wavelengths` in pixels and `slope` as in `spectral_noise`."""
        weight = np.float32(tiles**-0.5)
        return cls(tuple(spectral_noise(rng, (p, p), wavelengths, slope) * weight for p in cls.PERIODS[:tiles]))

    def gradient(self, axis: int) -> NoiseField:
        """Return the field's slope per pixel down the rows (axis 0) or along the columns (1), as a field."""
        half = np.float32(0.5)
        return NoiseField(tuple((np.roll(t, -1, axis) - np.roll(t, 1, axis)) * half for t in self._tiles))

    def block(self, rows: range, cols: range) -> FloatArray:
        """Values [len(rows), len(cols)] at absolute row and column numbers (may be negative; step 1)."""
        value = np.zeros((len(rows), len(cols)), dtype=np.float32)
        for tile in self._tiles:
            for to_row, from_row in _runs(rows, len(tile)):
                for to_col, from_col in _runs(cols, len(tile)):
                    value[to_row, to_col] += tile[from_row, from_col]
        return value

    def at(self, rows: IndexArray, cols: IndexArray) -> FloatArray:
        """Values at single points, same shape as `rows` and `cols`."""
        value: FloatArray = np.sum([t[rows % len(t), cols % len(t)] for t in self._tiles], axis=0)
        return value


def _runs(span: range, period: int) -> list[tuple[slice, slice]]:
    """Pieces of `span` that do not cross a period: where they go in the block, where they come from in the tile."""
    cuts = [span.start, *range((span.start // period + 1) * period, span.stop, period), span.stop]
    return [
        (slice(first - span.start, last - span.start), slice(first % period, first % period + last - first))
        for first, last in pairwise(cuts)
    ]
