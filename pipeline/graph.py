"""THE DATA FLOW. Read this first.

    configuration --plan--> frozen plan: events, blocks, scenes
                  --fetch-> every file at hand
                  --predict-> one checkpoint for each block: scenes > composite > patches > model > event sums
                  --merge-> events, patches, units, rasters
                  --publish-> GeoPackage, COGs, STAC Item, report, run.json

The same function runs in plain Python (`call` calls the stage) and in Prefect (`call` makes a task of it). What a stage
does stands in `steps.py`; what happens to the pixels of a block stands in `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline import fetching, steps
from pipeline.request import Outcome, Request

Call = Callable[..., Any]


def plainly(stage: Callable[..., Any], *arguments: Any) -> Any:
    """Call a stage in this process, without an orchestrator."""
    return stage(*arguments)


def run_region(request: Request, call: Call = plainly) -> Outcome:
    """Run one region: from its configuration to a published product, or to nothing if the product is current.

    Raises:
        ClearcauseError: see `pipeline.errors`; the product of an earlier run stays as it was.
    """
    call = request.clock.watching(call)
    plan = call(steps.plan_run, request)
    if (done := steps.current(request, plan)) is not None:
        return done
    steps.expect(request, plan)
    plan = call(fetching.fetch_scenes, request, plan)
    # the plan was made anew, and it came out the same
    if (done := steps.current(request, plan)) is not None:
        return done
    ledger = call(steps.predict_blocks, request, plan)
    merged = call(steps.merge_blocks, request, ledger)
    if merged is None:
        return steps.partial(request, ledger)
    outcome: Outcome = call(steps.publish_product, request, merged)
    return steps.learn(request, ledger, outcome)
