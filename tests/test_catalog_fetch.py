"""Fetching over a real HTTP server on loopback that fails in every way: verified files or none."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from fault_server import FAULTS, Plan, serve
from pytest_httpserver import HTTPServer
from rasterio.transform import from_origin

from pipeline.catalog import cache as store
from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchPolicy, retry_after
from pipeline.catalog.fetch import Fetcher, localised
from pipeline.catalog.scene import Asset, Scene
from pipeline.catalog.verify import confirm, of_multihash
from pipeline.errors import SceneError

LOCAL = ("localhost", "127.0.0.1")
QUICK = FetchPolicy(attempts=8, deadline_s=20, backoff_s=0.01, most_backoff_s=0.1, read_s=1.0, low_speed_s=0.3)


def write_band(path: Path, compress: str = "deflate", seed: int = 0, side: int = 300) -> bytes:
    values = np.random.default_rng(seed).integers(7000, 9000, (side, side), np.uint16)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": "EPSG:32748", "nodata": 0}
    place = {"width": side, "height": side, "transform": from_origin(500_010, 9_900_015, 30, 30)}
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": compress}
    with rasterio.open(path, "w", **profile, **place, **tiles) as dataset:
        dataset.write(values, 1)
    return path.read_bytes()


@pytest.fixture
def band(tmp_path: Path) -> bytes:
    (tmp_path / "www").mkdir()
    return write_band(tmp_path / "www" / "b.tif")


def scene_at(href: str, checksum: str | None = None) -> Scene:
    assets = {"red": Asset(href, checksum=checksum)}
    return Scene("S1", datetime(2020, 1, 1, tzinfo=UTC), "landsat-8", 1.0, 1, 1, "POINT (0 0)", assets)


def fetcher(cache: Path, **changes: object) -> Fetcher:
    return Fetcher(cache, **{"allow_hosts": LOCAL, "policy": QUICK, **changes})  # type: ignore[arg-type]


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def sha512_multihash(content: bytes) -> str:
    return "1340" + hashlib.sha512(content).hexdigest()


def test_a_file_comes_once_and_is_whole(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        scene, one = scene_at(server.url("b.tif")), fetcher(tmp_path / "cache")
        record = one.scene(scene, ("red", "absent"))["red"]
        asked = len(server.log)
        assert one.scene(scene, ("red",))["red"] == record
        assert len(server.log) == asked
    assert Path(localised(scene, tmp_path / "cache").assets["red"].href).read_bytes() == band
    assert (record.bytes, record.sha256) == (len(band), hashlib.sha256(band).hexdigest())
    assert record.verified == "every tile's own checksum, header read twice"


def test_local_files_stay_where_they_are(tmp_path: Path) -> None:
    scene = scene_at(str(tmp_path / "x.tif"))
    assert localised(scene, tmp_path / "cache") == scene
    assert fetcher(tmp_path / "cache").scene(scene, ("red",)) == {}


def test_the_catalogs_checksum_decides(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        good = scene_at(server.url("b.tif"), sha512_multihash(band))
        assert fetcher(tmp_path / "cache").scene(good, ("red",))["red"].verified == "sha512 (file:checksum)"
        assert len(server.log) == 1, "a checksum makes a second reading needless"
        wrong = scene_at(server.url("b.tif") + "?other", sha512_multihash(band + b"x"))
        with pytest.raises(SceneError, match=r"differ from the archive's sha512"):
            fetcher(tmp_path / "cache2").scene(wrong, ("red",))
    assert leftovers(tmp_path / "cache2") == []


@pytest.mark.parametrize("compress", ["lzw", "zstd", "none"])
def test_what_carries_no_checksum_is_read_twice(tmp_path: Path, compress: str) -> None:
    write_band(tmp_path / "b.tif", compress)
    with serve(tmp_path) as server:
        record = fetcher(tmp_path / "cache").scene(scene_at(server.url("b.tif")), ("red",))["red"]
    assert record.verified == "read twice"


def test_a_server_that_tells_an_md5_is_believed(band: bytes, tmp_path: Path) -> None:
    told = base64.b64encode(hashlib.md5(band).digest()).decode()
    with serve(tmp_path / "www", Plan(headers={"Content-MD5": told})) as server:
        record = fetcher(tmp_path / "cache").scene(scene_at(server.url("b.tif")), ("red",))["red"]
    assert record.verified == "md5 (content-md5)"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_got_over(band: bytes, tmp_path: Path, fault: str) -> None:
    # the first answer goes wrong for sure; of an expired token the second one is good
    with serve(tmp_path / "www", Plan(share=1.0, faults=(fault,), most=1)) as server:
        scene = scene_at(server.url("b.tif"))
        record = fetcher(tmp_path / "cache").scene(scene, ("red",))["red"]
        assert server.thrown == 1
    assert cached_path(scene.assets["red"].href, tmp_path / "cache").read_bytes() == band
    assert record.bytes == len(band)


def test_a_download_that_broke_off_goes_on(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www", Plan(share=1.0, faults=("cut",), most=1)) as server:
        scene = scene_at(server.url("b.tif"), sha512_multihash(band))
        fetcher(tmp_path / "cache").scene(scene, ("red",))
        assert [asked for _, asked, _ in server.log] == [None, f"bytes={len(band) // 2 - 1}-"]


def test_a_part_that_is_whole_already_is_taken(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        scene = scene_at(server.url("b.tif"))
        fetcher(tmp_path / "cache").scene(scene, ("red",))
        # as a process leaves it that was killed between the download and its commit
        path = cached_path(scene.assets["red"].href, tmp_path / "cache")
        version = json.loads(path.with_suffix(".json").read_text())["version"]
        path.rename(path.with_suffix(".part"))
        path.with_suffix(".part.json").write_text(json.dumps({"version": version}))
        path.with_suffix(".json").unlink()
        server.log.clear()
        fetcher(tmp_path / "cache").scene(scene, ("red",))
        assert server.log[0][1] == f"bytes={len(band) - 1}-"
    assert path.read_bytes() == band


def test_a_file_replaced_between_two_attempts_is_begun_anew(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www", Plan(share=1.0, faults=("cut",), most=1)) as server:
        scene = scene_at(server.url("b.tif"))
        one = fetcher(tmp_path / "cache", policy=dataclasses.replace(QUICK, attempts=1))
        with pytest.raises(SceneError, match=r"failed|cut off"):
            one.scene(scene, ("red",))
        new = write_band(tmp_path / "www" / "b.tif", seed=1)
        fetcher(tmp_path / "cache").scene(scene, ("red",))
    assert new != band
    assert cached_path(scene.assets["red"].href, tmp_path / "cache").read_bytes() == new


@pytest.mark.parametrize(
    ("fault", "told"),
    [("html", "no TIFF"), ("503", "503"), ("expired", "403"), ("hang", "connection"), ("drip", "slow")],
)
def test_a_server_that_never_recovers_is_given_up_with_its_reason(
    band: bytes, tmp_path: Path, fault: str, told: str
) -> None:
    policy = dataclasses.replace(QUICK, attempts=2)
    with (
        serve(tmp_path / "www", Plan(share=1.0, faults=(fault,))) as server,
        pytest.raises(SceneError, match=told),
    ):
        fetcher(tmp_path / "cache", policy=policy).scene(scene_at(server.url("b.tif")), ("red",))
    assert [name for name in leftovers(tmp_path / "cache") if ".part" not in name] == []


def test_a_missing_file_is_asked_for_once(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        with pytest.raises(SceneError, match=r"gone\.tif: the server answers 404"):
            fetcher(tmp_path / "cache").scene(scene_at(server.url("gone.tif")), ("red",))
        assert len(server.log) == 1


def test_the_patience_a_server_asks_for_is_kept_or_refused(band: bytes, tmp_path: Path) -> None:
    assert retry_after("7") == 7
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None

    policy = dataclasses.replace(QUICK, deadline_s=0.5)
    with serve(tmp_path / "www", Plan(share=1.0, faults=("429",))) as server:
        began = time.monotonic()
        with pytest.raises(SceneError, match="429"):
            fetcher(tmp_path / "cache", policy=dataclasses.replace(policy, attempts=1000)).scene(
                scene_at(server.url("b.tif")), ("red",)
            )
        assert time.monotonic() - began < 30


def test_a_token_that_ran_out_is_replaced_once(band: bytes, tmp_path: Path) -> None:
    asked: list[bool] = []

    def sign(href: str, anew: bool) -> str:
        asked.append(anew)
        return f"{href}?sig={'new' if any(asked) else 'old'}"

    with serve(tmp_path / "www", Plan(token="new")) as server:
        scene = scene_at(server.url("b.tif"), sha512_multihash(band))
        fetcher(tmp_path / "cache", sign=sign).scene(scene, ("red",))
        assert asked == [False, True, False]
        server.plan.token = "CANARY"
        with pytest.raises(SceneError, match="403") as caught:
            fetcher(tmp_path / "other", sign=sign).scene(scene, ("red",))
    assert "sig=" not in str(caught.value)
    assert caught.value.__cause__ is None
    texts = [p.read_text() for p in (tmp_path / "cache").rglob("*.json")]
    assert texts
    assert not any("sig=" in text for text in texts), "what is stored is unsigned"


def test_hosts_of_the_own_network_need_permission_also_after_a_redirect(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        with pytest.raises(SceneError, match=r"imagery\.allow_hosts"):
            fetcher(tmp_path / "cache", allow_hosts=()).scene(scene_at(server.url("b.tif")), ("red",))
        assert server.log == [], "the server must not even be asked"


def test_a_redirect_is_judged_too(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/away.tif").respond_with_data(
        b"", status=302, headers={"Location": f"http://127.0.0.2:{httpserver.port}/b.tif"}
    )
    with pytest.raises(SceneError, match=r"127\.0\.0\.2"):
        fetcher(tmp_path).scene(scene_at(httpserver.url_for("/away.tif")), ("red",))
    httpserver.expect_request("/round.tif").respond_with_data(b"", status=302, headers={"Location": "/round.tif"})
    with pytest.raises(SceneError, match="redirected more than 5"):
        fetcher(tmp_path).scene(scene_at(httpserver.url_for("/round.tif")), ("red",))


def test_no_href_chooses_its_name_in_the_cache(tmp_path: Path) -> None:
    for href in ("http://a/../../etc/passwd", "https://a/%2e%2e/x", "http://a/b\0c", "s3://a/../x"):
        assert cached_path(href, tmp_path).resolve().is_relative_to(tmp_path)


def test_a_bucket_whose_readers_pay_needs_consent(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"imagery\.requester_pays"):
        fetcher(tmp_path).scene(scene_at("s3://usgs-landsat/b.tif"), ("red",))


def test_a_cached_file_that_was_damaged_is_fetched_again(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        scene, one = scene_at(server.url("b.tif")), fetcher(tmp_path / "cache")
        one.scene(scene, ("red",))
        path = cached_path(scene.assets["red"].href, tmp_path / "cache")
        for damage in (band[:5000], band[:5000] + b"\0" + band[5001:], b""):
            path.write_bytes(damage)
            one.scene(scene, ("red",))
            assert path.read_bytes() == band
        path.with_suffix(".json").unlink()
        one.scene(scene, ("red",))
        assert path.with_suffix(".json").is_file()


def test_the_least_recently_used_file_goes_first_and_pinned_ones_stay(tmp_path: Path) -> None:
    names = ["a.tif", "b.tif", "c.tif"]
    sizes = {}
    (tmp_path / "www").mkdir()
    for k, name in enumerate(names):
        sizes[name] = len(write_band(tmp_path / "www" / name, seed=k))
    cache = tmp_path / "cache"
    with serve(tmp_path / "www") as server:
        hrefs = [server.url(name) for name in names]
        for k, href in enumerate(hrefs):
            fetcher(cache).scene(scene_at(href), ("red",))
            os.utime(cached_path(href, cache).with_suffix(".json"), (1000 + k, 1000 + k))
    store.hold(hrefs[:1], cache)
    assert store.evict(cache, sizes["a.tif"] + sizes["c.tif"]) == sizes["b.tif"]
    assert store.find(hrefs[0], cache)
    assert store.find(hrefs[1], cache) is None
    assert list((cache / "pins").glob("*.json"))
    store.release()
    # nobody holds it any more, and a use has made the first one the newest
    assert store.evict(cache, sizes["a.tif"]) == sizes["c.tif"]
    assert store.find(hrefs[0], cache)
    assert not list((cache / "pins").glob("*.json"))


_CHILD = """
import sys
from pathlib import Path
from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Asset
print("go", flush=True)
Fetcher(Path(sys.argv[1]), ("127.0.0.1",)).asset(Asset(sys.argv[2]))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_fifty_times_in_a_download_no_damaged_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    whole = write_band(tmp_path / "www" / "b.tif", side=2600)
    random, cache, kills = np.random.default_rng(0), tmp_path / "cache", 0
    with serve(tmp_path / "www") as server:
        href = server.url("b.tif")
        for _ in range(50):
            command = [sys.executable, "-c", _CHILD, str(cache), href]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == "go\n"
                time.sleep(float(random.uniform(0, 0.25)))
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            record = store.find(href, cache)
            if record is not None:
                assert cached_path(href, cache).read_bytes() == whole
                # begin the next round from nothing
                cached_path(href, cache).with_suffix(".json").unlink()
        fetcher(cache).scene(scene_at(href), ("red",))
    assert kills > 20
    assert cached_path(href, cache).read_bytes() == whole


def test_the_record_says_what_and_how(band: bytes, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        scene = scene_at(server.url("b.tif"))
        fetcher(tmp_path / "cache").scene(scene, ("red",))
        tree = json.loads(cached_path(scene.assets["red"].href, tmp_path / "cache").with_suffix(".json").read_text())
    assert tree["href"] == scene.assets["red"].href
    assert set(tree) == {"href", "bytes", "sha256", "verified", "version", "tiles", "of", "layout", "note"}
    assert (tree["tiles"], tree["of"], tree["note"]) == (None, None, "")


def _damage(content: bytes, how: str, random: np.random.Generator) -> bytes:
    at, length = int(random.integers(0, len(content))), int(random.integers(1, 4096))
    if how == "flip":
        return content[:at] + bytes([content[at] ^ int(random.integers(1, 256))]) + content[at + 1 :]
    if how == "hole":
        return content[:at] + bytes(len(content[at : at + length])) + content[at + length :]
    if how == "noise":
        return content[:at] + random.bytes(len(content[at : at + length])) + content[at + length :]
    if how == "shifted":
        return content[:at] + content[max(at - 7, 0) : -7]
    return content[: max(at, 8)]


@pytest.mark.parametrize("draws", [24, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "none"])
@pytest.mark.parametrize("how", ["flip", "hole", "noise", "shifted", "cut"])
def test_no_damaged_file_is_taken_for_a_whole_one(tmp_path: Path, compress: str, how: str, draws: int) -> None:
    cog = tmp_path / "cog.tif"
    write_band(tmp_path / "plain.tif", compress, side=200)
    rasterio.shutil.copy(tmp_path / "plain.tif", cog, driver="COG", COMPRESS=compress, BLOCKSIZE=128)
    true, random, accepted = cog.read_bytes(), np.random.default_rng(0), 0
    with rasterio.open(cog) as dataset:
        pixels = dataset.read(1)
    known = of_multihash(sha512_multihash(true))
    got = tmp_path / "got.tif"

    def again(first: int, end: int, size: int) -> bytes:
        if size != len(true):
            raise ValueError("another size")
        return true[first:end]

    for k in range(draws):
        damaged = _damage(true, how, random)
        got.write_bytes(damaged)
        try:
            # every other one without a checksum: then a second look at the archive is all there is
            confirm(got, known if k % 2 else None, again)
        except ValueError:
            assert damaged != true
            continue
        accepted += 1
        with rasterio.open(got) as dataset:
            np.testing.assert_array_equal(dataset.read(1), pixels)
    assert accepted < draws / 2
