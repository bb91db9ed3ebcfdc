from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from shapely import box

from pipeline.config import Overlay, parse_config
from pipeline.errors import ConfigError
from pipeline.overlays import MISSING, add_overlays, check_overlays, described, measure_overlay


def square(west, south, size=1.0):
    return box(west, south, west + size, south + size)


def array_of(*shapes):
    return np.array(shapes, dtype=object)


def layer_file(folder, shapes, name="peat.gpkg", crs="EPSG:4326", **columns):
    path = folder / name
    gpd.GeoDataFrame({"n": range(len(shapes)), **columns}, geometry=list(shapes), crs=crs).to_file(path)
    return path


def raster_file(folder, values, nodata=255, name="classes.tif", crs="EPSG:4326"):
    """One-degree cells, the upper left corner at 0 E, 4 N."""
    path, values = folder / name, np.array(values, np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": nodata, "crs": crs}
    size = {"height": values.shape[0], "width": values.shape[1], "transform": from_origin(0, 4, 1, 1)}
    with rasterio.open(path, "w", **profile, **size) as raster:
        raster.write(values, 1)
    return path


def shares(events, overlay):
    share, _, reason, said = measure_overlay(events, overlay)
    return share.tolist(), reason, said


# ---------------------------------------------------------------------------------------------- polygons


def test_shares_of_an_overlay_count_its_overlaps_once(tmp_path):
    path = layer_file(tmp_path, [box(0, 0, 0.5, 1), box(0.25, 0, 0.5, 1), square(0, 0, 0.1), square(9, 9)])
    events = array_of(square(0, 0), square(0.1, 0.2, 0.1), square(3, 3), square(0.5, 0))
    share, reason, said = shares(events, Overlay(name="peat", path=path))
    assert share == pytest.approx([0.5, 1, 0, 0], abs=1e-6)
    assert (reason, said) == ("", [])


def test_polygons_of_some_classes_count(tmp_path):
    shapes = [square(0, 0), square(1, 0), square(2, 0)]
    path = layer_file(tmp_path, shapes, kind=["HL", "HP", "HL"], code=[1.0, 2.0, 3.0])
    events = array_of(*shapes)
    assert shares(events, Overlay(name="forest", path=path, column="kind", classes=("HL",)))[0] == [1, 0, 1]
    assert shares(events, Overlay(name="forest", path=path, column="code", classes=(2, 3)))[0] == [0, 1, 1]
    share, reason, said = shares(events, Overlay(name="forest", path=path, column="kind", classes=("XX",)))
    assert np.isnan(share).all()
    assert reason == "peat.gpkg holds no polygon of these classes"
    assert said == [f"overlay forest: not available ({reason}); its column is empty"]


def test_a_bow_tie_is_repaired(tmp_path):
    path = layer_file(tmp_path, [shapely.from_wkt("POLYGON((0 0, 1 1, 1 0, 0 1, 0 0))")])
    assert shares(array_of(square(0, 0)), Overlay(name="peat", path=path))[0] == pytest.approx([0.5], abs=1e-4)


def test_events_outside_the_box_of_the_polygons_are_said(tmp_path):
    path = layer_file(tmp_path, [square(0, 0)])
    share, _, said = shares(array_of(square(0, 0), square(7, 7)), Overlay(name="peat", path=path))
    assert share == [1, 0]
    assert said == [
        "overlay peat: 1 of 2 events lie outside the box around its polygons and count as 0; set `covers` to where it "
        "speaks, if that is not everywhere"
    ]


@pytest.mark.parametrize("as_file", [False, True])
def test_beyond_what_a_layer_covers_nothing_is_known(tmp_path, as_file):
    path = layer_file(tmp_path, [box(0, 0, 0.5, 1), square(9, 9)])
    covers = layer_file(tmp_path, [box(0, 0, 4, 4)], "limits.gpkg") if as_file else (0, 0, 4, 4)
    overlay = Overlay(name="peat", path=path, covers=covers)
    events = array_of(square(0, 0), square(7, 7), square(3.25, 0), square(3.75, 0))
    share, covered, reason, said = measure_overlay(events, overlay)
    assert (reason, said) == ("", [])
    assert share.tolist() == pytest.approx([0.5, np.nan, 0, np.nan], abs=1e-6, nan_ok=True)
    assert covered.tolist() == pytest.approx([1, 0, 0.75, 0.25], abs=1e-4)


# ---------------------------------------------------------------------------------------------- rasters


def test_cells_of_the_classes_count_and_what_a_raster_does_not_say_stays_open(tmp_path):
    path = raster_file(tmp_path, [[1, 2, 3, 255], [1, 1, 0, 255], [0, 0, 0, 255], [0, 0, 0, 0]])
    events = array_of(
        box(0, 3, 2, 4), box(0, 2, 2, 4), box(3, 3, 4, 4), box(2, 3, 4, 4), box(3.2, 0.2, 4.2, 0.8), box(9, 9, 10, 10)
    )
    overlay = Overlay(name="cover", path=path, classes=(2, 3))
    share, covered, reason, _ = measure_overlay(events, overlay)
    assert reason == ""
    # half no data: the known half is class 3; four fifths inside the raster: known; far away: not known
    assert share.tolist() == pytest.approx([0.5, 0.25, np.nan, 1, 0, np.nan], abs=1e-6, nan_ok=True)
    assert covered.tolist() == pytest.approx([1, 1, 0, 0.5, 0.8, 0], abs=1e-6)
    assert shares(events[:2], Overlay(name="cover", path=path))[0] == [1, 1]  # without classes: all but 0


def test_no_data_that_means_outside(tmp_path):
    path = raster_file(tmp_path, [[1, 0], [0, 0]], nodata=0)
    with pytest.raises(ConfigError, match=r"declares 0 as no data.*nodata_is_outside: true"):
        check_overlays([Overlay(name="peat", path=path)])
    overlay = Overlay(name="peat", path=path, nodata_is_outside=True)
    share, _, _ = shares(array_of(box(0, 2, 2, 4), box(1, 2, 2, 3), box(7, 7, 8, 8)), overlay)
    assert share == pytest.approx([0.25, 0, np.nan], nan_ok=True)


# ---------------------------------------------------------------------------------------------- what is missing


def events_of(*shapes):
    return gpd.GeoDataFrame({"area_ha": [10.0] * len(shapes)}, geometry=list(shapes), crs="EPSG:4326")


def test_what_is_missing_is_listed_by_event_and_by_overlay(tmp_path):
    peat = Overlay(
        name="peat", path=layer_file(tmp_path, [square(0, 0)]), title="Peatland", date="2019", source="Ministry"
    )
    cover = Overlay(name="cover", path=raster_file(tmp_path, [[1], [1], [1], [1]]))
    gone = Overlay(name="mines", path=tmp_path / "mines.gpkg")
    events = events_of(square(0, 0), square(0.2, 2, 0.2), square(8, 8))
    uses, warnings = add_overlays(events, [peat, cover, gone])
    assert events["peat"].tolist() == [1, 0, 0]
    assert events["cover"].tolist() == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert events["mines"].isna().all()
    assert events[MISSING].tolist() == ["mines", "mines", "cover, mines"]
    rows = {row["name"]: row for row in described(uses)}
    assert [rows[n]["status"] for n in ("peat", "cover", "mines")] == ["used", "partial", "unavailable"]
    assert rows["peat"] | {"sha256": ""} == {
        "name": "peat", "title": "Peatland", "date": "2019", "source": "Ministry", "file": "peat.gpkg", "sha256": "",
        "status": "used", "reason": "", "events_without": 0, "covered_percent": 100.0,
    }  # fmt: skip
    assert (rows["cover"]["events_without"], rows["cover"]["covered_percent"]) == (1, pytest.approx(66.67))
    assert rows["mines"]["reason"] == "no file mines.gpkg"
    assert len(rows["peat"]["sha256"]) == 64
    assert "overlay mines: not available (no file mines.gpkg); its column is empty" in warnings
    assert "overlay cover: says nothing about 1 of 3 events (10.0 ha); their share is empty" in warnings


def test_without_overlays_nothing_is_added():
    events = events_of(square(0, 0))
    assert add_overlays(events, []) == ([], [])
    assert MISSING not in events


def test_no_events_no_trouble(tmp_path):
    events = events_of()
    uses, _ = add_overlays(events, [Overlay(name="peat", path=layer_file(tmp_path, [square(0, 0)]))])
    assert (uses[0].status, uses[0].covered_percent) == ("used", 0.0)


def test_files_that_cannot_serve_do_not_stop_a_run_and_are_said_beforehand(tmp_path):
    text = tmp_path / "broken.gpkg"
    text.write_text("no database")
    with pytest.warns(UserWarning, match="crs"):
        bare = layer_file(tmp_path, [square(0, 0)], "bare.shp", crs=None)
    plain = raster_file(tmp_path, [[1]], name="plain.tif", crs=None)
    overlays = [Overlay(name=f"o{k}", path=path) for k, path in enumerate((tmp_path / "no.tif", text, plain, bare))]
    said = check_overlays(overlays)
    assert [s.split("(")[1].split(")")[0].split(" (")[0][:24] for s in said] == [
        "no file no.tif", "broken.gpkg cannot be re", "plain.tif has no CRS", "bare.shp has no CRS",
    ]  # fmt: skip
    events = events_of(square(0, 0))
    uses, _ = add_overlays(events, overlays)
    assert [use.status for use in uses] == ["unavailable"] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": "soil"}, "no layer 'soil'; it has peat"),
        ({"column": "kind", "classes": ("a",)}, "no column 'kind'; it has n"),
        ({"covers": "limits.gpkg"}, "covers .*limits.gpkg: no such file"),
    ],
)
def test_what_only_the_configuration_can_mend_is_refused(tmp_path, change, said):
    path = layer_file(tmp_path, [square(0, 0)])
    with pytest.raises(ConfigError, match=f"overlays peat.*{said}"):
        check_overlays([Overlay(name="peat", path=path, **change)])


@pytest.mark.parametrize(("band", "classes", "said"), [(2, (), "band 2 of 1"), (1, ("a",), "classes of a raster are")])
def test_rasters_are_checked_too(tmp_path, band, classes, said):
    with pytest.raises(ConfigError, match=f"overlays peat .*classes.tif: {said}"):
        check_overlays([Overlay(name="peat", path=raster_file(tmp_path, [[1]]), band=band, classes=classes)])


@pytest.mark.parametrize(
    ("overlays", "said"),
    [
        ([{"name": "driver", "path": "a"}], "'driver' is a column of the product already"),
        ([{"name": "p_other", "path": "a"}], "'p_other' is a column"),
        ([{"name": "a", "path": "a"}, {"name": "a", "path": "b"}], "overlay 'a' is given twice"),
        ([{"name": "a", "path": "a", "column": "k"}], "column 'k' is named, but no classes"),
    ],
)
def test_configurations_that_cannot_be_meant(tmp_path, overlays, said):
    tree = {
        "region": {"name": "r", "aoi": [0, 0, 1, 1]}, "loss": {"source": "gfc", "years": [2021]},
        "imagery": {"source": "usgs"}, "model": "m", "output": {"dir": "out"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        parse_config({**tree, "overlays": overlays}, tmp_path, "test")
    dated = [{"name": "a", "path": "a.tif", "classes": [1, 2], "date": 2019, "covers": "b.gpkg"}]
    parsed = parse_config({**tree, "overlays": dated}, tmp_path, "test").overlays[0]
    assert (parsed.date, parsed.classes, parsed.covers) == ("2019", (1, 2), tmp_path.resolve() / "b.gpkg")
