"""Laws of the simulated province: what the pipeline's tests and demo rely on must hold in the files themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.simulate import Province, ProvinceParams, simulate
from pipeline.simulate.grids import Grid, HomeMap
from pipeline.simulate.noise import NoiseField

PRODUCT = re.compile(r"LC0[89]_L2SP_12[12]061_\d{8}_\d{8}_02_T1")
EIGHT = np.ones((3, 3), int)
NOISE = NoiseField.draw(np.random.default_rng(1), (3.0, 90.0), 1.0)
SMALL = ProvinceParams(size=320, seed=5, dates=2, cloud=0.2, loss_share=0.12)


@pytest.fixture(scope="module")
def province(tmp_path_factory: pytest.TempPathFactory) -> Province:
    return simulate(tmp_path_factory.mktemp("province"), SMALL)


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Province:
    return simulate(
        tmp_path_factory.mktemp("clear"), ProvinceParams(size=320, seed=5, dates=1, cloud=0.0, loss_share=0.12)
    )


def scenes(province: Province) -> list[Path]:
    return sorted(province.scenes.iterdir())


def read(folder: Path, ending: str) -> NDArray[np.uint16]:
    with rasterio.open(folder / f"{folder.name}_{ending}.TIF") as dataset:
        return np.asarray(dataset.read(1))


def rasters(province: Province) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for path in sorted(province.folder.rglob("*.[tT][iI][fF]")):
        with rasterio.open(path) as dataset:
            yield path.relative_to(province.folder).as_posix(), dataset.read(1)


def mtl(folder: Path) -> dict[str, dict[str, str]]:
    record = json.loads((folder / f"{folder.name}_MTL.json").read_text())
    return dict(record["LANDSAT_METADATA_FILE"])


def truth(province: Province) -> tuple[NDArray[np.uint8], NDArray[np.uint8], rasterio.Affine]:
    with rasterio.open(province.truth) as dataset, rasterio.open(province.truth_year) as year:
        return dataset.read(1), year.read(1), dataset.transform


def loss_with_driver(province: Province) -> tuple[NDArray[np.uint8], NDArray[np.uint8], rasterio.Affine]:
    """Loss raster and, by an exact transformation of every pixel centre, the truth beneath it."""
    driver, _, place = truth(province)
    with rasterio.open(province.loss) as dataset:
        loss, transform = dataset.read(1), dataset.transform
    row, col = np.indices(loss.shape)
    lon, lat = transform @ (col + 0.5, row + 0.5)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32648", always_xy=True).transform(lon, lat)
    c, r = (np.floor(v).astype(int) for v in ~place @ (np.asarray(x), np.asarray(y)))
    inside = (r >= 0) & (r < driver.shape[0]) & (c >= 0) & (c < driver.shape[1])
    beneath = np.full(loss.shape, NO_DATA, np.uint8)
    beneath[inside] = driver[r[inside], c[inside]]
    return loss, beneath, transform


def test_same_seed_same_pixels_whatever_the_window(province: Province, tmp_path: Path) -> None:
    again = dict(rasters(simulate(tmp_path / "again", SMALL, window=96)))
    first = dict(rasters(province))
    assert first.keys() == again.keys()
    for name, pixels in first.items():
        np.testing.assert_array_equal(pixels, again[name], err_msg=name)


def test_another_seed_is_another_land(tmp_path: Path) -> None:
    one, two = (truth(simulate(tmp_path / str(s), ProvinceParams(size=160, seed=s, dates=1)))[0] for s in (1, 2))
    assert (one != two).mean() > 0.05


def test_bundles_look_like_usgs_bundles(province: Province) -> None:
    assert {p.name.split("_")[2] for p in scenes(province)} == {"121061", "122061"}
    assert len(scenes(province)) == 2 * SMALL.dates
    for folder in scenes(province):
        assert PRODUCT.fullmatch(folder.name)
        zone = {"121061": 32649, "122061": 32648}[folder.name.split("_")[2]]
        for ending in ("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7", "QA_PIXEL"):
            with rasterio.open(folder / f"{folder.name}_{ending}.TIF") as dataset:
                assert dataset.crs.to_epsg() == zone
                assert dataset.dtypes == ("uint16",)
                assert dataset.nodata == (1 if ending == "QA_PIXEL" else 0)
                assert dataset.block_shapes == [(256, 256)]
                assert dataset.transform.c % 30 == 15
                assert dataset.transform.f % 30 == 15
                assert dataset.bounds.top < 0  # north zone, negative northings


def test_bands_are_fill_exactly_where_quality_says_so(province: Province) -> None:
    for folder in scenes(province):
        quality = read(folder, "QA_PIXEL")
        fill = quality == 1
        assert 0.1 < fill.mean() < 0.6
        for band in range(2, 8):
            number = read(folder, f"SR_B{band}")
            np.testing.assert_array_equal(number == 0, fill)
            reflectance = number[~fill] * 0.0000275 - 0.2
            assert reflectance.min() > -0.05
            assert reflectance.max() < 1.2


def test_mtl_tells_the_truth(province: Province) -> None:
    for folder in scenes(province):
        record, quality = mtl(folder), read(folder, "QA_PIXEL")
        image, projection = record["IMAGE_ATTRIBUTES"], record["PROJECTION_ATTRIBUTES"]
        cloud = 100 * ((quality & 8) > 0).sum() / (quality != 1).sum()
        assert float(image["CLOUD_COVER"]) == pytest.approx(cloud, abs=0.0051)
        assert image["DATE_ACQUIRED"].replace("-", "") == folder.name.split("_")[3]
        with rasterio.open(folder / f"{folder.name}_QA_PIXEL.TIF") as dataset:
            assert (int(projection["REFLECTIVE_LINES"]), int(projection["REFLECTIVE_SAMPLES"])) == dataset.shape
            corner = dataset.xy(0, 0), dataset.xy(dataset.height - 1, dataset.width - 1)
            geographic = Transformer.from_crs(dataset.crs, "EPSG:4326", always_xy=True)
        for name, (x, y) in zip(("UL", "LR"), corner, strict=True):
            assert float(projection[f"CORNER_{name}_PROJECTION_X_PRODUCT"]) == x
            assert float(projection[f"CORNER_{name}_PROJECTION_Y_PRODUCT"]) == y
            lon, lat = geographic.transform(x, y)
            assert float(projection[f"CORNER_{name}_LON_PRODUCT"]) == pytest.approx(lon, abs=1e-5)
            assert float(projection[f"CORNER_{name}_LAT_PRODUCT"]) == pytest.approx(lat, abs=1e-5)
        for name in record["PRODUCT_CONTENTS"]:
            if name.startswith("FILE_NAME"):
                assert (folder / record["PRODUCT_CONTENTS"][name]).is_file()
        text = (folder / f"{folder.name}_MTL.txt").read_text()
        found = dict(re.findall(r'^ {4}(\w+) = "?(.*?)"?$', text, re.MULTILINE))
        for group in record.values():
            assert group.items() <= (found | group).items()
            assert {k: found[k] for k in group} == group or "PROCESSING_LEVEL" in group
        assert "SIMULATOR" in text


def test_loss_raster_agrees_with_the_truth(province: Province) -> None:
    driver, year, place = truth(province)
    loss, beneath, transform = loss_with_driver(province)
    # a pixel centre may lie on the very border of two home pixels
    assert ((loss > 0) != (beneath != NO_DATA)).sum() <= 1e-4 * (loss > 0).sum() + 1
    np.testing.assert_array_equal(year > 0, driver != NO_DATA)
    assert set(np.unique(loss)) == {0, 20, 21}
    table = json.loads(province.truth_table.read_text())
    assert table["simulated"] is True
    # geodesic area of one loss pixel in the middle, and of one 30 m pixel there
    lon, lat = transform @ (loss.shape[1] / 2, loss.shape[0] / 2)
    cell = shapely.box(lon, lat, lon + transform.a, lat - transform.e)
    hectares = abs(Geod(ellps="WGS84").geometry_area_perimeter(cell)[0]) / 1e4
    for kind in FOREST_LOSS_DRIVERS:
        stated = table["area_ha_by_driver"][kind.name]
        assert stated == pytest.approx((beneath == kind.code).sum() * hectares, rel=0.01)
        assert stated == pytest.approx((driver == kind.code).sum() * 0.09, rel=0.005)
    x, y = place @ (0, 0)
    assert (x % 30, y % 30) == (15, 15)


@pytest.mark.parametrize("share", [0.01, 0.08, 0.3])
def test_every_patch_of_loss_has_one_driver(share: float, tmp_path: Path) -> None:
    made = simulate(tmp_path, ProvinceParams(size=400, seed=11, dates=1, loss_share=share))
    driver, year, _ = truth(made)
    assert (driver != NO_DATA).mean() == pytest.approx(share, rel=0.25)
    assert set(np.unique(driver)) == {1, 2, 3, 4, NO_DATA}
    loss, beneath, _ = loss_with_driver(made)
    for raster, code in ((year, driver), (np.where(beneath != NO_DATA, loss, 0), beneath)):
        # even patches of different years touch only within one object
        patches, count = ndimage.label(raster > 0, EIGHT)
        number = np.arange(1, count + 1)
        lowest, highest = ndimage.minimum(code, patches, number), ndimage.maximum(code, patches, number)
        np.testing.assert_array_equal(lowest, highest)
        assert count > 8


def test_two_zones_show_the_same_land(clear: Province) -> None:
    east, west = scenes(clear)
    with rasterio.open(west / f"{west.name}_SR_B6.TIF") as dataset:
        one, place = dataset.read(1), dataset.transform
    with rasterio.open(east / f"{east.name}_SR_B6.TIF") as dataset:
        two, transform = dataset.read(1), dataset.transform
    row, col = np.nonzero(two)
    x, y = transform @ (col + 0.5, row + 0.5)
    x, y = Transformer.from_crs("EPSG:32649", "EPSG:32648", always_xy=True).transform(x, y)
    c, r = (np.floor(v).astype(int) for v in ~place @ (np.asarray(x), np.asarray(y)))
    good = (r >= 1) & (r < one.shape[0] - 1) & (c >= 1) & (c < one.shape[1] - 1)
    good &= ndimage.binary_erosion(one > 0, EIGHT)[np.clip(r, 0, one.shape[0] - 1), np.clip(c, 0, one.shape[1] - 1)]
    assert good.sum() > 0.2 * 320 * 320
    values = two[row[good], col[good]]
    fit = {
        (dr, dc): np.corrcoef(one[r[good] + dr, c[good] + dc], values)[0, 1] for dr in (-1, 0, 1) for dc in (-1, 0, 1)
    }
    assert max(fit, key=lambda k: fit[k]) == (0, 0)
    assert fit[0, 0] > 0.8


def test_both_path_rows_cover_the_province(province: Province) -> None:
    aoi = geopandas.read_file(province.aoi).geometry[0]
    seen = []
    for folder in scenes(province):
        with rasterio.open(folder / f"{folder.name}_QA_PIXEL.TIF") as dataset:
            valid = dataset.read(1) != 1
            shapes = rasterio.features.shapes(valid.astype("uint8"), valid, transform=dataset.transform)
            back = Transformer.from_crs(dataset.crs, "EPSG:4326", always_xy=True)
        (outline,) = (shapely.geometry.shape(g) for g, _ in shapes)
        seen.append(shapely.transform(outline, lambda p, back=back: np.stack(back.transform(*p.T), axis=1)))
    assert shapely.union_all(seen).contains(aoi)
    assert all(s.intersection(aoi).area < 0.8 * aoi.area for s in seen)


def test_units_tile_the_province(province: Province) -> None:
    units, aoi = geopandas.read_file(province.admin), geopandas.read_file(province.aoi).geometry[0]
    assert 4 <= len(units) <= 6
    assert units.crs.to_epsg() == 4326
    assert units.ID.is_unique
    assert any(not name.isascii() for name in units.NAME)
    assert units.is_valid.all()
    assert shapely.coverage_is_valid(units.geometry.to_numpy())
    assert shapely.area(units.geometry.to_numpy()).sum() == pytest.approx(aoi.area, rel=1e-9)
    assert units.union_all().symmetric_difference(aoi).area < 1e-9 * aoi.area


def test_scenes_before_the_loss_show_forest_and_change_no_other_file(province: Province, tmp_path: Path) -> None:
    made = simulate(tmp_path / "more", replace(SMALL, before=2))
    first, more = dict(rasters(province)), dict(rasters(made))
    assert all((more[name] == pixels).all() for name, pixels in first.items())
    known = {folder.name for folder in scenes(province)}
    early = [folder for folder in scenes(made) if folder.name not in known]
    assert sorted(folder.name.split("_")[3][:4] for folder in early) == ["2018", "2018", "2019", "2019"]
    assert {name.split("/")[1] for name in more.keys() - first.keys()} == {folder.name for folder in early}
    driver, _, place = truth(made)
    for folder in early:
        assert PRODUCT.fullmatch(folder.name)
        with rasterio.open(folder / f"{folder.name}_QA_PIXEL.TIF") as dataset:
            row, col = np.nonzero(dataset.read(1) == 21824)
            x, y = dataset.xy(row, col)
            way = Transformer.from_crs(dataset.crs, "EPSG:32648", always_xy=True)
        c, r = (np.floor(v).astype(int) for v in ~place @ way.transform(np.asarray(x), np.asarray(y)))
        inside = (r >= 0) & (r < SMALL.size) & (c >= 0) & (c < SMALL.size)
        red, nir = (read(folder, ending)[row, col][inside] * 0.0000275 - 0.2 for ending in ("SR_B4", "SR_B5"))
        green = (nir - red) / (nir + red)
        lost = driver[r[inside], c[inside]] != NO_DATA
        assert lost.sum() > 1000
        # what will be cleared is as green as what stays forest, which is most of the rest
        assert np.quantile(green[lost], 0.02) > 0.6
        assert np.median(green[lost]) == pytest.approx(np.median(green[~lost]), abs=0.03)


def test_parameters_of_a_province_without_scenes_before_stand_as_ever() -> None:
    assert "before" not in SMALL.record()
    assert replace(SMALL, before=1).record() == {**asdict(SMALL), "before": 1}


def test_clouds_are_seen_and_flagged(province: Province) -> None:
    bright, flagged, shaded = [], [], []
    for folder in scenes(province):
        quality, blue = read(folder, "QA_PIXEL"), read(folder, "SR_B2") * 0.0000275 - 0.2
        nir = read(folder, "SR_B5") * 0.0000275 - 0.2
        cloud, shadow, clear = (quality & 8) > 0, (quality & 16) > 0, quality == 21824
        bright.append((blue[cloud] > 0.1).mean())
        flagged.append(cloud.sum() / (quality != 1).sum())
        shaded.append(np.median(nir[shadow]) < 0.8 * np.median(nir[clear]))
        assert np.quantile(blue[clear], 0.95) < 0.15
    assert min(bright) > 0.95
    assert np.mean(flagged) == pytest.approx(SMALL.cloud, abs=0.08)
    assert all(shaded)


def test_one_zone_when_asked(tmp_path: Path) -> None:
    made = simulate(tmp_path, ProvinceParams(size=160, dates=2, two_zones=False))
    assert {p.name.split("_")[2] for p in scenes(made)} == {"122061"}
    with rasterio.open(made.loss) as dataset:
        assert dataset.name.endswith("Hansen_GFC-2023-v1.11_lossyear_00N_100E.tif")


@settings(max_examples=25, deadline=None)
@given(row=st.integers(-3000, 9000), col=st.integers(-3000, 9000), side=st.integers(1, 1300))
def test_a_window_of_noise_is_the_noise_at_its_pixels(row: int, col: int, side: int) -> None:
    block = NOISE.block(range(row, row + side), range(col, col + 5))
    r, c = np.meshgrid(np.arange(row, row + side), np.arange(col, col + 5), indexing="ij")
    np.testing.assert_allclose(block, NOISE.at(r, c), atol=1e-6)


@pytest.mark.parametrize(("crs", "pixel"), [("EPSG:32649", 30.0), ("EPSG:4326", 0.00025)])
def test_the_way_home_errs_by_less_than_a_centimetre(crs: str, pixel: float) -> None:
    home = Grid("EPSG:32648", 719985.0, -46005.0, 30.0, 16000, 16000)  # as large as provinces get
    corner = Transformer.from_crs(home.crs, crs, always_xy=True).transform(home.left, home.top)
    target = Grid(crs, corner[0], corner[1], pixel, 15700, 15700)
    rows, cols = range(0, 15700, 67), range(0, 15700, 71)
    found = HomeMap(home, target).centres(rows, cols)
    x = np.broadcast_to(target.left + (np.array(cols) + 0.5) * pixel, found[0].shape)
    y = np.broadcast_to((target.top - (np.array(rows) + 0.5) * pixel)[:, None], found[0].shape)
    east, north = Transformer.from_crs(crs, home.crs, always_xy=True).transform(x, y)
    assert np.abs(found[0] * 30.0 - (home.top - north)).max() < 0.01
    assert np.abs(found[1] * 30.0 - (east - home.left)).max() < 0.01


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 90},
        {"loss_share": 0.5},
        {"cloud": 1.5},
        {"loss_years": ()},
        {"loss_years": (1999,)},
        {"dates": 0},
        {"before": 9},
    ],
)
def test_impossible_provinces_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ProvinceParams(**bad)  # type: ignore[arg-type]
