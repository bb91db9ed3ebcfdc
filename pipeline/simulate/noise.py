"""Smooth random fields that are a function of absolute pixel coordinates, so that any window equals the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]


def spectral_noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelengths: tuple[float, float], slope: float
) -> FloatArray:
    """Periodic field [rows, cols] of mean 0 and variance 1 with amplitude ~ wavelength ** slope between two wavelengths (pixels)."""
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
    """Endless field of mean 0 and variance about 1: the sum of two periodic tiles whose periods share no factor.

    The sum repeats only after the product of the periods (about 960,000 pixels), far beyond any province.
    """

    PERIODS = (1024, 937)

    def __init__(self, rng: np.random.Generator, wavelengths: tuple[float, float], slope: float) -> None:
        """Draw the tiles; `wavelengths` in pixels and `slope` as in `spectral_noise`."""
        self._tiles = tuple(spectral_noise(rng, (p, p), wavelengths, slope) * np.float32(0.5**0.5) for p in self.PERIODS)

    @classmethod
    def of_tiles(cls, tiles: tuple[FloatArray, ...]) -> NoiseField:
        """Wrap tiles that were computed elsewhere (gradients of another field)."""
        field = cls.__new__(cls)
        field._tiles = tiles
        return field

    def gradients(self) -> tuple[NoiseField, NoiseField]:
        """Return the field's slope per pixel down the rows and along the columns, as fields."""
        return tuple(  # type: ignore[return-value]
            NoiseField.of_tiles(tuple((np.roll(t, -1, axis) - np.roll(t, 1, axis)) / 2 for t in self._tiles))
            for axis in (0, 1)
        )

    def block(self, rows: IndexArray, cols: IndexArray) -> FloatArray:
        """Values [len(rows), len(cols)] at the crossing of absolute row and column numbers (may be negative)."""
        first, second = self._tiles
        value: FloatArray = first[rows % len(first)][:, cols % len(first)]
        value += second[rows % len(second)][:, cols % len(second)]
        return value

    def at(self, rows: IndexArray, cols: IndexArray) -> FloatArray:
        """Values at single points, same shape as `rows` and `cols`."""
        first, second = self._tiles
        value: FloatArray = (
            first[rows % len(first), cols % len(first)] + second[rows % len(second), cols % len(second)]
        )
        return value
