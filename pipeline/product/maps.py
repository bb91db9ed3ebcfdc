"""A static map of a product as one inline SVG: events as a small picture, unit borders as paths over it.

It is what the report prints, and what it shows where scripts are off.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from PIL import Image, ImageDraw

from pipeline.product.styles import Category

_LONG_SIDE = 1400  # pixels of the picture; the page shows it at about half that size, so it stays sharp in print
_DOT = 1.5  # pixels: what is no larger is drawn as one
_MOST_LABELS = 40
_KILOMETRES_PER_DEGREE = 111.32


@dataclass(frozen=True)
class Frame:
    """Extent in degrees and size in pixels of a map drawn with the right proportions at its middle latitude.

    `east` passes 180 where the region lies across the antimeridian.
    """

    west: float
    south: float
    east: float
    north: float
    width: int
    height: int

    @property
    def transform(self) -> Affine:
        """Return pixel to degrees."""
        across, down = (self.east - self.west) / self.width, (self.north - self.south) / self.height
        return Affine(across, 0, self.west, 0, -down, self.north)

    def scale_bar(self) -> tuple[float, float]:
        """Return length in pixels and in kilometres of a round distance, about a fifth of the width."""
        latitude = np.radians((self.south + self.north) / 2)
        total = (self.east - self.west) * _KILOMETRES_PER_DEGREE * float(np.cos(latitude))
        power = 10.0 ** np.floor(np.log10(total / 5))
        kilometres = float(max(k for k in (1, 2, 5) if k * power <= total / 5 * 1.0000001) * power)
        return kilometres / total * self.width, kilometres


def frame_of(*layers: gpd.GeoDataFrame) -> Frame | None:
    """Return the frame of the first layers that hold anything (EPSG:4326), with a margin; None where nothing does."""
    shapes = np.concatenate([shapely.get_parts(np.asarray(layer.geometry.array)) for layer in layers])
    boxes = shapely.bounds(shapes)
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(boxes):
        return None
    if boxes[:, 2].max() - boxes[:, 0].min() > 180:
        boxes[boxes[:, 0] < 0] += (360, 0, 360, 0)
    west, south = boxes[:, :2].min(axis=0).tolist()
    east, north = boxes[:, 2:].max(axis=0).tolist()
    margin = max(east - west, north - south, 1e-3) * 0.03
    west, south, east, north = west - margin, south - margin, east + margin, north + margin
    aspect = (east - west) * max(float(np.cos(np.radians((south + north) / 2))), 0.05) / (north - south)
    width, height = (_LONG_SIDE, _LONG_SIDE / aspect) if aspect >= 1 else (_LONG_SIDE * aspect, _LONG_SIDE)
    return Frame(west, south, east, north, max(int(width), 40), max(int(height), 40))


def picture(events: gpd.GeoDataFrame, categories: tuple[Category, ...], frame: Frame) -> str:
    """Return the events as a palette PNG in a data URI; hatched categories get diagonal stripes.

    Small events are drawn as one pixel, last the smallest, so that none is hidden.
    """
    codes = event_codes(events, categories)
    order = np.argsort(-events["area_ha"].to_numpy(float), kind="stable")
    order = order[codes[order] > 0]
    shapes, codes = along(np.asarray(events.geometry.array), frame)[order], codes[order]
    box = shapely.bounds(shapes)
    low, high = (_pixels(box[:, corner], frame) for corner in ((0, 3), (2, 1)))
    large = ((high - low) > _DOT).any(axis=1)
    canvas = _painted(shapes[large], codes[large], frame)
    column, row = np.floor((low[~large] + high[~large]) / 2).astype(int).T
    canvas[row, column] = codes[~large]
    hatched = [k for k, category in enumerate(categories, 1) if category.pattern == "hatch"]
    rows, columns = np.indices(canvas.shape, dtype=np.int32)
    canvas[np.isin(canvas, hatched) & ((rows + columns) % 6 >= 3)] = 255
    palette = {k: category.rgb for k, category in enumerate(categories, 1)}
    image = _png(canvas, {**palette, 255: (255, 255, 255)})
    return "data:image/png;base64," + base64.b64encode(image).decode()


def event_codes(events: gpd.GeoDataFrame, categories: tuple[Category, ...]) -> np.ndarray:
    """Return 1 + index of each event's category, 0 where none fits."""
    codes = np.zeros(len(events), np.uint8)
    for k, category in enumerate(categories, 1):
        fits = [(events[name] == value).fillna(False).to_numpy(bool) for name, value in category.conditions]
        codes[np.logical_and.reduce(fits)] = k
    return codes


def borders(layer: gpd.GeoDataFrame, frame: Frame) -> str:
    """Return SVG path data of the borders, simplified to about half a pixel; rings below a pixel are left out."""
    lines, _ = rings(along(np.asarray(layer.geometry.dropna().array), frame))
    lines = shapely.transform(lines, lambda points: _pixels(points, frame))
    lines = shapely.simplify(lines, 0.5, preserve_topology=False)
    box = shapely.bounds(lines)
    big = lines[np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]) >= 1] if len(lines) else lines
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shapely.get_coordinates(ring)) + "Z" for ring in big)


def labels(units: gpd.GeoDataFrame, frame: Frame) -> list[tuple[float, float, str]]:
    """Return (x, y, name) of the units with most loss, at a point inside each."""
    known = units[units.geometry.notna()].nlargest(_MOST_LABELS, "loss_ha")
    places = _pixels(inside(known, frame), frame)
    return [(round(x, 1), round(y, 1), str(name)) for (x, y), name in zip(places, known["unit_name"], strict=True)]


def inside(layer: gpd.GeoDataFrame, frame: Frame) -> np.ndarray:
    """Return one point [n, 2] in degrees inside each polygon; NaN where there is none."""
    points = shapely.point_on_surface(along(np.asarray(layer.geometry.array), frame))
    return np.column_stack([shapely.get_x(points), shapely.get_y(points)])


def rings(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rings of polygons of one or several parts, outer and inner, and the row of `shapes` each is of."""
    parts, shape = shapely.get_parts(shapes, return_index=True)
    lines, part = shapely.get_rings(parts, return_index=True)
    return lines, shape[part]


def along(shapes: np.ndarray, frame: Frame) -> np.ndarray:
    """Return shapes (degrees) with longitudes that run on past 180 where the frame does."""
    if frame.east <= 180:
        return shapes
    return np.asarray(shapely.transform(shapes, lambda p: p + np.column_stack([360 * (p[:, 0] < 0), 0 * p[:, 0]])))


def _pixels(points: np.ndarray, frame: Frame) -> np.ndarray:
    return np.column_stack(~frame.transform @ (points[:, 0], points[:, 1]))


def _painted(shapes: np.ndarray, codes: np.ndarray, frame: Frame) -> np.ndarray:
    """Return a canvas with polygons filled in turn; what lies in a hole is painted after what lies around it."""
    image = Image.new("L", (frame.width, frame.height))
    brush = ImageDraw.Draw(image)
    parts, shape = shapely.get_parts(shapes, return_index=True)
    lines, part = shapely.get_rings(parts, return_index=True)
    points, line = shapely.get_coordinates(lines, return_index=True)
    corners = _pixels(points, frame).ravel().tolist()
    end = (2 * np.cumsum(np.bincount(line, minlength=len(lines)))).tolist()
    shell = np.diff(part, prepend=-1) > 0
    fill = np.where(shell, codes[shape[part]], 0).tolist()
    for a, b, value in zip([0, *end[:-1]], end, fill, strict=True) if end else ():
        brush.polygon(corners[a:b], fill=value)
    return np.array(image)


def _png(canvas: np.ndarray, palette: dict[int, tuple[int, int, int]]) -> bytes:
    """Return a palette PNG; index 0 is transparent."""
    image = Image.fromarray(canvas)
    colours = [palette.get(k, (255, 255, 255)) for k in range(256)]
    image.putpalette([part for colour in colours for part in colour])
    content = io.BytesIO()
    image.save(content, "PNG", transparency=0, compress_level=9)
    return content.getvalue()
