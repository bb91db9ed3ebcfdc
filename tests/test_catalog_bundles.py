from __future__ import annotations

import io
import os
import tarfile
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import shapely
from catalog_samples import EVER, L7, L9, WORLD, as_json, as_text, as_xml, make_bundle, mtl_groups, write_tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.check import check_scene
from pipeline.catalog.scene import BANDS, Refusal, Scene, SceneGrid
from pipeline.errors import ClearcauseError, ConfigError


def found(root, aoi=WORLD, first=EVER[0], last=EVER[1]):
    return list(BundleFolder(root).search(aoi, first, last))


def only_scene(root) -> Scene:
    (scene,) = found(root)
    assert isinstance(scene, Scene), scene
    return scene


def only_refusal(root, **search) -> Refusal:
    (refusal,) = found(root, **search)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def files_of(scene):
    return {band: Path(asset.href).name.removeprefix(f"{scene.id}_") for band, asset in scene.assets.items()}


def test_landsat_7_bands_are_one_number_lower_than_landsat_9_ones(tmp_path):
    make_bundle(tmp_path / "a" / L7, L7)
    make_bundle(tmp_path / "b" / L9, L9)
    nine, seven = found(tmp_path)
    assert [nine.id, seven.id] == [L9, L7]  # ordered by id
    assert files_of(nine) == {
        **{name: f"SR_B{n}.TIF" for n, name in enumerate(BANDS, 1)},
        "qa_pixel": "QA_PIXEL.TIF",
    }
    assert files_of(seven) == {
        "blue": "SR_B1.TIF",
        "green": "SR_B2.TIF",
        "red": "SR_B3.TIF",
        "nir08": "SR_B4.TIF",
        "swir16": "SR_B5.TIF",
        "swir22": "SR_B7.TIF",
        "qa_pixel": "QA_PIXEL.TIF",
    }
    assert (seven.platform, seven.path, seven.row, seven.cloud_cover) == ("landsat-7", 231, 62, 12.5)
    assert seven.datetime == datetime(2010, 7, 23, 14, 12, 31, 279905, tzinfo=UTC)
    assert check_scene(seven, ("red", "nir08", "swir22")) is None
    assert "no coastal band" in check_scene(seven, ("coastal", "red"))


def test_each_mtl_format_says_the_same(tmp_path):
    scenes = []
    for ending, text in {"txt": as_text, "json": as_json, "xml": as_xml}.items():
        folder = make_bundle(tmp_path / ending, crs=None)
        (folder / f"{L9}_MTL.txt").unlink()
        (folder / f"{L9}_MTL.{ending}").write_text(text(mtl_groups()))
        scene = only_scene(folder)
        scenes.append((scene.datetime, scene.cloud_cover, scene.footprint, files_of(scene), scene.grid))
    assert scenes[0] == scenes[1] == scenes[2]


def test_mtl_corner_is_a_pixel_centre_and_only_files_without_crs_use_it(tmp_path):
    bare = only_scene(make_bundle(tmp_path / "bare", crs=None))
    assert bare.grid == SceneGrid("EPSG:32620", (30.0, 0.0, 672285.0, 0.0, -30.0, -344685.0))
    placed = only_scene(make_bundle(tmp_path / "placed"))
    assert placed.grid is None
    assert placed.footprint == bare.footprint
    assert check_scene(bare, BANDS) is None


def test_a_file_with_a_crs_wins_over_its_mtl(tmp_path):
    groups = mtl_groups(shape=(7000, 7000), centre=(100000.0, 100000.0), zone=33)
    scene = only_scene(make_bundle(tmp_path, groups=groups))
    assert scene.grid is None
    lon, lat = shapely.from_wkt(scene.footprint).centroid.coords[0]
    assert (round(lon, 1), round(lat, 1)) == (-61.4, -3.1)


def test_a_file_without_crs_whose_shape_is_not_the_mtls_is_refused(tmp_path):
    reason = only_refusal(make_bundle(tmp_path, crs=None, groups=mtl_groups(shape=(21, 30)))).reason
    assert "20 x 30" in reason
    assert "21 x 30" in reason


def test_scaling_comes_from_the_mtl_and_else_is_collection_2s(tmp_path):
    groups = mtl_groups()
    groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = {"REFLECTANCE_MULT_BAND_4": "0.5", "REFLECTANCE_ADD_BAND_4": "3"}
    scene = only_scene(make_bundle(tmp_path, groups=groups))
    assert (scene.assets["red"].scale, scene.assets["red"].offset) == (0.5, 3.0)
    assert (scene.assets["blue"].scale, scene.assets["blue"].offset, scene.assets["blue"].nodata) == (2.75e-05, -0.2, 0)
    assert (scene.assets["qa_pixel"].scale, scene.assets["qa_pixel"].offset) == (1.0, 0.0)


def test_without_mtl_the_name_is_enough(tmp_path):
    folder = make_bundle(tmp_path, L7)
    (folder / f"{L7}_MTL.txt").unlink()
    scene = only_scene(tmp_path)
    assert (scene.id, scene.platform, scene.path, scene.row) == (L7, "landsat-7", 231, 62)
    assert scene.datetime == datetime(2010, 7, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("product", "level", "collection", "reason"),
    [
        ("LC08_L1TP_231062_20230723_20230802_02_T1", "L1TP", "02", "Level-1 only; Collection 2 Level-2 surface"),
        ("LC08_L1GT_231062_20230723_20230802_02_T2", "L1GT", "02", "Level-1 only; Collection 2 Level-2 surface"),
        ("LC08_L2SP_231062_20230723_20230802_01_T1", "L2SP", "01", "Collection 1; Collection 2 Level-2 surface"),
    ],
)
@pytest.mark.parametrize("with_mtl", [True, False])
def test_level_1_and_collection_1_are_refused(tmp_path, product, level, collection, reason, with_mtl):
    groups = mtl_groups(product, level=level, collection=collection)
    name = product if not with_mtl else "renamed"
    make_bundle(tmp_path, product, groups=groups)
    if with_mtl:
        (tmp_path / f"{product}_MTL.txt").rename(tmp_path / f"{name}_MTL.txt")
        for tiff in tmp_path.glob("*.TIF"):
            tiff.unlink()
    else:
        (tmp_path / f"{product}_MTL.txt").unlink()
    assert only_refusal(tmp_path).reason.startswith(reason)


def test_outside_the_days_and_outside_the_area_are_refused_with_the_days_included(tmp_path):
    make_bundle(tmp_path)
    day = date(2023, 7, 23)
    assert isinstance(found(tmp_path, first=day, last=day)[0], Scene)
    assert "outside the days" in only_refusal(tmp_path, first=date(2023, 7, 24)).reason
    assert "outside the days" in only_refusal(tmp_path, last=date(2023, 7, 22)).reason
    refusal = only_refusal(tmp_path, aoi=shapely.box(-61.0, -3.2, -60.9, -3.0))
    assert "outside the area" in refusal.reason
    assert refusal.footprint is not None
    assert refusal.cloud_cover == 12.5


def test_footprint_over_the_antimeridian_does_not_wrap_the_world(tmp_path):
    # zone 60 ends at 180 degrees: 500 x 500 pixels of 300 m around it, near the equator (Fiji lies there)
    scene = only_scene(
        make_bundle(tmp_path, crs="EPSG:32660", centre=(800000.0, -1800000.0), cell=300.0, shape=(500, 500))
    )
    shape = shapely.from_wkt(scene.footprint)
    assert shape.is_valid
    assert shape.geom_type == "MultiPolygon"
    assert 1.5 < shape.area < 2.5
    assert {west < 0 for west, *_ in (part.bounds for part in shape.geoms)} == {True, False}
    assert isinstance(found(tmp_path, aoi=shapely.box(-179.9, -17, -179.8, -16.9))[0], Scene)
    assert isinstance(found(tmp_path, aoi=shapely.box(179.9, -17, 179.95, -16.9))[0], Scene)
    assert "outside the area" in only_refusal(tmp_path, aoi=shapely.box(0, -17, 1, -16.9)).reason


def test_one_scene_per_acquisition_best_tier_then_newest(tmp_path):
    ids = [
        "LC09_L2SP_231062_20230723_20230802_02_T2",
        "LC09_L2SP_231062_20230723_20230802_02_T1",
        "LC09_L2SP_231062_20230723_20240101_02_T1",
        "LC09_L2SP_231062_20230723_20250101_02_T2",
    ]
    for product in ids:
        make_bundle(tmp_path / product, product)
    results = found(tmp_path)
    assert [item.id for item in results if isinstance(item, Scene)] == [ids[2]]
    refused = [item for item in results if isinstance(item, Refusal)]
    assert [item.scene_id for item in refused] == sorted({*ids} - {ids[2]})
    assert all(f"same acquisition as {ids[2]}" in item.reason for item in refused)


def test_every_file_is_accounted_for(tmp_path):
    make_bundle(tmp_path / L9)
    write_tiff(tmp_path / "loss.tif")
    with tarfile.open(tmp_path / f"{L7}.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    reasons = {item.scene_id: item.reason for item in found(tmp_path) if isinstance(item, Refusal)}
    assert set(reasons) == {"'.'", L7}
    assert "loss.tif" in reasons["'.'"]
    assert "unpack" in reasons[L7]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: write_tiff(p / "a.tif"), lambda p: (p / "b").mkdir()])
def test_a_folder_without_a_bundle_is_a_configuration_error(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ConfigError, match=r"imagery\.source.*no Landsat bundle"):
        found(tmp_path)


def test_a_good_json_serves_where_the_text_is_damaged(tmp_path):
    folder = make_bundle(tmp_path)
    (folder / f"{L9}_MTL.txt").write_text(as_text(mtl_groups())[:700])
    assert "damaged MTL" in only_refusal(tmp_path).reason
    (folder / f"{L9}_MTL.json").write_text(as_json(mtl_groups()))
    assert only_scene(tmp_path).cloud_cover == 12.5


@pytest.mark.parametrize(
    ("ending", "content", "reason"),
    [
        ("txt", b"x" * 5_000_001, "5 MB"),
        ("txt", b"", "cut off"),
        ("txt", b"\xff\xfe\x00", "decode"),
        ("json", b"[" * 100_000, "damaged"),
        ("json", b"[]", "LANDSAT_METADATA_FILE"),
        ("json", b'{"a": 1}', "not an object"),
        ("xml", b"<a>", "damaged"),
        ("xml", b'<?xml version="1.0" encoding="klingon"?><a/>', "damaged"),
        ("xml", b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a><b><c>&e;</c></b></a>', "DTDForbidden"),
    ],
)
def test_damaged_mtls_are_refused_in_one_line(tmp_path, ending, content, reason):
    folder = make_bundle(tmp_path)
    (folder / f"{L9}_MTL.txt").unlink()
    (folder / f"{L9}_MTL.{ending}").write_bytes(content)
    refusal = only_refusal(tmp_path)
    assert refusal.reason.startswith("damaged MTL")
    assert reason in refusal.reason
    assert "\n" not in refusal.reason
    assert refusal.datetime == datetime(2023, 7, 23, tzinfo=UTC)


def test_an_mtl_of_another_product_is_refused(tmp_path):
    make_bundle(tmp_path, L9, groups=mtl_groups("LC09_L2SP_001001_20230723_20230802_02_T1"))
    assert "it describes LC09_L2SP_001001" in only_refusal(tmp_path).reason


@pytest.mark.parametrize("name", ["../outside.TIF", "{outside}", "..\\outside.TIF", "/etc/passwd", "outside.TIF\0"])
def test_an_mtl_cannot_name_files_outside_the_folder(tmp_path, name):
    outside = write_tiff(tmp_path / "outside.TIF")
    groups = mtl_groups()
    groups["PRODUCT_CONTENTS"]["FILE_NAME_BAND_4"] = name.format(outside=outside)
    folder = make_bundle(tmp_path / "in", groups=groups)
    scene = only_scene(folder)
    assert Path(scene.assets["red"].href) == folder / f"{L9}_SR_B4.TIF"  # the file of the usual name, in the folder


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    outside = write_tiff(tmp_path / "outside.TIF")
    folder = make_bundle(tmp_path / "in")
    (folder / f"{L9}_SR_B4.TIF").unlink()
    os.symlink(outside, folder / f"{L9}_SR_B4.TIF")
    assert "link that leads out" in only_refusal(folder).reason


_VALUES = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "1e400", "0", "61", "../../x.TIF", "9" * 5000, "\0", "L1TP", "UTM\n= x"]),
    st.text(max_size=20),
    st.floats().map(str),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mtl_text_brings_it_down_or_out_of_the_folder(data, mtl_folder):
    groups = mtl_groups()
    for _ in range(data.draw(st.integers(0, 3))):
        group = data.draw(st.sampled_from(sorted(groups)))
        key = data.draw(st.sampled_from(sorted(groups[group])))
        if data.draw(st.booleans()):
            groups[group][key] = data.draw(_VALUES)
        else:
            del groups[group][key]
            groups[group]["X"] = ""
    ending, writer = data.draw(st.sampled_from([("txt", as_text), ("json", as_json), ("xml", as_xml)]))
    content = writer(groups).encode("utf-8", "surrogatepass")
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 40)) :]
    for old in mtl_folder.glob("*_MTL.*"):
        old.unlink()
    (mtl_folder / f"{L9}_MTL.{ending}").write_bytes(content)
    try:
        results = found(mtl_folder)
    except ClearcauseError:
        return
    assert results
    for item in results:
        if isinstance(item, Scene):
            assert all(Path(asset.href).parent == mtl_folder for asset in item.assets.values())
            assert shapely.from_wkt(item.footprint).is_valid
            assert check_scene(item, ("red",)) is None
        else:
            assert item.reason
            assert "\n" not in item.reason


@pytest.fixture(scope="module", params=["with_crs", "without_crs"])
def mtl_folder(request):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        write_tiff(root.parent / f"{root.name}-secret.TIF")
        yield make_bundle(root / "bundles", crs="EPSG:32620" if request.param == "with_crs" else None)
        (root.parent / f"{root.name}-secret.TIF").unlink()
