"""`clearcause plan`: what a run would do, and what it would take on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.cli_run import log_file, orchestrator_kind

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.costs.forecast import Forecast
    from pipeline.plan import Plan


@dataclass(frozen=True)
class LookAhead:
    """A plan and its forecast."""

    plan: Plan
    forecast: Forecast

    def record(self) -> dict[str, Any]:
        """Both as plain values; counts come first."""
        return {**self.plan.counts(), **self.forecast.record(), "speeds_measured": self.forecast.newest or None}


def look_ahead(config: RunConfig, *, prefect: bool, calibrate: bool) -> LookAhead:
    """Plan a run and predict it; with `calibrate` the model is measured first.

    Raises:
        InputError: when the configuration, the loss, the model or the catalog cannot work.
    """
    from flows.runtime import worker_count
    from pipeline import steps
    from pipeline.artifacts import run_lock
    from pipeline.costs.forecast import forecast, setting_of
    from pipeline.costs.probe import probe_model
    from pipeline.costs.speeds import read_speeds
    from pipeline.costs.work import work_of
    from pipeline.request import Request

    steps.check_output(config)
    with run_lock(config.work), log_file(config.work):
        # with a product at hand, looking must not give it another plan
        known = steps.published_record(config.output.dir, config.output.store)
        plan = steps.plan_run(Request(config, replan=known is None))
    setting = setting_of(config, plan, worker_count(config.compute), orchestrator_kind(prefect))
    if calibrate:
        probe_model(config, setting)
    work = work_of(plan, config, steps.finished_blocks(config.work, plan))
    return LookAhead(plan, forecast(work, setting, read_speeds()))


def render(looked: LookAhead) -> str:
    """The plan, the forecast and where it comes from, as text for a terminal."""
    counts, found = looked.plan.counts(), looked.forecast
    width = max(map(len, counts))
    lines = [f"{key:<{width}}  {value:,}" for key, value in counts.items()]
    lines += [
        f"predicted: {found.seconds:,.0f} s ({found.low:,.0f} to {found.high:,.0f}) with {found.workers} workers: "
        + ", ".join(f"{name} {value:,.0f}" for name, value in found.stages.items() if value >= 1),
        f"memory: {found.worker_mb:,} MB a worker; to fetch: {found.fetch_bytes / 1e6:,.0f} MB; "
        f"on disk: {found.disk_bytes / 1e6:,.0f} MB",
        _source(found),
    ]
    lines += [f"refused {refusal.scene_id}: {refusal.reason}" for refusal in looked.plan.refused]
    lines += [f"warning: {text}" for text in (*looked.plan.warnings, *looked.plan.said)]
    return "\n".join(lines)


def _source(found: Forecast) -> str:
    """Where the forecast comes from and how old that is."""
    if found.fault:
        return f"speeds: {found.fault}; this is a guess"
    if not found.newest:
        return "speeds: no run has been measured on this machine, this is a guess; --calibrate measures the model"
    age = datetime.now(UTC) - datetime.fromisoformat(found.newest)
    old = f"{age.days} days" if age.days else f"{age.seconds // 3600} hours" if age.seconds >= 3600 else "minutes"
    told = f"speeds: measured on this machine, last {old} ago"
    if found.guessed:
        return f"{told}; guessed, as no run has measured it: {', '.join(found.guessed)}"
    return f"{told}, in {found.measured} run{'s' if found.measured > 1 else ''} or more"
