"""A safetensors package on torch: the engine of GPUs, and the one the others are measured against."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ModelError
from pipeline.models.engines import MOST_PATCHES
from pipeline.models.package import load_network
from pipeline.models.prepare import joined, prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.engines import Precision
    from pipeline.models.store import Package

_SHARE_OF_MEMORY = 0.7


def batch_for(free: float, one: float) -> int:
    """Patches of `one` byte count each that fit into the larger part of `free` bytes: a power of two, 1 at least."""
    fits = min(max(int(_SHARE_OF_MEMORY * free / max(one, 1.0)), 1), MOST_PATCHES)
    return 1 << (fits.bit_length() - 1)


class TorchEngine:
    """A safetensors package on torch.

    On a GPU the first call finds how many patches its memory takes; a batch that is too large all the same is halved,
    and the smaller size is kept for the life of the process. Blocks of several threads take turns on the GPU.
    """

    def __init__(self, package: Package, device: str = "cpu", precision: Precision = "auto") -> None:
        if device == "cpu" and precision not in ("auto", "fp32"):
            raise ModelError(f"precision {precision} needs a GPU; set precision: auto")
        self.card = package.card
        self._device = torch.device(device)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.batch: int | None = 1 if device == "cpu" else None
        self._turn = threading.Lock()
        network = load_network(package)
        self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 reflectance [N, bands, H, W], NaN = not observed -> float32 logits [N, classes, H, W]."""
        inputs = torch.from_numpy(prepare(images, self.card))
        outputs: list[NDArray[np.float32]] = []
        done = 0
        with self._turn:
            while done < len(inputs):
                size = self.batch or self._find_batch(inputs[:1])
                try:
                    outputs.append(self._run(inputs[done : done + size]))
                except torch.cuda.OutOfMemoryError:
                    if size == 1:
                        raise ModelError(
                            f"model {self.card.name}: one patch does not fit into the GPU's memory; set device: cpu"
                        ) from None
                    torch.cuda.empty_cache()
                    self.batch = size // 2
                    continue
                done += size
        return joined(outputs, images, self.card)

    def _find_batch(self, one: Any) -> int:
        """Measure what one patch takes at its peak, and keep how many of them the GPU's free memory holds."""
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._run(one)
        took = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        self.batch = batch_for(torch.cuda.mem_get_info(self._device)[0], took)
        return self.batch

    def _run(self, inputs: Any) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            moved = inputs.to(self._device).contiguous(memory_format=torch.channels_last)
            result: NDArray[np.float32] = self._network(moved).float().contiguous().cpu().numpy()
            return result
