"""Products in the programs that people open them with: QGIS, GDAL's tools, and validators of both formats."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from osgeo_utils.samples import validate_gpkg
from PIL import Image
from product_example import EVENTS, make_inputs
from pyproj import CRS
from rasterio.warp import Resampling, calculate_default_transform, reproject

from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.product import record
from pipeline.product.inspect import inspect_product
from pipeline.product.layers import domains, layers
from pipeline.product.styles import NO_IMAGERY_COLOUR, Category, event_categories
from pipeline.product.write import write_product

SYSTEM_PYTHON = "/usr/bin/python3"  # where Debian's QGIS and GDAL put their modules
LOOK = Path(__file__).parent / "qgis" / "look.py"
ENVIRONMENT = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "LC_ALL": "C.UTF-8"}
BRUSHES = {"solid": 1, "hatch": 12, "outline": 0}  # Qt.SolidPattern, Qt.BDiagPattern, Qt.NoBrush
PLAN = {layer.name: layer for layer in layers(FOREST_LOSS_DRIVERS)}


def missing(what: str) -> None:
    """Skip the test, or fail it in CI, where everything is to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing: the product cannot be opened as its users do")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def gdal_tools() -> None:
    if not shutil.which("ogrinfo") or not shutil.which("gdalinfo"):
        missing("ogrinfo or gdalinfo (Debian: gdal-bin)")


@pytest.fixture(scope="session")
def system_gdal() -> None:
    command = [SYSTEM_PYTHON, "-c", "import osgeo_utils.samples.validate_cloud_optimized_geotiff, osgeo.gdal"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        missing("GDAL for the system's Python (Debian: python3-gdal)")


@pytest.fixture(scope="session")
def qgis(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], tuple[dict, Path]]:
    """Return what looks at a product with QGIS: what it saw, and the folder of its pictures."""
    command = [SYSTEM_PYTHON, "-c", "import qgis.core"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        missing("QGIS for the system's Python (Debian: python3-qgis)")

    def look(folder: Path) -> tuple[dict, Path]:
        pictures = tmp_path_factory.mktemp("pictures")
        runtime = tmp_path_factory.mktemp("runtime")
        runtime.chmod(0o700)
        environment = {**ENVIRONMENT, "XDG_RUNTIME_DIR": str(runtime), "HOME": str(runtime)}
        command = [SYSTEM_PYTHON, str(LOOK), str(folder), str(pictures)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), pictures

    return look


def written(folder: Path, count: int = len(EVENTS), crs: str = "EPSG:4326") -> Path:
    (folder / "out").mkdir()
    write_product(make_inputs(folder, count, crs), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def seen(product: Path, tmp_path_factory: pytest.TempPathFactory, qgis: Callable) -> tuple[dict, Path, Path]:
    """The product copied to a folder with an awkward name, looked at there: what QGIS saw, pictures, the folder."""
    moved = tmp_path_factory.mktemp("moved") / "ผลิตภัณฑ์ & co 'x'"
    shutil.copytree(product, moved)
    return (*qgis(moved), moved)


def rows(categories: tuple[Category, ...]) -> list[list[object]]:
    return [[item.value, item.title, item.colour, BRUSHES[item.pattern]] for item in categories]


def test_qgis_opens_each_layer_in_its_default_style(seen: tuple[dict, Path, Path]) -> None:
    opened = seen[0]["layers"]
    assert opened["events"]["renderer"]["categories"] == rows(event_categories(FOREST_LOSS_DRIVERS))
    patterns = {row[0].partition(":")[0]: row[3] for row in opened["events"]["renderer"]["categories"]}
    assert (patterns["driver"], patterns["uncertain"], patterns["status"]) == (1, 12, 1)
    assert [row[2] for row in opened["events"]["renderer"]["categories"] if row[0] == "status:no_imagery"] == [
        NO_IMAGERY_COLOUR
    ]
    for name in ("patches", "units"):
        found = [row[:3] for row in opened[name]["renderer"]["categories"]]
        assert found[:-1] == [[item.name, item.title, item.colour] for item in FOREST_LOSS_DRIVERS], name
        assert found[-1][0] == ""
    assert [row[0] for row in opened["scenes"]["renderer"]["categories"]] == ["1", "0"]
    assert [row[0] for row in opened["blocks"]["renderer"]["categories"]] == ["failed", "not_run", ""]
    assert seen[0]["said"] == []


def test_qgis_shows_titles_aliases_and_lists_of_values(seen: tuple[dict, Path, Path]) -> None:
    lists = domains(FOREST_LOSS_DRIVERS)
    for name, layer in PLAN.items():
        found = seen[0]["layers"][name]
        assert found["valid"]
        assert (found["title"], found["abstract"]) == (layer.title, layer.description)
        for column in layer.columns:
            field = found["fields"][column.name]
            assert field["alias"] == column.title, (name, column.name)
            assert field["values"] == (lists[column.domain] if column.domain else {}), (name, column.name)
    assert seen[0]["layers"]["events"]["fields"]["peat"]["alias"] == "Share in peat"
    assert seen[0]["layers"]["events"]["features"] == len(EVENTS)


def test_qgis_opens_the_stored_project_wherever_the_product_lies(seen: tuple[dict, Path, Path]) -> None:
    project, moved = seen[0]["project"], seen[2]
    assert project["read"]
    assert project["title"] == "Drivers of forest loss, Ünïté <b>Test</b>, 2021 to 2022"
    assert project["crs"] == "EPSG:4326"
    shown = [layer["name"] for layer in project["layers"].values() if layer["shown"]]
    assert shown == ["Unit borders", "Drivers of forest loss"]
    assert {layer["name"] for layer in project["layers"].values()} >= {
        "Landsat scenes",
        "Driver by pixel",
        "Run record",
    }
    for layer in project["layers"].values():
        assert layer["valid"], layer["name"]
        assert Path(layer["source"]).parent == moved, layer["name"]
    events = project["layers"]["clearcause_events"]
    assert events["renderer"]["categories"] == rows(event_categories(FOREST_LOSS_DRIVERS))
    assert events["fields"]["driver"]["values"] == {item.name: item.title for item in FOREST_LOSS_DRIVERS}
    pixels = project["layers"]["clearcause_drivers_raster"]
    assert pixels["classes"] == [[item.code, item.title, item.colour] for item in FOREST_LOSS_DRIVERS]
    assert project["layouts"] == ["Map (A4)"]
    west, south, east, north = project["extent"]
    events_box = make_box(moved)
    assert west < events_box[0] < events_box[2] < east
    assert south < events_box[1] < events_box[3] < north


def make_box(folder: Path) -> tuple[float, float, float, float]:
    with closing(sqlite3.connect(folder / "drivers.gpkg")) as database:
        return database.execute(
            "SELECT min_x, min_y, max_x, max_y FROM gpkg_contents WHERE table_name = 'events'"
        ).fetchone()


def test_the_pictures_hold_every_colour_and_the_uncertain_are_hatched(seen: tuple[dict, Path, Path]) -> None:
    for name in ("events.png", "project.png", "page.png"):
        pixels = np.asarray(Image.open(seen[1] / name).convert("RGB")).reshape(-1, 3)
        counts = {
            item.value: int((pixels == item.rgb).all(axis=1).sum()) for item in event_categories(FOREST_LOSS_DRIVERS)
        }
        drawn = {f"driver:{item.name}" for item in FOREST_LOSS_DRIVERS} | {"status:no_imagery", "status:failed"}
        assert min(counts[value] for value in drawn) > 20, (name, counts)
    picture = Image.open(seen[1] / "events.png").convert("RGB")
    # inside the third event of the example, which is uncertain and lies in the upper right
    inside = np.asarray(picture.crop((617, 51, 626, 60))).reshape(-1, 3)
    white = float((inside == 255).all(axis=1).mean())
    assert 0.2 < white < 0.9, "an uncertain event is filled or empty, not hatched"


def test_looking_at_a_product_leaves_it_sound(seen: tuple[dict, Path, Path]) -> None:
    result = inspect_product(seen[2])
    assert result.sound, str(result)
    assert {path.name for path in seen[2].iterdir()} == set(record.PRODUCT_FILES)


def test_side_files_of_a_viewer_are_named_and_not_held_against_the_product(product: Path, tmp_path: Path) -> None:
    folder = tmp_path / "product"
    shutil.copytree(product, folder)
    (folder / "confidence.tif.aux.xml").write_text("<PAMDataset/>")
    checks = {check.name: check for check in inspect_product(folder).checks}
    assert checks["files"].ok
    assert "confidence.tif.aux.xml left by a program" in checks["files"].detail


@pytest.mark.parametrize(("count", "crs"), [(0, "EPSG:4326"), (len(EVENTS), "EPSG:32748")])
def test_qgis_opens_empty_and_projected_products(tmp_path: Path, qgis: Callable, count: int, crs: str) -> None:
    folder = written(tmp_path, count, crs)
    found, _ = qgis(folder)
    assert found["said"] == []
    assert found["project"]["crs"] == crs
    assert all(layer["valid"] for layer in found["project"]["layers"].values())
    assert found["layers"]["events"]["features"] == count
    assert found["layers"]["events"]["renderer"]["categories"] == rows(event_categories(FOREST_LOSS_DRIVERS))


def test_qgis_places_rasters_whose_system_has_no_code(tmp_path: Path, qgis: Callable) -> None:
    """Regions wider than a UTM zone are run in an equal-area projection of their own."""
    inputs = make_inputs(tmp_path)
    system = "+proj=laea +lat_0=-1 +lon_0=105.1 +datum=WGS84 +units=m"
    for path in (inputs.drivers, inputs.confidence):
        warp(path, system)
    (tmp_path / "out").mkdir()
    write_product(replace(inputs), tmp_path / "out")
    found, _ = qgis(tmp_path / "out")
    raster = found["project"]["layers"]["clearcause_drivers_raster"]
    assert raster["valid"]
    assert CRS(raster["crs"]).equals(CRS(system), ignore_axis_order=True) or "Lambert Azimuthal" in raster["crs"]
    assert found["said"] == []


def warp(path: Path, crs: str) -> None:
    with rasterio.open(path) as source:
        transform, width, height = calculate_default_transform(
            source.crs, crs, source.width, source.height, *source.bounds, resolution=30
        )
        target = np.full((height, width), NO_DATA, np.uint8)
        reproject(
            source.read(1), target, src_transform=source.transform, src_crs=source.crs, src_nodata=NO_DATA,
            dst_transform=transform, dst_crs=crs, dst_nodata=NO_DATA, resampling=Resampling.nearest,
        )  # fmt: skip
        profile = {**source.profile, "width": width, "height": height, "transform": transform, "crs": crs}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(target, 1)


@pytest.mark.parametrize("count", [0, len(EVENTS)])
def test_ogrinfo_reads_every_layer_without_a_word_of_complaint(tmp_path: Path, gdal_tools: None, count: int) -> None:
    path = written(tmp_path, count) / "drivers.gpkg"
    done = subprocess.run(["ogrinfo", "-ro", "-al", "-so", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for layer in PLAN.values():
        assert f"Layer name: {layer.name}" in done.stdout
        assert layer.description in done.stdout
    listed = subprocess.run(["ogrinfo", "-ro", "-so", path, "events"], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert "domain name=driver" in listed.stdout
    assert f"Feature Count: {count}" in listed.stdout


@pytest.mark.parametrize(("count", "crs"), [(0, "EPSG:4326"), (len(EVENTS), "EPSG:4326"), (len(EVENTS), "EPSG:32748")])
def test_the_geopackage_validator_finds_no_fault(tmp_path: Path, count: int, crs: str) -> None:
    path = written(tmp_path, count, crs) / "drivers.gpkg"
    assert faults(path) == []
    with closing(sqlite3.connect(path)) as database, database:  # a validator that says nothing proves nothing
        database.execute("UPDATE gpkg_contents SET srs_id = 4711 WHERE table_name = 'units'")
    assert faults(path)


def faults(path: Path) -> list[object]:
    checker = validate_gpkg.GPKGChecker(str(path), abort_at_first_error=False)
    checker.check()
    return list(checker.errors)


@pytest.mark.parametrize("name", [record.DRIVERS_FILE, record.CONFIDENCE_FILE])
def test_gdals_validator_accepts_the_rasters(product: Path, tmp_path: Path, system_gdal: None, name: str) -> None:
    def validate(path: Path) -> subprocess.CompletedProcess[str]:
        module = "osgeo_utils.samples.validate_cloud_optimized_geotiff"
        command = [SYSTEM_PYTHON, "-m", module, "--full-check=yes", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)

    done = validate(product / name)
    assert done.returncode == 0, done.stdout
    assert "is a valid cloud optimized GeoTIFF" in done.stdout
    assert "warning" not in done.stdout
    edited = tmp_path / name
    shutil.copy(product / name, edited)
    with rasterio.open(edited, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:  # its tiles are written anew, behind
        dataset.write(np.random.default_rng(1).integers(1, 4, dataset.shape, dtype=np.uint8), 1)
    assert validate(edited).returncode != 0


def test_gdalinfo_names_the_classes_and_the_bands(product: Path, gdal_tools: None) -> None:
    done = subprocess.run(["gdalinfo", "-json", product / "drivers.tif"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    band = json.loads(done.stdout)["bands"][0]
    assert band["description"] == "Driver of forest loss (class code)"
    assert band["colorTable"]["entries"][1] == [*bytes.fromhex("1b7837"), 255]
    assert len(band["overviews"]) == 1
    text = subprocess.run(["gdalinfo", product / "drivers.tif"], capture_output=True, text=True, check=True).stdout
    for item in FOREST_LOSS_DRIVERS:
        assert f"{item.code}: {item.title}" in text
        assert f"<F>{item.title}</F>" in text
    text = subprocess.run(["gdalinfo", product / "confidence.tif"], capture_output=True, text=True, check=True).stdout
    assert "Description = Confidence of the driver (percent)" in text
    assert "STATISTICS_MAXIMUM=64" in text
