"""A real model that nobody here made, run like our own: DLR's cloud U-Net (ukis-csmask) on the Brumadinho scenes.

The scenes carry no QA_PIXEL, so nothing masks the clouds in the picture, and they are judged against the picture
itself: bright cloud cores, and ground far from anything bright. The file is the one for Level-2A reflectance, which is
what Collection 2 Level-2 is; its authors trained it on reflectance of several sensors, not on these scenes.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.ndimage
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from run_samples import layer, raster, run
from scipy.special import softmax

from pipeline.grid import RunGrid
from pipeline.lattice import BlockLoss, PatchLayout, lattice_window, listed
from pipeline.models.engines import open_segmenter
from pipeline.models.package import import_onnx, verify_package
from pipeline.patches import draw_patches
from pipeline.predict import predict_loss

pytestmark = pytest.mark.real
NAMES = ("clear", "cloud", "cloud_shadow")
SCENES = ("LC08_L2SP_218074_20190114_20200829_02_T1", "LC08_L2SP_218074_20190130_20200829_02_T1")
SIZE, STRIDE = 256, 192


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the six-band Level-2A model; figures are those of the .json beside it."""
    found = importlib.util.find_spec("ukis_csmask")
    if found is None or found.origin is None:
        if os.environ.get("CI"):
            pytest.fail("ukis-csmask is not installed: the tests on a foreign model cannot run")
        pytest.skip("ukis-csmask is not installed: no foreign model here")
    file = Path(found.origin).parent / "model_6b_l2a.onnx"
    (mean, std) = json.loads(file.with_suffix(".json").read_text())["data"]["dataset_statistics"]["img"]
    classes = zip((1, 2, 3), NAMES, ("#4d9221", "#ffffff", "#222222"), strict=True)
    card = {
        "name": "csmask",
        "version": "1.0.0-6BL2A",
        "architecture": "U-Net with an EfficientNet-B4 encoder",
        "bands": ["blue", "green", "red", "nir08", "swir16", "swir22"],
        "scaling": {"mean": mean, "std": std},
        "patch": {"size": SIZE, "stride": STRIDE},
        "graph": {"layout": "NCHW", "output": "logits"},
        "labels": [{"code": code, "name": name, "title": name, "colour": colour} for code, name, colour in classes],
        "training_data": "Wieland et al. 2019, doi:10.1016/j.rse.2019.05.022",
        "simulated": False,
        "licence": "Apache-2.0",
    }
    folder = tmp_path_factory.mktemp("csmask")
    (folder / "card.json").write_text(json.dumps(card))
    import_onnx(file, folder / "card.json", folder / "package")
    return folder / "package"


def reflectance(folder: Path) -> np.ndarray:
    """Float32 [6, rows, cols], NaN where a band is fill."""
    bands = []
    for number in range(2, 8):
        with rasterio.open(next(folder.glob(f"*_SR_B{number}.TIF"))) as file:
            bands.append(file.read(1))
    dn = np.stack(bands)
    return np.where((dn > 0).all(axis=0), dn * 0.0000275 - 0.2, np.nan).astype(np.float32)


@pytest.fixture(scope="module", params=[SCENES[1], pytest.param(SCENES[0], marks=pytest.mark.slow)])
def scene(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    return shared_data / "landsat8-c2l2-brumadinho-pair" / str(request.param)


@pytest.fixture(scope="module")
def product(scene: Path, package: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product of a run over one scene, with loss declared everywhere on it."""
    folder = tmp_path_factory.mktemp("run")
    with rasterio.open(next(scene.glob("*_SR_B2.TIF"))) as file:
        profile = file.profile | {"dtype": "uint8", "nodata": None}
        west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    with rasterio.open(folder / "loss.tif", "w", **profile) as file:
        file.write(np.full(file.shape, 19, np.uint8), 1)
    overrides = (
        f"region.aoi=[{west}, {south}, {east}, {north}]",
        f"imagery.source={scene}", f"loss.source={folder / 'loss.tif'}", "loss.min_area_ha=0",
        f"model={package}", f"tiling.patch={SIZE}", f"tiling.overlap={SIZE - STRIDE}", "compute.executor=threads",
        "compute.workers=1", f"output.dir={folder / 'product'}", "output.crs=EPSG:32623",
    )  # fmt: skip
    return run(root / "configs" / "brumadinho.yaml", *overrides).product


def test_it_is_a_package_like_any_other(package: Path) -> None:
    card = verify_package(package)
    assert card.scheme.names == NAMES
    assert card.backbone.name == "onnx"


def test_clouds_fall_where_the_picture_shows_clouds(product: Path, scene: Path) -> None:
    with rasterio.open(next(scene.glob("*_SR_B2.TIF"))) as source, rasterio.open(product / "drivers.tif") as mapped:
        with WarpedVRT(mapped, crs=source.crs, transform=source.transform, width=400, height=300, nodata=255) as view:
            codes = view.read(1)
        assert round((mapped.transform.c - source.transform.c) % 30) == 0, "whole pixels: nothing is resampled"
    picture = reflectance(scene)
    blue, red, seen = picture[0], picture[2], np.isfinite(picture[0])
    core = seen & (blue > 0.25)
    far = seen & ~scipy.ndimage.binary_dilation(blue > 0.12, iterations=15)
    near = scipy.ndimage.binary_dilation(blue > 0.15, iterations=10)
    bare = seen & (red > 0.15) & (blue < 0.12) & ~near
    assert min(core.sum(), bare.sum()) > 300
    assert far.sum() > 5_000
    assert (codes[core] == 2).mean() > 0.97, "bright cloud cores are cloud"
    assert (codes[far] == 2).mean() < 0.01, "ground far from anything bright is no cloud"
    assert (codes[bare] == 2).mean() < 0.05, "bare red soil and mud are no cloud"
    # shadows lie beside clouds, on dark ground
    shadow = codes == 3
    assert np.nanmedian(picture[3][shadow]) < 0.8 * np.nanmedian(picture[3][codes == 1])
    assert (codes[~seen] == 255).all()
    (event,) = layer(product, "events").itertuples()
    assert event.driver == "clear"
    assert (raster(product, "confidence")[raster(product) == 255] == 255).all()


def cloud_map(package: Path, picture: np.ndarray, stride: int) -> np.ndarray:
    """Cloud probability [rows, cols] of blended patches, through the stages of a run."""
    shape, layout = picture.shape[1:], PatchLayout("grid", SIZE, stride)
    grid = RunGrid("EPSG:32623", 30, 584_385, -2_222_685, *shape, 2048)
    (block,) = grid.blocks()
    row0, col0, height, width = lattice_window(block, layout)
    image = np.full((len(picture), height, width), np.nan, np.float32)
    image[:, -row0 : shape[0] - row0, -col0 : shape[1] - col0] = picture
    loss = BlockLoss(block, row0, col0, np.ones((height, width), np.int32))
    patches = listed(draw_patches(layout, grid, np.zeros((0, 4), np.int64)))
    segmenter = open_segmenter(package, device="cpu")
    logits = predict_loss(image, patches, loss, loss.inside, segmenter, SIZE, 1)
    return np.asarray(softmax(logits, axis=1)[:, 1].reshape(shape))


def step(p: np.ndarray, stride: int, own: bool) -> float:
    """Mean absolute step of `p` between neighbours on two sides of a patch border, or (`own`) of no border."""
    steps = []
    for axis in (0, 1):
        length = p.shape[axis]
        first = -2 * stride - PatchLayout("grid", SIZE, stride).margin
        edges = {at for start in range(first, length, stride) for at in (start, start + SIZE)}
        chosen = [k for k in range(length - 1) if (k + 1 in edges) is not own]
        steps.append(np.abs(np.diff(p, axis=axis)).take(chosen, axis=axis).ravel())
    return float(np.concatenate(steps).mean())


def test_no_seam_at_patch_borders(scene: Path, package: Path, record_property: Callable[[str, object], None]) -> None:
    """Blended patches step across their borders no more than elsewhere, nor than one patch does at the same pixels."""
    picture = reflectance(scene)
    blended, tiled = cloud_map(package, picture, STRIDE), cloud_map(package, picture, SIZE)
    # tiles moved by 64 pixels: their borders lie at least 32 pixels from those of the lattice above
    one = cloud_map(package, np.pad(picture, ((0, 0), (64, 0), (64, 0)), constant_values=np.nan), SIZE)[64:, 64:]
    measured = {
        "across the borders": step(blended, STRIDE, own=False),
        "elsewhere": step(blended, STRIDE, own=True),
        "one patch, at the same pixels": step(one, STRIDE, own=False),
        "tiles without overlap, across": step(tiled, SIZE, own=False),
        "tiles without overlap, elsewhere": step(tiled, SIZE, own=True),
    }
    for name, value in measured.items():
        record_property(name, round(value, 5))
    across = measured["across the borders"]
    assert across < 1.1 * measured["elsewhere"]
    assert across < 1.5 * measured["one patch, at the same pixels"], "a few lines of pixels: some chance is in it"
    # the measure can tell: without overlap the model's own seam is there
    assert measured["tiles without overlap, across"] > 2 * measured["tiles without overlap, elsewhere"]
