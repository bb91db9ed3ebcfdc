"""Which scenes serve as pictures before the loss."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import shapely
from catalog_samples import EVER, make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from pipeline.before import choose_before
from pipeline.catalog.scene import Asset, Scene
from pipeline.config import Imagery
from pipeline.pictures import picture_bands

HERE = box(100, 0, 101, 1)
COLOURS = ("blue", "green", "red", "nir08")
LIMITS = Imagery(source="folder", max_cloud=50)


def scene(name, year, cloud=10.0, where=HERE, row=60, bands=COLOURS, month=6):
    when = datetime(year, month, 1, 3, tzinfo=UTC)
    assets = {band: Asset(f"https://example.org/{name}-{band}.tif") for band in bands}
    return Scene(name, when, "landsat-8", cloud, 127, row, shapely.to_wkt(where), assets)


def chosen(scenes, *years, limits=LIMITS, bands=COLOURS):
    found = choose_before(scenes, {year: HERE for year in years}, limits, bands)
    return {year: [s.id for s in group] for year, group in found.items()}


def test_the_two_clearest_of_a_path_and_row_in_the_years_before():
    scenes = [
        scene("a", 2019, 30), scene("b", 2018, 5), scene("c", 2017, 20), scene("too early", 2016, 0),
        scene("loss year", 2020, 0), scene("after", 2021, 0), scene("other row", 2019, 40, row=61),
    ]  # fmt: skip
    assert chosen(scenes, 2020) == {2020: ["b", "c", "other row"]}


def test_what_cannot_serve_is_passed_over():
    scenes = [
        scene("cloudy", 2019, 51), scene("elsewhere", 2019, 1, where=box(0, 0, 1, 1)),
        scene("no red", 2019, 1, bands=("blue", "green", "nir08")), scene("unknown cloud", 2019, None),
        scene("good", 2019, 49),
    ]  # fmt: skip
    assert chosen(scenes, 2020) == {2020: ["good", "unknown cloud"]}


def test_of_equally_clear_scenes_the_latest_is_taken():
    scenes = [scene(f"m{month}", 2019, month=month) for month in (1, 3, 9)]
    assert chosen(scenes, 2020) == {2020: ["m9", "m3"]}


def test_each_loss_year_has_its_own_and_a_year_without_any_is_left_out():
    scenes = [scene("2016", 2016), scene("2019", 2019)]
    assert chosen(scenes, 2017, 2020, 2030) == {2017: ["2016"], 2020: ["2019"]}


@pytest.mark.parametrize(("years", "names"), [(0, {}), (1, {2020: ["2019"]}), (2, {2020: ["2019", "2018"]})])
def test_before_years_says_how_far_back(years, names):
    limits = LIMITS.model_copy(update={"before_years": years})
    assert chosen([scene("2018", 2018), scene("2019", 2019)], 2020, limits=limits) == names


def test_a_damaged_file_gives_its_place_to_the_next(tmp_path):
    from pipeline.catalog.bundles import BundleFolder

    names = [f"LC08_L2SP_231062_{year}0715_{year}0724_02_T1" for year in (2017, 2018, 2019)]
    for name in names:
        make_bundle(tmp_path / name, name)
    red = tmp_path / names[2] / f"{names[2]}_SR_B4.TIF"
    red.write_bytes(red.read_bytes()[:300])
    scenes = list(BundleFolder(tmp_path).search(box(-62, -5, -58, -1), *EVER))
    found = choose_before(scenes, {2020: box(-62, -5, -58, -1)}, LIMITS, COLOURS)
    assert [s.id for s in found[2020]] == [names[1], names[0]]


@settings(max_examples=30, deadline=None)
@given(st.permutations([scene(f"s{k}", 2017 + k % 3, [10.0, 10.0, None][k % 3], month=1 + k) for k in range(8)]))
def test_the_order_of_the_catalog_does_not_matter(scenes):
    assert chosen(scenes, 2019, 2020) == chosen(sorted(scenes, key=lambda s: s.id), 2019, 2020)


@pytest.mark.parametrize(
    ("bands", "shown"),
    [
        (("blue", "green", "red", "nir08"), ("red", "green", "blue")),
        (("red", "nir08", "swir16"), ("swir16", "nir08", "red")),
        (("green", "red", "nir08"), ("nir08", "red", "green")),
        (("nir08", "swir16", "swir22"), ("nir08", "swir16", "swir22")),
        (("nir08", "swir16"), ("nir08",)),
    ],
)
def test_pictures_are_made_of_bands_that_the_model_has(bands, shown):
    assert picture_bands(bands) == shown
