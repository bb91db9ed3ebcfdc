"""Writes Landsat Collection 2 Level-2 bundles of the simulated land, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window

from pipeline.simulate.appearance import palette
from pipeline.simulate.clouds import CLOUD_BIT, QA_FILL, Sky, SkyParams, sky_points
from pipeline.simulate.grids import Grid, HomeMap
from pipeline.simulate.mtl import REFLECTIVE_BANDS, Overpass, sun_position, write_mtl
from pipeline.simulate.noise import spectral_noise
from pipeline.simulate.params import ProvinceParams
from pipeline.simulate.render import Day, Ground

SCALE, OFFSET = 0.0000275, -0.2
MARGIN = 64  # pixels a scene reaches beyond the province, so that its border has real surroundings
_COLLAR = 12  # pixels of fill around the outline's bounding box
_LEAN = float(np.tan(np.radians(11.0)))  # scene outlines lean with the descending orbit
_NOISE_SIDE = 512


@dataclass(frozen=True)
class Track:
    """One WRS-2 path/row over the province: its UTM `crs` and the outline's sides as shares of the province's width.

    `west` and `east` are None where the scene reaches beyond the province.
    """

    path: int
    row: int
    crs: str
    west: float | None
    east: float | None

    def covers(self, home_rows: NDArray[np.float64], home_cols: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
        """Whether home-grid positions lie inside the scene outline."""
        inside = (home_rows >= -MARGIN) & (home_rows < size + MARGIN)
        inside &= (home_cols >= -MARGIN) & (home_cols < size + MARGIN)
        lean = _LEAN * (size / 2 - home_rows)
        if self.west is not None:
            inside &= home_cols >= self.west * size + lean
        if self.east is not None:
            inside &= home_cols < self.east * size + lean
        return inside

    def grid(self, home: Grid) -> Grid:
        """Pixel grid of the scenes: bounding box of the outline and a collar, edges at 15 mod 30 m."""
        reach = _LEAN * (home.height / 2 + MARGIN)
        left = -MARGIN if self.west is None else max(-MARGIN, self.west * home.width - reach)
        right = home.width + MARGIN if self.east is None else min(home.width + MARGIN, self.east * home.width + reach)
        cols, rows = np.linspace(left, right, 40), np.linspace(-MARGIN, home.height + MARGIN, 40)
        col, row = np.meshgrid(cols, rows)
        x, y = home.left + col * home.pixel, home.top - row * home.pixel
        if self.crs != home.crs:
            x, y = Transformer.from_crs(home.crs, self.crs, always_xy=True).transform(x, y)
        west, east = _snap(x.min(), -1), _snap(x.max(), 1)
        south, north = _snap(y.min(), -1), _snap(y.max(), 1)
        return Grid(self.crs, west, north, 30.0, round((north - south) / 30), round((east - west) / 30))


def _snap(value: float, outward: int) -> float:
    """Pixel edge at 15 mod 30 m beyond `value`, a collar further out."""
    steps = (value - 15.0) / 30.0
    return (float(np.floor(steps) if outward < 0 else np.ceil(steps)) + outward * _COLLAR) * 30.0 + 15.0


def overpasses(track: Track, params: ProvinceParams, lon: float, lat: float) -> list[Overpass]:
    """Overpasses of Landsat 8 and 9 on days on which their orbits really pass this path, mostly from June to October.

    The 16-day phase is that of Landsat 8 over path 218 on 2019-01-14; each path further west follows 7 days later;
    Landsat 9 (data since 2021-11) flies 8 days apart.
    """
    years = np.linspace(min(params.loss_years), max(params.loss_years) + 2, params.dates)
    return _passes(track, np.rint(years).astype(int).tolist(), [params.seed, 3, track.path], (lon, lat), 1)


def overpasses_before(track: Track, params: ProvinceParams, lon: float, lat: float) -> list[Overpass]:
    """One overpass in each of the `params.before` years before the first loss year: no clearing is to be seen yet."""
    first = min(params.loss_years)
    return _passes(track, list(range(first - params.before, first)), [params.seed, 8, track.path], (lon, lat), 0)


def _passes(
    track: Track, years: list[int], seed: list[int], place: tuple[float, float], late: int
) -> list[Overpass]:  # fmt: skip
    """One overpass a year over `place` (degrees), at most `late` years after it."""
    rng = np.random.default_rng(seed)
    lon, lat = place
    found: dict[date, Overpass] = {}
    for year in years:
        while True:
            mean, spread = (228.0, 38.0) if rng.random() < 0.85 else (60.0, 50.0)
            wanted = date(year, 1, 1) + timedelta(days=int(np.clip(rng.normal(mean, spread), 0, 360)))
            satellite = 9 if wanted >= date(2021, 11, 1) and rng.random() < 0.5 else 8
            phase = ((track.path - 218) * 7 + (8 if satellite == 9 else 0) - (wanted - date(2019, 1, 14)).days) % 16
            day = wanted + timedelta(days=phase)
            if day not in found and day.year <= year + late:
                break
        seconds = 3600 * (10.12 - lon / 15) + float(rng.uniform(-60, 60))
        azimuth, elevation = sun_position(day, seconds / 3600, lon, lat)
        found[day] = Overpass(satellite, track.path, track.row, day, seconds, azimuth, elevation)
    return [found[day] for day in sorted(found)]


class SceneWriter:
    """Writes the scenes of one path/row."""

    def __init__(self, ground: Ground, home: Grid, track: Track, params: ProvinceParams) -> None:
        """Prepare the way from the scene grid to the home grid."""
        self.track, self.grid = track, track.grid(home)
        self._ground, self._size, self._params = ground, home.width, params
        self._map = HomeMap(home, self.grid)
        rng = np.random.default_rng([params.seed, 4])
        self._grain = spectral_noise(rng, (_NOISE_SIDE, _NOISE_SIDE), (0.3, 2.0), 0.0)

    def write(self, scenes: Path, overpass: Overpass, cloud: float, window: int) -> Path:
        """Write one bundle below `scenes` in windows of `window` pixels; returns its folder."""
        folder = scenes / overpass.product_id
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([self._params.seed, 5, overpass.path, overpass.day.toordinal()])
        day, gain = self._day(overpass, rng)
        sky = self._sky(overpass, cloud, rng)
        shift = rng.integers(0, _NOISE_SIDE, (6, 2))
        cloudy = seen = 0
        with _open_bands(folder, overpass.product_id, self.grid) as (bands, quality):
            for rows, cols in self.grid.windows(window):
                reflectance, qa = self._window(day, sky, rows, cols)
                inside = qa != QA_FILL
                target = Window(cols.start, rows.start, len(cols), len(rows))
                for index, band in enumerate(bands):
                    value = reflectance[index]
                    value *= gain[index]
                    value += self._sensor_noise(shift[index], rows, cols)
                    band.write(_digital_numbers(value, inside), 1, window=target)
                quality.write(qa, 1, window=target)
                seen += int(inside.sum())
                cloudy += int(((qa & CLOUD_BIT) > 0).sum())
        write_mtl(folder, overpass, self.grid, 100.0 * cloudy / max(seen, 1))
        return folder

    def _day(self, overpass: Overpass, rng: np.random.Generator) -> tuple[Day, NDArray[np.float32]]:
        time = overpass.day.year + (overpass.day.timetuple().tm_yday - 1) / 365.25
        season = 0.5 - 0.5 * np.cos(2 * np.pi * (time % 1.0 - 0.08))  # driest around the end of July
        dryness = float(np.clip(0.15 + 0.7 * season + rng.normal(0, 0.12), 0.0, 1.0))
        look = palette(self._ground.landscape.elements, time, dryness)
        azimuth = np.radians(overpass.sun_azimuth)
        steep = 1.9 / np.tan(np.radians(overpass.sun_elevation))
        # a slope that rises towards the sun is turned away from it and darker
        sun = (float(steep * np.cos(azimuth)), float(-steep * np.sin(azimuth)))
        gain = 1.0 + rng.normal(0, 0.02) + rng.normal(0, 0.012, 6)
        return Day(look, sun), gain.astype(np.float32)

    def _sky(self, overpass: Overpass, cloud: float, rng: np.random.Generator) -> Sky:
        rows, cols = sky_points(self.grid.height, self.grid.width)
        points = self._map.centres(rows, cols)
        inside = self.track.covers(*points, self._size)
        params = SkyParams(
            cloud=cloud,
            haze=float(np.clip(rng.lognormal(np.log(0.006), 0.6), 0.001, 0.03)),
            cirrus=bool(rng.random() < 0.35),
            sun_elevation=overpass.sun_elevation,
            sun_azimuth=overpass.sun_azimuth,
        )
        return Sky(rng, inside, params)

    def _window(self, day: Day, sky: Sky, rows: range, cols: range) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Reflectance float32 [6, h, w] and QA_PIXEL uint16 [h, w], fill outside the outline."""
        home_rows, home_cols = self._map.centres(rows, cols)
        inside = self.track.covers(home_rows, home_cols, self._size)
        if not inside.any():
            shape = (len(rows), len(cols))
            return np.zeros((6, *shape), np.float32), np.full(shape, QA_FILL, np.uint16)
        limit = (-MARGIN, self._size + MARGIN - 1)
        r = np.clip(np.floor(home_rows).astype(np.int64), *limit)
        c = np.clip(np.floor(home_cols).astype(np.int64), *limit)
        area = range(int(r.min()), int(r.max()) + 1), range(int(c.min()), int(c.max()) + 1)
        ground, water = self._ground.reflectance(day, *area)
        if self._map.is_shift and ground.shape[1:] == r.shape:
            land, wet = ground, water
        else:
            r, c = r - area[0].start, c - area[1].start
            land, wet = np.stack([band[r, c] for band in ground]), water[r, c]
        seen, qa = sky.over(land, wet, rows, cols)
        return seen, np.where(inside, qa, QA_FILL).astype(np.uint16)

    def _sensor_noise(self, shift: NDArray[np.int64], rows: range, cols: range) -> NDArray[np.float32]:
        r = (np.arange(rows.start, rows.stop) + shift[0]) % _NOISE_SIDE
        c = (np.arange(cols.start, cols.stop) + shift[1]) % _NOISE_SIDE
        value: NDArray[np.float32] = self._grain[r][:, c] * np.float32(0.0013)
        return value


def _digital_numbers(reflectance: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Collection 2 numbers of reflectance (which is used up), 0 outside the scene."""
    reflectance -= np.float32(OFFSET)
    reflectance /= np.float32(SCALE)
    np.rint(reflectance, out=reflectance)
    np.clip(reflectance, 1, 65535, out=reflectance)
    reflectance *= inside
    return reflectance.astype(np.uint16)


@contextmanager
def _open_bands(
    folder: Path, product: str, grid: Grid
) -> Iterator[tuple[list[rasterio.io.DatasetWriter], rasterio.io.DatasetWriter]]:
    """Open SR_B2..B7 and QA_PIXEL for writing, as USGS lays them out."""
    shape = {"height": grid.height, "width": grid.width, "count": 1, "dtype": "uint16"}
    place = {"driver": "GTiff", "crs": grid.crs, "transform": grid.transform}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1, "predictor": 2}
    with ExitStack() as stack:
        bands = [
            stack.enter_context(
                rasterio.open(folder / f"{product}_SR_B{band}.TIF", "w", nodata=0, **shape, **place, **layout)
            )
            for band in REFLECTIVE_BANDS
        ]
        quality = stack.enter_context(
            rasterio.open(folder / f"{product}_QA_PIXEL.TIF", "w", nodata=QA_FILL, **shape, **place, **layout)
        )
        for dataset in (*bands, quality):
            dataset.update_tags(AREA_OR_POINT="Point")
        yield bands, quality
