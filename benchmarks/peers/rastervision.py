"""Raster Vision: a scene, a sliding-window dataset, a learner and smooth labels, as its tutorial on prediction shows.

Scores of overlapping windows are averaged.
"""

from __future__ import annotations

import rasterio
import torch
from rastervision.core.data import (  # type: ignore[import-not-found]
    ClassConfig,
    RasterioSource,
    Scene,
    SemanticSegmentationLabels,
)
from rastervision.pytorch_learner import (  # type: ignore[import-not-found]
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationLearner,
    SemanticSegmentationLearnerConfig,
    SemanticSegmentationSlidingWindowGeoDataset,
    SolverConfig,
)

from benchmarks.peers.given import Given, Scorer, read_arguments, tell, write_classes


def predicted(given: Given) -> SemanticSegmentationLabels:
    """Scores of the whole scene."""
    model = Scorer(given.model)
    with rasterio.open(given.scene) as scene:
        blank = torch.zeros(1, scene.count, given.patch, given.patch)
    names = [f"class-{k}" for k in range(model(blank).shape[1])]
    config = SemanticSegmentationLearnerConfig(
        data=SemanticSegmentationGeoDataConfig(class_config=ClassConfig(names=names), num_workers=0),
        solver=SolverConfig(batch_sz=given.batch),
    )
    learner = SemanticSegmentationLearner(cfg=config, model=model, training=False)
    dataset = SemanticSegmentationSlidingWindowGeoDataset(
        Scene(id="scene", raster_source=RasterioSource(str(given.scene), allow_streaming=True)),
        size=given.patch, stride=given.stride, normalize=False,
    )  # fmt: skip
    scores = learner.predict_dataset(dataset, raw_out=True, numpy_out=True, progress_bar=False)
    return SemanticSegmentationLabels.from_predictions(
        dataset.windows, scores, extent=dataset.scene.extent, num_classes=len(names), smooth=True
    )


def main() -> None:
    """Predict and write."""
    given = read_arguments()
    labels = predicted(given)
    write_classes(given, labels.get_label_arr(labels.extent))
    tell(given)


if __name__ == "__main__":
    main()
