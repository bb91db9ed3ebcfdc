"""The known truth of a province: rasters, the Hansen-coded loss raster, areas, units and outline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Proj, Transformer
from rasterio import features
from rasterio.windows import Window
from scipy import ndimage, spatial

from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.simulate.grids import Grid, HomeMap
from pipeline.simulate.landscape import Landscape
from pipeline.simulate.params import ProvinceParams

HANSEN_PIXEL = 0.00025
NAMES = ("Kuala Mérah", "Muara Āmbar", "Tanjung Élok", "Bukit Lümut", "Rawa Çempaka", "Sungai Pútih")
_CELL = 8  # home pixels a side of the cells that units are made of


@contextmanager
def _raster(path: Path, grid: Grid, nodata: int | None) -> Iterator[rasterio.io.DatasetWriter]:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=grid.height,
        width=grid.width,
        crs=grid.crs,
        transform=grid.transform,
        nodata=nodata,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
    ) as dataset:
        yield dataset


def write_truth(driver: Path, year: Path, home: Grid, landscape: Landscape, window: int) -> dict[str, dict[str, float]]:
    """Write the two truth rasters; returns hectares {driver name: {year: area}} on the WGS 84 ellipsoid."""
    codes, years = landscape.elements.driver, (landscape.elements.year - 2000).clip(0).astype(np.uint8)
    area = np.zeros((256, 256))
    with _raster(driver, home, NO_DATA) as driver_file, _raster(year, home, None) as year_file:
        for rows, cols in home.windows(window):
            element = landscape.element[rows.start : rows.stop, cols.start : cols.stop]
            target = Window(cols.start, rows.start, len(cols), len(rows))
            driver_file.write(codes[element], 1, window=target)
            year_file.write(years[element], 1, window=target)
            pair = codes[element].astype(np.int64) * 256 + years[element]
            hectares = np.broadcast_to(_pixel_hectares(home, rows, cols), pair.shape)
            area += np.bincount(pair.ravel(), hectares.ravel(), 65536).reshape(256, 256)
    found = sorted({int(y) for y in years} - {0})
    return {d.name: {str(2000 + y): round(float(area[d.code, y]), 4) for y in found} for d in FOREST_LOSS_DRIVERS}


def _pixel_hectares(home: Grid, rows: range, cols: range) -> NDArray[np.float64]:
    """Area of the pixels on the ellipsoid, one value a column (the scale of UTM hardly changes along a column)."""
    x = home.left + (np.arange(cols.start, cols.stop) + 0.5) * home.pixel
    y = np.full(x.shape, home.top - (rows.start + rows.stop) / 2 * home.pixel)
    projection = Proj(home.crs)
    lon, lat = projection(x, y, inverse=True)
    scale = np.asarray(projection.get_factors(lon, lat).areal_scale)
    hectares: NDArray[np.float64] = home.pixel**2 / 1e4 / scale
    return hectares


def loss_grid(home: Grid) -> Grid:
    """Grid of the loss raster: whole Hansen pixels that cover the province, 0.00025 degrees, EPSG:4326."""
    west, south, east, north = shapely.bounds(_to_degrees(home, _box(home)))
    left, top = np.floor(west / HANSEN_PIXEL), np.ceil(north / HANSEN_PIXEL)
    height, width = int(top - np.floor(south / HANSEN_PIXEL)), int(np.ceil(east / HANSEN_PIXEL) - left)
    return Grid("EPSG:4326", float(left) * HANSEN_PIXEL, float(top) * HANSEN_PIXEL, HANSEN_PIXEL, height, width)


def loss_name(grid: Grid) -> str:
    """File name of the Hansen tile (10 by 10 degrees, named by its upper-left corner) that holds the raster."""
    lat, lon = int(np.ceil(grid.top / 10) * 10), int(np.floor(grid.left / 10) * 10)
    corner = f"{abs(lat):02d}{'S' if lat < 0 else 'N'}_{abs(lon):03d}{'W' if lon < 0 else 'E'}"
    return f"Hansen_GFC-2023-v1.11_lossyear_{corner}.tif"


def write_loss(path: Path, home: Grid, landscape: Landscape, window: int) -> None:
    """Write the Hansen-coded loss raster, nearest home pixel, 0 outside the province."""
    grid = loss_grid(home)
    way = HomeMap(home, grid)
    years = (landscape.elements.year - 2000).clip(0).astype(np.uint8)
    with _raster(path, grid, None) as dataset:
        for rows, cols in grid.windows(window):
            r, c = (np.floor(p).astype(np.int64) for p in way.centres(rows, cols))
            inside = (r >= 0) & (r < landscape.size) & (c >= 0) & (c < landscape.size)
            value = np.zeros(r.shape, np.uint8)
            value[inside] = years[landscape.element[r[inside], c[inside]]]
            dataset.write(value, 1, window=Window(cols.start, rows.start, len(cols), len(rows)))


def _box(home: Grid) -> shapely.Polygon:
    bottom, right = home.top - home.height * home.pixel, home.left + home.width * home.pixel
    return shapely.box(home.left, bottom, right, home.top)


def _to_degrees(home: Grid, shape: shapely.Geometry) -> shapely.Geometry:
    """Polygons to EPSG:4326, densified so that the home grid's straight lines stay straight there."""
    way = Transformer.from_crs(home.crs, "EPSG:4326", always_xy=True)

    def ring(line: shapely.LinearRing) -> NDArray[np.float64]:
        points = _densified(shapely.get_coordinates(line), 40 * home.pixel)
        return np.stack(way.transform(points[:, 0], points[:, 1]), axis=1)

    parts = [shapely.Polygon(ring(p.exterior), [ring(i) for i in p.interiors]) for p in shapely.get_parts(shape)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _densified(points: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Points at most `step` apart; an edge gets the very same points whichever way round it is drawn.

    `shapely.segmentize` interpolates from the edge's start, so two neighbours would differ in the last digit.
    """
    lines = []
    for start, end in pairwise(points):
        turned = tuple(start) > tuple(end)
        low, high = (end, start) if turned else (start, end)
        share = np.linspace(0, 1, max(1, int(np.ceil(np.hypot(*(high - low)) / step))) + 1)[:, None]
        line = low * (1 - share) + high * share
        lines.append((line[::-1] if turned else line)[:-1])
    return np.concatenate([*lines, points[-1:]])


def units(home: Grid, seed: int) -> list[shapely.Geometry]:
    """Four to six units with irregular borders that tile the province, EPSG:4326."""
    rng = np.random.default_rng([seed, 6])
    count = int(rng.integers(4, 7))
    side = -(-home.height // _CELL)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1) + 0.5
    warp = np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), side / 14) for _ in range(2)], axis=-1)
    seeds = rng.uniform(0.12, 0.88, (60, count, 2)) * side
    spacing = [spatial.distance.pdist(s).min() for s in seeds]
    warped = cells + warp / warp.std() * side * 0.035
    owner = spatial.cKDTree(seeds[int(np.argmax(spacing))]).query(warped)[1].astype(np.uint8)
    owner = _whole(owner, count)
    edge = home.pixel * _CELL
    corner = Grid(home.crs, home.left, home.top, edge, side, side)
    pieces: list[list[shapely.Geometry]] = [[] for _ in range(count)]
    for geometry, value in features.shapes(owner, transform=corner.transform, connectivity=4):
        pieces[int(value)].append(shapely.geometry.shape(geometry))
    # a vertex at every cell corner (whole metres), so that the ends of neighbours' borders are vertices of both
    dense = [shapely.transform(shapely.segmentize(shapely.union_all(p), edge), np.rint) for p in pieces]
    merged = shapely.intersection(dense, _box(home))
    smooth = shapely.coverage_simplify(merged, 1.2 * edge, simplify_boundary=False)
    return [_to_degrees(home, shape) for shape in smooth]


def _whole(owner: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Give exclaves to the neighbour: each unit keeps its largest connected part."""
    kept = np.zeros(owner.shape, bool)
    for value in range(count):
        parts, number = ndimage.label(owner == value)
        if number:
            kept |= parts == 1 + int(np.argmax(ndimage.sum_labels(owner == value, parts, np.arange(1, number + 1))))
    nearest = ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True)
    result: NDArray[np.uint8] = owner[tuple(nearest)]
    return result


def write_units(admin: Path, aoi: Path, home: Grid, seed: int) -> None:
    """Write the units (columns ID, NAME) and their union, EPSG:4326."""
    import geopandas

    shapes = units(home, seed)
    table = geopandas.GeoDataFrame(
        {"ID": [f"61.{n + 1:02d}" for n in range(len(shapes))], "NAME": NAMES[: len(shapes)]},
        geometry=shapes,
        crs="EPSG:4326",
    )
    table.to_file(admin, layer="units", driver="GPKG", engine="pyogrio")
    whole = shapely.coverage_union_all(shapes)
    outline = geopandas.GeoDataFrame({"NAME": ["Clearcause province"]}, geometry=[whole], crs="EPSG:4326")
    outline.to_file(aoi, layer="aoi", driver="GPKG", engine="pyogrio")


def write_table(path: Path, params: ProvinceParams, home: Grid, areas: dict[str, dict[str, float]]) -> None:
    """Write truth.json: parameters and the true area per driver and year."""
    record = {
        "simulated": True,
        "seed": params.seed,
        "params": params.record(),
        "crs": home.crs,
        "area_unit": "hectares on the WGS 84 ellipsoid",
        "area_ha": areas,
        "area_ha_by_driver": {name: round(sum(by_year.values()), 4) for name, by_year in areas.items()},
        "driver_codes": {d.name: d.code for d in FOREST_LOSS_DRIVERS},
    }
    path.write_text(json.dumps(record, indent=2), encoding="utf-8")
