from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import scipy.ndimage
import shapely
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.transform import from_origin

from pipeline import polygons
from pipeline.polygons import CodeRaster, collect

TRANSFORM = from_origin(500_015, 90_015, 30, 30)


def polygons_of(codes, cuts=(), lookup=None, junctions=False):
    """Polygons of an array, written in windows cut at rows `cuts`."""
    with tempfile.TemporaryDirectory() as folder:
        raster = CodeRaster(Path(folder), "codes", codes.shape, "EPSG:32647", TRANSFORM)
        with raster:
            for top, bottom in zip([0, *cuts], [*cuts, len(codes)], strict=True):
                raster.write(codes[top:bottom], top, 0)
        if lookup is not None:
            raster.remap(lookup)
        return raster.polygons(junctions)


def pixels(mask):
    return [
        shapely.box(500_015 + 30 * col, 90_015 - 30 * (row + 1), 500_045 + 30 * col, 90_015 - 30 * row)
        for row, col in zip(*np.nonzero(mask), strict=True)
    ]


def test_edges_join_corners_do_not_and_zero_is_nothing():
    codes, shapes = polygons_of(np.array([[7, 7, 0], [0, 7, 9], [7, 0, 0]], np.int32))
    assert sorted(zip(codes.tolist(), shapely.area(shapes).tolist(), strict=True)) == [(7, 900), (7, 2700), (9, 900)]
    assert codes.dtype == np.int64


def test_collect_joins_equal_codes_and_sorts():
    codes, shapes = collect(*polygons_of(np.array([[7, 0, 7], [0, 3, 0]], np.int32)))
    assert codes.tolist() == [3, 7]
    assert [g.geom_type for g in shapes] == ["MultiPolygon", "MultiPolygon"]
    assert [len(g.geoms) for g in shapes] == [1, 2]


def test_nothing_gives_nothing():
    codes, shapes = polygons_of(np.zeros((5, 5), np.int32))
    assert (len(codes), len(shapes)) == (0, 0)
    assert [len(part) for part in collect(codes, shapes)] == [0, 0]


def test_holes_stay_holes():
    ring = np.ones((3, 3), np.int32)
    ring[1, 1] = 0
    _, (shape,) = polygons_of(ring)
    assert shape.area == 8 * 900
    assert len(shape.interiors) == 1


@pytest.mark.parametrize("code", [1, 255, 256, 65_536, (1 << 24) + 1, (1 << 31) - 1])
def test_large_codes_survive(code):
    codes, _ = polygons_of(np.full((2, 2), code, np.int32))
    assert codes.tolist() == [code]


def test_remap_renames_codes():
    codes, shapes = polygons_of(np.array([[1, 2], [0, 3]], np.int32), lookup=np.array([0, 5, 5, 8]))
    assert sorted(zip(codes.tolist(), shapely.area(shapes).tolist(), strict=True)) == [(5, 1800), (8, 900)]


def test_only_written_windows_take_space(tmp_path):
    with CodeRaster(tmp_path, "codes", (20_000, 20_000), "EPSG:32647", TRANSFORM) as raster:
        raster.write(np.zeros((512, 512), np.int32), 0, 0)
        raster.write(np.ones((2, 2), np.int32), 9_999, 9_999)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000
    with rasterio.open(raster.codes) as file:
        assert file.read(1, window=rasterio.windows.Window(9_998, 9_998, 4, 4)).sum() == 4


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.int32, st.tuples(st.integers(2, 10), st.integers(1, 10)), elements=st.sampled_from([0, 1, 1, 2])),
    st.integers(1, 9),
)
def test_any_raster_gives_valid_polygons_of_exactly_its_pixels_whatever_the_windows(array, cut):
    codes, shapes = collect(*polygons_of(array))
    again = collect(*polygons_of(array, (min(cut, len(array) - 1),)))
    assert again[0].tolist() == codes.tolist()
    assert shapely.to_wkb(again[1]).tolist() == shapely.to_wkb(shapes).tolist()
    assert codes.tolist() == sorted(set(array[array > 0].tolist()))
    for code, shape in zip(codes, shapes, strict=True):
        assert shapely.is_valid(shapely.get_parts(shape)).all()
        assert shape.area == 900 * (array == code).sum()
        assert shapely.symmetric_difference(shape, shapely.union_all(pixels(array == code))).area == 0
        assert len(shape.geoms) == scipy.ndimage.label(array == code)[1]


def polygons_of_gdal(codes):
    """What GDAL's polygonize makes of an array: (code, normalised WKB), sorted."""
    found = rasterio.features.shapes(codes, codes != 0, connectivity=4, transform=TRANSFORM)
    return sorted((int(code), shapely.geometry.shape(shape).normalize().wkb) for shape, code in found)


tables = arrays.arrays(
    np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 70_000])
)


@settings(max_examples=200, deadline=None)
@given(tables)
def test_any_raster_gives_the_polygons_of_gdal(array):
    codes, shapes = polygons_of(array)
    ours = [(int(code), shape.normalize().wkb) for code, shape in zip(codes, shapes, strict=True)]
    assert sorted(ours) == polygons_of_gdal(array)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_with_junctions_neighbours_share_every_vertex_and_nothing_else_changes(array):
    codes, shapes = polygons_of(array)
    again, shared = polygons_of(array, junctions=True)
    assert again.tolist() == codes.tolist()
    assert shapely.equals(shapes, shared).all()
    assert shapely.coverage_is_valid(shared)
    assert shapely.coverage_is_valid(shapely.transform(shared, lambda xy: xy + 1e-3 * np.sin(xy)))


def test_polygons_do_not_depend_on_strips_or_chunks(monkeypatch):
    rng = np.random.default_rng(3)
    array = rng.integers(0, 4, (700, 90)).astype(np.int32)
    whole = polygons_of(array)
    assert sorted((int(c), g.normalize().wkb) for c, g in zip(*whole, strict=True)) == polygons_of_gdal(array)
    monkeypatch.setattr(polygons, "_STRIP", 1)
    monkeypatch.setattr(polygons, "_CHUNK", 7)
    parts = polygons_of(array)
    assert parts[0].tolist() == whole[0].tolist()
    assert shapely.to_wkb(parts[1]).tolist() == shapely.to_wkb(whole[1]).tolist()


def test_a_spiral_that_meets_itself_at_corners_is_one_valid_polygon_with_holes():
    array = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1]], np.int32)
    _, (big, small) = polygons_of(array)
    assert (big.is_valid, big.area, [shapely.Polygon(r).area for r in big.interiors]) == (True, 9 * 900, [900])
    assert (small.is_valid, small.area) == (True, 3 * 900)
    assert shapely.is_ccw(shapely.get_exterior_ring(big))
