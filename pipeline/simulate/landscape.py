"""The land: which element (field, road, river, forest ...) every home-grid pixel belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio import features
from scipy import ndimage
from shapely.geometry import LineString

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.simulate import shapes
from pipeline.simulate.appearance import FOREST, KIND_INDEX, Elements
from pipeline.simulate.noise import NoiseField

GAP = 3  # pixels of other ground between two objects, so that no 8-connected patch of loss has two drivers
_TRIES = 40
_OLD_YEARS = tuple(range(2004, 2014))
_CODES = {driver.name: driver.code for driver in FOREST_LOSS_DRIVERS}


@dataclass(frozen=True)
class Landscape:
    """Element number of every pixel, int32 [size, size] on the home grid, and the elements' table."""

    element: NDArray[np.int32]
    elements: Elements

    @property
    def size(self) -> int:
        """Pixels a side."""
        return int(self.element.shape[0])

    def window(self, rows: range, cols: range) -> NDArray[np.int32]:
        """Element numbers [len(rows), len(cols)]; beyond the border the land is mirrored."""
        if rows.start >= 0 and rows.stop <= self.size and cols.start >= 0 and cols.stop <= self.size:
            return self.element[rows.start : rows.stop, cols.start : cols.stop]
        value: NDArray[np.int32] = self.element[np.ix_(_mirror(rows, self.size), _mirror(cols, self.size))]
        return value


def _mirror(span: range, size: int) -> NDArray[np.int64]:
    index = np.arange(span.start, span.stop)
    index = np.where(index < 0, -1 - index, index)
    return np.where(index >= size, 2 * size - 1 - index, index)


class _Builder:
    """Places stamps on an empty forest; only `build_landscape` uses it."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.element = np.zeros((size, size), dtype=np.int32)
        self.blocked = np.zeros((size, size), dtype=np.bool_)
        self.kinds: list[int] = [FOREST]
        self.drivers: list[int] = [NO_DATA]
        self.years: list[int] = [0]
        self.cleared: list[float] = [1900.0]
        self.shore = np.zeros((0, 2), dtype=np.int64)
        self.preference = NoiseField.draw(rng, (60.0, 400.0), 1.5)

    def line(self, path: LineString, width: float, kind: str) -> NDArray[np.bool_]:
        """Draw a river or road of `width` pixels; returns where it lies."""
        ground = path.buffer(width / 2, quad_segs=3)
        shape = (self.size, self.size)
        burnt = features.rasterize([ground], shape, dtype="uint8", all_touched=width < 1.5)
        drawn: NDArray[np.bool_] = (burnt > 0) & ~self.blocked
        self.element[drawn] = len(self.kinds)
        self.blocked |= drawn
        self._part(KIND_INDEX[kind], NO_DATA, 0, 2005.0)
        return drawn

    def _part(self, kind: int, driver: int, year: int, cleared: float) -> None:
        self.kinds.append(kind)
        self.drivers.append(driver)
        self.years.append(year)
        self.cleared.append(cleared)

    def place(self, stamp: shapes.Stamp, driver: int, near_water: bool) -> bool:
        """Put a stamp where nothing is in its way; False when no free place was found."""
        mask = stamp.parts >= 0
        height, width = mask.shape
        if max(height, width) + 2 > self.size:
            return False
        corners = self._corners(height, width, driver, near_water)
        for row, col in corners:
            if not self.blocked[row : row + height, col : col + width][mask].any():
                self._put(stamp, mask, int(row), int(col), driver)
                return True
        return False

    def _corners(self, height: int, width: int, driver: int, near_water: bool) -> NDArray[np.int64]:
        """Candidate upper-left corners: near water, or else the better half by the driver's own preference field."""
        span = np.array([self.size - height, self.size - width])
        corners = self.rng.integers(1, np.maximum(span, 2), (2 * _TRIES, 2))
        if near_water and len(self.shore):
            centres = self.shore[self.rng.integers(len(self.shore), size=_TRIES)]
            offset = self.rng.normal(0, max(height, width) * 0.6 + 3, (_TRIES, 2))
            near = np.rint(centres + offset - [height / 2, width / 2]).astype(np.int64)
            return np.clip(near, 1, np.maximum(span - 1, 1))
        # fields far apart are independent: each driver reads its own stretch of the one preference field
        liking = self.preference.at(corners[:, 0] + 2500 * driver, corners[:, 1]) + self.rng.normal(
            0, 0.7, len(corners)
        )
        return corners[np.argsort(-liking)][:_TRIES]

    def _put(self, stamp: shapes.Stamp, mask: NDArray[np.bool_], row: int, col: int, driver: int) -> None:
        height, width = mask.shape
        first = len(self.kinds)
        view = self.element[row : row + height, col : col + width]
        view[mask] = stamp.parts[mask] + first
        for kind, year, cleared in zip(stamp.kinds, stamp.years, stamp.cleared, strict=True):
            self._part(KIND_INDEX[kind], driver, int(year) if driver != NO_DATA else 0, float(cleared))
        padded = ndimage.binary_dilation(np.pad(mask, GAP), np.ones((2 * GAP + 1, 2 * GAP + 1), bool))
        top, left = max(0, row - GAP), max(0, col - GAP)
        area = self.blocked[top : row + height + GAP, left : col + width + GAP]
        area |= padded[top - row + GAP :, left - col + GAP :][: area.shape[0], : area.shape[1]]

    def fill(self, make: shapes.Shape, pixels: int, driver: int, years: tuple[int, ...], water: float = 0.0) -> int:
        """Place objects until `pixels` are covered or places run out; returns the pixels covered."""
        done, failures = 0, 0
        while done < pixels and failures < 25:
            stamp = make(self.rng, pixels - done, years)
            if self.place(stamp, driver, self.rng.random() < water):
                done, failures = done + stamp.pixels, 0
            else:
                failures += 1
        return done

    def finish(self) -> Landscape:
        """Freeze the table; draws the jitter of every element."""
        count = len(self.kinds)
        table = Elements(
            kind=np.array(self.kinds, np.int16),
            driver=np.array(self.drivers, np.uint8),
            year=np.array(self.years, np.int16),
            cleared=np.array(self.cleared),
            phase=self.rng.random(count),
            rate=np.exp(self.rng.normal(0, 0.22, count)),
            tone=np.clip(self.rng.standard_normal((count, 2)), -2.5, 2.5),
        )
        return Landscape(self.element, table)


def _course(
    rng: np.random.Generator, size: int, start: tuple[float, float], bearing: float, bend: tuple[float, float]
) -> LineString:
    """Course of a river or road from `start` to the province's border, in (col, row) pixels.

    `bend` is the swing of the heading (radians) and the wavelength of the bends (pixels): a sine-generated curve
    (Langbein and Leopold 1966) whose phase and strength wander.
    """
    steps = int(2.2 * size / 3)
    swing, wavelength = bend
    wander = ndimage.gaussian_filter1d(rng.standard_normal((3, steps + 80)), max(6.0, wavelength / 5), axis=1)
    wander /= wander.std(axis=1, keepdims=True)
    phase = np.cumsum(2 * np.pi * 3 / wavelength * np.exp(0.2 * wander[0])) + rng.uniform(0, 2 * np.pi)
    heading = bearing + swing * np.clip(0.8 + 0.35 * wander[1], 0.2, 1.3) * np.sin(phase) + 0.25 * swing * wander[2]
    x, y = start[0] + np.cumsum(3 * np.cos(heading)), start[1] + np.cumsum(3 * np.sin(heading))
    good = (x > -40) & (x < size + 40) & (y > -40) & (y < size + 40)
    last = max(3, int(np.argmin(good)) if not good.all() else good.size)
    return LineString(np.stack([x[:last], y[:last]], axis=1))


def _rivers_and_roads(builder: _Builder) -> None:
    size, rng = builder.size, builder.rng
    shore = []
    for _ in range(max(1, round(size / 1500))):
        start = (-20.0, rng.uniform(0.15, 0.85) * size)
        width = float(np.clip(rng.normal(size / 130, 2.0), 3.0, 22.0))
        course = _course(rng, size, start, rng.normal(0, 0.2), (rng.uniform(0.9, 1.4), width * rng.uniform(11, 17)))
        river = builder.line(course, width, "river")
        shore.append(_sample(rng, river))
        for _ in range(max(2, round(size / 260))):
            point = course.interpolate(rng.random(), normalized=True)
            bearing = rng.choice([-1, 1]) * rng.uniform(0.9, 2.2)
            stream = _course(rng, size, (point.x, point.y), bearing, (rng.uniform(0.8, 1.3), rng.uniform(22, 50)))
            stream = LineString(stream.coords[: max(3, int(len(stream.coords) * rng.uniform(0.15, 0.9)))])
            shore.append(_sample(rng, builder.line(stream, rng.uniform(0.7, 2.8), "river")))
    for _ in range(max(1, round(size / 900))):
        start = (rng.uniform(0.1, 0.9) * size, -20.0)
        road = _course(rng, size, start, np.pi / 2 + rng.normal(0, 0.3), (0.45, rng.uniform(60, 160)))
        builder.line(road, rng.uniform(0.6, 1.1), "road")
    builder.shore = np.concatenate(shore)


def _sample(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Up to 20,000 pixels of a mask as (row, col)."""
    where = np.flatnonzero(mask)
    if where.size > 20_000:
        where = rng.choice(where, 20_000, replace=False)
    return np.stack(np.unravel_index(where, mask.shape), axis=1)


def build_landscape(size: int, seed: int, years: tuple[int, ...], loss_share: float) -> Landscape:
    """Forest with rivers, old land use and `loss_share` of fresh clearings, int32 element numbers [size, size].

    Raises:
        InputError: when the clearings do not fit.
    """
    rng = np.random.default_rng([seed, 1])
    builder = _Builder(size, rng)
    _rivers_and_roads(builder)
    total = loss_share * size * size
    plan: list[tuple[str, shapes.Shape, float, float]] = [
        ("plantation", shapes.plantation, 0.44, 0.0),
        ("smallholder_agriculture", shapes.smallholder, 0.29, 0.35),
        ("other", shapes.mining, 0.055, 0.8),
        ("other", shapes.fish_ponds, 0.03, 0.7),
        ("other", shapes.logging, 0.045, 0.0),
        ("grassland_shrubland", shapes.grassland, 0.14, 0.1),
    ]
    done = 0
    for name, make, share, water in plan:
        done += builder.fill(make, max(12, int(share * total)), _CODES[name], years, water)
    if done < 0.97 * total:  # what found no place goes to the small shapes
        done += builder.fill(shapes.smallholder, int((total - done) / 2), _CODES["smallholder_agriculture"], years)
        done += builder.fill(shapes.grassland, int(total - done), _CODES["grassland_shrubland"], years)
    if done < 0.8 * total:
        raise InputError(
            f"loss_share {loss_share}: only {done / size**2:.3f} fits a province of {size} px; ask for less"
        )
    old = 0.25 * size * size * max(0.0, 0.35 - loss_share)
    for make, share, water in (
        (shapes.village, 0.06, 0.8),
        (shapes.smallholder, 0.4, 0.5),
        (shapes.plantation, 0.3, 0.0),
        (shapes.grassland, 0.24, 0.1),
    ):
        builder.fill(make, int(share * old), NO_DATA, _OLD_YEARS, water)
    return builder.finish()
