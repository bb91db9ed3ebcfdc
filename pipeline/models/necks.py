"""Necks: fuse a backbone's feature maps into one. The decoders are segmentation-models-pytorch's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
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
        self.decoder.merge = _Sum()
        for branch in self.decoder.seg_blocks[:3]:
            branch.block[-1].upsample = False
        self.out = FeatureSpec(settings["segmentation_channels"], 4)
        self._coarsest = features[-1].stride

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse maps of strides 4, 8, 16, 32 into [N, segmentation_channels, H / 4, W / 4]."""
        if maps[-1].shape[-2:] == (1, 1):
            side = 2 * self._coarsest
            raise ModelError(
                f"neck 'fpn': its group norm needs more than one coarse cell; use images of {side} or more"
            )
        fused: torch.Tensor = self.decoder(maps[-4:])
        return fused


class _Sum(nn.Module):
    """The sum of a decoder's branches; those of stride 8 are added before they are brought to stride 4.

    Upsampling is linear, so that is the sum SMP's decoder makes of three upsampled maps and copies of all four: 5 % of
    an inference's time.
    """

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Add three maps of stride 8, upsampled as SMP does it, to one of stride 4."""
        first, second, third, fine = maps
        coarse = functional.interpolate(first + second + third, scale_factor=2.0, mode="bilinear", align_corners=True)
        return coarse + fine


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


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, as in SMP): the coarsest map and that of stride 4 -> one map of stride 4.

    `rates` are dilations at stride 16, the paper's; on a coarser or finer map they shrink or grow, so that they reach
    equally far on the ground. The paper's encoder ends at stride 16: set the backbone's `output_stride: 16`, where it
    can. Upsampling keeps pixels where they are (see heads.Linear); SMP's own decoder stretches. Needs batches of two
    or more while training: its image pooling normalises over the batch.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {"channels": 256, "rates": [6, 12, 18], "dropout": 0.5}

    def __init__(self, part: Part, features: Features) -> None:
        super().__init__()
        settings = read_settings("neck", part, self.SETTINGS)
        rates, strides = settings["rates"], [spec.stride for spec in features]
        if 4 not in strides or strides[-1] not in (8, 16, 32):
            raise ModelError(f"neck {part.name!r} needs maps of stride 4 and of 8, 16 or 32 at last, not {strides}")
        if len(rates) != 3 or not all(isinstance(rate, int) and rate > 0 for rate in rates) or settings["channels"] < 1:
            raise ModelError(f"neck {part.name!r}: rates {rates!r} must be three positive integers, channels positive")
        self._fine, last = strides.index(4), features[-1]
        self.decoder = DeepLabV3PlusDecoder(
            [0, 0, features[self._fine].channels, last.channels],
            encoder_depth=4,
            out_channels=settings["channels"],
            atrous_rates=[max(1, round(rate * 16 / last.stride)) for rate in rates],
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=settings["dropout"],
        )
        self.decoder.up = nn.Upsample(scale_factor=last.stride // 4, mode="bilinear", align_corners=False)
        self.out = FeatureSpec(settings["channels"], 4)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse the two maps into [N, channels, H / 4, W / 4]."""
        # the decoder takes the third of its list and the last
        fine = maps[self._fine]
        fused: torch.Tensor = self.decoder([fine, fine, fine, maps[-1]])
        return fused


NECKS: dict[str, type[FPN] | type[UNet] | type[DeepLabV3Plus]] = {
    "fpn": FPN,
    "unet": UNet,
    "deeplabv3plus": DeepLabV3Plus,
}


def _require(name: str, features: Features, strides: tuple[int, ...]) -> None:
    given = tuple(spec.stride for spec in features)
    if given[-len(strides) :] != strides:
        raise ModelError(f"neck {name!r} needs maps of strides {strides}; the backbone gives {given}; use another")
