"""Export a safetensors package to ONNX, once per weights and code, into the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from pipeline.artifacts import write_bytes
from pipeline.errors import ModelError
from pipeline.models.engines import TorchEngine
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.package import load_network
from pipeline.models.prepare import random_patch
from pipeline.models.store import Package, load_package

CACHE_VARIABLE = "CLEARCAUSE_CACHE"
AGREEMENT = 0.9999
"""Least share of pixels on which both engines must name the same class."""
_REVISION = 1  # raise it when necks, heads or the export below change what the same weights compute
_LOCK_SECONDS = 600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How an exported graph compares with torch on one random patch; `graph_sha256` is that of the .onnx file."""

    graph_sha256: str
    max_abs_difference: float
    argmax_agreement: float
    torch: str


def cache_dir() -> Path:
    """Return the folder for exported graphs: $CLEARCAUSE_CACHE/engines, or that of the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("clearcause", appauthor=False)) / "engines"


def export_onnx(folder: Path) -> Path:
    """Return the package's ONNX graph [N, bands, size, size] -> [N, classes, size, size], exported if need be.

    The graph lies at <cache>/engines/<sha256 of the weights>-<digest of card and code>.onnx, with the agreement
    measured in a .json beside it, written last. Processes that want the same graph wait for the first one.
    Raises ModelError where torch cannot export the network or the graph disagrees with torch.
    """
    package = load_package(folder)
    path = cache_dir() / f"{package.card.sha256}-{_code(package)}.onnx"
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            if not _is_whole(path):
                _export(package, path)
    except (OSError, Timeout) as error:
        raise ModelError(f"cache {path.parent} cannot be used: {error}; set {CACHE_VARIABLE} to a folder") from error
    return path


def _export(package: Package, path: Path) -> None:
    _log.info("model %s: exporting to ONNX once, about 15 seconds", package.card.name)
    content = _graph(package)
    patch = random_patch(package.card)
    torch_logits = TorchEngine(package).logits(patch)
    onnx_logits = OnnxEngine(package.card, content, str(path)).logits(patch)
    agreement = Agreement(
        graph_sha256=hashlib.sha256(content).hexdigest(),
        max_abs_difference=float(np.abs(torch_logits - onnx_logits).max()),
        argmax_agreement=float((torch_logits.argmax(1) == onnx_logits.argmax(1)).mean()),
        torch=torch.__version__,
    )
    if agreement.argmax_agreement < AGREEMENT:
        raise ModelError(
            f"model {package.folder}: the exported graph names another class than torch on "
            f"{1 - agreement.argmax_agreement:.2%} of a random patch; set engine: torch"
        )
    write_bytes(path, content)
    write_bytes(path.with_suffix(".json"), json.dumps(asdict(agreement), indent=1).encode())


def _graph(package: Package) -> bytes:
    """Export with a dynamic batch and the card's fixed patch size, which position embeddings need anyway."""
    network = load_network(package)
    content: bytes
    example = torch.zeros(2, *random_patch(package.card).shape[1:])
    try:
        with warnings.catch_warnings():
            # of the exporter's own making, about its own internals
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
                verbose=False,
            )
            if program is None:
                raise ModelError(f"model {package.folder}: torch exported nothing; set engine: torch")
            content = program.model_proto.SerializeToString()
    except (torch.onnx.OnnxExporterError, ImportError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {package.folder}: torch cannot export it: {first}; set engine: torch") from error
    return content


def _is_whole(path: Path) -> bool:
    """Whether the graph is there, complete and as it was checked."""
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return bool(told["graph_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _code(package: Package) -> str:
    """Digest of what else decides the graph: parts, bands and patch size of the card, and the code's revision."""
    card = package.card
    parts = [part.model_dump() for part in (card.backbone, card.neck, card.head)]
    told = json.dumps([_REVISION, parts, len(card.bands), len(card.scheme), card.patch.size], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]
