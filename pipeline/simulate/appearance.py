"""What each kind of ground looks like on a day: stages of materials by years since clearing, tone and texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.spectra import MATERIAL_INDEX, material_table

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A ground's life: `stages` of materials reached at `ages` (years since clearing), and how it varies.

    `mixing` are the weights of coarse, medium and fine noise on the way from one stage to the next; `texture` and
    `relief` scale the multiplicative grain and the sun shading; `tone` is the spread between objects. A `cycle`
    (years) makes the stages repeat, as crops do.
    """

    stages: tuple[str, ...]
    ages: tuple[float, ...] = (0.0,)
    mixing: tuple[float, float, float] = (0.05, 0.05, 0.05)
    texture: float = 0.06
    relief: float = 0.6
    tone: float = 0.07
    cycle: float | None = None
    water: bool = False


KINDS: dict[str, Kind] = {
    "forest": Kind(("forest", "secondary"), (-30.0, 20.0), (0.22, 0.10, 0.10), 0.095, 1.0, 0.0),
    "river": Kind(("silty_water", "turbid_water"), (-10.0, 30.0), (0.15, 0.05, 0.0), 0.03, 0.0, 0.05, water=True),
    "lake": Kind(("dark_water", "silty_water"), (-10.0, 60.0), (0.15, 0.05, 0.0), 0.05, 0.0, 0.05, water=True),
    "road": Kind(("bare", "bare", "grass"), (0.0, 3.0, 14.0), (0.0, 0.05, 0.15), 0.10, 0.4, 0.08),
    "village": Kind(("built", "shrub", "bare"), (-30.0, 20.0, 80.0), (0.1, 0.15, 0.45), 0.16, 0.3, 0.08),
    "palm": Kind(("bare", "grass", "shrub", "palm"), (0.0, 0.8, 2.0, 4.5), (0.06, 0.08, 0.10), 0.07, 0.7),
    "terraced_palm": Kind(("bare", "grass", "shrub", "palm"), (0.3, 1.1, 2.6, 5.5), (0.10, 0.28, 0.10), 0.09, 0.9),
    "acacia": Kind(("burnt", "bare", "shrub", "secondary"), (0.0, 0.35, 1.2, 3.0), (0.06, 0.08, 0.08), 0.06, 0.7),
    "field": Kind(("bare", "grass", "shrub", "grass", "dry_grass"), (0.0,), (0.05, 0.12, 0.16), 0.09, 0.6, 0.10, 1.3),
    "wet_field": Kind(("silty_water", "grass", "shrub", "dry_grass"), (0.0,), (0.05, 0.1, 0.1), 0.07, 0.2, 0.08, 0.8),
    "garden": Kind(
        ("burnt", "grass", "shrub", "palm", "secondary"), (0.0, 0.4, 1.2, 3.5, 8.0), (0.08, 0.2, 0.22), 0.10, 0.7, 0.09
    ),
    "grassland": Kind(("bare", "grass", "shrub"), (-0.4, 0.5, 6.0), (0.35, 0.28, 0.10), 0.07, 0.9, 0.06),
    "burnt_grass": Kind(
        ("burnt", "dry_grass", "grass", "shrub"), (0.0, 0.5, 1.2, 7.0), (0.3, 0.25, 0.1), 0.07, 0.9, 0.06
    ),
    "pit": Kind(("bright", "bright", "bare"), (0.0, 2.0, 9.0), (0.1, 0.25, 0.25), 0.10, 0.5, 0.10),
    "spoil": Kind(("bare", "bright", "grass"), (0.0, 1.5, 6.0), (0.1, 0.25, 0.25), 0.10, 0.6, 0.10),
    "mine_pond": Kind(("bright", "turbid_water", "silty_water"), (0.0, 0.4, 12.0), (0.05, 0.1, 0.1), 0.05, 0.0, 0.1),
    "logging_road": Kind(("bare", "bare", "grass", "shrub"), (0.0, 0.8, 2.0, 4.5), (0.05, 0.15, 0.2), 0.10, 0.6, 0.09),
    "gap": Kind(
        ("dry_grass", "shrub", "secondary", "forest"), (0.0, 0.5, 1.6, 7.0), (0.05, 0.15, 0.2), 0.10, 0.8, 0.09
    ),
    "pond": Kind(
        ("bare", "silty_water", "dark_water"), (0.0, 0.45, 5.0), (0.05, 0.1, 0.05), 0.06, 0.0, 0.2, water=True
    ),
    "dike": Kind(("bare", "bare", "grass"), (0.0, 1.5, 5.0), (0.05, 0.1, 0.2), 0.09, 0.3, 0.08),
}

KIND_INDEX: dict[str, int] = {name: index for index, name in enumerate(KINDS)}
FOREST = KIND_INDEX["forest"]


@dataclass(frozen=True)
class Elements:
    """Every part of the landscape by its number; element 0 is the forest.

    Attributes:
        kind: index into KINDS.
        driver: driver code 1..4, or 255 where the part is no loss.
        year: loss year (0 where no loss).
        cleared: clearing time in years (2020.5 is mid 2020).
        phase: 0..1, place in the crop cycle.
        rate: pace of growth around 1.
        tone: brightness and greenness of the part, around 0, in units of the kind's spread.
    """

    kind: NDArray[np.int16]
    driver: NDArray[np.uint8]
    year: NDArray[np.int16]
    cleared: NDArray[np.float64]
    phase: NDArray[np.float64]
    rate: NDArray[np.float64]
    tone: NDArray[np.float64]


@dataclass(frozen=True)
class Palette:
    """How every element looks on one day; float32 tables indexed by element number.

    `base` [6, n] is the reflectance of the stage reached, `step` [6, n] the way to the next one, `fraction` [n] how
    far along; `mixing` [3, n], `texture` and `relief` [n] scale the noises; `water` [n] says open water.
    """

    base: FloatArray
    step: FloatArray
    fraction: FloatArray
    mixing: FloatArray
    texture: FloatArray
    relief: FloatArray
    water: NDArray[np.bool_]


_BRIGHTNESS = np.array([1.0, 1.0, 1.1, 0.7, 0.8, 0.9])
_GREENNESS = np.array([-0.5, -0.3, -0.7, 0.6, -0.2, -0.5])


def _position(kind: Kind, age: NDArray[np.float64], phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place along the stages, 0 .. len(stages) - 1 (cyclic kinds wrap to the first stage)."""
    if kind.cycle is not None:
        return (age / kind.cycle + phase) % 1.0 * len(kind.stages)
    return np.interp(age, kind.ages, np.arange(len(kind.stages), dtype=np.float64))


def palette(elements: Elements, year: float, dryness: float) -> Palette:
    """Look of every element at time `year` (2020.5 is mid 2020); what is not yet cleared looks like forest."""
    materials = material_table(dryness)
    count = elements.kind.size
    age = year - elements.cleared
    kind = np.where(age < 0, FOREST, elements.kind)
    first, second = np.zeros(count, np.int64), np.zeros(count, np.int64)
    fraction, mixing = np.zeros(count), np.zeros((3, count))
    texture, relief, tone = np.zeros(count), np.zeros(count), np.zeros(count)
    for name, spec in KINDS.items():
        mine = np.flatnonzero(kind == KIND_INDEX[name])
        stages = np.array([MATERIAL_INDEX[s] for s in spec.stages])
        place = _position(spec, age[mine] * elements.rate[mine], elements.phase[mine])
        if name == "forest":
            place = np.full(mine.size, 0.3)
        whole = np.minimum(np.floor(place).astype(np.int64), len(stages) - (2 if spec.cycle is None else 1))
        whole = np.maximum(whole, 0)
        first[mine], second[mine] = stages[whole], stages[(whole + 1) % len(stages)]
        fraction[mine] = place - whole
        mixing[:, mine] = np.array(spec.mixing)[:, None]
        texture[mine], relief[mine], tone[mine] = spec.texture, spec.relief, spec.tone
    spread = elements.tone * tone[:, None]
    factor = 1.0 + spread[:, :1] * _BRIGHTNESS + spread[:, 1:] * _GREENNESS
    base, end = materials[first] * factor, materials[second] * factor
    water = np.isin(first, [MATERIAL_INDEX[m] for m in ("dark_water", "silty_water", "turbid_water")]) & (
        fraction < 0.6
    )
    return Palette(
        base=np.ascontiguousarray(base.T, dtype=np.float32),
        step=np.ascontiguousarray((end - base).T, dtype=np.float32),
        fraction=fraction.astype(np.float32),
        mixing=mixing.astype(np.float32),
        texture=texture.astype(np.float32),
        relief=relief.astype(np.float32),
        water=water,
    )
