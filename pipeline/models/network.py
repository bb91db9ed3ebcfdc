"""`Network`: backbone, neck and head joined; each is built from what the one before it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.backbones import Bands, build_backbone
from pipeline.models.card import ModelCard, Part
from pipeline.models.heads import build_head
from pipeline.models.necks import build_neck

if TYPE_CHECKING:
    from pipeline.models.contracts import FeatureSpec


class Network(nn.Module):
    """Normalised float32 [N, bands, H, W], H and W multiples of `multiple` -> logits [N, classes, H, W]."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        features: tuple[FeatureSpec, ...] = backbone.features  # type: ignore[assignment]
        self.multiple = max(spec.stride for spec in features)
        self.fixed_size: int | None = backbone.fixed_size  # type: ignore[assignment]
        self.frozen: list[nn.Module] = []

    def train(self, mode: bool = True) -> Network:
        """Set training or evaluation mode; `frozen` parts stay in evaluation, so their statistics do not move."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits; raises ModelError where the size is no multiple of the coarsest stride, or not fixed_size."""
        height, width = int(images.shape[-2]), int(images.shape[-1])
        if self.fixed_size and (height, width) != (self.fixed_size, self.fixed_size):
            raise ModelError(
                f"images of {height} x {width} pixels: this backbone was built for {self.fixed_size} x "
                f"{self.fixed_size} (its setting image_size); use that size"
            )
        if height % self.multiple or width % self.multiple:
            use = [-(-side // self.multiple) * self.multiple for side in (height, width)]
            raise ModelError(
                f"images of {height} x {width} pixels: both must be multiples of {self.multiple}; "
                f"use {use[0]} x {use[1]}"
            )
        logits: torch.Tensor = self.head(self.neck(self.backbone(images)))
        return logits


def build_network(backbone: Part, neck: Part, head: Part, bands: Bands, classes: int) -> Network:
    """Build a network for `bands` (names, or their number) and `classes` outputs; raises ModelError naming the part."""
    encoder = build_backbone(backbone, bands)
    features: tuple[FeatureSpec, ...] = encoder.features  # type: ignore[assignment]
    fusion = build_neck(neck, features)
    out: FeatureSpec = fusion.out  # type: ignore[assignment]
    return Network(encoder, fusion, build_head(head, out, classes))


def network_of(card: ModelCard) -> Network:
    """Build a card's network with random weights: what its backbone started from no longer matters."""
    settings = {key: value for key, value in card.backbone.settings.items() if key != "weights"}
    backbone = Part(name=card.backbone.name, settings=settings)
    return build_network(backbone, card.neck, card.head, len(card.bands), len(card.scheme))
