"""Everything a product is made of, from the plan and the blocks' records: tables, rasters, and the run's record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from pipeline import eudr, merge, units
from pipeline import plan as planning
from pipeline.areas.estimate import estimate_areas
from pipeline.artifacts import code_digest, versions
from pipeline.blocks import BlockRecord
from pipeline.catalog.check import REMOTE
from pipeline.catalog.scene import QA_PIXEL
from pipeline.chips import chip_ids, chips_record, draw_chips
from pipeline.config import RunConfig
from pipeline.drivers import AWAITING, CLASSIFIED, FAILED, NO_IMAGERY, UNCERTAIN, DriverParams, decide
from pipeline.events import LogitSums
from pipeline.fetch_log import read_fetch_log
from pipeline.generalise import generalise_patches
from pipeline.models.card import ModelCard, read_card
from pipeline.overlays import add_overlays, described
from pipeline.pictures import BEFORE_ONLY
from pipeline.plan import AUXILIARY_PREFIX, EVENTS_FILE, Plan
from pipeline.product.write import ProductInputs
from pipeline.request import ENGINE_FILE, Request

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

NOT_RUN = "not_run"


def assemble(request: Request, plan: Plan, records: dict[str, BlockRecord]) -> ProductInputs:
    """Build the tables and rasters of a product; blocks without a checkpoint make their events `failed`."""
    import geopandas as gpd

    config, work = request.config, request.work
    card = read_card(config.model)
    planned = gpd.read_parquet(work / EVENTS_FILE)
    good = [records[p.block.id] for p in plan.blocks if p.block.id in records and records[p.block.id].checkpoint]
    lost = [p.block.id for p in plan.blocks if p.block.id not in {r.block for r in good}]
    failed = merge.failed_events(work, plan, lost, len(planned))
    sums = merge.read_sums(work, good, len(planned), card.scheme)
    params = DriverParams(card.calibration, config.output.uncertain_below)
    logits = _event_logits(planned, sums.logits, failed, card, config.model)
    drivers_of = decide(logits, sums.logits.clear, failed, card.scheme, params)
    events = merge.event_table(planned, sums, drivers_of, plan, card.scheme)
    events["model"] = f"{card.name} {card.version}"
    warnings = [*plan.warnings, *plan.said]
    events, unit_frame = _with_units(events, config, plan, warnings)
    events[[eudr.AFTER_CUTOFF, eudr.CONVERSION]] = eudr.eudr_columns(events["loss_year"], events["driver"], card.scheme)
    uses, said = add_overlays(events, config.overlays)
    warnings += [text for text in (*said, *eudr.eudr_doubts(card.scheme)) if text not in warnings]
    folder = work / "merged"
    folder.mkdir(exist_ok=True)
    drivers, confidence, codes = merge.mosaic(work, plan, good, folder)
    patches = merge.patch_table(codes, confidence, events, plan.grid, card.scheme)
    output = config.output
    patches, changed = generalise_patches(patches, plan.grid.crs, output.simplify_m, output.min_patch_ha)
    warnings += changed.warnings(output.simplify_m, output.min_patch_ha)
    blocks = _blocks(plan, records)
    chips = draw_chips(plan, events, chip_ids(events, config.output.chips))
    run = _record(request, plan, card, events, list(records.values()), lost, warnings)
    summary, estimates, areas = estimate_areas(events, card, config.reference)
    return ProductInputs(
        region=plan.region,
        years=plan.years,
        card=card,
        events=events,
        patches=patches,
        units=units.unit_table(events, unit_frame, card.scheme),
        scenes=_scenes(plan, sums.images),
        blocks=blocks,
        summary=summary,
        estimates=estimates,
        run={
            **run,
            "areas": areas,
            "pictures": chips_record(chips),
            "overlays": described(uses),
            "generalised": changed.record(),
        },
        drivers=drivers,
        confidence=confidence,
        crs=config.output.crs,
        chips=tuple(chips),
    )


def _event_logits(planned: Any, sums: LogitSums, failed: np.ndarray, card: ModelCard, package: Path) -> np.ndarray:
    """Logits float64 [n, classes] of the planned events: means over clear pixels, through the region head if any."""
    logits, seen = sums.mean(), (sums.clear > 0) & ~failed
    if card.region is None or not seen.any():
        return logits
    # torch is loaded by nobody else in this process
    from pipeline.models.region import fused_logits

    columns = [AUXILIARY_PREFIX + column.name for column in card.region.auxiliary]
    auxiliary = planned.loc[seen, columns].to_numpy(dtype=float)
    logits[seen] = fused_logits(package, card, sums.statistics()[seen], auxiliary)
    return logits


def _with_units(events: Any, config: RunConfig, plan: Plan, warnings: list[str]) -> tuple[Any, GeoDataFrame]:
    """Give each event its unit; the warnings of reading the list of units are added to `warnings`."""
    if config.region.units:
        frame, said = units.read_units(config.region.units[0])
        warnings += said
        owner, doubled = units.assign_and_count(np.asarray(events.geometry.values), np.asarray(frame.geometry.values))
        warnings += units.overlap_warning(config.region.units[0].path.name, doubled)
    else:
        frame = units.region_as_unit(plan.region, shapely.from_wkt(plan.aoi))
        owner = np.zeros(len(events), np.int64)
    ids, names = [*frame["unit_id"], units.OUTSIDE], [*frame["unit_name"], units.OUTSIDE_NAME]
    events["unit_id"] = np.array(ids, dtype=object)[owner]
    events["unit_name"] = np.array(names, dtype=object)[owner]
    # the first list is tabulated; each further one adds its identifier and name to the events
    for number, layer in enumerate(config.region.units[1:], 2):
        further, said = units.read_units(layer)
        warnings += said
        owner, doubled = units.assign_and_count(np.asarray(events.geometry.values), np.asarray(further.geometry.values))
        warnings += units.overlap_warning(layer.path.name, doubled)
        for column in ("unit_id", "unit_name"):
            values = np.array([*further[column], None], dtype=object)
            events[column.replace("unit", f"unit{number}")] = values[owner]
    return events, frame


def _scenes(plan: Plan, images: pd.DataFrame) -> GeoDataFrame:
    """Every scene the catalog gave, with whether it was used and why not."""
    import geopandas as gpd

    seen = set(images["scene"])
    rows: list[tuple[Any, ...]] = []
    for scene in plan.scenes.values():
        masked = None if QA_PIXEL in scene.assets else "no QA_PIXEL: masked by fill only, clouds count as ground"
        reason = masked if scene.id in seen else "no clear pixel over any event"
        rows.append((scene.id, scene.datetime, scene.cloud_cover, scene.id in seen, reason, scene.footprint))
    known = {*plan.scenes, *(r.scene_id for r in plan.refused)}
    rows += [
        (s.id, s.datetime, s.cloud_cover, False, BEFORE_ONLY, s.footprint)
        for s in plan.before_scenes.values()
        if s.id not in known
    ]
    rows += [(r.scene_id, r.datetime, r.cloud_cover, False, r.reason, r.footprint) for r in plan.refused]
    table = pd.DataFrame(rows, columns=["scene_id", "datetime", "cloud_cover", "used", "reason", "wkt"])
    # one moment is written with and without microseconds by different catalogs
    table["datetime"] = pd.to_datetime(table["datetime"], utc=True, format="ISO8601").astype("datetime64[ms, UTC]")
    table["cloud_cover"] = table["cloud_cover"].astype("float64")
    shapes = [shapely.from_wkt(row[-1]) if row[-1] else None for row in rows]
    frame = gpd.GeoDataFrame(table.drop(columns="wkt"), geometry=shapes, crs="EPSG:4326")
    return frame.sort_values("scene_id", ignore_index=True)


def _blocks(plan: Plan, records: dict[str, BlockRecord]) -> GeoDataFrame:
    """Every planned block and how it ended."""
    import geopandas as gpd

    rows, shapes = [], []
    for planned in plan.blocks:
        block, record = planned.block, records.get(planned.block.id)
        status = NOT_RUN if record is None else "failed" if record.status == "failed" else "done"
        reason = "not asked for (--blocks)" if record is None else record.reason or None
        seconds = round(record.seconds, 3) if record else 0.0
        rows.append((block.id, status, reason, planned.events, seconds))
        shapes.append(planning.outline(plan.grid, block.row0, block.col0, block.height, block.width))
    table = pd.DataFrame(rows, columns=["block_id", "status", "reason", "events", "seconds"])
    return gpd.GeoDataFrame(table, geometry=shapes, crs="EPSG:4326")


def _record(
    request: Request, plan: Plan, card: ModelCard, events: Any, records: list[BlockRecord], lost: list[str],
    warnings: list[str],
) -> dict[str, object]:  # fmt: skip
    """The run's record; what differs between two equal runs stands under `timings`. Seven parameters: its chapters."""
    config, status = request.config, events["status"]
    counts = {
        "events": len(events),
        **{name: int((status == name).sum()) for name in (CLASSIFIED, UNCERTAIN, NO_IMAGERY, FAILED)},
        AWAITING: int(events[AWAITING].sum()),
        "loss_ha": round(float(events["area_ha"].sum()), 4),
        "events_below_min_area": plan.below_count,
        "below_min_area_ha": round(plan.below_ha, 4),
        "blocks": len(plan.blocks),
        "blocks_without_result": len(lost),
        "scenes": len(plan.scenes),
        "scenes_refused": len(plan.refused),
        "patches": sum(b.patches for b in plan.blocks),
        "loss_pixels": sum(b.pixels for b in plan.blocks if not b.late),
    }
    seconds = sum(r.seconds for r in records)
    forward = sum(r.forward_seconds for r in records)
    return {
        "region": plan.region,
        "years": list(plan.years),
        "complete": not lost,
        "simulated": card.simulated,
        "digest": planning.product_digest(plan),
        "counts": counts,
        "model": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "architecture": card.architecture,
            "region_sha256": card.region.sha256 if card.region else None,
        },
        "inputs": {
            "plan": plan.inputs,
            "loss": Path(config.loss.source).name,
            "scenes": sorted(plan.scenes),
            "assets": remote_assets(plan),
            "auxiliary": [dataclasses.asdict(source) for source in plan.auxiliary],
        },
        "versions": {**versions(), "code": code_digest(whole=True)},
        "config": _public(config),
        "grid": {
            "crs": plan.grid.crs,
            "resolution": plan.grid.resolution,
            "shape": [plan.grid.height, plan.grid.width],
        },
        "aoi": json.loads(shapely.to_geojson(shapely.from_wkt(plan.aoi))),
        "warnings": warnings,
        "timings": {
            "finished": planning.now(),
            "block_seconds": round(seconds, 2),
            "forward_seconds": round(forward, 2),
            "forward_share": round(forward / seconds, 3) if seconds else None,
            "patches": sum(r.patches for r in records),
            "worker_peak_rss_mb": max((r.peak_rss_mb for r in records), default=0),
            "devices": sorted({r.device for r in records if r.device}),
            "engine": _engine(config),
            "fetch": fetched(request.work, plan),
        },
    }


def _engine(config: RunConfig) -> dict[str, Any] | None:
    """How far the engine agrees with float32, where that was measured; None for the plainest engines.

    What lies there may be of an earlier run with other settings: a run that finds all its blocks measures nothing.
    """
    path = config.work / ENGINE_FILE
    told = dict(json.loads(path.read_bytes())) if path.is_file() else {}
    return told if told.get("asked") == [config.compute.engine, config.compute.precision] else None


def remote_assets(plan: Plan) -> list[dict[str, str | None]]:
    """The remote files of a plan: scene, band, address (unsigned), and the checksum where the catalog tells one."""
    return [
        {"scene": key, "band": band, "href": asset.href, "checksum": asset.checksum}
        for key, scene in sorted(plan.scenes.items())
        for band in (*plan.bands, QA_PIXEL)
        if (asset := scene.assets.get(band)) is not None and asset.href.lower().startswith(REMOTE)
    ]


def fetched(work: Path, plan: Plan) -> dict[str, Any]:
    """How each remote file was verified, and what its coming took, by file and by block; see `fetch_log`.

    It stands among the timings: what the cache held before is no input of a run, and decides whether a file is there
    whole or in windows, and so how it was verified.
    """
    log = read_fetch_log(work)
    return {key: value for key, value in log.items() if key != "inputs"} if log.get("inputs") == plan.inputs else {}


def _public(config: RunConfig) -> dict[str, Any]:
    """The configuration as it goes into the product: file names without folders, no compute section."""

    def name(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: name(item) for key, item in value.items()}
        if isinstance(value, list):
            return [name(item) for item in value]
        return Path(value).name if isinstance(value, str) and value.startswith("/") else value

    return dict(
        name(
            config.model_dump(
                mode="json",
                exclude={
                    "compute": True,
                    "schedule": True,
                    "output": {"dir", "store"},
                    "imagery": {"read", "cache", "cache_gb", "requester_pays"},
                },
            )
        )
    )
