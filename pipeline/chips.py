"""Pictures of events before and after their loss, drawn from the scenes that a plan names. For people, not the model.

Both pictures of an event show the same ground in the same bands with the same limits of reflectance, so that they
compare. A picture that cannot be made never stops a run: the pair says why.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from PIL import Image, ImageDraw
from rasterio.enums import Resampling
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from pipeline.catalog.check import UNREADABLE, open_header
from pipeline.catalog.fetch import localised
from pipeline.catalog.scene import QA_PIXEL, Scene
from pipeline.errors import InputError
from pipeline.grid import RunGrid
from pipeline.gridded import warp_boxes
from pipeline.pictures import ChipPair, Picture, picture_bands
from pipeline.plan import Plan

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SIDE = 288
"""Pixels a side of a picture."""
_COARSE = 96
"""Pixels a side in which clouds over a picture are counted."""
_LEAST, _MOST = 64, 512
"""Pixels of the run's grid a side that a picture shows; a larger event still fits in whole."""
_AROUND = 2.5
_CLEAR = 0.5
"""Share of an event that must be clear for a picture of it."""
_GOOD = 0.9
_NOT_CLEAR = 0b111111
"""QA_PIXEL bits 0-5: fill, dilated cloud, cirrus, cloud, cloud shadow, snow (Landsat Collection 2, LSDS-1619)."""
_LIMITS = {"blue": 0.16, "green": 0.18, "red": 0.20, "nir08": 0.5, "swir16": 0.45, "swir22": 0.35}
"""Reflectance shown as full brightness; 0 is black."""
_GAMMA = 1.5
_NO_DATA = 48
_QUALITY = 80
_AT_ONCE = 2
"""Pictures drawn at once: most of it is GDAL's and Pillow's work, and of each only some scenes' pixels are held."""
_LINE, _HALO = (255, 225, 0), (0, 0, 0)


@dataclass(frozen=True)
class _Frame:
    """The square of ground that a picture shows.

    `x`, `y` are its upper-left corner and `extent` its side in units of `crs`; `event` is bool [_COARSE, _COARSE],
    `outline` the event in pixels of the picture, x to the right and y down, `bounds` that of the event in `crs`.
    """

    crs: str
    x: float
    y: float
    extent: float
    event: np.ndarray
    outline: Any
    bounds: tuple[float, float, float, float]


def chip_ids(events: GeoDataFrame, count: int) -> list[str]:
    """Which events a report shows: first the largest ones (half of `count`), then the least certain of the others.

    Only events with a driver; those of equal size or confidence in order of `event_id`.
    """
    told = events[events["driver"].notna()]
    largest = told.sort_values(["area_ha", "event_id"], ascending=[False, True])["event_id"].head(count - count // 2)
    rest = told[~told["event_id"].isin(largest)]
    unsure = rest.sort_values(["confidence", "event_id"])["event_id"].head(count - len(largest))
    return [str(name) for name in (*largest, *unsure)]


def chips_record(chips: Sequence[ChipPair]) -> dict[str, object]:
    """What a run's record says of its pictures: how many events have one before and after, and of which scenes."""
    before = [pair.before for pair in chips if pair.before]
    after = [pair.after for pair in chips if pair.after]
    return {
        "events": len(chips),
        "before": len(before),
        "after": len(after),
        "scenes": sorted({picture.scene_id for picture in (*before, *after)}),
    }


def draw_chips(plan: Plan, events: GeoDataFrame, ids: Sequence[str]) -> list[ChipPair]:
    """Draw JPEGs of SIDE x SIDE pixels of events before and after their loss, in the order of `ids`.

    From a finished product: `draw_chips(read_plan(work), events, ids)` with `read_plan` of pipeline.plan, `work` the
    folder `<product>.work`, and `events` the layer of drivers.gpkg read with geopandas.

    Args:
        plan: the frozen plan of the run; names scenes, their files and the grid.
        events: columns event_id, loss_year and geometry, in any CRS.
        ids: event_id of the events wanted.

    Raises:
        InputError: an id is not among the events.
    """
    rows = events.set_index("event_id")
    missing = [name for name in ids if name not in rows.index]
    if missing:
        raise InputError(f"event {missing[0]}: not among the {len(rows)} events of this product")
    wanted = rows.loc[list(ids)].to_crs(plan.grid.crs)
    # not in the threads: rasterio sets the filters of warnings for it, which are the process's
    frames = [_frame(plan, geometry) for geometry in wanted.geometry]
    with ThreadPoolExecutor(_AT_ONCE, "chip") as pool:
        return list(pool.map(partial(_pair, plan), ids, wanted["loss_year"], frames))


def _pair(plan: Plan, event_id: str, year: int, frame: _Frame) -> ChipPair:
    early = [plan.before_scenes[s] for s in plan.before.get(year, ())]
    late = [plan.scenes[s] for s in _used(plan, year, frame.bounds) if s in plan.scenes]
    # files are opened for a few pixels: listing their folders would take longer than reading them
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        before, why_not = _draw(plan, frame, early, year, "before")
        after, nor = _draw(plan, frame, late, year, "after")
    return ChipPair(event_id, before, after, "; ".join(text for text in (why_not, nor) if text))


def _frame(plan: Plan, geometry: Any) -> _Frame:
    """A square around an event (in the run's CRS), on whole pixels of the run's grid."""
    grid = plan.grid
    row0, col0, side = _square(grid, geometry.bounds)
    x, y, extent = grid.x0 + col0 * grid.resolution, grid.y0 - row0 * grid.resolution, side * grid.resolution
    coarse = _affine(x, y, extent / _COARSE)
    inside = geometry_mask([geometry], (_COARSE, _COARSE), coarse, all_touched=True, invert=True)
    outline = shapely.transform(geometry, lambda xy: np.column_stack([xy[:, 0] - x, y - xy[:, 1]]) * SIDE / extent)
    return _Frame(grid.crs, x, y, extent, inside, outline, geometry.bounds)


def _square(grid: RunGrid, bounds: tuple[float, float, float, float]) -> tuple[int, int, int]:
    """First row and column and side, in pixels of the run's grid, of the picture of an event with these bounds."""
    west, south, east, north = bounds
    size = max(east - west, north - south) / grid.resolution
    side = _whole(max(_LEAST, min(_AROUND * size, _MOST), 1.2 * size))
    col0 = _whole(((west + east) / 2 - grid.x0) / grid.resolution - side / 2)
    row0 = _whole((grid.y0 - (south + north) / 2) / grid.resolution - side / 2)
    return row0, col0, side


def picture_reads(plan: Plan, events: GeoDataFrame) -> dict[str, set[tuple[int, int, int]]]:
    """What pictures of these events may read: scene id to squares (row, column, side) of the run's grid."""
    found: dict[str, set[tuple[int, int, int]]] = {}
    shapes = events.geometry.to_crs(plan.grid.crs)
    for year, bounds in zip(events["loss_year"], shapes.bounds.itertuples(index=False), strict=True):
        square = _square(plan.grid, tuple(bounds))
        for scene in (*plan.before.get(int(year), ()), *_used(plan, int(year), tuple(bounds))):
            found.setdefault(scene, set()).add(square)
    return found


def picture_boxes(
    scene: Scene, band: str, squares: Collection[tuple[int, int, int]], grid: RunGrid
) -> list[tuple[int, int, int, int]]:  # fmt: skip
    """Pixels of a local band file (first row and column, and those after the last) that drawing squares may touch."""
    with open_header(scene.assets[band].href) as source:
        place = scene.grid if source.crs is None else None
        crs, affine = (source.crs, source.transform) if place is None else (place.crs, Affine(*place.transform))
    rows, cols, sides = np.array(sorted(squares), float).reshape(-1, 3).T
    left, top, extent = grid.x0 + cols * grid.resolution, grid.y0 - rows * grid.resolution, sides * grid.resolution
    # of the pixels that are made the coarsest are those in which clouds are counted
    return warp_boxes(grid.crs, np.stack([left, top, left + extent, top - extent], 1), extent / _COARSE, crs, affine)


def _whole(value: Any) -> Any:
    """The nearest whole number, halves upwards even where they miss by a rounding error of a projection."""
    rounded = np.floor(np.asarray(value) + 0.501).astype(int)
    return rounded if rounded.ndim else int(rounded)


def _affine(x: float, y: float, step: float) -> Affine:
    return Affine(step, 0, x, 0, -step, y)


def _used(plan: Plan, year: int, bounds: tuple[float, float, float, float]) -> list[str]:
    """Scenes that the blocks under an event read for its loss year."""
    west, south, east, north = bounds
    grid, found = plan.grid, set[str]()
    for planned in plan.blocks:
        block = planned.block
        left, top = grid.x0 + block.col0 * grid.resolution, grid.y0 - block.row0 * grid.resolution
        right, bottom = left + block.width * grid.resolution, top - block.height * grid.resolution
        if west < right and east > left and south < top and north > bottom:
            found |= set(planned.scenes.get(year, ()))
    return sorted(found)


def _draw(plan: Plan, frame: _Frame, scenes: Iterable[Scene], year: int, when: str) -> tuple[Picture | None, str]:
    """Draw the scene that shows the event best, or say why none does."""
    faults: list[str] = []
    seen: list[tuple[float, float, Scene]] = []
    for scene in (localised(s, Path(plan.cache)) for s in scenes):
        try:
            seen.append((*_clear(scene, frame, plan.bands), scene))
        except UNREADABLE as error:
            faults.append(f"scene {scene.id} cannot be read ({' '.join(str(error).split())[:120]})")
    seen = [found for found in seen if found[0] >= _CLEAR]
    for _, _, scene in sorted(seen, key=lambda found: _preference(found[0], found[1], found[2], year)):
        try:
            return _picture(scene, frame, picture_bands(plan.bands)), ""
        except UNREADABLE as error:
            faults.append(f"scene {scene.id} cannot be read ({' '.join(str(error).split())[:120]})")
    return None, "; ".join([f"no clear image {when} the loss is at hand", *faults])


def _preference(event: float, around: float, scene: Scene, year: int) -> tuple[object, ...]:
    """Sort key of a scene: clear enough, surely after the loss (or before it), clearest, closest to the loss.

    Within the loss year itself an image may show the forest still standing, so those come last, the latest first.
    """
    day = scene.datetime
    distance = abs(day.year + day.timetuple().tm_yday / 366 - (year + (0 if day.year < year else 1)))
    clear = (event + around) / 2
    return clear < _GOOD, day.year == year, -round(clear, 2), distance, scene.id


def _clear(scene: Scene, frame: _Frame, bands: Sequence[str]) -> tuple[float, float]:
    """Share of clear pixels in the event and in the whole picture; scenes without QA_PIXEL are masked by fill only."""
    if QA_PIXEL in scene.assets:
        clear = (_read(scene, QA_PIXEL, frame, _COARSE) & _NOT_CLEAR) == 0
    else:
        clear = ~np.isnan(_reflectance(scene, picture_bands(bands)[0], frame, _COARSE))
    return float(clear[frame.event].mean()), float(clear.mean())


def _reflectance(scene: Scene, band: str, frame: _Frame, side: int) -> np.ndarray:
    """Reflectance float64 [side, side], NaN where the scene has none."""
    asset = scene.assets[band]
    values = _read(scene, band, frame, side)
    return np.where(values == (asset.nodata or 0), np.nan, values * asset.scale + asset.offset)


def _read(scene: Scene, band: str, frame: _Frame, side: int) -> np.ndarray:
    """One band straight on a picture's pixels, uint16 [side, side]; outside the scene stands its fill value."""
    asset, quality = scene.assets[band], band == QA_PIXEL
    nodata = 1 if quality else asset.nodata or 0
    with open_header(asset.href) as source:
        place: dict[str, Any] = {}
        if source.crs is None and scene.grid is not None:
            place = {"src_crs": scene.grid.crs, "src_transform": Affine(*scene.grid.transform)}
        affine, how = _affine(frame.x, frame.y, frame.extent / side), Resampling.bilinear
        with WarpedVRT(
            source, crs=frame.crs, transform=affine, height=side, width=side, src_nodata=nodata, nodata=nodata,
            resampling=Resampling.nearest if quality else how, **place,
        ) as warped:  # fmt: skip
            return np.asarray(warped.read(1))


def _picture(scene: Scene, frame: _Frame, bands: tuple[str, ...]) -> Picture:
    layers = []
    for band in bands:
        share = _reflectance(scene, band, frame, SIDE) / _LIMITS.get(band, 0.2)
        shown = 255 * np.clip(share, 0, 1) ** (1 / _GAMMA)
        layers.append(np.where(np.isnan(share), _NO_DATA, np.rint(shown)).astype(np.uint8))
    image = Image.fromarray(np.stack(layers if len(layers) == 3 else layers * 3, axis=-1))
    _outline(image, frame.outline)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(stream.getvalue(), SIDE, SIDE, scene.datetime.date(), scene.id)


def _outline(image: Image.Image, outline: Any) -> None:
    """Draw the event's outline just outside it, bright on a dark halo, so that it shows on forest and on bare soil."""
    zoom = 3
    rings = [
        ring
        for part in shapely.get_parts(shapely.buffer(outline, 1.5, join_style="mitre"))
        for ring in (part.exterior, *part.interiors)
    ]
    for colour, width, strength in ((_HALO, 4.0, 0.5), (_LINE, 2.0, 1.0)):
        mask = Image.new("L", (SIDE * zoom, SIDE * zoom))
        pen = ImageDraw.Draw(mask)
        for ring in rings:
            xy = _whole(shapely.get_coordinates(ring) * zoom)
            pen.line([tuple(point) for point in xy.tolist()], fill=round(255 * strength), width=round(width * zoom))
        image.paste(colour, mask=mask.resize((SIDE, SIDE), Image.Resampling.BOX))
