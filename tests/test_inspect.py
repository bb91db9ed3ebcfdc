from __future__ import annotations

import io
import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from product_example import make_inputs

from pipeline.product import record
from pipeline.product.inspect import inspect_product
from pipeline.product.project import read_project
from pipeline.product.write import write_product


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "out").mkdir()
    write_product(make_inputs(folder), folder / "out")
    return folder / "out"


def sql(statement: str) -> Callable[[Path], None]:
    """Change the GeoPackage behind GDAL's back; triggers that need ST_ functions are dropped."""

    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "drivers.gpkg")) as database, database:
            triggers = "SELECT name FROM sqlite_master WHERE type='trigger' AND sql LIKE '%ST_%'"
            for (name,) in database.execute(triggers).fetchall():
                database.execute(f'DROP TRIGGER "{name}"')
            database.executescript(statement)

    return change


def replace_shape(wkt: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        header = b"GP\x00\x01" + np.int32(4326).tobytes()
        blob = header + shapely.to_wkb(shapely.from_wkt(wkt), byte_order=1)
        sql(f"UPDATE events SET geom = x'{blob.hex()}' WHERE status='no_imagery'")(folder)

    return change


def flip_byte(folder: Path) -> None:
    path = folder / "drivers.tif"
    with rasterio.open(path) as dataset:
        place = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1)) + 20
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def truncate(folder: Path) -> None:
    path = folder / "confidence.tif"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def paint(name: str, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with rasterio.open(folder / name, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
            dataset.write(np.full((3, 3), value, np.uint8), 1, window=((5, 8), (5, 8)))

    return change


def edit_item(folder: Path) -> None:
    path = folder / "item.json"
    data = json.loads(path.read_text())
    del data["bbox"]
    path.write_text(json.dumps(data))


def edit_collection(folder: Path) -> None:
    path = folder / "collection.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id": "another"}))


def edit_titles(folder: Path) -> None:
    path = folder / "drivers.tif.aux.xml"
    path.write_text(path.read_text().replace("<F>Plantation</F>", "<F>Orchard</F>"))


def project_elsewhere(folder: Path) -> None:
    """Store a project whose layer is looked for in somebody's home."""
    with closing(sqlite3.connect(folder / "drivers.gpkg")) as database, database:
        (content,) = database.execute("SELECT content FROM qgis_projects").fetchone()
        text = read_project(content).replace(
            "./drivers.gpkg|layername=events", "/home/me/drivers.gpkg|layername=events"
        )
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("drivers.qgs", text)
        database.execute("UPDATE qgis_projects SET content = ?", (buffer.getvalue().hex(),))


def shift(folder: Path) -> None:
    with rasterio.open(folder / "drivers.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.transform = dataset.transform @ rasterio.Affine.translation(0.5, 0)


DAMAGE = {
    "event deleted": (sql("DELETE FROM events WHERE status='failed'"), "sums agree"),
    "event deleted, counts kept up": (
        sql(
            "DELETE FROM rtree_events_geom WHERE id=(SELECT fid FROM events WHERE status='failed');"
            "DELETE FROM events WHERE status='failed'"
        ),
        "sums agree",
    ),
    "stale feature count": (
        sql("UPDATE gpkg_ogr_contents SET feature_count=11 WHERE table_name='events'"),
        "GeoPackage",
    ),
    "spatial index row lost": (sql("DELETE FROM rtree_units_geom WHERE id=1"), "GeoPackage"),
    "style lost": (sql("DELETE FROM layer_styles WHERE f_table_name='units'"), "default styles"),
    "style of another scheme": (
        sql("UPDATE layer_styles SET styleQML = replace(styleQML, '27,120,55', '27,120,56')"),
        "default styles",
    ),
    "SLD lost": (sql("UPDATE layer_styles SET styleSLD = NULL WHERE f_table_name='blocks'"), "default styles"),
    "class renamed in the list of values": (
        sql("UPDATE gpkg_data_column_constraints SET description='x' WHERE value='plantation'"),
        "lists of values",
    ),
    "column without a title": (sql("DELETE FROM gpkg_data_columns WHERE column_name='area_ha'"), "lists of values"),
    "project lost": (sql("DELETE FROM qgis_projects"), "QGIS project"),
    "project cut": (sql("UPDATE qgis_projects SET content = substr(content, 1, 400)"), "QGIS project"),
    "project elsewhere": (project_elsewhere, "QGIS project"),
    "area changed": (
        sql("UPDATE events SET area_ha = area_ha * 1.02 WHERE driver='other'"),
        "areas geodesic",
    ),
    "area changed a little": (
        sql("UPDATE events SET area_ha = area_ha * 1.0001 WHERE driver='grassland_shrubland'"),
        "sums agree",
    ),
    "summary changed": (sql("UPDATE summary SET area_ha = area_ha + 0.01"), "sums agree"),
    "summary count": (sql("UPDATE summary SET events = events + 1 WHERE driver='other'"), "sums agree"),
    "unit moved between classes": (
        sql("UPDATE units SET other_ha = other_ha + 1 WHERE unit_id='a'"),
        "sums agree",
    ),
    "dominant": (sql("UPDATE units SET dominant_driver='other' WHERE unit_id='a'"), "main drivers"),
    "layer dropped": (
        sql(
            "DROP TABLE patches; DELETE FROM gpkg_contents WHERE table_name='patches';"
            "DELETE FROM gpkg_geometry_columns WHERE table_name='patches';"
            "DELETE FROM gpkg_ogr_contents WHERE table_name='patches'"
        ),
        "layers and columns",
    ),
    "column renamed": (sql("ALTER TABLE scenes RENAME COLUMN reason TO why"), "layers and columns"),
    "invalid geometry": (
        replace_shape("MULTIPOLYGON (((105 -1, 105.1 -1.1, 105.1 -1, 105 -1.1, 105 -1)))"),
        "geometries valid",
    ),
    "point outside": (sql("UPDATE events SET lon = lon + 0.05 WHERE driver='other'"), "points inside events"),
    "id repeated": (sql("UPDATE events SET event_id='0000-1202'"), "event identifiers"),
    "id empty": (sql("UPDATE events SET event_id=NULL WHERE driver='other'"), "event identifiers"),
    "strange status": (sql("UPDATE events SET status='maybe' WHERE status='failed'"), "status and driver"),
    "wrong code": (sql("UPDATE events SET driver_code=1 WHERE driver='other'"), "status and driver"),
    "wrong flag": (sql("UPDATE events SET uncertain=1 WHERE status='classified'"), "status and driver"),
    "driver without imagery": (
        sql("UPDATE events SET driver='other', driver_code=4 WHERE status='failed'"),
        "status and driver",
    ),
    "wrong p": (sql("UPDATE events SET p_other=p_other+0.001 WHERE driver='plantation'"), "probabilities"),
    "p without imagery": (sql("UPDATE events SET p_other=1 WHERE status='no_imagery'"), "probabilities"),
    "wrong confidence": (sql("UPDATE events SET confidence=0.99 WHERE driver='other'"), "probabilities"),
    "driver not the largest p": (
        sql("UPDATE events SET driver='plantation', driver_code=1 WHERE driver='other'"),
        "probabilities",
    ),
    "patch out of its event": (
        sql("UPDATE patches SET event_id=(SELECT max(event_id) FROM patches)"),
        "patches inside events",
    ),
    "database cut": (
        lambda folder: (folder / "drivers.gpkg").write_bytes((folder / "drivers.gpkg").read_bytes()[:50_000]),
        "GeoPackage",
    ),
    "byte of a COG": (flip_byte, "COG drivers.tif"),
    "COG cut": (truncate, "COG confidence.tif"),
    "COG emptied": (lambda folder: (folder / "drivers.tif").write_bytes(b""), "COG drivers.tif"),
    "code of no class": (paint("drivers.tif", 77), "raster values"),
    "driver without confidence": (paint("drivers.tif", 1), "raster values"),
    "percent above 100": (paint("confidence.tif", 101), "raster values"),
    "grids differ": (shift, "raster values"),
    "no bbox": (edit_item, "STAC item"),
    "class titles changed": (edit_titles, "class titles"),
    "collection cut": (lambda folder: (folder / "collection.json").write_text("{"), "STAC collection"),
    "collection of another item": (edit_collection, "STAC collection"),
    "record removed": (lambda folder: (folder / "run.json").unlink(), "run record"),
    "record cut": (lambda folder: (folder / "run.json").write_text('{"region"'), "run record"),
    "report removed": (lambda folder: (folder / "report.html").unlink(), "files"),
    "foreign file": (lambda folder: (folder / "notes.txt").write_text("x"), "files"),
    "report changed": (lambda folder: (folder / "report.html").write_text("x"), "digests"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(sound: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "product"
    shutil.copytree(sound, folder)
    damage, expected = DAMAGE[name]
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = inspect_product(folder)
    failed = {check.name for check in result.checks if not check.ok}
    assert not result.sound
    assert expected in failed, str(result)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "inspecting changed the product"


def test_content_is_checked_beyond_the_digests(sound: Path, tmp_path: Path) -> None:
    """A fault of the writer comes with fitting digests: the content checks must see it alone."""
    folder = tmp_path / "product"
    shutil.copytree(sound, folder)
    DAMAGE["area changed a little"][0](folder)
    run = record.read_run(folder)
    (folder / "run.json").unlink()
    record.write_run(folder, run)
    checks = {check.name: check.ok for check in inspect_product(folder).checks}
    assert checks["digests"]
    assert not checks["sums agree"]


def test_report_of_a_sound_product(sound: Path) -> None:
    result = inspect_product(sound)
    assert result.sound
    assert str(result).endswith("out: sound")
    assert json.loads(json.dumps(result.to_dict()))["sound"] is True
    assert {check.name for check in result.checks} >= {expected for _, expected in DAMAGE.values()}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = inspect_product(tmp_path / "nowhere")
    assert not result.sound
    assert "FAIL" in str(result)
