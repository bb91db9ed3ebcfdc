"""Fifty redeploys while two schedulers plan over one PostgreSQL: every period comes, and is worked on once."""

from __future__ import annotations

import datetime
import json
import sys
from contextlib import ExitStack

import pytest
from prefect_server import postgres, prefect_server, process, served, until
from run_samples import write_config

from flows.periods import PERIODS_FILE
from pipeline.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

REDEPLOYS = 50
REDEPLOY = """
import asyncio, sys
from pathlib import Path
import yaml
from flows.deployments import region_deployment

async def redeploy():
    path = Path(sys.argv[1])
    for number in range(int(sys.argv[2])):
        tree = yaml.safe_load(path.read_text())
        tree["schedule"]["tags"] = [f"redeploy-{number}"]
        path.write_text(yaml.safe_dump(tree))
        await region_deployment(path).aapply()
        await asyncio.sleep(float(sys.argv[3]))

asyncio.run(redeploy())
"""


def minute(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).replace(second=0, microsecond=0)


def test_fifty_redeploys_and_two_schedulers_make_each_period_once(tmp_path, world, tiny_model):
    plan = {"cron": "* * * * *", "timezone": "Asia/Jakarta"}
    config = write_config(tmp_path / "often", world, tiny_model, region__name="often", schedule=plan)
    with ExitStack() as stack:
        database = stack.enter_context(postgres(tmp_path / "postgres"))
        prefect = stack.enter_context(prefect_server(tmp_path / "prefect", database, services=False))
        services = [sys.executable, "-m", "prefect", "server", "services", "start"]
        for number in range(2):
            stack.enter_context(process(services, tmp_path / f"services-{number}.log", prefect.environment))
        stack.enter_context(served(prefect, tmp_path / "serve.log", config))
        name = "clearcause-region/often"
        first_seen = prefect.deployment(name)
        until("first run", 600, lambda: [r for r in prefect.runs(name) if r["state_type"] == "COMPLETED"])
        began = datetime.datetime.now(datetime.UTC)
        # more than three minutes in all, however fast each is: two whole periods lie in them
        redeploy = [sys.executable, "-c", REDEPLOY, str(config), str(REDEPLOYS), "4"]
        child = stack.enter_context(process(redeploy, tmp_path / "redeploy.log", prefect.environment))
        assert child.wait(800) == 0, (tmp_path / "redeploy.log").read_text()
        over = datetime.datetime.now(datetime.UTC)
        last = prefect.deployment(name)
        assert last["tags"] == ["clearcause", f"redeploy-{REDEPLOYS - 1}"]
        assert [s["id"] for s in last["schedules"]] == [s["id"] for s in first_seen["schedules"]]

        def settled():
            due = [r for r in prefect.runs(name) if minute(r["expected_start_time"]) <= over]
            return due if all(r["state_type"] in ("COMPLETED", "CANCELLED") for r in due) else []

        due = until("end of all runs that were due", 600, settled)
    worked = [minute(r["expected_start_time"]) for r in due if r["state_name"] != "Skipped"]
    assert len(set(worked)) == len(worked), "a period was worked on twice"
    wanted, at = set(), minute(began.isoformat()) + datetime.timedelta(minutes=1)
    while at < over - datetime.timedelta(minutes=1):
        wanted.add(at)
        at += datetime.timedelta(minutes=1)
    assert len(wanted) >= 2, "the redeploys lasted for several periods"
    assert wanted <= set(worked), "a period was lost"
    kept = json.loads((load_config(config).work / PERIODS_FILE).read_text())
    assert wanted <= {minute(key) for key in kept}
    assert len(kept) == len(worked)
