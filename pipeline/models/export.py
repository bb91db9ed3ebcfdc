"""Export a safetensors package to ONNX, and measure that the graph says what torch says."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.artifacts import write_bytes
from pipeline.errors import ModelError
from pipeline.models.agreement import AGREEMENT, compare
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.package import load_network
from pipeline.models.prepare import random_patch
from pipeline.models.store import Package
from pipeline.models.torch_engine import TorchEngine

_log = logging.getLogger(__name__)


def export_graph(package: Package, path: Path) -> None:
    """Write the package's graph, and the agreement measured beside it, last.

    Raises:
        ModelError: torch cannot export the network, or the graph disagrees with torch.
    """
    _log.info("model %s: exporting to ONNX once, about 15 seconds", package.card.name)
    content = _graph(package)
    found = compare(OnnxEngine(package.card, content, str(path)), TorchEngine(package))
    if found.argmax_agreement < AGREEMENT:
        raise ModelError(
            f"model {package.folder}: the exported graph names another class than torch on "
            f"{1 - found.argmax_agreement:.2%} of a random patch; set engine: torch"
        )
    told = {"graph_sha256": hashlib.sha256(content).hexdigest(), **asdict(found), "torch": torch.__version__}
    write_bytes(path, content)
    write_bytes(path.with_suffix(".json"), json.dumps(told, indent=1).encode())


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
