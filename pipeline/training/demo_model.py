"""Train the model that ships with the project, on simulated provinces only: `python -m pipeline.training.demo_model`.

It shows that the whole of the pipeline works and proves nothing about the real world; its card says so. Provinces of
separate seeds serve training, validation, calibration and test; the demo runs on yet another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import scipy.ndimage

from pipeline.catalog.open import open_catalog
from pipeline.catalog.scene import Scene
from pipeline.composite import median_composite
from pipeline.config import Imagery
from pipeline.demo import ROOT, province_config, true_classes, write_province
from pipeline.graph import run_region
from pipeline.grid import RunGrid, read_region
from pipeline.labels import FOREST_LOSS_DRIVERS, NO_DATA
from pipeline.models.card import Part
from pipeline.models.package import load_network, save_package
from pipeline.models.store import load_package
from pipeline.plan import ask_catalog, choose_scenes
from pipeline.request import Request
from pipeline.scenes import LandsatScenes
from pipeline.simulate import Province, ProvinceParams
from pipeline.training.calibrate import expected_calibration_error, fit_temperature, wilson
from pipeline.training.crops import TrainingImage
from pipeline.training.fit import FitParams, FitResult, NetworkParts, fit

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")
TRAIN_SEEDS = tuple(range(101, 109))
VALIDATION_SEEDS = (201,)
CALIBRATION_SEEDS = (301, 302)
TEST_SEEDS = (401, 402)
PARTS = NetworkParts(
    Part(name="efficientnet-b2"),
    # half the channels of the published FPN: the decoder is 70 % of the work, and these provinces do not need it
    Part(name="fpn", settings={"pyramid_channels": 128, "segmentation_channels": 64}),
    Part(name="linear"),
)
_TILE = 512


def province(scratch: Path, seed: int, size: int) -> Province:
    """Write (or find) the province of a seed; share of loss and cloud vary with the seed, as provinces do."""
    rng = np.random.default_rng(seed)
    params = ProvinceParams(
        size=size,
        seed=seed,
        loss_share=round(float(rng.uniform(0.06, 0.16)), 3),
        cloud=round(float(rng.uniform(0.05, 0.3)), 2),
    )
    return write_province(scratch / f"province-{seed}", params)


def training_images(source: Province) -> list[TrainingImage]:
    """One image for each loss year: the composite a run would make, with true drivers and events, on the home grid."""
    with rasterio.open(source.truth) as raster:
        drivers, crs, affine = raster.read(1), raster.crs.to_string(), raster.transform
    with rasterio.open(source.truth_year) as raster:
        years = raster.read(1)
    grid = RunGrid(crs, affine.a, affine.c, affine.f, drivers.shape[0], drivers.shape[1], 2048)
    imagery = Imagery.model_validate({"source": str(source.scenes), "window": {"first_year": 0, "last_year": 2}})
    aoi = read_region(source.aoi)
    loss_years = [int(k) + 2000 for k in np.unique(years) if 0 < k < NO_DATA]
    scenes, _ = ask_catalog(open_catalog(imagery.source, imagery.collections, Path()), aoi, loss_years, imagery)
    chosen, _ = choose_scenes(scenes, dict.fromkeys(loss_years, aoi), imagery)
    out = []
    for year in loss_years:
        lost = years == year - 2000
        events, _ = scipy.ndimage.label(lost, np.ones((3, 3)))
        labels = np.where(lost, drivers, NO_DATA).astype(np.uint8)
        out.append(TrainingImage(_composite(chosen[year], grid), labels, events.astype(np.int32)))
    return out


def _composite(scenes: Sequence[Scene], grid: RunGrid) -> np.ndarray:
    image = np.empty((len(BANDS), grid.height, grid.width), np.float32)
    with LandsatScenes(scenes, grid, BANDS) as dataset:
        for top in range(0, grid.height, _TILE):
            for left in range(0, grid.width, _TILE):
                h, w = min(_TILE, grid.height - top), min(_TILE, grid.width - left)
                image[:, top : top + h, left : left + w] = median_composite(dataset.read(top, left, h, w))[0]
    return image


def card_fields(result: FitResult) -> dict[str, Any]:
    """The model card of an uncalibrated, unjudged network, less the digest of the weights."""
    return {
        "name": "fpn-efficientnet-b2",
        "version": "1.0.0-simulated",
        "architecture": "FPN with an EfficientNet-B2 encoder, six Landsat bands, per-pixel logits",
        "backbone": PARTS.backbone.model_dump(),
        "neck": PARTS.neck.model_dump(),
        "head": PARTS.head.model_dump(),
        "bands": BANDS,
        "scaling": {"mean": result.mean, "std": result.std},
        "labels": FOREST_LOSS_DRIVERS.to_list(),
        "training_data": f"simulated provinces only, seeds {TRAIN_SEEDS[0]}..{TRAIN_SEEDS[-1]} (pipeline.simulate)",
        "simulated": True,
        "licence": "Apache-2.0",
        "description": (
            "Trained on simulated scenes from random weights. It shows that the pipeline works and proves nothing "
            "about the real world: do not quote drivers it gives for real imagery."
        ),
    }


def predictions(package: Path, source: Province, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Run the pipeline itself on a province: (p [n, classes], true class index [n]) of its events with imagery."""
    import geopandas as gpd

    config = province_config(
        ROOT / "configs" / "demo.yaml", source, out, f"model={package.resolve()}", "compute.workers=2"
    )
    product = run_region(Request(config, replan=True)).product
    events = gpd.read_file(product / "drivers.gpkg", layer="events", engine="pyogrio")
    truth = true_classes(events, source)
    seen = events["driver"].notna().to_numpy() & (truth >= 0)
    p = events[[f"p_{name}" for name in FOREST_LOSS_DRIVERS.names]].to_numpy(dtype=float)
    return p[seen], truth[seen]


def judge(package: Path, sources: Sequence[Province], scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """`predictions` over several provinces, together."""
    parts = [predictions(package, source, scratch / f"product-{k}") for k, source in enumerate(sources)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([truth for _, truth in parts])


def scores_of(p: np.ndarray, truth: np.ndarray, split: str) -> list[dict[str, Any]]:
    """Accuracy over events, and recall of each class, with Wilson 95 % intervals."""
    right = p.argmax(axis=1) == truth
    groups = [("accuracy", np.ones(len(truth), bool))]
    groups += [(f"recall {name}", truth == k) for k, name in enumerate(FOREST_LOSS_DRIVERS.names)]
    out = []
    for name, group in groups:
        if group.any():
            low, high = wilson(int(right[group].sum()), int(group.sum()))
            value = float(right[group].mean())
            out.append({"name": name, "value": value, "low": low, "high": high, "n": int(group.sum()), "split": split})
    return out


def train(scratch: Path, size: int, params: FitParams) -> Path:
    """Train on simulated provinces; returns the folder of the uncalibrated package."""
    images = [image for seed in TRAIN_SEEDS for image in training_images(province(scratch, seed, size))]
    held_out = [image for seed in VALIDATION_SEEDS for image in training_images(province(scratch, seed, size))]
    result = fit(images, held_out, PARTS, FOREST_LOSS_DRIVERS, params)
    raw = scratch / "uncalibrated"
    save_package(raw, result.network, card_fields(result), half=True)
    return raw


def finish(raw: Path, package: Path, scratch: Path, size: int) -> None:
    """Calibrate and judge a trained package on unseen provinces, by the pipeline itself, and store it."""
    trained = load_package(raw)
    network = load_network(trained)
    fields = trained.card.model_dump(exclude={"sha256", "calibration", "scores"})
    p, truth = judge(raw, [province(scratch, seed, size) for seed in CALIBRATION_SEEDS], scratch)
    temperature = fit_temperature(np.log(np.maximum(p, 1e-9)), truth)
    calibration = {"method": "temperature", "temperature": temperature}
    warm = scratch / "calibrated"
    save_package(warm, network, {**fields, "calibration": calibration}, half=True)
    p, truth = judge(warm, [province(scratch, seed, size) for seed in TEST_SEEDS], scratch)
    split = f"simulated provinces of seeds {TEST_SEEDS}, unseen in training and calibration"
    calibration |= {"ece": expected_calibration_error(p, truth), "split": split}
    scores = scores_of(p, truth, split)
    card = save_package(package, network, {**fields, "calibration": calibration, "scores": scores}, half=True)
    for score in card.scores:
        print(f"{score.name:<32} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}), n = {score.n}")
    print(f"temperature {temperature:.3f}, calibration error {calibration['ece']:.3f}; {package} {card.sha256}")


def main() -> None:
    """Simulate, train, calibrate, test, and store the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=ROOT / "out" / "demo-model", help="folder for provinces")
    parser.add_argument("--package", type=Path, default=ROOT / "models" / "fpn-efficientnet-b2")
    parser.add_argument("--minutes", type=float, default=33.0, help="wall-clock limit of the training itself")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--size", type=int, default=1000, help="pixels a side of a province")
    parser.add_argument("--trained", type=Path, help="calibrate and judge this uncalibrated package, do not train")
    args = parser.parse_args()
    raw = args.trained or train(args.scratch, args.size, FitParams(steps=args.steps, minutes=args.minutes))
    finish(raw, args.package, args.scratch, args.size)


if __name__ == "__main__":
    main()
