"""Labels that an analyst filled in: read, checked, and brought to the events of a map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.areas.sources import ReferenceSample
from pipeline.areas.stratified import Design, Floats
from pipeline.errors import ConfigError
from pipeline.grid import read_vector

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

CANNOT_TELL = "cannot_tell"
COLUMN = "reference_driver"
SAMPLE_LAYER, POINTS_LAYER, STRATA_TABLE, KEY_TABLE, ABOUT_TABLE = "sample", "sample_points", "strata", "key", "about"


@dataclass(frozen=True)
class Answers:
    """A filled-in file: rows with `label` (a class name or cannot_tell), geometry, and event_id where there is one.

    `strata` (stratum, driver, population, ...) and the column `stratum` of the rows are there for a sample drawn by
    `clearcause sample`; `about` says which product it was drawn from.
    """

    path: Path
    rows: GeoDataFrame
    strata: pd.DataFrame | None
    about: dict[str, str]


def read_answers(
    path: Path, names: tuple[str, ...], layer: str | None = None, column: str = COLUMN, key: str = "reference"
) -> Answers:
    """Read a filled-in sample, or any vector file with labels; `key` is what errors call it.

    Raises:
        ConfigError: the file or the column is missing, a row is not filled in or given twice, or a name is unknown.
    """
    if not path.exists():
        raise ConfigError(f"{key} {path}: no such file")
    present = _layers(path, key)
    layer = layer or (SAMPLE_LAYER if SAMPLE_LAYER in present else None)
    rows = read_vector(path, layer, key)
    if column not in rows:
        columns = ", ".join(map(str, rows.columns))
        raise ConfigError(f"{key} {path}: no column {column!r}; it has {columns}")
    labels = rows[column].astype("string").str.strip().fillna("")
    blank = int((labels == "").sum())
    if blank:
        raise ConfigError(
            f"{key} {path}: {blank} of {len(rows)} rows have no {column}; fill in a driver, or {CANNOT_TELL}"
        )
    strange = sorted(set(labels) - {*names, CANNOT_TELL})
    if strange:
        raise ConfigError(
            f"{key} {path}: {column} {strange[0]!r} is no driver; known are {', '.join(names)} and {CANNOT_TELL}"
        )
    rows = rows.assign(label=labels.astype(object))
    if "event_id" in rows:
        rows["event_id"] = rows["event_id"].astype(str)
        twice = rows["event_id"][rows["event_id"].duplicated()]
        if len(twice):
            raise ConfigError(f"{key} {path}: event {twice.iloc[0]} stands there twice; keep one row of it")
    strata, about = None, {}
    if "event_id" in rows and {STRATA_TABLE, KEY_TABLE} <= present:
        rows, strata = _with_strata(path, rows, key)
    if ABOUT_TABLE in present:
        table = _table(path, ABOUT_TABLE)
        about = dict(zip(table["key"].astype(str), table["value"].astype(str), strict=True))
    return Answers(path, rows, strata, about)


def match_events(
    answers: Answers, events: GeoDataFrame, names: tuple[str, ...], key: str = "reference"
) -> ReferenceSample:
    """Bring labels to the events of a map (columns event_id, loss_year, unit_id, driver, area_ha, geometry).

    A file with the column event_id is a sample of events: each event of a stratum was equally likely to be drawn (of
    a mapped driver, where the file has no strata). Any other is taken for points scattered evenly over the loss of
    each mapped driver; each point stands for the same area.

    Raises:
        ConfigError: when no label, or too few, meet an event that has a driver.
    """
    if not len(answers.rows):
        raise ConfigError(f"{key} {answers.path}: holds no row")
    position, remarks = _positions(answers, events)
    if (position < 0).all():
        raise ConfigError(f"{key} {answers.path}: none of its {len(position)} rows meets an event of this run")
    driver = events["driver"].map({name: k for k, name in enumerate(names)})
    codes = np.append(driver.fillna(-1).to_numpy(np.int64), -1)
    mapped = codes[position]
    told = (answers.rows["label"] != CANNOT_TELL).to_numpy()
    kept = told if answers.strata is not None else told & (mapped >= 0)
    if (kept & (mapped >= 0)).sum() < 2:
        raise ConfigError(
            f"{key} {answers.path}: fewer than two labels lie on events with a driver; an area cannot be estimated"
        )
    if answers.strata is None and (lost := int((told & (mapped < 0)).sum())):
        remarks.append(f"{lost} labels lie on no event that has a driver and were left out.")
    design, said = _design(answers, events, codes[:-1], mapped, kept)
    label = answers.rows["label"].map({name: k for k, name in enumerate(names)})
    by_points = "event_id" not in answers.rows
    area = np.append(events["area_ha"].to_numpy(float), 0.0)[position]
    return ReferenceSample(
        design=design,
        mapped=mapped[kept],
        reference=label[kept].to_numpy(np.int64),
        size=np.ones(int(kept.sum())) if by_points else area[kept],
        unit_id=np.append(events["unit_id"].to_numpy(object), [None])[position][kept],
        loss_year=np.append(events["loss_year"].to_numpy(np.int64), 0)[position][kept],
        drawn=len(answers.rows),
        cannot_tell=int((~told).sum()),
        remarks=(*remarks, *said),
    )


def collapse(
    stratum: NDArray[np.int64], population: Floats, group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, int]:
    """Join strata that hold fewer than two units of the sample with the largest of their group, else of all.

    Args:
        stratum: index of the stratum of each sampled unit [n].
        population: units of each stratum [H].
        group: what strata have in common [H], their mapped driver.

    Returns:
        The strata without gaps [n], their population, and how many were joined.
    """
    home, size = np.arange(len(population)), population.astype(float).copy()
    joined = 0
    while True:
        count = np.bincount(home[stratum], minlength=len(size))
        alive = size > 0
        poor = alive & (count < 2) & ~((count == 1) & (size == 1))
        if not poor.any() or alive.sum() == 1:
            break
        worst = int(np.flatnonzero(poor)[np.argmin(size[poor])])
        others = np.flatnonzero(alive & (np.arange(len(size)) != worst))
        near = others[group[others] == group[worst]]
        best = int(max(near if len(near) else others, key=lambda h: (size[h], -h)))
        home[home == worst] = best
        size[best] += size[worst]
        size[worst] = 0.0
        joined += 1
    kept = np.flatnonzero(size > 0)
    place = np.full(len(size), -1)
    place[kept] = np.arange(len(kept))
    return place[home[stratum]].astype(np.int64), size[kept], joined


def _design(
    answers: Answers, events: GeoDataFrame, codes: NDArray[np.int64], mapped: NDArray[np.int64], kept: NDArray[np.bool_]
) -> tuple[Design, list[str]]:
    """The design that the labels were drawn by, of those that were told."""
    finite = "event_id" in answers.rows
    if answers.strata is not None:
        order = answers.strata["stratum"].to_numpy(np.int64)
        stratum = pd.Index(order).get_indexer(answers.rows["stratum"].to_numpy(np.int64))[kept]
        population = answers.strata["population"].to_numpy(float)
        group = pd.factorize(answers.strata["driver"])[0]
    else:
        known = codes >= 0
        size = np.ones(len(codes)) if finite else events["area_ha"].to_numpy(float)
        population = np.bincount(codes[known], size[known], minlength=int(codes.max(initial=0)) + 1)
        stratum, group = mapped[kept], np.zeros(len(population), np.int64)
    joined, population, number = collapse(stratum.astype(np.int64), population, group.astype(np.int64))
    said = [f"{number} strata with fewer than two labels were joined with others."] if number else []
    return Design(joined, population, finite), said


def _positions(answers: Answers, events: GeoDataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """Row of the event of each label, -1 where there is none, and remarks."""
    rows = answers.rows
    if "event_id" in rows:
        found = pd.Index(events["event_id"].astype(str)).get_indexer(pd.Index(rows["event_id"]))
        absent = int((found < 0).sum())
        said = [f"{absent} labelled events are not in this map and count as outside it."] if absent else []
        return np.asarray(found, np.int64), said
    from shapely import STRtree

    points = rows.geometry.to_crs("EPSG:4326").representative_point()
    shapes = np.asarray(events.geometry.to_crs("EPSG:4326").array)
    label, event = STRtree(shapes).query(np.asarray(points.array), predicate="intersects")
    found = np.full(len(rows), -1, np.int64)
    found[label[::-1]] = event[::-1]
    return found, []


def _with_strata(path: Path, rows: Any, key: str) -> tuple[Any, pd.DataFrame]:
    strata, drawn = _table(path, STRATA_TABLE), _table(path, KEY_TABLE)
    lacking = [c for c in ("stratum", "driver", "population") if c not in strata]
    lacking += [c for c in ("event_id", "stratum") if c not in drawn]
    if lacking:
        raise ConfigError(f"{key} {path}: its tables {STRATA_TABLE} and {KEY_TABLE} lack the column {lacking[0]}")
    stratum = rows["event_id"].map(dict(zip(drawn["event_id"].astype(str), drawn["stratum"], strict=True)))
    if stratum.isna().any():
        raise ConfigError(
            f"{key} {path}: event {rows['event_id'][stratum.isna()].iloc[0]} was not drawn in this sample; "
            "leave its rows as they were drawn"
        )
    gone = len(drawn) - len(rows)
    if gone:
        raise ConfigError(f"{key} {path}: {gone} drawn events were removed; keep them, with {CANNOT_TELL} if need be")
    return rows.assign(stratum=stratum.astype(np.int64)), strata


def _layers(path: Path, key: str) -> set[str]:
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        return {str(name) for name in pyogrio.list_layers(path)[:, 0]}
    except DataSourceError as error:
        raise ConfigError(f"{key} {path}: cannot be read as vector data ({' '.join(str(error).split())})") from error


def _table(path: Path, layer: str) -> pd.DataFrame:
    import pyogrio

    return pd.DataFrame(pyogrio.read_dataframe(path, layer=layer))
