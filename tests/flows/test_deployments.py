"""Deployments, periods, pages and artifacts, as far as they need no server."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import time
import uuid
from pathlib import Path

import httpx
import prefect
import pytest
import yaml
from prefect import flow_engine
from prefect._internal import observers
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import _scheduled_run_poller
from prefect.settings import PREFECT_API_URL, temporary_settings
from run_samples import ROOT, run, write_config
from werkzeug import Response

from flows import deployments, outages
from flows.artifacts import Board, Progress, both
from flows.fanout import clearcause_regions
from flows.pages import Origin, failure_page, rollup_page, summary_page
from flows.periods import Period, held
from flows.regions import clearcause_region, run_request, with_variant
from pipeline.assemble import _public
from pipeline.blocks import BlockRecord
from pipeline.config import load_config
from pipeline.errors import ConfigError, IncompleteError
from pipeline.models.store import load_package
from pipeline.planner import plan_inputs
from pipeline.request import Outcome, Request
from pipeline.rollup import Part, roll_up
from pipeline.steps import LEDGER_FILE

NOBODY = "http://127.0.0.1:9/api"
MONTHLY = {"cron": "0 4 1 * *", "timezone": "Asia/Jakarta", "overlap": "skip", "tags": ["sumatra"]}


def config_of(folder, world, model, name="riau", **schedule):
    return write_config(folder / name, world, model, region__name=name, schedule=schedule)


# ------------------------------------------------------------------------------------------ deployments


def test_a_region_is_deployed_as_its_configuration_says(world, tiny_model, tmp_path):
    path = config_of(tmp_path, world, tiny_model, **MONTHLY)
    made = deployments.region_deployment(path)
    assert isinstance(made, deployments.Served)
    assert deployments.line_of(made) == "clearcause-region/riau: 0 4 1 * * Asia/Jakarta"
    (schedule,) = made.schedules
    assert (made.full_name, schedule.slug) == ("clearcause-region/riau", "configured")
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 4 1 * *", "Asia/Jakarta")
    assert made.concurrency_limit == 1
    assert made.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert made.tags == ["clearcause", "sumatra"]
    assert made.enforce_parameter_schema
    assert made.entrypoint == "flows.regions.clearcause_region"
    asked = made._parameter_openapi_schema.properties
    assert asked["config"]["enum"] == [str(path)], "nobody may make a run read another file"
    assert asked["years"]["items"] == {"type": "integer", "minimum": 2001, "maximum": 2255}
    assert asked["tiling"]["enum"] == ["as configured", "grid", "events"]
    assert all(told["description"] for told in asked.values())
    assert made._parameter_openapi_schema.model_dump(exclude_unset=True)["propertyNames"] == {"enum": list(asked)}


def test_without_a_cron_a_region_runs_on_demand_and_its_second_run_waits(world, tiny_model, tmp_path):
    made = deployments.region_deployment(config_of(tmp_path, world, tiny_model))
    assert not made.schedules
    assert made.concurrency_options.collision_strategy.value == "ENQUEUE"


def test_a_deployment_has_one_version_until_something_changes(world, tiny_model, tmp_path):
    def version(**schedule):
        return deployments.region_deployment(config_of(tmp_path, world, tiny_model, **schedule)).version

    kinds = [{}, MONTHLY, {**MONTHLY, "cron": "0 5 1 * *"}, {**MONTHLY, "timezone": "UTC"}, {"overlap": "skip"}]
    versions = [version(**kind) for kind in kinds]
    assert versions == [version(**kind) for kind in kinds]
    assert len(set(versions)) == len(kinds)


def test_the_flow_of_many_regions_takes_those_that_are_served(world, tiny_model, tmp_path):
    configs = [config_of(tmp_path, world, tiny_model, name) for name in ("riau", "jambi")]
    *_, many = deployments.make_deployments(configs, tmp_path / "rollup")
    assert many.full_name == "clearcause-regions/all"
    assert many._parameter_openapi_schema.properties["regions"]["items"]["enum"] == ["riau", "jambi"]
    assert many.parameters == {"regions": ["riau", "jambi"], "out": str(tmp_path / "rollup")}


@pytest.mark.parametrize("key", ["region.name", "output.dir"])
def test_two_configurations_share_neither_name_nor_folder(world, tiny_model, tmp_path, key):
    one = write_config(tmp_path / "one", world, tiny_model, region__name="riau")
    section, name = key.split(".")
    changes = {f"{section}__{name}": "riau" if section == "region" else str(tmp_path / "one" / "product")}
    two = write_config(tmp_path / "two", world, tiny_model, **{"region__name": "jambi", **changes})
    with pytest.raises(ConfigError, match=f"{key}.*two configurations"):
        deployments.make_deployments([one, two], tmp_path)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"cron": "0 4 1 * *"}, "needs a timezone"),
        ({"cron": "0 4 1 *", "timezone": "UTC"}, "five fields"),
        ({"cron": "every day", "timezone": "UTC"}, "five fields"),
        ({"cron": "0 4 1 * *", "timezone": "Jakarta"}, "no time zone"),
        ({"cron": "99 4 1 * *", "timezone": "UTC"}, "schedule.cron"),
        ({"overlap": "both"}, "schedule.overlap"),
        ({"corn": "0 4 1 * *"}, "did you mean 'cron'"),
    ],
)
def test_a_bad_schedule_is_refused_in_one_line(world, tiny_model, tmp_path, schedule, said):
    with pytest.raises(ConfigError, match=said) as caught:
        deployments.region_deployment(config_of(tmp_path, world, tiny_model, **schedule))
    assert "\n" not in str(caught.value)


def test_without_its_server_a_run_keeps_its_lease_and_goes_on(gone):
    assert flow_engine.maintain_concurrency_lease is outages.keep_lease
    with outages.keep_lease(uuid.uuid4(), 0.2, raise_on_lease_renewal_failure=True):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            time.sleep(0.05)  # in steps: what ends a run comes between two of them


def test_a_lease_is_renewed_again_and_again_until_the_run_ends(httpserver):
    lease, renewed = uuid.uuid4(), []

    def answer(request):
        if request.path.endswith("/csrf-token"):
            return Response(status=404)  # as of a server that asks for no such token
        if request.path.endswith("/admin/version"):
            return Response(json.dumps(prefect.__version__), content_type="application/json")
        renewed.append((request.method, request.path, request.get_json()))
        return Response(status=204)

    httpserver.expect_request(re.compile(".*")).respond_with_handler(answer)
    with temporary_settings({PREFECT_API_URL: httpserver.url_for("/api")}):
        with outages.keep_lease(lease, 0.4):
            end = time.monotonic() + 60
            while len(renewed) < 3:
                assert time.monotonic() < end
                time.sleep(0.05)
        time.sleep(0.5)  # one may be under way
        after = len(renewed)
        time.sleep(1)
    assert len(renewed) == after
    assert {(how, path.rpartition("/api")[2]) for how, path, _ in renewed} == {
        ("POST", f"/v2/concurrency_limits/leases/{lease}/renew")
    }
    assert {body["lease_duration"] for _, _, body in renewed} == {0.4}


@pytest.mark.parametrize("fault", [httpx.ConnectError("away"), httpx.ReadTimeout("slow"), 500, 503])
def test_polling_outlives_any_number_of_failures(fault):
    assert {vars(module)["critical_service_loop"] for module in (_scheduled_run_poller, observers)} == {
        outages.keep_polling
    }
    seen = []

    async def look():
        seen.append(1)
        if len(seen) < 20:
            raise fault if isinstance(fault, httpx.HTTPError) else refusal(fault)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(outages.keep_polling(look, 0.001, jitter_range=0.3))
    assert len(seen) == 20


def test_polling_ends_where_the_server_refuses_us():
    async def look():
        raise refusal(401)

    with pytest.raises(httpx.HTTPStatusError):
        asyncio.run(outages.keep_polling(look, 0.001))


def refusal(code):
    request = httpx.Request("POST", NOBODY)
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))


@pytest.mark.parametrize(("url", "said"), [(NOBODY, "no server answers"), ("", "PREFECT_API_URL is not set")])
def test_no_server_is_said_in_one_line(cli, world, tiny_model, tmp_path, url, said):
    with temporary_settings({PREFECT_API_URL: url or None}):
        ended = cli("serve", config_of(tmp_path, world, tiny_model))
    assert ended.code == 2
    assert said in ended.error


def test_a_schedule_changes_no_result(world, tiny_model, tmp_path):
    card = load_package(tiny_model).card
    plain, monthly = (load_config(config_of(tmp_path, world, tiny_model, **kind)) for kind in ({}, MONTHLY))
    assert plan_inputs(plain, card) == plan_inputs(monthly, card)
    assert _public(plain) == _public(monthly)


def test_a_variant_lies_beside_the_regular_product(world, tiny_model, tmp_path):
    config = load_config(config_of(tmp_path, world, tiny_model))
    assert with_variant(config, "") is config
    assert with_variant(config, "y2021").output.dir == config.output.dir.with_name("product-y2021")
    assert with_variant(config, "y2021").work != config.work


def test_events_start_runs_of_their_region(world, tiny_model, tmp_path):
    made = deployments.region_deployment(config_of(tmp_path, world, tiny_model))
    for trigger in made.triggers:
        trigger.set_deployment_id(uuid.uuid4())
        automation = trigger.as_automation()
        assert automation.trigger.match.root == {"prefect.resource.id": "clearcause.region.riau"}
        assert [action.type for action in automation.actions] == ["run-deployment"]
    assert [set(t.expect) for t in made.triggers] == [{"clearcause.new-scenes"}, {"clearcause.new-loss"}]


# ------------------------------------------------------------------------------------------ files for Prefect


def test_the_automations_are_what_prefect_takes():
    listed = yaml.safe_load((ROOT / "flows" / "automations.yaml").read_text())["automations"]
    assert [AutomationCore.model_validate(item).name for item in listed] == [item["name"] for item in listed]
    assert len(listed) == 2


def test_the_deployments_for_work_pools_name_flows_and_what_they_take():
    tree = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())
    for entry in tree["deployments"]:
        path, _, name = entry["entrypoint"].partition(":")
        flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
        flow.validate_parameters(entry["parameters"])
        assert set(entry["parameters"]) <= set(flow.parameters.properties)
        assert entry["enforce_parameter_schema"]
        assert entry["work_pool"]["name"]
        for schedule in entry["schedules"]:
            assert schedule["slug"]
            assert schedule["timezone"]
    assert (ROOT / tree["deployments"][0]["parameters"]["config"]).is_file()
    assert {clearcause_region.name, clearcause_regions.name} == {"clearcause-region", "clearcause-regions"}


# ------------------------------------------------------------------------------------------ periods

DUE = datetime.datetime(2026, 3, 8, 2, 30, tzinfo=datetime.UTC)


def test_a_period_is_done_once(world, tiny_model, tmp_path):
    config = load_config(config_of(tmp_path, world, tiny_model))
    for run_id, wanted in (("one", ""), ("two", "period 2026-03-08T02:30:00Z was done by run one")):
        with held(config, Period(DUE, run_id)) as reason:
            assert reason == wanted
    with held(config, Period(DUE + datetime.timedelta(days=31), "three")) as reason:
        assert reason == ""
    with held(config, None) as reason:
        assert reason == "", "a run on demand belongs to no period"


def test_a_period_that_failed_is_not_done(world, tiny_model, tmp_path):
    config = load_config(config_of(tmp_path, world, tiny_model))
    with pytest.raises(RuntimeError, match="midway"), held(config, Period(DUE, "one")):
        raise RuntimeError("midway")
    with held(config, Period(DUE, "two")) as reason:
        assert reason == ""


@pytest.mark.parametrize("hours", [-9, -5, 0, 7, 14])
def test_a_period_is_known_by_its_time_not_by_its_zone(hours):
    there = DUE.astimezone(datetime.timezone(datetime.timedelta(hours=hours)))
    assert Period(there, "x").key == "2026-03-08T02:30:00Z"


def test_a_region_that_is_running_is_skipped_where_the_configuration_says_so(world, tiny_model, tmp_path):
    config = load_config(config_of(tmp_path, world, tiny_model, overlap="skip"))
    with held(config, None) as first, held(config, None) as second:
        assert first == ""
        assert "another run of riau is going on" in second


# ------------------------------------------------------------------------------------------ what a person sees


def test_the_page_of_a_product_says_areas_and_shows_the_map(reference):
    counts = json.loads((reference / "run.json").read_text())["counts"]
    page = summary_page(Outcome("published", reference, counts))
    assert page.startswith("# Drivers of forest loss, sample, 2021 to 2022")
    assert f"| {counts['events']} |" in page
    assert page.count("data:image/png;base64,") >= 2, "a map, and the colour of each driver"
    assert (reference / "report.html").as_uri() in page
    assert "simulated scenes" in page
    assert len(page) < 100_000


def test_the_page_of_a_failure_says_which_block_why_and_what_to_do(tmp_path):
    records = [
        {"block": "r0000c0001", "status": "failed", "reason": "its worker died | 3 times", "attempts": 3},
        {"block": "r0000c0002", "status": "done", "reason": "", "attempts": 1},
    ]
    (tmp_path / LEDGER_FILE).write_text(json.dumps({"excluded": {}, "blocks": records}))
    origin = Origin(("clearcause", "run", "/data/my region.yaml"), "clearcause-region/riau")
    page = failure_page("riau 2021 failed", IncompleteError("1 of 2 blocks failed"), tmp_path, origin)
    assert (
        "| r0000c0001 | 3 | its worker died \\| 3 times | `clearcause run '/data/my region.yaml' --blocks r0000c0001` |"
        in page
    )
    assert "r0000c0002" not in page
    assert "prefect deployment run clearcause-region/riau" in page
    other = failure_page("riau failed", ConfigError("model <b>x</b>: not there"), tmp_path, origin)
    assert "r0000c0001" not in other, "blocks of an earlier run are not this error's"
    assert "&lt;b&gt;" in other


def test_the_page_of_many_regions(reference, tmp_path):
    parts = [Part("riau", (), reference), Part("aceh", (2021,), reference, "Failed: no | scene")]
    regions, summary = roll_up(parts, tmp_path / "out")
    page = rollup_page("1 of 2 runs ended well", regions, summary, tmp_path / "out")
    assert "| aceh | 2021 | failed |  |  | Failed: no \\| scene |" in page
    assert "| riau | 2021 2022 | done | 85 |" in page


@pytest.fixture
def gone():
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        yield


def test_a_run_that_finds_no_server_says_so(gone, monkeypatch, tmp_path, world, tiny_model):
    monkeypatch.setenv("PREFECT_API_URL", "http://keeper:secret@127.0.0.1:9/api")
    request = Request(load_config(write_config(tmp_path, world, tiny_model)))
    with pytest.raises(ConfigError, match=r"^Prefect: .* PREFECT_API_URL does not answer .*; start it") as caught:
        run_request(request, "riau 2021")
    assert "secret" not in str(caught.value)
    assert not request.work.exists(), "nothing was begun"


class Heard(Board):
    """A board that keeps what it is told, and may refuse it."""

    def __init__(self, refuses=False):
        super().__init__("Riau", None)
        self.refuses, self.said = refuses, []

    def post(self, what, kind, data, description=""):
        self.said.append((what, data, description))
        return None if self.refuses else uuid.uuid4()

    def update(self, artifact, data, description):
        self.said.append(("update", data, description))
        return True


def blocks_of(progress, count):
    for k in range(count):
        progress.record(BlockRecord(f"r0000c{k:04d}", "failed" if k == 1 else "done"))


def test_progress_is_one_artifact_however_many_blocks():
    board = Heard()
    with Progress(board, interval=0.05) as progress:
        progress.expect(1000, {"r0000c0000"})
        blocks_of(progress, 500)
        time.sleep(0.2)
        blocks_of(progress, 1000)
    assert board.said[0][0] == "blocks"
    assert {what for what, *_ in board.said[1:]} == {"update"}
    assert len(board.said) < 20
    assert board.said[-1][1:] == (100.0, "999 of 1000 blocks done, 1 failed; last: r0000c0999")


def test_a_server_that_refuses_holds_nothing_up():
    board = Heard(refuses=True)
    with Progress(board, interval=0.02) as progress:
        progress.expect(3, set())
        blocks_of(progress, 3)
        time.sleep(0.1)
    assert len(board.said) > 1, "it is tried again"


def test_a_server_that_is_gone_fails_no_run(world, tiny_model, tmp_path, gone):
    board = Board("Riau", str(uuid.uuid4()))
    assert board.post("summary", "markdown", "text") is None
    assert not board.update(uuid.uuid4(), 1.0, "text")
    with Progress(board, interval=0.05) as progress:
        config = load_config(write_config(tmp_path, world, tiny_model))
        outcome = run(Path(tmp_path / "config.yaml"), progress=both(lambda _: None, progress.record))
        progress.expect(9, set())
    assert outcome.status == "published"
    assert config.output.dir.is_dir()
