"""The stages of a run with their files: name what is made, read what it needs, call the pure functions, commit.

`graph.py` strings them together; nothing here knows Prefect, and Dask only as an executor that was handed in.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline import plan as planning
from pipeline.artifacts import file_sha256, replace_folder, write_json
from pipeline.blocks import BlockTask, checkpoint_name, compute_block, found_block
from pipeline.catalog.scene import QA_PIXEL, Refusal, Scene
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, IncompleteError, OutputError, SceneError
from pipeline.ledger import Ledger, drive
from pipeline.pictures import BEFORE_ONLY, picture_bands
from pipeline.plan import PLAN_FILE, Plan
from pipeline.planner import checked_model, make_plan, plan_inputs
from pipeline.request import Outcome, Request

if TYPE_CHECKING:
    from pipeline.product.write import ProductInputs

LEDGER_FILE = "ledger.json"
_FETCHES = 8
"""Scenes fetched at once; how many connections one host gets is the fetcher's policy."""
# ---------------------------------------------------------------------------------------------- plan


def plan_run(request: Request) -> Plan:
    """Plan the run, or read the frozen plan where nothing it was made from has changed.

    Raises:
        InputError: when the configuration, the loss, the model or the catalog cannot work.
    """
    config, work = request.config, request.work
    card = checked_model(config)
    inputs = planning.fingerprint(plan_inputs(config, card))
    frozen = work / PLAN_FILE
    # a plan of other inputs may be of another version of this program: only its digest is read
    if frozen.is_file() and not request.replan and json.loads(frozen.read_bytes()).get("inputs") == inputs:
        return _with_cache(planning.read_plan(work), config)
    work.mkdir(parents=True, exist_ok=True)
    frozen.unlink(missing_ok=True)
    plan = make_plan(config, card, inputs)
    plan.save(work)
    return plan


def _with_cache(plan: Plan, config: RunConfig) -> Plan:
    """The frozen plan with the place of the cache, which may have moved and changes nothing else."""
    cache = str(config.imagery.cache)
    if plan.cache == cache:
        return plan
    moved = dataclasses.replace(plan, cache=cache)
    moved.save(config.work)
    return moved


# ---------------------------------------------------------------------------------------------- fetch


def fetch_scenes(request: Request, plan: Plan) -> Plan:
    """Bring every file the plan names to this machine; scenes that cannot be had leave the plan with their reason.

    Raises:
        OutputError: too little free space.
    """
    from pipeline.catalog import cache as store
    from pipeline.catalog.check import check_scene
    from pipeline.catalog.fetch import Fetcher, localised
    from pipeline.catalog.signing import signer

    _check_space(request, plan)
    imagery = request.config.imagery
    fetcher = Fetcher(imagery.cache, imagery.allow_hosts, signer(imagery.source), imagery.requester_pays)
    scenes = {**plan.before_scenes, **plan.scenes}
    wanted = {key: plan.bands if key in plan.scenes else picture_bands(plan.bands) for key in scenes}

    def bring(key: str) -> str | None:
        try:
            fetcher.scene(scenes[key], (*wanted[key], QA_PIXEL))
            return check_scene(localised(scenes[key], imagery.cache), wanted[key])
        except SceneError as error:
            return error.reason

    # nobody may evict what this run needs before the run is over
    store.hold([asset.href for scene in scenes.values() for asset in scene.assets.values()], imagery.cache)
    with ThreadPoolExecutor(_FETCHES) as pool:
        reasons = dict(zip(scenes, pool.map(bring, scenes), strict=True))
    store.evict(imagery.cache, int(imagery.cache_gb * 1e9))
    refused = [
        _refused(scenes[key], reason if key in plan.scenes else f"{BEFORE_ONLY}: {reason}")
        for key, reason in reasons.items()
        if reason
    ]
    if not refused:
        return plan
    thinner = planning.without_scenes(plan, refused)
    thinner.save(request.work)
    return thinner


def _check_space(request: Request, plan: Plan) -> None:
    pixels = sum(b.block.height * b.block.width for b in plan.blocks)
    need = 20_000_000 + pixels // 2 + plan.event_count * 4_000
    free = shutil.disk_usage(request.work).free
    if free < need:
        raise OutputError(f"output.dir {request.work}: {free >> 20} MB free, about {need >> 20} MB needed")


# ---------------------------------------------------------------------------------------------- predict


def predict_blocks(request: Request, plan: Plan) -> Ledger:
    """Compute every block that has no checkpoint yet; the ledger says how each of them ended.

    Raises:
        ConfigError: --blocks names a block that the plan does not have.
    """
    wanted = _wanted(request, plan)
    ledger = Ledger()
    missing = []
    for planned in wanted:
        checkpoint = request.work / "blocks" / checkpoint_name(plan, planned)
        if checkpoint.exists():
            ledger.records[planned.block.id] = found_block(checkpoint, planned.block.id)
        else:
            missing.append(planned.block.id)
    if missing:
        compute = request.config.compute
        _prepare_engine(request.config)
        frozen = file_sha256(request.work / PLAN_FILE)
        tasks = [
            BlockTask(
                request.work,
                frozen,
                block,
                request.config.model,
                compute.engine,
                compute.precision,
                cache=request.config.imagery.cache,
            )
            for block in missing
        ]
        with request.pool(compute) as pool:
            driven = drive(tasks, compute_block, pool.executor, pool.slots, request.progress)
        ledger.records.update(driven.records)
        ledger.excluded.update(driven.excluded)
        if ledger.excluded:
            return _without(request, plan, ledger)
    _save_ledger(request, ledger)
    return ledger


def _without(request: Request, plan: Plan, ledger: Ledger) -> Ledger:
    """Take the unreadable scenes out of the frozen plan and compute again what had used them."""
    refused = [_refused(plan.scenes[s], f"unreadable: {reason}") for s, reason in ledger.excluded.items()]
    thinner = planning.without_scenes(plan, refused)
    thinner.save(request.work)
    return predict_blocks(dataclasses.replace(request, replan=False), thinner)


def _refused(scene: Scene, reason: str) -> Refusal:
    return Refusal(scene.id, reason, scene.datetime, scene.cloud_cover, scene.footprint)


def _wanted(request: Request, plan: Plan) -> list[planning.PlannedBlock]:
    known = {planned.block.id: planned for planned in plan.blocks}
    for block in request.blocks:
        if block not in known:
            some = ", ".join(list(known)[:5]) or "none: there is no loss"
            raise ConfigError(f"--blocks {block}: the plan has no such block with loss; it has {some} ...")
    return [known[block] for block in request.blocks] if request.blocks else list(plan.blocks)


def _prepare_engine(config: RunConfig) -> None:
    """Export the network once, here, so that CPU workers only find it; GPU workers run torch and need none."""
    from pipeline.models.engines import segmenter_for_worker

    if config.compute.engine != "torch":
        segmenter_for_worker(config.model, config.compute.engine, "auto", config.compute.precision)


def _save_ledger(request: Request, ledger: Ledger) -> None:
    write_json(
        request.work / LEDGER_FILE,
        {"excluded": ledger.excluded, "blocks": [dataclasses.asdict(r) for r in ledger.records.values()]},
    )


# ---------------------------------------------------------------------------------------------- merge and publish


def merge_blocks(request: Request, ledger: Ledger) -> ProductInputs | None:
    """Put the blocks together; None where only some blocks were asked for and others are still to come.

    Raises:
        IncompleteError: blocks failed and the request does not allow an incomplete product.
    """
    from pipeline.assemble import assemble

    plan = planning.read_plan(request.work)
    records = dict(ledger.records)
    for planned in plan.blocks:
        checkpoint = request.work / "blocks" / checkpoint_name(plan, planned)
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


def publish_product(request: Request, inputs: ProductInputs) -> Outcome:
    """Write the product beside its place and swap it in when it is whole."""
    from pipeline.product.write import write_product

    final = request.config.output.dir
    beside = request.work / "product"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write_product(inputs, beside)
        replace_folder(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(request.work / "merged", ignore_errors=True)
    return Outcome("published", final, dict(inputs.run["counts"]))  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------- rerun


def current(request: Request, plan: Plan) -> Outcome | None:
    """The outcome of an earlier run if its product is whole and nothing has changed since."""
    from pipeline.assemble import product_digest

    record = request.config.output.dir / "run.json"
    if not record.is_file():
        return None
    run = json.loads(record.read_text(encoding="utf-8"))
    if run.get("digest") != product_digest(plan) or not run.get("complete"):
        return None
    return Outcome("current", request.config.output.dir, run["counts"])


def partial(request: Request, ledger: Ledger) -> Outcome:
    """The outcome of a run that was asked for some blocks only."""
    plan = planning.read_plan(request.work)
    return Outcome("partial", request.work, {"blocks": len(plan.blocks), "computed": len(ledger.records)})


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that holds files of someone else, or a place that cannot be written.

    Raises:
        OutputError: naming the folder.
    """
    folder = config.output.dir
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
