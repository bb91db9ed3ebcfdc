"""Write a data set of our own from a run's events, corrected by hand or not, and the scenes of its plan.

An image is one tile of the run's grid in one loss year: a core of 768 pixels and a margin of 128, so that a chip round
any event of the core is real ground. Only tiles with labelled events are written. Composites are the run's own: the
same scenes, warped by the same code, in the same median.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio.windows import Window

from pipeline.artifacts import committed_folder, run_lock, write_json
from pipeline.catalog.fetch import localised
from pipeline.catalog.scene import Scene
from pipeline.composite import median_composite
from pipeline.config import RunConfig
from pipeline.errors import InputError, OutputError
from pipeline.fetching import fetch_scenes
from pipeline.grid import Block, RunGrid, read_vector, reproject
from pipeline.labels import LabelScheme
from pipeline.models.card import read_card
from pipeline.plan import AUXILIARY_PREFIX, Plan, assign_scenes
from pipeline.request import Request
from pipeline.scenes import LandsatScenes
from pipeline.steps import plan_run
from pipeline.training.datasets.own import (
    COLUMNS,
    DATASET_FILE,
    EVENTS_FILE,
    LAYER,
    DatasetRecord,
    ImageRecord,
    LookRecord,
    burn,
    to_numbers,
)
from pipeline.training.datasets.tables import SPLITS

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray

_WINDOW = 512


@dataclass(frozen=True)
class WriteOptions:
    """How to write a data set.

    Attributes:
        core: pixels a side of a tile's own ground.
        margin: pixels of ground around it.
        shares: of train, val and test, drawn by tile; None keeps the events' `split` column, or none.
        seed: of that draw.
        scheme: the classes that `driver` names; None takes those of the run's model.
        licence: of the labels and images.
        simulated: whether any of it was simulated.
        progress: told (images written, images in all).
    """

    core: int = 768
    margin: int = 128
    shares: tuple[float, float, float] | None = None
    seed: int = 0
    scheme: LabelScheme | None = None
    licence: str = "unknown"
    simulated: bool = False
    progress: Callable[[int, int], None] = lambda _done, _total: None


@dataclass(frozen=True)
class WrittenDataset:
    """What was written: images, single scenes, events, and events by fault (of labels and of imagery)."""

    images: int
    scenes: int
    events: int
    faults: dict[str, int]


@dataclass(frozen=True)
class _Tile:
    """One image to be: loss year, window in pixels of the run's grid, its scenes, and its rows of the event table."""

    name: str
    year: int
    window: tuple[int, int, int, int]
    scenes: tuple[Scene, ...]
    rows: NDArray[np.int64]


def write_dataset(
    config: RunConfig, events: Path, out: Path, options: WriteOptions = WriteOptions()
) -> WrittenDataset:  # fmt: skip
    """Write a data set to the new folder `out` from an event layer (EPSG:4326 or any CRS) and the run's plan.

    The plan is the run's own (`<output.dir>.work`) where nothing changed since, and made anew otherwise. Rows without
    a driver are written with their fault.

    Raises:
        InputError: the events lack a column, name an unknown driver, or nothing of them is labelled.
        OutputError: `out` is there already, or the run's folder is in use.
    """
    if out.exists():
        raise OutputError(f"data set {out}: is there already; name a new folder")
    scheme = options.scheme or read_card(config.model).scheme
    frame = _read_events(events, scheme)
    with run_lock(config.work):
        # images are larger than what a run reads around its loss
        whole = config.model_copy(update={"imagery": config.imagery.model_copy(update={"read": "cache"})})
        plan = fetch_scenes(request := Request(whole), plan_run(request))
    tiles = _tiles(frame, plan, options, config.imagery.cache)
    if not tiles:
        raise InputError(f"{events}: no event has both a driver and imagery in the plan, so there is nothing to write")
    _split(frame, plan, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with committed_folder(out) as folder:
        for done, tile in enumerate(tiles):
            records.append(_write_tile(folder / "images" / tile.name, tile, plan, frame))
            options.progress(done + 1, len(tiles))
        _write_layer(folder / EVENTS_FILE, frame)
        record = DatasetRecord(
            format=1, name=out.name, bands=plan.bands, resolution=plan.grid.resolution,
            chip_m=plan.layout.size * plan.grid.resolution, classes=tuple(scheme.to_list()), licence=options.licence,
            simulated=options.simulated, images=tuple(records),
        )  # fmt: skip
        write_json(folder / DATASET_FILE, record.model_dump(mode="json"))
    faults = Counter(frame["fault"].where(frame["driver"] != "", "no driver"))
    faults.pop("", None)
    return WrittenDataset(len(records), sum(len(r.looks) - 1 for r in records), len(frame), dict(faults))


def _read_events(path: Path, scheme: LabelScheme) -> GeoDataFrame:
    """The events in EPSG:4326 with the columns of the format; `image` and `fault` are still empty."""
    layers = [str(name) for name, _ in pyogrio.list_layers(path)] if path.is_file() else []
    frame = read_vector(path, LAYER if LAYER in layers else None, "events").to_crs("EPSG:4326")
    missing = [column for column in ("event_id", "driver", "loss_year") if column not in frame]
    if missing:
        raise InputError(f"{path}: the events lack the columns {', '.join(missing)}")
    broken = frame.geometry.isna() | frame.geometry.is_empty | frame["event_id"].isna() | frame["loss_year"].isna()
    if broken.any():
        raise InputError(f"{path}: row {int(np.flatnonzero(broken)[0]) + 1} lacks geometry, event_id or loss_year")
    twice = frame["event_id"].duplicated()
    if twice.any():
        raise InputError(f"{path}: event {frame.loc[twice, 'event_id'].iloc[0]} is there twice; remove one")
    driver = frame["driver"].fillna("").astype(str).str.strip()
    unknown = sorted(set(driver) - {*scheme.names, ""})
    if unknown:
        raise InputError(f"{path}: driver {unknown[0]!r}; known are {', '.join(scheme.names)}")
    split = frame["split"].fillna("").astype(str) if "split" in frame else ""
    auxiliary = [name for name in frame.columns if str(name).startswith(AUXILIARY_PREFIX)]
    kept = frame.assign(driver=driver, split=split, image="", fault="", loss_year=frame["loss_year"].astype(int))
    wrong = sorted(set(kept["split"]) - {*SPLITS, ""})
    if wrong:
        raise InputError(f"{path}: split {wrong[0]!r}; write {', '.join(SPLITS)} or nothing")
    kept = kept[[*COLUMNS, *auxiliary, frame.geometry.name]].reset_index(drop=True)
    return kept if frame.geometry.name == "geometry" else kept.rename_geometry("geometry")


def _tiles(frame: GeoDataFrame, plan: Plan, options: WriteOptions, cache: Path) -> list[_Tile]:
    """The images to write; sets `image` and `fault` of the events that have none of them."""
    chosen: dict[int, dict[str, Scene]] = defaultdict(dict)
    for planned in plan.blocks:
        for year, ids in planned.scenes.items():
            chosen[year].update({scene: plan.scenes[scene] for scene in ids})
    cells = _cells(frame, plan.grid, options.core)
    for row in range(len(frame)):
        year = int(frame.at[row, "loss_year"])
        if cells[row] is None:
            frame.at[row, "fault"] = "lies outside the run's grid"
        elif year not in chosen:
            frame.at[row, "fault"] = f"the run has no imagery for loss year {year}"
    groups: dict[tuple[int, tuple[int, int]], list[int]] = defaultdict(list)
    for row, (year, fault) in enumerate(zip(frame["loss_year"].tolist(), frame["fault"], strict=True)):
        cell = cells[row]
        if cell is not None and not fault:
            groups[year, cell].append(row)
    tiles = []
    for (year, cell), rows in sorted(groups.items()):
        if not (frame.loc[rows, "driver"] != "").any():
            continue
        window = _window(plan.grid, cell, options)
        area, candidates = Block("tile", *window), {year: list(chosen[year].values())}
        ids = assign_scenes(area, [year], candidates, plan.grid, plan.layout)[year]
        scenes = tuple(localised(plan.scenes[scene], cache) for scene in ids)
        tiles.append(_Tile(f"y{year}-r{cell[0]:04d}c{cell[1]:04d}", year, window, scenes, np.array(rows)))
        frame.loc[rows, "image"] = tiles[-1].name
    return tiles


def _cells(frame: GeoDataFrame, grid: RunGrid, core: int) -> list[tuple[int, int] | None]:
    """The tile (row, column) that holds each event's representative point, None outside the grid."""
    points = reproject(shapely.point_on_surface(np.asarray(frame.geometry.values)), "EPSG:4326", grid.crs)
    inverse = ~grid.geobox.affine
    out: list[tuple[int, int] | None] = []
    for point in points:
        column, row = inverse @ (point.x, point.y)
        inside = 0 <= row < grid.height and 0 <= column < grid.width
        out.append((int(row) // core, int(column) // core) if inside else None)
    return out


def _window(grid: RunGrid, cell: tuple[int, int], options: WriteOptions) -> tuple[int, int, int, int]:
    """First row and column, height and width of a tile with its margin, which may reach beyond the grid."""
    row0, col0 = cell[0] * options.core, cell[1] * options.core
    height, width = min(options.core, grid.height - row0), min(options.core, grid.width - col0)
    m = options.margin
    return row0 - m, col0 - m, height + 2 * m, width + 2 * m


def _split(frame: GeoDataFrame, plan: Plan, options: WriteOptions) -> None:
    """Give whole tiles (all their years) to splits, largest shortfall first, in random order."""
    if options.shares is None:
        return
    cells = _cells(frame, plan.grid, options.core)
    counts = Counter(cell for cell in cells if cell is not None)
    order = sorted(counts)
    np.random.default_rng(options.seed).shuffle(order)
    given: Counter[str] = Counter()
    owner = {}
    for cell in order:
        short = {s: share * len(frame) - given[s] for s, share in zip(SPLITS, options.shares, strict=True)}
        owner[cell] = max(short, key=lambda split: short[split])
        given[owner[cell]] += counts[cell]
    frame["split"] = [owner.get(cell, "") if cell else "" for cell in cells]


def _write_tile(folder: Path, tile: _Tile, plan: Plan, frame: GeoDataFrame) -> ImageRecord:
    """Write the looks of one image; events without a clear pixel in the composite get their fault."""
    folder.mkdir(parents=True)
    row0, col0, height, width = tile.window
    box = plan.grid.window(*tile.window)
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": len(plan.bands), "height": height, "width": width, "dtype": "uint16", "nodata": 0,
        "crs": plan.grid.crs, "transform": box.affine, "tiled": True, "blockxsize": 256, "blockysize": 256,
        "compress": "deflate", "predictor": 2, "bigtiff": "if_safer",
    }  # fmt: skip
    names = ["composite.tif", *(f"{scene.datetime:%Y-%m-%d}_{_plain(scene.id)}.tif" for scene in tile.scenes)]
    seen, clear = np.zeros((height, width), bool), np.zeros(len(tile.scenes), np.int64)
    with LandsatScenes(tile.scenes, plan.grid, plan.bands) as dataset, ExitStack() as files:
        writers = [files.enter_context(rasterio.open(folder / name, "w", **profile)) for name in names]
        for writer in writers:
            writer.descriptions = plan.bands
        for top, left, h, w in _windows(height, width):
            stack = dataset[plan.grid.slices(row0 + top, col0 + left, h, w)]["image"].numpy()
            image, observed = median_composite(stack)
            seen[top : top + h, left : left + w] = observed > 0
            clear += np.sum(~np.isnan(stack[:, 0]), axis=(1, 2))
            for writer, values in zip(writers, (image, *stack), strict=True):
                writer.write(to_numbers(values), window=Window(left, top, w, h))
    looks = [LookRecord(file=names[0])]
    for scene, name, count in zip(tile.scenes, names[1:], clear.tolist(), strict=True):
        if count == 0:
            (folder / name).unlink()
            continue
        cloud = round(100 * (1 - count / (height * width)), 2)
        looks.append(LookRecord(file=name, scene=scene.id, date=scene.datetime.date(), cloud=cloud))
    _mark_unseen(frame, tile, plan.grid, seen)
    return ImageRecord(name=tile.name, loss_year=tile.year, looks=(looks[0], *sorted(looks[1:], key=_by_date)))


def _by_date(look: LookRecord) -> tuple[str, str]:
    return str(look.date), look.file


def _plain(scene: str) -> str:
    """A scene's id as part of a file name."""
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in scene)


def _windows(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            yield top, left, min(_WINDOW, height - top), min(_WINDOW, width - left)


def _mark_unseen(frame: GeoDataFrame, tile: _Tile, grid: RunGrid, seen: NDArray[np.bool_]) -> None:
    box = grid.window(*tile.window).affine
    window = RunGrid(grid.crs, grid.resolution, box.c, box.f, tile.window[2], tile.window[3], 2048)
    regions = burn(frame.geometry[tile.rows], window)
    clear = np.bincount(regions[seen], minlength=len(tile.rows) + 1)[1:]
    frame.loc[tile.rows[clear == 0], "fault"] = "no clear pixel in its composite"


def _write_layer(path: Path, frame: GeoDataFrame) -> None:
    frame.to_file(path, layer=LAYER, engine="pyogrio", driver="GPKG", promote_to_multi=True)
