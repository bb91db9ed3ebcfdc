from __future__ import annotations

import math

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.transform import Affine
from shapely import LineString, MultiPolygon, Point, box

from pipeline.auxiliary import match_columns, refuse_leaks, sample_auxiliary
from pipeline.auxiliary.vectors import _cut, distance_km
from pipeline.config import Auxiliary
from pipeline.errors import ConfigError
from pipeline.grid import reproject
from pipeline.models.card import AuxiliaryColumn, RegionParams

UTM = "EPSG:32623"
LEFT, TOP = 584_385.0, -2_222_685.0
GEOD = Geod(ellps="WGS84")


def write(path, values, crs=UTM, transform=None, **profile):
    values = np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    shape = {"count": values.shape[0], "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    place = {"crs": crs, "transform": transform or Affine(30, 0, LEFT, 0, -30, TOP)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **profile) as raster:
        raster.write(values)
    return path


def cells(col0, row0, col1, row1):
    """The rectangle of these (fractional) cells of a raster of 30 m."""
    return box(LEFT + 30 * col0, TOP - 30 * row1, LEFT + 30 * col1, TOP - 30 * row0)


def sample(shapes, *specs, crs=UTM):
    items = [Auxiliary(**spec) for spec in specs]
    return sample_auxiliary(gpd.GeoSeries(list(shapes), crs=crs), items, {})


def one(shape, path, measure, crs=UTM, **more):
    found = sample([shape], {"name": "x", "path": path, "measure": measure, **more}, crs=crs)
    values = found.iloc[0].tolist()
    return values[0] if len(values) == 1 else values


# ---------------------------------------------------------------------------------------------- mean


def test_a_mean_weighs_cells_by_what_is_covered_of_them(tmp_path):
    path = write(tmp_path / "r.tif", np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32))
    assert one(cells(0, 0, 2, 1), path, "mean") == pytest.approx(1.5)
    # a quarter of cell 1, a half of 2 and of 4, the whole of 5: (1/4 + 1 + 2 + 5) / (9/4)
    assert one(cells(0.5, 0.5, 2, 2), path, "mean") == pytest.approx(8.25 / 2.25)
    # an event inside one coarse cell has that cell's value
    assert one(cells(1.4, 1.4, 1.5, 1.5), path, "mean") == pytest.approx(5)


def test_no_data_and_outside_are_missing_and_never_zero(tmp_path):
    path = write(tmp_path / "r.tif", np.array([[1, -9, 3]], np.float32), nodata=-9)
    found = sample(
        [cells(0, 0, 3, 1), cells(1, 0, 2, 1), cells(2, 0, 9, 1), cells(5, 0, 6, 1), MultiPolygon(), None],
        {"name": "x", "path": path, "measure": "mean"},
    )
    assert found["x"].tolist()[:1] == [2.0]
    assert found["x"].tolist()[2:3] == [3.0]
    assert found["x"].isna().tolist() == [False, True, False, True, True, True]


def test_bands_scales_and_offsets(tmp_path):
    path = write(tmp_path / "r.tif", np.array([[[7, 7]], [[100, 300]]], np.int16))
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (1.0, 0.01), (0.0, -1.0)
    assert one(cells(0, 0, 2, 1), path, "mean", band=2) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="band 3 of 2"):
        one(cells(0, 0, 2, 1), path, "mean", band=3)


def test_a_large_event_is_the_mean_of_the_cells_whose_centres_it_holds(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    path = write(tmp_path / "r.tif", values)
    disc = Point(LEFT + 600, TOP - 600).buffer(500)
    y, x = TOP - 30 * (np.arange(40) + 0.5), LEFT + 30 * (np.arange(40) + 0.5)
    inside = shapely.contains_xy(disc, *np.meshgrid(x, y))
    whole = one(disc, path, "mean")
    assert whole == pytest.approx(values[inside].mean(), rel=1e-5)
    monkeypatch.setattr("pipeline.auxiliary.rasters._STRIP", 100)
    assert one(disc, path, "mean") == pytest.approx(whole, rel=1e-9), "strips do not matter"


def test_a_thread_that_meets_no_centre_takes_what_it_touches(tmp_path):
    path = write(tmp_path / "r.tif", np.full((40, 40), 6, np.float32))
    thread = LineString([(LEFT + 1, TOP - 31), (LEFT + 1150, TOP - 31.0)]).buffer(0.5).union(cells(0, 0, 0.01, 40))
    assert one(thread, path, "mean") == 6


@pytest.mark.parametrize("west", [-180, 0])
def test_longitudes_may_run_to_180_or_to_360(west, tmp_path):
    lon = west + 10 * np.arange(36) + 5.0
    values = np.where(lon > 180, lon - 360, lon)[None].astype(np.float32)
    path = write(tmp_path / "r.tif", values, "EPSG:4326", Affine(10, 0, west, 0, -180, 90))
    found = sample(
        [box(x - 1, -1, x + 1, 1) for x in (-65, 45, 175, -175)], {"name": "x", "path": path, "measure": "mean"},
        crs="EPSG:4326",
    )  # fmt: skip
    assert found["x"].tolist() == pytest.approx([-65, 45, 175, -175])


# ---------------------------------------------------------------------------------------------- slope and aspect


def plane(east, north, shape=(9, 11), step=30.0):
    """Elevation that rises by `east` and `north` metres a metre."""
    rows, cols = np.indices(shape)
    return (100 + cols * step * east - rows * step * north).astype(np.float64)


@pytest.mark.parametrize(("east", "north"), [(0.1, 0.0), (0.0, 0.1), (-0.3, 0.4), (1.0, -1.0)])
def test_slope_and_aspect_of_a_plane(east, north, tmp_path):
    path = write(tmp_path / "dem.tif", plane(east, north))
    found = sample(
        [cells(3, 3, 6, 6)],
        {"name": "slope", "path": path, "measure": "slope"}, {"name": "aspect", "path": path, "measure": "aspect"},
    )  # fmt: skip
    assert list(found) == ["slope", "aspect_sin", "aspect_cos"]
    slope, sine, cosine = found.iloc[0]
    # UTM metres differ from those on the ground by the zone's scale, here .9997, and its north by .3 degrees
    assert slope == pytest.approx(math.degrees(math.atan(math.hypot(east, north))), rel=1e-3)
    downhill = math.atan2(-east, -north)
    assert (sine, cosine) == pytest.approx((math.sin(downhill), math.cos(downhill)), abs=0.01)


@pytest.mark.parametrize("latitude", [0, 60, -60])
def test_slope_of_an_elevation_model_in_degrees_is_metric(latitude, tmp_path):
    step = 1 / 1200
    # one metre up each cell to the east: 92.8 m at the equator, 46.5 m at 60 degrees
    values = np.tile(np.arange(9.0), (9, 1))
    path = write(tmp_path / "dem.tif", values, "EPSG:4326", Affine(step, 0, 20, 0, -step, latitude + 4.5 * step))
    event = box(20 + 3 * step, latitude - step, 20 + 6 * step, latitude + step)
    _, _, metres = GEOD.inv(20, latitude, 20 + step, latitude)
    assert one(event, path, "slope", "EPSG:4326") == pytest.approx(math.degrees(math.atan(1 / metres)), rel=1e-6)
    assert one(event, path, "aspect", "EPSG:4326") == pytest.approx([-1, 0], abs=1e-4)


def test_web_mercator_metres_are_not_metres(tmp_path):
    x, y = reproject(Point(20, 60), "EPSG:4326", "EPSG:3857").coords[0]
    path = write(tmp_path / "dem.tif", plane(0.1, 0), "EPSG:3857", Affine(30, 0, x, 0, -30, y))
    event = box(x + 90, y - 180, x + 180, y - 90)
    # Mercator stretches by 1 / cos(60) = 2, so that the true slope is twice what its metres say
    assert one(event, path, "slope", "EPSG:3857") == pytest.approx(math.degrees(math.atan(0.2)), rel=5e-3)


def test_a_raster_stored_south_up_gives_the_same(tmp_path):
    values = plane(-0.3, 0.4)
    north_up = write(tmp_path / "n.tif", values)
    south_up = write(tmp_path / "s.tif", values[::-1], transform=Affine(30, 0, LEFT, 0, 30, TOP - 270))
    for measure in ("mean", "slope", "aspect"):
        one_way, other = (np.array(one(cells(2, 3, 6, 8), path, measure)) for path in (north_up, south_up))
        assert one_way == pytest.approx(other, rel=1e-6)


def test_flat_ground_has_no_aspect_and_edges_have_no_slope(tmp_path):
    flat = write(tmp_path / "flat.tif", np.zeros((5, 5)))
    assert one(cells(1, 1, 4, 4), flat, "slope") == 0
    assert np.isnan(one(cells(1, 1, 4, 4), flat, "aspect")).all()
    holed = plane(0.1, 0)
    holed[4, 4] = -1
    path = write(tmp_path / "hole.tif", holed, nodata=-1)
    assert np.isnan(one(cells(3, 3, 6, 6), path, "slope")), "every one of the nine touches the hole"
    assert np.isnan(one(cells(0, 0, 1, 9), path, "slope"))
    assert one(cells(0, 5, 2, 8), path, "slope") == pytest.approx(5.71, abs=0.01), "the second column counts"


@pytest.mark.real
def test_the_real_elevation_model_of_sao_tome(shared_data):
    path = shared_data / "worldcover-dem-saotome" / "Copernicus_DSM_COG_10_N00_00_E006_00_DEM.tif"
    peak, sea = box(6.54, 0.26, 6.56, 0.28), box(6.1, 0.5, 6.11, 0.51)
    specs = [{"name": m, "path": path, "measure": m} for m in ("mean", "slope", "aspect")]
    found = sample([peak, sea], *specs, crs="EPSG:4326")
    with rasterio.open(path) as raster:
        window = raster.window(*peak.bounds).round_offsets().round_lengths()
        around = rasterio.windows.Window(window.col_off - 1, window.row_off - 1, window.width + 2, window.height + 2)
        z = raster.read(1, window=around).astype(float)
    # by hand: metres of a degree at latitude .27 on WGS 84, central differences over two cells
    dx, dy = 111_318.3 / 3600, 110_574.3 / 3600
    slope = np.degrees(
        np.arctan(np.hypot((z[1:-1, 2:] - z[1:-1, :-2]) / 2 / dx, (z[2:, 1:-1] - z[:-2, 1:-1]) / 2 / dy))
    )
    assert found["mean"].iloc[0] == pytest.approx(z[1:-1, 1:-1].mean(), rel=5e-3)
    assert found["mean"].iloc[0] > 1000
    assert found["slope"].iloc[0] == pytest.approx(slope.mean(), rel=0.05)
    assert (found["mean"].iloc[1], found["slope"].iloc[1]) == (0, 0)
    moved = sample(reproject(np.array([peak, sea]), "EPSG:4326", "EPSG:32632"), *specs, crs="EPSG:32632")
    np.testing.assert_allclose(moved, found, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------- distance


def layer(path, *shapes, crs="EPSG:4326"):
    gpd.GeoDataFrame({"n": range(len(shapes))}, geometry=list(shapes), crs=crs).to_file(path, engine="pyogrio")
    return path


def test_distance_to_a_road(tmp_path):
    road = layer(tmp_path / "road.gpkg", LineString([(20.2, -1), (20.2, 1)]))
    _, _, metres = GEOD.inv(20.1, 0, 20.2, 0)
    assert one(box(20, -0.1, 20.1, 0.1), road, "distance", "EPSG:4326") == pytest.approx(metres / 1000, rel=1e-4)
    assert one(box(20, -0.1, 20.3, 0.1), road, "distance", "EPSG:4326") == 0


def test_inside_a_city_is_no_distance_and_an_empty_layer_says_nothing(tmp_path):
    city = layer(tmp_path / "city.gpkg", box(20, 0, 21, 1))
    assert one(box(20.4, 0.4, 20.5, 0.5), city, "distance", "EPSG:4326") == 0
    empty = tmp_path / "empty.gpkg"
    gpd.GeoDataFrame({"n": []}, geometry=[], crs="EPSG:4326").to_file(empty, engine="pyogrio", geometry_type="Point")
    assert np.isnan(one(box(20, 0, 21, 1), empty, "distance", "EPSG:4326"))


@pytest.mark.parametrize(
    "event",
    [box(179.8, -17, 179.9, -16.9), MultiPolygon([box(179.8, -17, 180, -16.9), box(-180, -17, -179.9, -16.9)])],
)
def test_the_antimeridian_is_no_border(event):
    town = Point(-179.5, -16.95)
    east = -179.9 if len(getattr(event, "geoms", ())) else 179.9
    _, _, metres = GEOD.inv(east, -16.95, -179.5, -16.95)
    found = distance_km(np.array([event]), np.array([town, Point(170, -17)]))
    assert found[0] == pytest.approx(metres / 1000, rel=1e-3)
    # a road drawn across it, from 179 to -179, is two degrees long and not 358
    road = LineString([(179.0, -16.5), (-179.0, -16.5)])
    assert distance_km(np.array([event]), np.array([road]))[0] == pytest.approx(44.3, abs=0.2)
    assert distance_km(np.array([box(0, -16.6, 1, -16.4)]), np.array([road]))[0] > 15_000


def test_nearest_in_degrees_is_not_nearest_on_the_ground():
    # at 60 degrees north 0.15 degrees of longitude are 8.4 km, 0.1 degrees of latitude 11.1 km
    event = box(-0.001, 59.999, 0.001, 60.001)
    found = distance_km(np.array([event]), np.array([Point(0.15, 60), Point(0, 60.1)]))
    _, _, metres = GEOD.inv(0.001, 60, 0.15, 60)
    assert found[0] == pytest.approx(metres / 1000, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 45, -80, 89]), st.sampled_from([1, 20, 150]))
def test_distance_is_the_least_of_all_geodesics(seed, latitude, spread):
    rng = np.random.default_rng(seed)
    lon = (rng.uniform(-spread, spread, 12) + 360) % 360 - 180
    lat = np.clip(latitude + rng.uniform(-spread, spread, 12) / 3, -89.9, 89.9)
    half = 1e-6
    event = box(179.5 - half, latitude - half, 179.5 + half, latitude + half)
    _, _, metres = GEOD.inv(np.full(12, 179.5), np.full(12, latitude), lon, lat)
    found = distance_km(np.array([event]), shapely.points(lon, lat))
    assert found[0] == pytest.approx(metres.min() / 1000, rel=1e-4, abs=1e-3)


def test_long_coasts_are_cut_without_losing_an_edge():
    turns = np.linspace(0, 2 * np.pi, 641)
    coast = LineString(np.column_stack([10 + np.cos(turns), np.sin(turns)]))
    for vertices in (2, 32, 33, 34, 64, 65, 66, 641):
        part = LineString(coast.coords[:vertices])
        pieces = _cut(np.array([part, coast]))
        assert shapely.length(pieces).sum() == pytest.approx(part.length + coast.length, rel=1e-12)
        assert shapely.get_num_points(pieces).max() <= 33
    events = np.array([Point(10 + 0.9 * np.cos(a), 0.9 * np.sin(a)).buffer(1e-6) for a in turns[:-1:7]])
    assert distance_km(events, np.array([coast])) == pytest.approx(0.1 * 111, abs=0.2)


# ---------------------------------------------------------------------------------------------- share


def test_share_of_polygons_and_of_cells(tmp_path):
    shapes = [box(19, 0, 20.5, 1), box(20.25, 0, 20.5, 1)]
    peat = layer(tmp_path / "peat.gpkg", *shapes)
    assert one(box(20, 0, 21, 1), peat, "share", "EPSG:4326") == pytest.approx(0.5), "overlaps count once"
    assert one(box(30, 0, 31, 1), peat, "share", "EPSG:4326") == 0
    empty = tmp_path / "empty.gpkg"
    gpd.GeoDataFrame({"n": []}, geometry=[], crs="EPSG:4326").to_file(empty, engine="pyogrio", geometry_type="Polygon")
    assert np.isnan(one(box(20, 0, 21, 1), empty, "share", "EPSG:4326"))
    raster = write(tmp_path / "peat.tif", np.array([[0, 1, 7, 255]], np.uint8), nodata=255)
    found = [one(cells(a, 0, b, 1), raster, "share") for a, b in ((0, 2), (0.5, 2), (1, 3), (1, 4), (3, 4))]
    assert found[:4] == pytest.approx([0.5, 2 / 3, 1, 1])
    assert np.isnan(found[4])
    blind = write(tmp_path / "blind.tif", np.array([[0, 1]], np.uint8), nodata=0)
    with pytest.raises(ConfigError, match="0 as no data"):
        one(cells(0, 0, 2, 1), blind, "share")


# ---------------------------------------------------------------------------------------------- all together


def test_crs_of_the_events_does_not_matter_and_their_index_stays(tmp_path):
    rng = np.random.default_rng(1)
    dem = write(tmp_path / "dem.tif", (plane(0.1, 0.2, (60, 60)) + rng.normal(0, 5, (60, 60))).astype(np.float32))
    road = layer(tmp_path / "road.gpkg", LineString([(LEFT, TOP), (LEFT + 3000, TOP - 900)]), crs=UTM)
    items = [
        Auxiliary(name=name, path=path, measure=measure)
        for name, path, measure in (
            ("z", dem, "mean"),
            ("s", dem, "slope"),
            ("a", dem, "aspect"),
            ("r", road, "distance"),
        )
    ]
    shapes = gpd.GeoSeries([cells(3, 3, 9, 9), cells(30.2, 20.7, 55, 50)], index=[7, 3], crs=UTM)
    utm, degrees = (sample_auxiliary(s, items, {}) for s in (shapes, shapes.to_crs("EPSG:4326")))
    assert list(utm) == ["z", "s", "a_sin", "a_cos", "r"]
    assert list(utm.index) == [7, 3]
    assert (utm.dtypes == np.float64).all()
    np.testing.assert_allclose(utm, degrees, rtol=1e-3, atol=1e-3)
    alone = [sample_auxiliary(shapes, [item], {}) for item in items]
    assert utm.equals(alone[0].join(alone[1:])), "what else is sampled does not matter"


def test_files_that_cannot_serve_are_named(tmp_path):
    text, road = tmp_path / "notes.txt", layer(tmp_path / "road.gpkg", Point(0, 0))
    text.write_text("no data")
    bare = tmp_path / "bare.tif"
    write(bare, np.zeros((2, 2), np.uint8), None)
    for path, measure, message in (
        (tmp_path / "none.tif", "mean", "no such file"),
        (text, "mean", "cannot be read as a raster"),
        (text, "distance", "cannot be read as vector data"),
        (road, "slope", "cannot be read as a raster"),
    ):
        with pytest.raises(ConfigError, match=message):
            one(cells(0, 0, 1, 1), path, measure)
    with pytest.raises(ConfigError, match="has no CRS"):
        one(cells(0, 0, 1, 1), bare, "mean")
    dem = write(tmp_path / "dem.tif", np.zeros((2, 2), np.uint8))
    with pytest.raises(ConfigError, match="distance needs a vector layer"):
        sample([cells(0, 0, 1, 1)], *({"name": m, "path": dem, "measure": m} for m in ("mean", "distance")))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gain", "x.tif"), ("x", "Hansen_GFC-2023-v1.11_gain_20N_080W.tif"), ("x", "gfc_2020.tif"),
        ("tree_cover", "x.tif"),
        ("x", "lossyear.tif"), ("x", "lossyear2023.tif"), ("forest_loss", "x.tif"), ("x", "loss_2019_ndvi_drop.tif"),
        ("x", "drivers.tif"), ("x", "labels.gpkg"), ("x", "treecover2000.tif"), ("x", "deforestation.gpkg"),
        ("prodes", "x.tif"),
    ],
)  # fmt: skip
def test_what_holds_the_answer_is_refused(name, file, tmp_path):
    spec = Auxiliary(name=name, path=tmp_path / file, measure="mean")
    with pytest.raises(ConfigError, match=r"auxiliary .*read the answer.*remove it"):
        refuse_leaks([spec], {})
    with pytest.raises(ConfigError, match="read the answer"):
        sample_auxiliary(gpd.GeoSeries([box(0, 0, 1, 1)], crs=UTM), [spec], {})


def test_the_files_of_the_labels_are_refused_by_whatever_name(tmp_path):
    source, link = write(tmp_path / "a.tif", np.zeros((2, 2), np.uint8)), tmp_path / "b.tif"
    link.symlink_to(source)
    hard = tmp_path / "c.tif"
    hard.hardlink_to(source)
    for path in (source, link, hard, tmp_path / "sub" / ".." / "a.tif"):
        with pytest.raises(ConfigError, match=r"is also loss\.source"):
            refuse_leaks([Auxiliary(name="x", path=path, measure="mean")], {"loss.source": source})
    harmless = [Auxiliary(name=n, path=tmp_path / f"{n}.tif", measure="mean") for n in ("again", "rain", "elevation")]
    refuse_leaks(harmless, {"loss.source": source})


def test_a_model_gets_the_columns_it_was_trained_on(tmp_path):
    column = AuxiliaryColumn(name="road_km", mean=1, std=1, measure="distance")
    aspect = AuxiliaryColumn(name="aspect_sin", mean=0, std=1, measure="aspect")
    region = RegionParams(auxiliary=(column, aspect))
    road, side = (
        Auxiliary(name=n, path=tmp_path / "f", measure=m) for n, m in (("road_km", "distance"), ("aspect", "aspect"))
    )
    assert match_columns(region, [road, side], "m") == []
    with pytest.raises(ConfigError, match=r"wants 'road_km'.*add \{name: road_km, path: FILE, measure: distance\}"):
        match_columns(region, [side], "m")
    with pytest.raises(ConfigError, match=r"wants 'aspect_sin'.*\{name: aspect, path: FILE, measure: aspect\}"):
        match_columns(region, [road], "m")
    with pytest.raises(ConfigError, match="measure mean is not the distance"):
        match_columns(region, [road.model_copy(update={"measure": "mean"}), side], "m")
    rain = Auxiliary(name="rain", path=tmp_path / "f", measure="mean")
    assert match_columns(region, [road, rain, side], "m") == ["auxiliary rain: model m does not use it"]
    assert match_columns(None, [rain], "m") == ["auxiliary rain: model m does not use it"]
