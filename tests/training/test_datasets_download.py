"""Downloads over a real server on this machine that cuts connections, lies about sizes, or changes its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline.errors import InputError
from pipeline.training.datasets import download as module
from pipeline.training.datasets.download import Archive, download, fetch

CUT = 10 * 65536
CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server:
    """Serves CONTENT by range; cuts each of the first `cuts` answers off after `after` bytes."""

    def __init__(self, cuts: int = 0, after: int = CUT, ranges: bool = True, content: bytes = CONTENT) -> None:
        self.cuts, self.after, self.ranges, self.content = cuts, after, ranges, content
        self.asked: list[str | None] = []
        self.status: list[int] = []

    def __call__(self, request: Request) -> Response:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        tag = f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'
        fresh = request.headers.get("If-Range") in (None, tag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges and fresh else 0
        if start >= len(self.content):
            return Response(status=416, headers={"Content-Range": f"bytes */{len(self.content)}"})
        body = self.content[start:]
        headers = {"ETag": tag, "Content-Length": str(len(body))}
        status = 200
        if wanted and self.ranges and fresh:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        if self.cuts:
            self.cuts -= 1
            body = body[: self.after]
        return Response(_pieces(body), status, headers, direct_passthrough=True)


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)


def archive(server: HTTPServer, answer: Server, **published: object) -> Archive:
    server.expect_request("/data.zip").respond_with_handler(answer)
    return Archive("data.zip", server.url_for("/data.zip"), "CC BY 4.0", "unpack", **published)  # type: ignore[arg-type]


def test_goes_on_where_the_connection_broke(httpserver: HTTPServer, tmp_path: Path) -> None:
    answer = Server(cuts=3)
    told: list[int] = []
    done = fetch(archive(httpserver, answer), tmp_path, progress=lambda have, _: told.append(have))
    assert done.path.read_bytes() == CONTENT
    assert answer.asked == [None, *(f"bytes={k * CUT}-" for k in (1, 2, 3))]
    assert told == sorted(told)
    assert told[-1] == done.bytes == len(CONTENT)
    assert done.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert not done.vouched
    assert (tmp_path / "data.zip.sha256").read_text() == f"{done.sha256}  data.zip\n"
    assert not list(tmp_path.glob("*.part*"))


def test_a_later_run_goes_on_too(httpserver: HTTPServer, tmp_path: Path) -> None:
    answer = Server(cuts=1, after=0)
    source = archive(httpserver, answer)
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:500_000])
    with pytest.raises(requests.RequestException):
        fetch(source, tmp_path, attempts=1)
    assert (tmp_path / "data.zip.part").stat().st_size == 500_000
    assert fetch(source, tmp_path).path.read_bytes() == CONTENT
    assert answer.asked == ["bytes=500000-"] * 2


def test_a_whole_file_is_not_fetched_again(httpserver: HTTPServer, tmp_path: Path) -> None:
    answer = Server()
    source = archive(httpserver, answer, md5=hashlib.md5(CONTENT).hexdigest(), bytes=len(CONTENT))
    assert fetch(source, tmp_path).vouched
    fetch(source, tmp_path)
    assert len(answer.asked) == 1
    (tmp_path / "data.zip").rename(tmp_path / "data.zip.part")
    fetch(source, tmp_path)
    assert answer.asked[1:] == [f"bytes={len(CONTENT)}-"]


def test_a_server_without_ranges_starts_anew(httpserver: HTTPServer, tmp_path: Path) -> None:
    answer = Server(cuts=1, ranges=False)
    assert fetch(archive(httpserver, answer), tmp_path).path.read_bytes() == CONTENT
    assert answer.asked == [None, f"bytes={CUT}-"]


def test_a_file_that_changed_in_between_is_not_patched_together(httpserver: HTTPServer, tmp_path: Path) -> None:
    answer = Server(cuts=1)
    source = archive(httpserver, answer)
    with pytest.raises(requests.RequestException):
        fetch(source, tmp_path, attempts=0)
    answer.content = CONTENT[::-1]
    assert fetch(source, tmp_path).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("published", "told"), [({"md5": "0" * 32}, "published is 00000"), ({"bytes": 7}, "7 published")]
)
def test_what_is_not_the_published_file_does_not_stay(
    httpserver: HTTPServer, tmp_path: Path, published: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        fetch(archive(httpserver, Server(), **published), tmp_path)
    assert not (tmp_path / "data.zip").exists()


def test_by_name_with_sizes_and_checksums_of_zenodo(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ZENODO", httpserver.url_for("").rstrip("/"))
    name = module.ARCHIVES["camforestnet-15"].file
    entry = {
        "key": name, "size": len(CONTENT), "checksum": f"md5:{hashlib.md5(CONTENT).hexdigest()}",
        "links": {"self": httpserver.url_for("/data.zip")},
    }  # fmt: skip
    httpserver.expect_request("/api/records/8325259").respond_with_json({"files": [entry]})
    httpserver.expect_request("/data.zip").respond_with_handler(Server(cuts=1))
    done = download("camforestnet-15", tmp_path)
    assert done.vouched
    assert done.path.name == name


def test_a_refusal_says_what_to_do(httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ZENODO", httpserver.url_for("").rstrip("/"))
    httpserver.expect_request("/api/records/8325259").respond_with_data("gone", 404)
    with pytest.raises(InputError, match=r"the server answers 404.*by other means.*my_examples_landsat_final\.zip"):
        download("camforestnet-4", tmp_path)
    with pytest.raises(InputError, match="known are forestnet"):
        download("imagenet", tmp_path)
