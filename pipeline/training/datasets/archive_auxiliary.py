"""Auxiliary predictors of one event of a ForestNet archive, whichever of the published namings it uses.

TU Delft: `osm.json`, `srtm.npy`, `ncep.npy`, `peat.json`. SuperCon: `slope.npy` with a leading axis. Irvin's code:
`altitude.npy`, `slope.npy`, `aspect.npy`, `closest_street.json`, `closest_city.json`, `ncep/<band>_<statistic>.npy`.
What is missing or cannot be read is NaN, never zero. Forest gain (`gain.npy`, `gfc.npy`) is never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyproj import Geod

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFUSED = {
    "gain": "GFC forest gain (gain.npy, gfc.npy) knows what grew after the loss: a leak of the answer",
    "label": "columns made from the label are the answer",
}
"""Predictors an archive offers and nobody gets, and why."""

_TERRAIN = {"altitude": ("m", 1.0, 0), "aspect": ("degree", 0.01, 1), "slope": ("degree", 0.01, 2)}
"""Layer to unit, unit of the stored numbers, and place in `srtm.npy`."""
_STATISTICS = ("min", "max", "mean", "std")
_TERRAIN_VOID = -32768
_NCEP_BANDS = (
    "albedo", "clear-sky_downward_longwave_flux", "clear-sky_downward_solar_flux", "clear-sky_upward_longwave_flux",
    "clear-sky_upward_solar_flux", "direct_evaporation_bare_soil", "downward_longwave_radiation_flux",
    "downward_shortwave_radiation_flux", "ground_heat_net_flux", "latent_heat_net_flux", "max_specific_humidity",
    "min_specific_humidity", "potential_evaporation_rate", "prec", "sensible_heat_net_flux", "soilmoist1",
    "soilmoist2", "soilmoist3", "soilmoist4", "specific_humidity", "sublimation", "surface_pressure", "tavg", "tmax",
    "tmin", "u_wind_10m", "upward_longwave_radiation_flux", "upward_shortwave_radiation_flux", "v_wind_10m",
    "water_runoff",
)  # fmt: skip
_TEMPERATURES = ("tavg", "tmax", "tmin")


def _ncep_names() -> tuple[str, ...]:
    """Climate predictors: three statistics a band, but temperatures are their own."""
    names: list[str] = []
    for band in _NCEP_BANDS:
        names += [band] if band in _TEMPERATURES else [f"{band}_{how}" for how in ("min", "max", "avg")]
    return tuple(names)


NCEP = _ncep_names()
"""The 84 climate predictors, in the order of the published code.

`ncep.npy` holds 84 numbers without names; that they come in this order is assumed, no text says so. A wrong order
would swap names of columns, the same way for every event, and change no value.
"""


def climate_column(name: str) -> str:
    """Return the column of a climate predictor: a name that may stand in a model card and a GeoPackage."""
    return f"ncep_{name.replace('-', '_')}"


UNITS: dict[str, str] = {
    **{f"{layer}_{how}": unit for layer, (unit, _, _) in _TERRAIN.items() for how in _STATISTICS},
    "peat": "0 or 1", "street_km": "km", "city_km": "km", **{climate_column(name): "as stored" for name in NCEP},
}  # fmt: skip
"""Every predictor and its unit. Aspect is taken as the paper does, as a plain number and not as an angle."""
_ELLIPSOID = Geod(ellps="WGS84")


@dataclass
class Auxiliary:
    """Predictors of one event by name (NaN = missing), and the files that were there but could not be read."""

    values: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNITS, np.nan))
    unreadable: list[Path] = field(default_factory=list)


def read_auxiliary(folder: Path, region: NDArray[np.bool_], place: tuple[float, float]) -> Auxiliary:
    """Return the predictors of an event: terrain over `region` (bool [H, W]), distances in km from (lat, lon)."""
    found = Auxiliary()
    for layer in _TERRAIN:
        _terrain(found, folder, layer, region)
    for name, values in _climate(found, folder):
        found.values[climate_column(name)] = values
    for what in ("street", "city"):
        found.values[f"{what}_km"] = _distance(_place(found, folder, what), place)
    peat = _json(found, folder / "peat.json")
    if isinstance(peat, dict) and isinstance(peat.get("peat"), bool):
        found.values["peat"] = float(peat["peat"])
    return found


def _terrain(found: Auxiliary, folder: Path, layer: str, region: NDArray[np.bool_]) -> None:
    _, scale, index = _TERRAIN[layer]
    single, stacked = folder / f"{layer}.npy", folder / "srtm.npy"
    path = single if single.is_file() else stacked
    array = _array(found, path)
    if array is None or not region.any():
        return
    if path == stacked:
        array = array[index] if array.ndim == 3 and len(array) == len(_TERRAIN) else array
    elif array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.shape != region.shape:
        found.unreadable.append(path)
        return
    # the file is mapped, so that only the rows of the region are read
    rows = np.flatnonzero(region.any(axis=1))
    part = slice(rows[0], rows[-1] + 1)
    values = np.asarray(array[part], np.float64)[region[part]]
    values = values[np.isfinite(values) & (values != _TERRAIN_VOID)] * scale
    if len(values):
        for how in _STATISTICS:
            found.values[f"{layer}_{how}"] = float(getattr(np, how)(values))


def _climate(found: Auxiliary, folder: Path) -> Iterator[tuple[str, float]]:
    together = folder / "ncep.npy"
    if together.is_file():
        array = _array(found, together)
        if array is not None and array.size == len(NCEP):
            yield from zip(NCEP, np.asarray(array, np.float64).ravel().tolist(), strict=True)
        elif array is not None:
            found.unreadable.append(together)
        return
    for name in NCEP:
        array = _array(found, folder / "ncep" / f"{name}.npy")
        if array is not None:
            numbers = np.asarray(array, np.float64)
            numbers = numbers[np.isfinite(numbers)]
            yield name, float(numbers.mean()) if len(numbers) else np.nan


def _place(found: Auxiliary, folder: Path, what: str) -> object:
    together = _json(found, folder / "osm.json")
    if isinstance(together, dict):
        return together.get(f"closest_{what}")
    return _json(found, folder / f"closest_{what}.json")


def _distance(there: object, here: tuple[float, float]) -> float:
    """Geodesic kilometres on WGS 84 between a record with lat and lon and (lat, lon); NaN where it names no place."""
    if not isinstance(there, dict):
        return np.nan
    try:
        latitude, longitude = float(there["lat"]), float(there["lon"])
    except (KeyError, TypeError, ValueError):
        return np.nan
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return np.nan
    return float(_ELLIPSOID.inv(here[1], here[0], longitude, latitude)[2]) / 1000


def _array(found: Auxiliary, path: Path) -> NDArray[np.generic] | None:
    """A numeric array, mapped and not read; None where there is none. Arrays of objects are pickles: refused."""
    if not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found.unreadable.append(path)
        return None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        found.unreadable.append(path)
        return None
    return array


def _json(found: Auxiliary, path: Path) -> object:
    if not path.is_file():
        return None
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found.unreadable.append(path)
        return None
    return value
