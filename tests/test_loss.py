from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyproj import Geod
from rasterio.transform import Affine, from_origin
from shapely import box

from pipeline import loss
from pipeline.errors import ConfigError, LossError
from pipeline.grid import area_ha, reproject
from pipeline.loss import LossParams, read_loss

STEP = 0.001
WHOLE = box(9, -1, 12, 2)
ALL = LossParams((2019, 2020, 2021), min_area_ha=0)
ONE = LossParams((2020,), min_area_ha=0)
# year 2020: three pixels joined by corners, and one alone that has only 2021 beside it
SIX = np.array(
    [
        [20, 0, 0, 0, 0, 0],
        [0, 20, 0, 0, 21, 0],
        [20, 0, 0, 0, 0, 20],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 21, 21, 0, 0],
        [0, 0, 0, 0, 0, 19],
    ],
    np.uint8,
)


def write_loss(folder, values, crs="EPSG:4326", transform=None, name="loss.tif"):
    path = Path(folder) / name
    profile = {"driver": "GTiff", "count": 1, "height": values.shape[0], "width": values.shape[1]}
    where = transform or from_origin(10, 1, STEP, STEP)
    with rasterio.open(path, "w", dtype=values.dtype, crs=crs, transform=where, **profile) as raster:
        raster.write(values, 1)
    return path


def read(path, aoi=WHOLE, params=ALL):
    return read_loss(str(path), aoi, params, path.parent)


def events_of(values, aoi=WHOLE, params=ALL, **how):
    with tempfile.TemporaryDirectory() as folder:
        return read(write_loss(folder, values, **how), aoi, params)


def pixel(row, col):
    return box(10 + col * STEP, 1 - (row + 1) * STEP, 10 + (col + 1) * STEP, 1 - row * STEP)


def drawn(pixels):
    return shapely.union_all([pixel(row, col) for row, col in pixels])


# ---------------------------------------------------------------------------------------------- six by six


def test_corners_join_and_years_do_not():
    found = events_of(SIX).events
    assert list(found["loss_year"]) == [2019, 2020, 2020, 2021, 2021]
    expected = {
        "2019_N00.994500_E010.005500": [(5, 5)],
        "2020_N00.999500_E010.000500": [(0, 0), (1, 1), (2, 0)],
        "2020_N00.997500_E010.005500": [(2, 5)],
        "2021_N00.998500_E010.004500": [(1, 4)],
        "2021_N00.995500_E010.002500": [(4, 2), (4, 3)],
    }
    assert set(found["event_id"]) == set(expected)
    assert list(found["event_id"]) == sorted(found["event_id"])
    for row in found.itertuples():
        shape = drawn(expected[row.event_id])
        assert shapely.difference(shape, row.geometry.buffer(1e-12)).is_empty
        assert row.geometry.geom_type == "MultiPolygon"
        assert row.area_ha == pytest.approx(float(area_ha(shape)), rel=1e-9)


def test_only_the_years_asked_for():
    found = events_of(SIX, params=LossParams((2021,), 0)).events
    assert set(found["loss_year"]) == {2021}
    assert len(found) == 2


def test_small_patches_are_counted_and_left_out():
    ha = float(area_ha(pixel(0, 0)))
    found = events_of(SIX, params=LossParams((2019, 2020, 2021), 1.5 * ha))
    assert (len(found.events), found.below_count) == (2, 3)
    assert found.below_ha == pytest.approx(3 * ha, rel=1e-4)
    assert found.events["area_ha"].sum() == pytest.approx(5 * ha, rel=1e-4)


def test_a_patch_as_large_as_the_limit_stays():
    limit = events_of(SIX).events.set_index("event_id")["area_ha"]["2021_N00.995500_E010.002500"]
    found = events_of(SIX, params=LossParams((2021,), limit))
    assert len(found.events) == 1


def test_the_region_cuts_events_at_pixels_whose_centre_it_holds():
    # the region's border runs through column 2, left and then right of its pixels' centres
    for east, pixels in ((10 + 2.4 * STEP, []), (10 + 2.6 * STEP, [(4, 2)])):
        found = events_of(SIX, box(10, 0.9, east, 1), LossParams((2021,), 0)).events
        assert len(found) == bool(pixels)
        if pixels:
            assert found.geometry.iloc[0].equals(shapely.MultiPolygon([drawn(pixels)]))


def test_a_cut_that_parts_an_event_makes_two():
    values = np.full((3, 5), 20, np.uint8)
    hole = box(10, 0.9, 10.005, 1).difference(box(10 + 2 * STEP, 0.9, 10 + 3 * STEP, 1.1))
    assert len(events_of(values, params=ONE).events) == 1
    assert len(events_of(values, hole, ONE).events) == 2


def test_no_loss_at_all_is_an_answer():
    found = events_of(np.zeros((6, 6), np.uint8))
    assert (len(found.events), found.below_count, found.below_ha) == (0, 0, 0)
    assert found.events.crs == "EPSG:4326"


def test_more_than_255_patches():
    values = np.zeros((60, 60), np.uint8)
    values[::2, ::2] = 20
    found = events_of(values, params=ONE).events
    assert len(found) == 900
    assert found["event_id"].is_unique


def test_southern_and_western_events_say_so():
    found = events_of(SIX, box(-61, -11, -59, -9), LossParams((2019,), 0), transform=from_origin(-60, -10, STEP, STEP))
    assert list(found.events["event_id"]) == ["2019_S10.005500_W059.994500"]


# ---------------------------------------------------------------------------------------------- what must not matter

rasters = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.sampled_from([0, 0, 20, 20, 21]), fill=None
)


@settings(max_examples=50, deadline=None)
@given(rasters, st.integers(1, 5))
def test_random_rasters_whatever_the_strips(values, strip):
    values[0, 0] = 21  # so that the raster reaches both years
    whole = events_of(values).events
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_STRIP", strip)
        strips = events_of(values).events
    assert list(strips["event_id"]) == list(whole["event_id"])
    assert strips.geometry.normalize().to_wkb().tolist() == whole.geometry.normalize().to_wkb().tolist()
    assert list(strips["area_ha"]) == list(whole["area_ha"])

    expected = {}
    for year in (20, 21):
        labels, count = scipy.ndimage.label(values == year, np.ones((3, 3)))
        for k in range(count):
            rows, cols = np.nonzero(labels == k + 1)
            lat, lon = 1 - (rows[0] + 0.5) * STEP, 10 + (cols[0] + 0.5) * STEP
            expected[f"{2000 + year}_N{lat:09.6f}_E{lon:010.6f}"] = list(zip(rows, cols, strict=True))
    assert set(whole["event_id"]) == set(expected)
    for row in whole.itertuples():
        pixels = expected[row.event_id]
        assert row.geometry.is_valid
        assert row.geometry.symmetric_difference(drawn(pixels)).area < 1e-9 * STEP**2
        assert row.area_ha == pytest.approx(sum(float(area_ha(pixel(*p))) for p in pixels), rel=1e-9)


def test_tiles_of_the_label_raster_do_not_matter(monkeypatch):
    values = np.zeros((600, 300), np.uint8)
    values[np.arange(600), 150 + np.arange(600) % 2] = 20  # one zigzag through three rows of tiles
    for strip in (4096, 100):
        monkeypatch.setattr(loss, "_STRIP", strip)
        found = events_of(values, params=ONE).events
        assert len(found) == 1
        assert len(found.geometry.iloc[0].geoms) == 600


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("years", "name", "said"),
    [
        ((2020, 2022), "loss.tif", "ends in 2021; name years from 2001 to 2021"),
        ((2024,), "Hansen_GFC-2023-v1.11_lossyear_00N_010E.tif", "ends in 2023"),
        ((2000,), "loss.tif", "Hansen coding knows 2001"),
        ((2256,), "loss.tif", "Hansen coding knows 2001"),
    ],
)
def test_years_that_the_raster_cannot_have(years, name, said):
    with pytest.raises(LossError, match=f"loss.years.*{said}"):
        events_of(SIX, params=LossParams(years, 0), name=name)


def test_a_year_within_hansens_release_may_be_without_loss():
    name = "Hansen_GFC-2023-v1.11_lossyear_00N_010E.tif"
    assert events_of(SIX, params=LossParams((2023,), 0), name=name).events.empty


def test_years_of_the_whole_raster_count_not_only_those_of_the_region():
    assert events_of(SIX, box(10, 0.9, 10.001, 1), LossParams((2021,), 0)).events.empty


@pytest.mark.parametrize(
    ("values", "crs", "aoi", "said"),
    [
        (SIX, None, WHOLE, "has no CRS"),
        (SIX, "EPSG:4326", box(50, 50, 51, 51), "does not overlap region.aoi"),
        (SIX.astype(np.uint16) * 100, "EPSG:4326", WHOLE, "holds 2100; Hansen coding"),
        (SIX.astype(np.float32), "EPSG:4326", WHOLE, "needs one band of integers"),
    ],
    ids=["no CRS", "elsewhere", "not Hansen", "float"],
)
def test_rasters_that_cannot_serve(tmp_path, values, crs, aoi, said):
    path = write_loss(tmp_path, values, crs)
    with pytest.raises(LossError, match=said) as error:
        read(path, aoi)
    assert str(path) in str(error.value)


def test_a_damaged_raster_is_named(tmp_path):
    path = write_loss(tmp_path, np.random.default_rng(0).integers(0, 22, (500, 500), np.uint8))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(LossError, match=r"loss\.tif: cannot be read .*download it again"):
        read(path)


def test_a_source_that_is_not_there():
    with pytest.raises(ConfigError, match=r"loss\.source /nowhere/loss\.tif: no such file"):
        read_loss("/nowhere/loss.tif", WHOLE, ALL, Path())


def test_nothing_is_left_in_the_scratch_folder(tmp_path):
    path = write_loss(tmp_path, SIX)
    read(path)
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------- polygons


def write_polygons(folder, rows, crs="EPSG:4326", column="year"):
    path = Path(folder) / "loss.gpkg"
    frame = gpd.GeoDataFrame({column: [y for y, _ in rows]}, geometry=[g for _, g in rows], crs=crs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if crs is None else "error", UserWarning)  # a file without CRS is meant
        frame.to_file(path)
    return path


def square(col, row, size=1.0):
    return box(10 + col * STEP, 1 + row * STEP, 10 + (col + size) * STEP, 1 + (row + size) * STEP)


def test_polygons_of_one_year_join_where_they_overlap_or_share_an_edge(tmp_path):
    rows = [
        (2020, square(0, 0)), (2020, square(0.5, 0.5)),  # overlap
        (2020, square(4, 0)), (2020, square(5, 0)),  # share an edge
        (2020, square(8, 0)), (2020, square(9, 1)),  # touch at a corner
        (2021, square(6, 0)), (2021, square(0.2, 0.2)),  # another year
        (2018, square(20, 0)),  # not asked for
    ]  # fmt: skip
    found = read(write_polygons(tmp_path, rows), params=LossParams((2020, 2021), 0)).events
    ha = float(area_ha(square(0, 0)))
    areas = found.groupby("loss_year")["area_ha"].apply(lambda a: sorted(np.round(a / ha, 4)))
    assert areas[2020] == pytest.approx([1, 1, 1.75, 2], rel=1e-3)
    assert areas[2021] == pytest.approx([1, 1], rel=1e-3)
    assert found.geometry.is_valid.all()
    assert set(found.geom_type) == {"MultiPolygon"}


def test_the_order_of_polygons_does_not_matter(tmp_path):
    rows = [(2020 + k % 2, square(*xy)) for k, xy in enumerate(np.random.default_rng(1).uniform(0, 8, (40, 2)))]
    params = LossParams((2020, 2021), 0)
    one = read(write_polygons(tmp_path, rows), params=params).events
    other = read(write_polygons(tmp_path, rows[::-1]), params=params).events
    assert list(one["event_id"]) == list(other["event_id"])
    apart = shapely.symmetric_difference(one.geometry.values, other.geometry.values)
    assert shapely.area(apart).max() < 1e-9 * STEP**2


def test_polygons_are_cut_to_the_region(tmp_path):
    path = write_polygons(tmp_path, [(2020, square(0, 0, 2)), (2020, square(3, 0))])
    found = read(path, square(1, 0, 2), LossParams((2020,), 0)).events
    # the second square only touches the region, and a line is no event
    assert len(found) == 1
    assert found.geometry.iloc[0].equals(box(10 + STEP, 1, 10 + 2 * STEP, 1 + 2 * STEP))


def test_invalid_polygons_are_repaired(tmp_path):
    spike = shapely.from_wkt("POLYGON((10 1, 10.001 1, 10.001 1.001, 10.003 1.003, 10.001 1.001, 10 1.001, 10 1))")
    bow_tie = shapely.from_wkt("POLYGON((10.1 1, 10.102 1.002, 10.102 1, 10.1 1.002, 10.1 1))")
    found = read(write_polygons(tmp_path, [(2020, spike), (2020, bow_tie)]), params=LossParams((2020,), 0)).events
    assert len(found) == 3
    assert found.geometry.is_valid.all()


def test_polygons_in_a_projected_crs_with_a_named_year_column_and_missing_values(tmp_path):
    rows = [("2020", square(0, 0)), ("2021", square(4, 0)), (None, square(6, 0)), ("2020", None)]
    shapes = [None if g is None else reproject(g, "EPSG:4326", "EPSG:32632") for _, g in rows]
    path = write_polygons(tmp_path, list(zip([y for y, _ in rows], shapes, strict=True)), "EPSG:32632", "an")
    found = read(path, params=LossParams((2020, 2021), 0, year_column="an")).events
    assert list(found["loss_year"]) == [2020, 2021]
    assert found["area_ha"].to_numpy() == pytest.approx(float(area_ha(square(0, 0))), rel=1e-4)


@pytest.mark.parametrize(
    ("rows", "how", "params", "said"),
    [
        ([(2020, square(0, 0))], {"column": "jahr"}, ALL, "needs a year column.*found jahr"),
        ([(2020, square(0, 0))], {}, LossParams((2020,), 0, "an"), "needs a year column.*found year"),
        ([(2018, square(0, 0))], {}, ALL, r"none in .*which holds \[2018\]"),
        ([(2020, box(50, 50, 51, 51))], {}, ALL, "does not overlap region.aoi"),
        ([("soon", square(0, 0))], {}, ALL, "column year must hold years as numbers"),
    ],
    ids=["no column", "no such column", "no such year", "elsewhere", "words"],
)
def test_polygons_that_cannot_serve(tmp_path, rows, how, params, said):
    path = write_polygons(tmp_path, rows, **how)
    with pytest.raises(LossError, match=said) as error:
        read(path, params=params)
    assert str(path) in str(error.value)


def test_polygons_without_a_crs(tmp_path):
    with pytest.raises(ConfigError, match=r"loss\.source .*loss\.gpkg: has no CRS"):
        read(write_polygons(tmp_path, [(2020, square(0, 0))], None))


# ---------------------------------------------------------------------------------------------- real


@pytest.mark.real
def test_hansen_areas_by_year_are_the_geodesic_sums_of_the_pixels(shared_data):
    path = shared_data / "gfc-dominican-republic" / "Hansen_GFC-2023-v1.11_lossyear_20N_080W.tif"
    years = tuple(range(2001, 2024))
    found = read_loss(str(path), box(-80, 10, -70, 20), LossParams(years, 0), Path(tempfile.gettempdir()))
    by_year = found.events.groupby("loss_year")["area_ha"].sum()
    with rasterio.open(path) as raster:
        values, affine = raster.read(1), raster.transform
    geod, lost = Geod(ellps="WGS84"), np.array([(values == year - 2000).sum(axis=1) for year in years])
    corners = [
        [affine @ (c, r) for c, r in ((0, row), (0, row + 1), (1, row + 1), (1, row))] for row in range(len(values))
    ]
    ha = np.array([abs(geod.polygon_area_perimeter(*zip(*c, strict=True))[0]) / 1e4 for c in corners])
    expected = lost @ ha
    assert lost.sum() > 500
    assert by_year.reindex(years, fill_value=0).to_numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.real
def test_brumadinho(shared_data, tmp_path):
    path = shared_data / "landsat8-c2l2-brumadinho-pair" / "loss_2019_ndvi_drop.tif"
    found = read_loss(str(path), box(-44.5, -20.5, -43.9, -20.0), LossParams((2019,), 0.5), tmp_path)
    assert len(found.events) == 39
    assert found.events["area_ha"].sum() == pytest.approx(288.8, rel=0.005)
    assert found.events["area_ha"].max() == pytest.approx(2127 * 0.09, rel=0.005)  # the mud flow
    with rasterio.open(path) as raster:
        assert raster.transform == Affine(30, 0, 584385, 0, -30, -2222685)
        pixels = int((raster.read(1) == 19).sum())
    assert found.events["area_ha"].sum() == pytest.approx(pixels * 0.09, rel=0.005)
