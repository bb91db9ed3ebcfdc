"""The comparison table: seeds together, each row against the one above, and nothing said that noise can do."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.training.compare import compare
from pipeline.training.judge import judge
from pipeline.training.results import About, Judgement

LABELS = np.arange(300) % 3


def events(n: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(0)
    places = {"latitude": random.uniform(-5, 5, n), "longitude": random.uniform(100, 110, n)}
    return pd.DataFrame({"event_id": [f"e{k}" for k in range(n)], "label": LABELS[:n], "fault": "", **places})


def result(model: str, right: int, seed: int = 0, split: str = "test", **options: float) -> Judgement:
    """A model that is right on exactly `right` of 300 events, the wrong ones at random."""
    wrong = np.random.default_rng(seed).permutation(300)[right:]
    predicted = LABELS.copy()
    predicted[wrong] = (predicted[wrong] + 1) % 3
    return judge(events(), np.eye(3)[predicted], About(model, "made", split, ("a", "b", "c"), True), **options)


def test_seeds_are_one_row() -> None:
    table = compare([result("rf", 180), *(result("cnn", right, seed) for seed, right in enumerate((210, 240, 270)))])
    assert [row.model for row in table.rows] == ["rf", "cnn"]
    scores = table.rows[1].scores["accuracy"]
    assert scores.mean.value == pytest.approx(0.8)
    assert scores.sd == pytest.approx(0.1)
    assert scores.seeds == pytest.approx((0.7, 0.8, 0.9))
    # seeds differ by more than events do: the interval must know
    assert scores.mean.high - scores.mean.low > 0.15
    alone = compare([result("cnn", 240)]).rows[0].scores["accuracy"]
    assert alone.sd is None
    assert alone.mean.high - alone.mean.low < 0.1


def test_differences_stand_against_the_row_above_and_the_reference() -> None:
    table = compare([result("rf", 180), result("cnn", 240), result("cnn + aux", 243)], reference="rf")
    first, second, third = table.rows
    assert first.above is None
    assert second.above["accuracy"].value == pytest.approx(0.2)
    assert third.above["accuracy"].value == pytest.approx(0.01)
    assert third.reference["accuracy"].value == pytest.approx(0.21)
    assert "better" in second.words
    assert "cnn + aux against cnn: accuracy +0.010" in third.words
    assert third.words.count("within noise") == 2
    assert "cnn + aux against rf" in third.words


def test_a_worse_row_is_called_worse() -> None:
    table = compare([result("old", 240), result("new", 180)])
    assert "worse" in table.rows[1].words
    assert "better" not in table.rows[1].words


def test_models_that_differ_by_nothing_are_seldom_told_apart() -> None:
    # both right 70 % of the time: two metrics at 5 % each, of 40 pairs
    random = np.random.default_rng(7)
    apart = 0
    for k in range(40):
        one, two = (result(name, int(random.binomial(300, 0.7)), 2 * k + at) for at, name in enumerate("ab"))
        apart += "better" in (words := compare([one, two]).rows[1].words) or "worse" in words
    assert apart <= 7


def test_text_markdown_and_json_tell_the_same() -> None:
    table = compare([result("rf", 180), result("cnn", 240)])
    read = json.loads(table.to_json())
    assert read["rows"][1]["scores"]["accuracy"]["mean"]["value"] == pytest.approx(0.8)
    lines = table.markdown().splitlines()
    assert [lines[2].count("|"), lines[3].count("|"), lines[5].count("|")] == [10, 10, 10]
    assert lines[5].startswith("| cnn | 1 | 0 | 0.800 (")
    for shape in (table.text(), table.markdown()):
        assert "simulated data" in shape
        assert "+0.200" in shape
        assert "few seeds" in shape


def test_blocks_of_land_widen_the_intervals_note() -> None:
    assert any("independent" in note for note in compare([result("rf", 200)]).notes)
    blocked = compare([result("rf", 200, block_km=100)])
    assert not any("independent" in note for note in blocked.notes)
    assert "blocks" in blocked.rows[0].scores["accuracy"].mean.method


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="different data or splits"):
        compare([result("a", 200), result("b", 200, split="val")])
    with pytest.raises(InputError, match="no result of c"):
        compare([result("a", 200), result("b", 200)], reference="c")
    with pytest.raises(InputError, match="nothing to compare"):
        compare([])
    half = judge(events(150), np.eye(3)[LABELS[:150]], About("h", "made", "test", ("a", "b", "c"), True))
    with pytest.raises(InputError, match="different events"):
        compare([result("a", 200), half])
