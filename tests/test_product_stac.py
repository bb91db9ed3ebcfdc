from __future__ import annotations

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pystac
import pytest
from product_example import EVENTS, make_inputs
from pystac.errors import STACValidationError

from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.product.layers import layers
from pipeline.product.stac import validate
from pipeline.product.write import write_product

WANTED = {"projection", "raster", "classification", "table", "processing", "mlm", "file"}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stac")
    (folder / "out").mkdir()
    write_product(make_inputs(folder), folder / "out")
    return folder / "out"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("validation reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def read(product: Path, name: str) -> dict[str, Any]:
    return json.loads((product / name).read_text(encoding="utf-8"))


def names(data: dict[str, Any]) -> set[str]:
    return {uri.split("/")[3] for uri in data["stac_extensions"]}


def test_item_and_collection_follow_every_schema_they_name(product: Path) -> None:
    item, collection = read(product, "item.json"), read(product, "collection.json")
    validate(item)
    validate(collection)
    assert names(item) | names(collection) == WANTED
    assert names(item) >= WANTED - {"mlm"}
    assert names(collection) >= WANTED - {"file"}


def at(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]  # type: ignore[index]
        data[path[-1]] = value  # type: ignore[index]

    return change


BROKEN_ITEM = {
    "core": at("bbox", value=[1, 2]),
    "projection": at("assets", "drivers_tif", "proj:shape", value=["700", "700"]),
    "raster": at("assets", "drivers_tif", "raster:bands", 0, "data_type", value="byte"),
    "classification": at("assets", "drivers_tif", "classification:classes", 0, "color_hint", value="#1B7837"),
    "file": at("assets", "drivers_gpkg", "file:checksum", value="sha256:ABC"),
    "processing": at("properties", "processing:software", value="clearcause"),
    "table": at("assets", "drivers_gpkg", "table:columns", 0, value={"type": "text"}),
}
BROKEN_COLLECTION = {
    "core": at("extent", value={}),
    "processing": at("providers", 0, "processing:level", value=4),
    # nothing breaks the schema of tables: for a Collection any of its four places suffices, and one asks for nothing
    "mlm": at("summaries", "mlm:name", value=["fpn-test"]),
    "classification": at("item_assets", "drivers_tif", "classification:classes", 0, "value", value="1"),
    "raster": at("item_assets", "drivers_tif", "raster:bands", value=[]),
    "projection": at("item_assets", "drivers_tif", "proj:code", value=32748),
}


@pytest.mark.parametrize("name", BROKEN_ITEM)
def test_a_broken_item_is_refused_by_the_schema_it_breaks(product: Path, name: str) -> None:
    check_refused(read(product, "item.json"), name, BROKEN_ITEM[name])


@pytest.mark.parametrize("name", BROKEN_COLLECTION)
def test_a_broken_collection_is_refused_by_the_schema_it_breaks(product: Path, name: str) -> None:
    check_refused(read(product, "collection.json"), name, BROKEN_COLLECTION[name])


def check_refused(data: dict[str, Any], name: str, change: Callable[[dict[str, Any]], None]) -> None:
    broken = copy.deepcopy(data)
    change(broken)
    with pytest.raises(STACValidationError, match="schemas.stacspec.org" if name == "core" else f"github.io/{name}/"):
        validate(broken)


def test_an_extension_without_a_schema_at_hand_is_an_error(product: Path) -> None:
    data = read(product, "item.json")
    data["stac_extensions"].append("https://stac-extensions.github.io/eo/v2.0.0/schema.json")
    with pytest.raises(ValueError, match=r"eo/v2\.0\.0"):
        validate(data)


def test_pystac_reads_the_collection_its_item_and_their_extensions(product: Path) -> None:
    collection = pystac.Collection.from_file(str(product / "collection.json"))
    (item,) = collection.get_items()
    assert item.collection_id == collection.id
    assert {Path(asset.get_absolute_href() or "").name for asset in item.assets.values()} <= {
        path.name for path in product.iterdir()
    }
    drivers = item.assets["drivers_tif"]
    assert (drivers.ext.proj.code, drivers.ext.proj.shape) == ("EPSG:32748", [700, 700])
    (band,) = drivers.ext.raster.bands or []
    assert (band.nodata, band.spatial_resolution) == (NO_DATA, 30)
    classes = [(c.value, c.name, c.color_hint) for c in drivers.ext.classification.classes or []]
    assert classes[:-1] == [(c.code, c.name, c.colour[1:].upper()) for c in FOREST_LOSS_DRIVERS]
    table = item.assets["drivers_gpkg"].ext.table
    assert table.row_count == len(EVENTS)
    described = {column.name: column.description for column in table.columns or []}
    assert described["confidence"].startswith("Calibrated probability")
    assert described["peat"].startswith("Share of the event's area")
    assert [row["name"] for row in collection.extra_fields["table:tables"]] == [
        layer.name for layer in layers(FOREST_LOSS_DRIVERS)
    ]


def test_the_model_is_named(product: Path) -> None:
    summaries = read(product, "collection.json")["summaries"]
    expression = read(product, "item.json")["properties"]["processing:expression"]
    assert summaries["mlm:name"]["const"] == "fpn-test"
    assert expression["format"] == "stac-mlm"
    assert expression["expression"]["mlm:name"] == "fpn-test"
    assert expression["expression"]["sha256"] == summaries["clearcause:model_sha256"]["const"] == "0" * 64


def test_a_product_without_events_has_valid_stac(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_product(make_inputs(tmp_path, 0), tmp_path / "out")
    validate(read(tmp_path / "out", "item.json"))
    assert read(tmp_path / "out", "item.json")["assets"]["drivers_gpkg"]["table:row_count"] == 0
