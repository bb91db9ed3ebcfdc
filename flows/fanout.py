"""The flow of many regions: a run of its own for each region and year, so many at once, and one table of them all."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID

import httpx
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Failed
from pydantic import Field

from flows.artifacts import Board
from flows.outages import API_FAULTS, DAY, wait_for_server
from flows.pages import rollup_page
from flows.regions import Year, with_variant
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.rollup import Part, roll_up

_POLL = 2.0
"""Seconds between two looks at a run."""


def _name() -> str:
    asked = dict(runtime.flow_run.parameters)
    regions, years = asked.get("regions") or (), asked.get("years") or ()
    return f"{len(regions)} regions {'-'.join(map(str, years))}".strip()


@flow(name="clearcause-regions", flow_run_name=_name, persist_result=False)
def clearcause_regions(
    regions: tuple[str, ...],
    years: tuple[Year, ...] = (),
    at_once: Annotated[int, Field(ge=1, le=64)] = 1,
    replan: bool = False,
    out: Path = Path("out/rollup"),
) -> Any:
    """Run many regions and put their areas into one table. A region that fails stops no other.

    Args:
        regions: Names of regions that are served.
        years: Loss years, each a run and a product of its own; empty: one run for each region, as configured.
        at_once: How many regions run at once; the years of a region run one after the other.
        replan: Plan anew with all scenes; without, only events that await an image are looked at again.
        out: Folder of the roll-up, summary.csv and regions.csv.
    """
    over, running = threading.Event(), dict[UUID, str]()
    with ThreadPoolExecutor(at_once, "region") as pool:
        jobs: list[Future[list[Part]]] = [
            # each thread needs the context of this flow, by which Prefect knows the parent of a run
            pool.submit(contextvars.copy_context().run, _run_region, region, years, replan, (over, running))
            for region in dict.fromkeys(regions)
        ]
        try:
            parts = [part for job in jobs for part in job.result()]
        except BaseException:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _cancel(list(running))
            raise
    table, summary = roll_up(parts, out)
    failed = int((table["status"] == "failed").sum())
    text = f"{len(table) - failed} of {len(table)} runs ended well"
    page = rollup_page(text, table, summary, out.resolve())
    Board("regions", runtime.flow_run.id).post("rollup", "markdown", page, text)
    return Failed(message=f"{text}; regions.csv says why the others did not") if failed else text


def _run_region(
    region: str, years: Sequence[int], replan: bool, book: tuple[threading.Event, dict[UUID, str]]
) -> list[Part]:
    """Run a region, year by year; whatever happens to it becomes the reason in its parts."""
    over, running = book
    parts = []
    each: list[tuple[int, ...]] = [(year,) for year in years] or [()]
    for asked in each:
        if over.is_set():
            break
        name = f"clearcause-region/{region}"
        variant = str(asked[0]) if asked else ""
        wait_for_server(DAY)
        try:
            with get_client(sync_client=True) as client:
                config = Path(client.read_deployment_by_name(name).parameters["config"])
            product = with_variant(load_config(config), variant).output.dir
            wanted = {"years": list(asked), "variant": variant, "replan": replan}
            run = _started(name, wanted, f"{runtime.flow_run.id} {runtime.flow_run.run_count} {region} {variant}")
            running[run.id] = region
            ended = _ended(run.id, over)
            running.pop(run.id)
            parts.append(Part(region, asked, product, _fault(ended)))
        except ObjectNotFound:
            parts.append(Part(region, asked, Path(), f"no such deployment: {name}; serve its configuration"))
        except (ConfigError, *API_FAULTS) as error:
            parts.append(Part(region, asked, Path(), str(error)))
    return parts


def _started(name: str, wanted: dict[str, Any], key: str) -> FlowRun:
    """Start a run; where the server goes away meanwhile, ask again: `key` keeps a second run from being made."""
    try:
        return cast("FlowRun", run_deployment(name, parameters=wanted, timeout=0, idempotency_key=key))
    except httpx.TransportError:
        wait_for_server(DAY)
        return cast("FlowRun", run_deployment(name, parameters=wanted, timeout=0, idempotency_key=key))


def _ended(run: UUID, over: threading.Event) -> FlowRun | None:
    """Wait for a run; None where this flow ends before it."""
    while not over.wait(_POLL):
        try:
            with get_client(sync_client=True) as client:
                seen = client.read_flow_run(run)
        except API_FAULTS:
            continue  # the server may be restarting; the run itself goes on without it
        if seen.state is not None and seen.state.is_final():
            return seen
    return None


def _fault(run: FlowRun | None) -> str:
    state = run.state if run else None
    if run is None or state is None:
        return "was not waited for"
    if state.type is StateType.COMPLETED:
        return ""
    return f"{state.name}: {state.message or 'no message'} (run {run.name})"


def _cancel(runs: Sequence[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run, Cancelling(message="the run of many regions was cancelled"))
