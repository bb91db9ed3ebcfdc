"""Splits of labelled events: published, random, and by blocks of land; and how much their chips overlap.

Neighbouring events share soil, owner and often cause, so a random split asks a model what it was told a kilometre away:
blocks ask what it knows about land it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pyproj import Geod

from pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

WGS84 = Geod(ellps="WGS84")
EARTH_KM = 6371.0072
"""Radius of the sphere of the Earth's area (authalic)."""
KM_PER_DEGREE = 110.6
"""Of latitude at the equator; with it, and blocks dealt largest first, `block_folds` gives the published figures of
location-only 1-NN on Cam-ForestNet to 0.001 (tests/real/test_location_baselines.py)."""
OVERLAP_WARNING = 0.05
"""Share of test chips that may overlap a training chip before a warning: beyond it the gain from pixels seen in
training is of the size of the differences that are reported between models (0.02 to 0.05)."""
_CHUNK = 2000
_NEAREST = 8
"""Candidates by straight line whose geodesic distance is measured; sphere and ellipsoid differ by 0.6 % at most."""

BlockShape = Literal["equal-area", "degrees"]


@dataclass(frozen=True)
class Fold:
    """Positions (int64) of training and test events in the event table; `test` keeps events at fault, to be counted."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """A named way to divide events; `blocks` int64 [n] is the block of each event, None where there are none."""

    name: str
    folds: tuple[Fold, ...]
    blocks: NDArray[np.int64] | None = None

    @property
    def scope(self) -> NDArray[np.int64]:
        """Positions of all events that are tested, in ascending order."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))


def published(events: pd.DataFrame, with_val: bool = False) -> Split:
    """Split of an event table as its authors published it: train against test, or against val where there is no test.

    `with_val` trains on train and val. Raises InputError where that is impossible.
    """
    names = events["split"].to_numpy(dtype=object)
    test = "test" if (names == "test").any() else "val"
    sources = ("train", "val") if with_val else ("train",)
    if test in sources:
        raise InputError("published split: there is no test split, so val is judged on and cannot be trained on")
    usable = _usable(events)
    fold = Fold(np.flatnonzero(np.isin(names, sources) & usable), np.flatnonzero(names == test))
    if not len(fold.train) or not len(fold.test):
        raise InputError("published split: needs events of train and of val or test; use random or block folds instead")
    return Split(f"published, {' + '.join(sources)} against {test}", (fold,))


def random_folds(events: pd.DataFrame, folds: int = 5, seed: int = 0, stratified: bool = True) -> Split:
    """Split of an event table into k random folds, each tested once; stratified by class where asked."""
    _check_folds(folds, len(events))
    order = np.random.default_rng(seed).permutation(len(events))
    if stratified:
        # dealing out events sorted by class gives each fold its share of every class
        order = order[np.argsort(events["label"].to_numpy()[order], kind="stable")]
    fold_of = np.empty(len(events), np.int64)
    fold_of[order] = np.arange(len(events)) % folds
    return Split(f"random {folds}-fold", _folds(events, fold_of, folds))


def block_folds(
    events: pd.DataFrame, km: float, folds: int = 5, seed: int | None = 0, shape: BlockShape = "equal-area"
) -> Split:
    """Split of an event table into k folds of whole square blocks of `km`, each fold tested once; the seed deals them.

    Blocks are shuffled (seed None: the largest come first) and each goes to the fold with the fewest events so far. The
    figure of one dealing says little: on Cam-ForestNet, location-only 1-NN has a standard deviation of 0.01 over
    dealings of 10 and 25 km blocks, 0.02 to 0.06 for 50 and 100 km. Raises InputError for fewer blocks than folds.
    """
    blocks = block_ids(events["latitude"].to_numpy(float), events["longitude"].to_numpy(float), km, shape)
    sizes = np.bincount(blocks)
    _check_folds(folds, len(sizes), f"blocks of {km:g} km")
    filled, fold_of_block = np.zeros(folds, np.int64), np.empty(len(sizes), np.int64)
    order = (
        np.argsort(sizes, kind="stable")[::-1] if seed is None else np.random.default_rng(seed).permutation(len(sizes))
    )
    for block in order:
        fold_of_block[block] = filled.argmin()
        filled[fold_of_block[block]] += sizes[block]
    return Split(f"{km:g} km blocks, {folds}-fold", _folds(events, fold_of_block[blocks], folds), blocks)


def block_ids(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], km: float, shape: BlockShape = "equal-area"
) -> NDArray[np.int64]:
    """Return int64 [n] 0..blocks-1 of points in degrees (EPSG:4326): squares with sides of `km` kilometres.

    `equal-area`: rows of equal height, each cut into columns as wide as they are at the row's middle latitude, so that
    blocks have one size at every latitude. `degrees`: km / 110.6 degrees both ways, narrower towards the poles; only
    to compare with figures made so. Raises InputError for a size that is no size.
    """
    if not np.isfinite(km) or km <= 0:
        raise InputError(f"block size {km} km must be positive")
    if shape == "degrees":
        side = km / KM_PER_DEGREE
        rows, columns = np.floor(latitude / side), np.floor(longitude / side)
    else:
        rows = np.floor(np.radians(latitude) * EARTH_KM / km)
        # rows that reach over a pole have their middle beyond it
        width = np.maximum(np.cos((rows + 0.5) * km / EARTH_KM), 0)
        columns = np.floor(np.radians(longitude) * EARTH_KM * width / km)
    return np.unique(np.column_stack([rows, columns]), axis=0, return_inverse=True)[1].ravel().astype(np.int64)


@dataclass(frozen=True)
class ChipOverlap:
    """How near test chips lie to training chips: counts, geodesic km between centres, `warning` ("" where none)."""

    test: int
    overlapping: int
    share: float
    nearest_km_min: float
    nearest_km_median: float
    warning: str


def chip_overlap(
    events: pd.DataFrame,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    chip_m: float,
    share: float = OVERLAP_WARNING,
) -> ChipOverlap:
    """Count test chips (north-up squares of `chip_m` metres centred on events) that overlap a training chip.

    `train` and `test` are positions in the table. The warning speaks above the given share. Raises InputError where a
    side is empty.
    """
    if not len(train) or not len(test):
        raise InputError(f"chip overlap: {len(train)} training and {len(test)} test events; both sides need some")
    points = events[["longitude", "latitude"]].to_numpy(float)
    overlaps, nearest = _neighbours(points[train], points[test], chip_m)
    count, part = int(overlaps.sum()), float(overlaps.mean())
    warning = ""
    if part > share:
        warning = (
            f"{count} of {len(test)} test chips ({part:.0%}) of {chip_m / 1000:.3g} km overlap a training chip: "
            "the score counts pixels seen in training; judge by blocks of land as well"
        )
    return ChipOverlap(len(test), count, part, float(nearest.min()) / 1000, float(np.median(nearest)) / 1000, warning)


def unit_vectors(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 [n, 3] on the unit sphere: straight lines rank points as the ground does, anywhere."""
    lat, lon = np.radians(latitude), np.radians(longitude)
    return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _neighbours(
    train: NDArray[np.float64], test: NDArray[np.float64], chip_m: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether a test chip overlaps one of training, and metres to the nearest training event; points are lon, lat."""
    from scipy.spatial import cKDTree

    tree = cKDTree(unit_vectors(train[:, 1], train[:, 0]))
    overlaps, nearest = np.zeros(len(test), bool), np.empty(len(test))
    reach = 1.02 * np.sqrt(2) * chip_m / (EARTH_KM * 1000)
    for start in range(0, len(test), _CHUNK):
        part = test[start : start + _CHUNK]
        vectors = unit_vectors(part[:, 1], part[:, 0])
        close = tree.query(vectors, k=min(_NEAREST, len(train)))[1].reshape(len(part), -1)
        own = np.repeat(np.arange(len(part)), close.shape[1])
        nearest[start : start + len(part)] = _inverse(part[own], train[close.ravel()])[1].reshape(close.shape).min(1)
        found = tree.query_ball_point(vectors, reach)
        own = np.repeat(np.arange(len(part)), [len(row) for row in found])
        if own.size:
            azimuth, metres = _inverse(part[own], train[np.concatenate([row for row in found if row]).astype(np.int64)])
            east, north = metres * np.sin(np.radians(azimuth)), metres * np.cos(np.radians(azimuth))
            overlaps[start + own[(np.abs(east) < chip_m) & (np.abs(north) < chip_m)]] = True
    return overlaps, nearest


def _inverse(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    azimuth, _, metres = WGS84.inv(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
    return np.asarray(azimuth), np.asarray(metres)


def _usable(events: pd.DataFrame) -> NDArray[np.bool_]:
    return np.asarray(events["fault"].to_numpy(dtype=object) == "", bool)


def _folds(events: pd.DataFrame, fold_of: NDArray[np.int64], folds: int) -> tuple[Fold, ...]:
    usable = _usable(events)
    return tuple(Fold(np.flatnonzero((fold_of != k) & usable), np.flatnonzero(fold_of == k)) for k in range(folds))


def _check_folds(folds: int, groups: int, what: str = "events") -> None:
    if not 2 <= folds <= groups:
        raise InputError(f"{folds} folds of {groups} {what}: need at least 2 folds and as many {what}")
