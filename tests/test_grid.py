from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from shapely import box

from pipeline.errors import ConfigError
from pipeline.grid import RunGrid, area_ha, choose_crs, make_grid, read_region, read_vector, reproject

WGS84 = Geod(ellps="WGS84")
RIAU = box(101.0, 0.2, 101.3, 0.5)
BRUMADINHO = box(-44.30, -20.25, -44.00, -20.05)


def geodesic_ha(polygon):
    return abs(WGS84.geometry_area_perimeter(polygon)[0]) / 10_000


# ---------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("aoi", "crs"),
    [(RIAU, "EPSG:32647"), (BRUMADINHO, "EPSG:32623"), (box(100, -0.2, 100.5, 0.3), "EPSG:32647")],
    ids=["north", "south", "both sides of the equator"],
)
def test_pixel_edges_lie_where_landsat_has_them(aoi, crs):
    grid = make_grid(aoi, "auto", 30, 2048)
    assert grid.crs == crs
    assert (grid.x0 % 30, grid.y0 % 30) == (15, 15)


def test_the_south_has_negative_northings():
    grid = make_grid(BRUMADINHO, "auto", 30, 2048)
    assert -2_300_000 < grid.y0 < -2_200_000


def test_the_brumadinho_scene_lies_on_the_grid(shared_data):
    import rasterio

    path = shared_data / "landsat8-c2l2-brumadinho-pair" / "loss_2019_ndvi_drop.tif"
    with rasterio.open(path) as raster:
        col, row = ~make_grid(BRUMADINHO, "auto", 30, 2048).geobox.affine @ (raster.bounds.left, raster.bounds.top)
    assert (col, row) == (round(col), round(row))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-170, 170),
    st.floats(-60, 60),
    st.floats(0.001, 0.4),
    st.floats(0.001, 0.4),
    st.sampled_from([10.0, 30.0, 90.0]),
)
def test_the_grid_covers_the_region_with_less_than_a_pixel_to_spare(west, south, width, height, resolution):
    aoi = box(west, south, west + width, south + height)
    grid = make_grid(aoi, "auto", resolution, 512)
    left, bottom, right, top = reproject(shapely.segmentize(aoi, 0.05), "EPSG:4326", grid.crs).bounds
    spare = [
        left - grid.x0,
        grid.x0 + grid.width * resolution - right,
        grid.y0 - top,
        bottom - (grid.y0 - grid.height * resolution),
    ]
    assert min(spare) >= -1e-6
    assert max(spare) < resolution + 1e-6
    assert grid.x0 % resolution == grid.y0 % resolution == resolution / 2


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60))
def test_blocks_tile_the_grid_exactly(height, width, size):
    seen = np.zeros((height, width), int)
    blocks = list(RunGrid("EPSG:32647", 30, 15, 15, height, width, size).blocks())
    for block in blocks:
        seen[block.row0 : block.row0 + block.height, block.col0 : block.col0 + block.width] += 1
        assert block.row0 + block.height <= height
        assert block.col0 + block.width <= width
        assert min(block.height, block.width) >= 1
        assert max(block.height, block.width) <= size
    assert (seen == 1).all()
    assert len({block.id for block in blocks}) == len(blocks)
    assert [(b.row0, b.col0) for b in blocks] == sorted((b.row0, b.col0) for b in blocks)


def test_a_window_keeps_the_grid_even_outside_of_it():
    grid = RunGrid("EPSG:32647", 30, 500_015, 99_015, 100, 200, 64)
    window = grid.window(-10, 190, 20, 30)
    assert window.shape == (20, 30)
    assert window.affine @ (10, 10) == grid.geobox.affine @ (200, 0)


def test_a_tiny_region_still_has_one_pixel():
    grid = make_grid(box(101.00001, 0.20001, 101.00002, 0.20002), "auto", 30, 2048)
    assert 1 <= grid.height <= 2
    assert 1 <= grid.width <= 2


@pytest.mark.parametrize(("crs", "said"), [("EPSG:999999", "not a coordinate"), ("EPSG:4326", "name a metric CRS")])
def test_a_grid_crs_that_cannot_work(crs, said):
    with pytest.raises(ConfigError, match=f"grid.*{said}"):
        make_grid(RIAU, crs, 30, 2048)


# ---------------------------------------------------------------------------------------------- its CRS


@pytest.mark.parametrize(
    ("aoi", "crs"),
    [
        (box(102.1, 0, 107.9, 1), "EPSG:32648"),
        (box(101.6, 0, 107.9, 1), "EPSG:32648"),
        (box(-180, 0, -178, 1), "EPSG:32601"),
        (box(178, 0, 180, 1), "EPSG:32660"),
        (box(-3, 50, -1, 51), "EPSG:32630"),
    ],
    ids=["zone", "overhang of 0.4 degrees", "first", "last", "west of Greenwich"],
)
def test_a_region_of_one_zone_gets_it(aoi, crs):
    assert choose_crs(aoi) == crs


@pytest.mark.parametrize("aoi", [box(95, -11, 141, 6), box(101.4, 0, 108.4, 1), box(20, 80, 22, 84.5)])
def test_a_region_that_no_zone_holds_gets_an_equal_area_projection_centred_on_it(aoi):
    crs = choose_crs(aoi)
    assert crs.startswith("+proj=laea")
    centre = reproject(shapely.Point(aoi.centroid.x, aoi.centroid.y), "EPSG:4326", crs)
    assert max(abs(centre.x), abs(centre.y)) < 20_000
    small = box(aoi.bounds[0], aoi.bounds[1], aoi.bounds[0] + 0.01, aoi.bounds[1] + 0.01)
    assert reproject(shapely.segmentize(small, 0.001), "EPSG:4326", crs).area / 1e4 == pytest.approx(
        float(area_ha(small)), rel=1e-6
    )


def test_the_grid_of_an_equal_area_projection_is_anchored_alike():
    grid = make_grid(box(95, -3, 105, 3), "auto", 300, 2048)
    assert (grid.x0 % 300, grid.y0 % 300) == (150, 150)


# ---------------------------------------------------------------------------------------------- areas


@settings(max_examples=100, deadline=None)
@given(st.floats(-179, 178), st.floats(-65, 65), st.floats(0.0002, 0.004), st.floats(0.0002, 0.004))
def test_areas_of_pixels_are_geodesic(west, south, width, height):
    pixel = box(west, south, west + width, south + height)
    # the geodesic between two corners leaves their parallel, so it is followed in short steps
    assert float(area_ha(pixel)) == pytest.approx(geodesic_ha(shapely.segmentize(pixel, width / 16)), rel=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:32647", "EPSG:32623"])
@pytest.mark.parametrize("northing", [-2_226_015, 15, 5_000_015])
def test_areas_of_events_on_a_utm_grid_are_geodesic(crs, northing):
    steps = shapely.union_all(
        [box(500_015 + 30 * k, northing, 500_045 + 30 * k, northing + 30 * (k + 1)) for k in range(9)]
    )
    event = reproject(steps, crs, "EPSG:4326")
    assert float(area_ha(event)) == pytest.approx(geodesic_ha(event), rel=1e-6)


@pytest.mark.parametrize("lat", [0, -20, 45])
def test_areas_of_polygons_drawn_by_hand_are_geodesic_to_a_ten_thousandth(lat):
    triangle = shapely.Polygon([(10, lat), (10.01, lat), (10, lat + 0.01)])
    assert float(area_ha(triangle)) == pytest.approx(geodesic_ha(triangle), rel=1e-4)


def test_areas_come_one_or_many():
    shapes = np.array([box(0, 0, 0.001, 0.001), box(0, 0, 0.002, 0.001)])
    many = area_ha(shapes)
    assert many.shape == (2,)
    assert many[0] == area_ha(shapes[0])
    assert many[1] == pytest.approx(2 * many[0], rel=1e-12)
    assert many[0] == pytest.approx(1.2309, rel=1e-4)  # 111.32 m by 110.57 m


# ---------------------------------------------------------------------------------------------- regions


def region_file(folder, geometries, crs="EPSG:4326"):
    path = folder / "aoi.gpkg"
    gpd.GeoDataFrame({"n": range(len(geometries))}, geometry=geometries, crs=crs).to_file(path)
    return path


def test_a_box_of_degrees():
    assert read_region((101.0, 0.2, 101.3, 0.5)).equals(RIAU)


def test_a_file_in_any_crs_becomes_one_geometry_in_degrees(tmp_path):
    parts = [box(101.0, 0.2, 101.2, 0.5), box(101.1, 0.2, 101.3, 0.5)]
    path = region_file(tmp_path, list(gpd.GeoSeries(parts, crs="EPSG:4326").to_crs("EPSG:32647")), "EPSG:32647")
    region = read_region(path)
    assert region.geom_type == "Polygon"
    assert float(area_ha(region)) == pytest.approx(float(area_ha(RIAU)), rel=1e-4)


@pytest.mark.parametrize(
    ("aoi", "said"),
    [
        ((179.0, -18.0, -179.0, -16.0), "antimeridian"),
        ((101.0, 0.5, 101.3, 0.2), "south below north"),
        ((101.0, 0.2, 101.0, 0.5), "west, south, east, north"),
        ((101.0, 0.2, 301.0, 0.5), "in degrees"),
        ((720_000.0, 0.0, 730_000.0, 9_000.0), "in degrees"),
        ((float("nan"), 0.0, 1.0, 1.0), "in degrees"),
    ],
)
def test_a_box_that_is_none(aoi, said):
    with pytest.raises(ConfigError, match=f"region.aoi.*{said}"):
        read_region(aoi)


@pytest.mark.parametrize(
    ("wkt", "said"),
    [
        ("POLYGON((0 0, 1 1, 1 0, 0 1, 0 0))", "invalid polygon.*Fix geometries"),
        ("POLYGON EMPTY", "holds no polygon"),
        ("LINESTRING(0 0, 1 1)", "needs polygons"),
        ("MULTIPOLYGON(((-179.9 0, -179 0, -179 1, -179.9 0)), ((179 0, 179.9 0, 179 1, 179 0)))", "antimeridian"),
        ("POLYGON((179 0, 181 0, 181 1, 179 0))", "lies outside"),
        ("POLYGON((0 80, 1 80, 1 91, 0 80))", "lies outside"),
    ],
)
def test_a_region_that_cannot_work_is_refused_by_name(tmp_path, wkt, said):
    path = region_file(tmp_path, [shapely.from_wkt(wkt)])
    with pytest.raises(ConfigError, match=f"region.aoi.*{said}"):
        read_region(path)


def test_a_region_without_a_file_or_a_crs_or_geometry(tmp_path):
    with pytest.raises(ConfigError, match=r"region.aoi .*absent\.gpkg: no such file"):
        read_region(tmp_path / "absent.gpkg")
    text = tmp_path / "text.gpkg"
    text.write_text("this is no GeoPackage")
    with pytest.raises(ConfigError, match=r"region.aoi .*text\.gpkg: cannot be read as vector data"):
        read_region(text)
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        path = region_file(tmp_path, [RIAU], None)
    with pytest.raises(ConfigError, match=r"region.aoi .*aoi\.gpkg: has no CRS"):
        read_region(path)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"table\.csv: has no geometry"):
        read_region(table)


def test_a_layer_that_is_not_there_is_said_with_the_key(tmp_path):
    path = region_file(tmp_path, [RIAU])
    assert len(read_vector(path, "aoi", "overlays peat")) == 1
    with pytest.raises(ConfigError, match=r"overlays peat .*absent"):
        read_vector(path, "absent", "overlays peat")
