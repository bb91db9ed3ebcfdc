from __future__ import annotations

import dataclasses
import json
import shutil

import geopandas as gpd
import numpy as np
import openpyxl
import pandas as pd
import pyogrio
import pytest
import shapely
from product_example import UNIT_NAMES, make_inputs, square
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import ConfigError, ProductError
from pipeline.export import SUFFIXES, ExportParams, export_product, safe_name, write_workbook
from pipeline.product.write import write_product
from pipeline.tables import open_product

HOSTILE = "=HYPERLINK(1)"
READERS = {
    "geoparquet": gpd.read_parquet,
    "flatgeobuf": gpd.read_file,
    "geojson": gpd.read_file,
    "csv": lambda path: pd.read_csv(path, dtype={"unit_id": str}),
}


@pytest.fixture(scope="session")
def product(tmp_path_factory):
    """The example product; the unit `b` has a name that would be a formula in a sheet."""
    folder = tmp_path_factory.mktemp("example")
    inputs = make_inputs(folder)
    events, units, summary = (getattr(inputs, n).copy() for n in ("events", "units", "summary"))
    for frame in (events, units, summary):
        frame.loc[frame["unit_id"] == "b", "unit_name"] = HOSTILE
    (folder / "product").mkdir()
    write_product(dataclasses.replace(inputs, events=events, units=units, summary=summary), folder / "product")
    return folder / "product"


def export(product, out, to, **params):
    return export_product(product, out, ExportParams(to, **params))


def degrees_area(frame):
    return shapely.area(np.asarray(frame.geometry.to_crs("EPSG:32748").values)).sum()


@pytest.mark.parametrize("to", READERS)
def test_what_is_read_back_is_what_the_product_holds(product, tmp_path, to):
    ((path, rows, unit),) = export(product, tmp_path / "out", to).files
    assert (path.name, rows, unit) == (f"events{SUFFIXES[to]}", 12, "")
    expected = open_product(product).read("events")
    found = READERS[to](path).set_index("event_id").loc[list(expected["event_id"])].reset_index()
    for name in expected.columns.drop("geometry"):
        ours, theirs = expected[name], found[name]
        assert (ours.isna().to_numpy() == theirs.isna().to_numpy()).all(), name
        there = ours.notna().to_numpy()
        if pd.api.types.is_bool_dtype(ours):
            assert (theirs[there].astype(str).isin(["True", "1.0", "1"]) == ours[there].astype(bool)).all(), name
        elif pd.api.types.is_numeric_dtype(ours):
            assert theirs[there].to_numpy(float).tolist() == ours[there].to_numpy(float).tolist(), name
        elif "image" in name:
            assert pd.to_datetime(theirs[there]).dt.date.tolist() == ours[there].tolist(), name
        else:
            assert theirs[there].astype(str).tolist() == ours[there].astype(str).tolist(), name
    assert {UNIT_NAMES[0], HOSTILE, UNIT_NAMES[2]} <= set(found["unit_name"])
    if to != "csv":
        assert degrees_area(found) == pytest.approx(degrees_area(expected), rel=1e-6)
        assert found.crs == "EPSG:4326"


def test_geojson_keeps_to_rfc_7946(product, tmp_path):
    ((path, *_),) = export(product, tmp_path, "geojson").files
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "crs" not in content
    for feature in content["features"]:
        for polygon in feature["geometry"]["coordinates"]:
            assert shapely.is_ccw(shapely.LinearRing(polygon[0]))
            lon, lat = polygon[0][0]
            assert (104 < lon < 106, -2 < lat < 0) == (True, True)


def test_pmtiles_hold_every_event_with_its_attributes(product, tmp_path):
    ((path, *_),) = export(product, tmp_path, "pmtiles").files
    assert path.read_bytes()[:7] == b"PMTiles"
    tiles = pyogrio.read_dataframe(path, layer="events")
    events = open_product(product).read("events").set_index("event_id")
    assert set(tiles["event_id"]) == set(events.index)
    drivers = tiles.drop_duplicates("event_id").set_index("event_id")["driver"]
    assert (
        drivers.to_dict() == {k: None if pd.isna(v) else v for k, v in events["driver"].items()}
        or drivers.dropna().to_dict() == events["driver"].dropna().to_dict()
    )
    # an event at a tile's edge comes in parts that overlap by a margin
    whole = tiles.dissolve("event_id").to_crs("EPSG:32748").area
    for event_id, area in events.to_crs("EPSG:32748").area.items():
        assert whole[event_id] == pytest.approx(area, rel=0.03)


def test_tables_without_geometry_and_layers_with_it_go_to_csv(product, tmp_path):
    done = export(product, tmp_path, "csv", layers=("summary", "patches", "run"))
    summary, patches, run = (pd.read_csv(path) for path, *_ in done.files)
    assert summary["area_ha"].sum() == pytest.approx(open_product(product).read("summary")["area_ha"].sum())
    shapes = open_product(product).read("patches", "EPSG:4326").geometry
    assert shapely.intersects_xy(np.asarray(shapes.values), patches["lon"], patches["lat"]).all()
    assert "region" in set(run["key"])
    assert done.files[0][0].read_bytes().startswith(b"\xef\xbb\xbf")


def test_a_workbook_holds_tables_and_never_a_formula(product, tmp_path):
    ((path, rows, _),) = export(product, tmp_path, "xlsx").files
    assert rows == 12
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["summary", "units", "estimates", "events", "about"]
    kinds = {cell.data_type for sheet in book for row in sheet.iter_rows() for cell in row}
    assert "f" not in kinds
    frame = pd.read_excel(path, sheet_name="events")
    expected = open_product(product).read("events")
    assert list(frame.columns) == list(expected.columns.drop("geometry"))
    assert frame["area_ha"].sum() == pytest.approx(expected["area_ha"].sum(), rel=1e-12)
    assert set(frame["unit_name"]) == set(expected["unit_name"])
    assert HOSTILE in set(frame["unit_name"])
    assert pd.read_excel(path, sheet_name="summary")["area_ha"].sum() == pytest.approx(expected["area_ha"].sum())
    about = pd.read_excel(path, sheet_name="about")
    assert (about["name"] == "years_after_loss").any()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "#N/A", "=cmd|' /C calc'!A0", "ปาล์ม", "نخيل"])
def test_text_that_looks_like_a_formula_or_an_error_stays_text(tmp_path, text):
    write_workbook(tmp_path / "a.xlsx", {"t": pd.DataFrame({text: [text, None]})})
    cells = openpyxl.load_workbook(tmp_path / "a.xlsx")["t"]
    assert [(c.value, c.data_type) for c in (cells["A1"], cells["A2"])] == [(text, "s")] * 2
    assert cells["A3"].value is None


@pytest.mark.parametrize(("to", "layer"), [("geoparquet", "events"), ("csv", "summary"), ("flatgeobuf", "patches")])
def test_one_file_for_each_unit_together_hold_everything(product, tmp_path, to, layer):
    done = export(product, tmp_path, to, layers=(layer,), per_unit=True)
    units = {unit: READERS[to](path) for path, _, unit in done.files}
    whole = open_product(product).read(layer)
    assert set(units) <= {"a", "b", "c", "outside"}
    assert len(units) >= 3
    assert sum(map(len, units.values())) == len(whole)
    assert sum(frame["area_ha"].sum() for frame in units.values()) == pytest.approx(whole["area_ha"].sum())
    if "unit_id" in whole:
        assert all(set(frame["unit_id"]) == {unit} for unit, frame in units.items())


def test_one_workbook_for_each_unit(product, tmp_path):
    done = export(product, tmp_path, "xlsx", per_unit=True)
    assert {path.name for path, *_ in done.files} >= {"product-a.xlsx", "product-outside.xlsx"}
    assert sum(rows for _, rows, _ in done.files) == 12


def test_file_names_are_safe_and_differ():
    names = ["a", "A", "../../etc/passwd", "a/b", "a_b", "大理", "ถลาง", "", "con", "x" * 300, "a b"]
    made = [safe_name(name) for name in names]
    assert len({name.lower() for name in made}) == len(names)
    assert all(
        name and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in made
    )
    assert all(len(name) < 80 for name in made)
    assert not any(name.startswith(".") or "/" in name for name in made)
    assert made[0] == "a"


def test_simplified_copies_say_how_much_their_area_changed(product, tmp_path):
    done = export(product, tmp_path, "geoparquet", layers=("patches",), simplify_m=100)
    assert done.notes[0].startswith("patches: simplified with 100 m, area of the polygons changes by ")
    simple, whole = gpd.read_parquet(done.files[0][0]), open_product(product).read("patches")
    assert len(simple) == len(whole)
    assert len(shapely.get_coordinates(simple.geometry.values)) <= len(shapely.get_coordinates(whole.geometry.values))
    assert (simple["area_ha"] == whole["area_ha"]).all()
    assert simple.geometry.is_valid.all()


def test_eudr_holds_events_after_the_cut_off_only(product, tmp_path):
    done = export(product, tmp_path, "eudr", country="ID")
    ((path, rows, _),) = done.files
    features = json.loads(path.read_text(encoding="utf-8"))["features"]
    assert len(features) == rows
    events = open_product(product).read("events")
    assert {f["properties"]["ProductionPlace"] for f in features} == set(events["event_id"])
    assert sum(f["properties"]["Area"] for f in features) == pytest.approx(events["area_ha"].sum(), rel=1e-3)
    assert "12 of 12" in done.notes[0]


def test_a_second_export_replaces_the_first_and_leaves_nothing_else(product, tmp_path):
    for _ in range(2):
        export(product, tmp_path, "geojson")
    assert [path.name for path in tmp_path.iterdir()] == ["events.geojson"]
    (tmp_path / ".events.geojson.part").mkdir()  # what a kill leaves
    export(product, tmp_path, "geojson")
    assert [path.name for path in tmp_path.iterdir()] == ["events.geojson"]


def test_an_empty_product_exports_in_every_format(tmp_path):
    inputs = make_inputs(tmp_path, 0)
    (tmp_path / "product").mkdir()
    write_product(inputs, tmp_path / "product")
    for to in SUFFIXES:
        done = export(tmp_path / "product", tmp_path / "out" / to, to)
        written = [(path.is_file(), rows) for path, rows, _ in done.files]
        assert written == ([] if to == "pmtiles" else [(True, 0)]), to
        assert to != "pmtiles" or done.notes == ["events.pmtiles: not written, there is no polygon and so no tile"]


def test_a_product_stored_in_metres_exports_the_same(tmp_path):
    inputs = make_inputs(tmp_path, crs="EPSG:32748")
    (tmp_path / "product").mkdir()
    write_product(inputs, tmp_path / "product")
    ((path, *_),) = export(tmp_path / "product", tmp_path, "geojson").files
    assert gpd.read_file(path).total_bounds[0] == pytest.approx(105, abs=1)
    ((path, *_),) = export(tmp_path / "product", tmp_path, "geoparquet").files
    assert gpd.read_parquet(path).crs == "EPSG:32748"


@pytest.mark.parametrize(
    ("to", "params", "said"),
    [
        ("csv", {"layers": ("drivers",)}, "layer 'drivers': a product has events, patches"),
        ("geojson", {"layers": ("summary",)}, "layer summary: has no geometry"),
        ("csv", {"layers": ("scenes",), "per_unit": True}, "layer scenes: does not say units"),
        ("csv", {"simplify_m": 10}, "--simplify: csv holds no polygons"),
        ("eudr", {"country": "Indonesia"}, "--country Indonesia: two capital letters"),
        ("shapefile", {}, "--to shapefile: one of geoparquet"),
    ],
)
def test_what_cannot_be_exported(product, tmp_path, to, params, said):
    with pytest.raises(ConfigError, match=said):
        export(product, tmp_path, to, **params)


def test_a_folder_inside_the_product_or_no_product(product, tmp_path):
    with pytest.raises(ConfigError, match="lies inside the product"):
        export(product, product / "export", "csv")
    with pytest.raises(ConfigError, match="no such folder"):
        export(tmp_path / "none", tmp_path, "csv")
    with pytest.raises(ProductError, match="no whole product"):
        export(tmp_path, tmp_path.parent / "beside", "csv")


def test_the_command(product, tmp_path):
    copy = tmp_path / "mine"
    shutil.copytree(product, copy)
    result = CliRunner().invoke(app, ["export", str(copy), "--to", "csv", "--layer", "summary", "--layer", "units"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "mine-export").iterdir()} == {"summary.csv", "units.csv"}
    result = CliRunner().invoke(app, ["export", str(copy), "--to", "eudr", "--out", str(tmp_path / "e"), "--json"])
    assert json.loads(result.output)["files"][0]["rows"] > 0
    assert square(0, 0, 1).area == 900
