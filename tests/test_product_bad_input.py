"""What users hand in by mistake, from the configuration to the finished product."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from run_samples import LEFT, TOP, blobs, draw_world, layer, run, write_config

from pipeline.errors import ConfigError
from pipeline.grid import reproject
from pipeline.product.inspect import inspect_product, render_text
from pipeline.product.record import read_run

CRS = "EPSG:32620"
SCRIPTS = ("Ra'ñón & <co>", "大理白族自治州", "ஈரோடு มหาสารคาม", "Республика العربية")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A world of 100 x 100 pixels with some events."""
    return draw_world(tmp_path_factory.mktemp("small") / "world", blobs(4, (100, 100)))


def on_grid(*boxes):
    """Boxes of (first column, first row, columns, rows) in degrees."""
    shapes = [shapely.box(LEFT + 30 * c, TOP - 30 * (r + h), LEFT + 30 * (c + w), TOP - 30 * r) for c, r, w, h in boxes]
    return reproject(np.array(shapes, dtype=object), CRS, "EPSG:4326")


def save(path, shapes, names=None, crs="EPSG:4326"):
    names = names or [f"name {k}" for k in range(len(shapes))]
    gpd.GeoDataFrame({"ID": range(len(shapes)), "NAME": names}, geometry=list(shapes), crs=crs).to_file(path)
    return path


def with_units(tmp_path, world, model, path):
    return write_config(tmp_path, world, model, region__units={"path": str(path), "id": "ID", "name": "NAME"})


def assert_sums(product):
    """One sum in events, units and summary, and a sound product."""
    total = layer(product, "events")["area_ha"].sum()
    assert layer(product, "units")["loss_ha"].sum() == pytest.approx(total, rel=1e-6)
    assert layer(product, "summary")["area_ha"].sum() == pytest.approx(total, rel=1e-6)
    report = inspect_product(product)
    assert report.sound, render_text(report)


def test_overlapping_and_invalid_units_in_four_scripts_count_once_and_are_said(small, tiny_model, tmp_path):
    shapes = [*on_grid((0, 0, 50, 100), (40, 0, 60, 50), (0, 0, 100, 100))]
    west, south, east, north = on_grid((50, 50, 50, 50))[0].bounds
    shapes.append(shapely.Polygon([(west, south), (east, north), (east, south), (west, north)]))  # a bow-tie
    path = save(tmp_path / "admin.gpkg", shapes, SCRIPTS)
    product = run(with_units(tmp_path, small, tiny_model, path)).product
    assert_sums(product)
    assert set(layer(product, "units")["unit_name"]) >= set(SCRIPTS)
    warnings = " | ".join(read_run(product)["warnings"])
    assert "units admin.gpkg: 1 invalid polygons were repaired" in warnings
    assert "events lie where units overlap; each counts once" in warnings


def test_units_without_a_crs_stop_the_run_in_one_line(small, tiny_model, tmp_path):
    with pytest.warns(UserWarning, match="crs"):
        path = save(tmp_path / "admin.shp", on_grid((0, 0, 50, 100)), crs=None)
    with pytest.raises(ConfigError, match=r"admin\.shp: has no CRS; assign one and save it again"):
        run(with_units(tmp_path, small, tiny_model, path))


def test_overlays_that_are_missing_or_cover_a_part_are_listed_and_never_zero(small, tiny_model, tmp_path):
    peat = save(tmp_path / "peat.gpkg", on_grid((0, 0, 50, 50)))
    half = list(on_grid((0, 0, 50, 100))[0].bounds)
    overlays = [
        {"name": "peat", "path": str(peat), "covers": half, "title": "Peat & <soil>", "date": "2019", "source": "BRG"},
        {"name": "mines", "path": str(tmp_path / "mines.gpkg")},
    ]
    product = run(write_config(tmp_path, small, tiny_model, overlays=overlays)).product
    assert_sums(product)
    events = layer(product, "events")
    assert events["mines"].isna().all()
    assert events["peat"].isna().any()
    assert events["peat"].between(0, 1)[events["peat"].notna()].all()
    assert (events["overlays_missing"].str.contains("mines")).all()
    assert (events["overlays_missing"].str.contains("peat") == events["peat"].isna()).all()
    record = read_run(product)
    status = {row["name"]: row["status"] for row in record["overlays"]}
    assert status == {"peat": "partial", "mines": "unavailable"}
    assert sum("overlay mines: not available" in text for text in record["warnings"]) == 1
    assert sum("overlay peat: says nothing about" in text for text in record["warnings"]) == 1


def test_simplified_patches_with_a_smallest_area_are_a_sound_product(world, tiny_model, tmp_path):
    plain = run(write_config(tmp_path / "plain", world, tiny_model)).product
    config = write_config(tmp_path / "simple", world, tiny_model, output__simplify_m=45, output__min_patch_ha=0.2)
    product = run(config).product
    assert_sums(product)
    before, after = layer(plain, "patches"), layer(product, "patches")
    assert len(after) < len(before)
    assert len(shapely.get_coordinates(after.geometry.values)) < len(shapely.get_coordinates(before.geometry.values))
    shapes = np.asarray(after.to_crs(CRS).geometry.values)
    assert shapely.area(shapes).sum() == pytest.approx(shapely.union_all(shapes).area, rel=1e-6)
    assert shapely.coverage_is_valid(np.asarray(after.geometry.values))
    record = read_run(product)["generalised"]
    assert record["merged"] > 0
    assert record["left_unsimplified"] == 0
    assert abs(record["area_change_percent"]) < 1e-3
    assert 0 < record["area_moved_percent"] < 20
    assert shapely.coverage_is_valid(np.asarray(before.geometry.values))
    left, right = layer(plain, "events"), layer(product, "events")
    assert list(left.geometry.to_wkb()) == list(right.geometry.to_wkb())
    assert (left["area_ha"] == right["area_ha"]).all()
