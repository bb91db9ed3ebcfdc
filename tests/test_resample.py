"""Looking pixels up in another grid, held against the same sums written out for one pixel at a time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject as warp

from pipeline.resample import find_places, mean_reach, take_mean, take_nearest

NODATA = 0
SIDE = 90
CASES = {
    # longitude and latitude, CRS and pixel of the grid, CRS and pixel of the file
    "next zone": (-60.1, -12.0, "EPSG:32620", 30, "EPSG:32621", 30),
    "next zone, far north": (18.1, 64.0, "EPSG:32634", 30, "EPSG:32633", 30),
    "half a pixel": (-60.1, -3.1, "EPSG:32620", 30, "EPSG:32620", 30),
    "equal area": (-60.1, -3.1, "+proj=laea +lat_0=-2 +lon_0=-60.1 +datum=WGS84 +units=m", 30, "EPSG:32620", 30),
    "a file in degrees": (-60.1, -12.0, "EPSG:32620", 30, "EPSG:4326", 0.00027),
    "coarser": (-60.1, -12.0, "EPSG:32621", 100, "EPSG:32620", 30),
    "finer": (-60.1, -12.0, "EPSG:32621", 10, "EPSG:32620", 30),
}


def placed(lon, lat, crs, pixel, shift=0.0):
    """Affine of a picture of SIDE pixels a side with a place in its middle."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return Affine(pixel, 0, x - (SIDE / 2 + shift) * pixel, 0, -pixel, y + (SIDE / 2 + shift) * pixel)


def grids(name):
    lon, lat, target, pixel, source, size = CASES[name]
    grid = CRS.from_user_input(target).to_wkt(), tuple(placed(lon, lat, target, pixel))[:6]
    return grid, (CRS.from_user_input(source).to_wkt(), placed(lon, lat, source, size, 0.5))


def exact(grid, file, window):
    """Rows and columns of the file at the middles of a window's pixels."""
    row0, col0, height, width = window
    rows, cols = np.mgrid[row0 : row0 + height, col0 : col0 + width] + 0.5
    x, y = Affine(*grid[1]) @ (cols, rows)
    x, y = Transformer.from_crs(grid[0], file[0], always_xy=True).transform(x, y)
    cols, rows = ~file[1] @ (x, y)
    return rows, cols


def by_hand(values, row, col, reach):
    """The mean at one place, NODATA where the nearest pixel has no data."""
    height, width = values.shape
    near = int(np.floor(row + 1e-6)), int(np.floor(col + 1e-6))
    if not (0 <= near[0] < height and 0 <= near[1] < width) or values[near] == NODATA:
        return NODATA
    total = weights = 0.0
    for k, m in np.ndindex(values.shape):
        weight = max(0, 1 - abs(k + 0.5 - row) / reach[0]) * max(0, 1 - abs(m + 0.5 - col) / reach[1])
        if weight and values[k, m] != NODATA:
            total += weight * values[k, m]
            weights += weight
    return total / weights


def noise(seed, holes=0.1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((SIDE, SIDE)) < holes, NODATA, rng.integers(1, 30_000, (SIDE, SIDE))).astype(np.uint16)


def cut(values, places):
    """What is read of a file for some places, and where it starts."""
    top, left, bottom, right = (max(side, 0) for side in places.box)
    return values[top:bottom, left:right], (top, left)


@pytest.mark.parametrize("name", CASES)
def test_places_are_those_of_the_projection(name):
    grid, file = grids(name)
    window = 3, -5, 80, 70
    places = find_places(grid, file, window, (1, 1))
    rows, cols = exact(grid, file, window)
    for values, expected in ((places.rows, rows), (places.cols, cols)):
        # a picture whose pixels are their own places: taking means of it interpolates the corners alone
        i, v = np.divmod(np.arange(80) + places.inset[0], 16)
        j, u = np.divmod(np.arange(70) + places.inset[1], 16)
        v, u = ((v + 0.5) / 16)[:, None], ((u + 0.5) / 16)[None]
        left = values[i][:, j] * (1 - v) + values[i + 1][:, j] * v
        right = values[i][:, j + 1] * (1 - v) + values[i + 1][:, j + 1] * v
        assert np.abs(left * (1 - u) + right * u - expected).max() < 1e-3
    top, first, bottom, last = places.box
    assert top <= rows.min() - 0.99
    assert first <= cols.min() - 0.99
    assert bottom >= rows.max() + 0.99
    assert last >= cols.max() + 0.99


@pytest.mark.parametrize("name", CASES)
def test_means_and_nearest_pixels_are_those_worked_out_one_by_one(name):
    grid, file = grids(name)
    window = (-6, 20, 40, 17) if name != "coarser" else (30, 30, 20, 17)
    reach = mean_reach(grid, file, (SIDE, SIDE))
    places, values = find_places(grid, file, window, reach), noise(1)
    mean, nearest = take_mean(*cut(values, places), places, NODATA), take_nearest(*cut(values, places), places, 7)
    rows, cols = exact(grid, file, window)
    steep = 2 * 30_000 * 1e-3
    for r, c in np.ndindex(*window[2:]):
        row, col = rows[r, c], cols[r, c]
        if min(abs(row - round(row)), abs(col - round(col))) < 2e-3 and name != "half a pixel":
            continue
        assert abs(mean[r, c] - by_hand(values, row, col, reach)) < steep, (r, c)
        near = int(np.floor(row + 1e-6)), int(np.floor(col + 1e-6))
        inside = 0 <= near[0] < SIDE and 0 <= near[1] < SIDE
        assert nearest[r, c] == (values[near] if inside else 7)
    assert (mean != NODATA).any()


def test_a_mean_is_as_wide_as_the_pixel_it_makes():
    reach = {name: mean_reach(*grids(name), (SIDE, SIDE)) for name in CASES}
    assert {name for name in CASES if reach[name] != (1.0, 1.0)} == {"coarser"}
    assert reach["coarser"] == pytest.approx((100 / 30, 100 / 30), rel=0.01)


def test_coarser_pixels_agree_with_gdal():
    grid, file = grids("coarser")
    rows, cols = np.mgrid[:SIDE, :SIDE]
    hills = (12_000 + 3_000 * np.sin(rows / 9) * np.cos(cols / 7)).astype(np.float32)
    places = find_places(grid, file, (0, 0, SIDE, SIDE), mean_reach(grid, file, hills.shape))
    ours, gdals = take_mean(*cut(hills, places), places, NODATA), np.zeros((SIDE, SIDE), np.float32)
    warp(
        hills, gdals, src_transform=file[1], src_crs=file[0], src_nodata=0, dst_transform=Affine(*grid[1]),
        dst_crs=grid[0], dst_nodata=0, resampling=Resampling.bilinear, tolerance=0,
    )  # fmt: skip
    inside = scipy.ndimage.binary_erosion((ours != 0) & (gdals != 0), iterations=3)
    steepest = 3_000 / 7
    assert inside.sum() > 300
    assert np.abs(ours - gdals)[inside].max() < steepest / 4  # GDAL's filter is that of the whole window's scale


@settings(deadline=None, max_examples=30)
@given(st.integers(-20, 80), st.integers(-20, 80), st.integers(1, 40), st.integers(1, 40), st.sampled_from(list(CASES)))
def test_a_window_is_the_cut_of_the_whole(row, col, height, width, name):
    grid, file = grids(name)
    reach, values = mean_reach(grid, file, (SIDE, SIDE)), noise(2)
    whole = find_places(grid, file, (-20, -20, 140, 140), reach)
    places = find_places(grid, file, (row, col, height, width), reach)
    inside = slice(row + 20, row + 20 + height), slice(col + 20, col + 20 + width)
    for take, extra in ((take_mean, NODATA), (take_nearest, 1)):
        part = take(*cut(values, places), places, extra)
        assert part.tobytes() == take(*cut(values, whole), whole, extra)[inside].tobytes()


def test_a_mean_that_happens_to_be_the_nodata_value_is_not_lost():
    grid, file = grids("half a pixel")
    values = np.where(np.indices((SIDE, SIDE)).sum(0) % 2, -5, 5).astype(np.int16)
    places = find_places(grid, file, (10, 10, 4, 4), (1, 1))
    assert (np.abs(take_mean(*cut(values, places), places, 0)) == 5).all()


def test_where_the_file_has_no_place_there_is_nothing():
    grid = CRS.from_user_input("EPSG:32620").to_wkt(), (30.0, 0.0, 5e8, 0.0, -30.0, 5e8)
    _, file = grids("next zone")
    places = find_places(grid, file, (0, 0, 20, 20), (1, 1))
    part, origin = cut(noise(3), places)
    assert (take_mean(part, origin, places, NODATA) == NODATA).all()
    assert (take_nearest(part, origin, places, 1) == 1).all()
