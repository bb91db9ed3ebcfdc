"""Tables of adjusted areas: `summary` and `estimates`, from a model card or from reference labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from area_samples import NAMES, made_events
from product_example import card

from pipeline.areas.estimate import NO_SOURCE, estimate_areas
from pipeline.areas.shares import olofsson, shares_of_counts
from pipeline.areas.sources import ReferenceSample, Source, card_source, sample_source
from pipeline.areas.stratified import Design
from pipeline.areas.tables import FEW, adjusted_summary, estimates_table
from pipeline.errors import ProductError
from pipeline.product.check_vectors import Vectors
from pipeline.product.check_vectors import estimates as check
from pipeline.product.layers import layers
from pipeline.units import summary_table

PLACE = ["unit_id", "loss_year"]


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return made_events()


def sampled(events: pd.DataFrame, each: int, seed: int = 0) -> ReferenceSample:
    """So many events of each mapped driver, with their true drivers."""
    known = events[events["driver"].notna()].reset_index(drop=True)
    mapped = known["driver"].map({n: k for k, n in enumerate(NAMES)}).to_numpy(np.int64)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.choice(np.flatnonzero(mapped == k), each, replace=False) for k in range(4)])
    rows = known.iloc[drawn]
    return ReferenceSample(
        design=Design(mapped[drawn], np.bincount(mapped).astype(float)),
        mapped=mapped[drawn],
        reference=rows["truth"].map({n: k for k, n in enumerate(NAMES)}).to_numpy(np.int64),
        size=rows["area_ha"].to_numpy(),
        unit_id=rows["unit_id"].to_numpy(object),
        loss_year=rows["loss_year"].to_numpy(np.int64),
        drawn=4 * each,
        cannot_tell=0,
    )


@pytest.mark.parametrize("kind", ["card", "sample"])
def test_adjusted_areas_of_a_unit_and_year_add_up_to_what_is_mapped(events: pd.DataFrame, kind: str) -> None:
    source = card_source(card()) if kind == "card" else sample_source(sampled(events, 45), 4)
    assert source is not None
    summary = adjusted_summary(summary_table(events), events, source, NAMES)
    assert summary["area_ha"].sum() == pytest.approx(events["area_ha"].sum(), rel=1e-12)
    assert summary["events"].sum() == len(events)
    told = summary[summary["driver"] != "no_imagery"]
    sums = told.groupby(PLACE)[["area_ha", "area_ha_adjusted"]].sum()
    assert sums["area_ha_adjusted"].to_numpy() == pytest.approx(sums["area_ha"].to_numpy(), rel=1e-9)
    bounded = told[told["area_ha_low"].notna()]
    assert len(bounded) == len(told) == 16
    assert (bounded["area_ha_low"] >= 0).all()
    assert (bounded["area_ha_low"] < bounded["area_ha_adjusted"]).all()
    assert (bounded["area_ha_adjusted"] < bounded["area_ha_high"]).all()
    # loss that no image shows is spread over no driver
    silent = summary[summary["driver"] == "no_imagery"]
    assert len(silent) > 0
    assert silent[["area_ha_adjusted", "area_ha_low", "interval_source", "reference_n"]].isna().all(axis=None)


def test_a_driver_that_is_there_but_not_mapped_gets_a_row() -> None:
    events = made_events(60)
    events = events[events["driver"].isin(NAMES[:2]) & (events["unit_id"] == "a")]
    source = card_source(card())
    assert source is not None
    summary = adjusted_summary(summary_table(events), events, source, NAMES)
    added = summary[summary["driver"] == "other"]
    assert added["area_ha"].tolist() == [0.0, 0.0]
    assert added["events"].tolist() == [0, 0]
    assert (added["area_ha_adjusted"] > 0).all()


def test_the_region_by_an_error_matrix_is_olofssons_and_its_events_own_chance(events: pd.DataFrame) -> None:
    source = card_source(card())
    assert source is not None
    table = estimates_table(events, source, NAMES)
    rows = table[(table["scope"] == "region") & (table["loss_year"] == "all") & table["adjusted_ha"].notna()]
    areas = events.groupby("driver")["area_ha"].sum().reindex(NAMES).to_numpy()
    matrix = card().error_matrix
    assert matrix is not None
    plain = olofsson(np.array(matrix.counts), areas)
    assert rows["adjusted_ha"].tolist() == pytest.approx(plain.areas.value)
    assert rows["users_accuracy"].tolist() == pytest.approx(plain.users.value)
    assert rows["producers_accuracy_se"].tolist() == pytest.approx(plain.producers.se)
    assert (rows["se_ha"].to_numpy(float) > plain.areas.se).all()
    assert rows["se_ha"].to_numpy(float) == pytest.approx(plain.areas.se, rel=0.35)


def test_a_place_with_labels_enough_is_estimated_by_its_own(events: pd.DataFrame) -> None:
    source = sample_source(sampled(events, 45), 4)
    table = estimates_table(events, source, NAMES)
    kinds = table.dropna(subset=["adjusted_ha"]).groupby(["scope", "unit_id", "loss_year"], dropna=False)
    found = kinds["interval_source"].unique().map(list).to_dict()
    assert found[("region", np.nan, "all")] == ["sample"]
    assert found[("region", np.nan, "2021")] == ["sample"]
    assert found[("unit", "a", "all")] == ["sample"]
    assert found[("unit", "b", "all")] == ["sample_region"]
    summary = adjusted_summary(summary_table(events), events, source, NAMES)
    assert set(summary["interval_source"].dropna()) == {"sample", "sample_region"}
    assert source.sample is not None
    assert 0 < (source.sample.unit_id == "b").sum() < FEW


def test_shares_of_the_region_widen_the_interval_of_a_small_place(events: pd.DataFrame) -> None:
    source = sample_source(sampled(events, 45), 4)
    table = estimates_table(events, source, NAMES)
    unit = table[(table["unit_id"] == "b") & (table["driver"] == "plantation")].iloc[0]
    region = table[
        (table["scope"] == "region") & (table["loss_year"] == "all") & (table["driver"] == "plantation")
    ].iloc[0]
    assert unit["se_ha"] / unit["adjusted_ha"] > 1.3 * region["se_ha"] / region["adjusted_ha"]


@pytest.mark.parametrize(
    ("counts", "flags", "bounded"),
    [
        # 30 labels of the first; 20 of the second
        ([[28, 2], [2, 18]], [None, "few"], [True, True]),
        # nobody found the second
        ([[28, 0], [5, 0]], ["no_disagreement", "none"], [False, False]),
        # no error was met
        ([[40, 0], [0, 30]], ["no_disagreement", "no_disagreement"], [False, False]),
        # the second was never looked at, and it is on the map
        ([[30, 1], [0, 0]], ["none", "none"], [False, False]),
    ],
)
def test_flags_of_few_labels(counts: list[list[int]], flags: list[str | None], bounded: list[bool]) -> None:
    events = made_events(200)
    events = events[events["driver"].isin(NAMES[:2])]
    source = Source("model_card", shares_of_counts(np.array(counts)), "")
    table = estimates_table(events, source, NAMES[:2])
    rows = table[(table["scope"] == "region") & (table["loss_year"] == "all")].set_index("driver")
    found = [None if pd.isna(flag) else flag for flag in rows["reference_flag"]]
    assert found == flags[: len(rows)]
    assert rows["low_ha"].notna().tolist() == bounded[: len(rows)]
    # never nought give or take nought
    assert not ((rows["low_ha"] == 0) & (rows["high_ha"] == 0)).any()


def test_a_class_not_looked_at_leaves_its_place_without_estimate() -> None:
    events = made_events(300)
    source = Source(
        "model_card", shares_of_counts(np.diag([30, 30, 30, 0]) + np.eye(4, k=1, dtype=int) * [0, 1, 1, 0]), ""
    )
    table = estimates_table(events, source, NAMES)
    rows = table[(table["scope"] == "region") & (table["loss_year"] == "all") & (table["driver"] != "no_imagery")]
    assert rows["adjusted_ha"].isna().all()
    assert rows["interval_source"].isna().all()


def test_simulated_cards_say_so() -> None:
    source = card_source(card())
    assert source is not None
    assert "350 labelled events (test)" in source.note
    assert "as accurate here as it was there" in source.note
    assert "simulated" in source.note
    honest = card_source(card().model_copy(update={"simulated": False}))
    assert honest is not None
    assert "simulated" not in honest.note


def test_without_labels_nothing_is_called_an_estimate(events: pd.DataFrame) -> None:
    bare = card().model_copy(update={"error_matrix": None})
    summary, estimates, record = estimate_areas(events, bare, None)
    assert summary[["area_ha_adjusted", "area_ha_low", "area_ha_high", "interval_source"]].isna().all(axis=None)
    assert len(estimates) == 0
    assert record == {"interval_source": None, "note": NO_SOURCE}


def test_no_events_give_empty_tables(events: pd.DataFrame) -> None:
    summary, estimates, _ = estimate_areas(events.iloc[:0], card(), None)
    assert (len(summary), len(estimates)) == (0, 0)
    silent = events[events["driver"].isna()]
    summary, estimates, _ = estimate_areas(silent, card(), None)
    assert summary["area_ha"].sum() == pytest.approx(silent["area_ha"].sum())
    assert set(estimates["driver"]) == {"no_imagery"}


# ---------------------------------------------------------------------------------------------- checks of a product


def vectors(events: pd.DataFrame) -> Vectors:
    summary, estimates, _ = estimate_areas(events, card(), None)
    scheme = card().scheme
    return Vectors({"summary": summary, "estimates": estimates}, layers(scheme), scheme)


def test_the_check_of_a_product_finds_sound_estimates(events: pd.DataFrame) -> None:
    assert "16 of 19 rows of summary" in check(vectors(events))
    bare = vectors(events)
    for name in ("area_ha_adjusted", "area_ha_low", "area_ha_high"):
        bare.frames["summary"][name] = np.nan
    bare.frames["summary"]["interval_source"] = None
    bare.frames["estimates"] = bare.frames["estimates"].iloc[:0]
    assert "0 of 19 rows of summary, 0 estimates" in check(bare)


FAULTS = {
    "summary: adjusted areas against mapped": ("summary", 0, "area_ha", 5.0),
    "estimates of .*mapped_ha against summary": ("estimates", 4, "mapped_ha", 1.0),
    "summary: the estimate lies outside its interval": ("summary", 0, "area_ha_low", 1e4),
    "estimates: half an interval": ("estimates", 0, "high_ha", np.nan),
    "summary: an estimate without its source": ("summary", 0, "interval_source", None),
    "estimates: an interval without reference events": ("estimates", 0, "reference_n", 0),
    "estimates: an estimate of loss without a driver": ("estimates", 4, "adjusted_ha", 1.0),
}


@pytest.mark.parametrize("text", FAULTS)
def test_the_check_of_a_product_refuses_estimates_at_fault(text: str, events: pd.DataFrame) -> None:
    found = vectors(events)
    layer, row, column, value = FAULTS[text]
    frame = found.frames[layer]
    assert frame["driver"].iloc[row] == (
        "no_imagery" if row == 4 else "grassland_shrubland" if layer == "summary" else NAMES[0]
    )
    frame.loc[frame.index[row], column] = value
    with pytest.raises(ProductError, match=text):
        check(found)
