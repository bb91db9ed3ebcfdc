"""Simulated archives: readable as ForestNet's own, true to the simulated land, and honest about being simulated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Geod

from pipeline.errors import InputError, OutputError
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.simulate import Province, ProvinceParams, simulate
from pipeline.simulate.archive import ArchiveParams, write_forestnet_archive
from pipeline.simulate.archive_files import climate_names, write_region, write_surroundings
from pipeline.simulate.archive_land import open_land
from pipeline.training.datasets.archive_auxiliary import NCEP, read_auxiliary
from pipeline.training.datasets.forestnet import ForestNet
from pipeline.training.datasets.open import open_dataset

OLD = Path(__file__).parent / "fixtures"
PARAMS = ArchiveParams(events=20, scenes=2, seed=3)


@pytest.fixture(scope="module")
def provinces(tmp_path_factory: pytest.TempPathFactory) -> list[Province]:
    folder = tmp_path_factory.mktemp("provinces")
    return [
        simulate(
            folder / str(seed),
            ProvinceParams(size=224, seed=seed, dates=3, cloud=0.02, loss_share=0.16, two_zones=False),
        )
        for seed in (11, 12, 13)
    ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, provinces: list[Province]) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "data"
    counts = write_forestnet_archive(folder, provinces, PARAMS)
    assert counts == {"train": 12, "val": 3, "test": 5}
    return folder


def test_read_as_published_and_says_that_it_is_simulated(archive: Path) -> None:
    data = open_dataset(archive)
    assert type(data) is ForestNet
    assert data.simulated
    assert "simulated" in data.name
    assert data.images == len(data.events) == 20
    assert (data.events["fault"] == "").all()
    assert not data.incomplete
    assert data.scheme is FOREST_LOSS_DRIVERS
    assert len(set(data.events["label"])) == 4
    looks = [data.looks(k) for k in range(data.images)]
    assert max(map(len, looks)) == 3
    for k, own in enumerate(looks):
        for look in own[1:]:
            assert look.date is not None
            assert 0 <= look.date.year - data.events.at[k, "loss_year"] <= 2
            assert 0 <= look.cloud <= 30
    assert (archive / "SIMULATED.txt").read_text().startswith("Simulated by Clearcause")


def test_regions_are_the_patches_of_the_truth(archive: Path, provinces: list[Province]) -> None:
    """Every event of the first province (train), by its place: the mask is one patch of truth of its class and year."""
    data, land = ForestNet(archive), open_land(provinces[0], (0.0, 0.0), 0)
    with rasterio.open(provinces[0].truth) as drivers, rasterio.open(provinces[0].truth_year) as years:
        truth, when = drivers.read(1), years.read(1)
    own = data.events[data.events["split"] == "train"]
    places = {(event.row, event.column, event.year): land.place(event.row, event.column) for event in land.events}
    for image, row in own.iterrows():
        row0, column0, _ = next(k for k, place in places.items() if place == (row["latitude"], row["longitude"]))
        regions = data.regions(int(image))
        np.testing.assert_array_equal(regions, np.repeat(np.repeat(regions[::2, ::2], 2, 0), 2, 1))
        rows, columns = np.nonzero(regions[::2, ::2])
        there = rows + row0 - 83, columns + column0 - 83
        inside = (there[0] >= 0) & (there[0] < 224) & (there[1] >= 0) & (there[1] < 224)
        assert inside.all()
        assert set(truth[there]) == {data.scheme.codes[row["label"]]}
        assert set(when[there]) == {row["loss_year"] - 2000}


def test_pixels_are_the_lands(archive: Path, provinces: list[Province]) -> None:
    data, land = ForestNet(archive), open_land(provinces[0], (0.0, 0.0), 0)
    chips = {(*land.place(e.row, e.column), e.year): land.composite(e) for e in land.events}
    own = [chips.get((*data._place(k), data.events.at[k, "loss_year"])) for k in range(data.images)]
    index = next(k for k, chip in enumerate(own) if chip is not None and np.isfinite(chip).all())
    image, composite = data.read(index), own[index]
    haze = np.array([0.01, 0, 0]).reshape(3, 1, 1)
    np.testing.assert_allclose(image[3:, ::2, ::2], np.clip(composite[3:] + haze, 0, 1), atol=0.003)
    # the visible bands are smoothed between pixels: equal on average
    means = image[:3].mean(axis=(1, 2)) - composite[:3].mean(axis=(1, 2))
    np.testing.assert_allclose(means, [0.055, 0.045, 0.033], atol=0.002)


def test_chips_of_two_splits_never_overlap(archive: Path) -> None:
    events, geod = ForestNet(archive).events, Geod(ellps="WGS84")
    for split in ("val", "test"):
        one, others = events[events["split"] == split], events[events["split"] != split]
        for row in one.itertuples():
            count = len(others)
            apart = geod.inv(
                [row.longitude] * count, [row.latitude] * count, list(others["longitude"]), list(others["latitude"])
            )[2]
            assert min(apart) > 332 * 15 * np.sqrt(2)


def test_auxiliary_is_plausible_and_whole(archive: Path) -> None:
    data = ForestNet(archive)
    frame = data.auxiliary
    assert not data.unreadable
    assert (frame["slope_max"] >= frame["slope_min"]).all()
    assert frame.drop(columns="city_km").notna().all(axis=None)
    assert frame["street_km"].between(0, 12).all()


def test_both_namings_hold_the_same(provinces: list[Province], tmp_path: Path) -> None:
    land = open_land(provinces[0], (1.0, 0.0), 0)
    event, region = land.events[0], np.eye(332) > 0
    found = []
    for naming in ("tudelft", "irvin"):
        write_surroundings(tmp_path / naming, land.surroundings(event), naming)  # type: ignore[arg-type]
        found.append(read_auxiliary(tmp_path / naming, region, land.place(event.row, event.column)))
    assert not found[0].unreadable + found[1].unreadable
    np.testing.assert_array_equal(list(found[0].values.values()), list(found[1].values.values()))
    assert {path.name for path in (tmp_path / "tudelft").iterdir()} >= {"osm.json", "srtm.npy", "ncep.npy", "gfc.npy"}
    assert {path.name for path in (tmp_path / "irvin").iterdir()} >= {"altitude.npy", "ncep", "gain.npy"}


def test_names_of_climate_are_the_readers() -> None:
    """Writer and reader state the order each for itself."""
    assert climate_names() == NCEP


@pytest.mark.parametrize("name", ["polygon", "multipolygon"])
def test_regions_are_the_bytes_of_shapely_1(name: str, tmp_path: Path) -> None:
    from pipeline.training.datasets.shapes import read_region

    old = OLD / f"shapely-1.8-{name}-protocol3.pkl"
    write_region(tmp_path / "region.pkl", read_region(old))
    assert (tmp_path / "region.pkl").read_bytes() == old.read_bytes()


def test_land_cover_gives_no_driver_away(archive: Path, provinces: list[Province]) -> None:
    with rasterio.open(archive / "landcover/classes.tif") as file:
        classes, tags, place = file.read(1), file.tags(), (file.crs, file.transform, file.shape)
    with rasterio.open(archive / "landcover/composite.tif") as file:
        image = file.read()
        assert place == (file.crs, file.transform, file.shape)
        assert file.descriptions == ("blue", "green", "red", "nir08", "swir16", "swir22")
    with rasterio.open(provinces[0].truth) as file:
        truth = file.read(1)
    assert (classes[truth != NO_DATA] == 0).all()
    assert len(set(np.unique(classes)) - {0}) >= 3
    assert tags["simulated"] == "yes"
    nir = image[3] * 0.0000275 - 0.2
    codes = {name: int(code) for code, name in tags.items() if code.isdigit()}
    assert np.median(nir[classes == codes["forest"]]) > 3 * np.median(nir[classes == codes["water"]])


def test_what_cannot_be_written_is_told(archive: Path, provinces: list[Province], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 3"):
        write_forestnet_archive(tmp_path / "two", provinces[:2], PARAMS)
    with pytest.raises(OutputError, match="not empty"):
        write_forestnet_archive(archive, provinces, PARAMS)
    table = provinces[0].truth_table
    kept = table.read_text()
    record = json.loads(kept)
    record["params"]["seed"] = 99
    table.write_text(json.dumps(record))
    try:
        with pytest.raises(InputError, match="another simulator"):
            open_land(provinces[0], (0.0, 0.0), 0)
    finally:
        table.write_text(kept)
