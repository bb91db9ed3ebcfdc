"""The stages of a run with their files: name what is made, read what it needs, call the pure functions, commit.

`graph.py` strings them together; nothing here knows Prefect, and Dask only as an executor that was handed in.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from pipeline import plan as planning
from pipeline.artifacts import code_digest, digest, file_sha256, replace_folder, stamp, write_json
from pipeline.before import choose_before
from pipeline.blocks import BlockTask, checkpoint_name, compute_block, found_block
from pipeline.catalog.scene import QA_PIXEL, Refusal, Scene
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, IncompleteError, ModelError, OutputError, SceneError
from pipeline.grid import make_grid, read_region
from pipeline.lattice import PatchLayout
from pipeline.ledger import Ledger, drive
from pipeline.models.card import ModelCard
from pipeline.pictures import BEFORE_ONLY, picture_bands
from pipeline.plan import AUXILIARY_PREFIX, EVENTS_FILE, LABELS_FILE, PLAN_FILE, Plan
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
    card = _checked_model(config)
    inputs = planning.fingerprint(_inputs(config, card))
    frozen = work / PLAN_FILE
    # a plan of other inputs may be of another version of this program: only its digest is read
    if frozen.is_file() and not request.replan and json.loads(frozen.read_bytes()).get("inputs") == inputs:
        return _with_cache(planning.read_plan(work), config)
    work.mkdir(parents=True, exist_ok=True)
    frozen.unlink(missing_ok=True)
    plan = _make_plan(config, card, inputs)
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


def _checked_model(config: RunConfig) -> ModelCard:
    from pipeline.auxiliary import match_columns, refuse_leaks
    from pipeline.models.region_store import read_region_bytes
    from pipeline.models.store import load_package

    card = load_package(config.model).card
    if card.region:
        read_region_bytes(config.model, card.region)
    refuse_leaks(config.auxiliary, _made_labels(config))
    match_columns(card.region, config.auxiliary, card.name)
    if config.tiling.patch != card.patch.size:
        raise ConfigError(
            f"tiling.patch {config.tiling.patch}: model {card.name} sees patches of {card.patch.size}; set that"
        )
    return card


def _inputs(config: RunConfig, card: ModelCard) -> dict[str, Any]:
    """Everything a plan depends on: the configuration less what cannot change results, local files, model and code."""
    tree = config.model_dump(
        mode="json", exclude={"compute": True, "output": {"dir"}, "imagery": {"cache", "cache_gb", "requester_pays"}}
    )
    files = [Path(config.loss.source), *([config.region.aoi] if isinstance(config.region.aoi, Path) else [])]
    files += [unit.path for unit in config.region.units] + [overlay.path for overlay in config.overlays]
    files += [overlay.covers for overlay in config.overlays if isinstance(overlay.covers, Path)]
    files += [item.path for item in config.auxiliary] + ([config.reference.path] if config.reference else [])
    source = Path(config.imagery.source)
    if source.is_dir():
        files += sorted(path for path in source.rglob("*") if path.is_file())
    elif source.is_file():
        files.append(source)
    return {
        "config": tree,
        "files": [stamp(path) for path in files],
        "model": digest(card.model_dump(mode="json")),
        "code": code_digest(),
    }


def _model_digest(card: ModelCard) -> str:
    """What the pixels of a block depend on: another region head decides anew over the blocks that are there."""
    return digest(card.model_dump(mode="json", exclude={"region", "scores", "error_matrix"}))


def _make_plan(config: RunConfig, card: ModelCard, inputs: str) -> Plan:
    from pipeline.auxiliary import sample_auxiliary
    from pipeline.auxiliary.record import describe_sources, doubts
    from pipeline.catalog.open import open_catalog
    from pipeline.events import burn_events
    from pipeline.loss import LossParams, read_loss

    aoi = read_region(config.region.aoi)
    loss = LossParams(config.loss.years, config.loss.min_area_ha, config.loss.year_column, config.loss.layer)
    source, said = _loss_source(config, aoi)
    found = read_loss(source, aoi, loss, config.work)
    grid = make_grid(aoi, config.grid.crs, config.grid.resolution, config.grid.block)
    layout = PatchLayout(config.tiling.mode, config.tiling.patch, config.tiling.stride)
    labels = config.work / LABELS_FILE
    burned = burn_events(found.events, grid, labels)
    events = found.events.assign(
        pixels=burned.pixels, **{name: burned.bounds[:, k] for k, name in enumerate(("row0", "col0", "row1", "col1"))}
    )
    predictors = sample_auxiliary(events.geometry, config.auxiliary, _made_labels(config))
    sources = describe_sources(config.auxiliary, predictors)
    events.join(predictors.add_prefix(AUXILIARY_PREFIX)).to_parquet(config.work / EVENTS_FILE)
    blocks = planning.find_blocks(events, grid, labels, layout)
    catalog = open_catalog(config.imagery.source, config.imagery.collections, Path())
    scenes, refused = planning.ask_catalog(catalog, aoi, config.loss.years, config.imagery)
    # scenes from before the model's window must not change what is said about those inside it
    start = min(config.loss.years) + config.imagery.window.first_year
    fit, unfit = _check_scenes([s for s in scenes if s.datetime.year >= start], card)
    early = [s for s in scenes if s.datetime.year < start]
    areas = planning.loss_areas(events, grid, layout)
    chosen, left = planning.choose_scenes([*fit, *early], areas, config.imagery)
    before = choose_before(scenes, areas, config.imagery, card.bands)
    pictured = {s.id: s for group in before.values() for s in group}
    left = [refusal for refusal in left if refusal.scene_id not in pictured]
    return Plan(
        inputs=inputs,
        region=config.region.name,
        years=config.loss.years,
        aoi=shapely.to_wkt(aoi, rounding_precision=9),
        grid=grid,
        layout=layout,
        model=_model_digest(card),
        bands=card.bands,
        event_count=len(events),
        event_ha=float(events["area_ha"].sum()),
        below_count=found.below_count,
        below_ha=found.below_ha,
        loss=digest([found.description, list(events["event_id"]), burned.pixels.tolist()]),
        scenes={s.id: s for group in chosen.values() for s in group},
        refused=tuple(sorted([*refused, *unfit, *left], key=lambda r: r.scene_id)),
        blocks=tuple(planning.plan_block(part, chosen, grid, layout) for part in blocks.values()),
        warnings=(*said, *_warnings(config, card, chosen, burned.pixels), *doubts(sources, predictors, card.region)),
        auxiliary=sources,
        before={year: tuple(s.id for s in group) for year, group in sorted(before.items())},
        before_scenes=dict(sorted(pictured.items())),
        cache=str(config.imagery.cache),
    )


def _loss_source(config: RunConfig, aoi: Any) -> tuple[str, list[str]]:
    """Path of the loss, fetched by tile where the configuration says gfc, and warnings."""
    if config.loss.source != "gfc":
        return config.loss.source, []
    from pipeline.catalog.fetch import Fetcher
    from pipeline.gfc import fetch_loss

    fetcher = Fetcher(config.imagery.cache, config.imagery.allow_hosts)
    path, said = fetch_loss(aoi, config.loss.version, config.loss.archive, fetcher, config.work)
    return str(path), said


def _made_labels(config: RunConfig) -> dict[str, Path]:
    """Files of the loss, which no predictor may be."""
    return {} if config.loss.source == "gfc" else {"loss.source": Path(config.loss.source)}


def _check_scenes(scenes: list[Scene], card: ModelCard) -> tuple[list[Scene], list[Refusal]]:
    """Set aside what cannot serve this model; raises ModelError when that is every scene, for want of a band."""
    from pipeline.catalog.check import check_scene

    reasons = {scene.id: check_scene(scene, card.bands) for scene in scenes}
    refused = [
        Refusal(s.id, reason, s.datetime, s.cloud_cover, s.footprint) for s in scenes if (reason := reasons[s.id])
    ]
    lacking = [band for band in card.bands if scenes and all(band not in scene.assets for scene in scenes)]
    if lacking:
        raise ModelError(
            f"model {card.name}: wants band {lacking[0]}, which none of the {len(scenes)} scenes has; "
            "choose a model for the bands at hand, or scenes with that band"
        )
    return [scene for scene in scenes if not reasons[scene.id]], refused


def _warnings(config: RunConfig, card: ModelCard, chosen: dict[int, list[Scene]], pixels: Any) -> list[str]:
    """What a reader of the product must know about how it was made."""
    from pipeline.auxiliary import match_columns
    from pipeline.overlays import check_overlays

    out = match_columns(card.region, config.auxiliary, card.name) + check_overlays(config.overlays)
    used = {scene.id: scene for group in chosen.values() for scene in group}.values()
    if abs(config.grid.resolution / card.patch.resolution - 1) > 0.1:
        out.append(f"grid.resolution {config.grid.resolution:g} differs from the model's {card.patch.resolution:g}")
    if (config.tiling.patch, config.tiling.stride) != (card.patch.size, card.patch.stride):
        out.append(
            f"tiling: patch {config.tiling.patch} with stride {config.tiling.stride}, "
            f"the model was judged with {card.patch.size} and {card.patch.stride}"
        )
    out += [
        f"scene {s.id}: no QA_PIXEL, so masked by fill only; clouds count as ground"
        for s in used
        if QA_PIXEL not in s.assets
    ]
    out += [
        f"loss year {year}: no scene can serve; its events end as no_imagery"
        for year, group in chosen.items()
        if not group
    ]
    unseen = int((pixels == 0).sum())
    if unseen:
        out.append(f"{unseen} events are smaller than a pixel of the run's grid and share it with others: no_imagery")
    return out


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
