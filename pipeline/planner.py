"""From a configuration to its plan: the model checked, the loss read, the catalog asked, scenes chosen, blocks laid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from pipeline import plan as planning
from pipeline.alerts import CONFIDENCES, loss_files
from pipeline.artifacts import code_digest, digest, stamp
from pipeline.before import choose_before
from pipeline.candidates import find_candidates, scene_warnings, wrs_place
from pipeline.catalog.scene import Refusal, Scene
from pipeline.config import RunConfig
from pipeline.drawing import Drawing
from pipeline.errors import ConfigError, ModelError
from pipeline.grid import make_grid, read_region
from pipeline.lattice import PatchLayout
from pipeline.models.card import ModelCard
from pipeline.models.engines import HALF
from pipeline.plan import AUXILIARY_PREFIX, EVENTS_FILE, LABELS_FILE, Plan

if TYPE_CHECKING:
    from pipeline.loss import LossParams


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
        mode="json",
        exclude={
            "compute": True,
            "schedule": True,
            "output": {"dir", "store"},
            "imagery": {"read", "cache", "cache_gb", "requester_pays"},
        },
    )
    files = loss_files(Path(config.loss.source), config.loss.coding)
    files += [config.region.aoi] if isinstance(config.region.aoi, Path) else []
    files += [unit.path for unit in config.region.units] + [overlay.path for overlay in config.overlays]
    files += [overlay.covers for overlay in config.overlays if isinstance(overlay.covers, Path)]
    files += [item.path for item in config.auxiliary] + ([config.reference.path] if config.reference else [])
    return {
        "config": tree,
        "files": [stamp(path) for path in files],
        "model": digest(card.model_dump(mode="json")),
        "code": code_digest(),
        **({"precision": config.compute.precision} if config.compute.precision in HALF else {}),
    }


def archive_state(config: RunConfig) -> str:
    """Digest of the local files of the imagery source: all of a folder, or the catalog file; "" for a remote one."""
    source = Path(config.imagery.source)
    if source.is_dir():
        return digest([stamp(path) for path in sorted(source.rglob("*")) if path.is_file()])
    return digest(stamp(source)) if source.is_file() else ""


def _model_digest(card: ModelCard, precision: str) -> str:
    """What the pixels of a block depend on: another region head decides anew over the blocks that are there."""
    parts = card.model_dump(mode="json", exclude={"region", "scores", "error_matrix"})
    return digest([parts, precision] if precision in HALF else parts)


def make_plan(
    config: RunConfig, card: ModelCard, inputs: str, drawing: Drawing, loss_is_read: Callable[[], None]
) -> Plan:
    """Ask the loss, the grid and the catalog once, and freeze the answers; raises InputError.

    `drawing` ends here. `loss_is_read` is called when only patches and scenes are still to be found. Long, because each
    question needs the answers to those before it, and the plan holds all of them.
    """
    from pipeline.auxiliary import sample_auxiliary
    from pipeline.auxiliary.record import describe_sources, doubts
    from pipeline.catalog.open import open_catalog
    from pipeline.events import burn_events
    from pipeline.loss import read_loss

    with drawing:
        aoi = read_region(config.region.aoi)
        source, said = _loss_source(config, aoi)
        found = read_loss(source, aoi, _loss_params(config), config.work)
        layout = PatchLayout(config.tiling.mode, config.tiling.patch, config.tiling.stride)
        grid = make_grid(aoi, config.grid.crs, config.grid.resolution, layout.whole_cells(config.grid.block))
        labels = config.work / LABELS_FILE
        burned = burn_events(found.events, grid, labels)
        events = found.events.assign(
            pixels=burned.pixels,
            **{name: burned.bounds[:, k] for k, name in enumerate(("row0", "col0", "row1", "col1"))},
        )
        predictors = sample_auxiliary(events.geometry, config.auxiliary, _made_labels(config))
        sources = describe_sources(config.auxiliary, predictors)
        events.join(predictors.add_prefix(AUXILIARY_PREFIX)).to_parquet(config.work / EVENTS_FILE)
        loss_is_read()
        catalog = open_catalog(config.imagery.source, config.imagery.collections, Path(), config.imagery.allow_hosts)
        # before the catalog is asked: a file that comes meanwhile is then a new one
        archive = archive_state(config)
        areas = planning.loss_areas(events, grid, layout)
        needed = shapely.union_all(list(areas.values())) if areas else aoi
        scenes, refused = planning.ask_catalog(catalog, needed, config.loss.years, config.imagery)
        # scenes from before the model's window must not change what is said about those inside it
        start = min(config.loss.years) + config.imagery.window.first_year
        fit, unfit = check_scenes([s for s in scenes if s.datetime.year >= start], card)
        _refuse_lack([s for s in scenes if s.datetime.year >= start], card)
        early = [s for s in scenes if s.datetime.year < start]
        candidates, left = find_candidates([*fit, *early], areas, config.imagery)
        before = choose_before(scenes, areas, config.imagery, card.bands)
        pictured = {s.id: s for group in before.values() for s in group}
        left = [refusal for refusal in left if refusal.scene_id not in pictured]
        # last, as its process is slow to load
        drawn = drawing.draw(layout, grid, burned.bounds)
    blocks = planning.find_blocks(events, grid, labels, layout, drawn)
    dated = planning.dated_years(events["loss_year"].to_numpy(), events["last_day"].to_numpy())
    planning.save_patches(config.work, blocks)
    names = {year: tuple(sorted(s.id for s in group)) for year, group in sorted(candidates.items())}
    return Plan(
        inputs=inputs,
        region=config.region.name,
        years=config.loss.years,
        aoi=shapely.to_wkt(aoi, rounding_precision=9),
        grid=grid,
        layout=layout,
        model=_model_digest(card, config.compute.precision),
        bands=card.bands,
        event_count=len(events),
        event_ha=float(events["area_ha"].sum()),
        below_count=found.below_count,
        below_ha=found.below_ha,
        loss=digest([found.description, events[["event_id", "last_day", "pixels"]].to_numpy().tolist()]),
        scenes={s.id: s for group in candidates.values() for s in group},
        refused=tuple(sorted([*refused, *unfit, *left], key=lambda r: r.scene_id)),
        blocks=tuple(planning.plan_block(part, candidates, grid, layout, dated) for part in blocks),
        warnings=(*said, *_warnings(config, card, burned.pixels), *doubts(sources, predictors, card.region)),
        auxiliary=sources,
        before={year: tuple(s.id for s in group) for year, group in sorted(before.items())},
        before_scenes=dict(sorted(pictured.items())),
        cache=str(config.imagery.cache),
        archive=archive,
        known={s.id: planning.files_of(s) for s in sorted(scenes, key=lambda s: s.id)},
        candidates=names,
        chosen=names,
        undecided=tuple(sorted({(year, wrs_place(s)) for year, group in candidates.items() for s in group})),
        max_scenes=config.imagery.max_scenes,
        said=tuple(scene_warnings(candidates)),
    )


def _loss_params(config: RunConfig) -> LossParams:
    from pipeline.loss import LossParams

    loss = config.loss
    return LossParams(
        loss.years, loss.min_area_ha, loss.year_column, loss.layer, loss.date_column, loss.coding,
        CONFIDENCES[loss.min_confidence],
    )  # fmt: skip


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


def check_scenes(scenes: list[Scene], card: ModelCard) -> tuple[list[Scene], list[Refusal]]:
    """Set aside what cannot serve this model: (scenes that can, refusals of the others)."""
    from pipeline.catalog.check import check_scene

    reasons = {scene.id: check_scene(scene, card.bands) for scene in scenes}
    refused = [planning.refuse(s, reason) for s in scenes if (reason := reasons[s.id])]
    return [scene for scene in scenes if not reasons[scene.id]], refused


def _refuse_lack(scenes: list[Scene], card: ModelCard) -> None:
    """Raise ModelError where no scene at all has a band that the model wants."""
    lacking = [band for band in card.bands if scenes and all(band not in scene.assets for scene in scenes)]
    if lacking:
        raise ModelError(
            f"model {card.name}: wants band {lacking[0]}, which none of the {len(scenes)} scenes has; "
            "choose a model for the bands at hand, or scenes with that band"
        )


def _warnings(config: RunConfig, card: ModelCard, pixels: Any) -> list[str]:
    """What a reader of the product must know about how it was made."""
    from pipeline.auxiliary import match_columns
    from pipeline.overlays import check_overlays

    out = match_columns(card.region, config.auxiliary, card.name) + check_overlays(config.overlays)
    if abs(config.grid.resolution / card.patch.resolution - 1) > 0.1:
        out.append(f"grid.resolution {config.grid.resolution:g} differs from the model's {card.patch.resolution:g}")
    if (config.tiling.patch, config.tiling.stride) != (card.patch.size, card.patch.stride):
        out.append(
            f"tiling: patch {config.tiling.patch} with stride {config.tiling.stride}, "
            f"the model was judged with {card.patch.size} and {card.patch.stride}"
        )
    if config.compute.precision in HALF:
        out.append(
            f"compute.precision {config.compute.precision}: some pixels get another class than in float32; timings of "
            "run.json say how many of a random patch"
        )
    unseen = int((pixels == 0).sum())
    if unseen:
        out.append(f"{unseen} events are smaller than a pixel of the run's grid and share it with others: no_imagery")
    return out
