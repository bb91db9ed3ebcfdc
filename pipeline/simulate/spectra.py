"""Surface reflectance of materials in six Landsat bands, measured once in real scenes.

Each number is the median, over all pixels of one real scene that meet one index rule, of Collection 2 surface
reflectance (Collection 1 for Porto Velho). The rules name the bands B G R N S1 S2 (blue, green, red, nir08, swir16,
swir22), NDVI = (N - R) / (N + R) and MNDWI = (G - S1) / (G + S1). `tests/real/test_spectra.py` applies the same rules
to the same scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIMULATED_BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")


@dataclass(frozen=True)
class Material:
    """Median reflectance (six bands, unitless) of one ground material, with the scene and the rule it was read by."""

    reflectance: tuple[float, float, float, float, float, float]
    scene: str
    rule: str


_MANAUS = "LC09_L2SP_231062_20230723_20230802_02_T1"
_BRUMADINHO = "LC08_L2SP_218074_20190130_20200829_02_T1"
_COLOMBIA = "LC08_L2SP_008059_20191201_20200825_02_T1"
_PORTO_VELHO = "LC08_232066_20190727"

MATERIALS: dict[str, Material] = {
    "forest": Material((0.020, 0.041, 0.025, 0.310, 0.124, 0.047), _MANAUS, "NDVI > 0.8, N > 0.2, S1 < 0.16"),
    "secondary": Material(
        (0.028, 0.048, 0.034, 0.326, 0.171, 0.074), _PORTO_VELHO, "NDVI > 0.75, N > 0.28, 0.16 < S1 < 0.2"
    ),
    "palm": Material((0.028, 0.065, 0.048, 0.388, 0.219, 0.095), _COLOMBIA, "NDVI > 0.7, N > 0.3, S1 > 0.19"),
    "shrub": Material(
        (0.038, 0.063, 0.061, 0.292, 0.226, 0.116), _PORTO_VELHO, "0.6 < NDVI < 0.72, S1 > 0.18, N > 0.22"
    ),
    "grass": Material(
        (0.047, 0.075, 0.086, 0.270, 0.271, 0.160), _PORTO_VELHO, "0.42 < NDVI < 0.6, S1 > 0.22, N > 0.2, B < 0.08"
    ),
    "dry_grass": Material(
        (0.060, 0.092, 0.114, 0.247, 0.308, 0.220), _PORTO_VELHO, "0.3 < NDVI < 0.42, S1 > 0.27, B < 0.1"
    ),
    "bare": Material(
        (0.080, 0.117, 0.146, 0.221, 0.307, 0.254),
        _PORTO_VELHO,
        "0.1 < NDVI < 0.28, S1 > 0.28, 0.12 < R < 0.2, B < 0.12",
    ),
    "bright": Material(
        (0.182, 0.231, 0.262, 0.322, 0.416, 0.354), _MANAUS, "NDVI < 0.2, S1 > 0.33, R > 0.22, B < 0.25"
    ),
    "burnt": Material(
        (0.029, 0.054, 0.083, 0.130, 0.158, 0.118),
        _BRUMADINHO,
        "0.1 < NDVI < 0.45, 0.08 < N < 0.18, 0.12 < S1 < 0.24, R < 0.1, MNDWI < 0",
    ),
    "built": Material(
        (0.103, 0.127, 0.139, 0.196, 0.262, 0.228), _MANAUS, "0.05 < NDVI < 0.25, B > 0.08, 0.15 < S1 < 0.3"
    ),
    "dark_water": Material((0.009, 0.019, 0.020, 0.012, 0.006, 0.004), _MANAUS, "MNDWI > 0.3, N < 0.06, R < 0.035"),
    "turbid_water": Material(
        (0.065, 0.113, 0.143, 0.054, 0.005, 0.004), _PORTO_VELHO, "MNDWI > 0.3, N < 0.1, R > 0.07"
    ),
    "silty_water": Material((0.038, 0.068, 0.085, 0.029, 0.010, 0.007), _MANAUS, "MNDWI > 0.3, N < 0.1, R > 0.07"),
    "cloud": Material((0.459, 0.484, 0.502, 0.609, 0.580, 0.478), _BRUMADINHO, "B > 0.35, N > 0.4"),
}

MATERIAL_INDEX: dict[str, int] = {name: index for index, name in enumerate(MATERIALS)}


def material_table(dryness: float) -> NDArray[np.float64]:
    """Reflectance [materials, 6] on a day of `dryness` 0 (wet) .. 1 (end of the dry season).

    Grass yellows and shrub thins as it gets dry; wet soil is darker, most of all in the shortwave infrared.
    """
    table = np.array([m.reflectance for m in MATERIALS.values()], dtype=np.float64)
    row = MATERIAL_INDEX
    grass, shrub = table[row["grass"]].copy(), table[row["shrub"]].copy()
    table[row["grass"]] = grass * (1 - 0.35 * dryness) + table[row["dry_grass"]] * 0.35 * dryness
    table[row["shrub"]] = shrub * (1 - 0.25 * dryness) + grass * 0.25 * dryness
    wet = 1.0 - (1.0 - dryness) * np.array([0.08, 0.08, 0.10, 0.10, 0.18, 0.20])
    table[row["bare"]] *= wet
    table[row["burnt"]] *= wet
    return table
