"""Engines: a model package made ready to run (`Segmenter`), by torch, ONNX Runtime or OpenVINO.

`auto` is torch on a GPU. On a CPU it is ONNX Runtime, and OpenVINO where half precision is asked for, as it computes
that on processors that can; `python -m benchmarks.engines` measures them all on this machine. All share `prepare`,
where reflectance becomes network input. On a CPU images go through one by one: as fast as any batch, and an image's
logits cannot depend on its neighbours in the batch. Only what runs on torch loads it: a worker on ONNX Runtime is
smaller by 800 MB and starts twice as fast.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ModelError
from pipeline.memory import give_back
from pipeline.models.agreement import AGREEMENT, Agreement, compare
from pipeline.models.exported import export_onnx, is_exported
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.openvino_engine import OpenVinoEngine
from pipeline.models.store import Package, load_package

if TYPE_CHECKING:
    from pipeline.models.contracts import Segmenter
    from pipeline.models.torch_engine import TorchEngine

Engine = Literal["auto", "torch", "onnx", "openvino"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
HALF = ("bf16", "fp16")

_log = logging.getLogger(__name__)


def open_segmenter(
    folder: Path,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: int = 1,
) -> Segmenter:
    """Open the model package in `folder`; raises ModelError where the package, the engine or the device will not do.

    Engines of graphs take the package's own, or one exported once per weights into the user's cache; where exporting
    fails, `auto` is torch with a logged warning. `precision` `auto` is fp32. `threads` is per process: with one worker
    process per core, 1.
    """
    package = load_package(folder)
    on_gpu = _use_cuda(device)
    if engine == "torch" or (engine == "auto" and on_gpu and not package.is_onnx):
        return _open_torch(package, on_gpu, precision, threads)
    if device == "cuda":
        raise ModelError(f"model {folder}: graphs run on the CPU here; set device: cpu or engine: torch")
    if package.is_onnx:
        return _open_graph(package, package.read(), package.weights, engine, precision, threads)
    try:
        graph = export_onnx(folder)
        return _open_graph(package, graph.read_bytes(), graph, engine, precision, threads)
    except (ModelError, OSError) as error:
        if engine != "auto" or precision in HALF:
            raise ModelError(f"model {folder}: no {engine} engine: {error}") from error
        _log.warning("model %s: running on torch, about half as fast: %s", folder, error)
        return _open_torch(package, False, precision, threads)


def _open_graph(
    package: Package, graph: bytes, path: Path, engine: Engine, precision: Precision, threads: int
) -> Segmenter:  # fmt: skip
    if engine == "openvino" or (engine == "auto" and precision in HALF):
        return OpenVinoEngine(package.card, graph, str(path), threads, precision)
    if precision in HALF:
        raise ModelError(f"precision {precision}: ONNX Runtime computes in float32; set engine: openvino")
    return OnnxEngine(package.card, graph, str(path), threads)


@functools.lru_cache(maxsize=2)
def segmenter_for_worker(
    folder: Path,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: int = 1,
) -> Segmenter:
    """Return `open_segmenter` of the same arguments, opened once per process; use only for packages that stay put."""
    segmenter = open_segmenter(folder, engine, device, precision, threads)
    # reading and optimising a graph leaves as much memory free as its weights take
    give_back()
    return segmenter


def open_ahead(folder: Path, engine: Engine, precision: Precision) -> None:
    """Open a package for the blocks to come, unless its graph is still to be exported: a run does that once, itself."""
    package = load_package(folder)
    on_torch = engine == "torch" or (engine == "auto" and not package.is_onnx and _use_cuda("auto"))
    if on_torch or package.is_onnx or is_exported(folder):
        segmenter_for_worker(folder, engine, "auto", precision)


def check_engine(folder: Path, engine: Engine, precision: Precision) -> Agreement | None:
    """Open a package here as a worker does, and hold OpenVINO against ONNX Runtime in float32.

    None for torch, and for ONNX Runtime, whose graph was held against torch when it was exported: one that lies there
    as it was then is not opened once more. In half precision the agreement is for the user to judge.

    Raises:
        ModelError: the package cannot be opened, or OpenVINO in float32 names other classes.
    """
    if engine in ("auto", "onnx") and precision not in HALF and is_exported(folder):
        return None
    segmenter = segmenter_for_worker(folder, engine, "auto", precision)
    if not isinstance(segmenter, OpenVinoEngine):
        return None
    found = compare(segmenter, open_segmenter(folder, "onnx", "cpu"))
    if precision not in HALF and found.argmax_agreement < AGREEMENT:
        raise ModelError(
            f"model {folder}: OpenVINO names another class than ONNX Runtime on {1 - found.argmax_agreement:.2%} of a "
            "random patch; set engine: onnx"
        )
    return found


MOST_PATCHES = 64
"""Largest batch on a GPU: beyond it patches go through no faster, and take longer to read."""


def _open_torch(package: Package, on_gpu: bool, precision: Precision, threads: int) -> TorchEngine:
    import torch

    from pipeline.models.torch_engine import TorchEngine

    if not on_gpu:
        torch.set_num_threads(threads)
    return TorchEngine(package, "cuda" if on_gpu else "cpu", precision)


def gpu_names() -> list[str]:
    """Names of the CUDA devices of this process."""
    if not _has_gpu_driver():
        return []
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def _use_cuda(device: Device) -> bool:
    if device == "cpu":
        return False
    available = bool(gpu_names())
    if device == "cuda" and not available:
        raise ModelError("device: cuda, but torch finds no GPU; set device: auto or cpu")
    return available


def _has_gpu_driver() -> bool:
    """Whether a driver is there that torch's GPUs need, NVIDIA's or AMD's: without one torch need not be asked."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
