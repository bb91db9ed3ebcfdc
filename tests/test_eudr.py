from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from pipeline.errors import ModelError
from pipeline.eudr import eudr_columns, eudr_doubts, geojson_files, places, without_holes
from pipeline.labels import FOREST_LOSS_DRIVERS, DriverClass, LabelScheme

REGIONAL = LabelScheme(
    (
        DriverClass(1, "oil_palm", "Oil palm", "#111111", "plantation"),
        DriverClass(2, "timber", "Timber", "#222222", "plantation", agriculture=False),
        DriverClass(3, "mining", "Mining", "#333333", "other"),
        DriverClass(4, "fire", "Fire", "#444444"),
    )
)


def test_loss_after_2020_and_drivers_that_are_agriculture():
    names = ["plantation", "smallholder_agriculture", "grassland_shrubland", "other", None]
    flags = eudr_columns(pd.Series([2019, 2020, 2021, 2022, 2023]), pd.Series(names), FOREST_LOSS_DRIVERS)
    assert flags["eudr_after_cutoff"].tolist() == [False, False, True, True, True]
    assert flags["eudr_conversion"].tolist() == [True, True, False, pd.NA, pd.NA]
    assert eudr_doubts(FOREST_LOSS_DRIVERS) == []


def test_a_regional_scheme_says_so_itself_or_by_its_parent_or_not_at_all():
    assert REGIONAL.agriculture == {"oil_palm": True, "timber": False, "mining": None, "fire": None}
    again = LabelScheme.from_list(REGIONAL.to_list())
    assert again == REGIONAL
    assert eudr_doubts(REGIONAL) == ["eudr_conversion is empty for fire: whether these are agriculture is not known"]


def test_cards_on_disk_keep_their_form():
    rows = FOREST_LOSS_DRIVERS.to_list()
    assert all(set(row) == {"code", "name", "title", "colour", "parent"} for row in rows)
    assert LabelScheme.from_list(rows) == FOREST_LOSS_DRIVERS
    with pytest.raises(ModelError):
        LabelScheme.from_list([{**rows[0], "farming": True}])


def test_no_events():
    flags = eudr_columns(pd.Series([], dtype="int64"), pd.Series([], dtype=object), FOREST_LOSS_DRIVERS)
    assert [str(t) for t in flags.dtypes] == ["boolean", "boolean"]


# ---------------------------------------------------------------------------------------------- GeoJSON


def events_of(*rows):
    table = pd.DataFrame(
        [(f"e{k}", year, ha, g.point_on_surface().x, g.point_on_surface().y) for k, (year, ha, g) in enumerate(rows)],
        columns=["event_id", "loss_year", "area_ha", "lon", "lat"],
    )
    return gpd.GeoDataFrame(table, geometry=[g for *_, g in rows], crs="EPSG:4326")


def read(files):
    return [feature for content in files for feature in json.loads(content)["features"]]


ISLES = shapely.MultiPolygon([box(101.5, 0.25, 101.6, 0.3), box(101.7, 0.25, 101.8, 0.3)])


def test_the_file_is_in_the_rules_of_the_information_system():
    ring = box(101.1, -0.5, 101.2, -0.4).difference(box(101.13, -0.47, 101.16, -0.44))
    events = events_of(
        (2021, 90.0, ring), (2020, 9.0, box(0, 0, 1, 1)), (2022, 12.0, ISLES), (2023, 3.9, box(5, 5, 6, 6))
    )
    (content,) = files = list(geojson_files(list(places(events, points=False)), "ID"))
    features = read(files)
    assert [f["properties"]["ProductionPlace"] for f in features] == ["e0", "e0", "e2", "e2", "e3"]
    assert {f["geometry"]["type"] for f in features} == {"Polygon"}
    assert {f["properties"]["ProducerCountry"] for f in features} == {"ID"}
    for feature in features:
        (only,) = feature["geometry"]["coordinates"]
        assert only[0] == only[-1]
        assert len(only) >= 4
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shapely.is_ccw(shape.exterior)
    # [lon, lat], and at least six decimals are written even where they are zeros
    assert b"[101.5000000,0.2500000]" in content
    halves = [shapely.geometry.shape(f["geometry"]) for f in features[:2]]
    assert halves[0].intersection(halves[1]).area == 0
    assert shapely.union_all(halves).symmetric_difference(ring).area < 1e-9
    assert sum(f["properties"]["Area"] for f in features[:2]) == pytest.approx(90, abs=1e-3)


def test_small_events_may_be_points_with_their_area():
    events = events_of((2021, 3.99, box(1, 1, 2, 2)), (2021, 4.0, box(3, 3, 4, 4)))
    point, polygon = read(geojson_files(list(places(events, points=True))))
    assert point["geometry"] == {"type": "Point", "coordinates": [1.5, 1.5]}
    assert point["properties"] == {"ProductionPlace": "e0", "Area": 3.99}
    assert polygon["geometry"]["type"] == "Polygon"


def test_large_exports_are_cut_between_features_and_none_is_lost():
    events = events_of(*[(2021, 5.0, box(k, 0, k + 0.5, 1)) for k in range(40)])
    files = list(geojson_files(list(places(events, points=False)), limit=2000))
    assert len(files) > 3
    assert max(map(len, files)) <= 2000
    assert [f["properties"]["ProductionPlace"] for f in read(files)] == [f"e{k}" for k in range(40)]


def test_nothing_after_the_cut_off_is_an_empty_collection():
    assert read(geojson_files(list(places(events_of((2015, 1.0, box(0, 0, 1, 1))), points=False)))) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pieces_without_holes_make_up_the_polygon(seed):
    rng = np.random.default_rng(seed)
    shape = box(0, 0, 20, 20)
    for _ in range(rng.integers(0, 9)):
        x, y = rng.integers(1, 17, 2)
        shape = shape.difference(box(x, y, x + rng.integers(1, 3), y + rng.integers(1, 3)))
    pieces = [p for part in shapely.get_parts(shape) for p in without_holes(part)]
    assert not any(len(p.interiors) for p in pieces)
    assert all(p.is_valid for p in pieces)
    assert sum(p.area for p in pieces) == pytest.approx(shape.area)
    assert shapely.union_all(pieces).symmetric_difference(shape).area == pytest.approx(0)
