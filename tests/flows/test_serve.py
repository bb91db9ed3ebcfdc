"""`clearcause serve` on a real Prefect server, through its API: schedule, demand, bad parameters, cancel, overlap.

Everything runs over SQLite and over PostgreSQL.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pandas as pd
import pytest
import yaml
from prefect_server import postgres, prefect_server, served, until
from run_samples import ROOT, assert_same_results, blobs, checkpoints, draw_world, layer, run, write_config

from pipeline.artifacts import run_lock
from pipeline.config import load_config
from pipeline.product.inspect import inspect_product

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def scene(request, tmp_path_factory, world, tiny_model):
    """A server, a process that serves, and the configurations of its regions."""
    folder = tmp_path_factory.mktemp("serve")
    big = draw_world(folder / "big", blobs(4, (288, 288)))
    plans = {
        "often": (world, {"schedule": {"cron": "* * * * *", "timezone": "Asia/Jakarta", "tags": ["every-minute"]}}),
        "asked": (world, {}),
        "single": (world, {"schedule": {"overlap": "skip"}}),
        "large": (big, {"grid__block": 32}),
        "broken": (world, {"loss__source": str(folder / "nothing.tif")}),
    }
    configs = {
        name: write_config(folder / name, land, tiny_model, region__name=name, **changes)
        for name, (land, changes) in plans.items()
    }
    with ExitStack() as stack:
        database = stack.enter_context(postgres(folder / "postgres")) if request.param == "postgresql" else ""
        prefect = stack.enter_context(prefect_server(folder / "prefect", database))
        options = ("--limit", "2", "--rollup", folder / "rollup")
        stack.enter_context(served(prefect, folder / "serve.log", *configs.values(), *options))
        yield prefect, configs


def test_the_schedule_fires_and_its_run_says_what_it_made(scene, reference):
    prefect, configs = scene

    def ended():
        runs = [r for r in prefect.runs("clearcause-region/often") if r["auto_scheduled"]]
        return [r for r in runs if r["state_type"] == "COMPLETED"]

    run = until("scheduled run that ended", 600, ended)[-1]
    prefect.client.patch(
        f"/deployments/{prefect.deployment('clearcause-region/often')['id']}", json={"paused": True}
    ).raise_for_status()
    assert run["name"] == "often 2021-2022"
    assert {"clearcause", "every-minute"} <= set(run["tags"])
    (schedule,) = prefect.deployment("clearcause-region/often")["schedules"]
    assert schedule["slug"] == "configured"
    assert schedule["schedule"]["timezone"] == "Asia/Jakarta"
    product = load_config(configs["often"]).output.dir
    # other tables name the region
    assert_same_results(product, reference, ("patches", "scenes"))
    assert inspect_product(product).sound
    found = prefect.artifacts(run["id"])
    page = found["often-summary"]["data"]
    assert page.startswith("# Drivers of forest loss, often, 2021 to 2022")
    assert "![map](data:image/png;base64," in page
    assert (product / "report.html").as_uri() in page
    assert "85" in page
    due = datetime.datetime.fromisoformat(run["expected_start_time"])
    assert due.second == 0


def test_a_run_on_demand_takes_parameters(scene, world, tiny_model, tmp_path):
    prefect, configs = scene
    ended = prefect.ended(prefect.started("clearcause-region/asked", years=[2021], variant="one-year"))
    assert (ended["state_type"], ended["name"]) == ("COMPLETED", "asked 2021")
    assert "published" in ended["state"]["message"]
    alone = run(write_config(tmp_path, world, tiny_model, loss__years=[2021], region__name="asked"))
    made = load_config(configs["asked"]).output.dir.with_name("product-one-year")
    assert_same_results(made, alone.product)
    blocks = prefect.artifacts(ended["id"])["asked-blocks"]
    assert (blocks["type"], float(blocks["data"])) == ("progress", 100.0)
    count = alone.counts["blocks"]
    assert count > 1
    assert blocks["description"].startswith(f"{count} of {count} blocks done")


@pytest.mark.parametrize(
    "wrong",
    [
        {"years": [1990]},
        {"years": "2021"},
        {"blocks": ["first"]},
        {"tiling": "loose"},
        {"executor": "rm -rf"},
        {"variant": "../../etc"},
        {"config": "/etc/passwd"},
        {"yeers": [2021]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_bad_parameter_is_refused_before_a_run_exists(scene, wrong):
    prefect, _ = scene
    before = len(prefect.runs("clearcause-region/asked"))
    answer = prefect.start("clearcause-region/asked", **wrong)
    assert answer.status_code in (409, 422)
    assert next(iter(wrong)) in answer.text
    assert len(prefect.runs("clearcause-region/asked")) == before


def test_an_unknown_parameter_is_named_beside_the_known_ones(scene):
    prefect, _ = scene
    said = prefect.start("clearcause-region/asked", yeers=[2021]).json()["detail"]
    assert "'yeers' is not one of ['config', 'years', 'blocks'," in said
    assert "\n" not in said
    said = prefect.start("clearcause-regions/all", region=["asked"]).json()["detail"]
    assert "'region' is not one of ['regions', 'years', 'at_once', 'replan', 'out']" in said


def test_a_cancelled_run_goes_on_from_its_blocks(scene, tmp_path, tiny_model):
    prefect, configs = scene
    config = configs["large"]
    started = prefect.started("clearcause-region/large")
    until("first blocks", 500, lambda: len(checkpoints(config)) >= 3)
    cancelling = {"state": {"type": "CANCELLING"}, "force": False}
    prefect.client.post(f"/flow_runs/{started}/set_state", json=cancelling).raise_for_status()
    assert prefect.ended(started)["state_type"] == "CANCELLED"
    # the process is gone: its lock is free
    until("free lock", 60, lambda: _free(config))
    done = {path.name: path.stat().st_ino for path in checkpoints(config)}
    parsed = load_config(config)
    assert not parsed.output.dir.exists()
    assert 3 <= len(done) < 81
    ended = prefect.ended(prefect.started("clearcause-region/large"), 700)
    assert ended["state_type"] == "COMPLETED"
    after = {path.name: path.stat().st_ino for path in checkpoints(config)}
    assert done.items() <= after.items(), "a finished block was computed again"
    assert inspect_product(parsed.output.dir).sound


def _free(config):
    try:
        with run_lock(load_config(config).work):
            return True
    except Exception:
        return False


def test_a_second_run_waits(scene):
    prefect, _ = scene
    first, second = (prefect.started("clearcause-region/asked") for _ in range(2))
    ended = sorted((prefect.ended(run) for run in (first, second)), key=lambda r: r["start_time"])
    assert [r["state_type"] for r in ended] == ["COMPLETED", "COMPLETED"]
    assert "published" in ended[0]["state"]["message"]
    assert "current" in ended[1]["state"]["message"], "the second had nothing to do"
    assert ended[1]["start_time"] >= ended[0]["end_time"]


def test_a_second_run_is_skipped_where_the_configuration_says_so(scene):
    prefect, configs = scene
    runs = [prefect.started("clearcause-region/single") for _ in range(2)]
    states = sorted((prefect.ended(r)["state_type"], prefect.ended(r)["state"]["message"]) for r in runs)
    assert states[0] == ("CANCELLED", "Deployment concurrency limit reached.")
    assert states[1][0] == "COMPLETED"
    # a run of the program holds the folder
    with run_lock(load_config(configs["single"]).work):
        skipped = prefect.ended(prefect.started("clearcause-region/single"))
    assert (skipped["state_type"], skipped["state_name"]) == ("CANCELLED", "Skipped")
    assert "another run of single is going on" in skipped["state"]["message"]


def test_many_regions_run_beside_each_other_into_one_table(scene):
    prefect, configs = scene
    asked = {"regions": ["single", "broken"], "years": [2021, 2022], "at_once": 2}
    ended = prefect.ended(prefect.started("clearcause-regions/all", **asked), 700)
    assert (ended["state_type"], ended["name"]) == ("FAILED", "2 regions 2021-2022")
    assert "2 of 4 runs ended well" in ended["state"]["message"]
    children = [r for name in asked["regions"] for r in prefect.runs(f"clearcause-region/{name}")]
    children = [r for r in children if r["parent_task_run_id"]]
    assert sorted(r["state_type"] for r in children) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    out = configs["single"].parents[1] / "rollup"
    regions = pd.read_csv(out / "regions.csv", encoding="utf-8-sig", dtype={"years": str})
    assert regions[["region", "years", "status"]].to_numpy().tolist() == [
        ["broken", "2021", "failed"], ["broken", "2022", "failed"], ["single", "2021", "done"],
        ["single", "2022", "done"],
    ]  # fmt: skip
    assert regions["reason"].str.contains("nothing.tif").tolist()[:2] == [True, True]
    summary = pd.read_csv(out / "summary.csv", encoding="utf-8-sig")
    whole = load_config(configs["single"]).output.dir
    assert set(summary["loss_year"]) == {2021, 2022}
    own = sum(layer(whole.with_name(f"product-{year}"), "summary")["area_ha"].sum() for year in (2021, 2022))
    assert summary["area_ha"].sum() == pytest.approx(own, rel=1e-9)
    page = prefect.artifacts(ended["id"])["regions-rollup"]["data"]
    assert "nothing.tif" in page


def test_a_failure_says_what_to_do(scene):
    prefect, configs = scene
    ended = prefect.ended(prefect.started("clearcause-region/broken"))
    assert ended["state_type"] == "FAILED"
    page = prefect.artifacts(ended["id"])["broken-failure"]["data"]
    assert "nothing.tif" in page
    assert f"clearcause run {configs['broken']}" in page
    assert "prefect deployment run clearcause-region/broken" in page


def test_prefect_takes_the_files_for_work_pools_and_automations(scene, tmp_path):
    prefect, configs = scene
    tree = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())
    tree["deployments"][0] |= {"name": "pooled", "parameters": {"config": str(configs["asked"]), "variant": "pooled"}}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(tree))
    surroundings = {**os.environ, **prefect.environment, "CLEARCAUSE_HOME": str(ROOT)}

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *map(str, arguments)], cwd=ROOT, env=surroundings,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    call("automation", "create", "--from-file", ROOT / "flows" / "automations.yaml")
    automations = prefect.client.post("/automations/filter", json={}).json()
    assert {"clearcause run died", "clearcause is silent"} <= {a["name"] for a in automations}
    call("work-pool", "create", "clearcause", "--type", "process")
    ids = []
    for _ in range(2):
        call("deploy", "--all", "--prefect-file", tmp_path / "prefect.yaml")
        (schedule,) = prefect.deployment("clearcause-region/pooled")["schedules"]
        ids.append(schedule["id"])
    assert ids[0] == ids[1], "a second deploy makes no second schedule"
    assert schedule["schedule"]["timezone"] == "Asia/Jakarta"
    assert prefect.start("clearcause-region/pooled", years=[1990]).status_code == 409
    started = prefect.started("clearcause-region/pooled", years=[2021])
    call("worker", "start", "--pool", "clearcause", "--type", "process", "--run-once")
    assert prefect.ended(started)["state_type"] == "COMPLETED"


def test_serving_that_is_ended_ends_its_runs_and_they_go_on_later(scene, tmp_path):
    prefect, configs = scene
    config = tmp_path / "later" / "config.yaml"
    config.parent.mkdir()
    config.write_text(configs["large"].read_text().replace("large", "later"))
    name = "clearcause-region/later"
    with served(prefect, tmp_path / "first.log", config) as child:
        until("deployment", 60, lambda: prefect.deployment(name))
        started = prefect.started(name)
        until("first blocks", 500, lambda: len(checkpoints(config)) >= 3)
        child.terminate()
        assert child.wait(90) == 0
    until("free lock", 30, lambda: _free(config))
    left = prefect.run(started)
    assert (left["state_type"], left["state_name"]) == ("SCHEDULED", "AwaitingRetry")
    done = {path.name: path.stat().st_ino for path in checkpoints(config)}
    assert len(done) < 81
    with served(prefect, tmp_path / "second.log", config):
        assert prefect.ended(started, 700)["state_type"] == "COMPLETED", "the same run goes on"
    after = {path.name: path.stat().st_ino for path in checkpoints(config)}
    assert done.items() <= after.items(), "a finished block was computed again"


def test_an_event_starts_a_run(scene):
    prefect, _ = scene
    event = {
        "event": "clearcause.new-loss",
        "resource": {"prefect.resource.id": "clearcause.region.asked"},
        "payload": {"years": [2022]},
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "id": "0d1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d",
    }

    def runs():
        return {r["id"] for r in prefect.runs("clearcause-region/asked")}

    known = runs()
    prefect.client.post("/events", json=[event]).raise_for_status()
    new = until("run that the event started", 120, lambda: runs() - known)
    ended = prefect.ended(new.pop())
    assert (ended["state_type"], ended["parameters"]["years"]) == ("COMPLETED", [2022])


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; its absence is a failure in CI and a skip elsewhere."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine: Prefect's pages cannot be looked at")
        pytest.skip("no Chromium on this machine")
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


def test_what_a_person_sees(scene, browser, tmp_path):
    prefect, _ = scene
    name = "clearcause-region/asked"
    done = [r for r in prefect.runs(name) if r["state_type"] == "COMPLETED" and r["name"].startswith("asked")]
    run = done[0] if done else prefect.ended(prefect.started(name))
    page = browser.new_page(viewport={"width": 1400, "height": 1100})

    def look(path, text, shot):
        page.goto(prefect.url + path, timeout=120_000)
        page.get_by_text(text).first.wait_for(timeout=120_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path / f"{shot}.png")

    look(f"/runs/flow-run/{run['id']}", run["name"], "run")
    page.get_by_text("Task Runs").first.click()
    page.get_by_text("plan_run").first.wait_for(timeout=60_000)
    found = prefect.artifacts(run["id"])
    look(f"/artifacts/artifact/{found['asked-summary']['id']}", "Drivers of forest loss", "summary")
    sizes = page.eval_on_selector_all("img[src^='data:image/png']", "pictures => pictures.map(p => p.naturalWidth)")
    assert len(sizes) >= 2, "no map, or no colours of drivers"
    assert all(size >= 16 for size in sizes)
    assert max(sizes) > 300
    assert page.get_by_text("mapped (ha)").count() == 1
    page.get_by_text("Hatched: uncertain.").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "map.png")
    look(f"/deployments/deployment/{prefect.deployment(name)['id']}/run", "Loss years", "form")
    for told in ("How patches are laid", "Only these blocks", "Publish even if blocks failed"):
        assert page.get_by_text(told).count() >= 1, told
    runs = len(prefect.runs(name))
    page.get_by_role("button", name="Add item").first.click()
    page.locator("input[type=number]").first.fill("1990")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("1990 is less than the minimum of 2001").first.wait_for(timeout=60_000)
    page.locator("input[type=number]").first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "refused.png")
    assert "/run" in page.url, "the form stays"
    assert len(prefect.runs(name)) == runs, "no run was made of a year that is none"
    page.close()
