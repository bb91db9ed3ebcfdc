"""Deployments: one for each region's configuration, and one that runs many of them.

A deployment's version is a digest of what it says: one that has not changed is not written again, so that a restart or
a redeploy leaves alone the runs that are about to start.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema

from flows.fanout import clearcause_regions
from flows.regions import clearcause_region
from pipeline.artifacts import digest
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError

SLUG = "configured"
"""Name of the schedule that a configuration writes; without a name each redeploy would make another schedule."""
NEW_SCENES, NEW_LOSS = "clearcause.new-scenes", "clearcause.new-loss"
"""Events that start a run of the region `clearcause.region.<name>`; the second carries `years` in its payload."""
EVERY_REGION = "all"
_TOO_CLOSE = 15.0
"""Seconds before a run is due in which its deployment is not written: the run would be deleted and planned too late."""


class Served(RunnerDeployment):
    """A deployment that is written only where it differs from the one the server has."""

    async def aapply(
        self,
        schedules: list[dict[str, Any]] | None = None,
        work_pool_name: str | None = None,
        image: str | None = None,
        version_info: Any = None,
    ) -> UUID:
        """Write the deployment and return its id; one that is there and says the same stays untouched."""
        async with get_client() as client:
            try:
                known = await client.read_deployment_by_name(self.full_name)
            except ObjectNotFound:
                return await super().aapply(schedules, work_pool_name, image, version_info)
            if known.version == self.version:
                return known.id
            await _wait_for_due_runs(client, known.id)
            stale = [schedule.id for schedule in known.schedules if schedule.slug == SLUG and not self.schedules]
            for schedule in stale:
                await client.delete_deployment_schedule(known.id, schedule)
        return await super().aapply(schedules, work_pool_name, image, version_info)


class _Closed(ParameterSchema):
    """The schema of a flow's parameters that takes no others; the error of `propertyNames` names those there are."""

    propertyNames: dict[str, list[str]]


async def _wait_for_due_runs(client: PrefectClient, deployment: UUID) -> None:
    """Let a run that is due in a moment start first."""
    now = datetime.datetime.now(datetime.UTC)
    soon = FlowRunFilterNextScheduledStartTime(after_=now, before_=now + datetime.timedelta(seconds=_TOO_CLOSE))
    due = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]), next_scheduled_start_time=soon
        )
    )
    times = [run.next_scheduled_start_time for run in due if run.next_scheduled_start_time is not None]
    if times:
        # Prefect has its own kind of time on Python 3.12 and the usual one after it
        await anyio.sleep(max(time.timestamp() for time in times) - now.timestamp() + 1)


def region_deployment(path: Path) -> RunnerDeployment:
    """Return the deployment of one configuration: named as its region, on the schedule of its section `schedule`.

    Raises:
        ConfigError: the configuration or its cron cannot work.
    """
    config = load_config(path)
    name, plan = config.region.name, config.schedule
    strategy = ConcurrencyLimitStrategy.ENQUEUE if plan.overlap == "wait" else ConcurrencyLimitStrategy.CANCEL_NEW
    try:
        cron = [Cron(plan.cron, timezone=plan.timezone, slug=SLUG)] if plan.cron else []
    except ValueError as error:
        raise ConfigError(f"configuration {path}: schedule.cron: {error}") from error
    deployment = Served.from_flow(
        clearcause_region,
        name,
        schedules=cron,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        parameters={"config": str(path.resolve())},
        triggers=_triggers(name),
        tags=["clearcause", *plan.tags],
        description=_described(config),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # whoever may start a run may not make it read another file
    deployment._parameter_openapi_schema.properties["config"]["enum"] = [str(path.resolve())]
    return _versioned(deployment)


def fanout_deployment(names: Sequence[str], out: Path) -> RunnerDeployment:
    """Return the deployment that runs many of the named regions, and puts the roll-up into `out`."""
    deployment = Served.from_flow(
        clearcause_regions,
        EVERY_REGION,
        schedules=[],
        concurrency_limit=ConcurrencyLimitConfig(limit=1),
        parameters={"regions": list(names), "out": str(out.resolve())},
        tags=["clearcause"],
        description="Runs regions, so many at once, and puts their areas into one table.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment._parameter_openapi_schema.properties["regions"]["items"]["enum"] = list(names)
    return _versioned(deployment)


def _described(config: RunConfig) -> str:
    years = ", ".join(map(str, config.loss.years))
    return f"Drivers of forest loss in {config.region.name}, loss years {years}. Product: {config.output.dir}"


def _triggers(name: str) -> list[Any]:
    """Runs that a webhook starts: whoever posts the event need not know the deployment."""
    resource = {"prefect.resource.id": f"clearcause.region.{name}"}
    template = {"__prefect_kind": "jinja", "template": "{{ event.payload.years }}"}
    years = {"years": {"__prefect_kind": "json", "value": template}}
    return [
        DeploymentEventTrigger(name=f"{name}: new scenes", expect={NEW_SCENES}, match=resource),
        DeploymentEventTrigger(name=f"{name}: new loss", expect={NEW_LOSS}, match=resource, parameters=years),
    ]


def _versioned(deployment: RunnerDeployment) -> RunnerDeployment:
    known = deployment._parameter_openapi_schema
    deployment._parameter_openapi_schema = _Closed(
        **known.model_dump(exclude_unset=True), propertyNames={"enum": list(known.properties)}
    )
    told = deployment.model_dump(mode="json", exclude={"version", "version_type"})
    schema = deployment._parameter_openapi_schema.model_dump()
    triggers = [trigger.model_dump(mode="json") for trigger in deployment.triggers]
    deployment.version = digest([told, schema, triggers])[:12]
    return deployment


def make_deployments(configs: Sequence[Path], rollup: Path) -> list[RunnerDeployment]:
    """Return the deployments of these configurations and the one that runs many of them.

    Raises:
        ConfigError: a configuration cannot work, or two write into one folder or have one name.
    """
    made = [region_deployment(path) for path in configs]
    for what, values in (
        ("region.name", [deployment.name for deployment in made]),
        ("output.dir", [str(load_config(path).output.dir) for path in configs]),
    ):
        twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
        if twice is not None:
            raise ConfigError(f"{what} {twice}: two configurations have it; each region needs its own")
    return [*made, fanout_deployment([deployment.name for deployment in made], rollup)]


def line_of(deployment: RunnerDeployment) -> str:
    """Return a deployment's name and when it runs, for a terminal."""
    plans = [item.schedule for item in deployment.schedules or []]
    times = [f"{plan.cron} {plan.timezone}" for plan in plans if isinstance(plan, CronSchedule)]
    return f"{deployment.full_name}: {', '.join(times) or 'on demand'}"
