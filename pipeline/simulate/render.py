"""Surface reflectance of the land on one day: palette x noise x terrain, mixed as a 30 m sensor mixes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.appearance import Palette
from pipeline.simulate.landscape import Landscape
from pipeline.simulate.noise import NoiseField

FloatArray = NDArray[np.float32]
# how the two grain noises act on blue .. swir22: all bands brighter, and more leaf (nir up, red down). The
# correlations between bands inside real forest (Manaus, Brumadinho) were the guide.
_GRAIN = np.array([[1.0, 0.9, 1.0, 0.75, 0.85, 1.0], [-0.9, -0.35, -0.8, 0.75, 0.0, -0.5]], dtype=np.float32)
# forest types: swamps are darker in the near infrared and moister than hill forest
_REGION = np.array([0.02, 0.03, 0.04, 0.045, 0.03, 0.05], dtype=np.float32)
_DARKEST = np.float32(0.15)
_SPILL = np.float32(0.13)  # share of a pixel's light that comes from each neighbour in a row (point spread, resampling)


@dataclass(frozen=True)
class Day:
    """One overpass: the palette and the sun as a slope (rise per pixel towards the sun, rows and columns)."""

    palette: Palette
    sun: tuple[float, float]


class Ground:
    """The land with its noises: renders any window, and every window equals the whole."""

    def __init__(self, landscape: Landscape, seed: int) -> None:
        """Draw the noise tiles of a province."""
        rng = np.random.default_rng([seed, 2])
        self.landscape = landscape
        self._coarse = NoiseField.draw(rng, (18.0, 500.0), 1.3)
        self._medium = NoiseField.draw(rng, (5.0, 14.0), 0.8, tiles=1)
        self._fine = NoiseField.draw(rng, (0.5, 3.0), 0.2, tiles=1)
        self._grain = (
            NoiseField.draw(rng, (1.0, 60.0), 0.7, tiles=1),
            NoiseField.draw(rng, (1.0, 40.0), 0.6, tiles=1),
        )
        relief = NoiseField.draw(rng, (9.0, 220.0), 1.7)
        self._slope = (relief.gradient(0), relief.gradient(1))
        self._region = NoiseField.draw(rng, (120.0, 700.0), 1.2)

    def reflectance(self, day: Day, rows: range, cols: range) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Reflectance float32 [6, rows, cols] and open water [rows, cols] of a window of home-grid pixels.

        Rows and columns may pass the border: the land beyond is the mirrored land within.
        """
        r, c = range(rows.start - 1, rows.stop + 1), range(cols.start - 1, cols.stop + 1)
        element = self.landscape.window(r, c).astype(np.intp)
        palette = day.palette
        place = palette.fraction.take(element)
        for amount, field in zip(palette.mixing, (self._coarse, self._medium, self._fine), strict=True):
            place += amount.take(element) * field.block(r, c)
        np.clip(place, 0.0, 1.0, out=place)
        region = self._region.block(r, c)
        shade = self._shade(day, r, c, region) * palette.relief.take(element)
        grain = palette.texture.take(element)
        bright, leaf = (field.block(r, c) * grain for field in self._grain)
        out = np.empty((6, len(rows), len(cols)), dtype=np.float32)
        for band in range(6):
            value = palette.step[band].take(element)
            value *= place
            value += palette.base[band].take(element)
            value *= np.maximum(
                1.0 + _GRAIN[0, band] * bright + _GRAIN[1, band] * leaf + shade + _REGION[band] * region, _DARKEST
            )
            out[band] = _spread(value)
        return out, palette.water.take(element[1:-1, 1:-1])

    def _shade(self, day: Day, r: range, c: range, region: FloatArray) -> FloatArray:
        """Relative brightness of slopes: hills in some parts of the province, plains in others."""
        hills = np.clip(0.5 + 0.6 * region, 0.06, 1.6)
        down, right = self._slope
        slope = np.float32(day.sun[0]) * down.block(r, c) + np.float32(day.sun[1]) * right.block(r, c)
        value: FloatArray = np.clip(slope * hills, -0.45, 0.45)
        return value


def _spread(value: FloatArray) -> FloatArray:
    """3 x 3 point spread; the result is one pixel smaller on every side."""
    centre = np.float32(1.0) - 2 * _SPILL
    value = value[1:-1] * centre + (value[:-2] + value[2:]) * _SPILL
    result: FloatArray = value[:, 1:-1] * centre + (value[:, :-2] + value[:, 2:]) * _SPILL
    return result
