from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.blocks import BlockRecord, YearSums, _write
from pipeline.catalog.scene import Scene
from pipeline.drivers import DriverParams, decide
from pipeline.events import FIXED_POINT, LogitSums, sum_by_event
from pipeline.grid import RunGrid, area_ha, reproject
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.lattice import PatchLayout
from pipeline.merge import event_table, failed_events, mosaic, patch_table, read_sums
from pipeline.models.card import Calibration
from pipeline.plan import LABELS_FILE, Plan, PlannedBlock

SCHEME = FOREST_LOSS_DRIVERS
GRID = RunGrid("EPSG:32647", 30, 720_015, 90_015, 40, 56, 1000)
SCENES = {
    name: Scene(name, datetime(year, 7, 2, tzinfo=UTC), "landsat-8", 1.0, 127, 60, "POINT (101 0)", {})
    for name, year in (("s2020", 2020), ("s2021", 2021))
}


def cut(block):
    """A plan over GRID in blocks of this size; every block is planned."""
    grid = dataclasses.replace(GRID, block=block)
    blocks = tuple(PlannedBlock(b, {2020: tuple(SCENES)}, 1, 1, 1) for b in grid.blocks())
    return Plan(
        inputs="i", region="riau", years=(2020,), aoi="POINT (101 0)", grid=grid, layout=PatchLayout(), model="m",
        bands=("red",), event_count=3, event_ha=1.0, below_count=0, below_ha=0.0, loss="l", scenes=SCENES, refused=(),
        blocks=blocks, warnings=(),
    )  # fmt: skip


def save_labels(work, labels):
    profile = {"driver": "GTiff", "count": 1, "dtype": "int32", "crs": GRID.crs, "transform": GRID.geobox.affine}
    with rasterio.open(work / LABELS_FILE, "w", height=GRID.height, width=GRID.width, **profile) as raster:
        raster.write(labels.astype(np.int32), 1)


def save_blocks(work, plan, truth):
    """Write the checkpoints of a whole run from its truth on the grid: labels, clear, classes and logits."""
    records = []
    for planned in plan.blocks:
        b = planned.block
        window = slice(b.row0, b.row0 + b.height), slice(b.col0, b.col0 + b.width)
        labels, clear, classes, logits = (part[window] for part in truth)
        where = np.flatnonzero(labels)
        label, seen = labels.ravel()[where], clear.ravel()[where]
        confidence = np.where(seen, 40 + classes.ravel()[where] * 10, NO_DATA).astype(np.uint8)
        present, pixels, _ = sum_by_event(label, np.zeros((len(label), 1), np.int64))
        rows = np.searchsorted(present, label[seen])
        sums = LogitSums.of_pixels(rows, logits.reshape(-1, 4)[where][seen], len(present))
        table = {"event": present - 1, "pixels": pixels, **sums.columns(SCHEME.names)}
        some, counts = present[sums.clear > 0], sums.clear[sums.clear > 0]
        kept = np.where(seen, classes.ravel()[where], NO_DATA).astype(np.uint8)
        images = [(int(e) - 1, "s2020", int(n)) for e, n in zip(some, counts, strict=True)]
        north = label[seen & (where // b.width + b.row0 < 12)]  # the second scene saw the north only
        images += [(int(e) - 1, "s2021", int((north == e).sum())) for e in np.unique(north)]
        folder = work / "blocks" / f"{b.id}-x"
        folder.mkdir(parents=True)
        _write(folder, b, [YearSums(where, kept, confidence, table, images)])
        records.append(BlockRecord(b.id, "done", folder.name))
    return records


def events_of(labels):
    """The planned events of a label raster, each with the outline of its pixels."""
    count = labels.max()
    parts = rasterio.features.shapes(labels.astype(np.int32), labels > 0, transform=GRID.geobox.affine)
    drawn = [(int(value), shapely.geometry.shape(part)) for part, value in parts]
    shapes = [shapely.MultiPolygon([g for value, g in drawn if value == k + 1]) for k in range(count)]
    geometry = list(reproject(np.array(shapes, dtype=object), GRID.crs, "EPSG:4326"))
    pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    table = {"event_id": [f"2020_{k}" for k in range(count)], "loss_year": 2020, "pixels": pixels}
    table |= {"first_day": 0, "last_day": 0}
    frame = gpd.GeoDataFrame(table, geometry=geometry, crs="EPSG:4326")
    return frame.assign(area_ha=area_ha(np.asarray(frame.geometry.values)))


def truth_of(seed):
    """Events of some hundred pixels each, a third of the pixels clouded, random classes and logits."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (5, 7))
    labels = np.kron(coarse, np.ones((8, 8), np.int64))
    for k in range(1, 4):
        labels[k, k] = k  # so that every event has a pixel
    clear = rng.random(labels.shape) < 0.7
    classes = np.kron(rng.integers(1, 5, (10, 14)), np.ones((4, 4), np.int64)).astype(np.uint8)
    logits = rng.integers(-5 * FIXED_POINT, 5 * FIXED_POINT, (*labels.shape, 4))
    return labels, clear, classes, logits


def merged(work, block, truth, lost=()):
    """Everything a run in blocks of this size says, less the blocks that were lost."""
    plan = cut(block)
    work.mkdir(exist_ok=True)
    save_labels(work, truth[0])
    good = [record for record in save_blocks(work, plan, truth) if record.block not in lost]
    planned = events_of(truth[0])
    failed = failed_events(work, plan, lost, len(planned))
    sums = read_sums(work, good, len(planned), SCHEME)
    params = DriverParams(Calibration(method="temperature", temperature=1.2), 0.5)
    drivers_of = decide(sums.logits.mean(), sums.logits.clear, failed, SCHEME, params)
    events = event_table(planned, sums, drivers_of, plan, SCHEME)
    (work / "merged").mkdir()
    drivers, confidence, codes = mosaic(work, plan, good, work / "merged")
    patches = patch_table(codes, confidence, events, plan.grid, SCHEME)
    with rasterio.open(drivers) as one, rasterio.open(confidence) as two:
        assert one.nodata == two.nodata == NO_DATA
        return events, patches, one.read(1), two.read(1)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([10, 14, 17]))
def test_one_block_or_many_make_the_same_tables_and_rasters(tmp_path_factory, seed, block):
    folder, truth = tmp_path_factory.mktemp("merge"), truth_of(seed)
    one, many = merged(folder / "one", 1000, truth), merged(folder / "many", block, truth)
    for left, right in zip(one[:2], many[:2], strict=True):
        pd.testing.assert_frame_equal(left.drop(columns="geometry"), right.drop(columns="geometry"), check_exact=True)
        assert left.geometry.to_wkb().tolist() == right.geometry.to_wkb().tolist()
    for left, right in zip(one[2:], many[2:], strict=True):
        assert (left == right).all()


def test_the_answers_of_a_run_are_those_of_its_pixels(tmp_path):
    labels, clear, classes, logits = truth = truth_of(1)
    events, patches, drivers, confidence = merged(tmp_path / "run", 17, truth)
    kept = (labels > 0) & clear
    assert (drivers == np.where(kept, classes, NO_DATA)).all()
    assert (confidence == np.where(kept, 40 + 10 * classes.astype(int), NO_DATA)).all()
    for k, event in enumerate(events.itertuples()):
        mine = kept & (labels == k + 1)
        scores = logits[mine].sum(axis=0)
        assert event.driver == SCHEME.names[scores.argmax()]
        assert event.driver_code == SCHEME.codes[scores.argmax()]
        assert event.clear_share == pytest.approx(mine.sum() / (labels == k + 1).sum(), abs=1e-6)
        shape = events.geometry.iloc[k]
        assert shapely.intersects_xy(shape, event.lon, event.lat)
        parts = patches[patches["event_id"] == event.event_id]
        pixel = event.area_ha / event.pixels
        assert parts["area_ha"].sum() == pytest.approx(mine.sum() * pixel, rel=1e-4)
        assert shapely.difference(shapely.union_all(parts.geometry.values), shape.buffer(1e-8)).is_empty
    assert patches.geometry.is_valid.all()
    assert (patches["confidence"] == np.round(0.4 + 0.1 * patches["driver_code"], 4)).all()
    assert (events["first_image"] == date(2020, 7, 2)).all()
    assert set(events["image_count"]) <= {1, 2}
    assert set(events["last_image"]) <= {date(2020, 7, 2), date(2021, 7, 2)}
    assert events["years_after_loss"].between(0.5, 1.5).all()


def small_truth(rows):
    """A 40 x 56 grid with these rows in its corner: labels, all clear, class 1, logits for class 1."""
    labels = np.zeros((GRID.height, GRID.width), np.int64)
    rows = np.array(rows)
    labels[: rows.shape[0], : rows.shape[1]] = rows
    logits = np.zeros((*labels.shape, 4), np.int64)
    logits[..., 0] = 5 * FIXED_POINT
    return labels, np.ones(labels.shape, bool), np.ones(labels.shape, np.uint8), logits


def test_patches_end_at_other_drivers_and_other_events_and_at_corners(tmp_path):
    labels, clear, classes, logits = small_truth([[1, 1, 1, 2], [0, 0, 2, 2]])
    classes[0, 2] = 3
    _, patches, _, _ = merged(tmp_path / "run", 1000, (labels, clear, classes, logits))
    found = patches.assign(pixels=np.round(patches["area_ha"] / 0.09).astype(int))
    assert found[["event_id", "driver_code", "pixels"]].to_numpy().tolist() == [
        ["2020_0", 1, 2], ["2020_0", 3, 1], ["2020_1", 1, 3],
    ]  # fmt: skip


def test_an_event_of_a_lost_block_is_failed_whole(tmp_path):
    rows = np.zeros((4, 44), int)
    rows[0, :30], rows[2, :3], rows[3, 40:] = 1, 2, 3  # event 1 lies in the blocks of columns 0 and 20
    events, patches, drivers, _ = merged(tmp_path / "run", 20, small_truth(rows), lost=("r0000c0001",))
    assert events["status"].tolist() == ["failed", "classified", "classified"]
    assert events.loc[0, ["driver", "driver_code", "confidence", "p_other", "clear_share"]].isna().all()
    assert set(patches["event_id"]) == {"2020_1", "2020_2"}
    assert (drivers[:, 20:40] == NO_DATA).all()


def test_an_event_that_nobody_saw(tmp_path):
    labels, clear, classes, logits = small_truth([[1, 1, 0, 2]])
    clear[:, :2] = False
    events, patches, _, _ = merged(tmp_path / "run", 1000, (labels, clear, classes, logits))
    assert events["status"].tolist() == ["no_imagery", "classified"]
    assert events["clear_share"].tolist() == [0, 1]
    assert events["image_count"].tolist() == [0, 2]
    assert pd.isna(events["first_image"][0])
    assert events["awaiting"].tolist() == [True, False]
    assert events[["loss_date", "loss_date_last"]].isna().all(axis=None)
    assert np.isnan(events["years_after_loss"][0])
    assert set(patches["event_id"]) == {"2020_1"}


def test_all_blocks_lost(tmp_path):
    events, patches, drivers, confidence = merged(
        tmp_path / "run", 1000, small_truth([[1, 0, 2]]), lost=("r0000c0000",)
    )
    assert set(events["status"]) == {"failed"}
    assert len(patches) == 0
    assert list(patches.columns) == ["event_id", "driver", "driver_code", "area_ha", "confidence", "geometry"]
    assert (drivers == NO_DATA).all()
    assert (confidence == NO_DATA).all()


def test_sums_do_not_depend_on_the_order_of_blocks(tmp_path):
    plan, truth = cut(14), truth_of(2)
    records = save_blocks(tmp_path, plan, truth)
    one, other = read_sums(tmp_path, records, 3, SCHEME), read_sums(tmp_path, records[::-1], 3, SCHEME)
    for kind in dataclasses.fields(LogitSums):
        assert (getattr(one.logits, kind.name) == getattr(other.logits, kind.name)).all(), kind.name
    pd.testing.assert_frame_equal(one.images, other.images)
    labels, clear, _, logits = truth
    kept = (labels > 0) & clear
    assert one.logits.clear.tolist() == [int((kept & (labels == k)).sum()) for k in (1, 2, 3)]
    assert one.logits.total.tolist() == [logits[kept & (labels == k)].sum(axis=0).tolist() for k in (1, 2, 3)]
    for k, found in enumerate(one.logits.statistics(), 1):
        own = logits[kept & (labels == k)] / FIXED_POINT
        expected = np.concatenate([own.mean(axis=0), own.std(axis=0), own.min(axis=0), own.max(axis=0)])
        np.testing.assert_allclose(found, expected, rtol=1e-12)
