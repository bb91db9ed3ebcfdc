"""Geometry of a run: its one pixel grid, the blocks on it, regions, and areas that may be quoted.

Pixel values travel with an odc-geo `GeoBox`. Landsat's pixel centres lie on multiples of 30 m, so the grid is
anchored at pixel centres: scenes of the grid's own zone are copied, never resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry as Geometry

from pipeline.errors import ConfigError

EQUAL_AREA = "EPSG:6933"
"""Ellipsoidal cylindrical equal-area on WGS 84: planar areas there are areas on the ellipsoid."""
_UTM_OVERHANG = 0.5


@dataclass(frozen=True)
class Block:
    """A square of the run's grid: rows `row0..row0+height`, columns `col0..col0+width` in pixels of that grid."""

    id: str
    row0: int
    col0: int
    height: int
    width: int


@dataclass(frozen=True)
class RunGrid:
    """The pixel grid of a run: CRS, pixel size in CRS units, upper-left corner (x, y), shape and block in pixels."""

    crs: str
    resolution: float
    x0: float
    y0: float
    height: int
    width: int
    block: int

    @property
    def geobox(self) -> GeoBox:
        """The whole grid."""
        return self.window(0, 0, self.height, self.width)

    def window(self, row0: int, col0: int, height: int, width: int) -> GeoBox:
        """Return the GeoBox of a window; it may lie partly or wholly outside the grid (margins do)."""
        r = self.resolution
        affine = Affine(r, 0.0, self.x0 + col0 * r, 0.0, -r, self.y0 - row0 * r)
        return GeoBox((height, width), affine, self.crs)

    def slices(self, row0: int, col0: int, height: int, width: int) -> tuple[slice, slice]:
        """Return the coordinates (x, y) of a window, as torchgeo asks for it; `pixels` undoes it."""
        west, south, east, north = self.window(row0, col0, height, width).boundingbox.bbox
        return slice(west, east), slice(south, north)

    def pixels(self, x: slice, y: slice) -> tuple[int, int, int, int]:
        """First row and column, last + 1 row and column, of pixel-aligned slices of coordinates of its CRS."""
        r = self.resolution
        row0, row1 = round((self.y0 - y.stop) / r), round((self.y0 - y.start) / r)
        return row0, round((x.start - self.x0) / r), row1, round((x.stop - self.x0) / r)

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks in row-major order; those of the last row and column are cut at the grid's edge."""
        for i, row0 in enumerate(range(0, self.height, self.block)):
            for j, col0 in enumerate(range(0, self.width, self.block)):
                size = min(self.block, self.height - row0), min(self.block, self.width - col0)
                yield Block(f"r{i:04d}c{j:04d}", row0, col0, *size)


def make_grid(aoi: Geometry, crs: str, resolution: float, block: int) -> RunGrid:
    """Lay the grid that covers `aoi` (EPSG:4326).

    Raises:
        ConfigError: for a CRS that PROJ does not know or that is not metric when resolution says metres.
    """
    chosen = choose_crs(aoi) if crs == "auto" else crs
    try:
        parsed = CRS.from_user_input(chosen)
    except CRSError as error:
        raise ConfigError(f"grid.crs {crs!r}: not a coordinate reference system that PROJ knows") from error
    if parsed.is_geographic and resolution >= 1:
        raise ConfigError(
            f"grid: resolution {resolution} is in the units of {crs}, which are degrees; name a metric CRS"
        )
    west, south, east, north = reproject(shapely.segmentize(aoi, 0.05), "EPSG:4326", chosen).bounds
    half = resolution / 2
    col0, row0 = math.floor((west - half) / resolution), math.ceil((north - half) / resolution)
    width = math.ceil((east - half) / resolution) - col0
    height = row0 - math.floor((south - half) / resolution)
    x0, y0 = col0 * resolution + half, row0 * resolution + half
    return RunGrid(chosen, resolution, x0, y0, max(height, 1), max(width, 1), block)


def choose_crs(aoi: Geometry) -> str:
    """Pick the UTM zone that holds `aoi` (EPSG:4326), else an equal-area projection centred on it.

    Like USGS, the north zone is taken on both sides of the equator (negative northings in the south), so that
    Landsat scenes are copied and not resampled. A zone may overhang half a degree.
    """
    west, south, east, north = aoi.bounds
    zone = min(int((west + east) / 2 + 180) // 6 + 1, 60)
    centre = zone * 6 - 183
    reach = 3 + _UTM_OVERHANG
    if west >= centre - reach and east <= centre + reach and south > -80 and north < 84:
        return f"EPSG:{32600 + zone}"
    lon, lat = round((west + east) / 2, 1), round((south + north) / 2, 1)
    return f"+proj=laea +lat_0={lat} +lon_0={lon} +datum=WGS84 +units=m +no_defs"


def read_region(aoi: Path | Sequence[float]) -> Geometry:
    """Return the region as one valid (Multi)Polygon in EPSG:4326.

    Raises:
        ConfigError: when it is missing, empty, has no CRS, is invalid (bow-tie), or crosses the antimeridian.
    """
    if isinstance(aoi, Path):
        geometry = _read_polygons(aoi)
    else:
        west, south, east, north = aoi
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90 and west != east):
            raise ConfigError(f"region.aoi {list(aoi)}: write [west, south, east, north] in degrees, south below north")
        if west > east:
            raise ConfigError(f"region.aoi {list(aoi)}: crosses the antimeridian; run its two sides as two regions")
        geometry = shapely.box(west, south, east, north)
    bounds = geometry.bounds
    if bounds[2] - bounds[0] > 180:
        raise ConfigError("region.aoi: crosses the antimeridian (wider than 180 degrees); run its sides as two regions")
    if bounds[0] < -180 or bounds[2] > 180 or bounds[1] < -90 or bounds[3] > 90:
        raise ConfigError(f"region.aoi: lies outside -180..180, -90..90 degrees: {[round(b, 3) for b in bounds]}")
    return geometry


def _read_polygons(path: Path) -> Geometry:
    """Read a vector file's polygons as one geometry in EPSG:4326; see `read_region` for the errors."""
    frame = read_vector(path, None, "region.aoi")
    polygons = frame.geometry[~frame.geometry.isna() & ~frame.geometry.is_empty]
    if polygons.empty:
        raise ConfigError(f"region.aoi {path}: holds no polygon")
    if not set(polygons.geom_type) <= {"Polygon", "MultiPolygon"}:
        raise ConfigError(f"region.aoi {path}: needs polygons, found {sorted(set(polygons.geom_type))}")
    reasons = [shapely.is_valid_reason(g) for g in polygons if not g.is_valid]
    if reasons:
        raise ConfigError(f"region.aoi {path}: invalid polygon ({reasons[0]}); repair it (QGIS: Fix geometries)")
    union: Geometry = polygons.to_crs("EPSG:4326").union_all()
    return union


def read_vector(path: Path, layer: str | None, key: str) -> Any:
    """Read a vector layer as GeoDataFrame with a CRS; raises ConfigError naming the configuration `key`."""
    import geopandas as gpd
    from pyogrio.errors import DataLayerError, DataSourceError

    if not path.exists():
        raise ConfigError(f"{key} {path}: no such file")
    try:
        frame = gpd.read_file(path, layer=layer, engine="pyogrio") if layer else gpd.read_file(path, engine="pyogrio")
    except (DataSourceError, DataLayerError, ValueError) as error:
        raise ConfigError(f"{key} {path}: cannot be read as vector data ({' '.join(str(error).split())})") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise ConfigError(f"{key} {path}: has no geometry column")
    if frame.crs is None:
        raise ConfigError(f"{key} {path}: has no CRS; assign one and save it again")
    return frame


def reproject(geometry: Any, source: str | CRS, target: str | CRS) -> Any:
    """Transform a geometry or an array of geometries between CRSs, x before y."""
    transformer = Transformer.from_crs(source, target, always_xy=True)

    def move(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))

    return shapely.transform(geometry, move)


def area_ha(geometry: Any) -> Any:
    """Area on the WGS 84 ellipsoid, in hectares, of geometries in EPSG:4326 (one or an array).

    Edges are taken as straight in the equal-area projection, where parallels and meridians are straight: exact for
    the pixels of a geographic raster, and within 1e-6 of the geodesic polygon for outlines of pixels. Slanting edges
    of a kilometre, in polygons drawn by hand, are no geodesics there and differ by up to 1e-4.
    """
    return shapely.area(reproject(geometry, "EPSG:4326", EQUAL_AREA)) / 10_000
