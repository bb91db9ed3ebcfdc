from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
from product_example import EVENTS, NAMES, UNIT_NAMES, make_inputs

from pipeline.errors import ProductError
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.product import record
from pipeline.product.inspect import inspect_product
from pipeline.product.rasters import confidence_band, decode_tiles, write_cog
from pipeline.product.stac import public_href
from pipeline.product.styles import event_categories
from pipeline.product.write import write_product


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("product"))


def written(folder: Path, count: int = len(EVENTS), crs: str = "EPSG:4326") -> Path:
    target = folder / "out"
    target.mkdir()
    write_product(make_inputs(folder, count, crs), target)
    return target


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32748"])
@pytest.mark.parametrize("count", [0, 1, len(EVENTS)])
def test_a_product_is_its_files_and_sound(tmp_path: Path, count: int, crs: str) -> None:
    folder = written(tmp_path, count, crs)
    assert {path.name for path in folder.iterdir()} == set(record.PRODUCT_FILES)
    result = inspect_product(folder)
    assert result.sound, str(result)
    for layer in ("events", "patches", "units", "scenes", "blocks"):
        assert pyogrio.read_info(folder / "drivers.gpkg", layer=layer)["crs"] == crs
    assert len(pyogrio.read_dataframe(folder / "drivers.gpkg", layer="events")) == count


def test_statistics_of_the_example(product: Path) -> None:
    path = product / "drivers.gpkg"
    events = pyogrio.read_dataframe(path, layer="events")
    summary = pyogrio.read_dataframe(path, layer="summary")
    units = pyogrio.read_dataframe(path, layer="units").set_index("unit_id")
    assert events["status"].value_counts().to_dict() == {
        "classified": 7, "uncertain": 2, "no_imagery": 2, "failed": 1
    }  # fmt: skip
    # 91 + 425 + 144 + 64 + 900 + 81 + 81 + 256 + 576 + 121 + 196 + 1600 pixels of 900 m2, UTM scale 0.9996 squared
    assert events["pixels"].sum() == 4535
    assert events["area_ha"].sum() == pytest.approx(4535 * 0.09 / 0.9996**2, rel=1e-4)
    assert summary["area_ha"].sum() == pytest.approx(events["area_ha"].sum(), rel=1e-9)
    told = ~summary["driver"].isin(["no_imagery", "failed"])
    assert (summary["area_ha_low"].notna() == told).all()
    assert units.loc["a", "dominant_driver"] == "plantation"
    assert units.loc["outside", "geometry"] is None
    assert list(units["unit_name"][:3]) == list(UNIT_NAMES)
    assert events["event_id"].is_monotonic_increasing
    assert int(shapely_parts(events).max()) == 2


def shapely_parts(events: gpd.GeoDataFrame) -> pd.Series:
    return events.geometry.count_geometries()


def test_columns_are_typed_and_nulls_are_null(product: Path) -> None:
    with closing(sqlite3.connect(product / "drivers.gpkg")) as database:
        types = {row[1]: row[2] for row in database.execute("PRAGMA table_info(events)")}
        silent = database.execute("SELECT driver, driver_code, confidence, p_other, first_image FROM events "
                                  "WHERE status IN ('no_imagery', 'failed')").fetchall()  # fmt: skip
        version = database.execute("PRAGMA user_version").fetchone()
    assert version == (10300,)
    assert silent == [(None,) * 5] * 3
    assert (types["first_image"], types["uncertain"], types["area_ha"]) == ("DATE", "BOOLEAN", "REAL")
    assert "peat" in types


def test_titles_domains_styles_and_record_lie_in_the_geopackage(product: Path) -> None:
    with closing(sqlite3.connect(product / "drivers.gpkg")) as database:
        titles = dict(database.execute("SELECT column_name, title FROM gpkg_data_columns WHERE table_name='events'"))
        values = database.execute(
            "SELECT value FROM gpkg_data_column_constraints WHERE constraint_name='driver' ORDER BY rowid"
        ).fetchall()
        styles = database.execute("SELECT f_table_name, styleQML, styleSLD FROM layer_styles").fetchall()
        (metadata,) = database.execute("SELECT metadata FROM gpkg_metadata").fetchone()
    assert titles["p_other"].startswith("P(Other")
    assert titles["peat"] == "Share in peat"
    assert [row[0] for row in values] == list(NAMES)
    spatial, tables = {"events", "patches", "units", "scenes", "blocks"}, {"summary", "estimates", "run"}
    assert {row[0] for row in styles} == spatial | tables
    qml = {layer: ElementTree.fromstring(text) for layer, text, _ in styles}
    sld = {layer: ElementTree.fromstring(text) for layer, _, text in styles if text}
    assert set(sld) == spatial
    labels = [c.get("label") for c in qml["events"].iter("category")]
    assert labels == [c.title for c in event_categories(FOREST_LOSS_DRIVERS)]
    assert [e.text for e in sld["events"].iter("{http://www.opengis.net/se}Title")] == labels
    assert "timings" not in json.loads(metadata)


def test_rasters_hold_the_given_pixels(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for name in ("drivers", "confidence"):
        with rasterio.open(tmp_path / f"plain-{name}.tif") as given, rasterio.open(folder / f"{name}.tif") as found:
            assert np.array_equal(given.read(1), found.read(1))
            assert (given.crs, given.transform, found.nodata) == (found.crs, found.transform, NO_DATA)
            assert found.overviews(1) == [2]
            small, full = found.read(1, out_shape=(350, 350)), given.read(1)
            if name == "drivers":  # a class is never a mean of classes
                assert set(np.unique(small)) <= set(np.unique(full))
            known = small[small != NO_DATA]
            assert full[full != NO_DATA].min() <= known.min() <= known.max() <= full[full != NO_DATA].max()


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    folders = []
    for name, seconds in (("one", 1.0), ("two", 99.0)):
        (tmp_path / name).mkdir()
        inputs = make_inputs(tmp_path / name)
        inputs = replace(inputs, events=inputs.events.sample(frac=1, random_state=len(folders)))
        inputs.run["timings"] = {"seconds": seconds}
        folders.append(tmp_path / name / "out")
        folders[-1].mkdir()
        write_product(inputs, folders[-1])
    for name in record.PRODUCT_FILES:
        if name != record.RUN_FILE:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    one, two = (record.read_run(folder) for folder in folders)
    assert one.pop("timings") != two.pop("timings")
    assert one == two


def test_addresses_lose_their_secrets(product: Path) -> None:
    assert public_href("https://u:p@h.org:8080/a/b?sig=1#f") == "https://h.org:8080/a/b"
    assert public_href("/home/someone/scene") == ""
    for name in record.PRODUCT_FILES:
        assert b"secret" not in (product / name).read_bytes(), name
    item = json.loads((product / "item.json").read_text())
    assert [link["href"] for link in item["links"]] == ["./collection.json", "https://example.org/items/1"]


def test_missing_column_is_named(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ProductError, match=r"layer events: columns \['lon'\] are missing"):
        write_product(replace(inputs, events=inputs.events.drop(columns="lon")), tmp_path / "out")
    assert not (tmp_path / "out" / record.RUN_FILE).exists()


def test_folder_must_be_empty(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    with pytest.raises(ProductError, match="empty folder"):
        write_product(inputs, tmp_path)


def test_raster_without_nodata_is_refused(tmp_path: Path) -> None:
    source = make_inputs(tmp_path).confidence
    with rasterio.open(source, "r+") as dataset:
        dataset.nodata = None
    with pytest.raises(ProductError, match="nodata 255"):
        write_cog(source, tmp_path / "c.tif", confidence_band())
    assert not (tmp_path / "c.tif").exists()


def test_strict_decoding_lets_no_wrong_pixel_pass(tmp_path: Path, product: Path) -> None:
    whole = (product / "drivers.tif").read_bytes()
    with rasterio.open(product / "drivers.tif") as dataset:
        pixels, tiles = dataset.read(1), {}
        for row, column in np.ndindex(2, 2):
            place = [dataset.get_tag_item(f"BLOCK_{w}_{column}_{row}", "TIFF", bidx=1) for w in ("OFFSET", "SIZE")]
            tiles[row, column] = (int(place[0]), int(place[1]))
    random, path, refused = np.random.default_rng(7), tmp_path / "broken.tif", 0
    for _ in range(60):
        start, length = tiles[tuple(random.integers(0, 2, 2).tolist())]
        data = bytearray(whole)
        data[start + int(random.integers(length))] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(data))
        try:
            assert decode_tiles(path) == 5
        except (zlib.error, ProductError):
            refused += 1
        else:
            with rasterio.open(path) as dataset:
                assert np.array_equal(dataset.read(1), pixels)
    assert refused >= 50


_FULL_DISK = """
import json, resource, sys
from pathlib import Path
root, limits, sys.path[:0] = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
from product_example import make_inputs
from pipeline.errors import ProductError
from pipeline.product.write import write_product
inputs, hard = make_inputs(root), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
errors = {}
for limit in limits:
    folder = root / str(limit)
    folder.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        write_product(inputs, folder)
    except (ProductError, OSError) as error:
        errors[limit] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
(root / "errors.json").write_text(json.dumps(errors))
"""


def test_no_space_is_an_error_that_names_the_file(tmp_path: Path, product: Path) -> None:
    sizes = sorted(path.stat().st_size for path in product.iterdir())
    limits = [1_000, *(size - 1 for size in sizes[1:]), 60_000, 200_000]
    roots = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path), json.dumps(limits), *roots]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    errors = json.loads((tmp_path / "errors.json").read_text())
    for limit in limits:
        assert str(tmp_path / str(limit)) in errors[str(limit)]
        left = {path.name for path in (tmp_path / str(limit)).iterdir()}
        assert record.RUN_FILE not in left
        assert left <= set(record.PRODUCT_FILES), "pieces were left behind"
        for name in left:  # what is there is whole
            assert (tmp_path / str(limit) / name).read_bytes() == (product / name).read_bytes()
