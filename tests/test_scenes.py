from __future__ import annotations

import warnings
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.warp import reproject as warp

from pipeline.catalog.scene import QA_PIXEL, Asset, Scene, SceneGrid
from pipeline.errors import SceneError
from pipeline.grid import RunGrid
from pipeline.gridded import MARGIN, clear_mask
from pipeline.scenes import LandsatScenes
from pipeline.stack import SceneStack

GRID = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 60, 70, 64)
BANDS = ("red", "nir08")
CLEAR, WATER, CLOUD, SHADOW = 21824, 21952, 22280, 23888
FOOTPRINT = "POLYGON ((-44.3 -20.3, -44 -20.3, -44 -20, -44.3 -20, -44.3 -20.3))"


def affine_at(row, col, dx=0.0, dy=0.0, grid=GRID):
    """Affine of a file whose corner lies at a pixel of the grid, moved by metres."""
    return Affine(30, 0, grid.x0 + 30 * col + dx, 0, -30, grid.y0 - 30 * row - dy)


def write(path, values, transform, crs="EPSG:32623", **how):
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": crs, "transform": transform} | how
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # files without a place are meant
        with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], **profile) as file:
            file.write(values, 1)
    return str(path)


def scene(folder, name, layers, transform, crs="EPSG:32623", grid=None, **how):
    """Write the layers (band to uint16 array) of a scene and describe it."""
    assets = {
        band: Asset(write(folder / f"{name}_{band}.tif", values.astype(np.uint16), transform, crs, **how))
        for band, values in layers.items()
    }
    when = datetime(2020, 6, 1, tzinfo=UTC)
    return Scene(name, when, "landsat-8", 1.0, 218, 74, FOOTPRINT, assets, grid)


def read(scenes, window=(0, 0, GRID.height, GRID.width), grid=GRID, bands=BANDS):
    with SceneStack(scenes, grid, bands) as files:
        return files.read(*window)


def reflectance(values):
    return values * np.float32(0.0000275) + np.float32(-0.2)


def digital(image):
    """Back to digital numbers, as far as float32 goes."""
    return (image.astype(np.float64) + 0.2) / 0.0000275


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(7_000, 30_000, shape).astype(np.uint16)


# ---------------------------------------------------------------------------------------------- QA_PIXEL


def test_every_qa_code_against_its_bits():
    codes = np.arange(65_536, dtype=np.uint16)
    expected = [not any(code >> bit & 1 for bit in range(6)) for code in range(65_536)]
    assert clear_mask(codes).tolist() == expected


@pytest.mark.parametrize(
    ("code", "clear"),
    [(CLEAR, True), (WATER, True), (1, False), (CLOUD, False), (SHADOW, False), (30048, False), (54596, False)],
    ids=["clear land", "clear water", "fill", "cloud", "shadow", "snow", "cirrus"],
)
def test_codes_of_the_handbook(code, clear):
    assert clear_mask(np.array([code], np.uint16)).tolist() == [clear]


# ---------------------------------------------------------------------------------------------- on the run's grid


@pytest.mark.parametrize(("row", "col"), [(0, 0), (-7, -3), (20, 30), (-200, -100)])
def test_a_scene_on_the_grid_is_copied_pixel_by_pixel(tmp_path, row, col):
    red, nir = noise((220, 150), 1), noise((220, 150), 2)
    image = read([scene(tmp_path, "s", {"red": red, "nir08": nir}, affine_at(row, col))])
    expected = np.full((2, 60, 70), np.nan, np.float32)
    for k, values in enumerate((red, nir)):
        for r, c in np.ndindex(60, 70):
            if 0 <= r - row < 220 and 0 <= c - col < 150:
                expected[k, r, c] = reflectance(values[r - row, c - col])
    assert image.dtype == np.float32
    assert np.array_equal(image[0], expected, equal_nan=True)


def test_scaling_is_that_of_the_asset(tmp_path):
    one = scene(tmp_path, "s", {"red": np.full((60, 70), 500)}, affine_at(0, 0))
    one.assets["red"] = Asset(one.assets["red"].href, scale=0.001, offset=0.25, nodata=None)
    assert read([one], bands=("red",))[0, 0, 0, 0] == pytest.approx(0.75)


def test_fill_in_one_band_masks_all_and_no_qa_means_fill_only(tmp_path):
    red, nir = noise((60, 70), 1), noise((60, 70), 2)
    red[3, 4] = nir[5, 6] = 0
    image = read([scene(tmp_path, "s", {"red": red, "nir08": nir}, affine_at(0, 0))])[0]
    for band in image:
        assert np.argwhere(np.isnan(band)).tolist() == [[3, 4], [5, 6]]


def test_what_qa_does_not_call_clear_is_masked_in_all_bands(tmp_path):
    qa = np.full((60, 70), CLEAR)
    qa[1, 1], qa[2, 2], qa[3, 3], qa[4, 4] = CLOUD, SHADOW, WATER, 1
    layers = {"red": noise((60, 70), 1), "nir08": noise((60, 70), 2), QA_PIXEL: qa}
    for band in read([scene(tmp_path, "s", layers, affine_at(0, 0))])[0]:
        assert np.argwhere(np.isnan(band)).tolist() == [[1, 1], [2, 2], [4, 4]]


def test_outside_of_qa_nothing_is_clear(tmp_path):
    bands = scene(tmp_path, "s", {"red": noise((60, 70))}, affine_at(0, 0))
    qa = scene(tmp_path, "q", {QA_PIXEL: np.full((60, 30), CLEAR)}, affine_at(0, 10))
    bands.assets[QA_PIXEL] = qa.assets[QA_PIXEL]
    clear = ~np.isnan(read([bands], bands=("red",))[0, 0])
    assert clear[:, 10:40].all()
    assert not clear[:, :10].any()
    assert not clear[:, 40:].any()


def test_a_scene_wholly_cloudy_or_elsewhere_says_nothing(tmp_path):
    layers = {"red": noise((60, 70)), "nir08": noise((60, 70)), QA_PIXEL: np.full((60, 70), CLOUD)}
    cloudy = scene(tmp_path, "cloudy", layers, affine_at(0, 0))
    elsewhere = scene(tmp_path, "elsewhere", {b: noise((60, 70)) for b in BANDS}, affine_at(500, 500))
    assert np.isnan(read([cloudy, elsewhere])).all()


def test_scenes_keep_their_order_and_are_read_like_any_torchgeo_dataset(tmp_path):
    scenes = [scene(tmp_path, n, {b: noise((60, 70), k) for b in BANDS}, affine_at(0, 0)) for k, n in enumerate("ba")]
    with LandsatScenes(scenes, GRID, BANDS) as dataset:
        x, y = GRID.window(10, 20, 30, 40).affine @ (0, 0)
        sample = dataset[slice(x, x + 40 * 30), slice(y - 30 * 30, y)]["image"].numpy()
        beyond = dataset[GRID.slices(-7, 50, 9, 40)]["image"].numpy()
    whole = read(scenes)
    assert (sample == whole[:, :, 10:40, 20:60]).all()
    assert np.array_equal(beyond, read(scenes, (-7, 50, 9, 40)), equal_nan=True)
    assert np.array_equal(whole[0], read(scenes[:1])[0])
    assert np.array_equal(read(scenes[::-1]), whole[::-1])


# ---------------------------------------------------------------------------------------------- off the run's grid


def plane(transform, shape):
    """Digital numbers that rise by 12 a pixel eastwards and 7 southwards: bilinear interpolation of them is exact."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    return 8_000 + 12 * cols + 7 * rows


def expected_plane(transform, crs, grid=GRID):
    """The plane at the centres of the grid's pixels, and their place (row, column) in the file."""
    rows, cols = np.mgrid[: grid.height, : grid.width]
    x, y = grid.geobox.affine @ (cols + 0.5, rows + 0.5)
    x, y = Transformer.from_crs(grid.crs, crs, always_xy=True).transform(x, y)
    c, r = ~transform @ (x, y)
    return 8_000 + 12 * (c - 0.5) + 7 * (r - 0.5), r, c


ZONE_24 = Transformer.from_crs("EPSG:32623", "EPSG:32624", always_xy=True)
X24, Y24 = (round(v / 30) * 30 + 15 for v in ZONE_24.transform(GRID.x0 + 35 * 30, GRID.y0 - 30 * 30))
FOREIGN = {
    "half a pixel": ("EPSG:32623", affine_at(-20, -20, 15, 15)),
    "a third": ("EPSG:32623", affine_at(-20, -20, 10, -10)),
    "another zone": ("EPSG:32624", Affine(30, 0, X24 - 65 * 30, 0, -30, Y24 + 65 * 30)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_scene_off_the_grid_is_interpolated_at_the_right_place(tmp_path, kind):
    crs, transform = FOREIGN[kind]
    layers = {band: plane(transform, (130, 130)) for band in BANDS}
    image = read([scene(tmp_path, "s", layers, transform, crs)])[0]
    values, rows, cols = expected_plane(transform, crs)
    assert rows.min() > 1
    assert cols.min() > 1
    assert max(rows.max(), cols.max()) < 129
    # half a digital number of rounding, and a hundredth of a pixel of GDAL's approximation
    assert np.abs(digital(image[0]) - values).max() < 0.5 + 0.01 * (12 + 7) + 0.05
    assert np.array_equal(image[0], image[1])


@pytest.mark.parametrize("kind", FOREIGN)
def test_interpolation_agrees_with_gdal(tmp_path, kind):
    crs, transform = FOREIGN[kind]
    rows, cols = np.mgrid[:130, :130]
    hills = (12_000 + 3_000 * np.sin(rows / 9) * np.cos(cols / 7)).astype(np.uint16)
    image = read([scene(tmp_path, "s", {"red": hills}, transform, crs)], bands=("red",))[0, 0]
    target = np.zeros((60, 70), np.float64)
    warp(
        hills.astype(np.float64), target, src_transform=transform, src_crs=crs, dst_transform=GRID.geobox.affine,
        dst_crs=GRID.crs, resampling=Resampling.bilinear, tolerance=0,
    )  # fmt: skip
    steepest = 3_000 / 7
    assert np.abs(digital(image) - target).max() < 0.6 + 0.01 * 2 * steepest


@pytest.mark.parametrize("kind", ["a third", "another zone"])
def test_qa_is_taken_from_the_nearest_pixel_and_never_mixed(tmp_path, kind):
    crs, transform = FOREIGN[kind]
    qa = np.random.default_rng(5).choice([CLEAR, WATER, CLOUD, SHADOW, 1], (130, 130))
    layers = {"red": np.full((130, 130), 9_000), QA_PIXEL: qa}
    clear = ~np.isnan(read([scene(tmp_path, "s", layers, transform, crs)], bands=("red",))[0, 0])
    _, rows, cols = expected_plane(transform, crs)
    expected = clear_mask(qa[np.floor(rows).astype(int), np.floor(cols).astype(int)])
    sure = (np.abs(rows - np.round(rows)) > 0.03) & (np.abs(cols - np.round(cols)) > 0.03)  # not between two pixels
    assert sure.mean() > 0.8
    assert (clear == expected)[sure].all()


def test_fill_does_not_bleed_into_its_neighbours(tmp_path):
    crs, transform = FOREIGN["half a pixel"]
    red = np.full((130, 130), 9_000)
    red[50:60, 50:60] = 0
    image = read([scene(tmp_path, "s", {"red": red}, transform, crs)], bands=("red",))[0, 0]
    assert digital(image[~np.isnan(image)]) == pytest.approx(9_000, abs=1)
    assert np.isnan(image).sum() in range(81, 122)


# ---------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("kind", ["aligned", *FOREIGN])
def test_a_window_is_the_cut_of_the_whole_bit_by_bit(tmp_path, kind):
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 700, 620, 64)
    crs, transform = {"aligned": ("EPSG:32623", affine_at(-300, -200)), **FOREIGN}[kind]
    shape = (1_100, 1_000)
    layers = {"red": noise(shape, 1), QA_PIXEL: np.where(noise(shape, 2) % 5, CLEAR, CLOUD)}
    one = scene(tmp_path, "s", layers, transform, crs)
    with SceneStack([one], grid, ("red",)) as files:
        top, left = -150, -150
        whole = files.read(top, left, 900, 900)
    assert 0.3 < np.isnan(whole).mean() < 0.9 or kind == "aligned"
    rng = np.random.default_rng(7)
    windows = [(-150, -150, 1, 1), (0, 0, 64, 64), (510, 500, 5, 30), (-10, -20, 512, 512)]
    windows += [(*rng.integers(-150, 600, 2), *rng.integers(1, 150, 2)) for _ in range(12)]
    for row, col, height, width in ((int(v) for v in window) for window in windows):
        # a dataset of its own for each window, as blocks have
        part = read([one], (row, col, height, width), grid, ("red",))
        cut = whole[:, :, row - top : row - top + height, col - left : col - left + width]
        assert part.tobytes() == cut.tobytes()


def test_the_margin_may_be_read_to_its_end(tmp_path):
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 4, 4, 64)
    crs, transform = FOREIGN["half a pixel"]
    one = scene(tmp_path, "s", {"red": noise((130, 130))}, transform, crs)
    image = read([one], (-MARGIN, -MARGIN, 2 * MARGIN + 4, 2 * MARGIN + 4), grid, ("red",))[0, 0]
    assert (~np.isnan(image)).sum() in range(129 * 129, 131 * 131 + 1)


# ---------------------------------------------------------------------------------------------- files that cannot serve


@pytest.mark.parametrize("kind", ["aligned", "another zone"])
@pytest.mark.parametrize("band", ["red", QA_PIXEL])
@pytest.mark.parametrize("keep", [0, 100, 9_000], ids=["empty", "header only", "cut short"])
def test_a_truncated_file_takes_its_scene_out_by_name(tmp_path, kind, band, keep):
    crs, transform = {"aligned": ("EPSG:32623", affine_at(0, 0)), **FOREIGN}[kind]
    layers = {"red": noise((130, 130)), "nir08": noise((130, 130)), QA_PIXEL: np.full((130, 130), CLEAR)}
    one = scene(tmp_path, "s", layers, transform, crs, compress="deflate" if band == "red" else None)
    path = tmp_path / f"s_{band}.tif"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SceneError, match=rf"scene s: {band} unreadable: s_{band}\.tif") as error:
        read([one])
    assert error.value.scene_id == "s"


def test_a_missing_file_is_named_too(tmp_path):
    one = scene(tmp_path, "s", {"red": noise((60, 70))}, affine_at(0, 0))
    (tmp_path / "s_red.tif").unlink()
    with pytest.raises(SceneError, match=r"scene s: red unreadable: s_red\.tif"):
        read([one], bands=("red",))


def test_a_file_without_a_place_takes_that_of_its_mtl(tmp_path):
    red = noise((60, 70))
    where = SceneGrid("EPSG:32623", tuple(affine_at(-2, -3))[:6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        one = scene(tmp_path, "s", {"red": red}, Affine.identity(), None, where)
        image = read([one], bands=("red",))[0, 0]
        assert (image[:58, :67] == reflectance(red[2:, 3:])).all()
        bare = scene(tmp_path, "bare", {"red": red}, Affine.identity(), None)
        with pytest.raises(SceneError, match=r"scene bare: red: no CRS in bare_red\.tif"):
            read([bare], bands=("red",))


# ---------------------------------------------------------------------------------------------- real


@pytest.mark.real
def test_the_brumadinho_pair_lies_one_over_the_other(shared_data):
    """The two crops are 30 columns apart on one grid; both come out where they belong, and copied."""
    folder = shared_data / "landsat8-c2l2-brumadinho-pair"
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, 300, 400, 512)
    scenes, files = [], []
    for name in ("LC08_L2SP_218074_20190114_20200829_02_T1", "LC08_L2SP_218074_20190130_20200829_02_T1"):
        files.append(folder / name / f"{name}_SR_B4.TIF")
        assets = {"red": Asset(str(files[-1]))}
        scenes.append(Scene(name, datetime(2019, 1, 14, tzinfo=UTC), "landsat-8", 1.0, 218, 74, FOOTPRINT, assets))
    image = read(scenes, (0, 0, 300, 400), grid, ("red",))
    for layer, path in zip(image[:, 0], files, strict=True):
        with rasterio.open(path) as file:
            window = file.window(*grid.geobox.extent.geom.bounds)
            values = file.read(1, window=window, boundless=True, fill_value=0)
        assert np.array_equal(layer, np.where(values == 0, np.nan, reflectance(values)), equal_nan=True)

    def likeness(shift):
        one, other = image[0, 0, :, 40:-40], np.roll(image[1, 0], shift, (0, 1))[:, 40:-40]
        both = ~np.isnan(one) & ~np.isnan(other)
        assert both.mean() > 0.9
        return np.corrcoef(one[both], other[both])[0, 1]

    assert likeness((0, 0)) > max(likeness(s) for s in ((0, 30), (0, -30), (2, 0), (-2, 0), (0, 2), (0, -2)))


def test_footprints_index_the_dataset(tmp_path):
    one = scene(tmp_path, "s", {"red": noise((60, 70))}, affine_at(0, 0))
    with LandsatScenes([one], GRID, ("red",)) as dataset:
        assert dataset.index["scene_id"].tolist() == ["s"]
        assert dataset.index.crs == GRID.crs
        x, y = dataset.index.geometry.iloc[0].centroid.coords[0]
        lon, lat = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform(x, y)
        assert shapely.from_wkt(FOOTPRINT).contains(shapely.Point(lon, lat))
