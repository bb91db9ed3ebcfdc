"""Sky over one scene: clouds with shadows, thin cloud, cirrus and haze, and the QA_PIXEL that tells of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.simulate.noise import spectral_noise
from pipeline.simulate.spectra import MATERIALS

FloatArray = NDArray[np.float32]

# QA_PIXEL values of Landsat 8/9 Collection 2 (USGS LSDS-1328 and LSDS-1619, and the real scene
# LC08_L2SP_008059_20191201_20200825_02_T1, whose dilated pixels leave the clear bit unset).
QA_FILL = 1
QA_CLEAR = 21824
QA_WATER = 21952
QA_MAYBE_CLOUD = 22080  # clear bit set, cloud confidence medium
QA_DILATED = 21762
QA_CLOUD = 22280
QA_SHADOW = 23888
QA_SHADOW_WATER = 23952
QA_SHADOW_DILATED = 23826
QA_CIRRUS = 54596
QA_CLOUD_CIRRUS = 55052
CLOUD_BIT = 1 << 3

_STEP = 4  # pixels between the points at which the sky is computed; bilinear between them
_RIM = 3  # pixels by which USGS dilates clouds
_DETAIL = 512
_CLOUD = np.array(MATERIALS["cloud"].reflectance, dtype=np.float32)
_HAZE = np.array([1.0, 0.75, 0.6, 0.25, 0.1, 0.05], dtype=np.float32)


@dataclass(frozen=True)
class SkyParams:
    """`cloud`: share of the scene under cloud, 0..1; `haze`: reflectance added in blue; `cirrus`: any today?

    `sun_elevation` and `sun_azimuth` in degrees place the shadows.
    """

    cloud: float
    haze: float
    cirrus: bool
    sun_elevation: float
    sun_azimuth: float


class Sky:
    """Sky over a grid of pixels; every window equals the whole."""

    def __init__(self, rng: np.random.Generator, inside: NDArray[np.bool_], params: SkyParams) -> None:
        """Draw the sky; `inside` is the scene outline [ceil(h / 4) + 2, ceil(w / 4) + 2] at every fourth pixel."""
        shape = (inside.shape[0], inside.shape[1])
        self._params = params
        large = spectral_noise(rng, shape, (6.0, 220.0), 1.5)
        small = spectral_noise(rng, shape, (5.0, 25.0), 1.0)
        # big decks and fair-weather puffs: puffs grow where the large field is high, as over warm land
        field = large + np.float32(0.55) * small * np.clip(1.2 + large, 0.2, 2.0).astype(np.float32)
        level = np.quantile(field[inside], 1.0 - np.clip(params.cloud, 0.0005, 0.98)) if inside.any() else 9.0
        self._cloud = (field - np.float32(level)).astype(np.float32)
        # what is finer than the points of the sky, shared by clouds and their shadows
        self._detail = spectral_noise(rng, (_DETAIL, _DETAIL), (2.0, 14.0), 1.3) * np.float32(0.16)
        height = rng.uniform(900.0, 2200.0)
        reach = height / np.tan(np.radians(params.sun_elevation)) / 30.0 / _STEP
        away = np.radians(params.sun_azimuth + 180.0)
        shift = (-reach * np.cos(away), reach * np.sin(away))
        self._shadow: FloatArray = ndimage.shift(self._cloud, shift, order=1, mode="reflect")
        self._haze = spectral_noise(rng, shape, (20.0, 400.0), 1.6)
        thin = spectral_noise(rng, shape, (4.0, 90.0), 1.4)
        self._thin = (thin - np.float32(np.quantile(thin, 0.97))).astype(np.float32)
        veil = spectral_noise(rng, shape, (10.0, 300.0), 1.7)
        self._veil = (veil - np.float32(np.quantile(veil, 0.9 if params.cirrus else 1.0))).astype(np.float32)

    def over(
        self, ground: FloatArray, water: NDArray[np.bool_], rows: range, cols: range
    ) -> tuple[FloatArray, NDArray[np.uint16]]:
        """Top of `ground` reflectance [6, h, w] seen through this sky, and QA_PIXEL uint16 [h, w] (no fill)."""
        wide = range(rows.start - _RIM, rows.stop + _RIM), range(cols.start - _RIM, cols.stop + _RIM)
        around = self._at(self._cloud, *wide) + self._texture(*wide)
        cloud, rim = around[_RIM:-_RIM, _RIM:-_RIM], _grown(around > 0)
        shadow, thin = self._at(self._shadow, rows, cols), self._at(self._thin, rows, cols)
        veil, haze = self._at(self._veil, rows, cols), self._at(self._haze, rows, cols)
        dark = np.float32(1.0) - np.float32(0.62) * np.clip(shadow * 2.2 + 0.25, 0, 1)
        body = np.clip(cloud * 1.6 + 0.22, 0, 1)
        body *= np.float32(0.97)
        puff = np.clip(thin * 1.0, 0, 0.33)
        high = np.clip(veil * 0.08, 0, 0.10)
        cover = np.float32(1.0) - (np.float32(1.0) - body) * (np.float32(1.0) - puff)
        bright = np.float32(0.62) + np.float32(0.38) * np.clip(cloud * 0.7, 0, 1)
        mist = np.float32(self._params.haze) * np.clip(1.0 + 0.5 * haze, 0.1, 2.5)
        out, spare = np.empty_like(ground), np.empty_like(dark)
        for band in range(6):
            # in place: allocating windows costs more than the arithmetic
            value = np.multiply(ground[band], dark, out=out[band])
            value += np.multiply(mist, _HAZE[band], out=spare)
            np.multiply(bright, _CLOUD[band], out=spare)
            spare -= value
            spare *= cover
            value += spare
            value += np.multiply(high, np.float32(0.9 if band < 4 else 0.5), out=spare)
        return out, self._qa(cloud, rim, shadow, thin, veil, water)

    def _qa(
        self,
        cloud: FloatArray,
        rim: NDArray[np.bool_],
        shadow: FloatArray,
        thin: FloatArray,
        veil: FloatArray,
        water: NDArray[np.bool_],
    ) -> NDArray[np.uint16]:
        qa = np.where(water, QA_WATER, QA_CLEAR).astype(np.uint16)
        qa[(thin > 0.12) & ~water] = QA_MAYBE_CLOUD  # the rest of the thin cloud is missed, as in life
        cirrus = veil > 0.25
        qa[cirrus] = QA_CIRRUS
        under = shadow > 0.0
        qa[under] = np.where(water[under], QA_SHADOW_WATER, QA_SHADOW)
        qa[rim] = np.where(under[rim], QA_SHADOW_DILATED, QA_DILATED)
        core = cloud > 0.0
        qa[core] = np.where(cirrus[core], QA_CLOUD_CIRRUS, QA_CLOUD)
        return qa

    def _texture(self, rows: range, cols: range) -> FloatArray:
        value: FloatArray = self._detail[np.arange(rows.start, rows.stop) % _DETAIL]
        return value[:, np.arange(cols.start, cols.stop) % _DETAIL]

    @staticmethod
    def _at(field: FloatArray, rows: range, cols: range) -> FloatArray:
        """Bilinear value at absolute pixels of the scene grid."""
        r, c = np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop)
        i, fi = r // _STEP + 1, ((r % _STEP) / _STEP).astype(np.float32)[:, None]
        j, fj = c // _STEP + 1, ((c % _STEP) / _STEP).astype(np.float32)[None, :]
        lines = field[i] + (field[i + 1] - field[i]) * fi
        left = lines[:, j]
        value: FloatArray = left + (lines[:, j + 1] - left) * fj
        return value


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dilate by a square of `_RIM` pixels each way; the result is that much smaller on every side."""
    for axis in (0, 1):
        span = mask.shape[axis] - 2 * _RIM
        mask = np.logical_or.reduce([mask.take(range(k, k + span), axis) for k in range(2 * _RIM + 1)])
    return mask


def sky_points(height: int, width: int) -> tuple[range, range]:
    """Rows and columns (pixels of the scene grid) at which the sky is computed: one point beyond every side."""
    return range(-_STEP, height + 3 * _STEP, _STEP), range(-_STEP, width + 3 * _STEP, _STEP)
