"""Model packages on disk: a folder of `model.json` and one weights file. Nothing is ever unpickled.

The card vouches for the weights: their SHA-256 is compared before a parser sees a byte of them, and what is
parsed are the very bytes that were compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.artifacts import write_bytes
from pipeline.errors import ModelError
from pipeline.models.card import CARD_FILE, WEIGHTS_FILES, ModelCard
from pipeline.models.graph_engine import looks_like_probabilities
from pipeline.models.network import Network, network_of
from pipeline.models.onnx_engine import OnnxEngine
from pipeline.models.prepare import random_patch
from pipeline.models.store import ONNX, SAFETENSORS, Package, load_package


def load_network(package: Package) -> Network:
    """Return the package's network in eval mode, float32; raises ModelError where weights and card disagree."""
    if package.is_onnx:
        raise ModelError(f"model {package.folder}: ships {ONNX}, which only the onnx engine runs; set engine: onnx")
    if package.card.graph:
        raise ModelError(f"model {package.folder}: its card has a graph, which belongs to ONNX packages; remove it")
    try:
        state = load(package.read())
    except SafetensorError as error:
        raise ModelError(f"model weights {package.weights} are no safetensors file: {error}") from error
    network = network_of(package.card)
    _check_fit(network, state, f"model {package.folder}")
    network.load_state_dict({name: _widen(value) for name, value in state.items()})
    return network.eval()


def save_package(folder: Path, network: Network, fields: Mapping[str, Any], *, half: bool = False) -> ModelCard:
    """Write a network as a package; `fields` are the keys of the model card but `sha256`.

    `half` stores weights of two or more dimensions as float16 (they are loaded back as float32); running
    statistics stay float32, as small variances would vanish. The card is written last, so a package without
    one was interrupted. Raises ModelError where the card is unsound or describes another network.
    """
    state = {name: _narrow(value.detach().cpu(), half) for name, value in network.state_dict().items()}
    content = save(state)
    card = _make_card({**fields, "sha256": hashlib.sha256(content).hexdigest()}, str(folder))
    _check_fit(network_of(card), state, f"model {folder}")
    _write(folder, SAFETENSORS, content, card)
    return card


def verify_package(folder: Path) -> ModelCard:
    """Check digests, weights against architecture, one random patch, and the region head if any; raises ModelError."""
    # both import this module
    from pipeline.models.engines import open_segmenter
    from pipeline.models.region import verify_region

    segmenter = open_segmenter(folder, engine="onnx" if load_package(folder).is_onnx else "torch", device="cpu")
    segmenter.logits(random_patch(segmenter.card))
    if segmenter.card.region is not None:
        verify_region(folder, segmenter.card)
    return segmenter.card


def import_onnx(onnx_file: Path, card_json: Path, folder: Path) -> ModelCard:
    """Make a package of any ONNX segmentation graph and its card, which says how it is fed (`card.GraphSpec`).

    The card may leave out `sha256` (where it has one it must match) and `backbone`, `neck` and `head`, which only a
    network of ours is rebuilt from. A random patch of the card's size is run before anything is written. Raises
    ModelError where the graph does not do what the card says.
    """
    try:
        content = onnx_file.read_bytes()
        fields = json.loads(card_json.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"importing {onnx_file} with card {card_json}: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"model card {card_json}: must be a JSON object")
    digest = hashlib.sha256(content).hexdigest()
    if fields.get("sha256", digest) != digest:
        raise ModelError(f"model weights {onnx_file}: sha256 is {digest}, the card {card_json} says {fields['sha256']}")
    parts = {kind: {"name": "onnx"} for kind in ("backbone", "neck", "head")}
    card = _make_card({"graph": {}, **parts, **fields, "sha256": digest}, str(card_json))
    engine, patch = OnnxEngine(card, content, str(onnx_file)), random_patch(card)
    engine.logits(patch)
    if card.graph and card.graph.output == "logits" and looks_like_probabilities(engine.raw(patch)):
        raise ModelError(
            f"model {onnx_file}: its outputs on a random patch are probabilities, the card {card_json} says logits; "
            "set graph.output: probabilities"
        )
    _write(folder, ONNX, content, card)
    return card


def _make_card(fields: dict[str, Any], where: str) -> ModelCard:
    try:
        card = ModelCard.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"model card of {where}: {'; '.join(str(error).splitlines()[:4])}") from error
    if not len(card.scheme):
        raise ModelError(f"model card of {where}: no classes")
    return card


def _write(folder: Path, name: str, content: bytes, card: ModelCard) -> None:
    """Write weights, then card, each beside and renamed; raises ModelError where the folder cannot take them."""
    other = next(file for file in WEIGHTS_FILES if file != name)
    if (folder / other).exists():
        raise ModelError(f"model {folder}: holds a {other} already; name another folder or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, content)
        write_bytes(folder / CARD_FILE, (card.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise ModelError(f"model {folder} cannot be written: {error}") from error


def _check_fit(network: Network, state: Mapping[str, torch.Tensor], where: str) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    missing, foreign = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shapes = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if missing or foreign or shapes:
        faults = [
            f"{len(names)} {what} (first {names[0]})"
            for what, names in (("missing", missing), ("foreign", foreign), ("of another shape", shapes))
            if names
        ]
        raise ModelError(
            f"{where}: the weights do not fit the card's architecture: {', '.join(faults)}; "
            "backbone, neck, head, bands and labels of the card must be those of training"
        )


def _narrow(value: torch.Tensor, half: bool) -> torch.Tensor:
    value = value.contiguous()
    return value.half() if half and value.is_floating_point() and value.ndim >= 2 else value


def _widen(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype == torch.float16 else value
