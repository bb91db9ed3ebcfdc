"""Scenes behind an HTTP server that fails: the same product as from a folder, or a listed loss, never a wrong one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import shapely
from fault_server import Plan, serve
from run_samples import World, assert_same_results, layer, run, write_config

from pipeline.catalog.bundles import BundleFolder
from pipeline.catalog.cache import cached_path
from pipeline.catalog.faults import FetchPolicy
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Scene
from pipeline.errors import SceneError


def found_scenes(world: World) -> list[Scene]:
    aoi = shapely.from_geojson(json.dumps(json.loads(world.aoi.read_text())["features"][0]["geometry"]))
    found = BundleFolder(world.scenes).search(aoi, date(2000, 1, 1), date(2030, 1, 1))
    return [scene for scene in found if isinstance(scene, Scene)]


def item(scene: Scene, root: Path, base: str, checksums: bool) -> dict[str, Any]:
    assets = {}
    for band, asset in scene.assets.items():
        path = Path(asset.href)
        fields: dict[str, Any] = {
            "href": base + path.relative_to(root).as_posix(),
            "raster:bands": [{"scale": asset.scale, "offset": asset.offset, "nodata": asset.nodata}],
        }
        if checksums:
            fields["file:checksum"] = "1340" + hashlib.sha512(path.read_bytes()).hexdigest()
        assets[band] = fields
    properties = {
        "datetime": scene.datetime.isoformat(), "platform": scene.platform, "eo:cloud_cover": scene.cloud_cover,
        "landsat:wrs_path": f"{scene.path:03d}", "landsat:wrs_row": f"{scene.row:03d}", "landsat:correction": "L2SP",
        "landsat:collection_number": "02",
    }  # fmt: skip
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": scene.id, "properties": properties, "assets": assets,
        "geometry": json.loads(shapely.to_geojson(shapely.from_wkt(scene.footprint))), "links": [],
    }  # fmt: skip


def write_catalog(path: Path, world: World, base: str, checksums: bool = True) -> Path:
    features = [item(scene, world.scenes, base, checksums) for scene in found_scenes(world)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("checksums", [True, False])
def test_the_same_product_through_http(
    tmp_path: Path, world: World, tiny_model: Path, reference: Path, checksums: bool
) -> None:
    with serve(world.scenes) as server:
        catalog = write_catalog(tmp_path / "catalog.json", world, server.url(""), checksums)
        config = write_config(
            tmp_path, world, tiny_model, imagery={"source": str(catalog), "allow_hosts": ["127.0.0.1"]}
        )
        product = run(config).product
        asked = len(server.log)
        # everything is in the cache now: a new plan needs the network no more
        run(config, "grid.block=128")
        assert len(server.log) == asked
    assert_same_results(product, reference, ("events", "patches", "units", "summary"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 10))])
def test_a_server_that_fails_in_every_way_changes_nothing(
    tmp_path: Path, world: World, tiny_model: Path, reference: Path, seed: int
) -> None:
    with serve(world.scenes, Plan(seed=seed, share=0.02, hang_s=0.5)) as server:
        catalog = write_catalog(tmp_path / "catalog.json", world, server.url(""))
        config = write_config(
            tmp_path, world, tiny_model, imagery={"source": str(catalog), "allow_hosts": ["127.0.0.1"]}
        )
        product = run(config).product
    scenes = layer(product, "scenes")
    if scenes["used"].all():
        assert_same_results(product, reference, ("events", "patches", "units", "summary"))
    else:
        assert scenes.loc[~scenes["used"], "reason"].notna().all()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 202), marks=pytest.mark.slow)])
def test_files_are_right_or_listed_under_every_fault(tmp_path: Path, world: World, seeds: range) -> None:
    policy = FetchPolicy(attempts=8, deadline_s=10, backoff_s=0.01, most_backoff_s=0.05, read_s=0.3, low_speed_s=0.2)
    scene, whole, reasons = found_scenes(world)[0], 0, []
    for seed in seeds:
        cache = tmp_path / str(seed)
        # a tenth of the requests for each of nine faults: nine requests of ten go wrong
        with serve(world.scenes, Plan(seed=seed, share=0.1, hang_s=0.4)) as server:
            assets = {
                band: dataclasses.replace(asset, href=server.url(Path(asset.href).relative_to(world.scenes).as_posix()))
                for band, asset in scene.assets.items()
            }
            fetcher = Fetcher(cache, ("127.0.0.1",), policy=policy)
            for band, asset in assets.items():
                remote = dataclasses.replace(scene, assets={band: asset})
                try:
                    fetcher.scene(remote, (band,))
                except SceneError as error:
                    reasons.append(error.reason)
                    continue
                assert cached_path(asset.href, cache).read_bytes() == Path(scene.assets[band].href).read_bytes()
                whole += 1
    assert whole > 0
    assert reasons
    assert all(reason.split(": ")[0].endswith(".TIF") for reason in reasons)
