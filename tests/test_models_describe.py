"""Descriptions: cost and reach of networks small enough to reckon by hand, and of the one that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_samples import random_package
from torch import nn

from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec
from pipeline.models.describe import count_flop, describe, reach, render
from pipeline.models.network import Network, build_network


class Encoder(nn.Module):
    """Two convolutions of 3 x 3 with stride 2: a cell of stride 4 sees 3 + 2 * 2 = 7 pixels."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.features, self.bands, self.fixed_size = (FeatureSpec(8, 4),), 2, None
        self.pooled = pooled

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        map_ = self.encoder(images)
        return [map_ * map_.mean((2, 3), keepdim=True).sigmoid() if self.pooled else map_]


class Neck(nn.Module):
    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8) if grouped else nn.Identity())
        self.out = FeatureSpec(8, 4)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        fused: torch.Tensor = self.layers(maps[0])
        return fused


def by_hand(pooled: bool = False, grouped: bool = False) -> Network:
    torch.manual_seed(1)
    head = nn.Sequential(nn.Conv2d(8, 3, 1), nn.Upsample(scale_factor=4))
    return Network(Encoder(pooled), Neck(grouped), head)


def test_cost_by_hand() -> None:
    # per pixel of the image: 2/4 * 8 * 9 + 8 * 8 * 9 / 16 + 8 * 8 * 9 / 16 + 8 * 3 / 16 multiply-adds
    assert count_flop(by_hand(), 64) == 2 * 64 * 64 * (2 * 8 * 9 / 4 + 2 * 8 * 8 * 9 / 16 + 8 * 3 / 16)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_reach_by_hand(pooled: bool, grouped: bool) -> None:
    """3 x 3, stride 2; 3 x 3, stride 2; 3 x 3: 3 + 2 * 2 + 2 * 4 = 15 pixels; averages make it the whole patch."""
    network = by_hand(pooled, grouped)
    assert reach(network, 64, local=True) == (15, True)
    assert reach(network, 64, local=False) == ((64, False) if pooled or grouped else (15, True))


def test_reach_leaves_the_network_as_it_was() -> None:
    network = by_hand().train()
    reach(network, 64, local=True)
    assert network.training
    assert next(network.parameters()).dtype == torch.float32
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_default_network_costs_what_is_known() -> None:
    network = build_network(Part(name="efficientnet-b2"), Part(name="fpn"), Part(name="linear"), 6, 4)
    assert count_flop(network, 256) / 256**2 / 1e3 == pytest.approx(86.6, abs=0.1)


def test_a_package_is_described(tmp_path: Path) -> None:
    random_package(tmp_path / "model", backbone="resnet18", half=True)
    found = describe(tmp_path / "model")
    assert [(part.kind, part.name) for part in found.parts] == [
        ("backbone", "resnet18"), ("neck", "fpn"), ("head", "linear"),
    ]  # fmt: skip
    assert found.parts[0].maps == tuple(map(FeatureSpec, (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)))
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert found.weights_bytes == (tmp_path / "model" / "model.safetensors").stat().st_size
    # known of ResNet-18: 435 pixels at its last map; the neck's 3 x 3 convolutions and interpolation add to it
    assert found.reach_local is not None
    assert 435 < found.reach_local < 700
    assert (found.reach_whole, found.local_is_bounded) == (64, True)
    assert json.loads(json.dumps(found.to_dict()))["parts"][1]["maps"] == [{"channels": 32, "stride": 4}]
    text = render(found)
    for told in ("64 / 2, 64 / 4, 128 / 8, 256 / 16, 512 / 32", "GFLOP per megapixel", f"{found.reach_local} pixels"):
        assert told in text
