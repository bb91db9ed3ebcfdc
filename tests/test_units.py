from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from pipeline.config import UnitLayer
from pipeline.errors import ConfigError
from pipeline.grid import area_ha
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.units import (
    OUTSIDE,
    OUTSIDE_NAME,
    assign_and_count,
    assign_units,
    overlap_warning,
    read_units,
    region_as_unit,
    summary_table,
    unit_table,
)

SCRIPTS = ("Ra'ñón & <co>", "大理白族自治州", "ஈரோடு มหาสารคาม", "Республика العربية")


def square(west, south, size=1.0):
    return box(west, south, west + size, south + size)


def array_of(*shapes):
    return np.array(shapes, dtype=object)


def unit_file(folder, rows, crs="EPSG:4326", name="admin.gpkg"):
    path = folder / name
    frame = gpd.GeoDataFrame(
        {"ID": [r[0] for r in rows], "NAME": [r[1] for r in rows]}, geometry=[r[2] for r in rows], crs=crs
    )
    frame.to_file(path)
    return UnitLayer(path=path, id="ID", name="NAME")


# ---------------------------------------------------------------------------------------------- whose event


def test_an_event_belongs_to_the_unit_that_holds_most_of_it():
    units = array_of(square(0, 0), square(1, 0))
    events = array_of(square(0.2, 0.2, 0.1), square(0.96, 0.5, 0.1), square(0.92, 0.5, 0.1), square(5, 5, 0.1))
    assert assign_units(events, units).tolist() == [0, 1, 0, -1]


def test_ties_go_to_the_first_unit():
    same = array_of(square(0, 0), square(0, 0))
    assert assign_units(array_of(square(0.5, 0.5, 0.1)), same).tolist() == [0]


def test_nothing_to_assign():
    assert assign_units(array_of(), array_of(square(0, 0))).tolist() == []
    assert assign_units(array_of(square(0, 0)), array_of()).tolist() == [-1]


def test_events_where_units_overlap_are_counted_and_said():
    events = array_of(square(0.2, 0.2, 0.1), square(0.94, 0.5, 0.1), square(5, 5, 0.1))
    apart, over = array_of(square(0, 0), square(1, 0)), array_of(square(0, 0), square(1, 0), square(0.1, 0.1, 0.5))
    assert [part.tolist() if k == 0 else part for k, part in enumerate(assign_and_count(events, apart))] == [
        [0, 0, -1], 0,
    ]  # fmt: skip
    owner, doubled = assign_and_count(events, over)
    assert (owner.tolist(), doubled) == ([0, 0, -1], 1)
    assert overlap_warning("admin.gpkg", 0) == []
    assert overlap_warning("admin.gpkg", 1) == [
        "units admin.gpkg: 1 events lie where units overlap; each counts once, in the unit with most of it"
    ]


def test_units_without_a_crs_are_refused_in_one_line(tmp_path):
    with pytest.warns(UserWarning, match="crs"):
        layer = unit_file(tmp_path, [("a", "A", square(0, 0))], crs=None, name="admin.shp")
    with pytest.raises(ConfigError, match=r"region.units .*admin.shp: has no CRS; assign one and save it again"):
        read_units(layer)


def test_ten_thousand_units(tmp_path):
    boxes = shapely.box(
        *np.indices((100, 100)).reshape(2, -1) * 0.01, *(np.indices((100, 100)).reshape(2, -1) + 1) * 0.01
    )
    units, warnings = read_units(unit_file(tmp_path, [(k, f"unit {k}", g) for k, g in enumerate(boxes)]))
    assert (len(units), warnings) == (10_000, [])
    rng = np.random.default_rng(0)
    events = shapely.buffer(shapely.points(rng.random((3000, 2))), 0.002, quad_segs=1)
    owner, doubled = assign_and_count(events, np.asarray(units.geometry.values))
    assert doubled == 0
    shared = shapely.area(shapely.intersection(events, np.asarray(units.geometry.values)[owner]))
    assert (shared >= shapely.area(events) / 4).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_hectare_is_counted_once_however_units_overlap(seed):
    rng = np.random.default_rng(seed)
    units = [square(*rng.uniform(0, 3, 2), rng.uniform(0.2, 2)) for _ in range(6)]
    events = [square(*rng.uniform(0, 4, 2), rng.uniform(0.01, 0.4)) for _ in range(15)]
    owner = assign_units(array_of(*events), array_of(*units))
    shared = [[event.intersection(unit).area for unit in units] for event in events]
    for k, row in zip(owner, shared, strict=True):
        assert (k == -1) == (max(row) == 0)
        assert k == -1 or row[k] >= max(row) * 0.999
    order = rng.permutation(15)
    assert assign_units(array_of(*events)[order], array_of(*units)).tolist() == owner[order].tolist()


# ---------------------------------------------------------------------------------------------- reading units


def test_names_in_any_script_survive(tmp_path):
    rows = [(f"U{k}", name, square(k, 0)) for k, name in enumerate(SCRIPTS)]
    units, warnings = read_units(unit_file(tmp_path, rows))
    assert list(units["unit_name"]) == list(SCRIPTS)
    assert list(units["unit_id"]) == ["U0", "U1", "U2", "U3"]
    assert set(units.geom_type) == {"MultiPolygon"}
    assert warnings == []


def test_units_in_a_projected_crs_and_numbers_as_identifiers(tmp_path):
    frame = gpd.GeoSeries([square(100, 0, 0.5)], crs="EPSG:4326").to_crs("EPSG:32647")
    units, _ = read_units(unit_file(tmp_path, [(17, None, frame.iloc[0])], "EPSG:32647"))
    assert units.crs == "EPSG:4326"
    assert (units["unit_id"].iloc[0], units["unit_name"].iloc[0]) == ("17", "")
    assert float(area_ha(units.geometry.iloc[0])) == pytest.approx(float(area_ha(square(100, 0, 0.5))), rel=1e-3)


def test_invalid_rings_are_repaired_and_said(tmp_path):
    bow_tie = shapely.from_wkt("POLYGON((0 0, 1 1, 1 0, 0 1, 0 0))")
    spike = shapely.from_wkt("POLYGON((2 0, 3 0, 3 1, 4 2, 3 1, 2 1, 2 0))")
    rows = [("a", "A", bow_tie), ("b", "B", spike), ("c", "C", square(5, 0))]
    units, warnings = read_units(unit_file(tmp_path, rows))
    assert warnings == ["units admin.gpkg: 2 invalid polygons were repaired"]
    assert units.geometry.is_valid.all()
    assert [g.area for g in units.geometry] == pytest.approx([0.5, 1, 1])


def test_rows_of_one_identifier_are_joined_and_said(tmp_path):
    rows = [("a", "Isle", square(0, 0)), ("b", "Other", square(9, 9)), ("a", "Isle", square(3, 0))]
    units, warnings = read_units(unit_file(tmp_path, rows))
    assert warnings == ["units admin.gpkg: 1 rows share an identifier and were joined"]
    assert list(units["unit_id"]) == ["a", "b"]
    assert units.geometry.iloc[0].area == 2


@pytest.mark.parametrize(
    ("rows", "change", "said"),
    [
        ([("a", "A", square(0, 0))], {"id": "CODE"}, r"no column 'CODE' \(region.units.id\); it has ID, NAME"),
        ([("a", "A", square(0, 0))], {"name": "TITLE"}, r"no column 'TITLE' \(region.units.name\)"),
        ([("a", "A", shapely.Point(0, 0))], {}, "holds no polygon"),
    ],
)
def test_units_that_cannot_serve(tmp_path, rows, change, said):
    layer = unit_file(tmp_path, rows).model_copy(update=change)
    with pytest.raises(ConfigError, match=f"region.units .*admin.gpkg: {said}"):
        read_units(layer)


# ---------------------------------------------------------------------------------------------- tables


def events_table(rows):
    """Events of (unit, year, status, driver, hectares)."""
    return pd.DataFrame(rows, columns=["unit_id", "loss_year", "status", "driver", "area_ha"]).assign(
        unit_name=lambda t: t["unit_id"].str.upper(), event_id=lambda t: [f"e{k}" for k in range(len(t))]
    )


def units_of(*ids):
    return gpd.GeoDataFrame(
        {"unit_id": list(ids), "unit_name": [u.upper() for u in ids]},
        geometry=[shapely.MultiPolygon([square(k, 0)]) for k in range(len(ids))],
        crs="EPSG:4326",
    )


def test_the_tables_of_five_events():
    events = events_table([
        ("a", 2020, "classified", "plantation", 4.0),
        ("a", 2020, "uncertain", "other", 5.0),
        ("a", 2021, "classified", "plantation", 2.0),
        ("a", 2021, "no_imagery", None, 1.0),
        (OUTSIDE, 2020, "failed", None, 8.0),
    ])  # fmt: skip
    table = unit_table(events, units_of("a", "empty"), FOREST_LOSS_DRIVERS).set_index("unit_id")
    assert list(table.index) == ["a", "empty", OUTSIDE]
    assert table["loss_ha"].tolist() == [12, 0, 8]
    assert table["plantation_ha"].tolist() == [6, 0, 0]
    assert table["other_ha"].tolist() == [5, 0, 0]
    assert table["uncertain_ha"].tolist() == [5, 0, 0]
    assert table["no_imagery_ha"].tolist() == [1, 0, 0]
    assert table["failed_ha"].tolist() == [0, 0, 8]
    assert table["dominant_driver"].where(table["dominant_driver"].notna(), "none").tolist() == [
        "plantation", "none", "none",
    ]  # fmt: skip
    assert table.loc[OUTSIDE, "unit_name"] == OUTSIDE_NAME
    assert table.loc[OUTSIDE, "geometry"] is None
    summary = summary_table(events)
    rows = summary[["unit_id", "loss_year", "driver", "events", "area_ha"]].to_numpy().tolist()
    assert sorted(rows) == [
        ["a", 2020, "other", 1, 5.0],
        ["a", 2020, "plantation", 1, 4.0],
        ["a", 2021, "no_imagery", 1, 1.0],
        ["a", 2021, "plantation", 1, 2.0],
        [OUTSIDE, 2020, "failed", 1, 8.0],
    ]
    assert summary[["area_ha_low", "area_ha_high"]].isna().all(axis=None)


def test_without_loss_every_unit_is_there_with_zeros():
    table = unit_table(events_table([]), units_of("a", "b"), FOREST_LOSS_DRIVERS)
    assert table["loss_ha"].tolist() == [0, 0]
    assert table["dominant_driver"].isna().all()
    assert len(summary_table(events_table([]))) == 0


KINDS = [("classified", name) for name in FOREST_LOSS_DRIVERS.names] + [
    ("uncertain", "other"), ("no_imagery", None), ("failed", None),
]  # fmt: skip
rows = st.tuples(
    st.sampled_from(["a", "b", OUTSIDE]), st.sampled_from([2020, 2021]), st.sampled_from(KINDS), st.floats(0.01, 1e4)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, min_size=1, max_size=25))
def test_events_units_and_summary_have_one_sum(drawn):
    events = events_table([(unit, year, *kind, ha) for unit, year, kind, ha in drawn])
    total = events["area_ha"].sum()
    table, summary = unit_table(events, units_of("a", "b"), FOREST_LOSS_DRIVERS), summary_table(events)
    parts = [f"{name}_ha" for name in FOREST_LOSS_DRIVERS.names] + ["no_imagery_ha", "failed_ha"]
    assert table["loss_ha"].sum() == pytest.approx(total, rel=1e-12)
    assert table[parts].to_numpy().sum() == pytest.approx(total, rel=1e-12)
    assert table[parts].sum(axis=1).tolist() == pytest.approx(table["loss_ha"].tolist(), rel=1e-12)
    assert summary["area_ha"].sum() == pytest.approx(total, rel=1e-12)
    assert summary["events"].sum() == len(events)
    assert not summary.duplicated(["unit_id", "loss_year", "driver"]).any()


def test_a_region_without_units_is_its_own():
    unit = region_as_unit("riau", square(100, 0))
    assert unit["unit_id"].tolist() == unit["unit_name"].tolist() == ["riau"]
    assert unit.geom_type.tolist() == ["MultiPolygon"]
