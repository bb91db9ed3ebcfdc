"""From a configuration to its plan: the model checked, the loss read, the catalog asked, scenes chosen, blocks laid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import shapely

from pipeline import plan as planning
from pipeline.artifacts import code_digest, digest, stamp
from pipeline.before import choose_before
from pipeline.catalog.scene import QA_PIXEL, Refusal, Scene
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.grid import make_grid, read_region
from pipeline.lattice import PatchLayout
from pipeline.models.card import ModelCard
from pipeline.plan import AUXILIARY_PREFIX, EVENTS_FILE, LABELS_FILE, Plan


def checked_model(config: RunConfig) -> ModelCard:
    """The card of a model that can serve this configuration; raises InputError naming what does not fit."""
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


def plan_inputs(config: RunConfig, card: ModelCard) -> dict[str, Any]:
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


def make_plan(config: RunConfig, card: ModelCard, inputs: str) -> Plan:
    """Ask the loss, the grid and the catalog once, and freeze the answers; raises InputError."""
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
