"""Engines: a model package made ready to run (`Segmenter`), by torch or by ONNX Runtime.

On a CPU ONNX Runtime is the faster and smaller of the two, so `auto` is torch on a GPU and onnx elsewhere.
Both share `prepare`, where reflectance becomes network input. On a CPU images go through one by
one: as fast as any batch, and an image's logits cannot depend on its neighbours in the batch.
"""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.package import load_network
from pipeline.models.prepare import joined, prepare
from pipeline.models.store import Package, load_package

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.contracts import Segmenter

Engine = Literal["auto", "torch", "onnx"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_log = logging.getLogger(__name__)


def open_segmenter(
    folder: Path,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: int = 1,
) -> Segmenter:
    """Open the model package in `folder`; raises ModelError where the package, the engine or the device will not do.

    `auto` is torch where there is a GPU, else onnx: the package's own graph, or one exported once per weights
    into the user's cache; where exporting fails, torch with a logged warning. `precision` other than fp32 is
    for GPUs. `threads` is per process: with one worker process per core, 1.
    """
    package = load_package(folder)
    on_gpu = _use_cuda(device)
    if engine == "torch" or (engine == "auto" and on_gpu and not package.is_onnx):
        return _open_torch(package, on_gpu, precision, threads)
    if device == "cuda":
        raise ModelError(f"model {folder}: the onnx engine runs on the CPU here; set device: cpu or engine: torch")
    if precision not in ("auto", "fp32"):
        raise ModelError(f"precision {precision} needs a GPU and the torch engine; set precision: auto")
    if package.is_onnx:
        return OnnxEngine(package.card, package.read(), str(package.weights), threads)
    from pipeline.models.export import export_onnx

    try:
        graph = export_onnx(folder)
        return OnnxEngine(package.card, graph.read_bytes(), str(graph), threads)
    except (ModelError, OSError) as error:
        if engine == "onnx":
            raise ModelError(f"model {folder}: no onnx engine: {error}") from error
        _log.warning("model %s: running on torch, about half as fast: %s", folder, error)
        return _open_torch(package, False, precision, threads)


@functools.lru_cache(maxsize=2)
def segmenter_for_worker(
    folder: Path,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: int = 1,
) -> Segmenter:
    """Return `open_segmenter` of the same arguments, opened once per process; use only for packages that stay put."""
    return open_segmenter(folder, engine, device, precision, threads)


MOST_PATCHES = 64
"""Largest batch on a GPU: beyond it patches go through no faster, and take longer to read."""
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
        import torch

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
        import torch

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
        import torch

        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._run(one)
        took = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        self.batch = batch_for(torch.cuda.mem_get_info(self._device)[0], took)
        return self.batch

    def _run(self, inputs: Any) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            moved = inputs.to(self._device).contiguous(memory_format=torch.channels_last)
            result: NDArray[np.float32] = self._network(moved).float().contiguous().cpu().numpy()
            return result


def _open_torch(package: Package, on_gpu: bool, precision: Precision, threads: int) -> TorchEngine:
    import torch

    if not on_gpu:
        torch.set_num_threads(threads)
    return TorchEngine(package, "cuda" if on_gpu else "cpu", precision)


def gpu_names() -> list[str]:
    """Names of the CUDA devices of this process."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def _use_cuda(device: Device) -> bool:
    if device == "cpu":
        return False
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ModelError("device: cuda, but torch finds no GPU; set device: auto or cpu")
    return available
