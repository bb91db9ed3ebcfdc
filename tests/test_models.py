"""The contract of the parts: what each declares is what it does, and any backbone goes with any neck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from model_samples import SMALL_FPN, card_fields, random_network
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.backbones import build_backbone
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec
from pipeline.models.network import build_network
from pipeline.models.package import load_network, save_package
from pipeline.models.store import load_package

SMALL = [
    "efficientnet-b0",
    "resnet18",
    "tu-convnext_atto",
    "tu-vit_tiny_patch16_224",
]
LARGE = [
    "mobilenet_v2",
    "tu-swin_tiny_patch4_window7_224",
    *(f"efficientnet-b{k}" for k in range(1, 8)),
    "resnet50",
    "densenet121",
    "mit_b0",
    "tu-resnet10t",
    "tu-densenet121",
    "tu-convnext_tiny",
    "tu-vit_small_patch16_224",
    "tu-swin_small_patch4_window7_224",
]
BACKBONES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
DEEPLAB = Part(name="deeplabv3plus", settings={"channels": 24})
NECKS = [SMALL_FPN, Part(name="unet", settings={"channels": [32, 16, 16, 8, 7]}), DEEPLAB]
HEADS = [Part(name="linear"), Part(name="linear", settings={"kernel": 3, "align_corners": True})]


def sized(name: str) -> Part:
    fixed = name.startswith(("tu-vit", "tu-swin"))
    return Part(name=name, settings={"image_size": 64, "pyramid_channels": 33} if fixed else {})


@pytest.mark.parametrize("neck", NECKS, ids=lambda part: part.name)
@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_goes_with_any_neck_and_survives_the_disk(name: str, neck: Part, tmp_path: Path) -> None:
    fields = card_fields(sized(name), neck)
    network = random_network(fields)
    image = torch.randn(1, 6, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = network.backbone(image)
        fused = network.neck(maps)
        logits = network(image)
        save_package(tmp_path / "model", network, fields)
        again = load_network(load_package(tmp_path / "model"))(image)
    assert [FeatureSpec(one.shape[1], 64 // one.shape[2]) for one in maps] == list(network.backbone.features)
    assert [spec.stride for spec in network.backbone.features][-4:] == [4, 8, 16, 32]
    assert FeatureSpec(fused.shape[1], 64 // fused.shape[2]) == network.neck.out
    assert logits.shape == (1, 4, 64, 64)
    assert float(logits.std()) > 0
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match=r"images of 64 x 40 pixels.*use"):
        network(image[..., :40])


@pytest.mark.parametrize("head", HEADS, ids=["pixel", "window"])
@pytest.mark.parametrize("neck", NECKS, ids=lambda part: part.name)
def test_any_head_goes_with_any_neck_and_odd_counts(head: Part, neck: Part) -> None:
    network = build_network(Part(name="resnet18"), neck, head, 5, 3).eval()
    for height, width in ((32, 64), (96, 160)):
        with torch.inference_mode():
            assert network(torch.zeros(1, 5, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-b0", "tu-resnet10t"])
def test_dilation_keeps_the_last_maps_fine_and_keeps_weights(name: str) -> None:
    torch.manual_seed(0)
    plain = build_backbone(Part(name=name), 6)
    fine = build_backbone(Part(name=name, settings={"output_stride": 16}), 6)
    assert [spec.stride for spec in fine.features] == [2, 4, 8, 16, 16]
    assert {k: v.shape for k, v in fine.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    network = build_network(Part(name=name, settings={"output_stride": 16}), DEEPLAB, Part(name="linear"), 6, 4)
    assert network.multiple == 16
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 6, 48, 80)).shape == (1, 4, 48, 80)


def test_dilations_reach_equally_far_on_the_ground_at_any_stride() -> None:
    """Dilated convolutions of DeepLabV3+: 6, 12 and 18 pixels of stride 16."""
    reaches = []
    for stride in (32, 16, 8):
        neck = build_network(
            Part(name="resnet18", settings={"output_stride": stride}), DEEPLAB, Part(name="linear"), 6, 4
        ).neck
        rates = [
            module.dilation[0] for module in neck.modules() if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
        ]
        reaches.append([rate * stride for rate in rates])
    assert reaches == [[96, 192, 288]] * 3


def test_default_network_computes_what_smp_computes() -> None:
    reference = smp.FPN("efficientnet-b2", in_channels=6, classes=4, encoder_weights=None).eval()
    head = Part(name="linear", settings={"align_corners": True})
    own = build_network(Part(name="efficientnet-b2"), Part(name="fpn"), head, 6, 4).eval()
    names = {"encoder.": "backbone.encoder.", "decoder.": "neck.decoder.", "segmentation_head.0.": "head.conv."}
    state = {
        next(new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)): value
        for key, value in reference.state_dict().items()
    }
    own.load_state_dict(state)
    image = torch.randn(2, 6, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(own(image), reference(image), rtol=0, atol=1e-6)


def test_upsampling_keeps_the_map_where_it_is() -> None:
    """A map that is a ramp in space stays that ramp: pixel centres of stride 4 lie at 1.5, 5.5, ..."""
    network = build_network(Part(name="resnet18"), SMALL_FPN, Part(name="linear"), 6, 2)
    with torch.no_grad():
        network.head.conv.weight.zero_()
        network.head.conv.weight[0, 0] = 1
        network.head.conv.bias.zero_()
        ramp = torch.zeros(1, 32, 16, 16)
        ramp[0, 0] = torch.arange(16) * 4 + 1.5
        row = network.head(ramp)[0, 0, 8]
    torch.testing.assert_close(row[2:-2], torch.arange(64.0)[2:-2])


@pytest.mark.parametrize(
    ("backbone", "neck", "head", "told"),
    [
        ("efficientnet-b22", "fpn", "linear", "did you mean efficientnet-b2"),
        ("tu-convnext_tny", "fpn", "linear", "did you mean tu-convnext_tiny"),
        ("tu-eva02_tiny_patch14_224", "fpn", "linear", "stride 14"),
        ("tu-hiera_tiny_224", "fpn", "linear", "fails on 6 x 256 x 256"),
        ("tu-swin_tiny_patch4_window7_224", "deeplab", "linear", "unknown neck 'deeplab'; did you mean deeplabv3plus"),
        ("resnet18", "fpm", "linear", "unknown neck 'fpm'; did you mean fpn"),
        ("resnet18", "fpn", "linnear", "unknown head 'linnear'; did you mean linear"),
    ],
)
def test_unknown_parts_are_refused_with_a_remedy(backbone: str, neck: str, head: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        build_network(Part(name=backbone), Part(name=neck), Part(name=head), 6, 4)


@pytest.mark.parametrize(
    ("kind", "name", "settings", "told"),
    [
        ("backbone", "resnet18", {"weigths": None}, "unknown setting 'weigths'"),
        ("backbone", "resnet18", {"weights": "nowhere.safetensors"}, "existing .safetensors file"),
        ("backbone", "resnet18", {"weights": "model.pth"}, "existing .safetensors file"),
        ("backbone", "resnet18", {"output_stride": 16}, "needs maps of strides"),
        ("backbone", "densenet121", {"output_stride": 16}, "cannot be built: DenseNet"),
        ("backbone", "tu-vit_tiny_patch16_224", {"output_stride": 16}, "convolutional"),
        ("neck", "deeplabv3plus", {"rates": [1, 2]}, "three positive integers"),
        ("neck", "fpn", {"dropout": "much"}, "must be float"),
        ("neck", "fpn", {"segmentation_channels": 48}, "multiple of 32"),
        ("neck", "unet", {"channels": [8, 8]}, "five positive integers"),
        ("head", "linear", {"kernel": 2}, "must be 1 or 3"),
    ],
)
def test_bad_settings_are_refused(kind: str, name: str, settings: dict[str, Any], told: str) -> None:
    parts = {"backbone": Part(name="resnet18"), "neck": SMALL_FPN, "head": Part(name="linear")}
    parts[kind] = Part(name=name, settings=settings)
    with pytest.raises(ModelError, match=told):
        build_network(parts["backbone"], parts["neck"], parts["head"], 6, 4)


def test_a_transformer_of_one_size_says_which() -> None:
    part = Part(name="tu-swin_tiny_patch4_window7_224", settings={"image_size": 64})
    network = build_network(part, SMALL_FPN, Part(name="linear"), 6, 4)
    with pytest.raises(ModelError, match=r"images of 96 x 96 pixels: this backbone was built for 64 x 64"):
        network(torch.zeros(1, 6, 96, 96))


def test_an_image_too_small_for_group_norm_is_refused() -> None:
    network = build_network(Part(name="resnet18"), SMALL_FPN, Part(name="linear"), 6, 4).eval()
    with pytest.raises(ModelError, match="use images of 64 or more"):
        network(torch.zeros(1, 6, 32, 32))


def test_wrong_size_says_what_to_use() -> None:
    network = build_network(Part(name="resnet18"), SMALL_FPN, Part(name="linear"), 6, 4)
    with pytest.raises(ModelError, match=r"100 x 64 pixels.*multiples of 32; use 128 x 64"):
        network(torch.zeros(1, 6, 100, 64))
