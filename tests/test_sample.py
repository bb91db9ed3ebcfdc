"""`clearcause sample` and `assess`: the draw, the template, labels read back, and every refusal."""

from __future__ import annotations

import html
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
from area_samples import NAMES, filled, made_events, made_product, rewrite
from hypothesis import given, settings
from hypothesis import strategies as st
from product_example import card

from pipeline.areas.assess import assess, render, to_dict, write_assessment
from pipeline.areas.draw import DrawParams, allocate, draw, make_strata
from pipeline.areas.estimate import estimate_areas
from pipeline.areas.reference import collapse
from pipeline.areas.sampling import make_sample, read_product
from pipeline.config import Reference, parse_config
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.models.card import ErrorMatrix

PARAMS = DrawParams(size=240, minimum=25, seed=3)


@pytest.fixture(scope="module")
def events() -> gpd.GeoDataFrame:
    return made_events()


@pytest.fixture(scope="module")
def truth(events: gpd.GeoDataFrame) -> pd.Series:
    return events.set_index("event_id")["truth"]


@pytest.fixture
def sampled(tmp_path: Path, events: gpd.GeoDataFrame) -> Path:
    """The folder of a sample of the made-up product, drawn without pictures."""
    folder = tmp_path / "sample"
    make_sample(made_product(tmp_path, events), folder, PARAMS, show=False, pictures=False)
    return folder


# ---------------------------------------------------------------------------------------------- draw


def test_strata_divide_the_events_that_have_a_driver(events: gpd.GeoDataFrame) -> None:
    number, strata = make_strata(events, NAMES, 25)
    assert ((number == 0) == events["driver"].isna()).all()
    assert np.bincount(number)[1:].tolist() == strata["population"].tolist()
    assert strata["area_ha"].sum() == pytest.approx(events.loc[events["driver"].notna(), "area_ha"].sum())
    for row in strata.to_dict("records"):
        own = events[number == row["stratum"]]
        assert set(own["driver"]) == {row["driver"]}
        if row["status"] != "any":
            assert set(own["status"]) == {row["status"]}
    common = strata[strata["driver"] == "plantation"]
    assert sorted(zip(common["status"], common["sizes"], strict=True)) == [
        ("classified", "large"), ("classified", "small"), ("uncertain", "large"), ("uncertain", "small"),
    ]  # fmt: skip
    part = common[common["status"] == "classified"].set_index("sizes")
    assert 0.5 <= part.loc["large", "area_ha"] / part["area_ha"].sum() < 0.6
    assert part.loc["large", "population"] < part.loc["small", "population"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0.5, 5e4)), min_size=1, max_size=12),
    st.integers(2, 600),
    st.sampled_from(["area", "events", "equal"]),
)
def test_allocation_adds_up_and_keeps_the_minimum(rows: list[tuple[int, float]], size: int, kind: str) -> None:
    strata = pd.DataFrame(rows, columns=["population", "area_ha"])
    strata["driver"] = [NAMES[k % 3] for k in range(len(rows))]
    params = DrawParams(size, 10, kind)  # type: ignore[arg-type]
    totals = strata.groupby("driver")["population"].sum()
    strata_floor = np.minimum(strata["population"], 2).groupby(strata["driver"]).sum()
    if np.maximum(np.minimum(totals, 10), strata_floor).sum() > size:
        with pytest.raises(ConfigError, match="raise --size or lower --minimum"):
            allocate(strata, params)
        return
    counts = allocate(strata, params)
    assert counts.sum() == min(size, strata["population"].sum())
    assert (counts <= strata["population"]).all()
    assert (counts >= np.minimum(strata["population"], 2)).all()
    by_driver = strata.assign(drawn=counts).groupby("driver")[["drawn", "population"]].sum()
    assert (by_driver["drawn"] >= np.minimum(by_driver["population"], 10)).all()


def test_allocation_follows_area_events_or_nothing() -> None:
    strata = pd.DataFrame({"driver": ["a", "b"], "population": [1000, 1000], "area_ha": [9000.0, 1000.0]})
    found = {kind: allocate(strata, DrawParams(200, 10, kind)).tolist() for kind in ("area", "events", "equal")}  # type: ignore[arg-type]
    assert found == {"area": [180, 20], "events": [100, 100], "equal": [100, 100]}
    assert allocate(strata, DrawParams(200, 40, "area")).tolist() == [160, 40]


def test_a_seed_draws_the_same_events_in_whatever_order_they_come() -> None:
    ids = np.array([f"e{k}" for k in range(200)], dtype=object)
    number = np.where(np.arange(200) < 150, 1, 2)
    first = ids[draw(number, np.array([20, 10]), ids, 5)]
    order = np.random.default_rng(0).permutation(200)
    assert ids[order][draw(number[order], np.array([20, 10]), ids[order], 5)].tolist() == first.tolist()
    assert set(ids[draw(number, np.array([20, 10]), ids, 6)]) != set(first)
    assert len(set(first)) == 30
    # all events of a stratum are as likely
    times = np.zeros(200)
    for seed in range(600):
        times[draw(number, np.array([20, 10]), ids, seed)] += 1
    assert times[:150].mean() == pytest.approx(80)
    assert np.abs(times[:150] - 80).max() < 45
    assert times[150:].mean() == pytest.approx(120)


def test_strata_without_two_labels_are_joined_with_their_drivers_largest() -> None:
    stratum, population, joined = collapse(
        np.array([0, 0, 1, 3, 3]), np.array([10.0, 4.0, 6.0, 8.0]), np.array([0, 0, 0, 1])
    )
    assert stratum.tolist() == [0, 0, 0, 1, 1]
    assert population.tolist() == [20.0, 8.0]
    assert joined == 2
    alone, _, none = collapse(np.array([0, 0, 1]), np.array([5.0, 1.0]), np.array([0, 1]))
    assert (alone.tolist(), none) == ([0, 0, 1], 0)  # all of a stratum of one was looked at


# ---------------------------------------------------------------------------------------------- template


def test_the_template_is_blind_and_to_be_filled_in(sampled: Path) -> None:
    path = sampled / "sample.gpkg"
    rows = gpd.read_file(path, layer="sample", engine="pyogrio")
    assert rows["number"].tolist() == list(range(1, 241))
    assert rows["reference_driver"].isna().all()
    assert {"interpreter", "reference_date", "note"} <= set(rows)
    assert not {"driver", "mapped_driver", "stratum", "confidence", "status"} & set(rows)
    key = pyogrio.read_dataframe(path, layer="key")
    strata = pyogrio.read_dataframe(path, layer="strata").set_index("stratum")
    assert set(key["event_id"]) == set(rows["event_id"])
    assert key["probability"].to_numpy() == pytest.approx(
        (strata["drawn"] / strata["population"]).loc[key["stratum"]].to_numpy()
    )
    # nothing in the order tells the stratum
    order = key.set_index("event_id")["mapped_driver"].loc[rows["event_id"]]
    assert order.iloc[:40].nunique() == 4
    points = gpd.read_file(path, layer="sample_points", engine="pyogrio")
    assert points["number"].tolist() == rows["number"].tolist()
    assert points.geometry.within(rows.geometry, align=False).all()
    with closing(sqlite3.connect(path)) as database:
        domain = (
            "SELECT value FROM gpkg_data_column_constraints WHERE constraint_name = 'reference_driver' ORDER BY rowid"
        )
        assert [row[0] for row in database.execute(domain)] == [*NAMES, "cannot_tell"]
        named = "SELECT constraint_name FROM gpkg_data_columns WHERE column_name = 'reference_driver'"
        assert database.execute(named).fetchall() == [("reference_driver",)]
    sheet = (sampled / "index.html").read_text()
    assert all(f">{event}<" in sheet for event in rows["event_id"])
    assert "Drawn without pictures" in sheet


def test_equal_draws_give_equal_bytes_and_drivers_are_shown_on_demand(tmp_path: Path, events: gpd.GeoDataFrame) -> None:
    product = made_product(tmp_path, events)
    for name in ("one", "two"):
        make_sample(product, tmp_path / name, PARAMS, show=False, pictures=False)
    for file in ("sample.gpkg", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    make_sample(product, tmp_path / "shown", PARAMS, show=True, pictures=False)
    rows = gpd.read_file(tmp_path / "shown" / "sample.gpkg", layer="sample", engine="pyogrio")
    assert (events.set_index("event_id")["driver"].loc[rows["event_id"]].to_numpy() == rows["mapped_driver"]).all()


def test_no_picture_is_no_hindrance_and_said(tmp_path: Path, events: gpd.GeoDataFrame) -> None:
    drawn = make_sample(made_product(tmp_path, events), tmp_path / "s", DrawParams(60, 10), show=False, pictures=True)
    assert (drawn.pictures, drawn.events) == (0, 60)
    assert "out.work is not beside the product" in drawn.remark
    assert drawn.remark in html.unescape((tmp_path / "s" / "index.html").read_text())


def test_a_folder_that_is_there_is_not_touched(sampled: Path, tmp_path: Path, events: gpd.GeoDataFrame) -> None:
    before = (sampled / "sample.gpkg").read_bytes()
    with pytest.raises(OutputError, match="labels in it would be lost"):
        make_sample(made_product(tmp_path, events), sampled, PARAMS, show=False, pictures=False)
    assert (sampled / "sample.gpkg").read_bytes() == before
    silent = made_product(tmp_path, events[events["driver"].isna()])
    with pytest.raises(InputError, match="nothing to sample"):
        make_sample(silent, tmp_path / "none", PARAMS, show=False, pictures=False)
    with pytest.raises(ConfigError, match="--size 50"):
        make_sample(made_product(tmp_path, events), tmp_path / "few", DrawParams(50), show=False, pictures=False)
    assert not (tmp_path / "few").exists()


# ---------------------------------------------------------------------------------------------- assess


def test_a_filled_sample_gives_back_the_true_areas(sampled: Path, events: gpd.GeoDataFrame, truth: pd.Series) -> None:
    filled(sampled, truth)
    product = made_product(sampled.parent, events)
    result = assess(product, sampled)
    known = events[events["driver"].notna()]
    true = known.groupby("truth")["area_ha"].sum()
    mapped = known.groupby("driver")["area_ha"].sum()
    rows = result.estimates[(result.estimates["scope"] == "region") & (result.estimates["loss_year"] == "all")]
    rows = rows.set_index("driver")
    for name in NAMES:
        assert rows.loc[name, "low_ha"] <= true[name] <= rows.loc[name, "high_ha"]
        assert rows.loc[name, "mapped_ha"] == pytest.approx(mapped[name])
    right = known.loc[known["truth"] == known["driver"], "area_ha"].sum() / known["area_ha"].sum()
    assert abs(result.by_area.overall.value - right) < 3 * result.by_area.overall.se
    assert (
        abs(result.by_count.overall.value - (known["truth"] == known["driver"]).mean()) < 3 * result.by_count.overall.se
    )
    # the mapped area of the rare driver is far off, the estimate is not
    assert mapped["other"] / true["other"] > 1.3
    assert result.counts.sum() == 240
    text = render(result)
    assert "240 events drawn, 240 labelled, 0 cannot tell" in text
    assert "loss of 2021" in text
    assert "loss of 2022" in text

    path = write_assessment(result, sampled)
    tree = json.loads(path.read_text())
    assert tree == json.loads(json.dumps(to_dict(result)))
    assert tree["sample"]["seed"] == "3"
    matrix = ErrorMatrix.model_validate(tree["error_matrix"])
    assert matrix.n == 240
    assert np.array(matrix.counts).sum(axis=1).tolist() == result.counts.sum(axis=1).tolist()
    card_with = card().model_copy(update={"error_matrix": matrix, "simulated": False})
    again, _, record = estimate_areas(events, card_with, None)
    assert "reference sample of Test, loss of 2021, 2022" in str(record["note"])
    assert again["area_ha_low"].notna().any()


def test_an_even_draw_gives_its_own_counts_as_error_matrix(
    tmp_path: Path, events: gpd.GeoDataFrame, truth: pd.Series
) -> None:
    """No strata by size or certainty: nothing is weighted, so the card's matrix is the counts themselves."""
    even = events.assign(status=np.where(events["driver"].isna(), "no_imagery", "classified"), area_ha=1.0)
    product = made_product(tmp_path, even)
    make_sample(product, tmp_path / "s", DrawParams(200, 40, "equal"), show=False, pictures=False)
    strata = pyogrio.read_dataframe(tmp_path / "s" / "sample.gpkg", layer="strata")
    filled(tmp_path / "s", truth)
    result = assess(product, tmp_path / "s")
    if set(strata["sizes"]) == {"any"}:
        assert result.error_matrix.counts == tuple(map(tuple, result.counts.tolist()))
    assert result.by_area.overall.value == pytest.approx(float(result.by_count.overall.value))
    assert result.by_area.users.se == pytest.approx(result.by_count.users.se)


def test_cannot_tell_is_counted_and_left_out(sampled: Path, events: gpd.GeoDataFrame, truth: pd.Series) -> None:
    rows = gpd.read_file(sampled / "sample.gpkg", layer="sample", engine="pyogrio")
    unsure = {event: "cannot_tell" for event in rows["event_id"][:30]}
    filled(sampled, truth, **unsure)
    result = assess(made_product(sampled.parent, events), sampled / "sample.gpkg")
    assert (result.sample.drawn, result.sample.cannot_tell, len(result.sample.reference)) == (240, 30, 210)
    assert result.counts.sum() == 210
    assert "30 that the interpreter could not tell" in result.source.note
    assert result.sample.design.population.sum() == events["driver"].notna().sum()


def harm_unfilled(rows: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    rows.loc[rows.index[:3], "reference_driver"] = [None, "", "  "]
    return rows


HARMS = {
    "3 of 240 rows have no reference_driver": harm_unfilled,
    "'palm' is no driver; known are plantation": lambda r: r.assign(
        reference_driver=["palm", *r["reference_driver"][1:]]
    ),
    "event e[0-9]+ stands there twice": lambda r: pd.concat([r, r.iloc[:1]]),
    "2 drawn events were removed": lambda r: r.iloc[2:],
    "event e9 was not drawn": lambda r: r.assign(event_id=["e9", *r["event_id"][1:]]),
    "no column 'reference_driver'; it has number": lambda r: r.drop(columns="reference_driver"),
}


@pytest.mark.parametrize("text", HARMS)
def test_labels_that_cannot_be_used_are_refused_in_one_line(
    text: str, sampled: Path, events: gpd.GeoDataFrame, truth: pd.Series
) -> None:
    path = filled(sampled, truth)
    rewrite(path, HARMS[text](gpd.read_file(path, layer="sample", engine="pyogrio")))
    with pytest.raises(ConfigError, match=text) as refused:
        assess(made_product(sampled.parent, events), sampled)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_samples_of_other_products_are_refused(sampled: Path, events: gpd.GeoDataFrame, truth: pd.Series) -> None:
    path = filled(sampled, truth)
    with pytest.raises(ConfigError, match=r"drawn from another product \(Test, m 1\).*reference"):
        assess(made_product(sampled.parent, events, "2" * 64), sampled)
    first = pyogrio.read_dataframe(path, layer="key")["event_id"].min()
    with pytest.raises(ConfigError, match=f"1 events are not in the product, first {first}"):
        assess(made_product(sampled.parent, events[events["event_id"] != first]), sampled)
    plain = sampled / "plain.gpkg"
    gpd.read_file(path, layer="sample", engine="pyogrio").to_file(plain, layer="sample")
    with pytest.raises(ConfigError, match="was not drawn by"):
        assess(made_product(sampled.parent, events), plain)
    for missing in (sampled / "none", sampled / "index.html"):
        with pytest.raises(ConfigError, match="sample"):
            assess(made_product(sampled.parent, events), missing)


# ---------------------------------------------------------------------------------------------- reference in a run


def test_a_sample_of_an_older_map_serves_a_newer_one(sampled: Path, events: gpd.GeoDataFrame, truth: pd.Series) -> None:
    """Strata are not the newer map's classes (Stehman 2014): areas still come out right."""
    path = filled(sampled, truth)
    rng = np.random.default_rng(8)
    better = np.where(rng.random(len(events)) < 0.6, events["truth"], events["driver"])
    newer = events.assign(driver=pd.Series(better, dtype=object), status="classified")
    newer.loc[newer["driver"].isna(), "status"] = "no_imagery"
    summary, estimates, record = estimate_areas(newer, card(), Reference(path=path))
    assert record["interval_source"] == "sample"
    assert record["reference_events"] == 240
    true = newer[newer["driver"].notna()].groupby("truth")["area_ha"].sum()
    rows = estimates[(estimates["scope"] == "region") & (estimates["loss_year"] == "all")].set_index("driver")
    older = assess(made_product(sampled.parent, events), sampled).estimates
    older = older[(older["scope"] == "region") & (older["loss_year"] == "all")].set_index("driver")
    for name in NAMES[:3]:
        assert abs(rows.loc[name, "adjusted_ha"] - true[name]) < 3 * rows.loc[name, "se_ha"]
        assert rows.loc[name, "se_ha"] < 0.8 * older.loc[name, "se_ha"]
    assert set(summary["interval_source"].dropna()) <= {"sample", "sample_region"}


def test_points_scattered_over_the_loss_serve_too(tmp_path: Path, events: gpd.GeoDataFrame) -> None:
    """Any file with labels and no event_id: points, each of which stands for the same area."""
    known = events[events["driver"].notna()]
    rng = np.random.default_rng(2)
    chance = (known["area_ha"] / known["area_ha"].sum()).to_numpy()
    rows = known.iloc[rng.choice(len(known), 500, p=chance)]
    points = gpd.GeoDataFrame({"cause": rows["truth"].to_numpy()}, geometry=list(rows.representative_point()), crs=4326)
    points.loc[0, "cause"] = "cannot_tell"
    away = gpd.GeoDataFrame({"cause": ["other"]}, geometry=gpd.points_from_xy([0], [0]), crs=4326)
    path = tmp_path / "points.geojson"
    pd.concat([points, away]).to_crs(3857).to_file(path)
    _, estimates, record = estimate_areas(events, card(), Reference(path=path, column="cause"))
    assert "1 labels lie on no event that has a driver" in str(record["note"])
    true = known.groupby("truth")["area_ha"].sum()
    table = estimates[(estimates["scope"] == "region") & (estimates["loss_year"] == "all")].set_index("driver")
    for name in NAMES:
        assert abs(table.loc[name, "adjusted_ha"] - true[name]) < 3 * table.loc[name, "se_ha"]
    assert table["reference_n"].sum() == 499
    far = tmp_path / "far.geojson"
    away.to_file(far)
    with pytest.raises(ConfigError, match="none of its 1 rows meets an event"):
        estimate_areas(events, card(), Reference(path=far, column="cause"))


# ---------------------------------------------------------------------------------------------- a real run


def test_a_finished_run_is_sampled_with_pictures_and_assessed(reference: Path, tmp_path: Path, cli) -> None:
    folder = tmp_path / "labels"
    done = cli("sample", reference, "--size", "24", "--minimum", "3", "--seed", "1", "--out", folder)
    assert done.code == 0, done.err
    assert "does not tell what the map says" in done.out
    rows = gpd.read_file(folder / "sample.gpkg", layer="sample", engine="pyogrio")
    shown = [name for name in rows["after"] if isinstance(name, str)]
    assert shown
    assert all((folder / name).read_bytes()[:2] == b"\xff\xd8" for name in shown)
    sheet = (folder / "index.html").read_text()
    assert all(f'src="{name}"' in sheet for name in shown)

    refused = cli("assess", reference, folder)
    assert refused.code == 2
    assert f"{len(rows)} of {len(rows)} rows have no reference_driver" in refused.err
    product = read_product(reference)
    mapped = product.events.set_index("event_id")["driver"]
    other = {"plantation": "other", "other": "plantation"}
    truth = {e: mapped[e] if k % 4 else other.get(mapped[e], "other") for k, e in enumerate(rows["event_id"])}
    filled(folder, truth)
    said = cli("assess", reference, folder, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == json.loads((folder / "assessment.json").read_text())
    text = cli("assess", reference, folder)
    assert "overall accuracy" in text.out
    assert cli("sample", reference, "--out", folder).code == 2
    assert cli("sample", tmp_path / "nothing").code == 2


def test_the_configuration_names_reference_labels(tmp_path: Path) -> None:
    tree = {
        "region": {"name": "r", "aoi": [0, 0, 1, 1]},
        "loss": {"source": "loss.tif", "years": [2021]},
        "imagery": {"source": "scenes"},
        "model": "model",
        "reference": {"path": "labels/sample.gpkg"},
        "output": {"dir": "out"},
    }
    config = parse_config(tree, tmp_path, "test")
    assert config.reference == Reference(path=tmp_path / "labels" / "sample.gpkg")
    with pytest.raises(ConfigError, match=r"unknown key reference.colum; did you mean 'column'"):
        parse_config({**tree, "reference": {"path": "a", "colum": "b"}}, tmp_path, "test")
