"""Our own format, written from a run and its corrected events; and which format a folder is taken for."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from archive_samples import EVENTS, Event, write_camforestnet, write_forestnet, write_tables
from run_samples import World, layer, write_config
from run_samples import run as run_config

from pipeline.blocks import _year_image
from pipeline.catalog.fetch import localised
from pipeline.config import RunConfig, load_config
from pipeline.errors import InputError, OutputError
from pipeline.imagery import fill_composites
from pipeline.plan import Plan, read_block_loss, read_patches, read_plan
from pipeline.training.datasets.base import IGNORE
from pipeline.training.datasets.camforestnet import CamForestNet
from pipeline.training.datasets.forestnet import ForestNet
from pipeline.training.datasets.open import LabelsOnly, open_dataset
from pipeline.training.datasets.own import EventsDataset, to_numbers
from pipeline.training.datasets.write import WriteOptions, write_dataset

NAMES = ("plantation", "smallholder_agriculture", "grassland_shrubland", "other")
OPTIONS = WriteOptions(core=64, margin=16, licence="CC0", simulated=True)


@dataclasses.dataclass(frozen=True)
class Written:
    """A run, its events corrected by hand, and the data set made of both."""

    config: RunConfig
    corrected: gpd.GeoDataFrame
    layer: Path
    folder: Path
    faults: dict[str, int]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, world: World, tiny_model: Path) -> Written:
    scratch = tmp_path_factory.mktemp("own")
    path = write_config(scratch, world, tiny_model, grid__block=96)
    product = run_config(path).product
    events = layer(product, "events")
    # by hand: every class in turn, two rows deleted, three of unknown driver, a predictor
    events["driver"] = [NAMES[k % 4] for k in range(len(events))]
    events.loc[[3, 4, 5], "driver"] = None
    events["aux_elevation"] = np.where(np.arange(len(events)) % 5, np.arange(len(events)) * 1.0, np.nan)
    events["aux_forest_loss"] = 1.0
    events = events.drop(index=[0, 1]).reset_index(drop=True)
    events.to_file(scratch / "corrected.gpkg", layer="events", engine="pyogrio")
    config = load_config(path)
    counts = write_dataset(config, scratch / "corrected.gpkg", scratch / "data", OPTIONS)
    return Written(config, events, scratch / "corrected.gpkg", scratch / "data", counts.faults)


def composites(plan: Plan, config: RunConfig) -> list[tuple[int, tuple[int, int], np.ndarray]]:
    """Loss year, first row and column, and image of every composite the run computes, by the run's own code."""
    out = []
    frame = gpd.read_parquet(config.work / "events.parquet")
    for planned in plan.blocks:
        b, drawn = planned.block, read_patches(config.work, planned)
        with rasterio.open(config.work / "labels.tif") as raster:
            loss = read_block_loss(raster, b, plan.layout)
        years = np.concatenate([[0], frame["loss_year"]])[loss.labels]
        for year, ids in planned.scenes.items():
            scenes = [localised(plan.scenes[s], config.imagery.cache) for s in ids]
            image = _year_image(plan, loss.only(years == year), scenes, drawn)
            fill_composites([image], b, plan.grid, plan.layout, plan.bands)
            out.append((year, (loss.row0, loss.col0), image.image))
    return out


def test_composites_are_the_runs_to_rounding(written: Written) -> None:
    data, plan = EventsDataset(written.folder), read_plan(written.config.work)
    inverse = ~plan.grid.geobox.affine
    compared = 0
    for year, (row0, col0), image in composites(plan, written.config):
        for index, record in enumerate(data._images):
            if record.loss_year != year:
                continue
            grid = data._grids[index]
            left, top = (round(v) for v in inverse @ (grid.x0, grid.y0))
            r0, c0 = max(row0, top), max(col0, left)
            r1, c1 = (
                min(row0 + image.shape[1], top + grid.height),
                min(col0 + image.shape[2], left + grid.width),
            )
            if r0 >= r1 or c0 >= c1:
                continue
            ours = data.read(index)[:, r0 - top : r1 - top, c0 - left : c1 - left]
            runs = image[:, r0 - row0 : r1 - row0, c0 - col0 : c1 - col0]
            seen = np.isfinite(runs)
            np.testing.assert_allclose(ours[seen], runs[seen], atol=0.0000275 / 2 + 1e-7, rtol=0)
            compared += int(seen.sum())
    assert compared > 100_000


def test_every_row_is_there_with_its_fault(written: Written) -> None:
    data = EventsDataset(written.folder)
    assert list(data.events["event_id"]) == list(written.corrected["event_id"])
    unknown = written.corrected["driver"].isna().to_numpy()
    assert (data.events.loc[unknown, "fault"] == "no driver").all()
    usable = data.events["fault"] == ""
    assert usable.sum() > 40
    assert [data.scheme.names[k] for k in data.events.loc[usable, "label"]] == list(
        written.corrected.loc[usable, "driver"]
    )
    # the drawn world has a corner that no date sees
    unseen = (data.events["fault"] == "no clear pixel in its composite").sum()
    assert unseen == written.faults["no clear pixel in its composite"] > 0
    assert written.faults["no driver"] == 3
    assert (data.licence, data.simulated, data.resolution, data.chip_m) == ("CC0", True, 30, 64 * 30)


def test_regions_are_burned_as_in_the_run(written: Written) -> None:
    data, plan = EventsDataset(written.folder), read_plan(written.config.work)
    with rasterio.open(written.config.work / "labels.tif") as raster:
        labels = raster.read(1)
    ids = gpd.read_parquet(written.config.work / "events.parquet")["event_id"].to_numpy()
    inverse = ~plan.grid.geobox.affine
    for index in range(data.images):
        grid, own = data._grids[index], data.events[data.events["image"] == index]
        left, top = (round(v) for v in inverse @ (grid.x0, grid.y0))
        regions = data.regions(index)
        r0, c0, r1, c1 = (
            max(0, top), max(0, left), min(labels.shape[0], top + grid.height), min(labels.shape[1], left + grid.width)
        )  # fmt: skip
        runs = labels[r0:r1, c0:c1]
        ours = regions[r0 - top : r1 - top, c0 - left : c1 - left]
        for number, event in zip(own["number"], own["event_id"], strict=True):
            np.testing.assert_array_equal(ours == number, runs == np.flatnonzero(ids == event)[0] + 1)


def test_an_event_belongs_to_the_tile_of_its_representative_point(written: Written) -> None:
    data = EventsDataset(written.folder)
    with_image = data.events[data.events["image"] >= 0]
    assert len(with_image) > 40
    for row in with_image.itertuples():
        grid = data._grids[row.image]
        point = gpd.GeoSeries([shapely.Point(row.longitude, row.latitude)], crs="EPSG:4326").to_crs(grid.crs).iloc[0]
        column, line = ~grid.geobox.affine @ (point.x, point.y)
        assert 16 <= column <= grid.width - 16
        assert 16 <= line <= grid.height - 16
        assert data._images[row.image].loss_year == row.loss_year


def test_single_scenes_with_their_date_and_cloud(written: Written) -> None:
    data = EventsDataset(written.folder)
    looks = data.looks(0)
    assert looks[0].name == "composite"
    assert [str(look.date) for look in looks[1:]] == ["2023-07-15", "2023-07-23"]
    for k, look in enumerate(looks[1:], start=1):
        assert look.cloud == pytest.approx(100 * np.isnan(data.read(0, k)[0]).mean(), abs=0.01)
    scenes = np.stack([data.read(0, k) for k in range(1, len(looks))])
    median = np.nanmedian(scenes[:, :, np.isfinite(scenes[:, 0]).any(axis=0)], axis=0)
    np.testing.assert_allclose(median, data.read(0)[:, np.isfinite(data.read(0)[0])], atol=2e-5)


def test_samples(written: Written) -> None:
    data = pickle.loads(pickle.dumps(EventsDataset(written.folder)))
    for index in range(len(data)):
        sample, own = data[index], data.events[data.events["image"] == index]
        assert sample["image"].shape[0] == 6
        assert sample["image"].shape[1:] == sample["mask"].shape == sample["events"].shape
        assert sample["mask"].dtype == torch.int64
        for row in own.itertuples():
            inside = sample["events"] == row.number
            expected = IGNORE if row.fault else row.label
            assert (sample["mask"][inside] == expected).all()
    assert list(data.auxiliary.columns) == ["elevation"]
    np.testing.assert_array_equal(data.auxiliary["elevation"], written.corrected["aux_elevation"])
    assert "loss" in data.refused["forest_loss"]


def test_whole_tiles_go_to_splits(written: Written, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, shares=(0.5, 0.2, 0.3))
    write_dataset(written.config, written.layer, tmp_path / "data", options)
    data = EventsDataset(tmp_path / "data")
    splits = {}
    for row in data.events[data.events["image"] >= 0].itertuples():
        cell = data._images[row.image].name.partition("-")[2]
        assert splits.setdefault(cell, row.split) == row.split
    assert set(splits.values()) == {"train", "val", "test"}


def test_nothing_is_left_half_written(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(written.config, written.layer, tmp_path / "data", dataclasses.replace(OPTIONS, progress=stop))
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="already"):
        write_dataset(written.config, written.layer, written.folder, OPTIONS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e.assign(driver="palm oil"), "driver 'palm oil'; known are plantation"),
        (lambda e: e.assign(driver=None), "nothing to write"),
        (lambda e: e.drop(columns="driver"), "lack the columns driver"),
        (lambda e: e.assign(event_id="a"), "event a is there twice"),
        (lambda e: e.assign(split="holdout"), "split 'holdout'"),
        (lambda e: e.assign(loss_year=2019), "nothing to write"),
    ],
)
def test_what_cannot_be_written_is_told(written: Written, tmp_path: Path, change: object, told: str) -> None:
    change(written.corrected).to_file(tmp_path / "events.gpkg", layer="events", engine="pyogrio")  # type: ignore[operator]
    with pytest.raises(InputError, match=told):
        write_dataset(written.config, tmp_path / "events.gpkg", tmp_path / "data", OPTIONS)
    assert not (tmp_path / "data").exists()


def test_editing_and_damage(written: Written, tmp_path: Path) -> None:
    folder = shutil.copytree(written.folder, tmp_path / "data")
    frame = gpd.read_file(folder / "events.gpkg", layer="events", engine="pyogrio")
    frame.loc[frame["driver"].isna() | (frame["driver"] == ""), "driver"] = "other"
    frame.to_file(folder / "events.gpkg", layer="events", engine="pyogrio")
    assert "no driver" not in set(EventsDataset(folder).events["fault"])
    first = EventsDataset(folder)._images[0]
    path = folder / "images" / first.name / "composite.tif"
    with rasterio.open(path) as file:
        profile, values = file.profile, file.read()
    with rasterio.open(path, "w", **{**profile, "count": 3}) as file:
        file.write(values[:3])
    with pytest.raises(InputError, match=r"composite\.tif: uint16 \(3,"):
        EventsDataset(folder).read(0)
    path.unlink()
    with pytest.raises(InputError, match=r"composite\.tif: cannot be read"):
        EventsDataset(folder)
    frame.assign(driver="palm").to_file(folder / "events.gpkg", layer="events", engine="pyogrio")
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**record, "images": [{**record["images"][0], "name": "../x"}]}))
    with pytest.raises(InputError, match="names without folders"):
        EventsDataset(folder)
    (folder / "dataset.json").write_text(json.dumps({**record, "bandz": 1}))
    with pytest.raises(InputError, match=r"dataset\.json: .*"):
        EventsDataset(folder)


def test_numbers_are_those_of_collection_2() -> None:
    values = np.array([np.nan, -0.2, 0.0, 0.3, 9.0], np.float32)
    np.testing.assert_array_equal(to_numbers(values), [0, 1, 7273, 18182, 65535])


def test_a_folder_is_taken_for_what_it_holds(written: Written, tmp_path: Path) -> None:
    assert isinstance(open_dataset(written.folder), EventsDataset)
    assert type(open_dataset(write_forestnet(tmp_path / "forestnet"))) is ForestNet
    square = shapely.box(9.8, 4.2, 9.9, 4.3)
    cameroon = write_camforestnet(tmp_path / "cam", [Event("Mining", "Mining", "train", 4.25, 9.875, square)])
    assert type(open_dataset(cameroon)) is CamForestNet
    (tmp_path / "labels").mkdir()
    write_tables(tmp_path / "labels", [(event, f"examples/{event.latitude}_{event.longitude}") for event in EVENTS])
    labels = open_dataset(tmp_path / "labels", level="fine")
    assert isinstance(labels, LabelsOnly)
    assert (len(labels), len(labels.events), len(labels.scheme)) == (0, 4, 4)
    with pytest.raises(InputError, match="labels only"):
        labels.read(0)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no train\.csv"):
        open_dataset(tmp_path / "empty")


@pytest.mark.real
def test_the_published_tables(shared_data: Path) -> None:
    indonesia = open_dataset(shared_data / "forestnet-indonesia-labels")
    assert isinstance(indonesia, LabelsOnly)
    assert len(indonesia.events) == 2089
    cameroon = open_dataset(shared_data / "cameroon-driver-reference" / "labels-15-classes")
    assert len(cameroon.scheme) == 15
