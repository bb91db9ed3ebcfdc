"""The simulator's table of materials agrees with the real scenes it was read from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from pipeline.simulate.spectra import MATERIALS, Material

Reflectance = NDArray[np.float64]

RULES: dict[str, Callable[[Reflectance, Reflectance, Reflectance], NDArray[np.bool_]]] = {
    "forest": lambda s, v, _: (v > 0.8) & (s[3] > 0.2) & (s[4] < 0.16),
    "secondary": lambda s, v, _: (v > 0.75) & (s[3] > 0.28) & (s[4] > 0.16) & (s[4] < 0.2),
    "palm": lambda s, v, _: (v > 0.7) & (s[3] > 0.3) & (s[4] > 0.19),
    "shrub": lambda s, v, _: (v > 0.6) & (v < 0.72) & (s[4] > 0.18) & (s[3] > 0.22),
    "grass": lambda s, v, _: (v > 0.42) & (v < 0.6) & (s[4] > 0.22) & (s[3] > 0.2) & (s[0] < 0.08),
    "dry_grass": lambda s, v, _: (v > 0.3) & (v < 0.42) & (s[4] > 0.27) & (s[0] < 0.1),
    "bare": lambda s, v, _: (v > 0.1) & (v < 0.28) & (s[4] > 0.28) & (s[2] > 0.12) & (s[2] < 0.2) & (s[0] < 0.12),
    "bright": lambda s, v, _: (v < 0.2) & (s[4] > 0.33) & (s[2] > 0.22) & (s[0] < 0.25),
    "burnt": lambda s, v, w: (
        ((v > 0.1) & (v < 0.45) & (s[3] > 0.08) & (s[3] < 0.18))
        & ((s[4] > 0.12) & (s[4] < 0.24) & (s[2] < 0.1) & (w < 0))
    ),
    "built": lambda s, v, _: (v > 0.05) & (v < 0.25) & (s[0] > 0.08) & (s[4] > 0.15) & (s[4] < 0.3),
    "dark_water": lambda s, _, w: (w > 0.3) & (s[3] < 0.06) & (s[2] < 0.035),
    "turbid_water": lambda s, _, w: (w > 0.3) & (s[3] < 0.1) & (s[2] > 0.07),
    "silty_water": lambda s, _, w: (w > 0.3) & (s[3] < 0.1) & (s[2] > 0.07),
    "cloud": lambda s, *_: (s[0] > 0.35) & (s[3] > 0.4),
}


def reflectance(shared_data: Path, scene: str) -> tuple[Reflectance, NDArray[np.bool_]]:
    """Six bands [6, rows, cols] of one scene, and where they are valid and (with a QA_PIXEL) clear."""
    single = list(shared_data.glob(f"*/{scene}.tif"))
    if single:  # Collection 1: one int16 file, scale 0.0001
        with rasterio.open(single[0]) as dataset:
            number = dataset.read()
        return number * 1e-4, (number > -2000).all(axis=0)
    first = sorted(shared_data.glob(f"**/georeferenced/**/{scene}_SR_B2.TIF")) or sorted(
        shared_data.glob(f"**/{scene}_SR_B2.TIF")
    )
    bands = []
    for band in range(2, 8):
        with rasterio.open(first[0].with_name(f"{scene}_SR_B{band}.TIF")) as dataset:
            bands.append(dataset.read(1))
    number = np.stack(bands)
    valid = (number > 0).all(axis=0)
    quality = first[0].with_name(f"{scene}_QA_PIXEL.TIF")
    if quality.is_file():
        with rasterio.open(quality) as dataset:
            valid &= np.isin(dataset.read(1), (21824, 21952))
    return number * 0.0000275 - 0.2, valid


def chosen(shared_data: Path, name: str, material: Material) -> Reflectance:
    """Real pixels [6, n] that meet a material's rule in its scene."""
    spectrum, valid = reflectance(shared_data, material.scene)
    green, red, nir, swir = spectrum[1], spectrum[2], spectrum[3], spectrum[4]
    with np.errstate(divide="ignore", invalid="ignore"):
        ndvi, mndwi = (nir - red) / (nir + red), (green - swir) / (green + swir)
    pixels: Reflectance = spectrum[:, valid & RULES[name](spectrum, ndvi, mndwi)]
    return pixels


def test_every_material_has_a_rule() -> None:
    assert RULES.keys() == MATERIALS.keys()


@pytest.mark.parametrize("name", MATERIALS)
def test_a_material_is_the_median_of_real_pixels(name: str, shared_data: Path) -> None:
    pixels = chosen(shared_data, name, MATERIALS[name])
    assert pixels.shape[1] >= 100
    stated = np.array(MATERIALS[name].reflectance)
    low, high = np.percentile(pixels, (1, 99), axis=1)
    assert (low <= stated).all()
    assert (stated <= high).all()
    # the table holds medians to three decimals
    np.testing.assert_allclose(stated, np.median(pixels, axis=1), atol=0.0011)
