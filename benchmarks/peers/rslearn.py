"""rslearn: a dataset of one window, data module, Lightning module and prediction writer, as `model predict` runs them.

Its windows lie on whole multiples of the pixel, Landsat's pixels half a pixel beside them: the scene is written into
the dataset by rslearn's own raster format under the nearest multiples, so that nothing is resampled. Overlaps are
merged by its `RasterMerger`, which keeps the inner part of each crop.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import rasterio
import torch
from rslearn.config import DType  # type: ignore[import-not-found]
from rslearn.dataset import Dataset, Window  # type: ignore[import-not-found]
from rslearn.models.component import FeatureExtractor, FeatureMaps  # type: ignore[import-not-found]
from rslearn.models.singletask import SingleTaskModel  # type: ignore[import-not-found]
from rslearn.train.data_module import RslearnDataModule  # type: ignore[import-not-found]
from rslearn.train.dataset import DataInput, SplitConfig  # type: ignore[import-not-found]
from rslearn.train.lightning_module import RslearnLightningModule  # type: ignore[import-not-found]
from rslearn.train.prediction_writer import RasterMerger, RslearnWriter  # type: ignore[import-not-found]
from rslearn.train.tasks.segmentation import SegmentationHead, SegmentationTask  # type: ignore[import-not-found]
from rslearn.utils.geometry import Projection  # type: ignore[import-not-found]
from rslearn.utils.raster_array import RasterArray  # type: ignore[import-not-found]
from upath import UPath  # type: ignore[import-not-found]

from benchmarks.peers.given import Given, Scorer, read_arguments, tell, write_classes

SCENE, CLASSES = "scene", "classes"


class Extractor(FeatureExtractor):  # type: ignore[misc]
    """The exported network as rslearn's first component; its maps are the logits."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.scorer = Scorer(model)

    def forward(self, context: Any) -> Any:
        images = torch.stack([one["image"].single_ts_to_chw_tensor() for one in context.inputs])
        return FeatureMaps([self.scorer(images)])


def write_dataset(given: Given, folder: Path) -> tuple[Window, list[str]]:
    """Write the scene as a dataset of one window; returns the window and the names of its bands."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with rasterio.open(given.scene) as scene:
        array, place, crs = scene.read(), scene.transform, scene.crs
    bands = [f"B{k}" for k in range(len(array))]
    layers = {
        SCENE: {"type": "raster", "band_sets": [{"dtype": "uint16", "bands": bands}]},
        CLASSES: {"type": "raster", "band_sets": [{"dtype": "uint8", "bands": ["class"]}]},
    }
    (folder / "config.json").write_text(json.dumps({"layers": layers}))
    dataset = Dataset(UPath(folder))
    col, row = round(place.c / place.a), round(place.f / place.e)
    bounds = (col, row, col + array.shape[2], row + array.shape[1])
    projection = Projection(crs, place.a, place.e)
    factory = dataset.window_data_storage_factory
    window = Window(dataset.storage, "default", SCENE, projection, bounds, None, data_factory=factory)
    window.save()
    form = dataset.layers[SCENE].band_sets[0].instantiate_raster_format()
    with window.data.open_layer_writer(SCENE) as writer:
        writer.write_raster(bands, form, projection, bounds, RasterArray(chw_array=array))
    window.mark_layer_completed(SCENE)
    return window, bands


def predict(given: Given, folder: Path, bands: list[str]) -> None:
    """Predict all crops of the window into its layer of classes."""
    overlap = given.patch - given.stride
    task = SegmentationTask(
        num_classes=len(Scorer(given.model)(torch.zeros(1, len(bands), given.patch, given.patch))[0])
    )
    data = RslearnDataModule(
        inputs={"image": DataInput("raster", [SCENE], bands=bands, passthrough=True, dtype=DType.FLOAT32)},
        task=task, path=str(folder), batch_size=given.batch,
        predict_config=SplitConfig(
            load_all_crops=True, crop_size=given.patch, overlap_pixels=overlap, skip_targets=True
        ),
    )  # fmt: skip
    model = SingleTaskModel(encoder=[Extractor(given.model)], decoder=[SegmentationHead()])
    writer = RslearnWriter(CLASSES, path=str(folder), merger=RasterMerger(overlap_pixels=overlap))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=[writer], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(RslearnLightningModule(model, task), datamodule=data, return_predictions=False)


def main() -> None:
    """Write the dataset, predict, and copy its layer of classes."""
    given = read_arguments()
    folder = given.out.with_suffix(".dataset")
    window, bands = write_dataset(given, folder)
    predict(given, folder, bands)
    form = Dataset(UPath(folder)).layers[CLASSES].band_sets[0].instantiate_raster_format()
    found = window.data.read_raster(CLASSES, ["class"], form, projection=window.projection, bounds=window.bounds)
    write_classes(given, found.get_chw_array()[0])
    tell(given)


if __name__ == "__main__":
    main()
