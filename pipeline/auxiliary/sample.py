"""`sample_auxiliary`: one row of predictors for every event, the same in training and in a run.

What would give the answer away is refused, and there is no key to allow it:

- layers of Global Forest Change (`lossyear`, `gain`, `treecover2000`, ...) and others whose name or file says loss,
  deforestation, drivers or labels. ForestNet's authors took `gain` out of their predictors as temporal leakage;
- the very files that the loss or the labels were made from, which the caller names.

A missing value (no data, outside the raster, an empty layer) is NaN, never 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.errors import RasterioError, RasterioIOError

from pipeline.auxiliary.rasters import WIDTH, RasterSampler
from pipeline.auxiliary.vectors import distance_km, share_inside
from pipeline.config import Auxiliary
from pipeline.errors import ConfigError
from pipeline.grid import read_vector, reproject

if TYPE_CHECKING:
    from geopandas import GeoSeries
    from numpy.typing import NDArray

    from pipeline.models.card import RegionSpec

LEAKS = (
    "lossyear", "yearloss", "forestloss", "treeloss", "coverloss", "treecover", "deforestation", "hansen", "driver",
    "label",
)  # fmt: skip
"""Found anywhere in a predictor's name or file name (letters and digits only), these refuse it."""
LEAK_WORDS = ("loss", "gain", "gfc", "prodes", "glad", "radd")
"""The same as words: `gain.tif` and `gfc_2023.tif`, not `again.tif`."""


def refuse_leaks(specs: Sequence[Auxiliary], made_labels: Mapping[str, Path]) -> None:
    """Refuse predictors that hold the answer.

    Args:
        specs: the predictors asked for.
        made_labels: what the loss and the labels were made from: a name for the error (`loss.source`) -> file.

    Raises:
        ConfigError: naming the predictor and why.
    """
    for spec in specs:
        for text in (spec.name, spec.path.stem):
            words = re.split(r"[^a-z]+", text.lower())
            joined = re.sub(r"[^a-z0-9]", "", text.lower())
            found = [leak for leak in LEAKS if leak in joined] + [word for word in LEAK_WORDS if word in words]
            if found:
                raise ConfigError(
                    f"auxiliary {spec.name} ({spec.path.name}): {found[0]!r} says that it comes from the loss or its "
                    "labels, from which a model would read the answer; remove it"
                )
        for key, path in made_labels.items():
            if spec.path.resolve() == path.resolve() or _same_file(spec.path, path):
                raise ConfigError(
                    f"auxiliary {spec.name} ({spec.path.name}): is also {key}, so a model would read the answer from "
                    "it; remove it"
                )


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def match_columns(region: RegionSpec | None, specs: Sequence[Auxiliary], model: str) -> list[str]:
    """Hold the predictors given against those a model's region head wants; return warnings about unused ones.

    Raises:
        ConfigError: one is not given, or is measured otherwise than in training; names the key to add.
    """
    given = {column: spec for spec in specs for column in spec.columns}
    wanted = region.auxiliary if region else ()
    for column in wanted:
        spec = given.get(column.name)
        measure = column.measure or "..."
        if spec is None:
            name = re.sub(r"_(sin|cos)$", "", column.name) if measure == "aspect" else column.name
            raise ConfigError(
                f"auxiliary: model {model} wants {column.name!r}, which the configuration does not give; add "
                f"{{name: {name}, path: FILE, measure: {measure}}} to the list `auxiliary`"
            )
        if column.measure and spec.measure != column.measure:
            raise ConfigError(
                f"auxiliary {spec.name}: measure {spec.measure} is not the {column.measure} that model {model} was "
                "trained with; set that"
            )
    names = {column.name for column in wanted}
    return [
        f"auxiliary {spec.name}: model {model} does not use it"
        for spec in specs
        if not names.intersection(spec.columns)
    ]


def sample_auxiliary(
    geometries: GeoSeries, specs: Sequence[Auxiliary], made_labels: Mapping[str, Path]
) -> pd.DataFrame:
    """Sample predictors for polygons of any CRS: float64 [events, columns], NaN = missing, the index of `geometries`.

    Every file is opened once. Units: those of the raster (`mean`), degrees (`slope`), sine and cosine of the downhill
    bearing (`aspect`), km (`distance`), 0..1 (`share`).

    Args:
        geometries: polygons with a CRS.
        specs: what to sample.
        made_labels: files that the loss or the labels come from, refused as predictors; see `refuse_leaks`.

    Raises:
        ConfigError: for a leak, a file that is missing, unreadable or has no CRS, or a band that is not there.
    """
    refuse_leaks(specs, made_labels)
    if geometries.crs is None:
        raise ConfigError("auxiliary: the events have no CRS; assign one")
    columns: dict[str, NDArray[np.float64]] = {}
    by_file: dict[tuple[Path, str | None], list[Auxiliary]] = defaultdict(list)
    for spec in specs:
        if not spec.path.exists():
            raise ConfigError(f"auxiliary {spec.name} {spec.path}: no such file")
        by_file[spec.path, spec.layer].append(spec)
    for group in by_file.values():
        columns |= _sample_file(geometries, group)
    order = [column for spec in specs for column in spec.columns]
    return pd.DataFrame({name: columns[name] for name in order}, index=geometries.index, dtype=np.float64)


def _sample_file(geometries: GeoSeries, specs: list[Auxiliary]) -> dict[str, NDArray[np.float64]]:
    first = specs[0]
    distant = [spec for spec in specs if spec.measure == "distance"]
    if len(distant) < len(specs):
        try:
            raster = rasterio.open(first.path)
        except RasterioIOError as error:
            if any(spec.measure not in ("distance", "share") for spec in specs):
                raise ConfigError(f"auxiliary {first.name} {first.path}: cannot be read as a raster") from error
        else:
            with raster:
                if distant:
                    raise ConfigError(
                        f"auxiliary {distant[0].name} {first.path}: distance needs a vector layer, not a raster"
                    )
                return _sample_raster(geometries, raster, specs)
    return _sample_vector(geometries, specs)


def _sample_raster(geometries: GeoSeries, raster: Any, specs: list[Auxiliary]) -> dict[str, NDArray[np.float64]]:
    name = f"auxiliary {specs[0].name} {specs[0].path}"
    if raster.crs is None:
        raise ConfigError(f"{name}: has no CRS; assign one and save it again")
    for spec in specs:
        if spec.band > raster.count:
            raise ConfigError(f"auxiliary {spec.name} {spec.path}: band {spec.band} of {raster.count}")
        if spec.measure == "share" and raster.nodatavals[spec.band - 1] == 0:
            raise ConfigError(
                f"auxiliary {spec.name} {spec.path}: declares 0 as no data, so that 'outside' and 'not known' are the "
                "same; give it another no-data value"
            )
    shapes = reproject(np.asarray(geometries.values), geometries.crs, raster.crs)
    columns: dict[str, NDArray[np.float64]] = {}
    for band in sorted({spec.band for spec in specs}):
        own = [spec for spec in specs if spec.band == band]
        sampler = RasterSampler(raster, band, [spec.measure for spec in own])
        try:
            values = np.array([sampler.sample(shape) for shape in shapes]).reshape(len(shapes), sampler.columns)
        except RasterioError as error:
            raise ConfigError(f"{name}: cannot be read ({' '.join(str(error).split())})") from error
        ends = np.cumsum([WIDTH[spec.measure] for spec in own])[:-1]
        for spec, part in zip(own, np.split(values, ends, axis=1), strict=True):
            columns |= {column: part[:, k] for k, column in enumerate(spec.columns)}
    return columns


def _sample_vector(geometries: GeoSeries, specs: list[Auxiliary]) -> dict[str, NDArray[np.float64]]:
    first = specs[0]
    frame = read_vector(first.path, first.layer, f"auxiliary {first.name}").to_crs("EPSG:4326")
    features = np.asarray(frame.geometry.values)
    features = features[~(shapely.is_missing(features) | shapely.is_empty(features))]
    events = np.asarray(geometries.to_crs("EPSG:4326").values)
    columns: dict[str, NDArray[np.float64]] = {}
    for spec in specs:
        measured = distance_km if spec.measure == "distance" else share_inside
        columns[spec.name] = measured(events, features)
    return columns
