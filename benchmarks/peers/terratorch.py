"""terratorch: `tiled_inference` over the whole scene in memory, with the function's own defaults.

These crop 8 pixels off each patch, pad the scene by as much (so that patches lie 8 pixels beside everyone else's), and
blend overlaps with a cosine.
"""

from __future__ import annotations

import rasterio
import torch
from terratorch.tasks.tiled_inference import tiled_inference  # type: ignore[import-not-found]

from benchmarks.peers.given import Scorer, read_arguments, tell, write_classes


def main() -> None:
    """Read, predict, write."""
    given = read_arguments()
    with rasterio.open(given.scene) as scene:
        image = torch.from_numpy(scene.read(out_dtype="float32"))[None]
    logits = tiled_inference(
        Scorer(given.model), image, crop=given.patch, stride=given.stride, batch_size=given.batch
    )  # fmt: skip
    write_classes(given, logits[0].argmax(dim=0).numpy())
    tell(given)


if __name__ == "__main__":
    main()
