"""What every peer's program is given and gives back. Runs in the peers' environments: knows nothing of Clearcause."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import nn


@dataclass(frozen=True)
class Given:
    """The task of a peer.

    Attributes:
        scene: GeoTIFF of Landsat Collection 2 numbers, uint16, bands in the model's order, 0 = not clear.
        model: exported network, see `Scorer`.
        out: the class map to write: GeoTIFF, uint8, index of the class from 0, on the scene's grid.
        patch: side of a patch, pixels.
        stride: distance of neighbouring patches, pixels.
        batch: patches for one call of the network.
        started: when the program had its libraries, seconds of the performance counter.
    """

    scene: Path
    model: Path
    out: Path
    patch: int
    stride: int
    batch: int
    started: float = field(default_factory=time.perf_counter)


def read_arguments() -> Given:
    """Read the command line, and let torch use every core."""
    parser = argparse.ArgumentParser()
    for name in ("scene", "model", "out"):
        parser.add_argument(name, type=Path)
    for name in ("--patch", "--stride", "--batch"):
        parser.add_argument(name, type=int, required=True)
    torch.set_num_threads(os.cpu_count() or 1)
    return Given(**vars(parser.parse_args()))


class Scorer(nn.Module):
    """Collection 2 numbers, float32 [N, bands, patch, patch], 0 = not clear -> logits [N, classes, patch, patch]."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        # in a tuple, because an exported program refuses the call of eval() that a submodule would get
        self._program = (torch.export.load(model).module(),)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._program[0](images)
        return logits


def write_classes(given: Given, classes: np.ndarray) -> None:
    """Write class indices [height, width] on the scene's grid."""
    with rasterio.open(given.scene) as scene:
        place = {"crs": scene.crs, "transform": scene.transform, "height": scene.height, "width": scene.width}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(given.out, "w", driver="GTiff", count=1, dtype="uint8", **place, **layout) as target:
        target.write(classes.astype(np.uint8), 1)


def tell(given: Given) -> None:
    """Print the seconds since the libraries were loaded."""
    print(json.dumps({"after_imports_s": round(time.perf_counter() - given.started, 2)}), flush=True)
