"""ForestNet's and Cam-ForestNet's archives: pixels, names, geometry, and every fault a row of its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from archive_samples import EVENTS, HOLE, POLYGON, SIDE, Event, infrared, visible, write_camforestnet, write_forestnet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from pyproj import Geod, Transformer
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.models.card import AuxiliaryColumn
from pipeline.training.datasets.archive_auxiliary import NCEP, UNITS, climate_column
from pipeline.training.datasets.base import IGNORE
from pipeline.training.datasets.camforestnet import CamForestNet, metres_per_degree, to_pixels
from pipeline.training.datasets.forestnet import ForestNet, burn


def drawn() -> np.ndarray:
    """POLYGON by hand: the L of whole pixels less the pixels whose centre lies in the hole."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[20:30, 10:60] = 1
    mask[20:90, 10:20] = 1
    # the hole: right of the slanting edge from (12, 22) to (15, 27), left of x = 15, below y = 22
    for row in range(22, 27):
        for column in range(12, 15):
            x, y = column + 0.5, row + 0.5
            if (x - 12) * 5 > (y - 22) * 3:
                mask[row, column] = 0
    return mask


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_forestnet(tmp_path_factory.mktemp("forestnet"))


def test_events_as_published(archive: Path) -> None:
    data = ForestNet(archive)
    assert len(data) == data.images == 4
    assert data.scheme is FOREST_LOSS_DRIVERS
    by_title = data.events.set_index("title")
    assert [data.scheme.names[k] for k in by_title.loc[[e.label for e in EVENTS], "label"]] == [
        "plantation", "smallholder_agriculture", "grassland_shrubland", "other",
    ]  # fmt: skip
    assert dict(by_title["split"]) == {e.label: e.split for e in EVENTS}
    assert (data.events["fault"] == "").all()
    assert by_title.loc["Oil palm plantation", "event_id"] == "1.5_102.25"
    assert (data.resolution, data.chip_m, data.simulated) == (15, 4980, False)
    fine = ForestNet(archive, level="fine")
    assert [c.title for c in fine.scheme] == sorted(e.label for e in EVENTS)


def test_bands_go_by_wavelength(archive: Path) -> None:
    image = ForestNet(archive).read(0)
    assert image.shape == (6, SIDE, SIDE)
    assert image.dtype == np.float32
    row, column = 40, 200
    red, green, blue = row, column, row + column
    expected = [blue, green, red, (2 * row), (2 * column) % 256, (row + 2 * column) % 256]
    np.testing.assert_allclose(image[:, row, column] * 255, expected, atol=1e-4)


def test_looks_come_composite_first_then_by_date(archive: Path) -> None:
    data = ForestNet(archive)
    looks = data.looks(0)
    assert [look.name for look in looks] == ["composite", "2015_03_09_cloud_0", "2016_05_01_cloud_12"]
    assert looks[0].date is None
    assert [str(look.date) for look in looks[1:]] == ["2015-03-09", "2016-05-01"]
    assert [look.cloud for look in looks] == [None, 0, 12]
    np.testing.assert_allclose(data.read(0, 2)[2] * 255, visible(10)[:, :, 0], atol=1e-4)
    np.testing.assert_allclose(data.read(0, 1)[3] * 255, infrared(20)[:, :, 0], atol=1e-4)
    assert len(data.looks(1)) == 1


def test_brightness_is_the_published_one_and_off_by_default(archive: Path) -> None:
    plain, bright = ForestNet(archive).read(0), ForestNet(archive, brightness=1.5).read(0)
    published = np.asarray(ImageEnhance.Brightness(Image.fromarray(visible())).enhance(1.5), np.float32)
    np.testing.assert_allclose(bright[:3] * 255, published[:, :, ::-1].transpose(2, 0, 1), atol=1e-4)
    np.testing.assert_array_equal(bright[3:], plain[3:])
    assert (bright[:3] >= plain[:3]).all()
    with pytest.raises(InputError, match="brightness"):
        ForestNet(archive, brightness=0)


def test_torchgeo_style_samples(archive: Path) -> None:
    data = ForestNet(archive)
    sample = data[1]
    assert sample["image"].shape == (6, SIDE, SIDE)
    assert sample["image"].dtype == torch.float32
    assert sample["mask"].dtype == sample["events"].dtype == torch.int64
    inside = torch.from_numpy(drawn()) > 0
    assert (sample["mask"][inside] == 1).all()
    assert (sample["mask"][~inside] == IGNORE).all()
    assert (sample["events"] == inside).all()


def test_pickles_whole(archive: Path) -> None:
    data = ForestNet(archive, brightness=1.5)
    sample, again = data[0], pickle.loads(pickle.dumps(data))[0]
    assert all(torch.equal(sample[key], again[key]) for key in ("image", "mask", "events"))


@pytest.mark.slow
def test_readable_by_workers(archive: Path) -> None:
    data = pickle.loads(pickle.dumps(ForestNet(archive)))
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert [tuple(b["image"].shape) for b in batches] == [(2, 6, SIDE, SIDE)] * 2
    assert torch.equal(batches[0]["image"][1], ForestNet(archive)[1]["image"])


# ------------------------------------------------------------------------------------------- geometry in pixels


def test_region_is_pixel_exact(archive: Path) -> None:
    np.testing.assert_array_equal(ForestNet(archive).regions(2), drawn())


def test_multipolygon_is_all_of_its_parts(tmp_path: Path) -> None:
    shape = shapely.MultiPolygon([POLYGON, shapely.box(300, 310, 310, 312)])
    data = ForestNet(write_forestnet(tmp_path, [Event("Mining", "Other", "train", 1, 100, shape)]))
    expected = drawn()
    expected[310:312, 300:310] = 1
    np.testing.assert_array_equal(data.regions(0), expected)


# sixteenths of a pixel: subnormal coordinates are GEOS's concern
sixteenths = st.integers(-640, 5952).map(lambda k: k / 16)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sixteenths, sixteenths), min_size=3, max_size=7))
def test_a_pixel_is_in_where_its_centre_is(points: list[tuple[float, float]]) -> None:
    shape = shapely.convex_hull(shapely.MultiPoint(points))
    if shape.geom_type != "Polygon" or shape.area < 4:
        return
    row, column = np.indices((SIDE, SIDE))
    inside = shapely.contains_xy(shape, column + 0.5, row + 0.5)
    near = shapely.dwithin(shapely.boundary(shape), shapely.points(column + 0.5, row + 0.5), 1e-6)
    if inside.any():
        np.testing.assert_array_equal(burn(shape).astype(bool)[~near], inside[~near])


@pytest.mark.parametrize(("shape", "pixel"), [(shapely.box(40.6, 70.1, 40.9, 70.3), (70, 40))])
def test_a_region_between_pixel_centres_is_seen(shape: shapely.Polygon, pixel: tuple[int, int]) -> None:
    assert list(zip(*np.nonzero(burn(shape)), strict=True)) == [pixel]


# ------------------------------------------------------------------------------------------- geometry in degrees

GEOD = Geod(ellps="WGS84")


@pytest.mark.parametrize("latitude", [-60.0, -8.5, -0.01, 0.0, 4.25, 55.0])
def test_metres_per_degree_are_the_ellipsoids(latitude: float) -> None:
    north, east = metres_per_degree(latitude)
    step = 1e-3
    assert GEOD.inv(10, latitude - step / 2, 10, latitude + step / 2)[2] / step == pytest.approx(north, rel=1e-6)
    assert GEOD.inv(10 - step / 2, latitude, 10 + step / 2, latitude)[2] / step == pytest.approx(east, rel=1e-6)


def in_degrees(latitude: float, longitude: float) -> shapely.Polygon:
    """POLYGON as a shape on the ground around a point: pixels to metres to degrees, by an independent projection."""
    local = f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +datum=WGS84 +units=m"
    back = Transformer.from_crs(local, "EPSG:4326", always_xy=True)

    def move(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(back.transform((xy[:, 0] - 166) * 15, (166 - xy[:, 1]) * 15))

    return shapely.transform(POLYGON, move)


@pytest.mark.parametrize("place", [(4.25, 9.875), (-4.25, 9.875), (0.001, 30.5), (-33.5, -70.25), (2.5, -0.125)])
def test_cameroon_regions_lie_where_they_are_in_both_hemispheres(tmp_path: Path, place: tuple[float, float]) -> None:
    event = Event("Mining", "Mining", "train", *place, in_degrees(*place), year=2018)
    data = CamForestNet(write_camforestnet(tmp_path, [event]))
    assert list(data.events["fault"]) == [""]
    moved = np.abs(shapely.get_coordinates(to_pixels(event.region, place)) - shapely.get_coordinates(POLYGON))
    assert moved.max() < 0.04  # of a pixel, from the curvature of parallels across the chip
    # edges on whole pixels may round either way by that much: compare away from them
    differs = data.regions(0) != drawn()
    assert not (differs & ~edges()).any()
    assert data.regions(0).sum() == pytest.approx(drawn().sum(), rel=0.1)


def edges() -> np.ndarray:
    """Pixels whose centre is within a twentieth of a pixel of POLYGON's boundary: none but in the slanting hole."""
    row, column = np.indices((SIDE, SIDE))
    return shapely.dwithin(shapely.boundary(POLYGON), shapely.points(column + 0.5, row + 0.5), 0.05)


def test_north_is_up_and_east_is_right(tmp_path: Path) -> None:
    for name, (latitude, longitude) in {"north": (3.0, 10.0), "south": (-3.0, 10.0)}.items():
        square = shapely.box(longitude + 0.005, latitude + 0.010, longitude + 0.006, latitude + 0.011)
        event = Event("Mining", "Mining", "train", latitude, longitude, square)
        rows, columns = np.nonzero(CamForestNet(write_camforestnet(tmp_path / name, [event])).regions(0))
        assert rows.mean() == pytest.approx(166 - 0.0105 * metres_per_degree(latitude)[0] / 15, abs=1)
        assert columns.mean() == pytest.approx(166 + 0.0055 * metres_per_degree(latitude)[1] / 15, abs=1)


def test_cameroon_names(tmp_path: Path) -> None:
    event = Event("Hunting", "Hunting", "test", 4.25, 9.875, in_degrees(4.25, 9.875), year=2018)
    data = CamForestNet(write_camforestnet(tmp_path, [event]))
    assert list(data.events["event_id"]) == ["9.875_4.25"]
    assert [look.name for look in data.looks(0)] == ["composite"]
    np.testing.assert_allclose(data.read(0)[3] * 255, infrared()[:, :, 0], atol=1e-4)
    assert data.scheme.names == ("hunting",)


# ------------------------------------------------------------------------------------------- auxiliary predictors


def test_auxiliary_by_hand(archive: Path) -> None:
    data = ForestNet(archive)
    frame = data.auxiliary
    assert list(frame.columns) == list(UNITS)
    assert set(frame.dtypes) == {np.dtype(np.float64)}
    assert len(frame) == len(data.events)
    row, column = np.nonzero(drawn())
    values = frame.iloc[0]
    for name, layer in {"altitude": row * 1.0, "aspect": column * 0.1, "slope": (row + column) / 100}.items():
        for how in ("min", "max", "mean", "std"):
            assert values[f"{name}_{how}"] == pytest.approx(getattr(np, how)(layer)), (name, how)
    assert values["peat"] == 1
    latitude, longitude = data.events.loc[0, ["latitude", "longitude"]]
    assert values["street_km"] == pytest.approx(GEOD.inv(longitude, latitude, longitude + 0.01, latitude)[2] / 1000)
    assert values["city_km"] == pytest.approx(GEOD.inv(longitude, latitude, longitude, latitude - 0.1)[2] / 1000)
    assert [values[climate_column(name)] for name in NCEP] == [100.0 + k for k in range(84)]


def test_every_naming_gives_the_same(archive: Path, tmp_path: Path) -> None:
    for naming in ("irvin", "supercon"):
        other = ForestNet(write_forestnet(tmp_path / naming, naming=naming))  # type: ignore[arg-type]
        np.testing.assert_array_equal(other.auxiliary.to_numpy(), ForestNet(archive).auxiliary.to_numpy())
        assert not other.unreadable


def test_gain_is_refused_and_never_opened(archive: Path) -> None:
    data = ForestNet(archive)
    assert "leak" in data.refused["gain"]
    assert not [column for column in data.auxiliary.columns if "gain" in column]
    assert not data.unreadable  # the sample's gain cannot be opened: nobody tried


def test_missing_is_missing_and_never_zero(tmp_path: Path) -> None:
    data = ForestNet(write_forestnet(tmp_path))
    first = tmp_path / data.events.at[0, "example_path"] / "auxiliary"
    second = tmp_path / data.events.at[1, "example_path"] / "auxiliary"
    for path in first.iterdir():
        path.unlink()
    (second / "osm.json").write_text('{"closest_street": {"lat": null}, "closest_city": {}}')
    (second / "peat.json").write_text("{}")
    void = np.load(second / "srtm.npy")
    void[0], void[1, 25, 15] = -32768, np.nan
    np.save(second / "srtm.npy", void)
    np.save(second / "ncep.npy", np.array([None] * 84))
    frame = ForestNet(tmp_path).auxiliary
    assert frame.iloc[0].isna().all()
    gone = frame.iloc[1]
    assert gone.filter(regex="altitude|street|city|peat|ncep").isna().all()
    assert gone["slope_min"] == pytest.approx(0.3)
    assert gone["aspect_max"] == pytest.approx(5.9)
    data = ForestNet(tmp_path)
    assert data.auxiliary.notna().any(axis=1).sum() == 3
    assert data.unreadable == [second / "ncep.npy"]


# ------------------------------------------------------------------------------------------- faults


def test_every_fault_is_a_row(tmp_path: Path) -> None:
    regions = {
        "outside": shapely.box(400, 400, 420, 420), "empty": shapely.Polygon(), "pickle": POLYGON, "missing": POLYGON,
        "shape": POLYGON, "infrared": POLYGON, "good": shapely.box(-50, 100, 3, 110),
    }  # fmt: skip
    events = [Event("Mining", "Other", "train", 1.0 + k, 100.0, r) for k, r in enumerate(regions.values())]
    write_forestnet(tmp_path, events)
    folder = {name: tmp_path / "examples" / f"{1.0 + k}_100.0" for k, name in enumerate(regions)}
    (folder["pickle"] / "forest_loss_region.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (folder["missing"] / "images/visible/composite.png").unlink()
    Image.fromarray(visible()[:100]).save(folder["shape"] / "images/visible/composite.png")
    np.save(folder["infrared"] / "images/infrared/composite.npy", infrared()[:, :, :2])
    data = ForestNet(tmp_path)
    told = dict(zip(regions, zip(data.events["fault"], data.events["image"], strict=True), strict=True))
    assert len(data.events) == 7
    assert data.images == 4
    assert "outside the image" in told["outside"][0]
    assert "empty" in told["empty"][0]
    assert "forest_loss_region.pkl" in told["pickle"][0]
    assert told["missing"] == ("no image: composite missing", -1)
    assert told["shape"] == ("composite: shape (100, 332), expected 332 x 332", -1)
    assert told["infrared"] == ("composite: shape (332, 332, 2), expected 332 x 332", -1)
    assert told["good"] == ("", 3)
    assert data.regions(3).sum() == 30
    for image in range(3):
        assert not data.regions(image).any()
        assert (data[image]["mask"] == IGNORE).all()
    assert data.auxiliary["altitude_min"].notna().tolist() == [False] * 6 + [True]


def test_a_damaged_scene_is_named_when_read(tmp_path: Path) -> None:
    write_forestnet(tmp_path)
    images = tmp_path / "examples/1.5_102.25/images"
    (images / "visible/2015_03_09_cloud_0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    np.save(images / "infrared/2016_05_01_cloud_12.npy", infrared().astype(np.int16) + 300)
    data = ForestNet(tmp_path)
    with pytest.raises(InputError, match=r"2015_03_09_cloud_0\.png: not a readable PNG"):
        data.read(0, 1)
    with pytest.raises(InputError, match=r"2016_05_01_cloud_12\.npy: values .* are not of 8 bits"):
        data.read(0, 2)
    np.save(images / "infrared/composite.npy", np.array([None]))
    with pytest.raises(InputError, match=r"composite\.npy: not a readable array"):
        data.read(0)


def test_a_scene_without_infrared_is_left_out_and_listed(tmp_path: Path) -> None:
    write_forestnet(tmp_path)
    images = tmp_path / "examples/1.5_102.25/images"
    (images / "infrared/2015_03_09_cloud_0.npy").unlink()
    data = ForestNet(tmp_path)
    assert [look.name for look in data.looks(0)] == ["composite", "2016_05_01_cloud_12"]
    assert data.incomplete == [images / "visible/2015_03_09_cloud_0.png"]


def test_a_table_cannot_lead_out_of_the_archive(tmp_path: Path) -> None:
    write_forestnet(tmp_path)
    table = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(table.replace("examples/1.5_102.25", "../1.5_102.25"))
    with pytest.raises(InputError, match="leads out of the archive"):
        ForestNet(tmp_path)


def test_the_sample_shape_is_not_symmetric() -> None:
    mask = drawn()
    for turned in (mask[::-1], mask[:, ::-1], mask.T, np.rot90(mask), np.rot90(mask, 2)):
        assert not np.array_equal(mask, turned)
    assert len(HOLE) == 3


def test_every_predictor_may_stand_in_a_model_card() -> None:
    assert [AuxiliaryColumn(name=name, mean=0, std=1).name for name in UNITS] == list(UNITS)
