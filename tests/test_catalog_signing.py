"""Tokens of the Planetary Computer: asked for once, renewed in time, never kept; with a real blob server (azurite)."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Barrier
from urllib.parse import parse_qs, urlsplit

import pytest
from blob_server import BlobServer, serve_blobs
from pytest_httpserver import HTTPServer
from run_samples import World, assert_same_results, layer, run, write_config
from stac_server import items_of_bundles
from test_catalog_fetch import scene_at, write_band
from werkzeug import Request, Response

from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchPolicy, Permanent, Transient
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Asset
from pipeline.catalog.signing import signer
from pipeline.errors import SceneError

HREF = "https://landsateuwest.blob.core.windows.net/landsat-c2/a/b.tif"
PATH = "/token/landsateuwest/landsat-c2"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tokens of another test, no key of whoever runs it."""
    monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY", raising=False)
    signer.cache_clear()
    yield
    signer.cache_clear()


class Service:
    """A token service that counts: tokens of `life` seconds by a clock that is `ahead` of this machine's."""

    def __init__(self, server: HTTPServer, monkeypatch: pytest.MonkeyPatch, life: float, ahead: float = 0.0) -> None:
        self.life, self.ahead, self.asked, self.keys = life, ahead, 0, set[str | None]()
        server.expect_request(PATH).respond_with_handler(self.answer)
        # the header Date of its answers
        monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda handler, timestamp=None: self.clock())
        monkeypatch.setenv("PC_SDK_SAS_URL", server.url_for("/token"))

    def answer(self, request: Request) -> Response:
        self.asked += 1
        self.keys.add(request.headers.get("Ocp-Apim-Subscription-Key"))
        now = datetime.now(UTC) + timedelta(seconds=self.ahead)
        body = {
            "msft:expiry": (now + timedelta(seconds=self.life)).isoformat(),
            "token": f"se=x&sig=CANARY{self.asked}",
        }
        return Response(json.dumps(body))

    def clock(self) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead), usegmt=True)


def test_one_token_serves_all_files_and_threads(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(httpserver, monkeypatch, 2700)
    sign = signer("planetary-computer")
    with ThreadPoolExecutor(8) as pool:
        signed = set(pool.map(lambda number: sign(HREF.replace("b.tif", f"{number}.tif"), False), range(200)))
    assert service.asked == 1
    assert len(signed) == 200
    assert all(parse_qs(urlsplit(href).query)["sig"] == ["CANARY1"] for href in signed)
    assert signer("planetary-computer") is sign


@pytest.mark.parametrize(("life", "expected"), [(2700, 1), (0.8, range(2, 6))])
def test_a_token_is_renewed_after_half_its_life_or_ten_minutes_before_its_end(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, life: float, expected: int | range
) -> None:
    service = Service(httpserver, monkeypatch, life)
    sign, end = signer("planetary-computer"), time.monotonic() + 1.0
    while time.monotonic() < end:
        sign(HREF, False)
        time.sleep(0.01)
    # a second holds two and a half halves of 0.8 seconds
    assert service.asked in ([expected] if isinstance(expected, int) else expected)


def test_a_wrong_clock_of_this_machine_costs_nothing(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(httpserver, monkeypatch, 2700, ahead=-7200)
    sign = signer("planetary-computer")
    for _ in range(5):
        sign(HREF, False)
    assert service.asked == 1


def test_a_refused_token_is_renewed_once_by_all_who_had_it(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(httpserver, monkeypatch, 2700)
    sign = signer("planetary-computer")
    with ThreadPoolExecutor(4) as pool:
        barrier = Barrier(4)

        def refused_at_once(_: int) -> str:
            sign(HREF, False)
            barrier.wait(10)
            return sign(HREF, True)

        assert {href.rpartition("sig=")[2] for href in pool.map(refused_at_once, range(4))} == {"CANARY2"}
    assert service.asked == 2


def test_only_the_addresses_of_the_planetary_computer_are_signed(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(httpserver, monkeypatch, 2700)
    others = ["https://example.org/landsat-c2/b.tif", "s3://usgs-landsat/b.tif", HREF + "?sig=own",
              "https://landsateuwest.blob.core.windows.net.example.org/landsat-c2/b.tif",
              "https://landsateuwest.blob.core.windows.net/"]  # fmt: skip
    for source in ("planetary-computer", "items.parquet"):
        assert [signer(source)(href, False) for href in others] == others
    assert service.asked == 0
    own = "https://mine.blob.core.windows.net/c/b.tif"
    assert signer("catalog.json")(own, False) == own
    assert "sig=" in signer("catalog.json")(HREF, False)


def test_the_key_of_the_environment_is_sent(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(httpserver, monkeypatch, 2700)
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "mykey")
    signer("planetary-computer")(HREF, False)
    assert service.keys == {"mykey"}


def test_a_signer_goes_to_other_processes_without_its_tokens(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Service(httpserver, monkeypatch, 2700)
    sign = signer("planetary-computer")
    sign(HREF, False)
    packed = pickle.dumps(sign)
    assert b"CANARY" not in packed
    assert pickle.loads(packed) is sign


@pytest.mark.parametrize(
    ("answer", "status", "fault", "reason"),
    [
        ("no", 403, Permanent, "token service answers 403.*PC_SDK_SUBSCRIPTION_KEY"),
        ("no", 404, Permanent, "token service cannot be asked: the server answers 404"),
        ("later", 429, Transient, "token service cannot be asked: the server answers 429"),
        ("oh", 500, Transient, "token service cannot be asked: the server answers 500"),
        ("<html>", 200, Transient, "sends no token"),
        ("[]", 200, Transient, "sends no token"),
        ('{"token": "sig=1"}', 200, Transient, "sends no token"),
        ('{"token": 3, "msft:expiry": "2030-01-01T00:00:00Z"}', 200, Transient, "sends no token"),
        ('{"token": "sig=1", "msft:expiry": "soon"}', 200, Transient, "sends no token"),
    ],
)
def test_a_token_service_that_gives_none_is_a_fault_of_the_table(
    httpserver: HTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    status: int,
    fault: type,
    reason: str,
    tmp_path: Path,
) -> None:
    httpserver.expect_request(PATH).respond_with_data(answer, status=status)
    monkeypatch.setenv("PC_SDK_SAS_URL", httpserver.url_for("/token"))
    with pytest.raises(fault, match=reason):
        signer("planetary-computer")(HREF, False)
    quick = FetchPolicy(attempts=2, backoff_s=0.01)
    with pytest.raises(SceneError, match=r"b\.tif: .*token service"):
        Fetcher(tmp_path, sign=signer("planetary-computer"), policy=quick).scene(scene_at(HREF), ("red",))


def test_nobody_there_is_a_fault_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PC_SDK_SAS_URL", "http://127.0.0.1:9/token")
    with pytest.raises(Transient, match="token service cannot be asked: the connection failed"):
        signer("planetary-computer")(HREF, False)


# ---------------------------------------------------------------------------------------------- azurite


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    """A container with one file, `b.tif`; tokens live two seconds."""
    folder = tmp_path_factory.mktemp("up")
    write_band(folder / "b.tif")
    with serve_blobs(life_s=2) as server:
        server.upload(folder)
        yield server


@pytest.fixture
def blobs(azurite: BlobServer, monkeypatch: pytest.MonkeyPatch) -> BlobServer:
    azurite.use(monkeypatch)
    azurite.forget()
    return azurite


def test_files_come_through_the_ends_of_tokens(blobs: BlobServer, tmp_path: Path) -> None:
    band = write_band(tmp_path / "b.tif")
    cache, began, files = tmp_path / "cache", time.monotonic(), 0
    fetcher = Fetcher(cache, sign=signer("planetary-computer"), policy=FetchPolicy(backoff_s=0.01))
    while time.monotonic() - began < 6.5:
        asset = Asset(f"{blobs.base}/b.tif")
        record = fetcher.asset(asset)
        assert record.verified.startswith("md5")
        assert cached_path(asset.href, cache).read_bytes() == band
        cached_path(asset.href, cache).unlink()
        files += 1
        time.sleep(0.05)
    assert files > 20
    # tokens of 2 seconds end on a full second, so some live for one: half of that is the shortest time between two
    assert 3 <= len(blobs.issued) <= 14
    assert not [line for line in blobs.proxy.log if line[3] == "403"]


def test_a_token_that_ended_unnoticed_is_renewed_once(
    blobs: BlobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = signer("planetary-computer")
    sign(blobs.base + "/b.tif", False)
    (token,) = sign._tokens.values()  # type: ignore[attr-defined]
    # as where the service says too much of its token's life
    url = next(iter(sign._tokens))  # type: ignore[attr-defined]
    sign._tokens[url] = dataclasses.replace(token, life=3600)  # type: ignore[attr-defined]
    time.sleep(3.1)
    fetcher = Fetcher(tmp_path / "cache", sign=sign, policy=FetchPolicy(backoff_s=0.01))
    fetcher.asset(Asset(f"{blobs.base}/b.tif"))
    assert [line[3] for line in blobs.proxy.log].count("403") == 1
    assert len(blobs.issued) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_over_three_lives_of_a_token_loses_nothing(
    world: World, tiny_model: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in world.scenes.rglob("*.TIF"))
    life = 8.0
    with serve_blobs(life_s=life, rate=round(size / (8 * life))) as blobs:
        blobs.use(monkeypatch)
        blobs.upload(world.scenes)
        catalog = tmp_path / "catalog.json"
        items = items_of_bundles(world.scenes, blobs.base, checksums=False)
        catalog.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        began = time.monotonic()
        config = write_config(tmp_path, world, tiny_model, imagery__source=str(catalog))
        product = run(config).product
        took = time.monotonic() - began
    scenes = layer(product, "scenes")
    assert scenes["used"].all(), list(scenes["reason"])
    assert_same_results(product, reference, ("events", "patches", "units", "summary"))
    times = [when for when, _ in blobs.issued]
    print(
        f"{took:.0f} s, tokens of {life:g} s: {len(times)} requests, last {times[-1] - times[0]:.0f} s after the first"
    )
    assert times[-1] - times[0] > 2 * life
    assert took > 3 * life
    assert len(times) <= took / ((life - 1) / 2) + 1
    secrets = {value for _, token in blobs.issued for value in (token, parse_qs(token)["sig"][0])} | {"sig="}
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
