"""Many products in one table."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from run_samples import layer

from pipeline.errors import OutputError
from pipeline.rollup import Part, roll_up


def read(out, name):
    return pd.read_csv(out / f"{name}.csv", encoding="utf-8-sig", dtype={"years": str})


def test_every_row_of_every_region_and_why_others_have_none(reference, tmp_path):
    out = tmp_path / "rollup"
    parts = [
        Part("riau", (), reference),
        Part("aceh", (2021,), reference, "Failed: no scene"),
        Part("bali", (2021, 2022), tmp_path / "nothing"),
        Part("jambi", (), reference),
    ]
    regions, summary = roll_up(parts, out)
    own = layer(reference, "summary")
    assert len(summary) == 2 * len(own)
    assert sorted(path.name for path in out.iterdir()) == ["regions.csv", "summary.csv"]
    table = read(out, "summary")
    assert list(table["region"].unique()) == ["jambi", "riau"], "a failed region gives no rows"
    assert not table.duplicated(["region", "unit_id", "loss_year", "driver"]).any()
    assert table["area_ha"].sum() == pytest.approx(2 * own["area_ha"].sum(), rel=1e-9)
    found = read(out, "regions").set_index("region")
    assert found["status"].to_dict() == {"aceh": "failed", "bali": "failed", "jambi": "done", "riau": "done"}
    assert found.loc["aceh", "reason"] == "Failed: no scene"
    assert "run it again" in found.loc["bali", "reason"] or "nothing" in found.loc["bali", "reason"]
    assert found.loc["riau", "years"] == "2021 2022"
    assert found.loc["riau", "events"] == 85
    assert list(regions["region"]) == list(found.index)


def test_the_order_of_the_parts_changes_no_byte(reference, tmp_path):
    parts = [Part(name, (), reference) for name in ("b", "a", "c")]
    roll_up(parts, tmp_path / "one")
    roll_up(parts[::-1], tmp_path / "two")
    for name in ("summary.csv", "regions.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_but_failures_is_a_table_too(tmp_path):
    regions, summary = roll_up([Part("riau", (), tmp_path, "did not start")], tmp_path / "out")
    assert (len(regions), len(summary)) == (1, 0)
    assert read(tmp_path / "out", "regions")["reason"].tolist() == ["did not start"]


def test_a_damaged_product_counts_as_failed(reference, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(reference, damaged)
    (damaged / "drivers.gpkg").write_bytes(b"no database")
    regions, summary = roll_up([Part("riau", (), damaged)], tmp_path / "out")
    assert regions["status"].tolist() == ["failed"]
    assert summary.empty


def test_files_of_others_are_left_alone(reference, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="name another folder"):
        roll_up([Part("riau", (), reference)], tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_rollup_replaces_the_one_before(reference, tmp_path):
    roll_up([Part("riau", (), reference)], tmp_path / "out")
    roll_up([Part("jambi", (), reference)], tmp_path / "out")
    assert read(tmp_path / "out", "regions")["region"].tolist() == ["jambi"]
