"""Freezing and learning rates by depth: what is frozen does not move, and deeper learns slower."""

from __future__ import annotations

import copy

import pytest
import torch
from model_samples import SMALL_FPN
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.network import Network, build_network
from pipeline.models.parameters import backbone_stages, freeze, parameter_groups

BACKBONES = {
    "resnet18": 5,
    "efficientnet-b0": 5,
    "tu-convnext_atto": 4,
    "tu-swin_tiny_patch4_window7_224": 4,
    "tu-vit_tiny_patch16_224": 13,
    "mit_b0": 4,
}


def small(name: str) -> Network:
    fixed = name.startswith(("tu-vit", "tu-swin"))
    part = Part(name=name, settings={"image_size": 64, "pyramid_channels": 32} if fixed else {})
    torch.manual_seed(0)
    return build_network(part, SMALL_FPN, Part(name="linear"), 4, 3)


HEAVY = ("tu-swin_tiny_patch4_window7_224", "mit_b0")


@pytest.fixture(
    scope="module", params=[pytest.param(k, marks=pytest.mark.slow) if k in HEAVY else k for k in BACKBONES]
)
def built(request: pytest.FixtureRequest) -> tuple[str, Network]:
    return request.param, small(request.param)


def trained(network: Network, how: object) -> dict[str, torch.Tensor]:
    """Train two steps and return the state before."""
    freeze(network, how)  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(network, lr=0.01, weight_decay=0.1))
    network.train()
    for step in range(2):
        image = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(step)) + 1
        optimizer.zero_grad()
        network(image).square().mean().backward()
        optimizer.step()
    return before


def test_stages_hold_every_parameter_of_the_encoder_once(built: tuple[str, Network]) -> None:
    name, network = built
    stages = backbone_stages(network)
    flat = [one for stage in stages for one in stage]
    assert sorted(flat) == sorted(key for key, _ in network.named_parameters() if key.startswith("backbone.encoder."))
    assert len(stages) == BACKBONES[name]
    first = next(key for key, _ in network.named_parameters())
    assert first in stages[0], "the first convolution is in the first stage"


def test_what_is_frozen_does_not_move_and_the_rest_does(built: tuple[str, Network]) -> None:
    name, network = built
    network = copy.deepcopy(network)
    stages = backbone_stages(network)
    before = trained(network, {"stages": 2})
    after = network.state_dict()
    frozen, later = {*stages[0], *stages[1]}, {key for stage in stages[2:] for key in stage}
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    moved = [key for key in later if not torch.equal(before[key], after[key])]
    assert len(moved) > 0.8 * len(later), f"{name}: what is not frozen learns"
    assert all(not torch.equal(before[key], after[key]) for key in after if key.startswith("head."))


@pytest.mark.parametrize("name", ["resnet18", "tu-vit_tiny_patch16_224"])
def test_a_frozen_backbone_keeps_its_statistics(name: str) -> None:
    network = small(name)
    before = trained(network, "backbone")
    after = network.state_dict()
    for key in after:
        same = torch.equal(before[key], after[key])
        assert same == key.startswith("backbone.encoder."), key
    # training can be switched on again and again
    network.eval().train()
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert network.neck.training
    freeze(network, "none")
    assert all(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_statistics_of_frozen_stages_stay_and_those_of_others_move() -> None:
    network = small("resnet18")
    before = trained(network, {"stages": 2})
    after = network.state_dict()
    means = [key for key in after if key.endswith("running_mean") and key.startswith("backbone.")]
    still = {key for key in means if torch.equal(before[key], after[key])}
    assert still == {key for key in means if ".bn1." in key[:25] or ".layer1." in key}
    assert 0 < len(still) < len(means)


def test_rates_fall_with_depth_and_cover_every_parameter_once(built: tuple[str, Network]) -> None:
    _, network = built
    freeze(network, "none")
    groups = parameter_groups(network, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in network.parameters())
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = dict(network.named_parameters())
    stages = backbone_stages(network)
    for k, stage in enumerate(stages):
        assert {rate[id(named[key])] for key in stage} == {0.5 ** (len(stages) - k)}
    assert {rate[id(value)] for key, value in named.items() if not key.startswith("backbone.encoder.")} == {1.0}
    assert all(decay[id(value)] == (0.05 if value.ndim > 1 else 0) for value in named.values())
    assert len({group["name"] for group in groups}) == len(groups)
    uniform = parameter_groups(network, lr=1.0, weight_decay=0.05)
    assert {group["lr"] for group in uniform} == {1.0}


def test_frozen_parameters_are_in_no_group() -> None:
    network = small("resnet18")
    count = freeze(network, "backbone")
    given = sum(one.numel() for group in parameter_groups(network, 0.1, 0.1) for one in group["params"])
    assert given + count == sum(one.numel() for one in network.parameters())
    assert count == sum(one.numel() for one in network.backbone.parameters())


@pytest.mark.parametrize("how", ["all", {"stages": 6}, {"stages": -1}, {"stages": True}, {"stage": 1}, {"stages": "2"}])
def test_other_ways_to_freeze_are_refused(how: object) -> None:
    with pytest.raises(ModelError, match=r"must be 'none', 'backbone' or stages: 0\.\.5"):
        freeze(small("resnet18"), how)  # type: ignore[arg-type]


def test_bad_decay_and_nothing_to_train_are_refused() -> None:
    network = small("resnet18")
    for decay in (0, 1.1):
        with pytest.raises(ModelError, match="layer_decay"):
            parameter_groups(network, 0.1, 0.1, decay)
    network.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing is left to train"):
        parameter_groups(network, 0.1, 0.1)
