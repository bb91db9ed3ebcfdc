"""Heads: one feature map -> class logits at the image's full resolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec, closest, read_settings


def build_head(part: Part, source: FeatureSpec, classes: int) -> nn.Module:
    """Build the named head on a neck's `out` map; raises ModelError for an unknown name or setting."""
    if part.name not in HEADS:
        raise closest("head", part.name, HEADS)
    head = HEADS[part.name](part, source, classes)
    initialize_head(head)
    return head


class Linear(nn.Module):
    """A 1x1 (or 3x3) convolution to class scores, then bilinear upsampling by the map's stride.

    `align_corners` is False by default: True, which SMP's own models use, stretches the map by up to half
    its stride (60 m for stride 4) towards the patch border, so neighbouring patches would not agree.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {"kernel": 1, "align_corners": False}

    def __init__(self, part: Part, source: FeatureSpec, classes: int) -> None:
        super().__init__()
        settings = read_settings("head", part, self.SETTINGS)
        if settings["kernel"] not in (1, 3):
            raise ModelError(f"head 'linear': kernel {settings['kernel']} must be 1 or 3")
        self.conv = nn.Conv2d(source.channels, classes, settings["kernel"], padding=settings["kernel"] // 2)
        self._scale = float(source.stride)
        self._align_corners: bool = settings["align_corners"]

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """[N, channels, H / stride, W / stride] -> logits [N, classes, H, W]."""
        scores: torch.Tensor = self.conv(fused)
        if self._scale == 1:
            return scores
        return functional.interpolate(
            scores, scale_factor=self._scale, mode="bilinear", align_corners=self._align_corners
        )


HEADS: dict[str, type[Linear]] = {"linear": Linear}
