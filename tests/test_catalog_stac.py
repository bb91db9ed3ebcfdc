from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import shapely
from catalog_samples import EVER, WORLD, make_item, write_tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog.check import check_scene
from pipeline.catalog.hrefs import remote_href
from pipeline.catalog.items import scene_from_item
from pipeline.catalog.scene import BANDS, Refusal, Scene
from pipeline.catalog.stac import StaticStac
from pipeline.errors import ConfigError


def found(path, aoi=WORLD, first=EVER[0], last=EVER[1]):
    return list(StaticStac(path).search(aoi, first, last))


def remote(item):
    """The item as an API would give it: every asset on a server."""
    item = copy.deepcopy(item)
    for key, asset in item["assets"].items():
        asset["href"] = f"https://example.org/{key}.tif?sig=secret#x"
    return scene_from_item(item, remote_href, "test")


@pytest.fixture
def catalog(tmp_path):
    """A root catalog, a collection in it, one item with its files, and a link back to the root."""
    folder = tmp_path / "collection" / "item"
    folder.mkdir(parents=True)
    item = make_item()
    for asset in item["assets"].values():
        asset["href"] = asset["href"].partition("?")[0]
        write_tiff(folder / asset["href"])
    item["assets"]["red"]["href"] = str(folder / "red.tif")  # absolute
    item["assets"]["blue"]["href"] = (folder / "blue.tif").as_uri()
    item["assets"]["green"]["href"] = "../item/green.tif"
    links = {
        tmp_path / "catalog.json": [{"rel": "child", "href": "./collection/collection.json"}],
        tmp_path / "collection/collection.json": [
            {"rel": "item", "href": "item/item.json"},
            {"rel": "child", "href": "../catalog.json"},
            {"rel": "license", "href": "https://example.org"},
        ],
    }
    for path, targets in links.items():
        kind = "Catalog" if path.name == "catalog.json" else "Collection"
        path.write_text(json.dumps({"type": kind, "stac_version": "1.0.0", "id": path.stem, "links": targets}))
    (folder / "item.json").write_text(json.dumps(item))
    return tmp_path / "catalog.json"


def test_a_catalog_on_disk_leads_to_scenes_that_serve(catalog):
    (scene,) = found(catalog)
    assert (scene.id, scene.platform, scene.path, scene.row) == (make_item()["id"], "landsat-9", 231, 62)
    assert scene.datetime == datetime(2023, 7, 23, 14, 12, 31, 279906, tzinfo=UTC)
    assert scene.cloud_cover == 0.64
    assert set(scene.assets) == {*BANDS, "qa_pixel"}
    assert {Path(asset.href).parent for asset in scene.assets.values()} == {catalog.parent / "collection" / "item"}
    assert check_scene(scene, BANDS) is None


def test_an_item_collection_and_a_single_item_serve_too(tmp_path):
    item = make_item()
    for name, node in {"one.json": item, "all.json": {"type": "FeatureCollection", "features": [item]}}.items():
        (tmp_path / name).write_text(json.dumps(node))
        (scene,) = found(tmp_path / name)
        assert isinstance(scene, Scene)
        assert Path(scene.assets["red"].href).parent == tmp_path


def test_days_and_area_are_refusals(tmp_path):
    path = tmp_path / "item.json"
    path.write_text(json.dumps(make_item()))
    assert "outside the area" in found(path, aoi=shapely.box(0, 0, 1, 1))[0].reason
    assert "outside the days" in found(path, last=EVER[0])[0].reason


def test_links_that_cannot_be_followed_are_refused_one_by_one(catalog):
    root = json.loads(catalog.read_text())
    bad = ["https://example.org/item.json", "../secret.json", "/etc/passwd", "gone.json", "broken.json", "list.json", 3]
    (catalog.parent / "broken.json").write_text("{")
    (catalog.parent / "list.json").write_text("[]")
    (catalog.parent.parent / "secret.json").write_text(json.dumps(make_item("secret")))
    root["links"] += [{"rel": "item", "href": href} for href in bad] + [{}, 5]
    catalog.write_text(json.dumps(root))
    results = found(catalog)
    assert len([item for item in results if isinstance(item, Scene)]) == 1
    assert len([item for item in results if isinstance(item, Refusal)]) == len(bad)
    assert "secret" not in [getattr(item, "id", "") for item in results]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"type": "Polygon"}', '{"type": "Catalog", "links": []}', "[" * 100_000, '{"a": NaN}']
)
def test_a_file_that_is_no_catalog_is_a_configuration_error(tmp_path, content):
    (tmp_path / "catalog.json").write_text(content)
    with pytest.raises(ConfigError, match=r"imagery\.source"):
        found(tmp_path / "catalog.json")


def test_bands_by_key_by_common_name_and_by_usgs_file_name():
    by_key = make_item()
    by_name = make_item()
    by_name["assets"] = {
        f"x{n}": {"eo:bands": [{"common_name": name}]}
        for n, name in enumerate(["coastal", "blue", "green", "red", "nir", "swir1", "swir2"])
    }
    by_name["assets"]["browse"] = {"eo:bands": [{"common_name": "red"}, {"common_name": "green"}]}
    by_file = make_item()
    by_file["assets"] = {f"SR_B{n}.TIF": {} for n in range(1, 8)} | {"QA_PIXEL.TIF": {}, "ST_B10.TIF": {}}
    by_index = make_item()
    by_index["properties"]["eo:bands"] = [{"common_name": name} for name in BANDS]
    by_index["assets"] = {f"B{n}": {"eo:bands": [n]} for n in range(7)} | {"odd": {"eo:bands": [99]}}
    stac_1_1 = make_item()
    stac_1_1["assets"] = {
        "a": {"bands": [{"eo:common_name": "red", "raster:scale": 0.5, "raster:offset": 3, "nodata": 7}]}
    }
    for item in (by_key, by_name, by_file, by_index):
        scene = remote(item)
        assert isinstance(scene, Scene), scene
        assert set(scene.assets) - {"qa_pixel"} == set(BANDS)
        assert (scene.assets["red"].scale, scene.assets["red"].offset) == (2.75e-05, -0.2)
    assert remote(by_file).assets["nir08"].href == "https://example.org/SR_B5.TIF.tif"
    assert remote(by_index).assets["nir08"].href == "https://example.org/B4.tif"
    red = remote(stac_1_1).assets["red"]
    assert (red.scale, red.offset, red.nodata) == (0.5, 3.0, 7.0)


def test_usgs_file_names_of_landsat_7_are_its_own():
    item = make_item("LE07_L2SP_231062_20100723_02_T1")
    item["assets"] = {"SR_B4.TIF": {}}
    assert set(remote(item).assets) == {"nir08"}


def test_hrefs_are_kept_unsigned():
    assert remote(make_item()).assets["red"].href == "https://example.org/red.tif"


def test_s3_is_taken_only_where_the_href_cannot_be():
    item = make_item()
    s3 = {"s3": {"href": "s3://usgs-landsat/red.tif"}}
    item["assets"] = {"red": {"href": "https://example.org/red.tif", "alternate": s3}, "nir08": {"alternate": s3}}
    scene = scene_from_item(item, remote_href, "test")
    assert scene.assets["red"].href == "https://example.org/red.tif"
    assert scene.assets["nir08"].href == "s3://usgs-landsat/red.tif"


def test_files_of_usgs_are_read_in_its_bucket_as_its_own_addresses_want_a_login():
    item = make_item()
    told = {"s3": {"href": "s3://usgs-landsat/elsewhere/nir.TIF", "storage:requester_pays": True}}
    item["assets"] = {
        "red": {"href": "https://landsatlook.usgs.gov/data/collection02/level-2/x_SR_B4.TIF"},
        "nir08": {"href": "https://landsatlook.usgs.gov/data/collection02/level-2/x_SR_B5.TIF", "alternate": told},
        "blue": {"href": "https://landsatlook.usgs.gov.example.org/data/x_SR_B2.TIF"},
    }
    assert {band: asset.href for band, asset in scene_from_item(item, remote_href, "test").assets.items()} == {
        "red": "s3://usgs-landsat/collection02/level-2/x_SR_B4.TIF",
        "nir08": "s3://usgs-landsat/elsewhere/nir.TIF",
        "blue": "https://landsatlook.usgs.gov.example.org/data/x_SR_B2.TIF",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"landsat:correction": "L1TP"}, "Level-1 only"),
        ({"landsat:collection_number": "01"}, "Collection 1;"),
        ({"platform": "sentinel-2a"}, "Landsat 4 to 9"),
        ({"datetime": "yesterday"}, "no usable datetime"),
        ({"datetime": None}, "no usable datetime"),
    ],
)
def test_items_that_cannot_serve_say_why(change, reason):
    item = make_item()
    item["properties"] |= change
    assert reason in remote(item).reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"assets": {"lwir11": {"href": "x"}}}, "no usable band"),
        ({"assets": None}, "no usable band"),
        ({"geometry": None, "bbox": None}, "geometry"),
        ({"geometry": {"type": "Point", "coordinates": [0, 0]}, "bbox": [0, 0]}, "geometry"),
        ({"id": "../../evil"}, "plain id"),
        ({"id": 7}, "plain id"),
    ],
)
def test_malformed_items_say_why(change, reason):
    refusal = scene_from_item(make_item(**change), remote_href, "test")
    assert reason in refusal.reason


@pytest.mark.parametrize(
    "href", ["/etc/passwd", "../x.tif", "file:///etc/passwd", "vrt:///etc/passwd", "ftp://h/x", None, ""]
)
def test_assets_outside_the_catalogs_folder_are_refused_with_the_band(tmp_path, href):
    item = make_item()
    item["assets"]["swir16"]["href"] = href
    path = tmp_path / "in" / "item.json"
    path.parent.mkdir()
    path.write_text(json.dumps(item))
    (refusal,) = found(path)
    assert "band swir16" in refusal.reason


@pytest.mark.parametrize("href", ["red.tif", "/etc/passwd", "file:///etc/passwd", "https://", "gs://b/x"])
def test_an_api_cannot_make_us_read_local_files(href):
    item = make_item(assets={"red": {"href": href}})
    assert "band red" in scene_from_item(item, remote_href, "test").reason


def test_footprints_over_the_antimeridian():
    ring = [[179, -17], [-179, -17], [-179, -16], [179, -16], [179, -17]]
    for change in (
        {"geometry": {"type": "Polygon", "coordinates": [ring]}},
        {"geometry": None, "bbox": [179, -17, -179, -16]},
    ):
        shape = shapely.from_wkt(remote(make_item(**change)).footprint)
        assert shape.is_valid
        assert shape.area == pytest.approx(2.0)
        assert shape.geom_type == "MultiPolygon"


def test_one_scene_per_acquisition(tmp_path):
    ids = ["LC09_L2SP_231062_20230723_02_T1", "LC09_L2SP_231062_20230723_02_T2"]
    (tmp_path / "c.json").write_text(json.dumps({"type": "FeatureCollection", "features": [make_item(i) for i in ids]}))
    first, second = found(tmp_path / "c.json")
    assert isinstance(first, Scene)
    assert "same acquisition" in second.reason


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["../x", "/etc/x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["s3", "href", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(node, here=()):
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*here, key)
        yield from _places(child, (*here, key))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_item_brings_it_down_or_out_of_the_folder(data, tmp_path):
    root = tmp_path / "in"
    root.mkdir(exist_ok=True)
    item = make_item()
    for _ in range(data.draw(st.integers(1, 4))):
        *way, last = data.draw(st.sampled_from(list(_places(item))))
        node = item
        for key in way:
            node = node[key]
        node[last] = data.draw(_JUNK)
    (root / "item.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    (result,) = found(root / "item.json")
    if isinstance(result, Scene):
        assert result.assets
        assert all(Path(asset.href).is_relative_to(root) for asset in result.assets.values())
        shape = shapely.from_wkt(result.footprint)
        assert shape.is_valid
        assert shape.area > 0
    else:
        assert result.reason
        assert "\n" not in result.reason
        result.reason.encode("utf-8")
