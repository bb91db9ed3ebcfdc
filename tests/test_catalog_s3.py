"""Assets in an S3 bucket, from moto's S3 server on loopback: whole files, resumed ones, and who pays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pytest_httpserver import HTTPServer
from test_catalog_fetch import QUICK, scene_at, sha512_multihash, write_band

from pipeline.catalog.cache import cached_path
from pipeline.catalog.fetch import Fetcher
from pipeline.errors import SceneError


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment(monkeypatch, f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="scenes")
    yield f"http://{host}:{port}"
    server.stop()


def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for key, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "CANARY", "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)


def test_a_file_of_a_bucket_comes_whole(bucket: str, tmp_path: Path) -> None:
    band = write_band(tmp_path / "b.tif", side=900)
    boto3.client("s3", endpoint_url=bucket).put_object(Bucket="scenes", Key="a/b.tif", Body=band)
    scene = scene_at("s3://scenes/a/b.tif")
    record = Fetcher(tmp_path / "cache", policy=QUICK).scene(scene, ("red",))["red"]
    assert cached_path(scene.assets["red"].href, tmp_path / "cache").read_bytes() == band
    assert record.verified == "every tile's own checksum, header read twice"
    told = scene_at("s3://scenes/a/b.tif", sha512_multihash(band))
    assert Fetcher(tmp_path / "other", policy=QUICK).scene(told, ("red",))["red"].verified == "sha512 (file:checksum)"


def test_a_file_that_is_not_there_and_a_bucket_that_is_not(bucket: str, tmp_path: Path) -> None:
    for href in ("s3://scenes/none.tif", "s3://nowhere/b.tif"):
        with pytest.raises(SceneError, match="the bucket holds no such file") as caught:
            Fetcher(tmp_path / "cache", policy=QUICK).scene(scene_at(href), ("red",))
        assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("pays", [True, False])
def test_the_reader_pays_only_where_the_configuration_agrees(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    environment(monkeypatch, httpserver.url_for("").rstrip("/"))
    httpserver.expect_request("/scenes/b.tif").respond_with_data("no", status=403)
    with pytest.raises(SceneError, match=r"refuses the credentials of the environment"):
        Fetcher(tmp_path / "cache", requester_pays=pays, policy=QUICK).scene(scene_at("s3://scenes/b.tif"), ("red",))
    sent = [request.headers.get("x-amz-request-payer") for request, _ in httpserver.log]
    assert sent
    assert set(sent) == {"requester" if pays else None}
