"""A simulated province in memory, ready to be cut into chips: scenes, events with their kinds, surroundings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.composite import median_composite
from pipeline.config import Imagery
from pipeline.errors import InputError
from pipeline.grid import RunGrid, read_region
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.plan import ask_catalog
from pipeline.simulate.appearance import KINDS
from pipeline.simulate.archive_files import Surroundings, climate_names
from pipeline.simulate.landscape import Landscape, build_landscape
from pipeline.simulate.noise import FloatArray, NoiseField
from pipeline.simulate.params import Province
from pipeline.simulate.spectra import SIMULATED_BANDS
from pipeline.stack import SceneStack

CHIP = 166
"""Pixels of 30 m a side of a chip."""
PAD = 48
"""Pixels around the province that its scenes show; a chip may reach there."""
_LEAST = 6
_LEAST_SEEN = 0.98
_YEARS_AFTER = 2
_WORST_CLOUD = 30.0
_MERGED = {
    "plantation": "Plantation", "smallholder_agriculture": "Smallholder agriculture",
    "grassland_shrubland": "Grassland shrubland", "other": "Other",
}  # fmt: skip
_TITLES = {
    "palm": "Oil palm plantation", "terraced_palm": "Oil palm plantation", "acacia": "Timber plantation",
    "field": "Small-scale agriculture", "wet_field": "Small-scale agriculture",
    "garden": "Small-scale mixed plantation",
    "grassland": "Grassland shrubland", "burnt_grass": "Grassland shrubland", "pit": "Mining", "spoil": "Mining",
    "mine_pond": "Mining", "logging_road": "Logging", "gap": "Logging", "pond": "Fish pond", "dike": "Fish pond",
    "road": "Other large-scale plantations",
}  # fmt: skip
"""Kind of ground to ForestNet's fine title; a plantation of which only roads are seen has no crop."""


@dataclass(frozen=True)
class Event:
    """One loss event: class, titles, loss year, middle of its chip in home pixels, region in pixels of the chip."""

    driver: str
    title: str
    merged: str
    year: int
    row: int
    column: int
    region: BaseGeometry


@dataclass(frozen=True)
class ChipScene:
    """A single scene of a chip: index in `Land.days`, day, and share not clear in percent."""

    index: int
    day: date
    cloud: float


@dataclass(frozen=True)
class Land:
    """A province in memory, arrays on the home grid with PAD pixels around it.

    Attributes:
        days: of each scene.
        raw: float32 [scenes, 6, H, W] reflectance with clouds, NaN = outside the scene.
        clear: bool [scenes, H, W].
        composites: loss year to float32 [6, H, W], NaN = never clear.
        events: every event whose chip lies inside and was seen by some scene, nearly all of it.
        kinds: int16 [size, size], index into KINDS, no padding.
        drivers: uint8 [size, size], driver code, 255 = no loss, no padding.
        terrain: int16 [3, H, W] altitude (m), aspect, slope (0.01 degree).
        nearest: kind of place to int [2, H, W] (row, column of the nearest one), None where there is none.
        grid: of the province.
        shift: degrees (longitude, latitude) that places are moved by.
        climate: float64 [84], the province's own values.
    """

    days: tuple[date, ...]
    raw: FloatArray
    clear: NDArray[np.bool_]
    composites: dict[int, FloatArray]
    events: tuple[Event, ...]
    kinds: NDArray[np.int16]
    drivers: NDArray[np.uint8]
    terrain: NDArray[np.int16]
    nearest: dict[str, NDArray[np.int32] | None]
    grid: RunGrid
    shift: tuple[float, float]
    climate: NDArray[np.float64]

    def place(self, row: float, column: float) -> tuple[float, float]:
        """Latitude and longitude of a corner of home pixels, moved by `shift`."""
        x, y = self.grid.geobox.affine @ (column, row)
        way = Transformer.from_crs(self.grid.crs, "EPSG:4326", always_xy=True)
        longitude, latitude = way.transform(x, y)
        return float(latitude) + self.shift[1], float(longitude) + self.shift[0]

    def composite(self, event: Event) -> FloatArray:
        """Composite of an event's chip, float32 [6, CHIP, CHIP]."""
        return _cut(self.composites[event.year], event)

    def scene(self, event: Event, index: int) -> FloatArray:
        """One scene of an event's chip, with its clouds, float32 [6, CHIP, CHIP]."""
        return _cut(self.raw[index], event)

    def clearest(self, event: Event, most: int) -> list[ChipScene]:
        """At most `most` scenes of the years after the loss, the clearest first, one a day."""
        found = []
        for index, day in enumerate(self.days):
            cloud = 100.0 * float(1 - _cut(self.clear[index], event).mean())
            if event.year <= day.year <= event.year + _YEARS_AFTER and cloud <= _WORST_CLOUD:
                found.append(ChipScene(index, day, cloud))
        one_a_day = {scene.day: scene for scene in sorted(found, key=lambda s: -s.cloud)}
        return sorted(one_a_day.values(), key=lambda s: (s.cloud, s.day))[:most]

    def surroundings(self, event: Event) -> Surroundings:
        """Auxiliary predictors of an event; gain is where a plantation will stand."""
        gain = np.zeros((self.terrain.shape[1], self.terrain.shape[2]), np.uint8)
        inner = slice(PAD, PAD + self.drivers.shape[0])
        gain[inner, inner] = self.drivers == FOREST_LOSS_DRIVERS.codes[0]
        at = event.row + PAD, event.column + PAD
        places = {}
        for what, nearest in self.nearest.items():
            row, column = (0, 0) if nearest is None else (int(v) for v in nearest[:, at[0], at[1]])
            places[what] = None if nearest is None else self.place(row - PAD + 0.5, column - PAD + 0.5)
        altitude = float(self.terrain[0, at[0], at[1]])
        random = np.random.default_rng([event.row, event.column, event.year])
        climate = np.rint(self.climate * (1 + random.normal(0, 0.01, len(self.climate))))
        terrain = np.stack([_cut(layer, event) for layer in self.terrain])
        peat = bool(altitude < np.quantile(self.terrain[0], 0.2))
        return Surroundings(terrain, _cut(gain, event), places["street"], places["city"], peat, climate)


def _cut[T: np.generic](array: NDArray[T], event: Event) -> NDArray[T]:
    top, left = event.row + PAD - CHIP // 2, event.column + PAD - CHIP // 2
    return array[..., top : top + CHIP, left : left + CHIP]


def open_land(province: Province, shift: tuple[float, float], seed: int) -> Land:
    """Read a province into memory (some 100 MB at 512 pixels); its landscape is built anew from its parameters.

    Raises:
        InputError: the province was made by another version of the simulator, so its truth cannot be retraced.
    """
    with rasterio.open(province.truth) as raster:
        drivers, crs, affine = raster.read(1), raster.crs.to_string(), raster.transform
    with rasterio.open(province.truth_year) as raster:
        years = raster.read(1)
    made = json.loads(province.truth_table.read_text(encoding="utf-8"))["params"]
    landscape = build_landscape(made["size"], made["seed"], tuple(made["loss_years"]), made["loss_share"])
    if not np.array_equal(landscape.elements.driver[landscape.element], drivers):
        raise InputError(f"province {province.folder}: its truth is of another simulator; simulate it again")
    grid = RunGrid(crs, affine.a, affine.c, affine.f, drivers.shape[0], drivers.shape[1], 2048)
    scenes = _scenes(province)
    raw, clear = _read(scenes, grid)
    days = tuple(scene.datetime.date() for scene in scenes)
    kinds = landscape.elements.kind[landscape.element]
    loss_years = sorted({int(k) + 2000 for k in np.unique(years[drivers != NO_DATA])})
    random = np.random.default_rng([seed, 32, made["seed"]])
    composites = {year: _composite(days, raw, clear, year) for year in loss_years}
    events = [event for year in loss_years for event in _events(drivers, years, kinds, year)]
    return Land(
        days=days, raw=raw, clear=clear, composites=composites,
        events=tuple(e for e in events if np.isfinite(_cut(composites[e.year][0], e)).mean() >= _LEAST_SEEN),
        kinds=kinds, drivers=drivers, terrain=_terrain(drivers, random), nearest=_nearest(landscape),
        grid=grid, shift=shift, climate=random.uniform(100, 400, len(climate_names())),
    )  # fmt: skip


def _scenes(province: Province) -> list[Scene]:
    imagery = Imagery.model_validate({"source": str(province.scenes), "max_cloud": 100, "max_scenes": 99})
    catalog = open_catalog(imagery.source, imagery.collections, Path())
    found, _ = ask_catalog(catalog, read_region(province.aoi), (2001, 2030), imagery)
    return sorted(found, key=lambda scene: scene.id)


def _read(scenes: Sequence[Scene], grid: RunGrid) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Every scene with its clouds, and where it is clear, PAD pixels around the grid."""
    bare = [replace(s, assets={band: a for band, a in s.assets.items() if band != QA_PIXEL}) for s in scenes]
    window = -PAD, -PAD, grid.height + 2 * PAD, grid.width + 2 * PAD
    with SceneStack(bare, grid, SIMULATED_BANDS) as files:
        raw = files.read(*window)
    with SceneStack(scenes, grid, SIMULATED_BANDS[:1]) as files:
        clear = ~np.isnan(files.read(*window)[:, 0])
    return raw, clear


def _composite(days: Sequence[date], raw: FloatArray, clear: NDArray[np.bool_], year: int) -> FloatArray:
    """Median of what is clear in the years after a loss year."""
    chosen = [k for k, day in enumerate(days) if year <= day.year <= year + _YEARS_AFTER]
    masked = np.where(clear[chosen][:, None], raw[chosen], np.float32(np.nan))
    return median_composite(masked)[0]


def _events(
    drivers: NDArray[np.uint8], years: NDArray[np.uint8], kinds: NDArray[np.int16], year: int
) -> list[Event]:  # fmt: skip
    """Connected patches (8 neighbours) of one loss year whose chip the scenes cover."""
    patches, _ = ndimage.label((years == year - 2000) & (drivers != NO_DATA), np.ones((3, 3)))
    size, names = drivers.shape[0], list(KINDS)
    out = []
    for number, box in enumerate(ndimage.find_objects(patches), start=1):
        mask = patches[box] == number
        row, column = ((part.start + part.stop) // 2 for part in box)
        reach = CHIP // 2 - PAD
        if mask.sum() < _LEAST or not (reach <= row <= size - reach and reach <= column <= size - reach):
            continue
        # the simulator keeps three pixels between objects, so a patch has one driver
        driver = FOREST_LOSS_DRIVERS.names[FOREST_LOSS_DRIVERS.codes.index(int(drivers[box][mask][0]))]
        kind = names[int(np.bincount(kinds[box][mask]).argmax())]
        corner = (box[1].start - column + CHIP // 2, box[0].start - row + CHIP // 2)
        out.append(Event(driver, _TITLES[kind], _MERGED[driver], year, row, column, _outline(mask, corner)))
    return out


def _outline(mask: NDArray[np.bool_], corner: tuple[int, int]) -> BaseGeometry:
    """Outline of a patch in pixels of the 15 m chip (x right, y down); `corner` is its (x, y) in pixels of 30 m."""
    place = Affine.scale(2) @ Affine.translation(*corner)
    parts = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=place)
    return shapely.union_all([shapely.geometry.shape(geometry) for geometry, _ in parts])


def _terrain(drivers: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.int16]:
    """Altitude (m), aspect and slope (0.01 degree): hills of noise, a little lower round plantations than grass."""
    side = drivers.shape[0] + 2 * PAD
    hills = NoiseField.draw(random, (9.0, 300.0), 1.7).block(range(side), range(side))
    padded = np.pad(drivers, PAD, mode="symmetric")
    plantation, grass = (padded == FOREST_LOSS_DRIVERS.codes[k] for k in (0, 2))
    bias = ndimage.gaussian_filter(grass * 2.0 - plantation * 1.0, 25)
    altitude = 140 + 60 * hills + 25 * bias / max(float(bias.std()), 1e-6)
    down, right = np.gradient(altitude, 30.0)
    slope = np.degrees(np.arctan(np.hypot(down, right)))
    aspect = np.degrees(np.arctan2(-right, down))
    return np.rint(np.stack([altitude, aspect * 100, slope * 100])).astype(np.int16)


def _nearest(landscape: Landscape) -> dict[str, NDArray[np.int32] | None]:
    """Row and column of the nearest road and village of every pixel, padded; roads inside fresh loss do not count."""
    elements = landscape.elements
    out: dict[str, NDArray[np.int32] | None] = {}
    for what, kind in (("street", "road"), ("city", "village")):
        old = (elements.kind == list(KINDS).index(kind)) & (elements.driver == NO_DATA)
        there = np.pad(old[landscape.element], PAD)
        nearest = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
        out[what] = np.asarray(nearest, np.int32) if there.any() else None
    return out
