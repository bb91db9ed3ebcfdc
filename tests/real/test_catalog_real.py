from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import rasterio
import shapely

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.check import check_scene, wrs_key
from pipeline.catalog.mtl import read_mtl
from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import BANDS, Asset, Refusal, Scene
from pipeline.catalog.stac import StaticStac

pytestmark = pytest.mark.real
WORLD = shapely.box(-180, -90, 180, 90)
EVER = (date(1980, 1, 1), date(2040, 1, 1))
SIX = ("blue", "green", "red", "nir08", "swir16", "swir22")


def found(source, base, aoi=WORLD):
    return list(open_catalog(str(source), base=base).search(aoi, *EVER))


def test_brumadinho_pair_has_six_bands_no_coastal_and_no_qa(shared_data):
    results = found("landsat8-c2l2-brumadinho-pair/", shared_data)
    scenes = [item for item in results if isinstance(item, Scene)]
    (loose,) = [item for item in results if isinstance(item, Refusal)]
    assert [scene.datetime.date() for scene in scenes] == [date(2019, 1, 14), date(2019, 1, 30)]
    assert "loss_2019_ndvi_drop.tif" in loose.reason
    for scene, cloud in zip(scenes, (9.86, 1.07), strict=True):
        assert set(scene.assets) == set(SIX)
        assert scene.cloud_cover == cloud
        assert (scene.platform, wrs_key(scene), scene.grid) == ("landsat-8", "218/74", None)
        assert check_scene(scene, SIX) is None
        assert "no coastal band" in check_scene(scene, BANDS)
        assert shapely.from_wkt(scene.footprint).contains(shapely.Point(-44.12, -20.12))  # the dam that failed
    assert scenes[0].datetime == datetime(2019, 1, 14, 12, 57, 13, 180496, tzinfo=UTC)


def test_manaus_without_crs_gets_the_very_grid_of_the_georeferenced_files(shared_data):
    (bare,) = found("landsat9-c2l2-manaus/as-shipped-no-crs", shared_data)
    (placed,) = found("landsat9-c2l2-manaus/georeferenced", shared_data)
    assert placed.grid is None
    assert bare.grid is not None
    with rasterio.open(placed.assets["red"].href) as file:
        assert bare.grid.crs == str(file.crs) == "EPSG:32620"
        assert bare.grid.transform == tuple(file.transform)[:6]
    assert bare.footprint == placed.footprint
    assert shapely.from_wkt(bare.footprint).contains(shapely.Point(-59.9, -3.13))  # where the two rivers meet
    assert check_scene(bare, SIX) is None
    assert check_scene(placed, SIX) is None


def test_manaus_twice_in_one_folder_is_one_scene(shared_data):
    scene, copy = found("landsat9-c2l2-manaus", shared_data)
    assert isinstance(scene, Scene)
    assert "same acquisition" in copy.reason


def test_colombia_is_whole_and_its_own_grid_wins_over_the_mtl(shared_data):
    (scene,) = found("landsat8-c2l2-colombia-full", shared_data)
    assert set(scene.assets) == {*BANDS, "qa_pixel"}
    assert {Path(asset.href).name[41:] for asset in scene.assets.values()} == {
        *(f"SR_B{n}.TIF" for n in range(1, 8)),
        "QA_PIXEL.TIF",
    }
    assert scene.grid is None
    assert scene.cloud_cover == 81.02
    assert scene.datetime == datetime(2019, 12, 1, 15, 13, 51, 861099, tzinfo=UTC)
    assert scene.assets["red"] == Asset(scene.assets["red"].href, 2.75e-05, -0.2, 0.0)
    assert check_scene(scene, BANDS) is None
    west, south, east, north = shapely.from_wkt(scene.footprint).bounds
    assert (west, north) == (pytest.approx(-76.0948, abs=2e-3), pytest.approx(2.4941, abs=2e-3))
    assert (east, south) == (pytest.approx(-74.0465, abs=2e-3), pytest.approx(0.3934, abs=2e-3))


def test_txt_json_and_xml_of_colombia_give_equal_scenes(shared_data, tmp_path):
    source = shared_data / "landsat8-c2l2-colombia-full"
    whole = tmp_path / "bundle"
    shutil.copytree(source, whole, ignore=shutil.ignore_patterns("*MTL*", "*ST_*", "*.jpeg", "*ANG*"))
    scenes = []
    for mtl in sorted(source.glob("*_MTL.*")):
        shutil.copy(mtl, whole)
        scenes += found(whole, tmp_path)
        (whole / mtl.name).unlink()
    assert len(scenes) == 3
    assert scenes[0].cloud_cover == 81.02
    assert scenes[0] == scenes[1] == scenes[2]


@pytest.mark.parametrize(
    "product", ["LC08_L2SP_047027_20201204_20210313_02_T1", "LC09_L2SP_010065_20220129_20220131_02_T1"]
)
def test_txt_and_xml_of_the_metadata_say_the_same(shared_data, product):
    folder = shared_data / "landsat-stac-metadata"
    text, xml = (read_mtl(folder / f"{product}_MTL.{ending}") for ending in ("txt", "xml"))
    assert text == xml
    assert text.product.text == product
    assert text.grid is not None
    item = json.loads((folder / f"{product[:25]}_02_T1.json").read_text())
    assert text.grid.crs == f"EPSG:{item['properties']['proj:epsg']}"
    assert [*text.grid.transform] == item["properties"]["proj:transform"]
    assert [*(text.shape or ())] == item["properties"]["proj:shape"]
    assert text.cloud_cover == item["properties"]["eo:cloud_cover"]


@pytest.mark.parametrize(
    ("folder", "count"), [("landsat8-c1l1-parana-overlap", 2), ("landsat8-timeseries-newyork-coarse", 19)]
)
def test_collection_1_level_1_is_refused_scene_by_scene(shared_data, folder, count):
    results = found(folder, shared_data)
    assert len({item.scene_id for item in results}) == count
    assert {item.reason for item in results} == {
        "Collection 1 Level-1 only; Collection 2 Level-2 surface reflectance is needed"
    }
    assert all(item.datetime is not None for item in results)


@pytest.mark.parametrize(
    ("product", "stac"),
    [
        ("LC09_L2SP_010065_20220129_20220131_02_T1", "LC09_L2SP_010065_20220129_02_T1.json"),
        ("LC08_L2SP_047027_20201204_20210313_02_T1", "LC08_L2SP_047027_20201204_02_T1.json"),
        ("LC08_L2SP_047027_20201204_20210313_02_T1", "LC08_L2SP_047027_20201204_20210313_02_T1_SR_stac.json"),
    ],
)
def test_stac_items_rewritten_to_local_files_serve_like_the_bundle(shared_data, tmp_path, product, stac):
    """Both styles of item, over the pixels of a real product under the item's names."""
    item = json.loads((shared_data / "landsat-stac-metadata" / stac).read_text())
    pixels = {path.name[41:]: path for path in (shared_data / "landsat8-c2l2-colombia-full").glob("*.TIF")}
    for asset in item["assets"].values():
        name = asset["href"].rpartition("/")[2]
        asset["href"] = f"./{name}"
        if name[41:] in pixels:
            shutil.copy(pixels[name[41:]], tmp_path / name)
    (tmp_path / "item.json").write_text(json.dumps(item))
    (scene,) = StaticStac(tmp_path / "item.json").search(WORLD, *EVER)
    assert isinstance(scene, Scene), scene
    bands = {band: Path(asset.href).name for band, asset in scene.assets.items()}
    assert bands == {
        **{band: f"{product}_SR_B{n}.TIF" for n, band in enumerate(BANDS, 1)},
        "qa_pixel": f"{product}_QA_PIXEL.TIF",
    }
    assert {(asset.scale, asset.offset) for band, asset in scene.assets.items() if band in BANDS} == {(2.75e-05, -0.2)}
    mtl = read_mtl(shared_data / "landsat-stac-metadata" / f"{product}_MTL.txt")
    assert (scene.platform, scene.path, scene.row) == (f"landsat-{mtl.number}", mtl.product.path, mtl.product.row)
    assert abs((scene.datetime - mtl.datetime).total_seconds()) < 0.01
    assert scene.cloud_cover == mtl.cloud_cover
    assert check_scene(scene, BANDS) is None


def test_usgs_item_of_stac_0_7_is_read_without_the_network(shared_data):
    name = "LC08_L2SP_008059_20191201_20200825_02_T1_SR_stac.json"
    (scene,) = found(f"landsat8-c2l2-colombia-full/{name}", shared_data)
    (bundle,) = found("landsat8-c2l2-colombia-full", shared_data)
    assert {band: a.href.rpartition("/")[2] for band, a in scene.assets.items()} == {
        band: Path(a.href).name for band, a in bundle.assets.items()
    }
    assert scene.assets["red"].href.startswith("s3://usgs-landsat/collection02/level-2/")
    assert shapely.from_wkt(bundle.footprint).contains(shapely.from_wkt(scene.footprint))


def test_the_item_as_shipped_points_outside_its_folder_and_is_refused(shared_data):
    (refusal,) = found("landsat-stac-metadata/LC09_L2SP_010065_20220129_02_T1.json", shared_data)
    assert "lies outside" in refusal.reason


def test_area_and_days_choose_among_real_scenes(shared_data):
    folder = BundleFolder(shared_data / "landsat8-c2l2-brumadinho-pair")
    near, day = shapely.box(-44.13, -20.13, -44.11, -20.11), date(2019, 1, 30)
    kept = [item for item in folder.search(near, day, day) if isinstance(item, Scene)]
    assert [scene.datetime.date() for scene in kept] == [day]
    assert not [item for item in folder.search(shapely.box(-61, -4, -59, -2), *EVER) if isinstance(item, Scene)]
