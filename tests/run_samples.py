"""What end-to-end tests share: a small drawn world, a model that sees its whole patch, ways to run, and comparisons.

A plugin (see conftest.py), so that its fixtures are known to every test; session fixtures are made once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import scipy.ndimage
import shapely
import yaml
from catalog_samples import as_text, mtl_groups
from pandas.testing import assert_frame_equal
from rasterio.transform import Affine

from pipeline.config import load_config
from pipeline.graph import run_region
from pipeline.grid import reproject
from pipeline.request import Outcome, Request

ROOT = Path(__file__).parents[1]
CRS = "EPSG:32620"
LEFT, TOP = 672285.0, -344685.0
"""Upper-left corner of the drawn world: Landsat's pixel edges lie at 15 mod 30 m."""
PRODUCTS = ("LC09_L2SP_231062_20230723_20230802_02_T1", "LC08_L2SP_231062_20230715_20230724_02_T1")
PATCH, OVERLAP = 64, 16
CLEAR, CLOUD, SHADOW, FILL = 21824, 22280, 23888, 1
YEARS = (2021, 2022)
SAME = ("events", "patches", "units", "scenes", "summary")
"""Layers that may not depend on how a run was cut or computed."""


@dataclass(frozen=True)
class World:
    """A drawn piece of ground: its files, the loss (Hansen coding) and where each scene is clear, on one 30 m grid."""

    folder: Path
    scenes: Path
    loss: Path
    aoi: Path
    drawn: np.ndarray
    clear: np.ndarray


def textures(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """DN [6, rows, cols], uint16: smooth fields with fine grain, reflectance of some 0.02 to 0.45."""
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(6, *shape)), (0, 9, 9))
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    level = np.array([8800, 9400, 9000, 16500, 13000, 10500]).reshape(6, 1, 1)
    spread = np.array([500, 600, 700, 3200, 2000, 1300]).reshape(6, 1, 1)
    return np.clip(level + spread * (smooth + 0.4 * rng.normal(size=smooth.shape)), 7400, 24000).astype(np.uint16)


def blobs(seed: int, shape: tuple[int, int], share: float = 0.08) -> np.ndarray:
    """Loss [rows, cols], uint8: patches of all sizes of the years in YEARS, some of them touching."""
    rng = np.random.default_rng(seed)
    loss = np.zeros(shape, np.uint8)
    for year in YEARS:
        field = scipy.ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
        loss[field > np.quantile(field, 1 - share / len(YEARS))] = year - 2000
    return loss


def overcast(shape: tuple[int, int]) -> np.ndarray:
    """QA_PIXEL [2, rows, cols]: clouds, shadow and fill at different places, and one corner that no date sees."""
    rows, cols = np.indices(shape)
    qa = np.full((2, *shape), CLEAR, np.uint16)
    qa[0][(rows - 40) ** 2 + (cols - 50) ** 2 < 25**2] = CLOUD
    qa[0][(rows - 60) ** 2 + (cols - 80) ** 2 < 15**2] = SHADOW
    qa[1][(rows - 100) ** 2 + (cols - 100) ** 2 < 30**2] = CLOUD
    qa[:, (rows > shape[0] - 50) & (cols < 60)] = CLOUD
    qa[1, :, shape[1] - 12 :] = FILL
    return qa


def write_raster(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """Write one band on the drawn world's grid."""
    profile = {
        "driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype.name,
        "crs": CRS, "transform": Affine(30, 0, LEFT, 0, -30, TOP), "compress": "deflate", "tiled": True,
        "blockxsize": 64, "blockysize": 64,
    } | profile  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)
    return path


def write_bundle(folder: Path, product: str, dn: np.ndarray, qa: np.ndarray, col0: int = 0) -> Path:
    """Write a bundle (bands 2 to 7 and QA_PIXEL with an MTL); `col0` shifts it east by so many pixels."""
    folder.mkdir(parents=True)
    place = {"transform": Affine(30, 0, LEFT + 30 * col0, 0, -30, TOP)}
    for number, band in zip(range(2, 8), dn, strict=True):
        write_raster(folder / f"{product}_SR_B{number}.TIF", band, nodata=0, **place)
    write_raster(folder / f"{product}_QA_PIXEL.TIF", qa, nodata=1, **place)
    groups = mtl_groups(product, shape=qa.shape, centre=(LEFT + 15 + 30 * col0, TOP - 15))
    (folder / f"{product}_MTL.txt").write_text(as_text(groups))
    return folder


def draw_world(folder: Path, loss: np.ndarray, qa: np.ndarray | None = None, seed: int = 5) -> World:
    """Write two scenes, the loss and the region's outline (a third of a pixel inside the grid) below `folder`."""
    qa = overcast(loss.shape) if qa is None else qa
    base = textures(seed, loss.shape)
    for k, product in enumerate(PRODUCTS):
        dn = (base + 40 * k).astype(np.uint16)
        dn[:, qa[k] == FILL] = 0
        write_bundle(folder / "scenes" / product, product, dn, qa[k])
    write_raster(folder / "loss.tif", loss)
    height, width = loss.shape
    outline = shapely.box(LEFT + 10, TOP - 30 * height + 10, LEFT + 30 * width - 10, TOP - 10)
    geometry = reproject(shapely.segmentize(outline, 100), CRS, "EPSG:4326")
    write_geojson(folder / "aoi.geojson", [geometry])
    return World(folder, folder / "scenes", folder / "loss.tif", folder / "aoi.geojson", loss, qa == CLEAR)


def write_geojson(path: Path, geometries: list[Any], **properties: list[Any]) -> Path:
    """Write geometries (EPSG:4326) with columns as a GeoJSON file."""
    features = [
        {
            "type": "Feature",
            "properties": {key: values[k] for key, values in properties.items()},
            "geometry": json.loads(shapely.to_geojson(geometry)),
        }
        for k, geometry in enumerate(geometries)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_config(folder: Path, world: World, model: Path, **changes: Any) -> Path:
    """Write the configuration of a run over a drawn world; `changes` are dotted keys with `__` for the dot."""
    tree: dict[str, Any] = {
        "region": {"name": "sample", "aoi": str(world.aoi)},
        "loss": {"source": str(world.loss), "years": list(YEARS), "min_area_ha": 0},
        "imagery": {"source": str(world.scenes)},
        "grid": {"crs": CRS, "block": 64},
        "model": str(model),
        "tiling": {"patch": PATCH, "overlap": OVERLAP},
        "compute": {"executor": "threads", "workers": 1, "engine": "torch"},
        "output": {"dir": str(folder / "product"), "uncertain_below": 0.4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(config: Path, *overrides: str, **asked: Any) -> Outcome:
    """Run a configuration in this process, without Prefect."""
    return run_region(Request(load_config(config, overrides), **asked))


def layer(product: Path, name: str) -> Any:
    """Read one layer of a product."""
    return pyogrio.read_dataframe(product / "drivers.gpkg", layer=name)


def raster(product: Path, name: str = "drivers") -> np.ndarray:
    """Read the one band of drivers.tif or confidence.tif."""
    with rasterio.open(product / f"{name}.tif") as file:
        return np.asarray(file.read(1))


def assert_same_results(one: Path, other: Path, layers: tuple[str, ...] = SAME) -> None:
    """Two products hold the same rows, geometries and pixels, to the last bit."""
    for name in layers:
        first, second = layer(one, name), layer(other, name)
        if "geometry" in first:
            assert list(first.geometry.to_wkb()) == list(second.geometry.to_wkb()), f"geometries of {name}"
            first, second = first.drop(columns="geometry"), second.drop(columns="geometry")
        assert_frame_equal(first, second, check_exact=True, obj=name)
    for name in ("drivers", "confidence"):
        np.testing.assert_array_equal(raster(one, name), raster(other, name), err_msg=name)


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and modification time of every file and folder below `folder`."""
    found = {str(path.relative_to(folder)): path.stat() for path in sorted(folder.rglob("*"))}
    return {name: (info.st_ino, info.st_size, info.st_mtime_ns) for name, info in found.items()}


def ruin_pixels(path: Path) -> None:
    """Overwrite every tile of a TIFF; its header stays sound."""
    with rasterio.open(path) as file:
        rows, cols = (-(-side // 64) for side in file.shape)
        tags = [
            [int(file.get_tag_item(f"BLOCK_{what}_{c}_{r}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
            for r in range(rows)
            for c in range(cols)
        ]
    with path.open("r+b") as stream:
        for offset, size in tags:
            stream.seek(offset)
            stream.write(b"\xff" * size)
    with rasterio.open(path) as file, pytest.raises(rasterio.errors.RasterioIOError):
        file.read(1)


def cut(path: Path, share: float = 0.6) -> None:
    """Cut a file off."""
    with path.open("r+b") as stream:
        stream.truncate(int(path.stat().st_size * share))


def checkpoints(config: Path) -> list[Path]:
    """Finished blocks of a run."""
    return sorted(p for p in (load_config(config).work / "blocks").glob("*") if not p.name.startswith("."))


@dataclass(frozen=True)
class Ended:
    """How a call of the program ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is; raises where there are more or none."""
        (line,) = [line for line in self.err.splitlines() if not line.startswith("block ")]
        assert line.startswith("error: ")
        return line


Program = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """The program, called in this process."""
    from pipeline.cli import main

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["clearcause", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


def command(*arguments: object) -> list[str]:
    """The program's command line for a process of its own."""
    return [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]


def program(*arguments: object, timeout: float = 300, **environment: str) -> Ended:
    """The program in a process of its own."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def tiny_package(folder: Path, size: int = PATCH, seed: int = 0, bands: tuple[str, ...] = ()) -> Path:
    """A model package with random weights: EfficientNet-B0 (every pixel sees its whole patch) and a small FPN."""
    from model_samples import card_fields, random_network

    from pipeline.models.card import Part
    from pipeline.models.package import save_package

    neck = Part(name="fpn", settings={"pyramid_channels": 32, "segmentation_channels": 32})
    fields = card_fields(Part(name="efficientnet-b0"), neck, size=size)
    fields["patch"] = {"size": size, "stride": size * 3 // 4}
    if bands:
        count = len(bands)
        fields |= {"bands": bands, "scaling": {"mean": [0.1] * count, "std": [0.05] * count}}
    save_package(folder, random_network(fields, seed), fields)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model package for patches of 64 pixels."""
    return tiny_package(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same card with other weights."""
    return tiny_package(tmp_path_factory.mktemp("model") / "other", seed=1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """144 x 144 pixels with some 80 events; nobody writes into it."""
    return draw_world(tmp_path_factory.mktemp("world"), blobs(3, (144, 144)))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, world: World, tiny_model: Path) -> Path:
    """The product of that world computed as one block."""
    config = write_config(tmp_path_factory.mktemp("reference"), world, tiny_model, grid__block=256)
    return run(config).product
