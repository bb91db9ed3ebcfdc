"""torchgeo: dataset, gridded sampler, data loader and a plain loop, as its tutorials show; overlaps are added."""

from __future__ import annotations

import numpy as np
import rasterio
import torch
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GriddedPatchSampler

from benchmarks.peers.given import Given, Scorer, read_arguments, tell, write_classes


def summed_logits(given: Given) -> np.ndarray:
    """Logits [classes, height, width], float32, added where patches overlap."""
    with rasterio.open(given.scene) as scene:
        height, width, place = scene.height, scene.width, scene.transform
    dataset = RasterDataset(paths=[str(given.scene)])
    sampler = GriddedPatchSampler(dataset, size=given.patch, stride=given.stride)
    loader = DataLoader(dataset, sampler=sampler, batch_size=given.batch, collate_fn=stack_samples)
    model, total = Scorer(given.model), np.zeros((0, height, width), np.float32)
    with torch.inference_mode():
        for batch in loader:
            for bounds, logits in zip(batch["bounds"].tolist(), model(batch["image"]).numpy(), strict=True):
                if not len(total):
                    total = np.zeros((len(logits), height, width), np.float32)
                col, row = (round(v) for v in ~place @ (bounds[0], bounds[4]))
                top, left = max(row, 0), max(col, 0)
                bottom, right = min(row + given.patch, height), min(col + given.patch, width)
                total[:, top:bottom, left:right] += logits[:, top - row : bottom - row, left - col : right - col]
    return total


def main() -> None:
    """Predict and write."""
    given = read_arguments()
    write_classes(given, summed_logits(given).argmax(axis=0))
    tell(given)


if __name__ == "__main__":
    main()
