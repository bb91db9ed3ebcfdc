from __future__ import annotations

import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from shapely import box

from pipeline.events import FIXED_POINT, LogitSums, burn_events, sum_by_event, to_fixed_point
from pipeline.grid import RunGrid, reproject
from pipeline.loss import LossParams, read_loss

GRID = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 8, 10, 2048)
WORLD = box(-50, -25, -40, -15)


def burn(shapes, grid=GRID, years=None):
    """Labels, pixels and bounds of shapes given in the grid's CRS."""
    frame = gpd.GeoDataFrame(
        {"loss_year": years or [2020] * len(shapes)},
        geometry=list(reproject(np.array(shapes, dtype=object), grid.crs, "EPSG:4326")),
        crs="EPSG:4326",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.tif"
        burned = burn_events(frame, grid, path)
        with rasterio.open(path) as raster:
            assert raster.crs == grid.crs
            assert raster.transform == grid.geobox.affine
            return raster.read(1), burned.pixels.tolist(), burned.bounds.tolist()


def window(row0, col0, row1, col1, grid=GRID):
    r = grid.resolution
    return box(grid.x0 + col0 * r, grid.y0 - row1 * r, grid.x0 + col1 * r, grid.y0 - row0 * r)


def test_two_events():
    labels, pixels, bounds = burn([window(1, 2, 3, 5), window(5, 9, 8, 10)])
    expected = np.zeros((8, 10), int)
    expected[1:3, 2:5], expected[5:8, 9] = 1, 2
    assert (labels == expected).all()
    assert pixels == [6, 3]
    assert bounds == [[1, 2, 3, 5], [5, 9, 8, 10]]


def test_an_event_smaller_than_a_pixel_claims_the_one_it_lies_in():
    labels, pixels, bounds = burn([window(2.1, 3.1, 2.2, 3.2)])
    assert labels[2, 3] == labels.sum() == 1
    assert pixels == [1]
    assert bounds == [[2, 3, 3, 4]]


def test_a_pixel_is_claimed_once():
    big, in_big, small, same = (
        window(0, 0, 1, 1), window(0.1, 0.1, 0.2, 0.2), window(4.1, 4.1, 4.2, 4.2), window(4.7, 4.7, 4.8, 4.8),
    )  # fmt: skip
    labels, pixels, bounds = burn([big, in_big, small, same])
    assert pixels == [1, 0, 1, 0]
    assert labels[0, 0] == 1
    assert labels[4, 4] == 3
    assert bounds[1] == bounds[3] == [0, 0, 0, 0]


def test_the_later_year_keeps_a_pixel_that_two_years_share():
    labels, pixels, _ = burn([window(0, 0, 3, 3), window(2, 2, 5, 5)], years=[2020, 2021])
    assert labels[2, 2] == 2
    assert pixels == [8, 9]


def test_what_lies_outside_the_grid_has_no_pixels_there():
    labels, pixels, bounds = burn([window(-4, -4, 1, 2), window(20, 20, 22, 22)])
    assert pixels == [2, 0]
    assert bounds == [[0, 0, 1, 2], [0, 0, 0, 0]]
    assert labels.sum() == 2


def test_no_events():
    labels, pixels, bounds = burn([])
    assert (labels.sum(), pixels, bounds) == (0, [], [])


def test_strips_do_not_matter():
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 4_200, 3, 2048)
    labels, pixels, bounds = burn([window(10, 0, 4_190, 1, grid), window(2_047, 2, 2_049, 3, grid)], grid)
    assert pixels == [4_180, 2]
    assert bounds == [[10, 0, 4_190, 1], [2_047, 2, 2_049, 3]]
    assert (labels[10:4_190, 0] == 1).all()


@settings(max_examples=20, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 20, 20, 21]))
)
def test_a_loss_raster_on_the_runs_grid_is_burned_back_pixel_by_pixel(values):
    values[0, 0] = 21
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, *values.shape, 2048)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loss.tif"
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": grid.crs, "transform": grid.geobox.affine}
        with rasterio.open(path, "w", height=grid.height, width=grid.width, **profile) as raster:
            raster.write(values, 1)
        events = read_loss(str(path), WORLD, LossParams((2020, 2021), 0), Path(folder)).events
        burned = burn_events(events, grid, Path(folder) / "labels.tif")
        with rasterio.open(Path(folder) / "labels.tif") as raster:
            labels = raster.read(1)
    year_of = np.concatenate([[0], events["loss_year"].to_numpy() - 2000])
    assert (year_of[labels] == values).all()
    assert burned.pixels.tolist() == np.bincount(labels.ravel(), minlength=len(events) + 1)[1:].tolist()
    for k, (row0, col0, row1, col1) in enumerate(burned.bounds):
        rows, cols = np.nonzero(labels == k + 1)
        assert (row0, col0, row1, col1) == (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)


@pytest.mark.real
def test_brumadinho_is_burned_back_pixel_by_pixel(shared_data, tmp_path):
    path = shared_data / "landsat8-c2l2-brumadinho-pair" / "loss_2019_ndvi_drop.tif"
    events = read_loss(str(path), WORLD, LossParams((2019,), 0), tmp_path).events
    with rasterio.open(path) as raster:
        loss = raster.read(1)
        grid = RunGrid("EPSG:32623", 30, raster.bounds.left, raster.bounds.top, *loss.shape, 2048)
    burned = burn_events(events, grid, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as raster:
        assert ((raster.read(1) > 0) == (loss == 19)).all()
    assert burned.pixels.max() == 2127


# ---------------------------------------------------------------------------------------------- sums


def test_sums_of_three_pixels():
    present, counts, sums = sum_by_event(np.array([5, 2, 5]), np.array([[1, 10], [2, 20], [4, 40]]))
    assert present.tolist() == [2, 5]
    assert counts.tolist() == [1, 2]
    assert sums.tolist() == [[2, 20], [5, 50]]


def test_sums_of_nothing():
    present, counts, sums = sum_by_event(np.zeros(0, np.int32), np.zeros((0, 4), np.int64))
    assert (len(present), len(counts), sums.shape) == (0, 0, (0, 4))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_sums_add_up_to_the_same_however_the_pixels_are_split(data):
    count = data.draw(st.integers(1, 40))
    seed, parts = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(1, 6, count), to_fixed_point(rng.normal(0, 5, (count, 4)))
    owner = rng.integers(0, parts, count)
    whole = np.zeros((7, 5), np.int64)
    present, counts, sums = sum_by_event(labels, logits)
    whole[present] = np.column_stack([counts, sums])
    split = np.zeros((7, 5), np.int64)
    for part in rng.permutation(parts):
        present, counts, sums = sum_by_event(labels[owner == part], logits[owner == part])
        split[present] += np.column_stack([counts, sums])
    assert (split == whole).all()


def test_fixed_point_is_rounded_and_bounded():
    assert to_fixed_point(np.array([1.0, -0.5, 1e9, -1e9])).tolist() == [
        FIXED_POINT, -FIXED_POINT // 2, 4096 * FIXED_POINT, -4096 * FIXED_POINT,
    ]  # fmt: skip
    values = np.random.default_rng(0).normal(0, 20, 1000)
    assert np.abs(to_fixed_point(values) / FIXED_POINT - values).max() <= 0.5 / FIXED_POINT
    # the sum over the largest event that fits a run stays far inside int64
    assert np.iinfo(np.int64).max > 10 * 4096 * FIXED_POINT * 10**9


# ---------------------------------------------------------------------------------------------- logits


def test_statistics_of_three_pixels():
    fixed = to_fixed_point(np.array([[1.0, -2], [5, 7], [4, -2]]))
    sums = LogitSums.of_pixels(np.array([0, 2, 0]), fixed, 3)
    assert sums.clear.tolist() == [2, 0, 1]
    assert sums.mean()[[0, 2]].tolist() == [[2.5, -2], [5, 7]]
    # mean, std, min, max of the two classes
    assert sums.statistics()[0].tolist() == [2.5, -2, 1.5, 0, 1, -2, 4, -2]
    assert sums.statistics()[2].tolist() == [5, 7, 0, 0, 5, 7, 5, 7]
    assert np.isnan(sums.statistics()[1]).all()
    assert np.isnan(sums.mean()[1]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.1, 5, 4000]))
def test_statistics_are_those_of_the_pixels_however_they_are_split(seed, parts, spread):
    rng = np.random.default_rng(seed)
    rows, fixed = rng.integers(0, 5, 50), to_fixed_point(rng.normal(100, spread, (50, 3)))
    owner, names = rng.integers(0, parts, 50), ("a", "b", "c")
    whole, split = LogitSums.of_pixels(rows, fixed, 5), LogitSums.nothing(5, 3)
    for part in rng.permutation(parts):
        present, own = np.unique(rows[owner == part], return_inverse=True)
        one = LogitSums.of_pixels(own, fixed[owner == part], len(present))
        split.add(present, LogitSums.of_columns(one.columns(names), names))
    assert whole.statistics().tobytes() == split.statistics().tobytes()
    assert whole.mean().tobytes() == split.mean().tobytes() == whole.statistics()[:, :3].tobytes()
    for row in np.unique(rows):
        own = fixed[rows == row] / FIXED_POINT
        expected = np.concatenate([own.mean(axis=0), own.std(axis=0), own.min(axis=0), own.max(axis=0)])
        np.testing.assert_allclose(whole.statistics()[row], expected, rtol=1e-9, atol=1e-12)


def test_the_largest_event_of_the_largest_logits_overflows_nothing():
    # a thousand million equal pixels: added by doubling, as blocks would
    sums = LogitSums.of_pixels(np.zeros(1, np.int64), to_fixed_point(np.array([[-4096.0, 4095.9]])), 1)
    for _ in range(30):
        doubled = LogitSums.nothing(1, 2)
        for _ in range(2):
            doubled.add(np.zeros(1, np.int64), sums)
        sums = doubled
    assert sums.clear.tolist() == [2**30]
    found = sums.statistics()[0]
    assert found == pytest.approx([-4096, 4095.9, 0, 0, -4096, 4095.9, -4096, 4095.9], abs=1e-4)
    assert found[2:4].tolist() == [0, 0], "equal pixels do not vary at all"
    sums.add(np.zeros(1, np.int64), LogitSums.of_pixels(np.zeros(1, np.int64), to_fixed_point(np.zeros((1, 2))), 1))
    assert found[2] < sums.statistics()[0, 2] == pytest.approx(4096 / 2**15, rel=1e-6), "one among a thousand million"
