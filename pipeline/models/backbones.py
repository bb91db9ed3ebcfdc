"""Backbones by name: SMP's own encoders (`efficientnet-b2`), and any timm model as `tu-<timm name>`.

Names are segmentation-models-pytorch's. Plain vision transformers, whose maps all have one stride, get
ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527) of strides 4, 8, 16 and 32.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.norm import LayerNorm2d
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.card import Part
from pipeline.models.contracts import FeatureSpec, closest, read_settings

SETTINGS: dict[str, Any] = {"weights": None, "drop_path": 0.0, "image_size": 256, "pyramid_channels": 256}
"""`weights`: None, 'imagenet' or a .safetensors file. `image_size`: only transformers with a fixed size look at
it. `pyramid_channels`: plain vision transformers only. `drop_path`: stochastic depth while training."""

PYRAMID = (4, 8, 16, 32)
_SMP_NAMES = frozenset(name for name in smp.encoders.get_encoder_names() if not name.startswith("timm-"))


def backbone_names() -> list[str]:
    """Return every known name; timm's carry the prefix `tu-`."""
    return sorted(_SMP_NAMES) + [f"tu-{name}" for name in timm.list_models()]


def build_backbone(part: Part, bands: int) -> nn.Module:
    """Build the named encoder for images [N, bands, H, W]; the module declares `features` (see contracts.Backbone).

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
    _check_features(backbone, part.name, bands, settings["image_size"])
    return backbone


class _Smp(nn.Module):
    """An encoder of segmentation-models-pytorch, without its first "map", which is the image itself."""

    def __init__(self, name: str, bands: int, settings: dict[str, Any]) -> None:
        super().__init__()
        weights = settings["weights"]
        local = weights not in (None, "imagenet")
        try:
            encoder = smp.encoders.get_encoder(
                name, in_channels=3 if local else bands, weights=None if local else weights
            )
            if local:
                encoder.load_state_dict(_read_weights(name, weights))
                encoder.set_in_channels(bands, pretrained=True)
        except (OSError, HfHubHTTPError, KeyError, RuntimeError) as error:
            raise _no_weights(name, weights, error) from error
        if hasattr(encoder, "_drop_connect_rate"):
            # SMP's EfficientNet has no argument for it; its 0.2 slows a short training from random weights
            encoder._drop_connect_rate = settings["drop_path"]
        channels = list(encoder.out_channels)[1:]
        specs = [FeatureSpec(count, 2 ** (level + 1)) for level, count in enumerate(channels)]
        self._keep = [level for level, spec in enumerate(specs) if spec.channels > 0]
        self.features = tuple(specs[level] for level in self._keep)
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.encoder(images)[1:]
        return [maps[level] for level in self._keep]


class _Timm(nn.Module):
    """A timm model as a list of maps [N, C, H, W], whatever its own layout."""

    def __init__(self, name: str, bands: int, settings: dict[str, Any]) -> None:
        super().__init__()
        strides, sized = _probe(name[3:])
        plain = len(set(strides)) == 1
        options: dict[str, Any] = {"drop_path_rate": settings["drop_path"]} if settings["drop_path"] else {}
        if sized:
            options["img_size"] = settings["image_size"]
        if plain:
            options.update(out_indices=(-1,), **({"dynamic_img_size": True} if sized else {}))
        else:
            options["out_indices"] = tuple(k for k, stride in enumerate(strides) if stride > 1)
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


def _create(name: str, bands: int, weights: str | None, options: dict[str, Any]) -> Any:
    """Create a timm feature extractor; timm itself adapts the first convolution to `bands`."""
    overlay = None
    if weights not in (None, "imagenet"):
        _read_weights(name, str(weights))
        overlay = {"file": str(weights)}
    try:
        model: Any = timm.create_model(
            name[3:],
            features_only=True,
            in_chans=bands,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except (OSError, HfHubHTTPError, RuntimeError, ValueError, TypeError) as error:
        raise _no_weights(name, weights, error) from error
    if overlay is not None:
        _check_overlap(name, str(weights), model)
    return model


def _check_overlap(name: str, weights: str, model: nn.Module) -> None:
    """Refuse a file of another network: timm loads features non-strictly and would stay at random weights."""
    own = {key.removeprefix("model."): value.shape for key, value in model.state_dict().items()}
    given = {key.replace("stages.", "stages_"): value.shape for key, value in _read_weights(name, weights).items()}
    fitting = sum(given.get(key.replace("stages.", "stages_")) == shape for key, shape in own.items())
    if fitting < len(own) / 2:
        raise ModelError(f"backbone {name!r}: weights {weights} fit only {fitting} of {len(own)} tensors; wrong file")


def _read_weights(name: str, weights: str) -> dict[str, torch.Tensor]:
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(
            f"backbone {name!r}: weights {weights!r} must be null, 'imagenet' or an existing .safetensors file"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"backbone {name!r}: weights {path} are no readable safetensors file: {error}") from error


def _no_weights(name: str, weights: str | None, error: Exception) -> ModelError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if weights is None:
        return ModelError(f"backbone {name!r} cannot be built: {first}")
    return ModelError(
        f"backbone {name!r}: weights {weights!r} cannot be had: {first}; "
        "connect to the internet once (they stay in the hub cache), name a .safetensors file, or set weights: null"
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
