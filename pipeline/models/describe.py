"""What a model package is made of: its parts as built, what they cost and how far a pixel looks.

FLOP: a multiply-add counts as two, as torch counts; convolutions and matrix products only (norms and activations are
a few per cent). Counted at the card's patch size.

Reach: the pixels whose change can change one output pixel, found by gradients. Squeeze-and-excitation, image pooling
and group norm average over the whole patch, so through them every pixel sees all of it, however faintly; the `local`
reach holds those averages fixed. It is the theoretical receptive field, which is wider than what weighs in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models.card import ModelCard
from pipeline.models.contracts import FeatureSpec
from pipeline.models.network import Network, network_of
from pipeline.models.store import load_package

STRIP = 64
"""Height in pixels of the strip a reach is measured on: kernels are square, so one direction says both."""
LONGEST = 4096


@dataclass(frozen=True)
class PartLine:
    """One part: `kind` backbone, neck or head, its `name`, the maps it returns and its number of parameters."""

    kind: str
    name: str
    maps: tuple[FeatureSpec, ...]
    parameters: int


@dataclass(frozen=True)
class Description:
    """A model in figures; sizes in pixels, None where an ONNX graph of others does not tell.

    `gflop_per_megapixel` at the patch size; `reach_local` and `reach_whole` are sides of squares, the latter at most
    `patch`; `local_is_bounded` is False where the local reach is as wide as could be measured.
    """

    name: str
    version: str
    architecture: str
    bands: tuple[str, ...]
    classes: tuple[str, ...]
    patch: int
    parts: tuple[PartLine, ...]
    parameters: int | None
    gflop_per_megapixel: float | None
    reach_local: int | None
    reach_whole: int | None
    local_is_bounded: bool | None
    weights_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def describe(package: Path) -> Description:
    """Describe a package folder; raises ModelError where it is not sound."""
    opened = load_package(package)
    size = opened.weights.stat().st_size
    if opened.is_onnx:
        return _of_graph(opened.card, opened.read(), size)
    return describe_card(opened.card, size)


def describe_card(card: ModelCard, weights_bytes: int = 0) -> Description:
    """Describe the network a card stands for, built with random weights; figures do not depend on weights."""
    network = network_of(card).eval()
    flop = count_flop(network, card.patch.size)
    local, bounded = reach(network, card.patch.size, local=True)
    whole, _ = reach(network, card.patch.size, local=False)
    return Description(
        **_common(card),
        parts=_parts(network, card),
        parameters=sum(one.numel() for one in network.parameters()),
        gflop_per_megapixel=round(flop / card.patch.size**2 / 1e3, 2),
        reach_local=local,
        reach_whole=whole,
        local_is_bounded=bounded,
        weights_bytes=weights_bytes,
    )


def render(description: Description) -> str:
    """Return the description as lines of text for people."""
    lines = [
        f"{description.name} {description.version}: {description.architecture}",
        f"bands    {', '.join(description.bands)}",
        f"classes  {', '.join(description.classes)}",
        f"patch    {description.patch} x {description.patch} pixels",
        "",
        f"{'part':<9}{'name':<28}{'parameters':>12}  maps (channels / stride)",
    ]
    for part in description.parts:
        maps = ", ".join(f"{spec.channels} / {spec.stride}" for spec in part.maps) or "-"
        lines.append(f"{part.kind:<9}{part.name:<28}{part.parameters or '-':>12}  {maps}")
    lines.append(f"{'whole':<37}{description.parameters or '-':>12}")
    lines += ["", f"weights  {description.weights_bytes / 1e6:.1f} MB"]
    if description.gflop_per_megapixel is None:
        lines.append("cost and reach are not measured for ONNX graphs of others")
        return "\n".join(lines)
    at_least = "" if description.local_is_bounded else "at least "
    lines += [
        f"cost     {description.gflop_per_megapixel:.1f} GFLOP per megapixel (a multiply-add counts as two)",
        f"reach    {at_least}{description.reach_local} pixels a side, averages over the patch held fixed; "
        f"{description.reach_whole} with them, in a patch of {description.patch}",
    ]
    return "\n".join(lines)


def count_flop(network: Network, side: int) -> int:
    """Return the floating-point operations of one image of `side` pixels, two a multiply-add."""
    counter = FlopCounterMode(display=False)
    shadow = copy.deepcopy(network).to("meta").eval()
    with torch.inference_mode(), counter:
        shadow(torch.empty(1, _bands(network), side, side, device="meta"))
    return int(counter.get_total_flops())


def reach(network: Network, patch: int, local: bool) -> tuple[int, bool]:
    """Return (side of the square an output pixel sees, in pixels; whether the image was wider than that).

    The whole reach is measured in the patch; the local one on strips that grow until they are wider.
    """
    probe = copy.deepcopy(network).double().eval()
    if not local or network.fixed_size:
        side = _seen(probe, patch, patch, local)
        return side, side < patch
    length = 512
    while (side := _seen(probe, STRIP, length, local)) >= length - 2 * network.multiple and length < LONGEST:
        length *= 2
    return side, side < length - 2 * network.multiple


def _seen(network: Network, height: int, width: int, local: bool) -> int:
    """Return the width of the bounding box of an output pixel's non-zero input gradient, the widest over one stride.

    Random input in double precision: a path that a rectifier closes at one place is open at another.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, _bands(network), height, width, generator=generator, dtype=torch.float64)
    image.requires_grad_()
    with _AveragesFixed() if local else torch.enable_grad():
        logits = network(image)
    middle, row = width // 2, height // 2
    widest = 0
    # where a pixel lies in its coarsest cell decides which cells interpolation takes
    for column in (middle, middle + network.multiple // 2):
        (gradient,) = torch.autograd.grad(logits[0, :, row, column].sum(), image, retain_graph=True)
        columns = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
        widest = max(widest, int(columns[-1] - columns[0]) + 1)
    return widest


class _AveragesFixed(TorchFunctionMode):
    """Holds averages over a whole map fixed for gradients: global pooling, and the statistics of group norm."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one torch function."""
        named = dict(kwargs or {})
        if func is functional.group_norm:
            return _group_norm(*args, **named)
        result = func(*args, **named)
        pooling = func in (functional.adaptive_avg_pool2d, torch.mean, torch.Tensor.mean)
        if pooling and isinstance(result, torch.Tensor) and _is_global(args[0], result):
            return result.detach()
        return result


def _is_global(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a map [N, C, H, W] was averaged over H and W."""
    return before.ndim == 4 and after.shape[:2] == before.shape[:2] and after.numel() == before.shape[:2].numel()


def _group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Group norm of [N, C, H, W] whose mean and variance carry no gradient."""
    split = x.detach().reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(split, dim=2, correction=0, keepdim=True)
    normed = ((x.reshape(split.shape) - mean) / (variance + eps).sqrt()).reshape(x.shape)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    if weight is not None:
        normed = normed * weight.reshape(shape)
    return normed if bias is None else normed + bias.reshape(shape)


def _parts(network: Network, card: ModelCard) -> tuple[PartLine, ...]:
    features: tuple[FeatureSpec, ...] = network.backbone.features  # type: ignore[assignment]
    out: FeatureSpec = network.neck.out  # type: ignore[assignment]
    named: list[tuple[str, str, tuple[FeatureSpec, ...], nn.Module]] = [
        ("backbone", card.backbone.name, features, network.backbone),
        ("neck", card.neck.name, (out,), network.neck),
        ("head", card.head.name, (FeatureSpec(len(card.scheme), 1),), network.head),
    ]
    return tuple(
        PartLine(kind, name, maps, sum(one.numel() for one in module.parameters()))
        for kind, name, maps, module in named
    )


def _of_graph(card: ModelCard, content: bytes, size: int) -> Description:
    """Describe an ONNX graph: parts by name, parameters by its float tensors, whichever way they are stored."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError as error:
        raise ModelError(f"model {card.name}: not an ONNX graph: {error}") from error
    constants = (field.t for node in graph.node if node.op_type == "Constant" for field in node.attribute)
    tensors = [*graph.initializer, *constants]
    parts = (("backbone", card.backbone), ("neck", card.neck), ("head", card.head))
    return Description(
        **_common(card),
        parts=tuple(PartLine(kind, part.name, (), 0) for kind, part in parts),
        parameters=sum(math.prod(one.dims) for one in tensors if one.data_type == onnx.TensorProto.FLOAT),
        gflop_per_megapixel=None,
        reach_local=None,
        reach_whole=None,
        local_is_bounded=None,
        weights_bytes=size,
    )


def _common(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "version": card.version,
        "architecture": card.architecture,
        "bands": card.bands,
        "classes": card.scheme.names,
        "patch": card.patch.size,
    }


def _bands(network: Network) -> int:
    bands: int = network.backbone.bands  # type: ignore[assignment]
    return bands
