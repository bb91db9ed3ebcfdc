"""Small cards, networks and packages that the tests of models and training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.models.card import ModelCard, Part
from pipeline.models.network import Network, build_network
from pipeline.models.package import save_package

torch.set_num_threads(1)  # torch's threads spin: with two, tests crawl where another process runs

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")
SMALL_FPN = Part(name="fpn", settings={"pyramid_channels": 32, "segmentation_channels": 32})


def card_fields(backbone: Part, neck: Part = SMALL_FPN, head: Part | None = None, size: int = 64) -> dict[str, Any]:
    """All fields of a card but the digest."""
    return {
        "name": "sample",
        "version": "1",
        "architecture": "sample",
        "backbone": backbone,
        "neck": neck,
        "head": head or Part(name="linear"),
        "bands": BANDS,
        "scaling": {"mean": [0.03, 0.05, 0.05, 0.25, 0.15, 0.1], "std": [0.02, 0.02, 0.03, 0.08, 0.06, 0.05]},
        "patch": {"size": size, "stride": size // 2},
        "labels": FOREST_LOSS_DRIVERS.to_list(),
        "training_data": "none",
        "simulated": True,
        "licence": "CC0-1.0",
    }


def random_network(fields: dict[str, Any], seed: int = 0) -> Network:
    """The network of these fields with random weights, and batch-norm statistics that are not the neutral ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(
            fields["backbone"], fields["neck"], fields["head"], len(fields["bands"]), len(fields["labels"])
        )
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def random_package(folder: Path, backbone: str = "resnet18", half: bool = False) -> ModelCard:
    """A small package with random weights in `folder`."""
    fields = card_fields(Part(name=backbone))
    return save_package(folder, random_network(fields), fields, half=half)
