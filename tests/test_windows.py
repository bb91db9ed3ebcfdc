"""Windows of remote files over a real HTTP server: what is wanted comes, verified, once; reading the rest fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from fault_server import Answer, Asked, FaultServer, Plan, serve
from rasterio.errors import RasterioError
from rasterio.windows import Window
from test_catalog_fetch import LOCAL, QUICK, fetcher, scene_at, sha512_multihash, write_band
from test_catalog_s3 import bucket as bucket

from pipeline.catalog import cache as store
from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchFault
from pipeline.catalog.fetch import Brought, Fetcher
from pipeline.catalog.readers import Body, Reader, Span, Tally
from pipeline.catalog.scene import Asset
from pipeline.catalog.sparse import local_layout
from pipeline.catalog.windows import HEAD, Box, Reach, ranges
from pipeline.errors import SceneError

SIDE, TILE = 1000, 128
"""Pixels a side: 64 tiles, each some 25 kB."""
CORNER: Box = (0, 0, 100, 100)
MIDDLE: Box = (500, 500, 520, 650)
CODECS = ("deflate", "lzw", "zstd", "none")


def wanting(*boxes: Box) -> Reach:
    return lambda header: {"b": list(boxes)}


def write_cog(path: Path, compress: str = "deflate", seed: int = 0, side: int = SIDE) -> np.ndarray:
    write_band(path.with_suffix(".plain"), compress, seed, side)
    rasterio.shutil.copy(path.with_suffix(".plain"), path, driver="COG", COMPRESS=compress, BLOCKSIZE=TILE)
    path.with_suffix(".plain").unlink()
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    (tmp_path / "www").mkdir()
    return write_cog(tmp_path / "www" / "b.tif")


def bring(one: Fetcher, href: str, *boxes: Box, checksum: str | None = None) -> Brought:
    brought = one.band(scene_at(href, checksum), "red", wanting(*boxes))
    assert brought is not None
    return brought


def read(path: Path, box: Box) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1, window=Window(box[1], box[0], box[3] - box[1], box[2] - box[0])))


def assert_holds(path: Path, pixels: np.ndarray, *boxes: Box) -> None:
    for box in boxes:
        np.testing.assert_array_equal(read(path, box), pixels[box[0] : box[2], box[1] : box[3]])


def test_what_is_wanted_comes_once_and_the_rest_is_an_error(pixels: np.ndarray, tmp_path: Path) -> None:
    whole = (tmp_path / "www" / "b.tif").stat().st_size
    with serve(tmp_path / "www") as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache")
        brought = bring(one, href, CORNER, MIDDLE)
        asked = len(server.log)
        assert bring(one, href, MIDDLE, (0, 0, 1, 1)).hauls == ()
        assert len(server.log) == asked
    path = cached_path(href, tmp_path / "cache")
    assert_holds(path, pixels, CORNER, MIDDLE)
    for box in ((0, 0, SIDE, SIDE), (0, 0, 1, TILE + 1), (SIDE - 1, SIDE - 1, SIDE, SIDE)):
        with pytest.raises(RasterioError):
            read(path, box)
    record = brought.record
    assert (record.tiles, record.of) == ((0, 27, 28, 29, 35, 36, 37), 64) or len(record.tiles or ()) < 10
    assert brought.wanted == {"b": frozenset(record.tiles or ())}
    assert record.verified == "every tile's own checksum, header read twice"
    spent = sum(haul.bytes for haul in brought.hauls)
    assert sum(haul.requests for haul in brought.hauls) == asked
    assert record.bytes < spent < whole / 3
    assert path.stat().st_size == record.bytes < whole / 4


def test_of_what_is_wanted_later_only_the_missing_tiles_come(pixels: np.ndarray, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache")
        first = bring(one, href, CORNER)
        path = cached_path(href, tmp_path / "cache")
        with rasterio.open(path) as old:
            second = bring(one, href, CORNER, MIDDLE)
            # who has the old file open keeps a whole one
            np.testing.assert_array_equal(old.read(1, window=Window(0, 0, 100, 100)), pixels[:100, :100])
            with pytest.raises(RasterioError):
                old.read(1, window=Window(510, 510, 1, 1))
    assert_holds(path, pixels, CORNER, MIDDLE)
    brought = {tile for haul in second.hauls for tile in haul.tiles}
    assert brought == set(second.record.tiles or ()) - set(first.record.tiles or ())
    layout = local_layout(path)
    assert sum(haul.bytes for haul in second.hauls) < HEAD + 3000 + sum(layout.sizes[k] + 64 for k in brought)


@pytest.mark.parametrize("etag", [True, False])
def test_a_file_that_was_replaced_since_comes_anew_with_all_its_tiles(
    pixels: np.ndarray, tmp_path: Path, etag: bool
) -> None:
    with serve(tmp_path / "www", Plan(etag=etag)) as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache")
        bring(one, href, CORNER)
        other = write_cog(tmp_path / "www" / "b.tif", seed=1)
        bring(one, href, MIDDLE)
    assert_holds(cached_path(href, tmp_path / "cache"), other, CORNER, MIDDLE)


def replace_before(server: FaultServer, count: int, replace: Callable[[], object]) -> None:
    """Call `replace` before the answer to the request with this number."""
    source, seen = server.source, 0

    class Watched:
        def answer(self, asked: Asked) -> Answer:
            nonlocal seen
            seen += 1
            if seen == count:
                replace()
            return source.answer(asked)

    server.source = Watched()


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("etag", [True, False])
@pytest.mark.parametrize("when", [2, 3, 4, 5])
def test_a_file_that_changes_between_two_ranges_is_never_mixed(
    tmp_path: Path, compress: str, etag: bool, when: int
) -> None:
    (tmp_path / "www").mkdir()
    path, box = tmp_path / "www" / "b.tif", (700, 0, 701, 600)
    write_cog(path, compress)
    new = write_cog(tmp_path / "new.tif", compress, seed=1)
    with serve(tmp_path / "www", Plan(etag=etag)) as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache", policy=dataclasses.replace(QUICK, read_s=20))
        replace_before(server, when, lambda: (tmp_path / "new.tif").replace(path))
        brought = bring(one, href, box, MIDDLE)
        changed = len(server.log) >= when
    assert changed or (compress, etag, when) == ("deflate", True, 5), "which takes four requests"
    if not changed:
        return
    assert_holds(cached_path(href, tmp_path / "cache"), new, box, MIDDLE)
    assert (brought.record.version is not None) == etag


@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_never_rests_is_asked_for_whole_and_refused_in_the_end(
    pixels: np.ndarray, tmp_path: Path, told: bool
) -> None:
    with serve(tmp_path / "www", Plan(etag=told)) as server:
        href, source, count = server.url("b.tif"), server.source, 0

        class Restless:
            def answer(self, asked: Asked) -> Answer:
                nonlocal count
                count += 1
                found = source.answer(asked)
                return dataclasses.replace(found, body=found.body + bytes(count))

        server.source = Restless()
        with pytest.raises(SceneError, match=r"it is of|changed"):
            bring(fetcher(tmp_path / "cache"), href, MIDDLE)
        assert any(span is None for _, span, _ in server.log), "whole, as a last resort"
    assert not list((tmp_path / "cache").rglob("*.tif"))


def test_a_server_without_ranges_sends_the_whole_file_and_the_record_says_so(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    with serve(tmp_path / "www", Plan(ranges=False)) as server:
        href, content = server.url("b.tif"), (tmp_path / "www" / "b.tif").read_bytes()
        brought = bring(fetcher(tmp_path / "cache"), href, MIDDLE, checksum=sha512_multihash(content))
        assert bring(fetcher(tmp_path / "cache"), href, MIDDLE).hauls == ()
    assert brought.record.note.startswith("whole: the server knows no ranges")
    assert (brought.record.tiles, brought.record.verified) == (None, "sha512 (file:checksum)")
    assert cached_path(href, tmp_path / "cache").read_bytes() == content


def test_strips_come_whole(tmp_path: Path) -> None:
    path = tmp_path / "strips.tif"
    write_band(tmp_path / "plain.tif")
    rasterio.shutil.copy(tmp_path / "plain.tif", path, driver="GTiff", TILED="NO", COMPRESS="LZW")
    with serve(tmp_path) as server:
        brought = bring(fetcher(tmp_path / "cache"), server.url("strips.tif"), CORNER)
        assert brought.record.note == "whole: it has strips, not tiles"
        assert cached_path(server.url("strips.tif"), tmp_path / "cache").read_bytes() == path.read_bytes()


def test_whole_after_windows_and_windows_of_a_whole_file(pixels: np.ndarray, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache")
        bring(one, href, CORNER)
        assert one.asset(Asset(href)).tiles is None
        asked = len(server.log)
        assert bring(one, href, MIDDLE).record.tiles is None
        assert len(server.log) == asked
    assert cached_path(href, tmp_path / "cache").read_bytes() == (tmp_path / "www" / "b.tif").read_bytes()


def test_a_damaged_file_of_windows_is_fetched_again(pixels: np.ndarray, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        href, one = server.url("b.tif"), fetcher(tmp_path / "cache")
        bring(one, href, CORNER)
        path = cached_path(href, tmp_path / "cache")
        sound = path.read_bytes()
        for damage in (sound[:-1], sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:], b""):
            path.write_bytes(damage)
            bring(one, href, CORNER)
            assert_holds(path, pixels, CORNER)


def test_a_truncated_or_missing_file_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "www" / "b.tif"
    path.write_bytes(path.read_bytes()[:-100])
    with serve(tmp_path / "www") as server:
        with pytest.raises(SceneError, match=r"b\.tif: truncated: it has \d+ bytes"):
            bring(fetcher(tmp_path / "cache"), server.url("b.tif"), CORNER)
        with pytest.raises(SceneError, match=r"gone\.tif: the server answers 404"):
            bring(fetcher(tmp_path / "cache"), server.url("gone.tif"), CORNER)
    assert not list((tmp_path / "cache").rglob("*.tif"))
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_a_token_that_runs_out_between_two_ranges_is_replaced(pixels: np.ndarray, tmp_path: Path) -> None:
    token, anews = "t0", 0

    def sign(href: str, anew: bool) -> str:
        nonlocal token, anews
        anews += anew
        token = f"t{anews}"
        return f"{href}?sig={token}"

    with serve(tmp_path / "www", Plan(token="t0")) as server:
        href = server.url("b.tif")
        for count in (2, 4):
            replace_before(server, count, lambda: setattr(server.plan, "token", f"t{anews + 1}"))
        bring(fetcher(tmp_path / "cache", sign=sign), href, CORNER, MIDDLE)
        assert anews
        assert_holds(cached_path(href, tmp_path / "cache"), pixels, CORNER, MIDDLE)
    assert not any("sig=" in p.read_text() for p in (tmp_path / "cache").rglob("*.json"))


def test_windows_of_an_object_in_a_bucket(bucket: str, pixels: np.ndarray, tmp_path: Path) -> None:
    s3 = boto3.client("s3", endpoint_url=bucket)
    put = {"Bucket": "scenes", "Key": "a/b.tif"}
    s3.put_object(**put, Body=(tmp_path / "www" / "b.tif").read_bytes())
    one, href = Fetcher(tmp_path / "cache", policy=QUICK), "s3://scenes/a/b.tif"
    brought = bring(one, href, CORNER)
    assert brought.record.tiles
    assert brought.record.version
    assert_holds(cached_path(href, tmp_path / "cache"), pixels, CORNER)
    other = write_cog(tmp_path / "www" / "b.tif", seed=1)
    s3.put_object(**put, Body=(tmp_path / "www" / "b.tif").read_bytes())
    bring(one, href, MIDDLE)
    assert_holds(cached_path(href, tmp_path / "cache"), other, CORNER, MIDDLE)


def test_runs_that_share_a_cache_add_their_windows(pixels: np.ndarray, tmp_path: Path) -> None:
    boxes: list[Box] = [(k, k, k + 40, k + 40) for k in range(0, SIDE - 40, 120)]
    with serve(tmp_path / "www") as server, ThreadPoolExecutor(8) as pool:
        href = server.url("b.tif")
        list(pool.map(lambda box: bring(fetcher(tmp_path / "cache"), href, box), boxes))
    assert_holds(cached_path(href, tmp_path / "cache"), pixels, *boxes)


def test_neighbours_in_the_file_come_with_one_request(pixels: np.ndarray, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        bring(fetcher(tmp_path / "cache"), server.url("b.tif"), (0, 0, SIDE, SIDE))
        asked = [span for _, span, _ in server.log]
    assert len(asked) == 3, "the header, all tiles, the header once more"
    layout = local_layout(cached_path(server.url("b.tif"), tmp_path / "cache"))
    groups = ranges(layout, range(64), gap=0)
    assert sorted(k for group in groups for k in group) == list(range(64))


@pytest.mark.parametrize("seed", range(6))
def test_a_server_that_fails_in_every_way_gives_right_tiles_or_a_reason(
    pixels: np.ndarray, tmp_path: Path, seed: int
) -> None:
    policy = dataclasses.replace(QUICK, attempts=12, read_s=0.3, low_speed_s=0.2)
    with serve(tmp_path / "www", Plan(seed=seed, share=0.06, hang_s=0.4)) as server:
        href = server.url("b.tif")
        with suppress(SceneError):
            bring(fetcher(tmp_path / "cache", policy=policy), href, CORNER, MIDDLE)
    path = cached_path(href, tmp_path / "cache")
    assert path.is_file() == (store.find(href, tmp_path / "cache") is not None)
    if path.is_file():
        assert_holds(path, pixels, CORNER, MIDDLE)
    else:
        assert seed not in (0, 1, 2), "most come through"


# ---------------------------------------------------------------------------------------------- corruption


def damaged(content: bytes, first: int, end: int, how: str, random: np.random.Generator) -> bytes:
    """Bytes [first, end) of a file as they come when something goes wrong on the way; the length stays."""
    true = content[first:end]
    at, length = int(random.integers(0, len(true))), int(random.integers(1, 4096))
    if how == "flip":
        return true[:at] + bytes([true[at] ^ int(random.integers(1, 256))]) + true[at + 1 :]
    if how == "hole":
        return true[:at] + bytes(len(true[at : at + length])) + true[at + length :]
    if how == "noise":
        return true[:at] + random.bytes(len(true[at : at + length])) + true[at + length :]
    if how == "wrong range":
        start = int(random.integers(0, len(content)))
        return (content[start:] + content)[: len(true)]
    return true[:at] + bytes(len(true) - at)


class BadWay(Reader):
    """A reader of bytes in memory; a share of its answers is damaged without any sign of it."""

    def __init__(self, versions: list[bytes], how: str, seed: int, etag: bool) -> None:
        self.versions, self.how, self.etag = versions, how, etag
        self.random, self.served = np.random.default_rng(seed), 0

    def span(self, href: str, first: int, end: int, version: str | None, tally: Tally) -> Span:
        tally.requests += 1
        self.served += 1
        # a stale object: an answer comes from a cache that holds an older version
        stale = self.how == "stale" and self.random.random() < 0.3
        content = self.versions[1 if stale else 0]
        name = hashlib.sha256(content).hexdigest() if self.etag else None
        got = content[first:end]
        if self.how != "stale" and got and self.random.random() < 0.3:
            got = damaged(content, first, min(end, len(content)), self.how, self.random)
        tally.bytes += len(got)
        return Span(got, len(content), name)

    @contextmanager
    def open(self, href: str, start: int, version: str | None, tally: Tally) -> Iterator[Body]:
        raise AssertionError("whole files are another test's")
        yield


def accepts(tmp_path: Path, versions: list[bytes], pixels: list[np.ndarray], how: str, seed: int) -> bool | None:
    """Whether windows were accepted; None where the whole file was asked for instead. Fails on a wrong pixel."""
    href, cache = "http://archive/b.tif", tmp_path / str(seed)
    one = Fetcher(cache, LOCAL, policy=QUICK)
    one._readers["http"] = BadWay(versions, how, seed, etag=seed % 2 == 0)
    boxes: list[Box] = [(150, 10, 160, 200), (20, 250, 30, 255)]
    try:
        one.bring(Asset(href), wanting(*boxes))
    except FetchFault:
        return False
    except AssertionError:
        return None
    got = [read(cached_path(href, cache), box) for box in boxes]
    for version in pixels:
        if all(np.array_equal(g, version[b[0] : b[2], b[1] : b[3]]) for g, b in zip(got, boxes, strict=True)):
            return True
    raise RuntimeError(f"wrong pixels accepted: {how}, seed {seed}")


@pytest.mark.parametrize("draws", [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("how", ["flip", "hole", "noise", "wrong range", "cut", "stale"])
def test_no_damaged_window_is_taken_for_a_whole_one(tmp_path: Path, compress: str, how: str, draws: int) -> None:
    (tmp_path / "www").mkdir()
    pixels = [write_cog(tmp_path / "www" / f"{k}.tif", compress, seed=k, side=260) for k in range(2)]
    versions = [(tmp_path / "www" / f"{k}.tif").read_bytes() for k in range(2)]
    ended = [accepts(tmp_path / how, versions, pixels, how, seed) for seed in range(draws)]
    assert any(ended), "some come through"


def test_the_damage_of_that_test_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without verification the same faults give wrong pixels, so that the test above can fail."""
    from pipeline.catalog import windows

    (tmp_path / "www").mkdir()
    pixels = [write_cog(tmp_path / "www" / f"{k}.tif", "lzw", seed=k, side=260) for k in range(2)]
    versions = [(tmp_path / "www" / f"{k}.tif").read_bytes() for k in range(2)]

    monkeypatch.setattr(windows, "_fetch_again", lambda *_: None)
    seeds = iter(range(30))
    with pytest.raises((RuntimeError, RasterioError)):
        list(map(lambda seed: accepts(tmp_path / "bad", versions, pixels, "flip", seed), seeds))
    assert next(seeds) < 30


# ---------------------------------------------------------------------------------------------- kill -9

_CHILD = """
import sys, json
from pathlib import Path
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Asset
print("go", flush=True)
for k in range(40):
    box = (0, 0, 60 * k + 1, 60 * k + 1)
    Fetcher(Path(sys.argv[1]), ("127.0.0.1",)).bring(Asset(sys.argv[2]), lambda header: {"b": [box]})
    print(k, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_fifty_times_while_windows_come_every_entry_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    pixels = write_cog(tmp_path / "www" / "b.tif", side=2400)
    random, cache, kills, found = np.random.default_rng(0), tmp_path / "cache", 0, 0
    with serve(tmp_path / "www") as server:
        href = server.url("b.tif")
        for _ in range(50):
            with subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(cache), href], stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == "go\n"
                time.sleep(float(random.uniform(0, 1.0)))
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            record = store.find(href, cache)
            if record is not None and record.tiles:
                found += 1
                side = TILE * (1 + max(k // 19 for k in record.tiles))
                assert_holds(cached_path(href, cache), pixels, (0, 0, min(side, 2400), min(side, 2400)))
            if found % 3 == 2:
                cached_path(href, cache).with_suffix(".json").unlink(missing_ok=True)
        bring(fetcher(cache), href, (0, 0, 2400, 2400))
    assert_holds(cached_path(href, cache), pixels, (0, 0, 2400, 2400))
    assert kills > 40
    assert found > 5


def test_the_record_of_windows(pixels: np.ndarray, tmp_path: Path) -> None:
    with serve(tmp_path / "www") as server:
        bring(fetcher(tmp_path / "cache"), server.url("b.tif"), (0, 0, 1, 1))
        path = cached_path(server.url("b.tif"), tmp_path / "cache")
    tree = json.loads(path.with_suffix(".json").read_text())
    assert (tree["tiles"], tree["of"], tree["note"]) == ([0], 64, "")
    assert tree["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
