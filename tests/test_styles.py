from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import rasterio
from product_example import make_inputs

from pipeline.labels import FOREST_LOSS_DRIVERS, LabelScheme
from pipeline.product.layers import extra_column, layers, stored_columns
from pipeline.product.project import read_project
from pipeline.product.styles import event_categories
from pipeline.product.write import ProductInputs, write_product

OTHER_COLOURS = ("#0a0b0c", "#fefdfc", "#123456", "#c0ffee")
SE = "{http://www.opengis.net/se}"


def repainted(inputs: ProductInputs) -> ProductInputs:
    """The example with other colours and titles, which no constant of the code can know; two titles are the same."""
    classes = [
        replace(item, colour=colour, title=f"Klass <{k // 2}> & \"é\" 'x'")
        for k, (item, colour) in enumerate(zip(FOREST_LOSS_DRIVERS, OTHER_COLOURS, strict=True))
    ]
    labels = LabelScheme(tuple(classes)).to_list()
    return replace(inputs, card=type(inputs.card).model_validate({**inputs.card.model_dump(), "labels": labels}))


@pytest.fixture(scope="module", params=["shipped", "repainted"])
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelScheme]:
    folder = tmp_path_factory.mktemp("styles")
    (folder / "out").mkdir()
    inputs = make_inputs(folder)
    inputs = repainted(inputs) if request.param == "repainted" else inputs
    write_product(inputs, folder / "out")
    return folder / "out", inputs.card.scheme


def documents(folder: Path) -> tuple[dict[str, tuple[str, str | None]], str]:
    with closing(sqlite3.connect(folder / "drivers.gpkg")) as database:
        rows = database.execute("SELECT f_table_name, styleQML, styleSLD FROM layer_styles").fetchall()
        (content,) = database.execute("SELECT content FROM qgis_projects").fetchone()
    return {name: (qml, sld) for name, qml, sld in rows}, read_project(content)


def qml_fills(root: ElementTree.Element) -> list[str]:
    """Return the fill colours of a QML renderer, #rrggbb, in the order of its categories."""
    fills = []
    for symbol in root.iter("symbol"):
        value = next(item.get("v", "") for item in symbol.iter("prop") if item.get("k") == "color")
        fills.append("#" + "".join(f"{int(part):02x}" for part in value.split(",")[:3]))
    return fills


def test_one_source_of_colours_and_titles(product: tuple[Path, LabelScheme]) -> None:
    """QML, SLD, stored project, colour table, GDAL's side file, STAC and report show the same."""
    folder, scheme = product
    styles, project = documents(folder)
    colours, titles = [item.colour for item in scheme], [item.title for item in scheme]
    legend = event_categories(scheme)
    assert [item.colour for item in legend[: len(scheme)]] == colours
    for layer, wanted in (("events", [item.colour for item in legend]), ("patches", colours), ("units", colours)):
        qml, sld = styles[layer]
        assert qml_fills(ElementTree.fromstring(qml))[: len(wanted)] == wanted, layer
        rules = list(ElementTree.fromstring(sld or "").iter(f"{SE}Rule"))
        for rule, colour in zip(rules, wanted, strict=False):
            assert colour in {item.text for item in rule.iter(f"{SE}SvgParameter")}, layer
        assert len(rules) >= len(wanted)
    assert titles == [c.get("label") for c in ElementTree.fromstring(styles["patches"][0]).iter("category")][:-1]
    maps = {item.findtext("id"): item for item in ElementTree.fromstring(project).iter("maplayer")}
    assert qml_fills(maps["clearcause_events"]) == [item.colour for item in legend]
    palette = [
        (e.get("value"), e.get("color"), e.get("label")) for e in maps["clearcause_drivers_raster"].iter("paletteEntry")
    ]
    assert palette == [(str(item.code), item.colour, item.title) for item in scheme]
    with rasterio.open(folder / "drivers.tif") as dataset:
        table, tags = dataset.colormap(1), dataset.tags(1)
        assert dataset.descriptions == ("Driver of forest loss (class code)",)
    side = ElementTree.fromstring((folder / "drivers.tif.aux.xml").read_bytes())
    rows = [[cell.text for cell in row.iter("F")] for row in side.iter("Row")]
    classes = json.loads((folder / "item.json").read_text())["assets"]["drivers_tif"]["classification:classes"]
    report = (folder / "report.html").read_text(encoding="utf-8")
    for item, row, described in zip(scheme, rows, classes[:-1], strict=True):
        rgb = tuple(bytes.fromhex(item.colour[1:]))
        assert table[item.code] == (*rgb, 255)
        assert tags[f"class_{item.code}"] == item.title
        assert row == [str(item.code), item.title, *map(str, rgb)]
        assert (described["color_hint"], described["title"]) == (item.colour[1:].upper(), item.title)
        assert item.colour in report


def test_lists_of_values_stand_in_the_styles_too(product: tuple[Path, LabelScheme]) -> None:
    """QGIS takes them from the style, other programs from the schema extension."""
    folder, scheme = product
    styles, _ = documents(folder)
    for layer, column in (("events", "driver"), ("summary", "driver"), ("units", "dominant_driver")):
        fields = {f.get("name"): f for f in ElementTree.fromstring(styles[layer][0]).iter("field")}
        values = {o.get("value"): o.get("name") for o in fields[column].iter("Option") if o.get("type") == "QString"}
        assert {item.name: item.title for item in scheme}.items() <= values.items(), layer


def test_columns_that_the_configuration_added_are_described() -> None:
    events = layers(FOREST_LOSS_DRIVERS)[0]
    stored = stored_columns(events, ["event_id", "peat_land", "aux_elevation", "unit2_id", "unit2_name", "geometry"])
    assert stored[: len(events.columns)] == events.columns
    assert [column.title for column in stored[len(events.columns) :]] == [
        "Share in peat land", "Predictor elevation", "Unit id, list 2", "Unit, list 2",
    ]  # fmt: skip
    assert extra_column("peat").description == "Share of the event's area that lies in 'peat', 0..1"
