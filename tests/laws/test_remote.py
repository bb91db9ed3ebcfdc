"""Scenes behind a STAC API (pgstac) and a web server (nginx) that fail: the same product, or a listed loss.

The faults are those of a program in front of both servers.

CLEARCAUSE_FAULT_SEEDS sets how many seeds the slow laws take (200).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fault_server import FaultServer, Mounted, Plan, Upstream, serve
from run_samples import (
    CLEAR,
    CLOUD,
    PRODUCTS,
    World,
    assert_same_results,
    blobs,
    draw_world,
    layer,
    run,
    textures,
    write_bundle,
    write_config,
)
from stac_samples import found_scenes, item
from stac_server import StacServer, collection, serve_stac
from web_server import WebServer, serve_folder

from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.fetch import Fetcher
from pipeline.config import load_config
from pipeline.errors import SceneError
from pipeline.fetching import fetch_scenes
from pipeline.product.inspect import inspect_product
from pipeline.request import Request
from pipeline.steps import plan_run

READ = ("cache", "window")


def write_catalog(path: Path, world: World, base: str, checksums: bool = True) -> Path:
    features = [item(scene, world.scenes, base, checksums) for scene in found_scenes(world)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("checksums", [True, False])
def test_the_same_product_through_http(
    tmp_path: Path, world: World, tiny_model: Path, reference: Path, checksums: bool
) -> None:
    with serve(world.scenes) as server:
        catalog = write_catalog(tmp_path / "catalog.json", world, server.url(""), checksums)
        config = write_config(
            tmp_path, world, tiny_model, imagery={"source": str(catalog), "allow_hosts": ["127.0.0.1"]}
        )
        product = run(config).product
        asked = len(server.log)
        # everything is in the cache now: a new plan needs the network no more
        run(config, "grid.block=128")
        assert len(server.log) == asked
    assert_same_results(product, reference, ("events", "patches", "units", "summary"))


QUICK = FetchPolicy(
    attempts=8, deadline_s=20, backoff_s=0.01, most_backoff_s=0.05, connect_s=2, read_s=0.4, low_speed_s=0.3
)
"""The policy of a run with its waits shortened, hangs above all: a server here hangs for half a second."""
THIRD = "LC08_L2SP_231062_20230613_20230622_02_T1"
EVERY = frozenset((*PRODUCTS, THIRD))
SEEDS = int(os.environ.get("CLEARCAUSE_FAULT_SEEDS", "200"))
BANDS = (*("blue", "green", "red", "nir08", "swir16", "swir22"), "qa_pixel")
SAME_PRODUCT = ("events", "patches", "units", "summary")
HARSH, MIXED = 0.1, 0.05
"""Share of the answers that each of nine faults takes: nine of ten answers go wrong, or somewhat less than five."""


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """96 x 96 pixels, three scenes, of which a run takes two: the third is at hand when one of them is lost."""
    world = draw_world(tmp_path_factory.mktemp("small"), blobs(3, (96, 96)))
    qa = np.full((96, 96), CLEAR, np.uint16)
    qa[:50, 20:] = CLOUD
    write_bundle(world.scenes / THIRD, THIRD, textures(9, (96, 96)), qa)
    return world


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy of the run is QUICK: nobody hands one in from outside."""
    monkeypatch.setattr(FetchPolicy.__init__, "__defaults__", dataclasses.astuple(QUICK))


@dataclasses.dataclass
class Archive:
    """A STAC API and a web server with the scenes of a world; a collection for each set of them that was asked for."""

    world: World
    stac: StacServer
    web: WebServer
    collections: set[str] = dataclasses.field(default_factory=set)

    def collection(self, scenes: frozenset[str]) -> str:
        name = "-".join(sorted(scenes)) or "none"
        if name not in self.collections:
            root, base = self.world.scenes, f"{self.web.url}/"
            # of every second scene the catalog tells checksums
            found = [item(s, root, base, s.id == PRODUCTS[0]) for s in found_scenes(self.world) if s.id in scenes]
            self.stac.load(collection(name), found)
            self.collections.add(name)
        return name

    @contextmanager
    def behind(self, plan: Plan) -> Iterator[FaultServer]:
        """Put the faults of `plan` in front of both."""
        with serve(Mounted({}), plan) as server:
            shown = {self.stac.url: server.url("stac"), self.web.url: server.url("files")}
            server.source = Mounted({"stac": Upstream(self.stac.url, shown), "files": Upstream(self.web.url)})
            yield server

    def config(self, folder: Path, model: Path, server: FaultServer, read: str, **imagery: object) -> Path:
        imagery = {"collections": [self.collection(EVERY)], **imagery}
        imagery |= {"source": server.url("stac"), "allow_hosts": ["127.0.0.1"], "cache": str(folder / "cache")}
        imagery |= {"read": read, "max_scenes": 2}
        return write_config(folder, self.world, model, imagery=imagery, grid__block=256, output__chips=0)


@pytest.fixture(scope="module")
def archive(small_world: World) -> Iterator[Archive]:
    with serve_stac() as stac, serve_folder(small_world.scenes) as web:
        yield Archive(small_world, stac, web)


class Clean:
    """Products of an archive without faults, by the scenes it has; each is made once."""

    def __init__(self, folder: Path, archive: Archive, model: Path) -> None:
        self.folder, self.archive, self.model = folder, archive, model
        self.made: dict[frozenset[str], Path] = {}

    def __getitem__(self, kept: frozenset[str]) -> Path:
        if kept not in self.made:
            with self.archive.behind(Plan()) as server:
                folder, names = self.folder / str(len(self.made)), [self.archive.collection(kept)]
                config = self.archive.config(folder, self.model, server, "cache", collections=names)
                self.made[kept] = run(config).product
        return self.made[kept]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, archive: Archive, tiny_model: Path) -> Clean:
    return Clean(tmp_path_factory.mktemp("clean"), archive, tiny_model)


def longest(policy: FetchPolicy) -> float:
    """Seconds within which any run of three scenes ends, by the policy alone; a minute more for computing.

    A request is repeated until the deadline, and the last repetition may take as long as a body may. A file takes a
    request to come and one to be confirmed, both once more where it does not verify. Eight come at once, four from one
    host.
    """
    request = 2 * policy.deadline_s + policy.connect_s + policy.read_s
    return request + 3 * 7 / policy.per_host * 2 * 2 * request + 60


def listed(product: Path) -> dict[str, tuple[bool, str]]:
    """Each scene of a product: whether it was used, and what is said about it."""
    rows = layer(product, "scenes")
    return {
        key: (bool(used), reason if isinstance(reason, str) else "")
        for key, used, reason in zip(rows["scene_id"], rows["used"], rows["reason"], strict=True)
    }


def check_run(folder: Path, clean: Clean, plan: Plan, read: str) -> str:
    """Run against a failing archive and judge how it ended: complete or incomplete."""
    began = time.monotonic()
    with clean.archive.behind(plan) as server:
        product = run(clean.archive.config(folder, clean.model, server, read)).product
    assert time.monotonic() - began < longest(QUICK)
    scenes = listed(product)
    assert scenes.keys() == EVERY, "every scene is listed"
    lost = frozenset(key for key, (used, told) in scenes.items() if not used and re.match(r"LC\S+\.TIF: \S", told))
    same = clean[EVERY - lost]
    assert_same_results(product, same, SAME_PRODUCT)
    for name in ("drivers.tif", "confidence.tif"):
        assert (product / name).read_bytes() == (same / name).read_bytes()
    assert {key: told for key, told in listed(product).items() if key not in lost} == listed(same)
    return "incomplete" if lost else "complete"


def check_seeds(folder: Path, clean: Clean, seeds: range, share: float, read: str) -> Counter[str]:
    ends: Counter[str] = Counter()
    slowest = 0.0
    for seed in seeds:
        began = time.monotonic()
        end = check_run(folder / str(seed), clean, Plan(seed=seed, share=share, hang_s=0.5), read)
        took = time.monotonic() - began
        print(f"seed {seed}: {end} in {took:.1f} s", flush=True)
        ends[end], slowest = ends[end] + 1, max(slowest, took)
        shutil.rmtree(folder / str(seed))
    print(f"share {share}, read {read}: {dict(ends)}, the slowest took {slowest:.1f} s")
    return ends


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("read", "seeds"), [("window", range(2)), ("cache", range(1))])
def test_runs_end_complete_or_with_every_loss_listed(tmp_path: Path, clean: Clean, read: str, seeds: range) -> None:
    check_seeds(tmp_path / "mixed", clean, seeds, MIXED, read)
    check_seeds(tmp_path / "harsh", clean, range(1), HARSH, read)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("share", [MIXED, HARSH])
def test_two_hundred_runs_end_complete_or_with_every_loss_listed(
    tmp_path: Path, clean: Clean, share: float, read: str
) -> None:
    ends = check_seeds(tmp_path, clean, range(SEEDS), share, read)
    # with nine of ten answers wrong a run that loses nothing is rare
    assert ends["incomplete" if share == HARSH else "complete"] > 0


@pytest.mark.parametrize("read", READ)
def test_the_record_says_how_each_file_was_verified(
    tmp_path: Path, archive: Archive, tiny_model: Path, read: str
) -> None:
    with archive.behind(Plan()) as server:
        config = archive.config(tmp_path, tiny_model, server, read)
        product = run(config).product
        asked = len([entry for entry in server.log if entry[0].startswith("/files/")])
    record = json.loads((product / "run.json").read_text())
    assets, told = record["inputs"]["assets"], record["timings"]["fetch"]
    assert {(a["scene"], a["band"]) for a in assets} == {(s, b) for s in record["inputs"]["scenes"] for b in BANDS}
    assert all(a["href"].startswith(server.url("files/LC")) for a in assets)
    assert {a["scene"] for a in assets if a["checksum"]} == {PRODUCTS[0]} & set(record["inputs"]["scenes"])
    assert {told["scenes"][a["scene"]][a["band"]]["verified"] for a in assets} <= {
        "sha512 (file:checksum)", "every tile's own checksum, header read twice", "read twice",
    }  # fmt: skip
    assert told["total"]["requests"] == asked
    assert sum(block["requests"] for block in told["blocks"].values()) > 0
    report = inspect_product(product)
    assert report.sound, str(report)
    (check,) = [check for check in report.checks if check.name == "remote files"]
    assert check.detail.startswith(f"{len(assets)} verified: ")
    # a file of which nothing is said makes the product unsound
    told["scenes"][assets[0]["scene"]][assets[0]["band"]]["verified"] = ""
    (product / "run.json").write_text(json.dumps(record))
    (check,) = [check for check in inspect_product(product).checks if check.name == "remote files"]
    assert not check.ok
    assert f"{assets[0]['band']} of {assets[0]['scene']}" in check.detail


def requests_of(folder: Path, archive: Archive, model: Path, plan: Plan, read: str) -> int:
    """Requests that planning and fetching take."""
    with archive.behind(plan) as server:
        request = Request(load_config(archive.config(folder, model, server, read)))
        kept = fetch_scenes(request, plan_run(request))
        assert not [refusal for refusal in kept.refused if "TIF" in refusal.reason]
        return len(server.log)


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("retry_after", ["0", ""])
@pytest.mark.parametrize("seeds", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_a_throttling_archive_costs_at_most_half_as_many_requests_more(
    tmp_path: Path, archive: Archive, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, read: str, retry_after: str,
    seeds: int,
) -> None:  # fmt: skip
    # the patience of a real run with shorter waits, but no short timeouts: a slow machine must not ask twice
    patient = FetchPolicy(backoff_s=0.01, most_backoff_s=0.05)
    monkeypatch.setattr(FetchPolicy.__init__, "__defaults__", dataclasses.astuple(patient))
    least = requests_of(tmp_path / "clean", archive, tiny_model, Plan(), read)
    total = 0
    for seed in range(seeds):
        throttled = Plan(seed=seed, share=0.15, faults=("429", "503"), retry_after=retry_after)
        total += requests_of(tmp_path / str(seed), archive, tiny_model, throttled, read)
    print(f"read {read}: {least} requests without faults, {total / seeds:.1f} with 30 % of 429 and 503")
    assert 1.2 * least * seeds < total <= 1.5 * least * seeds


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 202), marks=pytest.mark.slow)])
def test_files_are_right_or_listed_under_every_fault(tmp_path: Path, world: World, seeds: range) -> None:
    policy = FetchPolicy(attempts=8, deadline_s=10, backoff_s=0.01, most_backoff_s=0.05, read_s=0.3, low_speed_s=0.2)
    scene, whole, reasons = found_scenes(world)[0], 0, []
    for seed in seeds:
        cache = tmp_path / str(seed)
        # a tenth of the requests for each of nine faults: nine requests of ten go wrong
        with serve(world.scenes, Plan(seed=seed, share=0.1, hang_s=0.4)) as server:
            assets = {
                band: dataclasses.replace(asset, href=server.url(Path(asset.href).relative_to(world.scenes).as_posix()))
                for band, asset in scene.assets.items()
            }
            fetcher = Fetcher(cache, ("127.0.0.1",), policy=policy)
            for band, asset in assets.items():
                remote = dataclasses.replace(scene, assets={band: asset})
                try:
                    fetcher.scene(remote, (band,))
                except SceneError as error:
                    reasons.append(error.reason)
                    continue
                assert cached_path(asset.href, cache).read_bytes() == Path(scene.assets[band].href).read_bytes()
                whole += 1
    assert whole > 0
    assert reasons
    assert all(reason.split(": ")[0].endswith(".TIF") for reason in reasons)
