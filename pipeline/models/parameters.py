"""Which parameters of a network are trained, and how fast: frozen stages, and learning rates that fall with depth.

A backbone's stages are found, not listed: a parameter belongs to the first feature map that depends on it. Plain
vision transformers, which give one map, have a stage for the embedding and one for each block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.network import Network


def backbone_stages(network: Network) -> list[list[str]]:
    """Return the names of the parameters of each stage of the pre-trained encoder, first stage first.

    Names are those of `network.named_parameters()`. The feature pyramid of plain vision transformers is no part of the
    encoder: it never comes with weights.
    """
    encoder = _encoder(network)
    names = [name for name, _ in encoder.named_parameters()]
    place = _by_block(names) if getattr(network.backbone, "pyramid", None) is not None else _by_map(network)
    stages: list[list[str]] = [[] for _ in range(max(place.values()) + 1)]
    for name in names:
        stages[place[name]].append(f"backbone.encoder.{name}")
    return [stage for stage in stages if stage]


def freeze(network: Network, how: str | Mapping[str, int]) -> int:
    """Freeze part of the backbone and return the number of frozen parameters; everything else is trained.

    `how`: 'none', 'backbone', or {'stages': k} for its first k stages. Frozen parts stay in evaluation mode, so that
    batch-norm statistics do not move, nor drop-out acts. Raises ModelError for another `how`.
    """
    stages = backbone_stages(network)
    count = _frozen_stages(how, len(stages))
    frozen = {name for stage in stages[:count] for name in stage}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    encoder = _encoder(network)
    own = ((module, list(module.parameters())) for module in encoder.modules())
    network.frozen = [module for module, mine in own if mine and not any(one.requires_grad for one in mine)]
    network.train(network.training)
    return sum(parameter.numel() for parameter in network.parameters() if not parameter.requires_grad)


def parameter_groups(
    network: Network, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups {params, lr, weight_decay, name} of all trained parameters.

    Neck, head and feature pyramid learn at `lr`; backbone stage s of S at lr * layer_decay ** (S - s), s from 0.
    Biases and norms (tensors of one dimension or none) have no weight decay. Raises ModelError where nothing is left
    to train or `layer_decay` is not in 0..1.
    """
    if not 0 < layer_decay <= 1:
        raise ModelError(f"layer_decay {layer_decay} must be above 0 and at most 1")
    stages = backbone_stages(network)
    stage_of = {name: k for k, stage in enumerate(stages) for name in stage}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((stage_of.get(name, len(stages)), parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ModelError("every parameter of the network is frozen: nothing is left to train")
    return [
        {
            "params": parameters,
            "lr": lr * layer_decay ** (len(stages) - stage),
            "weight_decay": weight_decay if decays else 0.0,
            "name": ("new" if stage == len(stages) else f"stage{stage}") + ("" if decays else " no decay"),
        }
        for (stage, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _frozen_stages(how: str | Mapping[str, int], stages: int) -> int:
    if how == "none":
        return 0
    if how == "backbone":
        return stages
    count = how.get("stages") if isinstance(how, Mapping) and list(how) == ["stages"] else None
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= stages:
        raise ModelError(f"freeze {how!r}: must be 'none', 'backbone' or stages: 0..{stages} (this backbone's)")
    return count


def _encoder(network: Network) -> nn.Module:
    encoder: nn.Module = network.backbone.encoder  # type: ignore[assignment]
    return encoder


def _by_block(names: list[str]) -> dict[str, int]:
    """Stage of each parameter of a plain transformer: the embedding, its blocks, what comes after them."""
    blocks = {name: int(found[1]) + 1 for name in names if (found := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    if not blocks:
        raise ModelError(
            "this transformer has no `blocks`: its stages cannot be told; use freeze: none, layer_decay: 1"
        )
    last = max(blocks.values())
    return {name: blocks.get(name, last if re.search(r"(?:^|\.)(norm|fc_norm)\.", name) else 0) for name in names}


def _by_map(network: Network) -> dict[str, int]:
    """Stage of each parameter: the first map whose gradient reaches it; the last stage where none does."""
    encoder, backbone = _encoder(network), network.backbone
    named = list(encoder.named_parameters())
    parameters = [parameter for _, parameter in named]
    side = network.fixed_size or 2 * network.multiple
    with _probing(network, parameters), torch.enable_grad():
        image = torch.zeros(1, int(backbone.bands), side, side, device=parameters[0].device)  # type: ignore[arg-type]
        maps: list[torch.Tensor] = backbone(image)
        place: dict[str, int] = {}
        for level, one in enumerate(maps):
            reached = torch.autograd.grad(one.sum(), parameters, retain_graph=True, allow_unused=True)
            for (name, _), gradient in zip(named, reached, strict=True):
                if gradient is not None:
                    place.setdefault(name, level)
    return {name: place.get(name, len(maps) - 1) for name, _ in named}


class _probing:
    """Evaluation mode and gradients everywhere for a while; what was before comes back."""

    def __init__(self, network: Network, parameters: list[nn.Parameter]) -> None:
        self._network, self._parameters = network, parameters

    def __enter__(self) -> None:
        self._training = self._network.training
        self._trained = [parameter.requires_grad for parameter in self._parameters]
        self._network.eval()
        for parameter in self._parameters:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, trained in zip(self._parameters, self._trained, strict=True):
            parameter.requires_grad_(trained)
        self._network.train(self._training)
