from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyogrio
import pytest
from product_example import make_inputs
from typer.testing import CliRunner

from pipeline.areas.sources import card_source
from pipeline.areas.tables import adjusted_summary, estimates_table
from pipeline.changes import compare_products, render_changes
from pipeline.cli import app
from pipeline.errors import ConfigError
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.product.write import write_product
from pipeline.units import summary_table, unit_table


def save(folder, inputs, events=None, **changes):
    """Write a product of these inputs, its tables made anew from `events`."""
    if events is not None:
        units, scheme = inputs.units[["unit_id", "unit_name", "geometry"]], FOREST_LOSS_DRIVERS
        patches = inputs.patches[inputs.patches["event_id"].isin(events["event_id"])]
        source = card_source(inputs.card)
        inputs = dataclasses.replace(
            inputs, events=events, patches=patches, estimates=estimates_table(events, source, scheme.names),
            units=unit_table(events, units[units["unit_id"] != "outside"], scheme),
            summary=adjusted_summary(summary_table(events), events, source, scheme.names),
        )  # fmt: skip
    folder.mkdir()
    write_product(dataclasses.replace(inputs, **changes), folder)
    return folder


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changes")
    inputs = make_inputs(folder)
    return inputs, save(folder / "old", inputs)


def reversed_driver(events, row):
    """The event of a row says the class that was least likely."""
    columns = [f"p_{name}" for name in FOREST_LOSS_DRIVERS.names]
    p = events.loc[events.index[row], columns].to_numpy(float)[::-1]
    events.loc[events.index[row], columns] = p
    events.loc[events.index[row], "driver"] = FOREST_LOSS_DRIVERS.names[int(p.argmax())]
    events.loc[events.index[row], "driver_code"] = FOREST_LOSS_DRIVERS.codes[int(p.argmax())]


def test_a_product_does_not_differ_from_itself(example):
    _, old = example
    changes = compare_products(old, old)
    assert changes.settings == ()
    counts = changes.counts
    assert (counts["in_both"], counts["appeared"], counts["gone"], counts["driver_changed"]) == (12, 0, 0, 0)
    assert (changes.drivers["old"] == changes.drivers["new"]).all()
    assert changes.units["change_ha"].abs().max() == 0
    assert len(changes.events) == 0
    assert "made in the same way" in render_changes(changes)


def test_every_kind_of_change_is_counted_and_drawn(example, tmp_path):
    inputs, old = example
    events = inputs.events.copy()
    reversed_driver(events, 0)  # plantation becomes other
    events.loc[events.index[1], "confidence"] = 0.5
    gone, appeared = events.iloc[4], events.iloc[[5]].assign(event_id="2022-9999")
    events = events.drop(index=[gone.name, events.index[5]])
    events = type(events)(np_concat(events, appeared), geometry="geometry", crs="EPSG:4326")
    p = events.loc[events.index[1], [f"p_{n}" for n in FOREST_LOSS_DRIVERS.names]].to_numpy(float)
    events.loc[events.index[1], "confidence"] = p.max() - 0.3  # alone, it is not sound, but it has moved
    new = save(tmp_path / "new", inputs, events)
    changes = compare_products(old, new)
    counts = changes.counts
    found = {k: counts[k] for k in ("in_both", "appeared", "gone", "driver_changed", "confidence_moved")}
    assert found == {"in_both": 10, "appeared": 1, "gone": 2, "driver_changed": 1, "confidence_moved": 1}
    # one of the two that are gone is there under another name
    assert (counts["same_place"], counts["same_place_same_driver"]) == (1, 1)
    moved = changes.drivers[changes.drivers["old"] != changes.drivers["new"]]
    assert moved[["old", "new", "events"]].to_numpy().tolist() == [["plantation", "other", 1]]
    assert moved["area_ha"].tolist() == pytest.approx([inputs.events["area_ha"].iloc[0]])
    assert changes.units["old_ha"].sum() == pytest.approx(inputs.events["area_ha"].sum())
    assert changes.units["new_ha"].sum() == pytest.approx(events["area_ha"].sum())
    rows = changes.events.set_index("event_id")
    assert rows["change"].value_counts().to_dict() == {"gone": 2, "appeared": 1, "driver": 1, "confidence": 1}
    assert rows["driver_new"].isna().sum() == 2
    assert rows["driver_old"].isna().tolist() == (rows["change"] == "appeared").tolist()
    assert rows.geometry.notna().all()
    text = render_changes(changes)
    assert "1 of 2 events that are gone lie where one of the same year appeared" in text
    assert "plantation" in text


def np_concat(one, two):
    import pandas as pd

    return pd.concat([one, two], ignore_index=True)


def test_another_model_is_said(example, tmp_path):
    inputs, old = example
    card = inputs.card.model_copy(update={"version": "2", "sha256": "1" * 64})
    changes = compare_products(old, save(tmp_path / "new", inputs, card=card))
    assert ("model", "fpn-test 1", "fpn-test 2") in changes.settings
    assert ("model weights", "0" * 12, "1" * 12) in changes.settings
    assert len(changes.settings) == 2


def test_an_empty_product_on_either_side(example, tmp_path):
    _, old = example
    (tmp_path / "plain").mkdir()
    empty = save(tmp_path / "empty", make_inputs(tmp_path / "plain", 0))
    for pair, key in (((old, empty), "gone"), ((empty, old), "appeared"), ((empty, empty), None)):
        changes = compare_products(*pair)
        assert {k: changes.counts[k] for k in ("gone", "appeared")} == {
            k: 12 if k == key else 0 for k in ("gone", "appeared")
        }
        render_changes(changes)


def test_the_command_and_its_file(example, tmp_path):
    inputs, old = example
    events = inputs.events.copy()
    reversed_driver(events, 0)
    new, out = save(tmp_path / "new", inputs, events), tmp_path / "changes.gpkg"
    result = CliRunner().invoke(app, ["diff", str(old), str(new), "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["counts"]["driver_changed"] == 1
    assert pyogrio.list_layers(out)[:, 0].tolist() == ["changes", "drivers", "units"]
    (row,) = pyogrio.read_dataframe(out, layer="changes").itertuples()
    assert (row.change, row.driver_old, row.driver_new) == ("driver", "plantation", "other")
    assert np.isclose(row.area_ha, inputs.events["area_ha"].iloc[0])
    result = CliRunner().invoke(app, ["diff", str(old), str(tmp_path / "none")])
    assert isinstance(result.exception, ConfigError)
