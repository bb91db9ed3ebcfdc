"""The process that serves: looks for the server, writes the deployments, starts what is due, and ends in good order.

Told to end (SIGTERM, Ctrl-C), it ends its runs and schedules them again: they go on from their finished blocks when
serving starts again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runner import Runner
from prefect.runner._control_channel import ControlSignalStatus
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry

from flows.fanout import clearcause_regions
from flows.outages import API_FAULTS, outlive_the_server
from pipeline.errors import ConfigError

_AGAIN = "serving was ended; this run goes on from its finished blocks when serving starts again"
_log = logging.getLogger("prefect.clearcause")


class _Runner(Runner):
    """A runner that can end its runs without Prefect's taking them for crashed."""

    async def end_runs(self) -> list[UUID]:
        """Start nothing any more, and end what runs; returns the runs that were ended."""
        if not self.started:
            return []
        self.stopping = self._scheduled_run_poller.stopping = True
        runs = list(self._process_manager.flow_run_ids())
        await asyncio.gather(*[self._end(run) for run in runs])
        return runs

    async def _end(self, run: UUID) -> None:
        # told beforehand, the process ends without a state of its own; one that cannot be told has hardly begun
        told = await self._control_channel.signal(run, "reschedule")
        await self._process_manager.kill(run, force=told is ControlSignalStatus.NOT_ACKNOWLEDGED)


def check_server() -> str:
    """Return the address of the Prefect server that keeps the deployments.

    Raises:
        ConfigError: none is set, none answers, or it refuses us.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "PREFECT_API_URL is not set: schedules need a server that stays; "
            "start one (`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployments(limit=1)
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        hint = "; set PREFECT_API_AUTH_STRING" if code == 401 else ""
        raise ConfigError(f"PREFECT_API_URL {url}: the server answers {code}{hint}") from error
    except httpx.HTTPError as error:
        raise ConfigError(f"PREFECT_API_URL {url}: no server answers ({type(error).__name__}); start it") from error
    return str(url)


def serve_deployments(deployments: Sequence[RunnerDeployment], limit: int) -> None:
    """Write the deployments and run what is due, each run a process of its own, until told to end.

    `limit` is how many regions run at once; the run of many regions comes on top, since it only waits for them.
    Schedules go on while nobody serves: what fell due meanwhile runs when serving starts again.
    """
    # a line for each look at a run that waits would fill the terminal for hours
    logging.getLogger("prefect.runner").setLevel(logging.WARNING)
    outlive_the_server()
    asyncio.run(_serve(deployments, limit))


async def _serve(deployments: Sequence[RunnerDeployment], limit: int) -> None:
    regions = _Runner("clearcause regions", pause_on_shutdown=False, limit=limit)
    many = _Runner("clearcause many regions", pause_on_shutdown=False, limit=1)
    for deployment in deployments:
        await (many if deployment.flow_name == clearcause_regions.name else regions).aadd_deployment(deployment)
    # the run of many regions ends first: it cancels its own, which needs the other runner
    jobs = {runner: asyncio.create_task(runner.start()) for runner in (many, regions)}
    # a runner's own way with SIGTERM leaves its runs behind; each has set it once it has begun
    await asyncio.sleep(0)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await asyncio.wait([*jobs.values(), asyncio.create_task(told.wait())], return_when=asyncio.FIRST_COMPLETED)
    for runner, job in jobs.items():
        runs = await runner.end_runs()
        job.cancel()
        await asyncio.wait([job])
        await _schedule_again(runs)
    for job in jobs.values():
        if not job.cancelled():
            job.result()


async def _schedule_again(runs: Sequence[UUID]) -> None:
    """Let runs that were ended midway go on when serving starts again."""
    for run in runs:
        try:
            async with get_client() as client:
                state = (await client.read_flow_run(run)).state
                if state is None or not state.is_final() or state.is_crashed():
                    again: State[Any] = AwaitingRetry(message=_AGAIN)
                    await client.set_flow_run_state(run, again)
        except API_FAULTS as error:
            _log.warning("run %s was ended, and the server could not be told: %s", run, error)
