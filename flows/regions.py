"""The flow of one region: the stages of `pipeline.graph` as Prefect tasks.

Prefect sees five tasks a run; the blocks inside *predict* are driven by the ledger on a plain Dask client. State is
files: no result is kept by Prefect, so a run that lost its server goes on from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from flows.runtime import open_pool
from pipeline.artifacts import run_lock
from pipeline.config import load_config
from pipeline.errors import ClearcauseError
from pipeline.graph import run_region
from pipeline.request import Request
from pipeline.steps import check_output

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


def run_request(request: Request, name: str) -> Any:
    """Run a request as a Prefect flow; the run's name says region and years."""

    @flow(name="region", flow_run_name=name, validate_parameters=False, persist_result=False)
    def region() -> Any:
        return run_region(request, as_task)

    return region()


@flow(name="clearcause-region", flow_run_name="{config}", persist_result=False)
def clearcause_region(
    config: Path,
    years: list[int] | None = None,
    blocks: list[str] | None = None,
    executor: str | None = None,
    allow_incomplete: bool = False,
) -> dict[str, Any]:
    """Process one region: the flow that deployments serve.

    Args:
        config: configuration file of the region.
        years: loss years instead of the configured ones.
        blocks: only these blocks.
        executor: local, threads, or a Dask scheduler address instead of the configured one.
        allow_incomplete: publish even if blocks failed, and say so in the product.
    """
    overrides = [f"loss.years={years}"] if years else []
    overrides += [f"compute.executor={executor}"] if executor else []
    parsed = load_config(config, tuple(overrides))
    request = Request(parsed, tuple(blocks or ()), allow_incomplete, pool=open_pool)
    check_output(parsed)
    with run_lock(parsed.work):
        outcome = run_region(request, as_task)
    return {"status": outcome.status, "product": str(outcome.product), "counts": outcome.counts}
