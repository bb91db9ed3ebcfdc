from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import shapely
from catalog_samples import EVER, WORLD, make_item
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import stac
from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import Refusal, Scene
from pipeline.catalog.stac import StacApi
from pipeline.errors import ConfigError

PAGE = 4
QUICK = FetchPolicy(backoff_s=0.01)


def items_of(count):
    for n in range(count):
        item = make_item(f"LC09_L2SP_{231000 + n:06d}_20230723_02_T1")
        item["properties"] |= {"landsat:wrs_row": f"{n:03d}", "landsat:wrs_path": "231"}
        for name, asset in item["assets"].items():
            asset["href"] = f"https://example.org/{item['id']}/{name}.TIF?st=2023&sig=secret"
        yield item


class Api(BaseHTTPRequestHandler):
    """A STAC API: pages by a token, and the faults that real ones showed (`mode`)."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(dict(parse_qs(urlsplit(self.path).query)))

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, asked):
        server = self.server
        server.log.append((self.command, urlsplit(self.path).path, asked))
        if server.mode == "503" and len(server.log) % 2 == 1:
            self.send(b"", 503)
        elif server.mode in ("500 midway", "html midway") and "token" in asked:
            self.send(b"<html>oh</html>", 500 if server.mode == "500 midway" else 200)
        elif server.mode == "404":
            self.send(b"no", 404)
        elif server.mode == "html":
            self.send(b"<html>login</html>")
        elif self.path.rstrip("/") in ("", "/stac"):
            self.send(json.dumps(self.landing()).encode())
        elif server.mode == "raw":
            self.send(server.raw)
        else:
            self.send(json.dumps(self.page(asked)).encode())

    def landing(self):
        links = [
            {"rel": "search", "href": f"{self.server.url}/search", "type": "application/geo+json", "method": m}
            for m in self.server.methods
        ]
        return {
            "type": "Catalog", "id": "test", "description": "test", "stac_version": "1.0.0", "links": links,
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
        }  # fmt: skip

    def page(self, asked):
        server = self.server
        token = asked.get("token", 0)
        start = int(token[0] if isinstance(token, list) else token)
        items = [item for item in server.items if self.within(item, asked)] if server.mode == "days" else server.items
        features, more = items[start : start + PAGE], start + PAGE < len(items)
        after = start + PAGE
        if server.mode == "empty" and start == PAGE:
            features = []
        elif server.mode == "cut" and start == PAGE:
            features, more = [], False
        elif server.mode == "loop":
            after, more = 0, True
        elif server.mode == "fresh-tokens":
            features, more = server.items[:PAGE], True
        elif server.mode == "shape":
            return server.shape
        page = {"type": "FeatureCollection", "features": features, "links": []}
        if server.matched is not None:
            page["numberMatched"] = server.matched
        if more and self.command == "POST":
            link = {"rel": "next", "href": f"{server.next_host or server.url}/search", "method": "POST"}
            page["links"] = [link | {"body": {"token": after}, "merge": True}]
        elif more:
            page["links"] = [{"rel": "next", "href": f"{server.url}/search?token={after}"}]
        return page

    @staticmethod
    def within(item, asked):
        """Whether an item lies in the days that are asked for, which a `next` link repeats."""
        first, last = asked["datetime"].split("/")
        return first <= item["properties"]["datetime"] <= last

    def send(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(mode="", count=10, matched=None, methods=("GET", "POST"), next_host=None, items=None, shape=None):
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.mode, server.matched, server.methods, server.next_host = mode, matched, methods, next_host
        server.items, server.shape = list(items_of(count)) if items is None else items, shape
        server.log, server.url = [], f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def found(server, aoi=WORLD, first=EVER[0], last=EVER[1]):
    return list(replace(open_catalog(server.url), policy=QUICK).search(aoi, first, last))


@pytest.mark.parametrize("methods", [("GET", "POST"), ("GET",), ("POST",)])
def test_every_page_is_read_in_order_and_hrefs_are_unsigned(methods):
    with serving(methods=methods, matched=10) as server:
        scenes = found(server)
        assert [scene.id for scene in scenes] == sorted(item["id"] for item in server.items)
        assert all(isinstance(scene, Scene) for scene in scenes)
        assert not any("?" in asset.href for scene in scenes for asset in scene.assets.values())
        asked = [entry for entry in server.log if entry[1] == "/search"]
        assert {entry[0] for entry in asked} == {"POST" if "POST" in methods else "GET"}
        assert len(asked) == 3


def test_the_search_asks_for_collection_days_and_area():
    with serving() as server:
        area = shapely.box(-60.5, -3.5, -60, -3)
        found(server, area, date(2022, 3, 1), date(2024, 2, 29))
        (body, *_) = [entry[2] for entry in server.log if entry[1] == "/search"]
        assert body["collections"] == ["landsat-c2-l2"]
        # a page of Earth Search is of 6 MB at most
        assert body["limit"] == 100
        assert body["datetime"] == "2022-03-01T00:00:00Z/2024-02-29T23:59:59Z"
        assert shapely.from_geojson(json.dumps(body["intersects"])).equals(area)


def test_busy_servers_are_asked_again():
    with serving("503") as server:
        assert len(found(server)) == 10


def test_an_empty_page_in_the_middle_is_not_the_end():
    with serving("empty") as server:
        assert len(found(server)) == 10 - PAGE


@pytest.mark.parametrize(
    ("mode", "settings_", "message"),
    [
        ("loop", {}, "repeats the same items"),
        ("fresh-tokens", {"count": 4}, "repeats the same items"),
        ("cut", {"matched": 10}, "says 10 items match and gave 4"),
        ("empty", {"matched": 10}, "says 10 items match and gave 6"),
        ("", {"matched": 11}, "says 11 items match and gave 10"),
        ("", {"next_host": "http://169.254.169.254"}, "another host"),
        ("404", {}, "cannot be searched"),
        ("500 midway", {}, "cannot be searched as a STAC API: the server answers 500"),
        ("html midway", {}, "cannot be searched as a STAC API: its answer is not JSON"),
        ("html", {}, "cannot be searched"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(mode, settings_, message):
    with serving(mode, **settings_) as server, pytest.raises(ConfigError, match=message) as caught:
        found(server)
    assert str(caught.value).startswith("imagery.source: ")
    assert "\n" not in str(caught.value)
    assert len(server.log) < 20


def test_a_next_link_that_leads_back_to_empty_pages_is_a_circle():
    with serving("loop", count=0) as server, pytest.raises(ConfigError, match="goes round in circles"):
        found(server)


def test_too_many_scenes_ask_for_a_smaller_region(monkeypatch):
    monkeypatch.setattr(stac, "_MAX_ITEMS", 7)
    with serving() as server, pytest.raises(ConfigError, match=r"over 7 scenes.*narrow region\.aoi"):
        found(server)


def test_nobody_there_is_a_configuration_error():
    with pytest.raises(ConfigError, match="cannot be searched"):
        list(StacApi("http://127.0.0.1:9", (), policy=QUICK).search(WORLD, *EVER))


def test_what_lies_outside_is_left_out_and_copies_are_refused():
    inside, outside = list(items_of(2))
    outside |= {"geometry": json.loads(shapely.to_geojson(shapely.box(0, 0, 1, 1))), "bbox": None}
    second = make_item(inside["id"].replace("T1", "T2"))
    second["assets"], second["properties"] = inside["assets"], inside["properties"]
    with serving(items=[inside, outside, second]) as server:
        scene, refusal = found(server, shapely.box(-60.5, -3.5, -60, -3))
    assert isinstance(scene, Scene)
    assert scene.id == inside["id"]
    assert "same acquisition" in refusal.reason


def test_a_detailed_area_is_asked_for_by_its_hulls_which_hold_it():
    east, west = shapely.Point(179, -17).buffer(0.9, 400), shapely.Point(-179, -17).buffer(0.9, 400)
    area = shapely.union_all([east, west])
    with serving() as server:
        found(server, area)
        asked = [entry[2]["intersects"] for entry in server.log if entry[1] == "/search" and "intersects" in entry[2]]
    shape = shapely.union_all([shapely.from_geojson(json.dumps(part)) for part in asked])
    assert shape.buffer(1e-9).covers(area)
    assert shape.area == pytest.approx(area.area, rel=1e-6)
    star = shapely.Polygon(
        [(r * np.cos(t), r * np.sin(t)) for t, r in zip(np.linspace(0, 6, 900), [1, 2] * 450, strict=True)]
    )
    simple = stac._simple(shapely.make_valid(star))
    assert simple.buffer(1e-9).covers(star)
    assert shapely.get_num_coordinates(simple) < 900


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["features", "links", "rel", "id", "context", "href", "matched"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def test_no_answer_brings_it_down():
    @settings(max_examples=150, deadline=None)
    @given(shape=_JSON, features=st.lists(_JSON, max_size=3), whole=st.booleans())
    def check(shape, features, whole):
        server.shape = {"features": features, "links": [], "numberMatched": shape} if whole else shape
        try:
            results = found(server)
        except ConfigError:
            return
        assert all(isinstance(item, Refusal) and item.reason for item in results)

    with serving("shape") as server:
        check()
