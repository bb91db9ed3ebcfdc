"""Fields of The World: `ftw inference run` of ftw-tools, which keeps the inner part of each patch and writes the map.

Its task class builds unet, deeplabv3+, fcn, upernet, segformer and dpt, but no FPN, so no checkpoint of it can hold our
weights. The one method of it that builds the network is replaced here by one that opens ours; the checkpoint is read,
and the scene is loaded, cut, predicted and written, by its own code. It divides numbers by 3000, which is undone, and
starts six processes to load patches, which is its own choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ftw.trainers import CustomSemanticSegmentationTask  # type: ignore[import-not-found]
from ftw_cli.inference import run  # type: ignore[import-not-found]

from benchmarks.peers.given import Scorer, read_arguments, tell

DIVISOR = 3000


class Rescaled(Scorer):
    """The network behind ftw-tools' own scaling."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * DIVISOR)


def write_checkpoint(path: Path, model: Path) -> None:
    """Write a checkpoint without weights of its own, for a task that opens the exported network."""

    def configure_models(task: Any) -> None:
        task.model = Rescaled(model)

    CustomSemanticSegmentationTask.configure_models = configure_models
    kept = {"state_dict": {}, "hyper_parameters": {"model": "exported"}, "pytorch-lightning_version": "2.6.6"}
    torch.save(kept, path)


def main() -> None:
    """Predict and write."""
    given = read_arguments()
    checkpoint = given.out.with_suffix(".ckpt")
    write_checkpoint(checkpoint, given.model)
    run(
        str(given.scene), str(checkpoint), str(given.out), resize_factor=1, gpu=None, patch_size=given.patch,
        batch_size=given.batch, padding=(given.patch - given.stride) // 2, overwrite=True, mps_mode=False,
    )  # fmt: skip
    tell(given)


if __name__ == "__main__":
    main()
