"""Clearings as small stamps: what each driver leaves on the ground, in pixels of 30 m.

A stamp is drawn alone and placed later. Its parts (a field, a planting block, a road) are numbered from 0; each part
has one appearance kind (`appearance.KINDS`), one loss year and one clearing time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PIXEL_HA = 0.09
_NOTHING = -1


@dataclass(frozen=True)
class Stamp:
    """One object: `parts` int32 [rows, cols] part number or -1; per part its kind, loss year and clearing time."""

    parts: NDArray[np.int32]
    kinds: tuple[str, ...]
    years: NDArray[np.int64]
    cleared: NDArray[np.floating]

    @property
    def pixels(self) -> int:
        """Number of cleared pixels."""
        return int((self.parts >= 0).sum())


def _stamp(
    parts: NDArray[np.int64], kinds: list[str], years: NDArray[np.int64], cleared: NDArray[np.floating]
) -> Stamp:
    rows, cols = np.flatnonzero((parts >= 0).any(1)), np.flatnonzero((parts >= 0).any(0))
    cut = parts[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    return Stamp(cut.astype(np.int32), tuple(kinds), years, cleared)


def _axes(side: int, angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates along and across an object turned by `angle` (radians), origin in the middle of a square."""
    centre = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(centre, centre, indexing="ij")
    return x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)


def blob(rng: np.random.Generator, pixels: int, stretch: float = 1.0, rough: float = 0.6) -> NDArray[np.bool_]:
    """Irregular patch of `pixels` pixels: the highest values of smooth noise on a round hill."""
    side = int(2.6 * np.sqrt(pixels * stretch)) + 5
    along, across = _axes(side, rng.uniform(0, np.pi))
    radius = np.sqrt(pixels / np.pi)
    hill = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch)) / radius
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), max(0.8, radius * 0.35))
    fine = ndimage.gaussian_filter(rng.standard_normal((side, side)), 0.8)
    score = rough * noise / noise.std() + 0.12 * rough * fine / fine.std() - 1.6 * hill
    mask: NDArray[np.bool_] = score >= np.partition(score.ravel(), -pixels)[-pixels]
    return mask


def _years(rng: np.random.Generator, years: tuple[int, ...], count: int) -> NDArray[np.int64]:
    return rng.choice(np.asarray(years), size=count)


def _blocks(
    rng: np.random.Generator, pixels: int, block: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Turned rectangle in blocks: block number or -1, road mask, position along (0..1)."""
    aspect = rng.uniform(1.0, 2.3)
    length, width = np.sqrt(pixels * aspect), np.sqrt(pixels / aspect)
    angle = rng.choice([0.0, np.pi / 2]) + np.radians(rng.normal(0.0, 14.0))
    along, across = _axes(int(np.hypot(length, width)) + 5, angle)
    u, v = along + length / 2, across + width / 2
    inside = (u >= 0) & (u < length) & (v >= 0) & (v < width)
    if rng.random() < 0.5:  # most concessions are no perfect rectangle: one corner was never theirs
        inside &= ~((u < length * rng.uniform(0.15, 0.4)) & (v < width * rng.uniform(0.2, 0.5)))
    number = (u // block[0]).astype(np.int64) * 1000 + (v // block[1]).astype(np.int64)
    road = inside & ((u % block[0] < 1.0) | (v % block[1] < 1.0)) & (u > 1) & (v > 1)
    _, compact = np.unique(np.where(inside, number, -1), return_inverse=True)
    return np.where(inside, compact.reshape(u.shape) - 1, _NOTHING), road, np.clip(u / length, 0, 1)


def plantation(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Industrial plantation of 30-400 ha: planting blocks (oil palm 1,000 x 300 m, or acacia) in a grid of roads."""
    pixels = int(np.clip(rng.lognormal(np.log(800), 0.75), 345, min(4400, max(345, room))))
    palm = rng.random() < 0.65
    block = (rng.uniform(24, 35), rng.uniform(8, 11)) if palm else (rng.uniform(14, 22), rng.uniform(11, 17))
    parts, road, position = _blocks(rng, pixels, block)
    if rng.random() < 0.4:  # a strip of forest left along a stream
        rows, cols = np.indices(parts.shape)
        course = parts.shape[0] * rng.uniform(0.3, 0.7) + 3.0 * np.sin(cols / rng.uniform(4, 9) + rng.uniform(0, 6))
        strip = np.abs(rows - course - (cols - parts.shape[1] / 2) * rng.uniform(-0.6, 0.6)) < rng.uniform(0.8, 2.0)
        parts, road = np.where(strip, _NOTHING, parts), road & ~strip
    count = int(parts.max()) + 1
    # cleared in one or two campaigns that advance along the concession
    order = np.sort(_years(rng, years, 2)) if rng.random() < 0.45 else np.repeat(_years(rng, years, 1), 2)
    number = np.maximum(parts, 0).ravel()
    covered = np.bincount(number, minlength=count)  # 0 where the stream took a whole block
    share = np.bincount(number, position.ravel(), count) / np.maximum(covered, 1)
    late = share > rng.uniform(0.35, 0.65)
    year = np.where(late, order[1], order[0])
    cleared = year + np.clip(rng.uniform(0.05, 0.8) + 0.15 * share + rng.normal(0, 0.04, count), 0.0, 0.98)
    young = str(rng.choice(["palm", "terraced_palm"])) if palm else "acacia"
    late_pixels = late[np.maximum(parts, 0)]
    parts = np.where(road & (parts >= 0), count + late_pixels, parts)
    kinds = [*[young] * count, "road", "road"]
    return _stamp(parts, kinds, np.append(year, order), np.append(cleared, order + rng.uniform(0, 0.3, 2)))


def smallholder(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Mosaic of irregular fields of 0.5-6 ha in different states, with hedges and leftover trees between them."""
    keep = rng.uniform(0.6, 0.95)
    pixels = int(np.clip(rng.lognormal(np.log(330), 0.7), 40, min(1500, max(60, room))) / keep)
    hull = blob(rng, pixels, stretch=rng.uniform(1.0, 2.2))
    rows, cols = np.nonzero(hull)
    field = float(np.clip(rng.lognormal(np.log(15), 0.4), 7, 45))
    count = max(3, int(pixels / field))
    chosen = rng.choice(rows.size, size=min(count, rows.size), replace=False)
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(1.0, 1.8)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * [[squeeze], [1 / squeeze]]
    points = np.stack([rows, cols]) + rng.normal(0, 0.25, (2, rows.size))
    seeds = turn @ (points[:, chosen] + rng.uniform(-0.5, 0.5, (2, chosen.size)))
    distance = np.abs((turn @ points)[:, :, None] - seeds[:, None, :]).astype(np.float32)
    # Manhattan cells have straighter, squarer borders than round ones: nearer to hand-cut fields
    near = np.partition(distance.sum(0), 1, axis=1)
    owner = distance.sum(0).argmin(1)
    hedge = (near[:, 1] - near[:, 0] < 0.9) & (rng.random() < 0.6) & (rng.random(rows.size) < 0.6)
    tree = (rng.random(chosen.size) > keep)[owner] | hedge
    if tree.all():
        tree = np.zeros_like(tree)
    parts = np.full(hull.shape, _NOTHING, dtype=np.int64)
    parts[rows, cols] = np.where(tree, _NOTHING, owner)
    kinds = rng.choice(["field", "wet_field", "garden"], p=[0.6, 0.12, 0.28], size=chosen.size)
    year = _years(rng, years, chosen.size)
    # neighbours clear together more often than not
    year = np.where(rng.random(chosen.size) < 0.8, year[0], year)
    return _stamp(parts, [str(k) for k in kinds], year, year + rng.uniform(0.05, 0.95, chosen.size))


def grassland(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Grass and shrub of 1-80 ha without any straight line, often after fire."""
    pixels = int(np.clip(rng.lognormal(np.log(150), 0.9), 12, min(890, max(20, room))))
    mask = blob(rng, pixels, stretch=rng.uniform(1.0, 2.0), rough=rng.uniform(0.6, 1.3))
    zone = (ndimage.gaussian_filter(rng.standard_normal(mask.shape), np.sqrt(pixels) * 0.25) > 0).astype(np.int64)
    year = np.repeat(_years(rng, years, 1), 2)
    kind = str(rng.choice(["burnt_grass", "grassland"], p=[0.45, 0.55]))
    return _stamp(np.where(mask, zone, _NOTHING), [kind, "grassland"], year, year + rng.uniform(0.3, 0.8))


def mining(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Open pits of bright bare ground with turbid ponds, stretched along a stream; 3-60 ha."""
    pixels = int(np.clip(rng.lognormal(np.log(150), 0.7), 34, min(660, max(34, room))))
    mask = blob(rng, pixels, stretch=rng.uniform(1.2, 3.5), rough=0.9)
    pond = ndimage.gaussian_filter(rng.standard_normal(mask.shape), 1.0)
    pond = mask & (pond > np.quantile(pond[mask], rng.uniform(0.62, 0.85)))
    rim = mask & ~ndimage.binary_erosion(mask) & ~pond
    parts = np.where(mask, 0, _NOTHING)
    parts[rim], parts[pond] = 1, 2
    year = np.repeat(_years(rng, years, 1), 3)
    return _stamp(parts, ["pit", "spoil", "mine_pond"], year, year + rng.uniform(0.0, 0.7))


def logging(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Branching one-pixel roads with felling gaps beside them, green again within two years."""
    side = int(np.clip(rng.uniform(35, 110), 30, max(36, room**0.75)))
    parts = np.full((side, side), _NOTHING, dtype=np.int64)
    trunk = _walk(rng, (side / 2, 1.0), rng.normal(0, 0.2), side, side)
    lines = [trunk]
    for _ in range(int(rng.integers(1, 2 + side // 22))):
        start = trunk[int(rng.integers(len(trunk)))]
        bearing = rng.choice([-1, 1]) * rng.uniform(0.6, 1.4)
        lines.append(_walk(rng, (float(start[0]), float(start[1])), bearing, side // 2, side))
    points = np.concatenate(lines)
    for r, c in points[rng.random(len(points)) < 0.14]:
        offset = rng.normal(0, 2.6, 2)
        gap = blob(rng, int(rng.integers(3, 14)))
        _paste(parts, gap, int(r + offset[0]), int(c + offset[1]), 1)
    parts[points[:, 0], points[:, 1]] = 0
    year = np.repeat(_years(rng, years, 1), 2)
    return _stamp(parts, ["logging_road", "gap"], year, year + rng.uniform(0.1, 0.6))


def _walk(
    rng: np.random.Generator, start: tuple[float, float], bearing: float, steps: int, side: int
) -> NDArray[np.int64]:
    """8-connected pixels [n, 2] of a gently turning path, up to where it leaves the square of `side` pixels."""
    turns = bearing + np.cumsum(rng.normal(0, 0.09, 2 * steps))
    path = np.stack([start[0] + np.cumsum(np.sin(turns)) * 0.6, start[1] + np.cumsum(np.cos(turns)) * 0.6], axis=1)
    points = np.rint(np.vstack([start, path])).astype(np.int64)
    good = ((points >= 0) & (points < side)).all(1)
    return points[: int(np.argmin(good))] if not good.all() else points


def _paste(parts: NDArray[np.int64], mask: NDArray[np.bool_], row: int, col: int, value: int) -> None:
    """Write `value` where `mask`, centred on a pixel and clipped to the stamp."""
    rows, cols = np.nonzero(mask)
    rows, cols = rows + row - mask.shape[0] // 2, cols + col - mask.shape[1] // 2
    good = (rows >= 0) & (rows < parts.shape[0]) & (cols >= 0) & (cols < parts.shape[1])
    parts[rows[good], cols[good]] = value


def fish_ponds(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Grid of small rectangular ponds between dikes, 10-80 ha."""
    pixels = int(np.clip(rng.lognormal(np.log(260), 0.6), 100, min(880, max(100, room))))
    parts, dike, _ = _blocks(rng, pixels, (rng.uniform(4, 7), rng.uniform(3, 5)))
    count = int(parts.max()) + 1
    parts = np.where(dike & (parts >= 0), count, parts)
    year = np.repeat(_years(rng, years, 1), count + 1)
    cleared = year + rng.uniform(0, 0.6) + rng.uniform(0, 0.3, count + 1)
    return _stamp(parts, ["pond"] * count + ["dike"], year, cleared)


def village(rng: np.random.Generator, room: int, years: tuple[int, ...]) -> Stamp:
    """Settlement of 2-30 ha: houses, yards and trees."""
    pixels = int(np.clip(rng.lognormal(np.log(90), 0.6), 25, min(330, max(25, room))))
    mask = blob(rng, pixels, stretch=rng.uniform(1, 3))
    year = _years(rng, years, 1)
    return _stamp(np.where(mask, 0, _NOTHING), ["village"], year, year + 0.5)


Shape = Callable[[np.random.Generator, int, tuple[int, ...]], Stamp]
