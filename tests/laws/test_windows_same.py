"""Windows, whole files or a local folder: the same product to the byte, with scenes of the own and of another zone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from catalog_samples import as_text, mtl_groups
from fault_server import serve
from rasterio.enums import Resampling
from run_samples import PRODUCTS, World, assert_same_results, blobs, draw_world, run, write_config
from test_remote import write_catalog

from pipeline.fetch_log import read_fetch_log

RASTERS = ("drivers.tif", "confidence.tif")
ZONE = "EPSG:32621"


def to_other_zone(folder: Path, product: str) -> None:
    """Write a bundle anew in the next UTM zone."""
    for path in folder.glob("*.TIF"):
        with rasterio.open(path) as file:
            transform, width, height = rasterio.warp.calculate_default_transform(
                file.crs, ZONE, file.width, file.height, *file.bounds, resolution=30
            )
            values = np.full((height, width), file.nodata, file.dtypes[0])
            rasterio.warp.reproject(
                file.read(1), values, src_transform=file.transform, src_crs=file.crs, dst_transform=transform,
                dst_crs=ZONE, src_nodata=file.nodata, dst_nodata=file.nodata, resampling=Resampling.nearest,
            )  # fmt: skip
            profile = {**file.profile, "crs": ZONE, "transform": transform, "width": width, "height": height}
        with rasterio.open(path, "w", **profile) as file:
            file.write(values, 1)
    centre = transform.c + 15, transform.f - 15
    groups = mtl_groups(product, shape=(height, width), centre=centre, zone=21)
    (folder / f"{product}_MTL.txt").write_text(as_text(groups))


@pytest.fixture(scope="module")
def wide_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """700 x 700 pixels in 64-pixel tiles, loss in two places of them; one of the two scenes lies in the next zone."""
    loss = np.zeros((700, 700), np.uint8)
    loss[80:150, 100:170] = blobs(3, (70, 70))
    loss[500:540, 560:600] = blobs(4, (40, 40))
    world = draw_world(tmp_path_factory.mktemp("wide"), loss)
    to_other_zone(world.scenes / PRODUCTS[1], PRODUCTS[1])
    return world


def product_of(folder: Path, world: World, model: Path, **imagery: Any) -> Path:
    config = write_config(
        folder, world, model, imagery={"source": str(world.scenes), **imagery}, grid__block=256, output__chips=6
    )
    return run(config).product


@pytest.mark.timeout(1800)
def test_windows_whole_files_and_a_folder_give_the_same_bytes(
    tmp_path: Path, wide_world: World, tiny_model: Path
) -> None:
    folder = product_of(tmp_path / "folder", wide_world, tiny_model)
    with serve(wide_world.scenes) as server:
        source = str(write_catalog(tmp_path / "catalog.json", wide_world, server.url(""), checksums=False))
        remote = {"source": source, "allow_hosts": ["127.0.0.1"]}
        whole = product_of(tmp_path / "whole", wide_world, tiny_model, read="cache", **remote)
        some = product_of(tmp_path / "window", wide_world, tiny_model, read="window", **remote)
        # smaller blocks read the same pixels of other windows: what they lack comes, the rest is there
        config = tmp_path / "window" / "config.yaml"
        other = run(config, "grid.block=128", f"output.dir={tmp_path / 'other'}").product
    # the GeoPackage also holds what differs between equal runs: seconds of a block
    for product in (folder, whole, other):
        assert_same_results(product, some)
        assert [(product / name).read_bytes() for name in RASTERS] == [(some / name).read_bytes() for name in RASTERS]
    pictures = [json.loads((product / "run.json").read_text())["pictures"] for product in (folder, whole, some, other)]
    assert pictures == [pictures[0]] * 4
    assert pictures[0]["after"] > 0
    log = read_fetch_log(tmp_path / "window" / "product.work")
    files = [band for scene in log["scenes"].values() for band in scene.values()]
    assert len(log["scenes"]) == 2
    for scene, bands in log["scenes"].items():
        # a warped scene is read with a wide margin, and these tiles are small
        most = 0.8 if scene == PRODUCTS[1] else 0.5
        assert all(0 < file["tiles"] < most * file["of"] for file in bands.values()), scene
    parts = [*log["blocks"].values(), log["choice"], log["pictures"]]
    for what in ("requests", "bytes"):
        assert sum(part[what] for part in parts) == log["total"][what] == sum(file[what] for file in files) > 0
