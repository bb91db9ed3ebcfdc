"""The files of one event of a simulated archive, as ForestNet publishes them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from pipeline.simulate.noise import FloatArray

Naming = Literal["irvin", "tudelft"]
SIDE = 332
PATH_REFLECTANCE = np.array([0.055, 0.045, 0.033, 0.01, 0.0, 0.0], np.float32)
"""What the atmosphere adds over a clear day, blue .. swir22: the archive is top of atmosphere, our land is not."""
CLIMATE = (
    "albedo", "clear-sky_downward_longwave_flux", "clear-sky_downward_solar_flux", "clear-sky_upward_longwave_flux",
    "clear-sky_upward_solar_flux", "direct_evaporation_bare_soil", "downward_longwave_radiation_flux",
    "downward_shortwave_radiation_flux", "ground_heat_net_flux", "latent_heat_net_flux", "max_specific_humidity",
    "min_specific_humidity", "potential_evaporation_rate", "prec", "sensible_heat_net_flux", "soilmoist1",
    "soilmoist2", "soilmoist3", "soilmoist4", "specific_humidity", "sublimation", "surface_pressure", "tavg", "tmax",
    "tmin", "u_wind_10m", "upward_longwave_radiation_flux", "upward_shortwave_radiation_flux", "v_wind_10m",
    "water_runoff",
)  # fmt: skip
"""Bands of the climate product; each gives min, max and avg, the three temperatures one value: 84 in all."""


def climate_names() -> tuple[str, ...]:
    """Return the 84 file stems of Irvin's naming, in the order of the one array of the other naming."""
    names: list[str] = []
    for band in CLIMATE:
        names += [band] if band in ("tavg", "tmax", "tmin") else [f"{band}_{how}" for how in ("min", "max", "avg")]
    return tuple(names)


@dataclass(frozen=True)
class Surroundings:
    """Auxiliary predictors of one event.

    Attributes:
        terrain: int16 [3, 166, 166]: altitude (m), aspect and slope (0.01 degree).
        gain: uint8 [166, 166], forest gain after the loss: there because the archive has it, and a leak.
        street: nearest road, (lat, lon).
        city: nearest village, (lat, lon), None where the province has none.
        peat: whether the event lies on peat.
        climate: float64 [84].
    """

    terrain: NDArray[np.int16]
    gain: NDArray[np.uint8]
    street: tuple[float, float] | None
    city: tuple[float, float] | None
    peat: bool
    climate: NDArray[np.float64]


def write_region(path: Path, region: BaseGeometry) -> None:
    """Write a polygon in pixels (x right, y down) byte for byte as shapely 1.8 pickles it with protocol 3."""
    kind = region.geom_type
    data = shapely.to_wkb(region)
    size = b"C" + bytes([len(data)]) if len(data) < 256 else b"B" + struct.pack("<I", len(data))
    name = f"cshapely.geometry.{kind.lower()}\n{kind}\n".encode()
    path.write_bytes(b"\x80\x03" + name + b"q\x00)Rq\x01" + size + data + b"q\x02b.")


def write_look(images: Path, stem: str, reflectance: FloatArray) -> None:
    """Write one look: float32 [6, 166, 166] surface reflectance, NaN = not observed, to 8 bits at 15 m."""
    grey = np.nan_to_num((reflectance + PATH_REFLECTANCE[:, None, None]) * 255, nan=0.0)
    bytes_ = np.rint(grey).clip(0, 255).astype(np.uint8)
    # the archive's visible bands are sharpened by the panchromatic one; here they are only smooth
    visible = Image.fromarray(np.ascontiguousarray(bytes_[2::-1].transpose(1, 2, 0)))
    visible.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(images / "visible" / f"{stem}.png", compress_level=1)
    np.save(images / "infrared" / f"{stem}.npy", _finer(bytes_[3:]).transpose(1, 2, 0))


def write_surroundings(folder: Path, around: Surroundings, naming: Naming) -> None:
    """Write `auxiliary/` in one of the two published namings; both hold the same numbers."""
    folder.mkdir(parents=True)
    terrain, gain = _finer(around.terrain), _finer(around.gain)
    places = {
        f"closest_{what}": {"lat": str(place[0]), "lon": str(place[1])}
        for what, place in (("street", around.street), ("city", around.city))
        if place is not None
    }
    (folder / "peat.json").write_text(json.dumps({"peat": around.peat}), encoding="utf-8")
    if naming == "tudelft":
        (folder / "osm.json").write_text(json.dumps(places), encoding="utf-8")
        np.save(folder / "srtm.npy", terrain)
        np.save(folder / "ncep.npy", around.climate)
        np.save(folder / "gfc.npy", np.stack([gain, 100 - 0 * gain])[:, None])
        return
    for name, record in places.items():
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    for name, layer in zip(("altitude", "aspect", "slope"), terrain, strict=True):
        np.save(folder / f"{name}.npy", layer)
    (folder / "ncep").mkdir()
    for name, value in zip(climate_names(), around.climate, strict=True):
        np.save(folder / "ncep" / f"{name}.npy", np.array(value))
    np.save(folder / "gain.npy", gain)


def _finer[T: np.generic](array: NDArray[T]) -> NDArray[T]:
    """30 m to 15 m: every pixel becomes four."""
    return np.repeat(np.repeat(array, 2, axis=-2), 2, axis=-1)
