"""Backbones by name: SMP's own encoders (`efficientnet-b2`), and any timm model as `tu-<timm name>`.

Names are segmentation-models-pytorch's. Plain vision transformers, whose maps all have one stride, get
ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527) of strides 4, 8, 16 and 32.

Every backbone is built for its bands without weights first, then takes what it starts from (see weights.py).
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.layers.norm import LayerNorm2d
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec, closest, read_settings
from pipeline.models.weights import (
    RGB,
    State,
    as_plain,
    check_taken,
    read_start,
    source_channels,
    stem_of,
    transfer,
)

SETTINGS: dict[str, Any] = {
    "weights": None,
    "drop_path": 0.0,
    "image_size": 256,
    "pyramid_channels": 256,
    "output_stride": 32,
}
"""`weights`: None, 'imagenet', torchgeo's Landsat weights by name, or a .safetensors file. `image_size`: only
transformers with a fixed size look at it. `pyramid_channels`: plain vision transformers only. `drop_path`: stochastic
depth while training. `output_stride`: 16 or 8 keeps the last maps of a convolutional encoder fine by dilation."""

Bands = int | tuple[str, ...]
_FAILURES = (
    OSError, HfHubHTTPError, KeyError, RuntimeError, ValueError, TypeError, NotImplementedError,
    pickle.UnpicklingError,
)  # fmt: skip
"""What building an encoder and reading its weights raise; the last is the weights-only loader's refusal."""

PYRAMID = (4, 8, 16, 32)
_SMP_NAMES = frozenset(name for name in smp.encoders.get_encoder_names() if not name.startswith("timm-"))


def backbone_names() -> list[str]:
    """Return every known name; timm's carry the prefix `tu-`."""
    return sorted(_SMP_NAMES) + [f"tu-{name}" for name in timm.list_models()]


def build_backbone(part: Part, bands: Bands) -> nn.Module:
    """Build the named encoder for images [N, bands, H, W]; the module declares `features` (see contracts.Backbone).

    `bands` are their names, or their number where nobody knows what they show: then the kernels of RGB weights are
    repeated in order, and Landsat weights are refused. Its `fixed_size` is the only image side it takes, or None.
    Raises ModelError for an unknown name or setting, for weights that cannot be had, and where the encoder
    does not return the maps it declares.
    """
    settings = read_settings("backbone", part, SETTINGS)
    if part.name.startswith("tu-"):
        if not timm.is_model(part.name[3:]):
            raise closest("backbone", part.name, backbone_names())
        backbone: nn.Module = _Timm(part.name, bands, settings)
    elif part.name in _SMP_NAMES:
        backbone = _Smp(part.name, bands, settings)
    else:
        raise closest("backbone", part.name, backbone_names())
    _check_features(backbone, part.name, count_of(bands), settings["image_size"])
    return backbone


def count_of(bands: Bands) -> int:
    """Return the number of bands."""
    return bands if isinstance(bands, int) else len(bands)


class _Smp(nn.Module):
    """An encoder of segmentation-models-pytorch, without its first "map", which is the image itself."""

    def __init__(self, name: str, bands: Bands, settings: dict[str, Any]) -> None:
        super().__init__()

        def make(channels: int) -> Any:
            stride = settings["output_stride"]
            return smp.encoders.get_encoder(name, in_channels=channels, weights=None, output_stride=stride)

        def imagenet() -> State:
            return dict(smp.encoders.get_encoder(name, weights="imagenet").state_dict())

        def load(channels: int, state: State) -> State:
            source = make(channels)
            source.load_state_dict(state)
            return dict(source.state_dict())

        self.bands, self.fixed_size = count_of(bands), None
        encoder = _started(name, bands, settings["weights"], make, imagenet, load)
        if hasattr(encoder, "_drop_connect_rate"):
            # SMP's EfficientNet has no argument for it; its 0.2 slows a short training from random weights
            encoder._drop_connect_rate = settings["drop_path"]
        channels = list(encoder.out_channels)[1:]
        coarsest = settings["output_stride"]
        specs = [FeatureSpec(count, min(2 ** (level + 1), coarsest)) for level, count in enumerate(channels)]
        self._keep = [level for level, spec in enumerate(specs) if spec.channels > 0]
        self.features = tuple(specs[level] for level in self._keep)
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.encoder(images)[1:]
        return [maps[level] for level in self._keep]


class _Timm(nn.Module):
    """A timm model as a list of maps [N, C, H, W], whatever its own layout."""

    def __init__(self, name: str, bands: Bands, settings: dict[str, Any]) -> None:
        super().__init__()
        strides, sized = _probe(name[3:])
        plain = len(set(strides)) == 1
        self.bands, self.fixed_size = count_of(bands), settings["image_size"] if sized and not plain else None
        options: dict[str, Any] = {"drop_path_rate": settings["drop_path"]} if settings["drop_path"] else {}
        if sized:
            options["img_size"] = settings["image_size"]
        if plain:
            options.update(out_indices=(-1,), **({"dynamic_img_size": True} if sized else {}))
        else:
            options["out_indices"] = tuple(k for k, stride in enumerate(strides) if stride > 1)
        if settings["output_stride"] != 32:
            if sized or plain:
                raise ModelError(f"backbone {name!r}: output_stride is for convolutional encoders; leave it at 32")
            options["output_stride"] = settings["output_stride"]
        self.encoder = _create(name, bands, settings["weights"], options)
        info = self.encoder.feature_info
        self._channels_last = "NHWC" in str(getattr(self.encoder, "output_fmt", ""))
        self.features = tuple(map(FeatureSpec, info.channels(), info.reduction()))
        self.pyramid: nn.Module | None = None
        if plain:
            self.pyramid = _SimplePyramid(name, self.features[0], settings["pyramid_channels"])
            self.features = tuple(FeatureSpec(settings["pyramid_channels"], stride) for stride in PYRAMID)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.encoder(images)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2).contiguous() for one in maps]
        return maps if self.pyramid is None else self.pyramid(maps[0])


class _SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid: one map -> maps of strides 4, 8, 16, 32, each 1x1 and 3x3 convolved."""

    def __init__(self, name: str, source: FeatureSpec, channels: int) -> None:
        super().__init__()
        if source.stride not in PYRAMID:
            raise ModelError(f"backbone {name!r}: stride {source.stride} has no pyramid; use a patch size of {PYRAMID}")
        self.levels = nn.ModuleList(_pyramid_level(source, channels, stride) for stride in PYRAMID)

    def forward(self, one: torch.Tensor) -> list[torch.Tensor]:
        return [level(one) for level in self.levels]


def _pyramid_level(source: FeatureSpec, channels: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width, at = source.channels, source.stride
    while at > stride:
        layers += [nn.ConvTranspose2d(width, width // 2, 2, stride=2), LayerNorm2d(width // 2), nn.GELU()]
        width, at = width // 2, at // 2
    if at < stride:
        layers.append(nn.MaxPool2d(stride // at))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


@functools.lru_cache
def _probe(name: str) -> tuple[tuple[int, ...], bool]:
    """Return the strides of a timm model's maps and whether it is built for one image size; allocates no weights."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, features_only=True)
    except (RuntimeError, ValueError, AttributeError, NotImplementedError, TypeError) as error:
        raise ModelError(f"backbone 'tu-{name}': timm gives no feature maps of it ({error}); use another") from error
    embed = getattr(getattr(model, "model", model), "patch_embed", None)
    info: Any = model.feature_info
    return tuple(info.reduction()), getattr(embed, "img_size", None) is not None


def _create(name: str, bands: Bands, weights: str | None, options: dict[str, Any]) -> Any:
    """Create a timm feature extractor; options are those of `timm.create_model`."""

    def make(channels: int, **pretrained: Any) -> Any:
        return timm.create_model(name[3:], features_only=True, in_chans=channels, **options, **pretrained)

    def imagenet() -> State:
        return dict(make(len(RGB), pretrained=True).state_dict())

    def load(channels: int, state: State) -> State:
        # timm's own loader renames old checkpoints and resamples position embeddings; the stem is left to us
        known = timm.get_pretrained_cfg(name[3:])
        size = known.input_size[1:] if known else (224, 224)
        overlay = {"state_dict": state, "first_conv": None, "input_size": (channels, *size)}
        return dict(make(channels, pretrained=True, pretrained_cfg_overlay=overlay).state_dict())

    return _started(name, bands, weights, make, imagenet, load)


def _started(
    name: str,
    bands: Bands,
    weights: str | None,
    make: Callable[[int], Any],
    imagenet: Callable[[], State],
    load: Callable[[int, State], State],
) -> Any:
    """Make an encoder for `bands` and give it what it starts from."""
    try:
        target = make(count_of(bands))
        if weights is None:
            return target
        stem = stem_of(make, count_of(bands))
        if weights == "imagenet":
            transfer(imagenet(), target, stem, RGB, bands)
            return target
        start = read_start(name, weights)
        own = target.state_dict()
        if start.bands and isinstance(bands, int):
            raise ModelError(f"backbone {name!r}: weights {weights} need the names of the bands, not only their number")
        channels = source_channels(start, own, stem)
        if channels not in (len(RGB), count_of(bands)) and not start.bands:
            raise ModelError(
                f"backbone {name!r}: weights {weights} take {channels} bands; a file must take 3 (red, green, blue) or "
                f"the model's own {count_of(bands)} in their order"
            )
        given = start.bands or (bands if channels == count_of(bands) else RGB)
        source = load(channels, as_plain(start.state, own))
        check_taken(name, weights, start, source)
        transfer(source, target, stem, given, bands)
    except _FAILURES as error:
        raise _no_weights(name, weights, error) from error
    return target


def _no_weights(name: str, weights: str | None, error: Exception) -> ModelError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if weights is None:
        return ModelError(f"backbone {name!r} cannot be built: {first}")
    return ModelError(
        f"backbone {name!r}: weights {weights!r} cannot be had: {first}; "
        "connect to the internet once (they stay in the hub's cache), name a .safetensors file, or set weights: null"
    )


def _check_features(backbone: nn.Module, name: str, bands: int, image_size: int) -> None:
    """Run one image and compare: a wrong declaration would surface only in the neck, as a shape error."""
    training = backbone.training
    try:
        with torch.inference_mode():
            maps = backbone.eval()(torch.zeros(1, bands, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(f"backbone {name!r} fails on {bands} x {image_size} x {image_size}: {error}") from error
    finally:
        backbone.train(training)
    real = [FeatureSpec(one.shape[1], image_size // one.shape[2]) for one in maps]
    declared: tuple[FeatureSpec, ...] = backbone.features  # type: ignore[assignment]
    if real != list(declared):
        raise ModelError(f"backbone {name!r} declares {list(declared)} but returns {real}; use another")
