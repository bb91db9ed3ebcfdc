"""Necks: fuse a backbone's feature maps into one. The decoders are segmentation-models-pytorch's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec, closest, read_settings

Features = tuple[FeatureSpec, ...]


def build_neck(part: Part, features: Features) -> nn.Module:
    """Build the named neck on a backbone's `features`; the module declares `out` (see contracts.Neck).

    Raises ModelError for an unknown name or setting, and for features the neck cannot take.
    """
    if part.name not in NECKS:
        raise closest("neck", part.name, NECKS)
    neck = NECKS[part.name](part, features)
    initialize_decoder(neck)
    return neck


class FPN(nn.Module):
    """Feature pyramid (Kirillov et al. 2019, as in SMP): maps of strides 4..32 -> one map of stride 4."""

    SETTINGS: ClassVar[dict[str, Any]] = {"pyramid_channels": 256, "segmentation_channels": 128, "dropout": 0.2}

    def __init__(self, part: Part, features: Features) -> None:
        super().__init__()
        settings = read_settings("neck", part, self.SETTINGS)
        _require(part.name, features, (4, 8, 16, 32))
        if settings["segmentation_channels"] % 32:
            # the decoder normalises in 32 groups
            raise ModelError(
                f"neck 'fpn': segmentation_channels {settings['segmentation_channels']} must be a multiple of 32"
            )
        self.decoder = FPNDecoder([spec.channels for spec in features[-4:]], encoder_depth=4, **settings)
        self.out = FeatureSpec(settings["segmentation_channels"], 4)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse maps of strides 4, 8, 16, 32 into [N, segmentation_channels, H / 4, W / 4]."""
        fused: torch.Tensor = self.decoder(maps[-4:])
        return fused


class UNet(nn.Module):
    """U-Net decoder (as in SMP): maps of strides (2,) 4..32 -> one map of stride 1."""

    SETTINGS: ClassVar[dict[str, Any]] = {"channels": [256, 128, 64, 32, 16]}

    def __init__(self, part: Part, features: Features) -> None:
        super().__init__()
        channels = read_settings("neck", part, self.SETTINGS)["channels"]
        _require(part.name, features, (4, 8, 16, 32))
        if len(channels) != 5 or not all(isinstance(count, int) and count > 0 for count in channels):
            raise ModelError(f"neck 'unet': channels {channels!r} must be five positive integers, coarse to fine")
        self._strides = tuple(spec.stride for spec in features)
        # SMP's decoder counts a map of the image's own stride (unused) and one of stride 2, maybe of no channels
        half = [spec.channels for spec in features if spec.stride == 2] or [0]
        self.decoder = UnetDecoder([0, *half, *(spec.channels for spec in features[-4:])], channels)
        self.out = FeatureSpec(channels[-1], 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse the maps into [N, channels[-1], H, W]."""
        by_stride = dict(zip(self._strides, maps, strict=True))
        finest = maps[0]
        for stride in (1, 2):
            if stride not in by_stride:
                scale = self._strides[0] // stride
                size = (finest.shape[0], 0, finest.shape[2] * scale, finest.shape[3] * scale)
                by_stride[stride] = finest.new_zeros(size)
        fused: torch.Tensor = self.decoder([by_stride[stride] for stride in (1, 2, 4, 8, 16, 32)])
        return fused


NECKS: dict[str, type[FPN] | type[UNet]] = {"fpn": FPN, "unet": UNet}


def _require(name: str, features: Features, strides: tuple[int, ...]) -> None:
    given = tuple(spec.stride for spec in features)
    if given[-len(strides) :] != strides:
        raise ModelError(f"neck {name!r} needs maps of strides {strides}; the backbone gives {given}; use another")
