"""`TrainConfig`: the configuration file of a training, parsed once; `configs/training/` holds tested examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.config import Section, read_tree, validated
from pipeline.models.card import Part
from pipeline.training.augment import AugmentParams

SplitKind = Literal["published", "random", "blocks"]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


class Source(Section):
    """The labelled events: one or several folders of one format, class level, and metres a pixel to train at.

    `resolution` may be a whole multiple of the data's own: ForestNet's 15 m archive trains a model for 30 m scenes.
    `search_leaks` looks for what gives labels away first; turn it off where the same data were searched before.
    """

    path: Annotated[tuple[Path, ...], BeforeValidator(_listed, json_schema_input_type=Path | tuple[Path, ...])]
    level: Literal["merged", "fine"] = "merged"
    resolution: float | None = Field(None, gt=0)
    search_leaks: bool = True


class Split(Section):
    """How events are divided: as published, at random, or by blocks of land `km` wide; shares of train, val, test."""

    kind: SplitKind = "published"
    km: float = Field(100.0, gt=0)
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)
    seed: int = 0

    @field_validator("shares")
    @classmethod
    def _whole(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"{shares} must be three positive shares that sum to 1")
        return shares


class Architecture(Section):
    """Backbone, neck and head by name with their settings; `clearcause models show` prints what they make."""

    backbone: Part = Part(name="efficientnet-b2")
    neck: Part = Part(name="fpn")
    head: Part = Part(name="linear")


class Fusion(Section):
    """Late fusion: a region head on statistics of an event's logits and on auxiliary predictors.

    `auxiliary`: names of predictors, or `all`, or none. Off unless `enabled`.
    """

    enabled: bool = False
    statistics: bool = True
    auxiliary: Literal["all"] | tuple[str, ...] = ()
    hidden: int = Field(128, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class Pretraining(Section):
    """Land-cover pre-training: segmentation of `classes` on `image` (lists pair up); only backbone and neck go on.

    Class rasters are read on the image's grid, nearest neighbour; codes in `ignore` and the nodata value carry no
    label. Images are DN with the scale and offset of Collection 2, 0 = not observed, bands in the data set's order.
    """

    image: Annotated[tuple[Path, ...], BeforeValidator(_listed)]
    classes: Annotated[tuple[Path, ...], BeforeValidator(_listed)]
    ignore: tuple[int, ...] = (0,)
    steps: int = Field(300, ge=1)
    lr: float = Field(5e-4, gt=0)

    @model_validator(mode="after")
    def _paired(self) -> Pretraining:
        if len(self.image) != len(self.classes) or not self.image:
            raise ValueError(f"{len(self.image)} images for {len(self.classes)} class rasters; give as many of each")
        return self


class EarlyCrops(Section):
    """Smaller crops in larger batches for the first `share` of the course: a network from random weights learns so."""

    crop: int = Field(128, ge=32, multiple_of=32)
    batch: int = Field(16, ge=1)
    share: float = Field(0.7, gt=0, lt=1)


class Course(Section):
    """The course of training.

    Attributes:
        steps: optimiser steps; the learning rate warms up, then falls as a cosine to a hundredth at the last of them.
        validations: how often to judge the validation events, evenly spread; the best state is kept.
        patience: validations without a better macro-F1 before training ends early.
        minutes: wall-clock limit; where it binds, the outcome depends on the machine's speed, and the card says so.
        crop, batch: pixels a side and crops a step; `early` may put smaller crops first.
        lr, warmup, weight_decay: AdamW; `layer_decay` multiplies the rate from each stage of the backbone to the one
            before it; `freeze` keeps `backbone` or the first k `stages` as they are.
        event_weight: weight of the cross-entropy of events beside that of their pixels.
        label_smoothing: of both.
        class_weights: `balanced` weighs classes by the inverse of their share.
        sampling: `even` draws each class as often, `natural` each event.
        scenes: `random` is scene data augmentation: the composite or any single scene per draw.
        average: decay of the exponential average of the weights, which is what is kept; 0 = none.
        precision: Lightning's: 32-true on a CPU, bf16-mixed or 16-mixed on a GPU.
        accelerator, devices: Lightning's; several GPUs train in step (DDP).
        workers: processes that prepare crops, 0 = this one. `threads`: of torch, None = its own choice.
        cache_mb: images kept in memory.
    """

    steps: int = Field(2000, ge=1)
    validations: int = Field(10, ge=1)
    patience: int = Field(10, ge=1)
    minutes: float | None = Field(None, gt=0)
    crop: int = Field(160, ge=32, multiple_of=32)
    batch: int = Field(16, ge=1)
    early: EarlyCrops | None = None
    lr: float = Field(1e-3, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    freeze: Literal["none", "backbone"] | Annotated[int, Field(ge=1)] = "none"
    event_weight: float = Field(0.5, ge=0)
    label_smoothing: float = Field(0.02, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["even", "natural"] = "even"
    scenes: Literal["composite", "random"] = "composite"
    average: float = Field(0.998, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    workers: int = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)
    cache_mb: int = Field(2000, ge=16)


class PatchChoice(Section):
    """Patch the model is to run with: pixels a side and distance of neighbours."""

    size: int = Field(256, ge=32, multiple_of=32)
    stride: int = Field(192, ge=1)


class TrainOutput(Section):
    """The model package to write, and what its card says; `half` stores weights as float16."""

    package: Path
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    version: str = "1.0.0"
    description: str = ""
    half: bool = False


class TrainConfig(Section):
    """One training: data, parts, method, course, package."""

    dataset: Source
    split: Split = Split()
    architecture: Architecture = Architecture()
    fusion: Fusion = Fusion()
    pretraining: Pretraining | None = None
    augment: AugmentParams = AugmentParams()
    training: Course = Course()
    patch: PatchChoice = PatchChoice()
    calibration: Literal["auto", "temperature", "vector", "none"] = "auto"
    seed: int = 0
    output: TrainOutput

    @property
    def work(self) -> Path:
        """Folder of checkpoints and logs, beside the package."""
        return self.output.package.with_name(self.output.package.name + ".work")


def load_training(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """Read a YAML file, apply `KEY=VALUE` overrides and check it; relative paths start at the file's folder.

    Raises ConfigError: one line for the first fault, naming the file, the key and the remedy.
    """
    config = validated(TrainConfig, read_tree(path, overrides), str(path))
    base = path.resolve().parent
    update: dict[str, Any] = {
        "dataset": config.dataset.model_copy(update={"path": tuple(_fix(base, p) for p in config.dataset.path)}),
        "output": config.output.model_copy(update={"package": _fix(base, config.output.package)}),
    }
    if (told := config.pretraining) is not None:
        rasters = {key: tuple(_fix(base, p) for p in getattr(told, key)) for key in ("image", "classes")}
        update["pretraining"] = told.model_copy(update=rasters)
    return config.model_copy(update=update)


def _fix(base: Path, path: Path) -> Path:
    return (base / path.expanduser()).resolve()
