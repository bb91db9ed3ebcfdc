"""The choice of scenes by their clouds over the loss: which ones, what must not matter, what replaces a lost one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_server import serve
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import (
    CLEAR,
    CLOUD,
    FILL,
    World,
    assert_same_results,
    blobs,
    draw_world,
    layer,
    ruin_pixels,
    run,
    textures,
    write_bundle,
    write_config,
)
from stac_samples import found_scenes, item

from pipeline import survey
from pipeline.config import Imagery, load_config
from pipeline.fetching import fetch_scenes
from pipeline.plan import Plan, read_plan
from pipeline.request import Request
from pipeline.steps import plan_run
from pipeline.survey import Sight, choose

SHAPE = (96, 96)
ONE_YEAR = {"loss__years": [2021]}
CHOICE = ("events", "patches", "units", "summary")


def sight(*clear: int, pixels: int = 8, trust: float = 1.0) -> Sight:
    """A scene that sees these loss pixels clear, and all others under clouds."""
    mask = np.zeros(pixels, bool)
    mask[list(clear)] = True
    return Sight(np.packbits(mask), len(clear), pixels, trust)


def limits(enough: int = 2, most: int = 12, least: float = 0.0) -> Imagery:
    return Imagery(source="folder", enough_clear=enough, max_scenes=most, least_gain=least)


# ---------------------------------------------------------------------------------------------- the rule


def test_the_clearest_comes_first_and_what_adds_nothing_stays():
    sights = {"half": sight(0, 1, 2, 3), "most": sight(0, 1, 2, 3, 4, 5), "rest": sight(6, 7), "dark": sight()}
    found = choose(sights, 8, limits(enough=1))
    assert found.taken == ("most", "rest")
    assert found.reasons["half"][1] == (
        "not needed: every loss pixel it sees has 1 clear observations without it (50 % of the loss under it is clear)"
    )
    assert found.reasons["dark"][1].startswith("not needed: no loss pixel is clear in it (0 %")
    assert choose(sights, 8, limits(enough=2)).taken == ("most", "rest", "half")


def test_a_pixels_only_observation_comes_before_the_second_one_of_all_others():
    sights = {
        "a": sight(0, 1, 2, 3, 4, 5, 6),
        "b": sight(0, 1, 2, 3, 4, 5),
        "c": sight(0, 1, 2, 3, 4),
        "only": sight(7),
    }
    assert choose(sights, 8, limits(enough=3, most=2)).taken == ("a", "only")
    cut = choose(sights, 8, limits(enough=3, most=1))
    assert (cut.taken, cut.missed) == (("a",), 1)
    assert cut.reasons["only"][1] == (
        "beyond imagery.max_scenes 1: 1 loss pixels it sees have fewer than 3 clear observations, 1 of them none "
        "(12 % of the loss under it is clear)"
    )


def test_little_gain_is_left_unless_a_pixel_has_nothing_else():
    many = range(200)
    sights = {"all but one": sight(*many[:-1], pixels=200), "second": sight(*many[:-1], pixels=200)}
    sights |= {"last one": sight(199, pixels=200), "last again": sight(198, 199, pixels=200)}
    found = choose(sights, 200, limits(enough=3, least=0.01))
    assert found.taken == ("all but one", "last one", "second")
    assert "below imagery.least_gain 0.01" in found.reasons["last again"][1]
    assert choose(sights, 200, limits(enough=3)).taken == ("all but one", "last one", "second", "last again")


def test_a_scene_without_qa_counts_by_the_catalogs_cloud_cover():
    sights = {"blind": sight(*range(8), trust=0.3), "half": sight(0, 1, 2, 3)}
    assert choose(sights, 8, limits(enough=1)).taken == ("half", "blind")
    assert choose(sights, 8, limits(enough=1, most=1)).missed == 4
    unknown = {"unknown": sight(*range(8), trust=0.0), "one": sight(0)}
    assert choose(unknown, 8, limits(enough=1)).taken == ("one", "unknown")


SIGHTS = st.integers(1, 40).flatmap(
    lambda pixels: st.tuples(
        st.just(pixels), st.lists(st.sets(st.integers(0, pixels - 1)), max_size=9).map(lambda s: [sorted(k) for k in s])
    )
)


@settings(max_examples=300, deadline=None)
@given(SIGHTS, st.integers(1, 5), st.integers(1, 10))
def test_every_pixel_has_enough_or_the_scenes_have_run_out(drawn, enough, most):
    pixels, seen = drawn
    sights = {f"s{k}": sight(*clear, pixels=pixels) for k, clear in enumerate(seen)}
    found = choose(sights, pixels, limits(enough, most))
    clear = {key: np.isin(np.arange(pixels), seen[int(key[1:])]) for key in sights}
    have = sum((clear[key].astype(int) for key in found.taken), np.zeros(pixels, int))
    could = sum((mask.astype(int) for mask in clear.values()), np.zeros(pixels, int))
    assert len(found.taken) <= most
    assert set(found.taken) | set(found.reasons) == set(sights)
    if len(found.taken) < most:
        assert (have >= np.minimum(could, enough)).all()
        assert found.missed == 0
    else:
        assert found.missed == ((have == 0) & (could > 0)).sum()
    # each one taken gave an observation to a pixel that lacked one
    so_far = np.zeros(pixels, int)
    for key in found.taken:
        assert (clear[key] & (so_far < enough)).any()
        so_far += clear[key]


# ---------------------------------------------------------------------------------------------- on scenes


def product(day: int, year: int = 2021) -> str:
    return f"LC08_L2SP_231062_{year}07{day:02d}_{year}0820_02_T1"


PARTS = {"west": np.s_[:, :48], "east": np.s_[:, 48:], "all": np.s_[:], "none": np.s_[:0], "spot": np.s_[:30, :30]}


def half(clear: str) -> np.ndarray:
    """QA_PIXEL that is clear in one part of the world."""
    qa = np.full(SHAPE, CLOUD, np.uint16)
    qa[PARTS[clear]] = CLEAR
    return qa


def add_scene(world: World, day: int, qa: np.ndarray, cloud: float = 10.0) -> str:
    """Write a scene of July 2021 that differs from all others."""
    name = product(day)
    dn = (textures(5, SHAPE) + 37 * day).astype(np.uint16)
    dn[:, qa == FILL] = 0
    folder = write_bundle(world.scenes / name, name, dn, qa)
    metadata = folder / f"{name}_MTL.txt"
    metadata.write_text(metadata.read_text().replace('"12.50"', f'"{cloud:.2f}"'))
    return name


@pytest.fixture
def many(tmp_path: Path) -> World:
    """A world whose catalog lies: the scene it calls cloudiest is the clearest over the loss."""
    loss = np.where(blobs(8, SHAPE, 0.3) > 0, 21, 0).astype(np.uint8)
    world = draw_world(tmp_path / "world", loss, np.full((2, *SHAPE), CLOUD, np.uint16))
    for name in sorted(p.name for p in world.scenes.iterdir()):
        shutil.rmtree(world.scenes / name)
    for day, part, cloud in ((1, "west", 1.0), (2, "east", 2.0), (3, "all", 50.0), (4, "spot", 0.5), (5, "none", 0.1)):
        add_scene(world, day, half(part), cloud)
    return world


def decided(config: Path, **asked: Any) -> Plan:
    request = Request(load_config(config), **asked)
    return fetch_scenes(request, plan_run(request))


def test_scenes_are_taken_by_their_clouds_over_the_loss(many, tiny_model, tmp_path):
    config = write_config(tmp_path / "run", many, tiny_model, **ONE_YEAR, imagery__enough_clear=1)
    plan = decided(config)
    assert plan.chosen == {2021: (product(3),)}
    assert sorted(plan.spare) == [product(k) for k in (1, 2, 4, 5)]
    told = {r.scene_id: r.reason for r in plan.refused}
    assert "every loss pixel it sees has 1 clear observations without it" in told[product(1)]
    assert "0 % of the loss under it is clear" in told[product(5)]
    assert plan.undecided == ()
    assert plan == read_plan(load_config(config).work)
    for enough, taken in ((2, (1, 2, 3)), (3, (1, 2, 3, 4))):
        other = decided(
            write_config(tmp_path / str(enough), many, tiny_model, **ONE_YEAR, imagery__enough_clear=enough)
        )
        assert other.chosen[2021] == tuple(product(k) for k in taken)


def test_the_plan_before_the_choice_gives_upper_bounds(many, tiny_model, tmp_path):
    config = load_config(write_config(tmp_path, many, tiny_model, **ONE_YEAR, imagery__max_scenes=2))
    plan = plan_run(Request(config))
    before = plan.counts()
    assert (before["scenes"], before["scenes_candidates"]) == (2, 5)
    after = fetch_scenes(Request(config), plan).counts()
    assert (after["scenes"], after["scenes_candidates"]) == (2, 5)
    assert after["bytes"] == before["bytes"]


@pytest.mark.parametrize("block", [32, 2048])
def test_the_choice_does_not_depend_on_blocks(many, tiny_model, tmp_path, block):
    plans = [
        decided(write_config(tmp_path / str(b), many, tiny_model, **ONE_YEAR, grid__block=b, imagery__enough_clear=2))
        for b in (64, block)
    ]
    assert plans[0].chosen == plans[1].chosen
    assert plans[0].refused == plans[1].refused


def test_a_run_of_one_block_chooses_for_the_whole_region(many, tiny_model, tmp_path):
    config = write_config(tmp_path / "one", many, tiny_model, **ONE_YEAR, grid__block=48, imagery__enough_clear=2)
    names = [b.block.id for b in plan_run(Request(load_config(config))).blocks]
    assert run(config, blocks=(names[0],)).status == "partial"
    chosen = read_plan(load_config(config).work).chosen
    outcome = run(config)
    assert read_plan(load_config(config).work).chosen == chosen
    whole = run(write_config(tmp_path / "whole", many, tiny_model, **ONE_YEAR, grid__block=48, imagery__enough_clear=2))
    assert_same_results(outcome.product, whole.product)


def test_a_finished_run_looks_at_nothing_again(many, tiny_model, tmp_path, monkeypatch):
    config = write_config(tmp_path, many, tiny_model, **ONE_YEAR, imagery__enough_clear=2)
    assert run(config).status == "published"
    scenes = layer(load_config(config).output.dir, "scenes").set_index("scene_id")
    assert scenes["used"].sum() == 3
    assert scenes.loc[product(5), "reason"].startswith("not needed: no loss pixel is clear in it")
    # planned anew, the choice comes out the same, and there is nothing to do either
    assert run(config, replan=True).status == "current"
    monkeypatch.setattr(survey, "decide", None)
    assert run(config).status == "current"


def test_scenes_beyond_the_limit_that_alone_see_some_loss_are_told_of(many, tiny_model, tmp_path):
    shutil.rmtree(many.scenes / product(3))
    config = write_config(tmp_path, many, tiny_model, **ONE_YEAR, imagery__max_scenes=1, imagery__enough_clear=1)
    product_folder = run(config).product
    scenes = layer(product_folder, "scenes").set_index("scene_id")
    (lost,) = scenes.index[scenes["reason"].fillna("").str.contains("of them none")].intersection(
        [product(1), product(2)]
    )
    assert scenes.loc[lost, "reason"].startswith("beyond imagery.max_scenes 1: ")
    warnings = json.loads((product_folder / "run.json").read_text())["warnings"]
    assert any("loss pixels are clear only in scenes beyond imagery.max_scenes 1" in text for text in warnings)


# ---------------------------------------------------------------------------------------------- what is lost


def without(world: World, name: str, folder: Path) -> World:
    """The world without one scene."""
    shutil.copytree(world.scenes, folder / "scenes", ignore=shutil.ignore_patterns(name))
    return dataclasses.replace(world, scenes=folder / "scenes")


def test_a_scene_that_cannot_be_had_gives_its_place_to_the_next_best(many, tiny_model, tmp_path):
    config = write_config(tmp_path / "run", many, tiny_model, **ONE_YEAR, imagery__enough_clear=1)
    request = Request(load_config(config))
    plan = plan_run(request)
    (many.scenes / product(3) / f"{product(3)}_SR_B5.TIF").unlink()
    after = fetch_scenes(request, plan)
    assert after.chosen == {2021: (product(1), product(2))}
    assert sorted(after.spare) == [product(4), product(5)]
    told = {r.scene_id: r.reason for r in after.refused}
    assert "missing" in told[product(3)]
    assert sorted(told) == [product(k) for k in (3, 4, 5)]


@pytest.mark.parametrize("file", ["SR_B4", "QA_PIXEL"])
def test_an_unreadable_scene_is_replaced_midway(many, tiny_model, tmp_path, file):
    expected = run(
        write_config(
            tmp_path / "clean", without(many, product(3), tmp_path), tiny_model, **ONE_YEAR, imagery__enough_clear=1
        )
    )
    ruin_pixels(many.scenes / product(3) / f"{product(3)}_{file}.TIF")
    config = write_config(tmp_path / "run", many, tiny_model, **ONE_YEAR, imagery__enough_clear=1, grid__block=48)
    outcome = run(config)
    assert_same_results(outcome.product, expected.product, CHOICE)
    scenes = layer(outcome.product, "scenes").set_index("scene_id")
    assert "unreadable" in scenes.loc[product(3), "reason"]
    assert list(scenes.index[scenes["used"]]) == [product(1), product(2)]
    assert run(config).status == "current"


def test_a_scene_without_qa_pixel_serves_where_it_has_data(many, tiny_model, tmp_path):
    folder = many.scenes / product(3)
    (folder / f"{product(3)}_QA_PIXEL.TIF").unlink()
    metadata = folder / f"{product(3)}_MTL.txt"
    metadata.write_text("\n".join(line for line in metadata.read_text().splitlines() if "QUALITY_L1_PIXEL" not in line))
    config = write_config(tmp_path, many, tiny_model, **ONE_YEAR, imagery__enough_clear=1)
    plan = decided(config)
    # half of its loss pixels are believed to be clear: west and east see as many each, for certain
    assert plan.chosen == {2021: (product(1), product(2))}
    assert plan.said == ()
    for name in (product(1), product(2)):
        shutil.rmtree(many.scenes / name)
    plan = decided(write_config(tmp_path / "other", many, tiny_model, **ONE_YEAR, imagery__enough_clear=1))
    assert product(3) in plan.chosen[2021]
    assert any(f"scene {product(3)}: no QA_PIXEL" in text for text in plan.said)


# ---------------------------------------------------------------------------------------------- other sources


@pytest.mark.parametrize("read", ["cache", "window"])
def test_bands_of_scenes_that_are_not_needed_are_never_asked_for(many, tiny_model, tmp_path, read):
    changes = {**ONE_YEAR, "output__chips": 0}
    limit = {"enough_clear": 2, "before_years": 0}
    local = run(
        write_config(tmp_path / "local", many, tiny_model, **changes, imagery={"source": str(many.scenes), **limit})
    )
    with serve(many.scenes) as server:
        items = [item(scene, many.scenes, server.url(""), checksums=False) for scene in found_scenes(many)]
        catalog = tmp_path / "catalog.json"
        catalog.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        source = {"source": str(catalog), "allow_hosts": ["127.0.0.1"]}
        config = write_config(tmp_path, many, tiny_model, **changes, imagery={**source, **limit, "read": read})
        remote = run(config)
        asked = {Path(entry[0]).name for entry in server.log}
        chosen = read_plan(load_config(config).work)
    assert chosen.chosen == read_plan(load_config(tmp_path / "local" / "config.yaml").work).chosen
    assert_same_results(remote.product, local.product)
    for name in chosen.scenes:
        assert f"{name}_SR_B4.TIF" in asked
    for name in chosen.spare:
        assert f"{name}_QA_PIXEL.TIF" in asked
        assert not any(file.startswith(f"{name}_SR") for file in asked)


def test_the_fetch_command_says_what_it_brought(many, tiny_model, tmp_path, cli):
    config = write_config(tmp_path, many, tiny_model, **ONE_YEAR, imagery__enough_clear=1)
    told = json.loads(cli("fetch", config, "--json").out)
    assert told["scenes"] == 1
    assert told["lost"] == {}
