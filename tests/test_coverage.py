from __future__ import annotations

import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from pipeline.coverage import merge_small, simplify_coverage
from pipeline.generalise import generalise_patches
from pipeline.grid import area_ha, reproject
from pipeline.polygons import CodeRaster

CRS = "EPSG:32647"
TRANSFORM = from_origin(500_010, 90_015, 30, 30)
HECTARE = 10_000


def patches_of(codes):
    """Codes and polygons of an array on a 30 m grid, neighbours sharing every vertex."""
    with tempfile.TemporaryDirectory() as folder:
        with CodeRaster(Path(folder), "codes", codes.shape, CRS, TRANSFORM) as raster:
            raster.write(codes, 0, 0)
        return raster.polygons(junctions=True)


def rasters(holes):
    """Random class rasters of smooth patches, some with nothing in places."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0 if holes else 1, 4, (rng.integers(2, 7), rng.integers(2, 7)))
        fine = np.kron(coarse, np.ones((4, 4), np.int64))
        flip = rng.random(fine.shape) < 0.1
        fine[flip] = rng.integers(0 if holes else 1, 4, flip.sum())
        return fine.astype(np.int32)

    return st.integers(0, 2**32 - 1).map(draw)


def overlap(polygons):
    return shapely.area(polygons).sum() - shapely.union_all(polygons).area


def holes(polygons):
    """Area enclosed by the polygons but in none of them."""
    parts = shapely.get_parts(shapely.union_all(polygons))
    return shapely.area(shapely.polygons(shapely.get_exterior_ring(parts))).sum() - shapely.area(parts).sum()


@settings(max_examples=60, deadline=None)
@given(rasters(holes=False), st.sampled_from([10, 30, 90]))
def test_a_simplified_coverage_has_no_overlap_no_gap_and_no_invalid_ring(codes, tolerance):
    _, polygons = patches_of(codes)
    done = simplify_coverage(polygons, tolerance)
    assert not done.left.any()
    assert shapely.is_valid(done.polygons).all()
    assert overlap(done.polygons) == pytest.approx(0, abs=1e-6)
    assert holes(done.polygons) == pytest.approx(0, abs=1e-6)
    assert shapely.coverage_is_valid(done.polygons)
    assert len(shapely.get_coordinates(done.polygons)) <= len(shapely.get_coordinates(polygons))
    assert done.change_percent == pytest.approx(
        100 * (shapely.area(done.polygons).sum() / shapely.area(polygons).sum() - 1)
    )


@settings(max_examples=30, deadline=None)
@given(rasters(holes=True))
def test_neighbours_stay_neighbours_where_there_is_nothing_between(codes):
    _, polygons = patches_of(codes)
    if not len(polygons):
        return
    done = simplify_coverage(polygons, 45)
    one, two = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    before, after = (shapely.length(shapely.intersection(p[one], p[two])) > 0 for p in (polygons, done.polygons))
    assert (after[one < two] >= before[one < two]).all()
    assert overlap(done.polygons) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(rasters(holes=True), st.sampled_from([30, 90]))
def test_without_the_outline_the_union_stays(codes, tolerance):
    _, polygons = patches_of(codes)
    if len(polygons):
        done = simplify_coverage(polygons, tolerance, outline=False)
        assert shapely.union_all(done.polygons).symmetric_difference(shapely.union_all(polygons)).area < 1e-6
        assert overlap(done.polygons) == pytest.approx(0, abs=1e-6)


def test_one_by_one_would_leave_slivers():
    """The property above is not for free: the ordinary simplifier fails it."""
    _, polygons = patches_of(np.random.default_rng(2).integers(1, 4, (12, 12)).astype(np.int32))
    alone = shapely.simplify(polygons, 45)
    assert abs(overlap(alone)) + holes(alone) > 1000


def test_polygons_that_are_no_coverage_are_left_and_said():
    square, beside, far = shapely.box(0, 0, 10, 10), shapely.box(10, 2, 20, 8), shapely.box(100, 0, 110, 10)
    overlapping = [shapely.box(200, 0, 210, 10), shapely.box(205, 0, 215, 10)]
    given_ = np.array([square, beside, far, *overlapping], dtype=object)
    done = simplify_coverage(given_, 5)
    assert done.left.tolist() == [True, True, False, True, True]  # a vertex of `beside` lies on an edge of `square`
    assert (done.polygons[done.left] == given_[done.left]).all()


def test_nothing_and_no_tolerance_change_nothing():
    nothing = np.empty(0, object)
    assert len(simplify_coverage(nothing, 10).polygons) == 0
    one = np.array([shapely.box(0, 0, 1, 1)], dtype=object)
    assert simplify_coverage(one, 0).polygons[0] is one[0]


# ---------------------------------------------------------------------------------------------- minimum mapping unit


def merged(codes, smallest, events=None):
    kind, polygons = patches_of(np.array(codes, np.int32))
    group = np.zeros(len(kind), int) if events is None else np.array(events)
    return polygons, merge_small(polygons, group, kind, shapely.area(polygons) / HECTARE, smallest)


def test_a_small_patch_joins_the_neighbour_with_the_longest_shared_border():
    # the 9 shares two edges with the 2, one with the 1 and one with the 3
    _, done = merged([[1, 1, 3, 3], [1, 9, 2, 2], [1, 2, 2, 2]], 0.1)
    areas = {int(k): a / 900 for k, a in zip(done.kind, shapely.area(done.polygons), strict=True)}
    assert areas == {1: 4, 2: 6, 3: 2}
    assert (done.merged, done.kept) == (1, 0)


def test_a_chain_of_small_patches_grows_until_it_is_large_enough_and_no_further():
    _, done = merged([[1, 2, 3, 4, 4, 4]], 0.15)
    assert sorted(shapely.area(done.polygons) / 900) == [2, 4]
    assert done.merged == 2


def test_patches_of_one_kind_that_become_neighbours_are_one():
    _, done = merged([[1, 1, 1], [1, 2, 1], [3, 3, 3], [3, 3, 3]], 0.1)
    assert sorted(done.kind.tolist()) == [1, 3]
    _, done = merged([[1, 1, 2, 1, 1]], 0.1)
    assert (done.kind.tolist(), shapely.area(done.polygons).tolist()) == ([1], [4500])


def test_merging_never_crosses_events_and_keeps_what_has_no_neighbour():
    _, done = merged([[1, 2, 2]], 0.1, events=[0, 1])
    assert (len(done.polygons), done.merged, done.kept) == (2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(rasters(holes=True), st.sampled_from([0.1, 0.5, 2.0]), st.integers(1, 3))
def test_merging_keeps_the_union_and_leaves_nothing_small_beside_a_neighbour(codes, smallest, events):
    kind, polygons = patches_of(codes)
    group = kind * 7 % events
    done = merge_small(polygons, group, kind, shapely.area(polygons) / HECTARE, smallest)
    assert shapely.area(done.polygons).sum() == pytest.approx(shapely.area(polygons).sum(), rel=1e-12)
    for event in np.unique(group):
        before, after = polygons[group == event], done.polygons[group[done.source] == event]
        assert shapely.union_all(before).symmetric_difference(shapely.union_all(after)).area == 0
        assert shapely.is_valid(after).all()
        one, two = shapely.STRtree(after).query(after, predicate="intersects")
        touching = (one != two) & (shapely.length(shapely.intersection(after[one], after[two])) > 0)
        assert (shapely.area(after)[one[touching]] / HECTARE >= smallest - 1e-9).all()
    assert len(polygons) - len(done.polygons) >= done.merged


# ---------------------------------------------------------------------------------------------- the layer


def layer_of(codes, crs="EPSG:4326"):
    kind, polygons = patches_of(np.array(codes, np.int32))
    degrees = reproject(polygons, CRS, "EPSG:4326")
    table = {
        "event_id": "e", "driver": [f"d{k}" for k in kind], "driver_code": kind, "area_ha": area_ha(degrees),
        "confidence": 0.5 + kind / 10,
    }  # fmt: skip
    return gpd.GeoDataFrame(table, geometry=degrees, crs="EPSG:4326")


def test_the_layer_is_off_by_default_and_says_what_it_did_when_on():
    layer = layer_of([[1, 1, 2], [1, 3, 2], [1, 1, 2]])
    same, nothing = generalise_patches(layer, CRS, 0, 0)
    assert same is layer
    assert (nothing.record()["merged"], nothing.warnings(0, 0)) == (0, [])
    out, done = generalise_patches(layer, CRS, 0, 0.1)
    assert sorted(out["driver"]) == ["d1", "d2"]
    assert out.set_index("driver")["confidence"].to_dict() == {"d1": 0.6, "d2": 0.7}
    assert out["area_ha"].sum() == pytest.approx(layer["area_ha"].sum(), rel=1e-9)
    assert done.merged == 1
    assert done.warnings(0, 0.1) == [
        "patches below 0.1 ha were merged into a neighbour of their event: 1; 0 are their event's only patch and stay"
    ]
    out, done = generalise_patches(layer_of(np.kron([[1, 2], [3, 1]], np.eye(9) + 1)), CRS, 60, 0)
    assert shapely.coverage_is_valid(np.asarray(out.geometry.values))
    assert done.area_change_percent == pytest.approx(0, abs=1e-5)
    assert done.area_moved_percent > 0.1
    assert "60 m: the area changes by +0.000 %" in done.warnings(60, 0)[0].replace("-0.000", "+0.000")
    assert set(out.geom_type) == {"Polygon"}
