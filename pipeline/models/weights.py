"""What a backbone starts from: ImageNet, torchgeo's Landsat weights (SSL4EO-L), a .safetensors file, or nothing.

Hubs are read through their own clients, so what lies in their caches (HF_HOME, TORCH_HOME) serves without internet.
No object is ever unpickled: torchgeo's .pth files go through torch's weights-only loader, which admits tensors alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import ModelError
from pipeline.models.card import Scaling
from pipeline.models.contracts import closest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

State = dict[str, torch.Tensor]
RGB = ("red", "green", "blue")
"""What ImageNet's first convolutions expect."""
_OLI = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
_LANDSAT: dict[str, tuple[tuple[str, ...], float]] = {
    "OLI_SR": (_OLI, 0.3),
    "ETM_SR": (_OLI[1:], 0.3),
    "OLI_TIRS_TOA": ((*_OLI, "pan", "cirrus", "lwir11", "lwir12"), 0.4),
    "ETM_TOA": ((*_OLI[1:6], "lwir_low", "lwir_high", "swir22", "pan"), 0.4),
    "TM_TOA": ((*_OLI[1:6], "lwir", "swir22"), 0.4),
}
"""Sensor and level of SSL4EO-L: bands in the order of its files, and the reflectance that became 255 (0 became 0).
Source: torchgeo's experiments/ssl4eo/landsat/compress_*.sh; the weights then saw value / 255."""


@dataclass(frozen=True)
class Start:
    """Weights as read: `state`, and the `bands` its first convolution expects (None: told by their number)."""

    state: State
    bands: tuple[str, ...] | None


def starting_scaling(weights: str | None, bands: tuple[str, ...]) -> Scaling | None:
    """Return the scaling under which `weights` were trained, or None where any standardised input will do.

    SSL4EO-L: reflectance limited to 0..0.3 (0..0.4 for top-of-atmosphere weights), divided by that limit.
    """
    if weights is None or not _is_landsat(weights):
        return None
    _, top = _sensor(weights)
    return Scaling(mean=(0.0,) * len(bands), std=(top,) * len(bands), clip=(0.0, top))


def read_start(name: str, weights: str) -> Start:
    """Read weights other than ImageNet's for backbone `name`; raises ModelError where they cannot be had or used."""
    if _is_landsat(weights):
        return _read_landsat(name, weights)
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(
            f"backbone {name!r}: weights {weights!r} must be null, 'imagenet', a torchgeo Landsat name such as "
            "ResNet18_Weights.LANDSAT_OLI_SR_MOCO, or an existing .safetensors file"
        )
    try:
        return Start(load_file(path), None)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"backbone {name!r}: weights {path} are no readable safetensors file: {error}") from error


def _is_landsat(weights: str) -> bool:
    return re.fullmatch(r"\w+_Weights\.\w+", weights) is not None


def _sensor(weights: str) -> tuple[tuple[str, ...], float]:
    found = re.search(r"\.LANDSAT_(\w+?)_(MOCO|SIMCLR)$", weights)
    if found is None or found[1] not in _LANDSAT:
        raise closest("Landsat weights", weights, _landsat_names())
    return _LANDSAT[found[1]]


def _landsat_names() -> list[str]:
    import torchgeo.models

    here = torchgeo.models
    enums: tuple[Any, ...] = (here.ResNet18_Weights, here.ResNet50_Weights, here.ViTSmall16_Weights)
    names = (str(weights) for enum in enums for weights in enum)
    return [name for name in names if re.search(r"\.LANDSAT_\w+_(MOCO|SIMCLR)$", name)]


def _read_landsat(name: str, weights: str) -> Start:
    from torchgeo.models import get_weight

    bands, _ = _sensor(weights)
    if weights not in _landsat_names():
        raise closest("Landsat weights", weights, _landsat_names())
    entry: Any = get_weight(weights)
    if name.removeprefix("tu-") != entry.meta["model"]:
        raise ModelError(
            f"backbone {name!r}: weights {weights} are those of {entry.meta['model']}; name that backbone "
            "(tu- before it where it is timm's), or other weights"
        )
    state: State = entry.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    return Start(state, bands)


def source_channels(start: Start, target: State, stem: set[str]) -> int:
    """Return how many bands the first convolution (`stem` of the state `target`) takes in the weights as read."""
    if start.bands:
        return len(start.bands)
    given = plain_names(start.state)
    own = {plain_name(key) for key in stem if key in target}
    counts = {given[key].shape[1] for key in own if key in given and given[key].ndim == 4}
    return counts.pop() if len(counts) == 1 else len(RGB)


def stem_of(make: Callable[[int], nn.Module], bands: int) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of bands; allocates no weights."""
    with torch.device("meta"):
        one, more = make(bands).state_dict(), make(bands + 1).state_dict()
    return {key for key, value in one.items() if value.shape != more[key].shape}


def transfer(source: State, target: nn.Module, stem: set[str], given: tuple[str, ...] | int, wanted: Any) -> None:
    """Load `source` into a network of other bands: all tensors as they are, those of the stem widened.

    `given` and `wanted` are the names of the bands, or their number where they have none. Raises ModelError where a
    tensor is missing or has another shape.
    """
    state = {}
    for key, own in target.state_dict().items():
        value = source[key]
        state[key] = widen(value, given, wanted) if key in stem else value
        if state[key].shape != own.shape:
            raise ModelError(f"weights of {key} are {list(value.shape)}, the backbone needs {list(own.shape)}")
    target.load_state_dict(state)


def widen(weight: torch.Tensor, given: tuple[str, ...] | int, wanted: tuple[str, ...] | int) -> torch.Tensor:
    """Kernels [out, given, h, w] -> [out, wanted, h, w], scaled by given / wanted so that sums keep their size.

    A band that the weights know takes its own kernel, any other band a copy of red's (as ForestNet's code does).
    Without names kernels repeat in order.
    """
    count, new = weight.shape[1], wanted if isinstance(wanted, int) else len(wanted)
    if isinstance(given, int) or isinstance(wanted, int):
        index = [k % count for k in range(new)]
    else:
        index = [given.index(band if band in given else "red") for band in wanted]
    return weight[:, index] * (count / new)


def plain_name(key: str) -> str:
    """Name of a tensor in timm's plain model: feature extractors say `model.x` and `stages_0` for `stages.0`."""
    return re.sub(r"^([a-z_]+?)_(\d+)\.", r"\1.\2.", key.removeprefix("model."))


def plain_names(state: State) -> State:
    """Return a state under the names of the plain model."""
    return {plain_name(key): value for key, value in state.items()}


def as_plain(state: State, target: State) -> State:
    """Return a state under the names of the plain model where it was saved from a feature extractor like `target`."""
    return plain_names(state) if len(state.keys() & target.keys()) > len(target) / 2 else state


def check_taken(name: str, weights: str, start: Start, source: State) -> None:
    """Refuse weights that `source` took few of: timm loads features non-strictly and would stay at random weights."""
    given = plain_names(start.state)
    taken = sum(
        (own := given.get(plain_name(key))) is not None and own.shape == value.shape and torch.equal(own, value)
        for key, value in source.items()
    )
    if taken < len(source) / 2:
        raise ModelError(f"backbone {name!r}: weights {weights} fit only {taken} of {len(source)} tensors; wrong file")
