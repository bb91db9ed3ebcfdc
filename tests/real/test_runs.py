"""Real scenes through the whole flow, by the configurations that ship with the project."""

from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject
from run_samples import assert_same_results, layer, raster, run, tiny_package

from pipeline.product.inspect import inspect_product, render_text

pytestmark = pytest.mark.real
SHIPPED = "models/fpn-efficientnet-b2"


@pytest.fixture(scope="module")
def product_of(root, shared_data, tmp_path_factory):
    """Run a shipped configuration in this process with a tiny model of the shipped one's patch size."""
    model = tiny_package(tmp_path_factory.mktemp("model") / "tiny", size=256)

    def call(name, *overrides):
        fixed = (
            f"model={model}", "compute.executor=threads", "compute.engine=torch",
            f"output.dir={tmp_path_factory.mktemp(name)}/product",
        )  # fmt: skip
        product = run(root / "configs" / f"{name}.yaml", *fixed, *overrides).product
        report = inspect_product(product)
        assert report.sound, render_text(report)
        return product

    return call


@pytest.fixture(scope="module")
def brumadinho(product_of):
    return product_of("brumadinho")


@pytest.fixture(scope="module")
def manaus(product_of):
    return product_of("manaus")


@pytest.fixture(scope="module")
def colombia(product_of):
    return product_of("colombia")


@pytest.fixture(scope="module")
def dominican(product_of):
    return product_of("dominican")


def test_brumadinho_has_the_events_of_its_loss_raster(brumadinho):
    events = layer(brumadinho, "events")
    assert len(events) == 39
    assert events["area_ha"].sum() == pytest.approx(288.8, rel=5e-3)
    largest = events.loc[events["area_ha"].idxmax()]
    assert largest["area_ha"] == pytest.approx(191, rel=1e-2)
    assert (largest["lon"], largest["lat"]) == (pytest.approx(-44.12, abs=0.05), pytest.approx(-20.13, abs=0.03))
    assert set(events["loss_year"]) == {2019}
    assert set(events["status"]) <= {"classified", "uncertain"}
    assert (events["clear_share"] > 0.9).all()


def test_brumadinho_uses_both_scenes_and_warns_that_clouds_count_as_ground(brumadinho):
    scenes = layer(brumadinho, "scenes")
    used = scenes[scenes["used"]]
    assert list(used["datetime"].dt.strftime("%Y-%m-%d")) == ["2019-01-14", "2019-01-30"]
    assert used["reason"].str.contains("no QA_PIXEL").all()
    events = layer(brumadinho, "events")
    assert events["image_count"].max() == 2
    warnings = json.loads((brumadinho / "run.json").read_text())["warnings"]
    assert sum("no QA_PIXEL" in text for text in warnings) == 2


def test_manaus_is_warped_from_the_zone_beside_it(manaus, root):
    with rasterio.open(manaus / "drivers.tif") as file:
        assert file.crs.to_epsg() == 32621, "the scene is in 32620"
    events = layer(manaus, "events")
    drawn = gpd.read_file(root / "configs" / "data" / "manaus-simulated-loss.geojson")
    assert drawn["simulated"].all()
    assert len(events) == len(drawn) == 24
    geod = pyproj.Geod(ellps="WGS84")
    areas = sorted(abs(geod.geometry_area_perimeter(g)[0]) / 1e4 for g in drawn.geometry)
    assert sorted(events["area_ha"]) == pytest.approx(areas, rel=1e-4)
    assert set(events["status"]) <= {"classified", "uncertain"}
    assert (events["clear_share"] == 1).all()
    assert (events["years_after_loss"].round(1) == (2023.6 - events["loss_year"]).round(1)).all()


def test_manaus_as_shipped_takes_its_grid_from_the_mtl(manaus, product_of, shared_data):
    bare = shared_data / "landsat9-c2l2-manaus" / "as-shipped-no-crs"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(next(bare.rglob("*.TIF"))) as file:
        assert file.crs is None
    assert_same_results(product_of("manaus", f"imagery.source={bare}"), manaus)


def test_colombia_invents_nothing_under_clouds(colombia, shared_data):
    """Clear shares are those of QA_PIXEL, taken here by another way: nearest pixel to the map's grid."""
    events = layer(colombia, "events")
    with rasterio.open(colombia / "drivers.tif") as file:
        crs, transform, shape, drivers = file.crs, file.transform, file.shape, file.read(1)
    with rasterio.open(next((shared_data / "landsat8-c2l2-colombia-full").glob("*_QA_PIXEL.TIF"))) as file:
        qa = np.ones(shape, np.uint16)
        reproject(
            file.read(1), qa, src_transform=file.transform, src_crs=file.crs, dst_transform=transform, dst_crs=crs,
            resampling=Resampling.nearest, init_dest_nodata=False,
        )  # fmt: skip
    clear = (qa & 0b111111) == 0
    owner = rasterize(
        zip(events.to_crs(crs).geometry, range(1, len(events) + 1), strict=True), shape, transform=transform,
        dtype="int32",
    )  # fmt: skip
    assert not (drivers[~clear] != 255).any(), "a class where QA_PIXEL says not clear"
    assert (drivers != 255).sum() == pytest.approx((clear & (owner > 0)).sum(), abs=2)
    for k, event in enumerate(events.itertuples(), 1):
        inside = owner == k
        assert event.pixels == max(inside.sum(), 1)
        if inside.any():
            assert event.clear_share == pytest.approx(clear[inside].mean(), abs=1e-6)
    none = events["status"] == "no_imagery"
    assert 0.5 < none.mean() < 0.95
    assert (events.loc[none, "clear_share"] == 0).all()
    assert events.loc[none, "driver"].isna().all()
    assert (events.loc[~none, "clear_share"] > 0).all()


def test_colombia_warns_of_its_resolution(colombia):
    warnings = json.loads((colombia / "run.json").read_text())["warnings"]
    assert any("grid.resolution 450 differs from the model's 30" in text for text in warnings)
    (scene,) = layer(colombia, "scenes").itertuples()
    assert (scene.used, scene.cloud_cover) == (True, 81.02)


def test_dominican_areas_of_each_year_are_those_of_the_pixels(dominican, shared_data):
    """Geodesic area of a raster's cells, row by row, against the areas of the events of each year."""
    events = layer(dominican, "events")
    path = next((shared_data / "gfc-dominican-republic").glob("Hansen*lossyear*.tif"))
    with rasterio.open(path) as file:
        loss, t = file.read(1), file.transform
    geod = pyproj.Geod(ellps="WGS84")
    cell = np.empty(loss.shape[0])
    for row in range(loss.shape[0]):
        west, north = t @ (0, row)
        east, south = t @ (1, row + 1)
        lon, lat = [west, east, east, west], [south, south, north, north]
        cell[row] = abs(geod.polygon_area_perimeter(lon, lat)[0]) / 1e4
    total = events.groupby("loss_year")["area_ha"].sum()
    assert set(total.index) == {int(y) + 2000 for y in np.unique(loss[loss > 0])}
    for year, area in total.items():
        assert area == pytest.approx(((loss == year - 2000).sum(axis=1) * cell).sum(), rel=1e-3), year


def test_dominican_without_imagery_says_so(dominican):
    events, scenes = layer(dominican, "events"), layer(dominican, "scenes")
    assert set(events["status"]) == {"no_imagery"}
    assert not scenes["used"].any()
    assert scenes["reason"].str.contains("outside the area").sum() == 2
    assert (raster(dominican) == 255).all()
    summary = layer(dominican, "summary")
    assert summary["area_ha"].sum() == pytest.approx(events["area_ha"].sum(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brumadinho", "manaus", "colombia", "dominican"])
def test_shipped_model_runs_the_shipped_configuration(name, root, shared_data, tmp_path):
    """Nothing overridden but the output folder; plain processes without Prefect."""
    from run_samples import program

    assert (root / SHIPPED / "model.json").is_file()
    ended = program("run", root / "configs" / f"{name}.yaml", "--no-prefect", "--out", tmp_path / "product")
    assert ended.code == 0, ended.err
    report = inspect_product(tmp_path / "product")
    assert report.sound, render_text(report)
