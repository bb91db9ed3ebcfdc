"""What the parts of a network owe each other, as data: swap one and the next is built from its numbers.

A backbone declares its feature maps, a neck is built from them and declares the map it returns, a head is
built from that map and the class count. Everything after the network sees only a `Segmenter`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.models.card import ModelCard, Part


@dataclass(frozen=True)
class FeatureSpec:
    """One feature map: `channels`, and `stride` = input pixels per map pixel."""

    channels: int
    stride: int


class Backbone(Protocol):
    """Image float32 [N, bands, H, W] -> list of maps [N, channels, H / stride, W / stride], strides never falling."""

    features: tuple[FeatureSpec, ...]
    bands: int
    fixed_size: int | None

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one map for each entry of `features`, in that order."""
        ...


class Neck(Protocol):
    """A backbone's maps -> one map as declared by `out`; built from the backbone's `features`."""

    out: FeatureSpec

    def __call__(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Fuse the maps, finest first, into one [N, out.channels, H / out.stride, W / out.stride]."""
        ...


class Head(Protocol):
    """A neck's map -> logits float32 [N, classes, H, W] at the input's full resolution."""

    def __call__(self, fused: torch.Tensor) -> torch.Tensor:
        """Return class scores before softmax."""
        ...


class Segmenter(Protocol):
    """A model ready to run, whatever the engine; `card` owns its bands, scaling, patch size and classes."""

    card: ModelCard

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 surface reflectance [N, bands, H, W], NaN = not observed -> float32 logits [N, classes, H, W].

        H and W are the card's patch size. An image's logits do not depend on what else is in the batch.
        Raises ModelError where bands, size or scaling do not fit the card.
        """
        ...


def closest(kind: str, name: str, known: Iterable[str]) -> ModelError:
    """Return the error for an unknown `name`, with the closest known ones as the remedy."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:8]
    return ModelError(f"unknown {kind} {name!r}; did you mean {', '.join(close)}?")


def read_settings(kind: str, part: Part, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `defaults` overlaid with the part's settings; raises ModelError on an unknown key or a wrong type.

    A default of None admits any value: the part checks it.
    """
    for key, value in part.settings.items():
        if key not in defaults:
            raise ModelError(f"{kind} {part.name!r}: unknown setting {key!r}; known are {sorted(defaults)}")
        wanted = defaults[key]
        number = isinstance(wanted, float) and isinstance(value, int) and not isinstance(value, bool)
        if wanted is not None and type(value) is not type(wanted) and not number:
            raise ModelError(f"{kind} {part.name!r}: setting {key!r} must be {type(wanted).__name__}, got {value!r}")
    return {**defaults, **part.settings}
