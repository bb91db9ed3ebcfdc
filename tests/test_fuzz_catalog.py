"""Mutated STAC Items and MTL files: a refusal with a reason or a right scene, and never anything else.

A few hundred in every run of the tests; 2,000 of each kind in the slow one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import shapely
from catalog_samples import EVER, L9, WORLD, as_json, as_text, as_xml, make_bundle, make_item, mtl_groups
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_catalog_api import serving

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.mtl import MAX_BYTES, read_mtl
from pipeline.catalog.scene import BANDS, Refusal, Scene
from pipeline.catalog.stac import StacApi, StaticStac
from pipeline.errors import ConfigError, SceneError

QUICK = FetchPolicy(attempts=1, deadline_s=5, backoff_s=0.01, connect_s=1, read_s=1)
PATIENT = FetchPolicy(attempts=2, backoff_s=0.01)
COUNTS = [
    pytest.param(120, id="some"),
    pytest.param(2000, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
]
DEEP = "@deep@"
"""Stands in a mutated item for arrays in arrays, too deep for Python to write."""

_HREFS = [
    "/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd", "..\\..\\x.tif",
    "~/x.tif", "/vsicurl/http://127.0.0.1:{port}/x.tif", "vrt://x.tif", "./red.tif/../../../../etc/passwd",
    "%2e%2e/%2e%2e/x.tif", "https://example.org/../../x.tif", "https://example.org/%2e%2e/x.tif?sig=CANARY",
    "https://u:CANARY@example.org/x", "http://127.0.0.1:{port}/x.tif", "http://localhost:{port}/x.tif",
    "http://[::1]:{port}/x.tif", "http://127.1:{port}/x", "http://2130706433:{port}/x", "http://0x7f000001:{port}/x",
    "http://0177.0.0.1:{port}/x", "http://[::ffff:127.0.0.1]:{port}/", "http://127.0.0.1:{port}\\@example.org/x",
    "http://example.org@127.0.0.1:{port}/x", "http://169.254.169.254/latest", "HTTP://127.0.0.1:{port}/X",
    "http:///x.tif", "http://", "https://[::1", "https://example.org:99999/x", "s3://", "s3:///k", "s3://../../x",
    "s3://usgs-landsat/../../x.tif", "ftp://example.org/x", "gs://b/k", "data:,x", "x" * 5000, "\x00", "a\nb",
    "https://exam\u202eple.org/x", "https://exаmple.org/x", "https://" + "a" * 300 + ".org/x", "http://\ud800/x",
    "link.tif",
]  # fmt: skip
_TEXTS = [
    "", " ", "\x00", "\n", "a\r\nb", "\u202e", "é" * 50, "\ud800", "../x", "x" * 100_000, "1e999", "NaN", "-0",
    "L2SP", "L1TP", "landsat-9", "landsat-99", "2023-07-23", "9999-12-31T23:59:60Z", "0000-00-00",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", L9, L9.replace("2023", "9999"), DEEP,
]  # fmt: skip
_NUMBERS = [
    0, -1, 1, 2**31, 2**63, 10**400, 1e308, -1e308, 5e-324, 1e-9, 0.5, 180.5, -180.5, 360, 100.000001, math.nan,
    math.inf, -math.inf,
]  # fmt: skip
_SHAPES = [
    {"type": "Point", "coordinates": [0, 0]}, {"type": "Polygon", "coordinates": []},
    {"type": "Polygon", "coordinates": [[]]}, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [0, math.nan], [1, 1], [0, 0]]]},
    {"type": "GeometryCollection", "geometries": []},
    {"type": "Polygon", "coordinates": [[[-200, 0], [200, 0], [200, 10], [-200, 0]]]},
    {"type": "Polygon", "coordinates": [[[170, 0], [-170, 0], [-170, 10], [170, 10], [170, 0]]]},
    {"type": "Polygon", "coordinates": [[[1e300, 0], [1e300, 1], [0, 1], [1e300, 0]]]},
    {"type": "Polygon", "coordinates": "x"},
    {"type": "MultiPolygon", "coordinates": [[[[0, 0], [1, 0], [1, 1], [0, 0]]], []]}, {"type": 3}, [1, 2, 3, 4],
]  # fmt: skip


class Canary(ThreadingHTTPServer):
    """A server of this machine's own network, which nothing may reach."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Caught)
        self.hits: list[str] = []


class _Caught(BaseHTTPRequestHandler):
    server: Canary

    def do_GET(self) -> None:
        self.server.hits.append(self.path)

    do_HEAD = do_POST = do_GET


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    with Canary() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def originals(shared_data: Path) -> list[dict[str, Any]]:
    """The real items as shipped (one of them of STAC 1.0.0-beta.2), and one of each place that assets may lie."""
    folder = shared_data / "landsat-stac-metadata"
    real = [json.loads(path.read_text()) for path in sorted(folder.glob("LC0*.json"))]
    for item in real[:]:
        moved = json.loads(json.dumps(item))
        for asset in moved["assets"].values():
            asset["href"] = "https://example.org/" + asset["href"].rpartition("/")[2] + "?sig=CANARY"
        real.append(moved)
    return [*real, make_item()]


def junk(port: int) -> st.SearchStrategy[Any]:
    """What a field may be replaced by."""
    hrefs = st.sampled_from(_HREFS).map(lambda href: href.replace("{port}", str(port)))
    small = st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.sampled_from(_TEXTS) | hrefs
    nested = st.lists(small, max_size=3) | st.dictionaries(st.sampled_from(["href", "scale", "type", "x"]), small)
    return small | nested | st.sampled_from(_SHAPES) | st.text(max_size=8) | st.binary(max_size=6).map(repr)


def mutated(draw: Callable[..., Any], item: dict[str, Any], port: int) -> str:
    """The JSON text of an item with one to four faults."""
    item = json.loads(json.dumps(item))
    for _ in range(draw(st.integers(1, 4))):
        node: Any = item
        where = draw(st.sampled_from(["anywhere", "href", "href", "geometry", "property", "band"]))
        if where == "anywhere":
            while isinstance(node, dict | list) and node:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                key = draw(st.sampled_from(keys))
                if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 2)) == 0:
                    break
                node = node[key]
        elif where in ("href", "band"):
            node = item.get("assets")
            if isinstance(node, dict) and node and where == "href":
                node = node[draw(st.sampled_from(list(node)))]
            keys = ["href"] if where == "href" else [*BANDS, "qa_pixel", "SR_B4.TIF", "../../evil", "red\x00", "RED"]
            key = draw(st.sampled_from(keys))
        else:
            node, key = (item, draw(st.sampled_from(["geometry", "bbox", "id", "assets", "properties"])))
            if where == "property":
                node = item.get("properties")
                key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) and node else ["datetime"]))
        if not isinstance(node, dict | list) or (isinstance(node, list) and not isinstance(key, int)):
            continue
        if draw(st.integers(0, 3)) == 0 and (isinstance(node, list) or key in node):
            del node[key]
        else:
            new = junk(port) if where != "href" or draw(st.integers(0, 4)) == 0 else _hrefs(port)
            # a copy: later faults may change it again
            node[key] = copy.deepcopy(draw(new))
    return json.dumps(item).replace(json.dumps(DEEP), "[" * 900 + "]" * 900)


def _hrefs(port: int) -> st.SearchStrategy[str]:
    return st.sampled_from(_HREFS).map(lambda href: href.replace("{port}", str(port)))


def check_line(text: str) -> None:
    """An error is one readable line."""
    assert text.isprintable()
    assert len(text) < 1500


def check_refusal(refusal: Refusal) -> None:
    assert refusal.reason
    for text in (refusal.reason, refusal.scene_id):
        assert len(text) < 1000
        assert text.isascii()
        assert text.isprintable()
        assert "CANARY" not in text


def check_scene(scene: Scene, said: str, root: Path | None) -> None:
    """What holds of every scene, whatever its item said; `root`: the folder that local files must lie in."""
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", scene.id)
    assert scene.datetime.tzinfo is UTC
    assert re.fullmatch("landsat-[4-9]", scene.platform)
    assert scene.cloud_cover is None or 0 <= scene.cloud_cover <= 100
    assert scene.path is None or 1 <= scene.path <= 233
    assert scene.row is None or 1 <= scene.row <= 248
    footprint = shapely.from_wkt(scene.footprint)
    assert footprint.is_valid
    assert footprint.area > 0
    west, south, east, north = footprint.bounds
    assert -180 <= west < east <= 180
    assert -90 <= south < north <= 90
    assert set(scene.assets) & set(BANDS)
    json.dumps(dataclasses.asdict(scene), default=str, allow_nan=False).encode()
    cache = Path("/cache")
    for band, asset in scene.assets.items():
        assert math.isfinite(asset.scale)
        assert asset.scale > 0
        assert math.isfinite(asset.offset)
        assert asset.nodata is None or math.isfinite(asset.nodata)
        assert "CANARY" not in asset.href, "hrefs are kept unsigned"
        if asset.href.lower().startswith(("http://", "https://", "s3://")):
            assert re.fullmatch(r"/cache/[0-9a-f]{2}/[0-9a-f]{64}\.tif", str(cached_path(asset.href, cache))), band
        else:
            assert root is not None, "a server cannot name a local file"
            assert Path(asset.href).resolve().is_relative_to(root)
        name = asset.href.rpartition("/")[2]
        assert json.dumps(name)[1:-1] in said, "the item names this file"


def check_unreached(scene: Scene, canary: Canary, folder: Path) -> None:
    """Nothing on this machine's own network is asked."""
    for band, asset in scene.assets.items():
        if str(canary.server_port) in asset.href:
            with pytest.raises(SceneError):
                Fetcher(folder, policy=QUICK).scene(scene, (band,))


@pytest.mark.parametrize("count", COUNTS)
def test_items_of_a_static_catalog(count: int, originals: list[dict[str, Any]], canary: Canary, tmp_path: Path) -> None:
    root = tmp_path / "catalog"
    root.mkdir()
    (root / "link.tif").symlink_to("/etc/passwd")
    (root.parent / "secret.tif").write_bytes(b"secret")
    ended = {Scene: 0, Refusal: 0}

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        text = mutated(data.draw, originals[data.draw(st.integers(0, len(originals) - 1))], canary.server_port)
        (root / "item.json").write_text(text)
        try:
            found = list(StaticStac(root / "item.json").search(WORLD, *EVER))
        except ConfigError as error:
            check_line(str(error))
            return
        for result in found:
            ended[type(result)] += 1
            if isinstance(result, Refusal):
                check_refusal(result)
            else:
                check_scene(result, text, root)
                check_unreached(result, canary, tmp_path / "cache")

    check()
    assert not canary.hits
    assert min(ended.values()) > count / 20, ended
    print({kind.__name__: number for kind, number in ended.items()})


@pytest.mark.parametrize("count", COUNTS)
def test_items_of_an_api(count: int, originals: list[dict[str, Any]], canary: Canary, tmp_path: Path) -> None:
    ended: dict[type, int] = {Scene: 0, Refusal: 0, ConfigError: 0}

    with serving("raw") as server:

        @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def check(data: st.DataObject) -> None:
            text = mutated(data.draw, originals[data.draw(st.integers(0, len(originals) - 1))], canary.server_port)
            server.raw = f'{{"type": "FeatureCollection", "links": [], "features": [{text}]}}'.encode()
            try:
                found = list(StacApi(server.url, ("landsat-c2-l2",), policy=PATIENT).search(WORLD, *EVER))
            except ConfigError as error:
                check_line(str(error))
                ended[ConfigError] += 1
                return
            for result in found:
                ended[type(result)] += 1
                if isinstance(result, Refusal):
                    check_refusal(result)
                else:
                    check_scene(result, text, None)
                    check_unreached(result, canary, tmp_path / "cache")

        check()
    assert not canary.hits
    assert min(ended[Scene], ended[Refusal]) > count / 20, ended
    print({kind.__name__: number for kind, number in ended.items()})


# ---------------------------------------------------------------------------------------------- MTL

_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><LANDSAT_METADATA_FILE>&i;</LANDSAT_METADATA_FILE>"
)
_STOLEN = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    "<LANDSAT_METADATA_FILE><PRODUCT_CONTENTS><LANDSAT_PRODUCT_ID>&e;</LANDSAT_PRODUCT_ID></PRODUCT_CONTENTS>"
    "</LANDSAT_METADATA_FILE>"
)
_WHOLE = [
    b"", b"\x00" * 1000, b"\xff\xfe" + "GROUP".encode("utf-16-le"), b"[" * 100_000, b'{"a":' * 50_000,
    b"<a>" * 100_000, _BOMB.encode(), _STOLEN.encode(), b"GROUP = A\n" * 10_000, b" " * (MAX_BYTES + 1), b"{}", b"[]",
    b"{\"a\": 1}", b"<a/>", b'{"LANDSAT_METADATA_FILE": {"PRODUCT_CONTENTS": 3}}',
]  # fmt: skip
_VALUES = [
    "", '"', "1e999", "nan", "-inf", "9" * 400, "../../../etc/passwd", "/etc/passwd", "..\\x.TIF", "x" * 10_000,
    "&e;", "<a>", "\x00", "é", "LANDSAT_99", "L1TP", "9999-99-99", "25:61:61Z", "0", "-1", "61", "PS", "link.TIF",
]  # fmt: skip


def mutated_mtl(draw: Callable[..., Any], text: str) -> bytes:
    """The bytes of an MTL with one to four faults, or of something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return bytes(draw(st.sampled_from(_WHOLE)))
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        lines = text.splitlines() or [""]
        kind = draw(st.sampled_from(["value", "value", "value", "drop", "double", "swap", "cut", "junk"]))
        k = draw(st.integers(0, len(lines) - 1))
        if kind == "value":
            new = draw(st.sampled_from(_VALUES) | st.text(max_size=5))
            lines[k] = re.sub(r'(= ?"?|>|: ?"?)[^"<>,]*', lambda found, new=new: found[1] + new, lines[k], count=1)
        elif kind == "drop":
            del lines[k : k + draw(st.integers(1, 5))]
        elif kind == "double":
            lines[k:k] = lines[k : k + draw(st.integers(1, 5))]
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[k], lines[other] = lines[other], lines[k]
        text = "\n".join(lines)
        if kind == "cut":
            text = text[: draw(st.integers(0, len(text)))]
        elif kind == "junk":
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(st.text(max_size=10)) + text[at:]
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("count", COUNTS)
def test_mtl_files(count: int, shared_data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "scenes" / L9, L9)
    (bundle / f"{L9}_MTL.txt").unlink()
    (bundle / "link.TIF").symlink_to("/etc/passwd")
    groups = mtl_groups(L9)
    folder = shared_data / "landsat-stac-metadata"
    ours = [(".txt", as_text(groups)), (".json", json.dumps(json.loads(as_json(groups)), indent=1)),
            (".xml", as_xml(groups).replace("><", ">\n<"))]  # fmt: skip
    real = [
        (path.suffix, path.read_text().replace(path.name.partition("_MTL")[0], L9))
        for path in sorted(folder.glob("*_MTL.*"))
    ]
    assert len(real) == 4
    ended = {Scene: 0, Refusal: 0}

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        suffix, text = [*ours, *real][data.draw(st.integers(0, 6))]
        for old in bundle.glob("*_MTL.*"):
            old.unlink()
        path = bundle / f"{L9}_MTL{suffix}"
        path.write_bytes(mutated_mtl(data.draw, text))
        try:
            read = read_mtl(path)
            assert read.datetime.tzinfo is UTC
            assert all(math.isfinite(v) for pair in read.scaling.values() for v in pair)
        except SceneError as error:
            check_line(str(error))
        found = BundleFolder(tmp_path / "scenes").search(WORLD, *EVER)
        # link.TIF belongs to no bundle
        (result,) = (r for r in found if not (isinstance(r, Refusal) and "no recognisable name: " in r.reason))
        ended[type(result)] += 1
        if isinstance(result, Refusal):
            check_refusal(result)
        else:
            said = " ".join(path.name for path in bundle.iterdir())
            check_scene(result, said, tmp_path / "scenes")
            assert {Path(asset.href).parent for asset in result.assets.values()} == {bundle}

    check()
    assert min(ended.values()) > count / 40, ended
    print({kind.__name__: number for kind, number in ended.items()})
