"""Scenes found through a real STAC API (pgstac) and read from a real web server (nginx), both on loopback."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import shapely
from catalog_samples import EVER, WORLD, make_item
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from run_samples import ROOT, World, assert_same_results, layer, run, write_config
from stac_server import StacServer, collection, items_of_bundles, serve_stac
from web_server import WebServer, serve_folder

from flows.runtime import open_pool
from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import BANDS, Refusal, Scene
from pipeline.catalog.stac import StacApi, StaticStac
from pipeline.demo import prepare_demo, province_config
from pipeline.errors import ConfigError
from pipeline.graph import run_region
from pipeline.request import Request

MANY = 240


@pytest.fixture(scope="module")
def stac() -> Iterator[StacServer]:
    with serve_stac() as server:
        yield server


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[WebServer]:
    with serve_folder(world.scenes) as server:
        yield server


def scattered() -> list[dict[str, Any]]:
    """Items over five years and all the earth: south, north, and over the antimeridian (as GeoJSON splits it)."""
    items = []
    for number in range(MANY):
        path, row, day = number % 233 + 1, number % 120 + 1, date(2019, 1, 1) + timedelta(days=7 * number)
        item = make_item(f"LC09_L2SP_{path:03d}{row:03d}_{day:%Y%m%d}_02_T1")
        west, south = (number * 37) % 360 - 180.5, (number * 11) % 140 - 75
        shape = shapely.box(west, south, west + 2, south + 2)
        if west < -180:
            parts = [shapely.box(-180, south, west + 2, south + 2), shapely.box(west + 360, south, 180, south + 2)]
            shape = shapely.MultiPolygon(parts)
        item["geometry"] = json.loads(shapely.to_geojson(shape))
        item["bbox"] = [west + 360 if west < -180 else west, south, west + 2, south + 2]
        item["properties"] |= {
            "datetime": f"{day}T23:59:5{number % 10}.5Z",
            "landsat:wrs_path": f"{path:03d}",
            "landsat:wrs_row": f"{row:03d}",
        }
        for name, asset in item["assets"].items():
            asset["href"] = f"https://example.org/{item['id']}/{name}.TIF"
        items.append(item)
    return items


@pytest.fixture(scope="module")
def many(stac: StacServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[StacApi, StaticStac]:
    """The same items in the API and in a file."""
    items = scattered()
    stac.load(collection("many"), items)
    stac.load(collection("others"), items[:5])
    path = tmp_path_factory.mktemp("many") / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return StacApi(stac.url, ("many",)), StaticStac(path)


def scenes(found: Any) -> list[Scene]:
    found = list(found)
    assert not [item for item in found if isinstance(item, Refusal) and "outside" not in item.reason]
    return [item for item in found if isinstance(item, Scene)]


def test_all_items_come_over_many_pages(many: tuple[StacApi, StaticStac]) -> None:
    api, file = many
    found = list(api.search(WORLD, *EVER))
    assert len(found) == MANY > 2 * 100
    assert found == list(file.search(WORLD, *EVER))


def test_area_and_days_filter_as_in_a_file(many: tuple[StacApi, StaticStac]) -> None:
    api, file = many
    days = st.dates(date(2018, 6, 1), date(2024, 6, 1))
    corners = st.tuples(st.floats(-180, 140), st.floats(-85, 40), st.floats(20, 170), st.floats(20, 120))
    over = st.floats(-60, 60).map(
        lambda south: shapely.MultiPolygon(
            [shapely.box(176, south, 180, south + 9), shapely.box(-180, south, -178, south + 9)]
        )
    )
    areas = corners.map(lambda c: shapely.box(c[0], c[1], min(c[0] + c[2], 180), min(c[1] + c[3], 90))) | over
    hits = []

    antimeridian = shapely.MultiPolygon([shapely.box(179.9, -80, 180, -60), shapely.box(-180, -80, -179.9, -60)])

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(areas, days, st.integers(0, 2000))
    # the one item that lies over the antimeridian, on its day: the first and the last second of a day both count
    @example(antimeridian, date(2019, 1, 1), 0)
    @example(shapely.box(-180, -85, 180, 0), date(2018, 6, 1), 2000)
    def check(area: shapely.Geometry, first: date, length: int) -> None:
        last = first + timedelta(days=length)
        found = scenes(api.search(area, first, last))
        assert found == scenes(file.search(area, first, last))
        hits.append(len(found))

    check()
    # examples come first
    assert hits[0] == 1
    assert hits[1] > 20


def test_the_real_items_are_found_where_they_lie(stac: StacServer, shared_data: Path) -> None:
    folder = shared_data / "landsat-stac-metadata"
    items = [json.loads(path.read_text()) for path in sorted(folder.glob("LC0*_T1.json"))]
    for item in items:
        for asset in item["assets"].values():
            name = asset["href"].rpartition("/")[2]
            asset["href"] = f"https://landsateuwest.blob.core.windows.net/landsat-c2/{item['id']}/{name}"
    stac.load(json.loads((folder / "collection.json").read_text()), items)
    (peru,) = scenes(open_catalog(stac.url).search(shapely.box(-80, -8, -79.5, -7), *EVER))
    assert (peru.id, peru.path, peru.row) == ("LC09_L2SP_010065_20220129_02_T1", 10, 65)
    assert set(peru.assets) == {*BANDS, "qa_pixel"}
    assert scenes(open_catalog(stac.url).search(shapely.box(0, 0, 1, 1), *EVER)) == []
    assert len(list(open_catalog(stac.url).search(WORLD, *EVER))) == 2


def test_a_collection_that_the_api_does_not_have_is_an_empty_answer(stac: StacServer) -> None:
    assert list(StacApi(stac.url, ("nothing",)).search(WORLD, *EVER)) == []


def test_a_question_that_the_api_refuses_is_one_line(stac: StacServer) -> None:
    with pytest.raises(ConfigError, match="cannot be searched as a STAC API") as caught:
        list(StacApi(f"{stac.url}/nowhere", ("many",)).search(WORLD, *EVER))
    assert "\n" not in str(caught.value)


def digests(product: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((product / name).read_bytes()).hexdigest() for name in ("drivers.tif", "confidence.tif")
    }


@pytest.mark.parametrize("checksums", [True, False])
def test_the_same_product_as_from_the_folder(
    stac: StacServer, web: WebServer, world: World, tiny_model: Path, reference: Path, tmp_path: Path, checksums: bool
) -> None:
    name = f"world-{checksums}".lower()
    stac.load(collection(name), items_of_bundles(world.scenes, web.url, checksums))
    imagery = {"source": stac.url, "collections": [name], "allow_hosts": ["127.0.0.1"]}
    product = run(write_config(tmp_path, world, tiny_model, imagery=imagery)).product
    assert_same_results(product, reference, ("events", "patches", "units", "summary"))
    assert digests(product) == digests(reference)
    assert list(layer(product, "scenes")["used"]) == list(layer(reference, "scenes")["used"])
    assert [line for line in web.log if line[3] in ("200", "206")]


def test_loopback_is_not_read_unless_the_configuration_says_so(
    stac: StacServer, web: WebServer, world: World, tiny_model: Path, tmp_path: Path
) -> None:
    items = copy.deepcopy(items_of_bundles(world.scenes, web.url))
    stac.load(collection("private"), items)
    before = len(web.log)
    config = write_config(tmp_path, world, tiny_model, imagery={"source": stac.url, "collections": ["private"]})
    product = run(config).product
    assert len(web.log) == before
    refused = layer(product, "scenes")
    assert not refused["used"].any()
    assert refused["reason"].str.contains("allow_hosts").all()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_demo_province_through_the_servers_is_the_one_from_its_folder(stac: StacServer, tmp_path: Path) -> None:
    config, province = prepare_demo(tmp_path, "small", seed=7)
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"executor": "threads"})})
    began = time.monotonic()
    from_folder = run_region(Request(config, pool=open_pool)).product
    between = time.monotonic()
    with serve_folder(province.scenes) as server:
        items = items_of_bundles(province.scenes, server.url)
        stac.load(collection("province"), items)
        overrides = (f"imagery.source={stac.url}", 'imagery.collections=["province"]',
                     'imagery.allow_hosts=["127.0.0.1"]', "compute.executor=threads")  # fmt: skip
        asked = province_config(ROOT / "configs" / "demo.yaml", province, tmp_path / "served", *overrides)
        from_servers = run_region(Request(asked, pool=open_pool)).product
        requests = len(server.log)
    took = time.monotonic()
    events = len(layer(from_folder, "events"))
    print(
        f"{events} events from {len(items)} scenes: {between - began:.0f} s from the folder, "
        f"{took - between:.0f} s through the servers with {requests} requests for files"
    )
    assert_same_results(from_servers, from_folder, ("events", "patches", "units", "summary"))
    assert digests(from_servers) == digests(from_folder)
