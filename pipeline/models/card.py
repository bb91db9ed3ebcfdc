"""The model card (`model.json`): everything training decided. Owner of bands, scaling, patch and classes.

No torch here: planning, product and report read cards without loading a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.catalog.scene import BANDS
from pipeline.errors import ModelError
from pipeline.labels import LabelScheme

CARD_FILE = "model.json"
WEIGHTS_FILES = ("model.safetensors", "model.onnx")
REGION_FILE = "region.safetensors"
REACH = 5.0
"""Region heads take predictors within so many standard deviations of training's mean, as nothing was learnt beyond."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scaling(_Strict):
    """How pixel values become network input: reflectance = DN * scale + offset; input = (reflectance - mean) / std.

    With `clip`, reflectance is first limited to (lowest, highest).
    """

    offset: float = -0.2
    scale: float = 0.0000275
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[float, float] | None = None


class Part(_Strict):
    """A backbone, neck or head: its `name` and the settings that rebuild it."""

    name: str
    settings: dict[str, Any] = {}


class GraphSpec(_Strict):
    """How an imported ONNX graph is fed and what it answers.

    `layout` and `output_layout` (None: the same) are the order of axes. `output`: logits, or probabilities, whose
    logarithm is taken. `binary`: the one output channel is the score of the second of two classes. `output_name`
    picks one of several outputs.
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    output_layout: Literal["NCHW", "NHWC"] | None = None
    output: Literal["logits", "probabilities"] = "logits"
    output_name: str | None = None
    binary: bool = False


class PatchSpec(_Strict):
    """Patch `size` and `stride` in pixels, `resolution` in metres, as trained."""

    size: int = Field(256, ge=32, multiple_of=32)
    stride: int = Field(192, ge=1)
    resolution: float = Field(30.0, gt=0)


class Calibration(_Strict):
    """How event logits become probabilities, see `calibration.calibrated`; `ece` as measured on `split`.

    `temperature`: softmax(logits / temperature). `vector`: softmax(scale * logits + bias), one of each a class.
    """

    method: Literal["none", "temperature", "vector"] = "none"
    temperature: float = Field(1.0, gt=0)
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    ece: float | None = None
    split: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        if self.method == "vector" and (not self.scale or len(self.scale) != len(self.bias) or min(self.scale) <= 0):
            raise ValueError("calibration: method vector needs a positive scale and a bias for each class")
        if self.method != "vector" and (self.scale or self.bias):
            raise ValueError(f"calibration: scale and bias belong to method vector, not {self.method}")
        return self


class ErrorMatrix(_Strict):
    """Sample counts `counts[mapped class][reference class]` and the share of the mapped area of each class.

    What a stratified, error-adjusted area estimate needs (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    mapped_shares: tuple[float, ...]
    split: str
    n: int
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> ErrorMatrix:
        size = len(self.classes)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"error_matrix: counts must be {size} x {size}, rows mapped, columns reference")
        cells = [count for row in self.counts for count in row]
        if min(cells, default=0) < 0 or sum(cells) != self.n:
            raise ValueError(
                f"error_matrix: counts must not be negative and must sum to n = {self.n}, not {sum(cells)}"
            )
        shares = self.mapped_shares
        if len(shares) != size or min(shares, default=0) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"error_matrix: mapped_shares must be {size} shares that sum to 1, not {shares}")
        return self


class Score(_Strict):
    """One figure with its 95 % interval, the number of events `n` and the split it was measured on."""

    name: str
    value: float
    low: float
    high: float
    n: int
    split: str


class AuxiliaryColumn(_Strict):
    """One auxiliary predictor: column `name`, and `mean` and `std` of the values present in training, in its own unit.

    `measure` is how the column was sampled (see `pipeline.config.Auxiliary`); "" = not recorded, so not compared.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,60}$")
    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)
    measure: str = ""


class RegionParams(_Strict):
    """What builds a region head (late fusion): its inputs in order, the `hidden` width and the `dropout` share.

    `statistics` False leaves only the mean logits of an event, True adds their std, min and max.
    """

    statistics: bool = True
    auxiliary: tuple[AuxiliaryColumn, ...] = ()
    hidden: int = Field(128, ge=1, le=4096)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _distinct(self) -> RegionParams:
        names = [column.name for column in self.auxiliary]
        if len(set(names)) < len(names):
            raise ValueError(f"region.auxiliary {names}: a column is named twice")
        return self


class RegionSpec(RegionParams):
    """The region head of a package; `sha256` is that of `region.safetensors`."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelCard(_Strict):
    """Contents of `model.json`; see contract section 6. `sha256` is that of the weights file."""

    name: str
    version: str
    architecture: str
    backbone: Part
    neck: Part
    head: Part
    bands: tuple[str, ...]
    scaling: Scaling
    patch: PatchSpec = PatchSpec()
    graph: GraphSpec | None = None
    labels: tuple[dict[str, Any], ...]
    calibration: Calibration = Calibration()
    region: RegionSpec | None = None
    scores: tuple[Score, ...] = ()
    error_matrix: ErrorMatrix | None = None
    training_data: str
    simulated: bool
    licence: str
    description: str = ""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        if len(self.scaling.mean) != len(self.bands) or len(self.scaling.std) != len(self.bands):
            raise ValueError(f"scaling has {len(self.scaling.mean)} means for {len(self.bands)} bands")
        if min(self.scaling.std) <= 0:
            raise ValueError("scaling.std must be positive")
        if self.scaling.clip and self.scaling.clip[0] >= self.scaling.clip[1]:
            raise ValueError(f"scaling.clip {self.scaling.clip} must be (lowest, highest)")
        if self.graph and self.graph.binary and len(self.labels) != 2:
            raise ValueError(f"graph.binary means two classes, the card has {len(self.labels)}")
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown:
            raise ValueError(f"unknown bands {unknown}; known are {list(BANDS)}")
        if self.patch.stride > self.patch.size:
            raise ValueError("patch.stride must not exceed patch.size")
        names = tuple(label.get("name") for label in self.labels)
        if self.calibration.method == "vector" and len(self.calibration.scale) != len(names):
            raise ValueError(f"calibration has {len(self.calibration.scale)} scales for {len(names)} classes")
        if self.error_matrix and self.error_matrix.classes != names:
            raise ValueError(f"error_matrix is of the classes {self.error_matrix.classes}, the labels are {names}")
        return self

    @property
    def scheme(self) -> LabelScheme:
        """Label scheme in the order of the network's outputs."""
        return LabelScheme.from_list(list(self.labels))


def read_card(package: Path) -> ModelCard:
    """Read and check `model.json` of a package folder; raises ModelError naming the file and the fault."""
    path = package / CARD_FILE
    if not path.is_file():
        raise ModelError(f"model {package}: no {CARD_FILE} there; name the folder of a model package")
    try:
        card = ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        detail = "; ".join(str(error).splitlines()[:4])
        raise ModelError(f"model card {path}: {detail}") from error
    if not len(card.scheme):
        raise ModelError(f"model card {path}: no classes")
    return card
