"""The stages of a run with their files: name what is made, read what it needs, call the pure functions, commit.

`graph.py` strings them together; nothing here knows Prefect, and Dask only as an executor that was handed in.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import late
from pipeline import plan as planning
from pipeline.artifacts import file_sha256, replace_folder, restore_folder, write_json
from pipeline.blocks import BlockRecord, BlockTask, checkpoint_name, compute_block, found_block
from pipeline.config import RunConfig
from pipeline.costs.forecast import bytes_below, disk_lessons, fetch_lessons, forecast, lessons, setting_of
from pipeline.costs.speeds import add_run, read_speeds
from pipeline.costs.work import work_of
from pipeline.drivers import AWAITING
from pipeline.errors import ConfigError, IncompleteError, OutputError
from pipeline.fetch_log import read_fetch_log
from pipeline.fetching import fetch_scenes
from pipeline.gdal import small_cache
from pipeline.ledger import Ledger, drive
from pipeline.memory import give_back
from pipeline.plan import PLAN_FILE, Plan, product_digest, state_digest
from pipeline.plan_scenes import without_scenes
from pipeline.planner import archive_state, checked_model, make_plan, plan_inputs
from pipeline.request import ENGINE_FILE, Outcome, Request
from pipeline.stores.checkpoints import CheckpointStore
from pipeline.stores.products import at_hand, check_store, publish, read_record

if TYPE_CHECKING:
    from pipeline.product.write import ProductInputs

LEDGER_FILE = "ledger.json"
_log = logging.getLogger("clearcause")
# ---------------------------------------------------------------------------------------------- plan


@small_cache
def plan_run(request: Request) -> Plan:
    """Plan the run, or go on with the frozen plan, with a late pass where images have come (see `pipeline.late`).

    Raises:
        InputError: when the configuration, the loss, the model or the catalog cannot work.
    """
    config, work = request.config, request.work
    request.remember()
    card = checked_model(config)
    inputs = planning.fingerprint(plan_inputs(config, card))
    plan = None if request.replan else _frozen(config, inputs)
    if plan is None:
        work.mkdir(parents=True, exist_ok=True)
        (work / PLAN_FILE).unlink(missing_ok=True)
        plan = make_plan(config, card, inputs, request.drawing, request.begin_pool)
    elif waiting := late.read_awaiting(work, state_digest(plan)):
        plan = late.plan_pass(config, card, plan, waiting) or plan
    plan = dataclasses.replace(plan, cache=str(config.imagery.cache))
    if not (work / PLAN_FILE).is_file() or plan != planning.read_plan(work):
        plan.save(work)
    return plan


def _frozen(config: RunConfig, inputs: str) -> Plan | None:
    """The plan that lies in the run's folder, None where it is another one's or its files have changed."""
    path = config.work / PLAN_FILE
    # a plan of other inputs may be of another version of this program: only its digest is read
    if not path.is_file() or json.loads(path.read_bytes()).get("inputs") != inputs:
        return None
    plan = planning.read_plan(config.work)
    if late.files_changed(plan):
        return None
    begun = any(b.late for b in plan.blocks) or late.read_awaiting(config.work, state_digest(plan)) is not None
    return plan if begun or plan.archive == archive_state(config) else None


# ---------------------------------------------------------------------------------------------- predict


def predict_blocks(request: Request, plan: Plan) -> Ledger:
    """Compute every block that has no checkpoint yet; the ledger says how each of them ended.

    Raises:
        ConfigError: --blocks names a block that the plan does not have.
    """
    wanted = _wanted(request, plan)
    ledger = Ledger()
    missing: list[planning.PlannedBlock] = []
    states: dict[str, str] = {}
    names = [checkpoint_name(plan, planned, states=states) for planned in wanted]
    kept = _checkpoint_store(request, names)
    for planned, name in zip(wanted, names, strict=True):
        checkpoint = request.work / "blocks" / name
        if checkpoint.exists():
            ledger.records[planned.block.id] = found_block(checkpoint, planned.block.id)
        else:
            missing.append(planned)
    if missing:
        # the longest first, so that no worker is left alone with one at the end
        missing.sort(key=lambda planned: -planned.patches)
        _compute(request, [planned.block.id for planned in missing], ledger, kept)
        if ledger.excluded:
            return _without(request, plan, ledger)
    _save_ledger(request, ledger)
    return ledger


def _checkpoint_store(request: Request, names: list[str]) -> CheckpointStore | None:
    """The store that keeps the checkpoints, None where none is named; it and this machine then hold the same ones."""
    if not request.config.output.store:
        return None
    kept, blocks = CheckpointStore(request.config.output.store), request.work / "blocks"
    kept.pull(names, blocks)
    kept.push_all(blocks / name for name in names if (blocks / name).is_dir())
    return kept


def _compute(request: Request, blocks: list[str], ledger: Ledger, kept: CheckpointStore | None) -> None:
    """Drive blocks through the request's pool; failures stand in the run's folder as soon as they are known."""
    config = request.config
    _prepare_engine(config)
    _sweep(request)
    frozen, compute = file_sha256(request.work / PLAN_FILE), config.compute
    tasks = [
        BlockTask(
            request.work, frozen, block, config.model, compute.engine, compute.precision, cache=config.imagery.cache
        )
        for block in blocks
    ]

    def tell(record: BlockRecord) -> None:
        if record.status == "failed":
            _save_ledger(request, ledger)
        elif kept:
            kept.push(request.work / "blocks" / record.checkpoint)
        request.progress(record)

    try:
        with request.pool(config) as pool:
            drive(tasks, compute_block, pool, tell, ledger)
    finally:
        _save_ledger(request, ledger)


def _sweep(request: Request) -> None:
    """Remove what workers that were killed have left half-written; whole checkpoints have other names."""
    for path in (request.work / "blocks").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _without(request: Request, plan: Plan, ledger: Ledger) -> Ledger:
    """Take the unreadable scenes out of the frozen plan, put others in their place, and compute what had used them."""
    refused = [planning.refuse(plan.scenes[s], f"unreadable: {reason}") for s, reason in ledger.excluded.items()]
    thinner = without_scenes(plan, refused, late.settled_blocks(request.work, plan))
    thinner.save(request.work)
    if thinner.undecided:
        thinner = fetch_scenes(request, thinner)
    return predict_blocks(dataclasses.replace(request, replan=False), thinner)


def _wanted(request: Request, plan: Plan) -> list[planning.PlannedBlock]:
    known = {planned.block.id: planned for planned in plan.blocks}
    for block in request.blocks:
        if block not in known:
            some = ", ".join(list(known)[:5]) or "none: there is no loss"
            raise ConfigError(f"--blocks {block}: the plan has no such block with loss; it has {some} ...")
    return [known[block] for block in request.blocks] if request.blocks else list(plan.blocks)


def _prepare_engine(config: RunConfig) -> None:
    """Export the network once, here, so that CPU workers only find it; GPU workers run torch and need none."""
    from pipeline.models.engines import check_engine, segmenter_for_worker

    path, compute = config.work / ENGINE_FILE, config.compute
    path.unlink(missing_ok=True)
    if compute.engine != "torch" and (agreement := check_engine(config.model, compute.engine, compute.precision)):
        asked = [compute.engine, compute.precision]
        told = {"engine": "openvino", "precision": compute.precision, "asked": asked}
        write_json(path, told | dataclasses.asdict(agreement))
        _log.info("openvino, %s, against float32: %s", compute.precision, agreement)
    if compute.executor != "threads":
        # the blocks are other processes' work
        segmenter_for_worker.cache_clear()
        give_back()


def _save_ledger(request: Request, ledger: Ledger) -> None:
    write_json(
        request.work / LEDGER_FILE,
        {"excluded": ledger.excluded, "blocks": [dataclasses.asdict(r) for r in ledger.records.values()]},
    )


# ---------------------------------------------------------------------------------------------- merge and publish


@small_cache
def merge_blocks(request: Request, ledger: Ledger) -> ProductInputs | None:
    """Put the blocks together; None where only some blocks were asked for and others are still to come.

    Raises:
        IncompleteError: blocks failed and the request does not allow an incomplete product.
    """
    from pipeline.assemble import assemble

    plan = planning.read_plan(request.work)
    records = dict(ledger.records)
    states: dict[str, str] = {}
    for planned in plan.blocks:
        checkpoint = request.work / "blocks" / checkpoint_name(plan, planned, states=states)
        if planned.block.id not in records and checkpoint.exists():
            records[planned.block.id] = found_block(checkpoint, planned.block.id)
    absent = [p.block.id for p in plan.blocks if p.block.id not in records]
    failed = [r for r in records.values() if r.status == "failed"]
    if failed and not request.allow_incomplete:
        first = failed[0]
        raise IncompleteError(
            f"{len(failed)} of {len(plan.blocks)} blocks failed and the product was withheld; first: {first.block}: "
            f"{first.reason}. Run again to retry, or with --allow-incomplete to publish without them"
        )
    if absent and not request.allow_incomplete:
        return None
    return assemble(request, plan, records)


@small_cache
def publish_product(request: Request, inputs: ProductInputs) -> Outcome:
    """Write the product beside its place and swap it in when it is whole."""
    from pipeline.product.write import write_product

    final, events = request.config.output.dir, inputs.events
    beside = request.work / "product"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write_product(inputs, beside, request.clock.record)
        if inputs.run["complete"]:
            late.save_awaiting(
                request.work, state_digest(planning.read_plan(request.work)), np.flatnonzero(events[AWAITING])
            )
        replace_folder(beside, final)
        if request.config.output.store:
            publish(request.config.output.store, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(request.work / "merged", ignore_errors=True)
    counts = dict(inputs.run["counts"])  # type: ignore[call-overload]
    return Outcome("published", final, counts, store=request.config.output.store)


# ---------------------------------------------------------------------------------------------- what it takes


def expect(request: Request, plan: Plan) -> None:
    """Predict what the run takes from here, and note it on the request's clock; nothing where only blocks are asked."""
    if request.blocks:
        return
    clock, setting = request.clock, setting_of(request.config, plan, request.workers, request.orchestrator)
    work = work_of(plan, request.config, finished_blocks(request.work, plan))
    found = forecast(work, setting, read_speeds())
    # the start is partly over, and what it and the plan took is known
    over = clock.total() - min(clock.between(), found.stages["start"])
    stages = {**found.stages, "plan": clock.spent("plan_run").wall}
    clock.work = work
    clock.forecast = dataclasses.replace(
        found, seconds=over + found.seconds, low=over + found.low, high=over + found.high, stages=stages
    )


def finished_blocks(work: Path, plan: Plan) -> set[str]:
    """Blocks of a plan that have their checkpoint; none while scenes are still to be chosen."""
    if plan.undecided:
        return set()
    states: dict[str, str] = {}
    names = {planned.block.id: checkpoint_name(plan, planned, states=states) for planned in plan.blocks}
    return {block for block, name in names.items() if (work / "blocks" / name).exists()}


def learn(request: Request, ledger: Ledger, outcome: Outcome) -> Outcome:
    """Add what the run took to the speeds of this machine; gives the outcome with the seconds, taken and expected."""
    clock, config = request.clock, request.config
    seconds = clock.total()
    if clock.work is None or clock.forecast is None:
        return outcome
    plan = planning.read_plan(request.work)
    setting = setting_of(config, plan, request.workers, request.orchestrator)
    work = dataclasses.replace(clock.work, blocks=work_of(plan, config).blocks)
    fetched = int(read_fetch_log(request.work).get("total", {}).get("bytes", 0)) if work.fetch_bytes else 0
    found = {
        **lessons(work, setting, clock, ledger.records.values()),
        **fetch_lessons(work, clock, fetched),
        **disk_lessons(work, bytes_below(request.work, config.output.dir)),
    }
    add_run(found)
    return dataclasses.replace(outcome, seconds=seconds, expected=clock.forecast.seconds)


# ---------------------------------------------------------------------------------------------- rerun


def current(request: Request, plan: Plan) -> Outcome | None:
    """The outcome of an earlier run if its product is whole and nothing has changed since."""
    output = request.config.output
    run = published_record(output.dir, output.store)
    if run is None or run.get("digest") != product_digest(plan) or not run.get("complete"):
        return None
    product = at_hand(Path(output.store)) if output.store else output.dir
    return Outcome("current", product, run["counts"], store=output.store)


def published_record(product: Path, store: str) -> dict[str, Any] | None:
    """The record of the product that is published: in the store where there is one, else in the folder."""
    if store:
        return read_record(store)
    path = product / "run.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def partial(request: Request, ledger: Ledger) -> Outcome:
    """The outcome of a run that was asked for some blocks only."""
    plan = planning.read_plan(request.work)
    return Outcome("partial", request.work, {"blocks": len(plan.blocks), "computed": len(ledger.records)})


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds files of someone else, or a place that cannot be written.

    Raises:
        OutputError: naming the folder, or the store.
    """
    folder = config.output.dir
    if config.output.store:
        check_store(config.output.store)
    restore_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output.dir {folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run.json").is_file():
        raise OutputError(
            f"output.dir {folder}: holds files that are not a product of Clearcause; name an empty folder"
        )
    try:
        config.work.mkdir(parents=True, exist_ok=True)
        probe = config.work / ".writable"
        probe.write_bytes(b"1" * 4096)
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"output.dir {config.work}: cannot be written ({error.strerror}); name another folder"
        ) from error
