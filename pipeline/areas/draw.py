"""Which events to look at: strata, how many of each, and a draw that a seed repeats.

Strata are the mapped driver, within it whether the answer was uncertain (where enough events are), and within that
the large events apart from the small ones: areas of events are so unequal that, drawn alike, a few large ones that
happen to be drawn or not would decide the estimate. Allocation after Olofsson et al. 2014 (doi:10.1016/
j.rse.2014.02.015, section 5.1.2): a minimum for each mapped driver, so that a rare one is judged at all, and the rest
in proportion; by area it is close to Neyman's optimum for areas (Cochran 1977, 5.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.areas.stratified import Floats
from pipeline.errors import ConfigError

type Allocation = Literal["area", "events", "equal"]
_LEAST = 2
"""Events of each stratum at least: one has no variance."""


@dataclass(frozen=True)
class DrawParams:
    """How a sample is drawn: `size` events, at least `minimum` of each mapped driver, the rest by `allocation`.

    `area`: in proportion to the area of the strata; `events`: to their number of events; `equal`: alike.
    """

    size: int = 300
    minimum: int = 30
    allocation: Allocation = "area"
    seed: int = 0


def make_strata(events: pd.DataFrame, names: tuple[str, ...], minimum: int) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Divide events into strata.

    Args:
        events: columns driver, status, area_ha; rows without a driver belong to no stratum.
        names: class names in order.
        minimum: a driver's uncertain events are a stratum of their own where they and the others are that many; so
            are its large events, which together hold half of the area.

    Returns:
        Number of the stratum of each event, from 1, 0 = none [n]; and one row for each: stratum, driver, status, sizes,
        population (events) and area_ha.
    """
    number = np.zeros(len(events), np.int64)
    area = events["area_ha"].to_numpy(float)
    driver, uncertain = events["driver"].to_numpy(object), (events["status"] == "uncertain").to_numpy()
    rows: list[tuple[object, ...]] = []
    for name in names:
        own = np.flatnonzero(driver == name)
        divided = min(uncertain[own].sum(), (~uncertain[own]).sum()) >= minimum
        parts = {"classified": own[~uncertain[own]], "uncertain": own[uncertain[own]]} if divided else {"any": own}
        for status, part in parts.items():
            for sizes, members in _by_size(part, area, minimum).items():
                if len(members):
                    number[members] = len(rows) + 1
                    rows.append((len(rows) + 1, name, status, sizes, len(members), float(area[members].sum())))
    columns = ["stratum", "driver", "status", "sizes", "population", "area_ha"]
    return number, pd.DataFrame(rows, columns=columns)


def allocate(strata: pd.DataFrame, params: DrawParams) -> NDArray[np.int64]:
    """How many events of each stratum are drawn; they add up to the size asked for, or to all events if fewer.

    Raises:
        ConfigError: the size does not hold the minimum of each driver.
    """
    population = strata["population"].to_numpy(np.int64)
    if params.size >= population.sum():
        return population
    floor = np.minimum(population, _LEAST)
    for _, rows in strata.groupby("driver", sort=False):
        own = rows.index.to_numpy()
        wanted = min(params.minimum, int(population[own].sum()))
        floor[own] = _spread(wanted, floor[own], population[own], _measure(strata, params.allocation)[own])
    if floor.sum() > params.size:
        drivers = strata["driver"].nunique()
        raise ConfigError(
            f"--size {params.size}: {drivers} drivers with at least {params.minimum} events each take {floor.sum()}; "
            "raise --size or lower --minimum"
        )
    return _spread(params.size, floor, population, _measure(strata, params.allocation))


def draw(
    number: NDArray[np.int64], counts: NDArray[np.int64], ids: NDArray[np.object_], seed: int
) -> NDArray[np.int64]:
    """Rows drawn at random without replacement, counts [H] of each stratum 1..H, in an order that tells nothing.

    The same events drawn by the same seed are the same in whatever order they are given: `ids` sorts them.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for h, count in enumerate(counts, 1):
        members = np.flatnonzero(number == h)
        members = members[np.argsort(ids[members].astype(str), kind="stable")]
        drawn.append(random.choice(members, int(count), replace=False))
    return random.permutation(np.concatenate([np.zeros(0, np.int64), *drawn]))


def _by_size(members: NDArray[np.int64], area: Floats, minimum: int) -> dict[str, NDArray[np.int64]]:
    """Large events, which hold half of the area, and the others; all as one where one of them would be too few."""
    order = members[np.argsort(-area[members], kind="stable")]
    first = int(np.searchsorted(np.cumsum(area[order]), area[order].sum() / 2)) + 1
    if len(members) < 2 * minimum or first < _LEAST or len(order) - first < _LEAST:
        return {"any": members}
    return {"large": order[:first], "small": order[first:]}


def _measure(strata: pd.DataFrame, allocation: Allocation) -> Floats:
    column = {"area": strata["area_ha"], "events": strata["population"], "equal": strata["population"] * 0 + 1}
    return np.asarray(column[allocation], np.float64)


def _spread(total: int, floor: NDArray[np.int64], most: NDArray[np.int64], measure: Floats) -> NDArray[np.int64]:
    """Whole numbers in proportion to `measure`, held between `floor` and `most`, that add up to `total`."""
    total = int(np.clip(total, floor.sum(), most.sum()))
    low, high = 0.0, float(most.max(initial=0)) / measure.min(initial=np.inf)
    for _ in range(100):  # the sum grows with the factor, so halving finds it
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * measure, floor, most).sum() < total else (low, middle)
    share = np.clip(high * measure, floor, most)
    whole = np.floor(share + 1e-9).astype(np.int64)
    # the largest remainders are rounded up
    for k in np.argsort(whole - share, kind="stable")[: total - int(whole.sum())]:
        whole[k] += 1
    return whole
