"""A province with known truth in real formats (Landsat bundles, Hansen loss, units) for demo, tests and benchmarks.

- `build_landscape`: which field, road, river or forest every pixel belongs to
- `Ground`: reflectance of that land on a day (palette x noise x terrain)
- `Sky`: clouds, shadows, haze and their QA_PIXEL
- `SceneWriter`: bundles of two path/rows in two UTM zones
- `truth`: truth rasters, Hansen loss, units, true areas
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyproj import Transformer

from pipeline.simulate.bundles import SceneWriter, Track, overpasses, overpasses_before
from pipeline.simulate.grids import Grid
from pipeline.simulate.landscape import build_landscape
from pipeline.simulate.params import Province, ProvinceParams
from pipeline.simulate.render import Ground
from pipeline.simulate.truth import loss_grid, loss_name, write_loss, write_table, write_truth, write_units

__all__ = ["Province", "ProvinceParams", "simulate"]

_HOME_CRS = "EPSG:32648"
_LAT = -1.45  # middle of WRS-2 row 61; everything lies south of the equator, inside one Hansen tile
_BORDER_LON, _INNER_LON = 108.0, 106.5


def simulate(folder: Path, params: ProvinceParams, window: int = 1024) -> Province:
    """Write a province below `folder`, 30 m, UTM 48 north (and 49 north for the eastern path/row); returns its files.

    `window` (pixels a side, a multiple of 256 is fastest) bounds the memory and changes no pixel.

    Raises:
        InputError: when the asked share of loss does not fit.
    """
    home = _home_grid(params)
    paths = _paths(folder, home)
    for path in (paths.scenes, paths.loss.parent):
        path.mkdir(parents=True, exist_ok=True)
    landscape = build_landscape(params.size, params.seed, params.loss_years, params.loss_share)
    areas = write_truth(paths.truth, paths.truth_year, home, landscape, window)
    write_loss(paths.loss, home, landscape, window)
    write_units(paths.admin, paths.aoi, home, params.seed)
    ground = Ground(landscape, params.seed)
    for track in _tracks(params):
        writer = SceneWriter(ground, home, track, params)
        passes = overpasses(track, params, _centre_lon(params), _LAT)
        shares = _cloud_shares(params, track.path, len(passes))
        early = overpasses_before(track, params, _centre_lon(params), _LAT)
        passes, shares = [*passes, *early], [*shares, *[params.cloud / 3] * len(early)]
        for overpass, share in zip(passes, shares, strict=True):
            writer.write(paths.scenes, overpass, share, window)
    write_table(paths.truth_table, params, home, areas)
    return paths


def _centre_lon(params: ProvinceParams) -> float:
    return _BORDER_LON if params.two_zones else _INNER_LON


def _home_grid(params: ProvinceParams) -> Grid:
    x, y = Transformer.from_crs("EPSG:4326", _HOME_CRS, always_xy=True).transform(_centre_lon(params), _LAT)
    half = params.size * 15.0
    left, top = (round((v - 15.0) / 30.0) * 30.0 + 15.0 for v in (x - half, y + half))
    return Grid(_HOME_CRS, left, top, 30.0, params.size, params.size)


def _paths(folder: Path, home: Grid) -> Province:
    return Province(
        folder=folder,
        scenes=folder / "scenes",
        loss=folder / "loss" / loss_name(loss_grid(home)),
        admin=folder / "admin.gpkg",
        aoi=folder / "aoi.gpkg",
        truth=folder / "truth.tif",
        truth_year=folder / "truth_year.tif",
        truth_table=folder / "truth.json",
    )


def _tracks(params: ProvinceParams) -> tuple[Track, ...]:
    if not params.two_zones:
        return (Track(122, 61, _HOME_CRS, None, None),)
    return Track(122, 61, _HOME_CRS, None, 0.65), Track(121, 61, "EPSG:32649", 0.35, None)


def _cloud_shares(params: ProvinceParams, path: int, count: int) -> list[float]:
    """Share of cloud per overpass: uneven as in life, `params.cloud` on average."""
    rng = np.random.default_rng([params.seed, 7, path])
    weight = rng.lognormal(0.0, 0.6, count)
    return [float(s) for s in np.clip(weight / weight.mean() * params.cloud, 0.0, 0.95)]
