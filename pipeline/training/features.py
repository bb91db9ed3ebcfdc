"""Features of events for the baselines: place, year, statistics of the visible bands, auxiliary predictors.

Missing stays missing (NaN): scikit-learn's random forest sends NaN down a branch of its own; nearest neighbours cannot,
so they get features that are never missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import InputError
from pipeline.training.splits import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.training.datasets.base import DriverDataset, Look

VISIBLE = ("red", "green", "blue")
STATISTICS = ("min", "max", "mean", "std")
LookRule = Literal["composite", "closest_year"]


@dataclass(frozen=True)
class Features:
    """float64 `values` [n, f] with column `names`, one row an event; `reasons` [n] why a row is not there ("" = is)."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    reasons: NDArray[np.object_]


def place(events: pd.DataFrame, year: bool = False) -> Features:
    """Features latitude and longitude in degrees, and the loss year where asked."""
    names = ("latitude", "longitude", "loss_year") if year else ("latitude", "longitude")
    return Features(names, events[list(names)].to_numpy(np.float64), _faults(events))


def sphere(events: pd.DataFrame) -> Features:
    """Features x, y, z on the unit sphere: nearest neighbours by them are nearest on the ground."""
    points = unit_vectors(events["latitude"].to_numpy(float), events["longitude"].to_numpy(float))
    return Features(("x", "y", "z"), points, _faults(events))


def visible(dataset: DriverDataset, rule: LookRule = "composite") -> Features:
    """Features min, max, mean, std of red, green, blue over the event's region and over the chip around it.

    `rule` chooses the look: the composite, or the single scene of the year closest to the loss (the composite where
    there is none). An event whose files cannot be read, or without an observed pixel, has a reason in place of
    features. Raises InputError where the data set has no visible bands.
    """
    lacking = [band for band in VISIBLE if band not in dataset.bands]
    if lacking:
        raise InputError(f"{dataset.name}: features `visible` need the bands {', '.join(lacking)}")
    events, bands = dataset.events, [dataset.bands.index(band) for band in VISIBLE]
    names = tuple(f"{area} {band} {s}" for area in ("region", "chip") for band in VISIBLE for s in STATISTICS)
    values, reasons = np.full((len(events), len(names)), np.nan), _faults(events)
    reach = round(dataset.chip_m / dataset.resolution)
    usable = events[reasons == ""]
    for image, own in usable.groupby("image", sort=True):
        looks, regions, read = dataset.looks(int(image)), None, {}
        for at, number, year in zip(own.index, own["number"], own["loss_year"], strict=True):
            look = choose_look(looks, int(year)) if rule == "closest_year" else 0
            try:
                if regions is None:
                    regions = dataset.regions(int(image))
                if look not in read:
                    read[look] = dataset.read(int(image), look)[bands]
            except InputError as error:
                reasons[at] = str(error)
                continue
            row = _statistics(read[look], regions == number, reach)
            if row is None:
                reasons[at] = "no observed pixel in the region"
            else:
                values[at] = row
    return Features(names, values, reasons)


def with_auxiliary(features: Features, dataset: DriverDataset) -> Features:
    """Add the data set's auxiliary predictors to features; raises InputError where it has none."""
    if dataset.auxiliary is None:
        raise InputError(f"{dataset.name}: has no auxiliary predictors; use features `visible`")
    names = (*features.names, *(str(name) for name in dataset.auxiliary.columns))
    values = np.column_stack([features.values, dataset.auxiliary.to_numpy(np.float64)])
    return Features(names, values, features.reasons)


def choose_look(looks: Sequence[Look], year: int) -> int:
    """Return the index of the single scene of the year closest to `year`, the least cloudy then the earliest; or 0."""
    dated = [(abs(look.date.year - year), look.cloud or 0.0, look.date, k) for k, look in enumerate(looks) if look.date]
    return min(dated)[-1] if dated else 0


def _statistics(image: NDArray[np.float32], region: NDArray[np.bool_], reach: int) -> list[float] | None:
    """Statistics of bands [3, H, W] over the region and over the `reach` pixels around it; None if unobserved."""
    seen = np.isfinite(image).all(axis=0)
    if not (seen & region).any():
        return None
    rows, columns = np.nonzero(region)
    window = tuple(
        _window((int(axis.min()) + int(axis.max())) // 2, reach, size)
        for axis, size in ((rows, region.shape[0]), (columns, region.shape[1]))
    )
    chip = np.zeros_like(seen)
    chip[window] = True
    out: list[float] = []
    for own in (seen & region, seen & (chip | region)):
        for band in image[:, own].astype(np.float64):
            out += [float(band.min()), float(band.max()), float(band.mean()), float(band.std())]
    return out


def _window(centre: int, reach: int, size: int) -> slice:
    """The `reach` pixels around a centre, moved inside the image where they fit."""
    start = max(0, min(centre - reach // 2, size - reach))
    return slice(start, start + reach)


def _faults(events: pd.DataFrame) -> NDArray[np.object_]:
    return np.array(events["fault"].to_numpy(dtype=object), copy=True)
