"""Late images: events that nobody saw wait for later scenes; whatever was answered before keeps its answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fault_server import Folder, Mounted, StacItems, serve
from pandas.testing import assert_frame_equal
from run_samples import (
    CLEAR,
    CLOUD,
    PRODUCTS,
    World,
    assert_same_results,
    blobs,
    draw_world,
    layer,
    raster,
    ruin_pixels,
    run,
    snapshot,
    textures,
    write_bundle,
    write_config,
)
from stac_server import items_of_bundles

from pipeline import steps
from pipeline.product.inspect import inspect_product

LATE = ("LC08_L2SP_231062_20230901_20230910_02_T1", "LC09_L2SP_231062_20230909_20230918_02_T1")
SHAPE = (112, 112)
OVERCAST = np.full(SHAPE, CLOUD, np.uint16)
OPEN = np.full(SHAPE, CLEAR, np.uint16)
LEFT_HALF = np.where(np.indices(SHAPE)[1] < 30, CLEAR, CLOUD).astype(np.uint16)
SAME = ("events", "patches", "units", "summary")


@dataclass(frozen=True)
class Site:
    """A region after its first run: nobody has seen the south-west corner clear."""

    world: World
    model: Path
    folder: Path
    first: Path

    @property
    def archive(self) -> Path:
        return self.folder / "world" / "scenes"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def product(self) -> Path:
        return self.folder / "product"

    @property
    def work(self) -> Path:
        return self.folder / "product.work"

    def another(self, folder: Path, **changes: object) -> Path:
        return write_config(folder, self.world, self.model, output__chips=0, **changes)

    def state(self) -> list[object]:
        """Whatever a run that has nothing to do must leave alone."""
        files = [self.work / name for name in ("plan.json", "awaiting.json", "events.parquet", "ledger.json")]
        return [snapshot(self.product), self.checkpoints(), *((p.stat().st_ino, p.stat().st_mtime_ns) for p in files)]

    def checkpoints(self) -> dict[str, object]:
        return {p.name: snapshot(p) for p in (self.work / "blocks").iterdir()}


@pytest.fixture(scope="module")
def begun(tiny_model, tmp_path_factory):
    """The site, and a copy of all its files as they were after the first run."""
    folder = tmp_path_factory.mktemp("site") / "site"
    world = draw_world(folder / "world", blobs(3, SHAPE))
    site = Site(world, tiny_model, folder, folder.parent / "kept" / "product")
    assert run(site.another(folder)).status == "published"
    shutil.copytree(folder, folder.parent / "kept")
    return site


@pytest.fixture
def site(begun):
    """The site as it was after the first run, with the very times of its files."""
    shutil.rmtree(begun.folder)
    shutil.copytree(begun.first.parent, begun.folder)
    return begun


@pytest.fixture
def computed(monkeypatch):
    """Blocks that were really computed, in order."""
    names = []
    plainly = steps.compute_block

    def counting(task):
        record = plainly(task)
        if record.status == "done":
            names.append(record.block)
        return record

    monkeypatch.setattr(steps, "compute_block", counting)
    return names


def add_scene(archive: Path, product: str, qa: np.ndarray, seed: int = 7) -> Path:
    return write_bundle(archive / product, product, textures(seed, qa.shape), qa)


def events_of(product):
    return layer(product, "events").set_index("event_id")


def waiting_in(product):
    events = events_of(product)
    return list(events.index[events["awaiting"]])


def assert_kept(before: Path, after: Path) -> None:
    """Events that did not wait have the same rows, patches and pixels in two products, to the last bit."""
    one, other = events_of(before), events_of(after)
    assert list(one.index) == list(other.index)
    assert list(one.geometry.to_wkb()) == list(other.geometry.to_wkb())
    kept = one.index[~one["awaiting"]]
    same = {"check_exact": True, "check_dtype": False}  # a column of true and false is another type where one is empty
    assert_frame_equal(*(e.loc[kept].drop(columns="geometry") for e in (one, other)), **same)
    first, second = (layer(product, "patches") for product in (before, after))
    first, second = (part[part["event_id"].isin(kept)].reset_index(drop=True) for part in (first, second))
    assert list(first.geometry.to_wkb()) == list(second.geometry.to_wkb())
    assert_frame_equal(first.drop(columns="geometry"), second.drop(columns="geometry"), **same)
    for name in ("drivers", "confidence"):
        answered = raster(before, name) != 255
        assert answered.any()
        np.testing.assert_array_equal(raster(before, name)[answered], raster(after, name)[answered])


def test_events_that_nobody_saw_wait_and_are_computed_when_a_scene_shows_them(site, computed):
    events, waiting = events_of(site.first), waiting_in(site.first)
    assert len(waiting) > 3
    assert len(events) - len(waiting) > 20
    assert set(events.loc[waiting, "status"]) == {"no_imagery"}
    assert json.loads((site.first / "run.json").read_text())["counts"]["awaiting"] == len(waiting)

    # the same archive: nothing is written, nothing computed
    state = site.state()
    assert run(site.config).status == "current"
    assert site.state() == state

    before = site.checkpoints()
    add_scene(site.archive, LATE[0], OPEN)
    assert run(site.config).status == "published"
    assert computed
    assert all(name.endswith("+1") for name in computed), "nothing but the waiting events is computed"
    assert before.items() <= site.checkpoints().items()
    after = events_of(site.product)
    assert set(after.loc[waiting, "status"]) <= {"classified", "uncertain"}
    assert not after["awaiting"].any()
    assert_kept(site.first, site.product)
    assert inspect_product(site.product).sound

    count, state = len(computed), site.state()
    assert run(site.config).status == "current"
    assert site.state() == state
    add_scene(site.archive, LATE[1], OPEN, seed=8)
    assert run(site.config).status == "current", "nobody waits any more"
    assert len(computed) == count


def test_a_waiting_event_gets_the_answer_of_a_run_that_saw_all_scenes_at_once(site, tmp_path):
    add_scene(site.archive, LATE[0], OPEN)
    run(site.config)
    first, late = events_of(site.first), events_of(site.product)
    fresh = events_of(run(site.another(tmp_path)).product)
    waiting = first["awaiting"]
    columns = [c for c in late if c.startswith("p_") or c in ("driver", "first_image", "image_count", "clear_share")]
    assert_frame_equal(late.loc[waiting, columns], fresh.loc[waiting, columns], check_exact=True)
    assert not late.loc[~waiting, columns].equals(fresh.loc[~waiting, columns]), "the others would have moved"


def test_pass_after_pass_whatever_the_blocks(site, tmp_path, computed):
    """A first late scene shows a part of the waiting events, a second one the others."""
    other = site.another(tmp_path / "other", grid__block=32)
    run(other)
    left = [len(waiting_in(site.first))]
    for number, (name, qa) in enumerate(zip(LATE, (LEFT_HALF, OPEN), strict=True), 1):
        before = shutil.copytree(site.product, tmp_path / f"before-{number}")
        add_scene(site.archive, name, qa, seed=10 + number)
        for config in (site.config, other):
            computed.clear()
            assert run(config).status == "published"
            assert computed
            assert all(block.endswith(f"+{number}") for block in computed)
        assert_kept(before, site.product)
        assert_same_results(site.product, tmp_path / "other" / "product")
        left.append(len(waiting_in(site.product)))
    assert left[0] > left[1] > left[2] == 0


def test_a_late_scene_that_shows_none_of_them_is_set_aside_and_not_tried_twice(site, computed):
    before = site.state()
    bundle = add_scene(site.archive, LATE[0], OVERCAST)
    # its bands are not even looked at
    ruin_pixels(next(bundle.glob("*_SR_B4.TIF")))
    assert run(site.config).status == "current"
    assert site.state()[:2] == before[:2], "neither the product nor a block is written"
    assert computed == []
    plan = json.loads((site.work / "plan.json").read_text())
    assert {r["scene_id"]: r["reason"] for r in plan["refused"]}[LATE[0]].startswith("not needed: it came late")
    before = site.state()
    assert run(site.config).status == "current"
    assert site.state() == before


def test_a_late_scene_that_cannot_be_read(site, computed):
    bundle = add_scene(site.archive, LATE[0], OPEN)
    ruin_pixels(next(bundle.glob("*_SR_B4.TIF")))
    run(site.config)
    assert_same_results(site.first, site.product, SAME)
    refused = layer(site.product, "scenes").set_index("scene_id").loc[LATE[0]]
    assert not refused["used"]
    assert "unreadable" in refused["reason"]
    state = site.state()
    assert run(site.config).status == "current"
    assert site.state() == state
    # repaired, it is another file: it serves
    shutil.rmtree(bundle)
    add_scene(site.archive, LATE[0], OPEN)
    assert run(site.config).status == "published"
    assert not waiting_in(site.product)
    assert all(name.endswith("+1") for name in computed)
    assert_kept(site.first, site.product)


def test_a_late_pass_that_is_broken_off_goes_on(site, tmp_path, computed, monkeypatch):
    config = site.another(tmp_path, grid__block=32)
    first = shutil.copytree(run(config).product, tmp_path / "first")
    add_scene(site.archive, LATE[0], OPEN)
    computed.clear()
    counting = steps.compute_block

    def breaking(task):
        if computed:
            raise KeyboardInterrupt
        return counting(task)

    monkeypatch.setattr(steps, "compute_block", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert_same_results(first, tmp_path / "product")
    assert len(computed) == 1
    monkeypatch.setattr(steps, "compute_block", counting)
    add_scene(site.archive, LATE[1], OPEN, seed=8)
    assert run(config).status == "published"
    assert len(computed) == len(set(computed)) > 1, "each block once"
    assert all(name.endswith("+1") for name in computed)
    assert_kept(first, tmp_path / "product")
    assert LATE[1] not in set(layer(tmp_path / "product", "scenes")["scene_id"]), "it would belong to the next pass"


def test_late_blocks_by_name(site, tmp_path, computed):
    config = site.another(tmp_path, grid__block=32)
    first = shutil.copytree(run(config).product, tmp_path / "first")
    add_scene(site.archive, LATE[0], OPEN)
    computed.clear()
    assert run(config, blocks=("r0000c0000",)).status == "partial"
    assert computed == []
    assert_same_results(first, tmp_path / "product")
    plan = json.loads((tmp_path / "product.work" / "plan.json").read_text())
    late = [b["block"]["id"] for b in plan["blocks"] if b["late"]]
    assert len(late) > 1
    assert run(config, blocks=(late[0],)).status == "partial"
    assert run(config, blocks=tuple(late[1:])).status == "published"
    assert sorted(computed) == sorted(late), "each once, the longest first"


@pytest.mark.parametrize("change", ["changed", "removed", "asked for"])
def test_what_plans_anew(site, computed, change):
    add_scene(site.archive, LATE[0], OPEN)
    band = next(site.archive.rglob("*_SR_B4.TIF"))
    if change == "changed":
        band.touch()
    elif change == "removed":
        shutil.rmtree(band.parent)
    assert run(site.config, replan=change == "asked for").status == "published"
    assert len(computed) == 4
    assert not any("+" in name for name in computed)


def test_late_items_of_a_catalog_file(site, tmp_path, computed):
    """The file of a catalog is another one whenever items are added: that alone is no reason to plan anew."""
    catalog = site.world.folder / "catalog.json"

    def write_items():
        items = items_of_bundles(site.archive, "scenes", checksums=False)
        catalog.write_text(json.dumps({"type": "FeatureCollection", "features": items}))

    write_items()
    config = site.another(tmp_path, imagery__source=str(catalog))
    first = shutil.copytree(run(config).product, tmp_path / "first")
    assert_same_results(first, site.first, SAME)
    computed.clear()
    add_scene(site.archive, LATE[0], OPEN)
    write_items()
    assert run(config).status == "published"
    assert computed
    assert all(name.endswith("+1") for name in computed)
    assert_kept(first, tmp_path / "product")


def test_late_scenes_of_an_api(site, tmp_path, computed):
    """A scene whose files are not there yet is tried again; an old one that is gone takes no answer with it."""
    files, stac = tmp_path / "files", StacItems([])
    shutil.copytree(site.archive, files)
    with serve(Mounted({"stac": stac, "files": Folder(files)})) as server:
        stac.url = server.url("stac")

        def publish(name, qa):
            bundle = add_scene(files, name, qa, seed=len(name + str(qa[0, 0])))
            stac.items = items_of_bundles(files, server.url("files").rstrip("/"))
            return bundle

        stac.items = items_of_bundles(files, server.url("files").rstrip("/"))
        imagery = {"source": stac.url, "allow_hosts": ["127.0.0.1"], "cache": str(tmp_path / "cache")}
        config = site.another(tmp_path / "api", imagery=imagery)
        product = run(config).product
        first = shutil.copytree(product, tmp_path / "first")
        computed.clear()
        bundle = publish(LATE[0], LEFT_HALF)
        hidden = bundle.rename(tmp_path / "hidden")
        assert run(config).status == "current"
        assert computed == []
        hidden.rename(bundle)
        assert run(config).status == "published"
        assert computed
        assert all(name.endswith("+1") for name in computed)
        assert_kept(first, product)
        assert waiting_in(product)

        second = shutil.copytree(product, tmp_path / "second")
        shutil.rmtree(tmp_path / "cache")
        shutil.rmtree(files / PRODUCTS[0])
        computed.clear()
        publish(LATE[1], OPEN)
        assert run(config).status == "published"
        assert computed
        assert all(name.endswith("+2") for name in computed)
        assert_kept(second, product)
        assert not waiting_in(product)
    assert run(config).status == "current", "nobody waits, so the archive need not be there"


def test_files_that_come_before_the_first_product_belong_to_the_first_plan(site, tmp_path, cli):
    config = site.another(tmp_path)
    assert cli("plan", config).code == 0
    add_scene(site.archive, LATE[0], OPEN)
    outcome = run(config)
    assert outcome.counts["awaiting"] == 0
    assert LATE[0] in set(layer(outcome.product, "scenes")["scene_id"])
