"""Checkpoints to tables and rasters: what the blocks said, put together over the whole run.

Polygons of `patches` come from one pass over the whole mosaic, so they are the same for one block or for sixteen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import rasterio
import rasterio.features
import shapely
from rasterio.windows import Window

from pipeline.blocks import IMAGES, RASTERS, SUMS, BlockRecord
from pipeline.drivers import AWAITING, FAILED, NO_IMAGERY, Drivers
from pipeline.events import LogitSums
from pipeline.grid import Block, RunGrid, area_ha, reproject
from pipeline.labels import NO_DATA, LabelScheme
from pipeline.plan import AUXILIARY_PREFIX, LABELS_FILE, Plan
from pipeline.polygons import CodeRaster

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_CODES = 256
_SLIVER = 1e-12
"""Square degrees, about a hundredth of a square metre: what rounding leaves where a cut follows a pixel's edge."""
_ROUNDING = 1e-7
"""Share of a patch's area that rounding may put outside its event; a pixel's width is a million times more."""


@dataclass(frozen=True)
class Sums:
    """Sums over all blocks by event row: of the logits of its clear pixels, and the images of each event."""

    logits: LogitSums
    images: pd.DataFrame


def read_sums(work: Path, records: Iterable[BlockRecord], count: int, scheme: LabelScheme) -> Sums:
    """Add the sums of all finished blocks; integers, so the order does not matter."""
    logits = LogitSums.nothing(count, len(scheme))
    images = []
    for record in records:
        folder = work / "blocks" / record.checkpoint
        table = pq.read_table(folder / SUMS)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        logits.add(columns["event"], LogitSums.of_columns(columns, scheme.names))
        images.append(pq.read_table(folder / IMAGES).to_pandas())
    empty = pd.DataFrame({"event": np.zeros(0, np.int64), "scene": np.zeros(0, object), "clear": np.zeros(0, np.int64)})
    frame = pd.concat(images, ignore_index=True) if images else empty
    seen: pd.DataFrame = frame.groupby(["event", "scene"], as_index=False)[["clear"]].sum()
    return Sums(logits, seen)


def failed_events(work: Path, plan: Plan, failed: Iterable[str], count: int) -> np.ndarray:
    """Bool [n]: events that have a pixel in a block that could not be computed; of a late block, its own events."""
    out = np.zeros(count, bool)
    blocks = {b.block.id: b for b in plan.blocks}
    with rasterio.open(work / LABELS_FILE) as raster:
        for planned in (blocks[b] for b in failed):
            block = planned.block
            part = raster.read(1, window=Window(block.col0, block.row0, block.width, block.height))
            out[list(planned.only) if planned.late else np.unique(part[part > 0]) - 1] = True
    return out


def event_table(events: GeoDataFrame, sums: Sums, drivers: Drivers, plan: Plan, scheme: LabelScheme) -> GeoDataFrame:
    """The `events` layer of the contract, without units and overlays, in the order of the planned events.

    The predictors that the plan sampled (`aux_<name>`) follow: what a driver was decided on can be looked at.
    """
    out = events[["event_id", "loss_year"]].copy()
    for column, days in (("loss_date", events["first_day"]), ("loss_date_last", events["last_day"])):
        out[column] = days.to_numpy().astype("datetime64[D]").astype("datetime64[ms]")
        out.loc[days.to_numpy() == 0, column] = pd.NaT
    out["status"] = drivers.status
    _add_driver(out, drivers, scheme)
    out["area_ha"], out["pixels"] = events["area_ha"], events["pixels"]
    share = sums.logits.clear / np.maximum(events["pixels"].to_numpy(), 1)
    out["clear_share"] = np.where(drivers.status == FAILED, np.nan, np.round(share, 6))
    # an event without a pixel of its own can never be seen: it awaits nothing
    out[AWAITING] = (drivers.status == NO_IMAGERY) & (events["pixels"].to_numpy() > 0)
    _add_images(out, sums.images, plan)
    points = shapely.point_on_surface(np.asarray(events.geometry.values))
    out["lon"], out["lat"] = shapely.get_x(points), shapely.get_y(points)
    for column in auxiliary_columns(events):
        out[column] = events[column]
    return out.set_geometry(events.geometry)


def auxiliary_columns(events: GeoDataFrame) -> list[str]:
    """Columns of the planned events that hold sampled predictors."""
    return [str(name) for name in events.columns if str(name).startswith(AUXILIARY_PREFIX)]


def _add_driver(out: Any, drivers: Drivers, scheme: LabelScheme) -> None:
    known = drivers.best >= 0
    names, codes = np.array([*scheme.names, None], dtype=object), np.array([*scheme.codes, 0])
    out["driver"] = names[drivers.best]
    out["driver_code"] = pd.array(np.where(known, codes[drivers.best], 0), dtype="Int64")
    out.loc[~known, "driver_code"] = pd.NA
    out["confidence"] = drivers.confidence
    out["uncertain"] = drivers.status == "uncertain"
    for k, name in enumerate(scheme.names):
        out[f"p_{name}"] = drivers.probabilities[:, k]


def _add_images(out: Any, images: pd.DataFrame, plan: Plan) -> None:
    """First and last image, their number, and their mean year (weighted by clear pixels) less the loss year."""
    when = {key: scene.datetime for key, scene in plan.scenes.items()}
    day = images["scene"].map(lambda s: when[s].date())
    year = images["scene"].map(lambda s: when[s].year + (when[s].timetuple().tm_yday - 0.5) / 365.25)
    grouped = images.assign(day=day, weighted=year.astype(float) * images["clear"]).groupby("event")
    rows = pd.RangeIndex(len(out))
    out["first_image"] = grouped["day"].min().reindex(rows).to_numpy()
    out["last_image"] = grouped["day"].max().reindex(rows).to_numpy()
    out["image_count"] = grouped["scene"].nunique().reindex(rows, fill_value=0).to_numpy()
    mean = (grouped["weighted"].sum() / grouped["clear"].sum()).reindex(rows).to_numpy(dtype=float)
    out["years_after_loss"] = np.round(mean - out["loss_year"].to_numpy(), 3)


def mosaic(work: Path, plan: Plan, records: Iterable[BlockRecord], folder: Path) -> tuple[Path, Path, CodeRaster]:
    """Put the blocks' rasters together on the run's grid; late blocks fill pixels that were empty.

    Returns:
        drivers.tif and confidence.tif (uint8, 255 = no data), and the raster of (event row * 256 + class code).
    """
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": plan.grid.height, "width": plan.grid.width, "count": 1, "dtype": "uint8",
        "nodata": NO_DATA, "crs": plan.grid.crs, "transform": plan.grid.geobox.affine, "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "deflate", "sparse_ok": True, "bigtiff": "if_safer",
    }  # fmt: skip
    paths = folder / "drivers.tif", folder / "confidence.tif"
    codes = CodeRaster(folder, "codes", (plan.grid.height, plan.grid.width), plan.grid.crs, plan.grid.geobox.affine)
    with (
        codes,
        rasterio.open(paths[0], "w", **profile) as drivers,
        rasterio.open(paths[1], "w", **profile) as confidence,
        rasterio.open(work / LABELS_FILE) as labels,
    ):
        for block, folders in _by_window(plan, records):
            window = Window(block.col0, block.row0, block.width, block.height)
            classes, sure = _overlaid([work / "blocks" / name for name in folders])
            drivers.write(classes, 1, window=window)
            confidence.write(sure, 1, window=window)
            events = labels.read(1, window=window)
            joined = np.where(classes != NO_DATA, events * _CODES + classes, 0)
            codes.write(joined, block.row0, block.col0)
    return *paths, codes


def _by_window(plan: Plan, records: Iterable[BlockRecord]) -> list[tuple[Block, list[str]]]:
    """Each window of the grid that has results, with the checkpoints of its block and of late passes, in order."""
    checkpoints = {record.block: record.checkpoint for record in records}
    found: dict[tuple[int, int], tuple[Block, list[str]]] = {}
    for planned in sorted(plan.blocks, key=lambda b: b.late):
        if planned.block.id in checkpoints:
            place = planned.block.row0, planned.block.col0
            found.setdefault(place, (planned.block, []))[1].append(checkpoints[planned.block.id])
    return list(found.values())


def _overlaid(folders: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and confidence of one window from its checkpoints: what an earlier one says stays."""
    layers = []
    for folder in folders:
        with np.load(folder / RASTERS, allow_pickle=False) as arrays:
            layers.append((arrays["drivers"], arrays["confidence"]))
    classes, sure = layers[0]
    for more, more_sure in layers[1:]:
        empty = classes == NO_DATA
        classes, sure = np.where(empty, more, classes), np.where(empty, more_sure, sure)
    return classes, sure


def patch_table(
    codes: CodeRaster, confidence: Path, events: GeoDataFrame, grid: RunGrid, scheme: LabelScheme
) -> GeoDataFrame:
    """The `patches` layer: connected pixels (4 neighbours) of one driver inside one event, EPSG:4326.

    The pixels are those of the run's grid, cut at the event's own outline, which follows the pixels of the loss source.
    """
    import geopandas as gpd

    values, polygons = codes.polygons(junctions=True)
    row, code = values // _CODES - 1, values % _CODES
    # a patch outside its event's answer (the event failed in another block) is not part of the product
    kept = events["driver"].notna().to_numpy()[row] if len(row) else np.zeros(0, bool)
    row, code, polygons = row[kept], code[kept], polygons[kept]
    mean = _mean_confidence(polygons, confidence, grid)
    source, geometry = _clip(polygons, np.asarray(events.geometry.values)[row], grid)
    row, code, mean = row[source], code[source], mean[source]
    names = dict(zip(scheme.codes, scheme.names, strict=True))
    table = gpd.GeoDataFrame(
        {
            "event_id": events["event_id"].to_numpy()[row],
            "driver": [names[int(c)] for c in code],
            "driver_code": code,
            "area_ha": np.asarray(area_ha(geometry), dtype=float).reshape(-1),
            "confidence": mean,
        },
        geometry=geometry,
        crs="EPSG:4326",
    )
    corner = shapely.bounds(geometry)
    order = np.lexsort((corner[:, 0], -corner[:, 3], code, row))
    return table.iloc[order].reset_index(drop=True)


def _clip(polygons: np.ndarray, outlines: np.ndarray, grid: RunGrid) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons (run grid) at outlines (EPSG:4326): (index of the polygon, Polygon in EPSG:4326) of each part.

    What lies inside but for rounding stays as it is: a cut along its own edges would give it vertices that its
    neighbours do not have.
    """
    if not len(polygons):
        return np.zeros(0, np.int64), np.empty(0, object)
    degrees = reproject(polygons, grid.crs, "EPSG:4326")
    cut = shapely.intersection(degrees, outlines)
    inside = shapely.area(cut) >= shapely.area(degrees) * (1 - _ROUNDING)
    cut[inside] = degrees[inside]
    parts, source = shapely.get_parts(cut, return_index=True)
    whole = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (shapely.area(parts) > _SLIVER)
    return source[whole], parts[whole]


def _mean_confidence(polygons: np.ndarray, confidence: Path, grid: RunGrid) -> np.ndarray:
    """Mean of the confidence raster (0..1) over the pixels of each polygon, strip by strip."""
    total, count = np.zeros(len(polygons)), np.zeros(len(polygons))
    if not len(polygons):
        return total
    tree = shapely.STRtree(polygons)
    with rasterio.open(confidence) as raster:
        for row0 in range(0, grid.height, 2048):
            box = grid.window(row0, 0, min(2048, grid.height - row0), grid.width)
            inside = np.sort(tree.query(box.extent.geom))
            if not len(inside):
                continue
            owner = rasterio.features.rasterize(
                ((polygons[k], int(k) + 1) for k in inside), out_shape=box.shape, transform=box.affine, dtype="int32"
            )
            values = raster.read(1, window=Window(0, row0, grid.width, box.shape[0]))
            where = owner > 0
            total += np.bincount(owner[where] - 1, values[where], len(polygons))
            count += np.bincount(owner[where] - 1, minlength=len(polygons))
    return np.asarray(np.round(total / np.maximum(count, 1) / 100, 4))
