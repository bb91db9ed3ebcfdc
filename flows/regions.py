"""The flow of one region: the stages of `pipeline.graph` as Prefect tasks.

Prefect sees five tasks a run; the blocks inside *predict* are driven by the ledger on a plain Dask client. State is
files: no result is kept by Prefect, so a run that lost its server goes on from its checkpoints.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)  # fmt: skip
from prefect.states import Cancelled, Completed
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.artifacts import Board, Page, Progress, both, last_page
from flows.outages import API_FAULTS, DAY, outlive_the_server
from flows.pages import Origin, failure_page, summary_page
from flows.periods import Period, held
from flows.runtime import open_pool, worker_count
from pipeline import steps
from pipeline.config import RunConfig, load_config
from pipeline.errors import ClearcauseError, ConfigError
from pipeline.graph import run_region
from pipeline.plan import Plan
from pipeline.request import Outcome, Request

_log = logging.getLogger("clearcause")
# this module is what a process of Prefect imports before it begins the run
outlive_the_server()

RETRIES = {"plan_run": 2, "fetch_scenes": 2}
"""Stages that talk to the outside are tried again; the others keep their own ledger or are pure."""


def as_task(stage: Callable[..., Any], *arguments: Any) -> Any:
    """Run a stage as a Prefect task of its own name; arguments are passed as they are, neither hashed nor stored."""

    def body(*quoted: Any) -> Any:
        return stage(*[argument.unquote() if isinstance(argument, quote) else argument for argument in quoted])

    options: dict[str, Any] = {
        "name": stage.__name__,
        "retries": RETRIES.get(stage.__name__, 0),
        "retry_delay_seconds": 5,
        "retry_condition_fn": _worth_retrying,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }
    return task(**options)(body)(*[quote(argument) for argument in arguments])


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Bad input does not get better by trying again."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, ClearcauseError)


def run_name(config: RunConfig) -> str:
    """Name of a run: region and years."""
    return f"{config.region.name} {'-'.join(map(str, config.loss.years))}"


# ---------------------------------------------------------------------------------------------- from the program


def run_request(request: Request, name: str, server: Callable[[], str] | None = None) -> Any:
    """Run a request of the program as a Prefect flow; the run's name says region and years.

    Args:
        request: What to run.
        name: The run's name.
        server: Gives the address of a server that was started for this run, for where no other is set.

    Raises:
        ConfigError: there is no Prefect server to begin with.
        ClearcauseError: see `pipeline.graph.run_region`.
    """
    origin = Origin(("clearcause", *sys.argv[1:]), takes_blocks=sys.argv[1:2] == ["run"])
    outcome: Outcome | None = None
    begun = False

    @flow(name="region", flow_run_name=name, validate_parameters=False, persist_result=False)
    def region() -> Any:
        nonlocal outcome, begun
        begun = True
        board = Board(request.config.region.name, runtime.flow_run.id)
        with last_page(board, patience=0) as say:
            outcome = _watched(request, origin, board, say)
        return outcome

    try:
        # five times, as by default, a program would wait for minutes at the end for a server that is gone
        settings: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 2}
        if server and not PREFECT_API_URL.value():
            # nobody is left to miss the heartbeats of a run whose server ends with it; their thread ends in a second
            settings |= {PREFECT_API_URL: server(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with temporary_settings(settings):
            return region()
    except API_FAULTS as error:
        if not begun:
            # the address may hold a password
            which = "the server of PREFECT_API_URL" if os.environ.get("PREFECT_API_URL") else "its temporary server"
            raise ConfigError(
                f"Prefect: {which} does not answer ({type(error).__name__}); start it, or run with --no-prefect"
            ) from error
        if outcome is None:
            raise
        _log.warning("the product is whole, but Prefect's server could not be told: %s", error)
        return outcome


def _watched(request: Request, origin: Origin, board: Board, say: Callable[[Page], None]) -> Outcome:
    """Run the stages as tasks, with what a person sees of them: progress, and a page that is handed to `say`."""
    config = request.config
    with Progress(board) as progress:
        seen = dataclasses.replace(
            request, pool=progress.pool(request.pool), progress=both(request.progress, progress.record)
        )

        def call(stage: Callable[..., Any], *arguments: Any) -> Any:
            if stage is steps.predict_blocks:
                progress.expect(*_blocks(request, arguments[1]))
            return as_task(stage, *arguments)

        try:
            outcome = run_region(seen, call)
        except Exception as error:
            page = failure_page(f"{run_name(config)} failed", error, config.work, origin)
            say(Page("failure", page, "What failed, and the command that runs it again"))
            raise
    say(Page("summary", summary_page(outcome), f"{run_name(config)}: {outcome.status}"))
    return outcome


def _blocks(request: Request, plan: Plan) -> tuple[int, set[str]]:
    """How many blocks are asked for, and those that have their checkpoint already."""
    asked = [p for p in plan.blocks if not request.blocks or p.block.id in request.blocks]
    return len(asked), steps.finished_blocks(request.work, plan) & {p.block.id for p in asked}


# ---------------------------------------------------------------------------------------------- served

Year = Annotated[int, Field(ge=2001, le=2255)]
BlockId = Annotated[str, Field(pattern=r"^r\d{4,}c\d{4,}(\+\d+)?$")]
Executor = Annotated[str, Field(pattern=r"^(|local|threads|cuda|slurm|kubernetes|(tcp|tls|ws|wss|ucx|inproc)://\S+)$")]
Variant = Annotated[str, Field(pattern=r"^(|[A-Za-z0-9][A-Za-z0-9_.-]{0,40})$")]


def _served_name() -> str:
    """Name of a served run, before the flow starts; a configuration that cannot be read is told by the flow itself."""
    asked = dict(runtime.flow_run.parameters)
    try:
        config = load_config(Path(asked["config"]))
    except ClearcauseError:
        return Path(asked["config"]).stem
    years = asked.get("years") or config.loss.years
    return f"{config.region.name} {'-'.join(map(str, years))}"


@flow(name="clearcause-region", flow_run_name=_served_name, persist_result=False)
def clearcause_region(
    config: Path,
    years: tuple[Year, ...] = (),
    blocks: tuple[BlockId, ...] = (),
    variant: Variant = "",
    model: str = "",
    tiling: Literal["as configured", "grid", "events"] = "as configured",
    executor: Executor = "",
    replan: bool = False,
    allow_incomplete: bool = False,
) -> Any:
    """Process one region; what is left empty is as configured.

    Args:
        config: Configuration file of the region.
        years: Loss years, such as 2021; none: as configured.
        blocks: Only these blocks, as in r0000c0001; the product comes with a run of all of them.
        variant: A name; the product goes beside the regular one, to output.dir with "-" and this name behind it.
        model: Folder of a model package, if not the configured one.
        tiling: How patches are laid: one lattice, or centred on events.
        executor: If not as configured: local, threads, cuda, slurm, kubernetes, or the address of a Dask scheduler.
        replan: Plan anew with all scenes; without, only events that await an image are looked at again.
        allow_incomplete: Publish even if blocks failed, and say so in the product.
    """
    # Nine parameters: they are the form that Prefect shows
    overrides = [f"loss.years={list(years)}"] if years else []
    overrides += [f"model={Path(model).resolve()}"] if model else []
    overrides += [f"tiling.mode={tiling}"] if tiling != "as configured" else []
    overrides += [f"compute.executor={executor}"] if executor else []
    parsed = with_variant(load_config(config, tuple(overrides)), variant)
    command = ["clearcause", "run", str(config), *[word for text in overrides for word in ("-o", text)]]
    command += ["--out", str(parsed.output.dir)] if variant else []
    origin = Origin(tuple(command), f"clearcause-region/{parsed.region.name}")
    steps.check_output(parsed)
    board = Board(parsed.region.name, runtime.flow_run.id)
    # the folder is free again before a server that is away is waited for
    with last_page(board, patience=DAY) as say, held(parsed, _period()) as reason:
        if reason:
            return Cancelled(name="Skipped", message=reason)
        request = Request(
            parsed, tuple(blocks), allow_incomplete, replan, open_pool, workers=worker_count(parsed.compute)
        )
        return _ended(_watched(request, origin, board, say))


def with_variant(config: RunConfig, variant: str) -> RunConfig:
    """Return the configuration with its product beside the regular one; an empty variant changes nothing."""
    if not variant:
        return config
    return config.model_copy(update={"output": config.output.beside(variant)})


def _period() -> Period | None:
    """The period that the schedule started this run for; None for a run on demand."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.expected_start_time is None:
        return None
    return Period(run.expected_start_time, str(run.id))


def _ended(outcome: Outcome) -> State[dict[str, Any]]:
    counts = outcome.counts
    told = f"{counts['events']:,} events, {counts['loss_ha']:,.1f} ha" if "events" in counts else f"{counts}"
    result = {"status": outcome.status, "product": str(outcome.product), "counts": counts}
    return Completed(message=f"{outcome.status}: {told}; {outcome.product}", data=result)
