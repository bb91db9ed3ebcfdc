"""The report as text and as data: what it holds is what the product holds, and nothing in it can do harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from product_example import UNIT_NAMES, make_inputs
from report_samples import chips, many_inputs

from pipeline.product import maps
from pipeline.product.report import mapview, render
from pipeline.product.report.codec import deltas, packed, signed, varints
from pipeline.product.report.gallery import gallery
from pipeline.product.report.mapdata import encode_borders, encode_events
from pipeline.product.report.page import as_json
from pipeline.product.report.plots import ticks_to
from pipeline.product.report.tables import cutoff_rows, driver_rows, seen_by
from pipeline.product.report.text import number, percent
from pipeline.product.styles import event_categories
from pipeline.product.write import ProductInputs

RUN = {"simulated": True, "complete": False, "config": {"output": {"uncertain_below": 0.5}}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ProductInputs:
    made = make_inputs(tmp_path_factory.mktemp("report"))
    return replace(made, chips=chips(made))


@pytest.fixture(scope="module")
def text(inputs: ProductInputs) -> str:
    return render(inputs, {**inputs.run, **RUN})


class Page(HTMLParser):
    """Collects the tags, attributes, scripts and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.hrefs: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.hrefs += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem is None:
            self.words += data


def said(text: str) -> str:
    return " ".join(Page(text).words.split())


def unpacked(stream: str) -> dict[str, bytes]:
    raw = zlib.decompress(base64.b64decode(stream))
    head, _, body = raw.partition(b"\n")
    columns, at = {}, 0
    for name, length in json.loads(head):
        columns[name] = body[at : at + length]
        at += length
    assert at == len(body)
    return columns


def read_integers(data: bytes, *, zigzag: bool = False) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append((value >> 1) ^ -(value & 1) if zigzag else value)
            value = shift = 0
    return values


@given(st.lists(st.integers(0, 2**35 - 1)))
def test_varints_are_read_back(values: list[int]) -> None:
    assert read_integers(varints(np.array(values, np.int64))) == values


@given(st.lists(st.integers(-(2**33), 2**33)))
def test_signed_integers_are_read_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert read_integers(signed(array), zigzag=True) == values
    assert np.cumsum(read_integers(deltas(array), zigzag=True)).tolist() == values


def test_columns_are_read_back() -> None:
    columns = {"a": b"", "b": b"\n[]\x00", "c": bytes(range(256))}
    assert unpacked(packed(columns)) == columns


def polygons(stream: str, x: list[int], y: list[int]) -> list[list[np.ndarray]]:
    """Rings of each event in millionths of a degree, as the page reads them."""
    data = unpacked(stream)
    steps = np.array([read_integers(data[name], zigzag=True) for name in ("dx", "dy")]).T.reshape(-1, 2) * 10
    sizes, at, ring, events = read_integers(data["sizes"]), 0, 0, []
    for k, count in enumerate(read_integers(data["rings"])):
        own, place = [], np.array([x[k], y[k]])
        for size in sizes[ring : ring + count]:
            corners = place + np.cumsum(steps[at : at + size], axis=0)
            own.append(corners)
            place, at = corners[-1], at + size
        ring += count
        events.append(own)
    return events


def decoded(inputs: ProductInputs, most: int = 1_000_000) -> tuple[pd.DataFrame, list[list[np.ndarray]]]:
    events, categories = inputs.events, event_categories(inputs.card.scheme)
    frame = maps.frame_of(events, inputs.units)
    assert frame is not None
    data = encode_events(events, frame, categories, {"a": 0, "b": 1, "c": 2, "outside": 3}, most)
    assert data.size <= most
    columns = unpacked(data.events)
    x, y = (np.cumsum(read_integers(columns[name], zigzag=True)).tolist() for name in "xy")
    table = pd.DataFrame(
        {
            "x": x,
            "y": y,
            "category": [categories[k].value for k in columns["category"]],
            "year": np.array(read_integers(columns["year"])) + data.first_year,
            "confidence": np.array(read_integers(columns["confidence"])) - 1,
            "area": np.array(read_integers(columns["area"])) / 1000,
            "clear": np.array(read_integers(columns["clear"])) - 1,
            "unit": np.array(read_integers(columns["unit"])) - 1,
            "first": np.cumsum(read_integers(columns["first"], zigzag=True)),
            "span": read_integers(columns["span"]),
            "images": read_integers(columns["images"]),
        }
    )
    table["event_id"] = columns["ids"].decode().split("\n") if not data.ids_from_places else None
    return table, polygons(data.outlines, x, y)


def test_the_map_holds_every_event_with_its_attributes(inputs: ProductInputs) -> None:
    table, rings = decoded(inputs)
    found, given = table.set_index("event_id"), inputs.events.set_index("event_id")
    assert set(found.index) == set(given.index)
    given = given.loc[found.index]
    assert (found["area"] - given["area_ha"]).abs().max() <= 0.0005
    assert (found["year"] == given["loss_year"]).all()
    assert (found["images"] == given["image_count"]).all()
    assert found["confidence"].tolist() == [-1 if np.isnan(c) else round(c * 1000) for c in given["confidence"]]
    day = pd.Timestamp("1970-01-01") + pd.to_timedelta(found["first"] - 1, "D")
    assert (day == given["first_image"])[given["first_image"].notna()].all()
    assert (found["first"] == 0).equals(given["first_image"].isna())
    kinds = given["status"].map({"classified": "driver:", "uncertain": "uncertain:"}).fillna("status:")
    assert (found["category"] == kinds + given["driver"].fillna(given["status"])).all()
    for own, shape in zip(rings, given.geometry, strict=True):
        read = shapely.union_all([shapely.Polygon(ring / 1e6) for ring in own])
        holes = [ring for part in shape.geoms for ring in part.interiors]
        whole = shapely.union_all([shapely.Polygon(part.exterior) for part in shape.geoms])
        assert len(own) == len(shape.geoms) + len(holes)
        assert shapely.symmetric_difference(read, whole).area < 2e-5 * read.length  # two metres along the outline


def test_identifiers_that_name_places_are_not_stored(tmp_path: Path) -> None:
    many = many_inputs(tmp_path, 400)
    frame, categories = maps.frame_of(many.events), event_categories(many.card.scheme)
    assert frame is not None
    data = encode_events(many.events, frame, categories, {}, 1_000_000)
    assert data.ids_from_places
    columns = unpacked(data.events)
    assert "ids" not in columns
    x, y = (np.cumsum(read_integers(columns[name], zigzag=True)) for name in "xy")
    year = np.array(read_integers(columns["year"])) + data.first_year
    ids = [
        f"{k}_{'S' if b < 0 else 'N'}{abs(b) / 1e6:09.6f}_E{a / 1e6:010.6f}"
        for k, a, b in zip(year.tolist(), x.tolist(), y.tolist(), strict=True)
    ]
    assert set(ids) == set(many.events["event_id"])
    odd = many.events.assign(
        event_id=[f"{name}x" if k == 7 else name for k, name in enumerate(many.events["event_id"])]
    )
    assert not encode_events(odd, frame, categories, {}, 1_000_000).ids_from_places


@pytest.mark.parametrize("most", [200_000, 40_000, 15_000, 3_000])
def test_a_large_map_is_made_to_fit_and_says_how(tmp_path: Path, most: int) -> None:
    many = many_inputs(tmp_path, 2500)
    frame = maps.frame_of(many.events)
    assert frame is not None
    data = encode_events(many.events, frame, event_categories(many.card.scheme), {}, most)
    assert data.size <= most
    if most == 200_000:
        assert (data.shown, data.squares, data.simplified) == (2500, 0, 0)
    if most == 3_000:
        assert 0 < data.shown < 2500
        kept = np.array(read_integers(unpacked(data.events)["area"])) / 1000
        assert kept.min() >= np.sort(many.events["area_ha"])[-data.shown] - 0.001  # the smallest go first


def test_squares_stand_in_the_middle_of_their_events(monkeypatch: pytest.MonkeyPatch, inputs: ProductInputs) -> None:
    from pipeline.product.report import mapdata

    shapes = np.asarray(inputs.events.geometry.array)
    place = np.zeros((len(shapes), 2), np.int64)
    columns, squares = mapdata._outlines(shapes, place, inputs.events["area_ha"].to_numpy(float), 30)
    sizes, at, found = read_integers(columns["sizes"]), 0, []
    steps = np.array([read_integers(columns[name], zigzag=True) for name in ("dx", "dy")]).T * 10
    for own in read_integers(columns["rings"]):
        if own == 1 and sizes[at] == 1:
            found.append(steps[sum(sizes[:at])] / 1e6)
        at += own
    assert len(found) == squares > 0
    small = inputs.events.nsmallest(squares, "area_ha").geometry
    for x, y in found:
        assert min(shapely.distance(shapely.centroid(small.array), shapely.Point(x, y))) < 2e-5


def test_borders_are_simplified_together() -> None:
    random = np.random.default_rng(5)
    shore = np.column_stack([np.linspace(0, 1, 400), 0.5 + random.normal(0, 0.01, 400)])
    north = shapely.Polygon([*shore, (1, 1), (0, 1)])
    south = shapely.Polygon([*shore, (1, 0), (0, 0)])
    units = gpd.GeoDataFrame(geometry=[north, None, south], crs="EPSG:4326")
    frame = maps.frame_of(units)
    assert frame is not None
    for corners in (150_000, 120):
        data = unpacked(encode_borders(units, frame, corners))
        sizes = read_integers(data["sizes"])
        assert read_integers(data["rings"]) == [1, 0, 1]
        assert sum(sizes) < corners + 10
        steps = np.array([read_integers(data[name], zigzag=True) for name in ("dx", "dy")]).T * 10
        rings = np.split(steps, np.cumsum(sizes)[:-1])
        one, two = (shapely.Polygon(np.cumsum(ring, axis=0) / 1e6).buffer(0) for ring in rings)
        assert shapely.intersection(one, two).area < 2e-5
        assert shapely.union_all([one, two]).area == pytest.approx(1, abs=1e-4)


def test_a_region_across_the_antimeridian_is_one_map(inputs: ProductInputs) -> None:
    west, east = shapely.box(179.9, -16.1, 180, -16), shapely.box(-180, -16.1, -179.9, -16)
    parts = [shapely.MultiPolygon([west]), shapely.MultiPolygon([east]), shapely.MultiPolygon([west, east])]
    events = inputs.events.head(3).set_geometry(gpd.GeoSeries(parts, crs="EPSG:4326", index=inputs.events.index[:3]))
    events = events.assign(lon=[179.95, -179.95, 179.95], lat=-16.05)
    frame = maps.frame_of(events)
    assert frame is not None
    assert (frame.west, frame.east) == (pytest.approx(179.9, abs=0.01), pytest.approx(180.1, abs=0.01))
    data = encode_events(events, frame, event_categories(inputs.card.scheme), {}, 100_000)
    columns = unpacked(data.events)
    x, y = (np.cumsum(read_integers(columns[name], zigzag=True)).tolist() for name in "xy")
    spans = [np.ptp(np.concatenate(own)[:, 0]) for own in polygons(data.outlines, x, y)]
    assert sorted(spans) == [100_000, 100_000, 200_000]
    assert maps.picture(events, event_categories(inputs.card.scheme), frame).startswith("data:image/png;base64,")


def test_sums_of_the_report_are_those_of_the_product(inputs: ProductInputs, text: str) -> None:
    total = inputs.events["area_ha"].sum()
    rows = driver_rows(inputs)
    assert sum(row.area for row in rows) == pytest.approx(total, rel=1e-9)
    assert sum(sum(row.years) for row in rows) == pytest.approx(inputs.summary["area_ha"].sum(), rel=1e-9)
    by_unit = seen_by(inputs.events, inputs.events["unit_id"], dict.fromkeys(inputs.units["unit_id"], ""))
    assert [row.total for row in by_unit] == pytest.approx(inputs.units["loss_ha"].tolist())
    assert sum(row.events for row in by_unit) == len(inputs.events)
    words = said(text)
    for value in (total, *inputs.units["loss_ha"], *(row.area for row in rows)):
        assert number(value) in words
    seen = 100 * (4535 - 64 - 256 - 196) / 4535
    assert f"{seen:.1f}\u202f%" in Page(text).words


def test_estimates_stand_beside_mapped_areas_never_for_them(inputs: ProductInputs, text: str) -> None:
    region = inputs.estimates[(inputs.estimates["scope"] == "region") & (inputs.estimates["loss_year"] == "all")]
    words = said(text)
    for row in region[region["adjusted_ha"].notna()].to_dict("records"):
        assert f"{number(row['adjusted_ha'])}{number(row['low_ha'])} to {number(row['high_ha'])}" in words
    assert "is no estimate" in words
    assert "prove nothing about real land" in words  # the note of a simulated model goes with its intervals
    bare = replace(inputs, estimates=inputs.estimates.head(0))
    words = said(render(bare, RUN))
    assert "carry no interval" in words
    assert "Adjusted areas" not in words


def test_hostile_names_are_text_and_nothing_is_loaded(text: str) -> None:
    page = Page(text)
    assert not set(page.tags) & {"iframe", "object", "embed", "b2", "base", "audio", "video"}
    assert not {name for name in page.names if name.startswith("on")}
    assert all(re.match(r"data:(image/(png|jpeg);base64,|,$)|#", href) for href in page.hrefs), page.hrefs
    assert not re.search(r"https?://", re.sub(r"<code>.*?</code>", "", text))
    for word in (*UNIT_NAMES, "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "Ünïté <b>Test</b>"):
        assert word in page.words
    config = next(body for kind, body in page.scripts if kind == "application/json")
    assert not re.search("[<>&]", config)
    assert {unit["name"] for unit in json.loads(config)["units"]} >= set(UNIT_NAMES)


def test_only_the_script_of_the_page_may_run(text: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    own = [body for kind, body in Page(text).scripts if kind == ""]
    assert len(own) == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert text.index("Content-Security-Policy") < text.index("<script")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp", own[0])


@given(st.text())
def test_data_cannot_leave_its_script_element(value: str) -> None:
    hostile = {"a": value + "</script><!-- \u2028 &"}
    made = str(as_json(hostile))
    assert json.loads(made) == hostile
    assert not re.search("[<>&\u2028\u2029]", made)


def test_report_says_what_matters(text: str) -> None:
    words = said(text)
    for part in (
        "Simulated.", "Incomplete.", "1 of 2 blocks have no result", "out of memory", "cloud cover 88 %", "408",
        "fpn-test 1", "0.770 to 0.850", "on simulated land", "How to cite", "not calibrated", "LC08_broken",
        "Scenes used: 1; skipped: 2", "7 / 2", "2 / 1",
    ):  # fmt: skip
        assert part in words, part


def test_report_without_scores_or_events(tmp_path: Path) -> None:
    empty = make_inputs(tmp_path, 0)
    card = empty.card.model_copy(update={"scores": (), "simulated": False, "error_matrix": None})
    text = render(replace(empty, card=card), {"simulated": False, "complete": True})
    assert "gives no scores" in text
    assert "No loss event" in text
    assert "Simulated" not in text
    assert "nan" not in said(text).lower()
    assert "shows no real place" in render(replace(empty, card=card), {"simulated": True})
    assert "shows no real place" not in render(empty, {"simulated": True})  # a simulated model on real imagery


def test_a_product_without_any_place_has_a_report(tmp_path: Path) -> None:
    empty = make_inputs(tmp_path, 0)
    nowhere = replace(empty, units=empty.units[empty.units.geometry.isna()], blocks=empty.blocks.head(0))
    text = render(nowhere, {})
    assert "There is nothing to draw." in text
    assert not Page(text).scripts


def test_pictures_and_reasons_for_missing_ones(inputs: ProductInputs, text: str) -> None:
    page = Page(text)
    jpegs = [href for href in page.hrefs if href.startswith("data:image/jpeg")]
    pairs = inputs.chips
    assert len(jpegs) == 2 * len(pairs) - 1
    assert {base64.b64decode(href.partition(",")[2]) for href in jpegs} == {
        shot.jpeg for pair in pairs for shot in (pair.before, pair.after) if shot
    }
    assert "no clear scene <b>before</b> the loss" in page.words
    assert "LC08_before_0" in page.words


def test_the_gallery_shows_the_largest_then_the_least_certain(inputs: ProductInputs) -> None:
    made = gallery(chips(inputs, 8), inputs.events, inputs.card.scheme, 10**6)
    assert len(made.largest) == len(made.unsure) == 4
    assert min(card.area for card in made.largest) >= max(card.area for card in made.unsure)
    confidence = [card.confidence for card in made.unsure]
    assert confidence == sorted(confidence)
    small = gallery(chips(inputs, 8), inputs.events, inputs.card.scheme, 3000)
    sources = [shot.src for card in (*small.largest, *small.unsure) for shot in card.shots]
    assert 0 < sum(map(len, sources)) <= 3000
    assert any("left out" in shot.note for card in small.unsure for shot in card.shots)


def test_equal_inputs_give_equal_text_whatever_their_order(inputs: ProductInputs, text: str) -> None:
    shuffled = {
        name: getattr(inputs, name).sample(frac=1, random_state=7) for name in ("events", "units", "scenes", "blocks")
    }
    assert render(replace(inputs, **shuffled), {**inputs.run, **RUN}) == text


def test_long_entries_of_the_record_are_cut_and_say_so(inputs: ProductInputs) -> None:
    text = render(inputs, {**RUN, "aoi": {"coordinates": list(range(200_000))}})
    assert len(text) < 400_000
    assert "characters; whole in run.json" in text


def test_overlays_are_summed_by_driver_and_missing_ones_are_said(inputs: ProductInputs) -> None:
    uses = [
        {"name": "peat", "title": "Peat <map>", "date": "2019", "source": "a ministry", "status": "used", "reason": ""},
        {
            "name": "gone",
            "title": "",
            "date": "",
            "file": "x.gpkg",
            "status": "unavailable",
            "reason": "no file x.gpkg",
        },
    ]
    words = said(render(inputs, {**RUN, "overlays": uses}))
    total = inputs.events["area_ha"].sum()
    assert f"Peat <map>2019, a ministryused{number(total / 4)}" in words
    # what an overlay says nothing about is not known, never outside
    assert f"gonex.gpkgunavailable: no file x.gpkg{number(0.0) * 5}{number(total)}" in words
    assert "Inside overlays" not in said(render(inputs, RUN))


def test_loss_after_the_cutoff_is_counted_by_conversion(inputs: ProductInputs) -> None:
    events = inputs.events.assign(
        eudr_after_cutoff=inputs.events["loss_year"] > 2021,
        eudr_conversion=pd.array([True, False, None] * 4, dtype="boolean"),
    )
    rows = cutoff_rows(events)
    assert [count for _, count, _ in rows] == [6, 1, 3, 2]  # rows 4, 5, 6, 7, 8 and 10
    assert rows[0][2] == pytest.approx(sum(area for _, _, area in rows[1:]))
    assert rows[0][2] == pytest.approx(events.loc[events["loss_year"] == 2022, "area_ha"].sum())
    assert "no finding" in said(render(replace(inputs, events=events), RUN))
    assert cutoff_rows(inputs.events.drop(columns="eudr_conversion", errors="ignore")) == []


def test_all_units_count_and_most_are_in_the_table(tmp_path: Path) -> None:
    small = make_inputs(tmp_path)
    more = pd.concat([small.units, *([small.units.iloc[[0]]] * 500)], ignore_index=True)
    more["unit_id"] = [f"u{k}" for k in range(len(more))]
    text = render(replace(small, units=gpd.GeoDataFrame(more, crs="EPSG:4326")), RUN)
    assert "204 more units with less loss" in text


def test_a_mid_sized_product_stays_small(tmp_path: Path) -> None:
    many = many_inputs(tmp_path, 3000)
    text = render(many, RUN)
    assert len(text.encode()) < 1_000_000
    view = mapview.map_view(many)
    assert view is not None
    assert view["data"].shown == 3000
    assert view["left_out"] == 0


def test_shares_never_round_to_all_or_nothing() -> None:
    assert [percent(x) for x in (0, 0.00001, 0.5, 0.99999, 1)] == [
        "0.0\u202f%", "<\u202f0.1\u202f%", "50.0\u202f%", ">\u202f99.9\u202f%", "100.0\u202f%",
    ]  # fmt: skip
    assert number(1234567.891) == "1\u202f234\u202f567.9"
    assert number(None) == number(float("nan")) == percent(None) == "\u2013"


@settings(max_examples=200)
@given(st.floats(1e-3, 1e9))
def test_axes_end_just_beyond_the_largest_value(highest: float) -> None:
    ticks = ticks_to(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * 0.999999
    assert len(ticks) <= 7
    assert ticks[-2] < highest
    whole = ticks_to(highest, whole=True)
    assert all(tick == int(tick) for tick in whole)
