"""Fetching over a real HTTP server on loopback: whole files or none, and never from where it must not."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline.catalog.fetch import cached_path, fetch_scene, localised
from pipeline.catalog.scene import Asset, Scene
from pipeline.errors import SceneError

TIFF = b"II*\0" + bytes(range(256)) * 40
LOCAL = ("localhost", "127.0.0.1")


def scene_at(href: str) -> Scene:
    return Scene("S1", datetime(2020, 1, 1, tzinfo=UTC), "landsat-8", 1.0, 1, 1, "POINT (0 0)", {"red": Asset(href)})


def fetch(
    server: HTTPServer, cache: Path, path: str = "/b.tif", allow: tuple[str, ...] = LOCAL, query: str = ""
) -> int:
    return fetch_scene(scene_at(server.url_for(path)), ("red", "absent"), cache, allow, lambda href: href + query)


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_file_comes_once_and_is_whole(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/b.tif").respond_with_data(TIFF)
    assert fetch(httpserver, tmp_path) == len(TIFF)
    assert fetch(httpserver, tmp_path) == 0
    assert len(httpserver.log) == 1
    scene = localised(scene_at(httpserver.url_for("/b.tif")), tmp_path)
    assert Path(scene.assets["red"].href).read_bytes() == TIFF


def test_local_files_stay_where_they_are(tmp_path: Path) -> None:
    scene = scene_at(str(tmp_path / "x.tif"))
    assert localised(scene, tmp_path / "cache") == scene
    assert fetch_scene(scene, ("red",), tmp_path / "cache", (), str) == 0


def test_a_busy_server_is_asked_again(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_ordered_request("/b.tif").respond_with_data("busy", status=503, headers={"Retry-After": "0"})
    httpserver.expect_ordered_request("/b.tif").respond_with_data("slow down", status=429, headers={"Retry-After": "0"})
    httpserver.expect_ordered_request("/b.tif").respond_with_data(TIFF)
    assert fetch(httpserver, tmp_path) == len(TIFF)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(404, b"no", "404"), (403, b"no", "403"), (200, b"<html>login</html>", "no TIFF"), (200, b"", "no TIFF")],
)
def test_what_is_no_tiff_is_refused_and_leaves_nothing(
    httpserver: HTTPServer, tmp_path: Path, status: int, body: bytes, told: str
) -> None:
    httpserver.expect_request("/b.tif").respond_with_data(body, status=status)
    with pytest.raises(SceneError, match=told):
        fetch(httpserver, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_file_that_is_cut_off_is_refused(httpserver: HTTPServer, tmp_path: Path) -> None:
    def short(_: Request) -> Response:
        response = Response(TIFF[:1000])
        response.headers["Content-Length"] = str(len(TIFF))
        return response

    httpserver.expect_request("/b.tif").respond_with_handler(short)
    with pytest.raises(SceneError, match=r"cut off|cannot be fetched"):
        fetch(httpserver, tmp_path)
    assert leftovers(tmp_path) == []


def test_hosts_of_the_own_network_need_permission_also_after_a_redirect(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/b.tif").respond_with_data(TIFF)
    with pytest.raises(SceneError, match=r"imagery\.allow_hosts"):
        fetch(httpserver, tmp_path, allow=())
    assert httpserver.log == [], "the server must not even be asked"
    httpserver.expect_request("/away.tif").respond_with_data(
        b"", status=302, headers={"Location": f"http://127.0.0.2:{httpserver.port}/b.tif"}
    )
    with pytest.raises(SceneError, match=r"127\.0\.0\.2"):
        fetch(httpserver, tmp_path, "/away.tif")


def test_tokens_never_reach_an_error(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/b.tif").respond_with_data("denied", status=403)
    with pytest.raises(SceneError) as caught:
        fetch(httpserver, tmp_path, query="?sig=CANARY")
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_href_chooses_its_name_in_the_cache(tmp_path: Path) -> None:
    for href in ("http://a/../../etc/passwd", "https://a/%2e%2e/x", "http://a/b\0c", "s3://a/../x"):
        assert cached_path(href, tmp_path).resolve().is_relative_to(tmp_path)


def test_object_stores_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="s3"):
        fetch_scene(dataclasses.replace(scene_at("s3://bucket/b.tif")), ("red",), tmp_path, (), str)
