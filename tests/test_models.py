"""The contract of the parts: what each declares is what it does, and any backbone goes with any neck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from model_samples import SMALL_FPN, card_fields, random_network
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.models.backbones import build_backbone
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec
from pipeline.models.network import build_network
from pipeline.models.package import load_network, save_package
from pipeline.models.store import load_package

BACKBONES = [
    "efficientnet-b2",
    "resnet18",
    "mit_b0",
    "mobilenet_v2",
    "tu-convnext_atto",
    "tu-swin_tiny_patch4_window7_224",
    "tu-vit_tiny_patch16_224",
    "tu-resnet10t",
]
NECKS = [SMALL_FPN, Part(name="unet", settings={"channels": [32, 16, 16, 8, 8]})]


def sized(name: str) -> Part:
    fixed = name.startswith(("tu-vit", "tu-swin"))
    return Part(name=name, settings={"image_size": 64, "pyramid_channels": 32} if fixed else {})


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


def test_wrong_size_says_what_to_use() -> None:
    network = build_network(Part(name="resnet18"), SMALL_FPN, Part(name="linear"), 6, 4)
    with pytest.raises(ModelError, match=r"100 x 64 pixels.*multiples of 32; use 128 x 64"):
        network(torch.zeros(1, 6, 100, 64))


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t"])
def test_weights_from_a_file_reach_the_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = build_backbone(Part(name=name), 3)
    inner = source.encoder
    state = {key: value.contiguous() for key, value in inner.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    loaded = build_backbone(Part(name=name, settings={"weights": str(path)}), 6).encoder.state_dict()
    same = [key for key in state if loaded[key].shape == state[key].shape]
    assert len(same) == len(state) - 1  # all but the first convolution, which had 3 bands
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    first = next(key for key in state if key not in same)
    assert loaded[first].shape[1] == 6
    assert float(loaded[first].abs().sum()) > 0


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t"])
def test_weights_of_another_network_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"something.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=r"weights .* (cannot be had|fit only 0 of)"):
        build_backbone(Part(name=name, settings={"weights": str(path)}), 6)
