"""The region head: an event's logits from the statistics of its pixels and auxiliary predictors (late fusion).

After FusionNet (Irvin et al. 2020): Linear(., 128) ReLU Dropout, twice, then Linear(128, classes). Ours differs in two
things. Its output is added to the mean logits and its last layer starts at zero: an untrained head is "no fusion", so
that late fusion has to earn every change it makes, which matters with some thousand events. And a missing predictor is
the training mean plus an input that says so; a zero would be a value.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipeline.artifacts import write_bytes
from pipeline.errors import ModelError
from pipeline.models.card import CARD_FILE, REACH, REGION_FILE, ModelCard, RegionParams, RegionSpec, read_card
from pipeline.models.region_store import read_region_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

STATISTICS = ("mean", "std", "min", "max")
"""Order of the statistics in a row of features: all classes' means, then all their standard deviations, ..."""


class RegionHead(nn.Module):
    """Statistics [n, 4 * classes] and raw predictors [n, columns], NaN = missing -> logits [n, classes]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, params: RegionParams, classes: int) -> None:
        super().__init__()
        self.params, self.classes = params, classes
        columns = params.auxiliary
        # the card owns these numbers, so they are no weights
        self.register_buffer("mean", torch.tensor([c.mean for c in columns], dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.tensor([c.std for c in columns], dtype=torch.float64), persistent=False)
        inputs = classes * (len(STATISTICS) if params.statistics else 1) + 2 * len(columns)
        last = nn.Linear(params.hidden, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(inputs, params.hidden), nn.ReLU(), nn.Dropout(params.dropout),
            nn.Linear(params.hidden, params.hidden), nn.ReLU(), nn.Dropout(params.dropout), last,
        )  # fmt: skip

    def forward(self, statistics: torch.Tensor, auxiliary: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits; raises ModelError where the inputs are not those of the parameters."""
        columns = len(self.params.auxiliary)
        given = 0 if auxiliary is None else auxiliary.shape[-1]
        if statistics.ndim != 2 or statistics.shape[1] != len(STATISTICS) * self.classes or given != columns:
            raise ModelError(
                f"region head of {self.classes} classes and {columns} auxiliary columns: got statistics "
                f"{tuple(statistics.shape)} and {given} columns; give [events, {len(STATISTICS) * self.classes}] and "
                f"{[c.name for c in self.params.auxiliary]}"
            )
        means = statistics[:, : self.classes]
        parts = [statistics if self.params.statistics else means]
        if auxiliary is not None and columns:
            parts += self._standardised(auxiliary, statistics.dtype)
        fused: torch.Tensor = means + self.layers(torch.cat(parts, dim=1))
        return fused

    def _standardised(self, auxiliary: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        missing = ~torch.isfinite(auxiliary)
        values = ((auxiliary.to(self.mean.dtype) - self.mean) / self.std).clamp(-REACH, REACH)
        return [torch.where(missing, 0.0, values).to(dtype), missing.to(dtype)]


def region_features(logits: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Pixel logits [n, k] and the event int64 [n] (0..count-1) of each -> statistics [count, 4 * k], as STATISTICS.

    Gradients flow through the means only; the others are detached, as published. The standard deviation is that of the
    population, 0 for one pixel. An event without a pixel is NaN: leave it out of the loss.
    """
    # half precision cannot count to the pixels of an event
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    where = index.unsqueeze(1).expand_as(logits)
    pixels = torch.zeros(count, dtype=logits.dtype, device=logits.device).index_add(
        0, index, logits.new_ones(len(index))
    )
    pixels = pixels.unsqueeze(1)
    mean = logits.new_zeros(count, logits.shape[1]).index_add(0, index, logits) / pixels
    with torch.no_grad():
        away = (logits - mean[index]) ** 2
        std = torch.sqrt(logits.new_zeros(mean.shape).index_add(0, index, away) / pixels)
        empty = torch.full_like(mean, torch.nan)
        low = empty.scatter_reduce(0, where, logits, "amin", include_self=False)
        high = empty.scatter_reduce(0, where, logits, "amax", include_self=False)
    return torch.cat([mean, std, low, high], dim=1)


def write_region(folder: Path, head: RegionHead) -> RegionSpec:
    """Write `region.safetensors` (float32) into a package's folder; return what belongs into its card as `region`.

    Write it before the card, whose digest vouches for it; raises ModelError where the folder cannot take it.
    """
    content, spec = _packed(head)
    _write(folder, content)
    return spec


def _packed(head: RegionHead) -> tuple[bytes, RegionSpec]:
    state = {name: value.detach().cpu().float().contiguous() for name, value in head.state_dict().items()}
    content: bytes = save(state)
    settings = head.params.model_dump(exclude={"sha256"})
    return content, RegionSpec(**settings, sha256=hashlib.sha256(content).hexdigest())


def _write(folder: Path, content: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / REGION_FILE, content)
    except OSError as error:
        raise ModelError(f"model {folder} cannot be written: {error}") from error


def attach_region(package: Path, head: RegionHead, fields: Mapping[str, Any] | None = None) -> ModelCard:
    """Give a package on disk a region head; `fields` are other keys of its card to replace.

    A calibration, scores and an error matrix measured without the head do not hold with it: they go, unless `fields`
    has new ones.
    Raises ModelError for a head of other classes or an unsound card.
    """
    card = read_card(package)
    if head.classes != len(card.scheme):
        raise ModelError(f"model {package}: has {len(card.scheme)} classes, the region head {head.classes}")
    content, spec = _packed(head)
    kept = card.model_dump(mode="json", exclude={"calibration", "scores", "error_matrix"})
    try:
        tree = {**kept, **(fields or {}), "region": spec.model_dump(mode="json")}
        made = ModelCard.model_validate(tree)
    except ValueError as error:
        raise ModelError(f"model card of {package}: {'; '.join(str(error).splitlines()[:4])}") from error
    _write(package, content)
    write_bytes(package / CARD_FILE, (made.model_dump_json(indent=1) + "\n").encode())
    return made


def load_region(package: Path, card: ModelCard) -> RegionHead:
    """Return a package's region head, eval mode, float32; raises ModelError where file, digest or shapes do not fit."""
    if card.region is None:
        raise ModelError(f"model {package}: its card has no region head")
    content = read_region_bytes(package, card.region)
    try:
        state = load(content)
    except SafetensorError as error:
        raise ModelError(f"region head {package / REGION_FILE} is no safetensors file: {error}") from error
    head = RegionHead(card.region, len(card.scheme))
    wanted = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != given:
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ModelError(
            f"region head {package / REGION_FILE}: does not fit the card, first at {odd[0]} "
            f"({given.get(odd[0], 'absent')}, the card asks for {wanted.get(odd[0], 'none')}); statistics, auxiliary, "
            "hidden and labels of the card must be those of training"
        )
    head.load_state_dict(state)
    return head.eval()


def verify_region(package: Path, card: ModelCard) -> None:
    """Check digest, shapes, and that one row with everything missing gives finite logits; raises ModelError."""
    statistics = np.zeros((1, len(STATISTICS) * len(card.scheme)))
    columns = len(card.region.auxiliary) if card.region else 0
    fused_logits(package, card, statistics, np.full((1, columns), np.nan))


def fused_logits(
    package: Path, card: ModelCard, statistics: NDArray[np.float64], auxiliary: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Statistics [n, 4 * classes] and raw predictors [n, columns], NaN = missing -> float64 logits [n, classes].

    Computed in float64, far finer than the digits that are published, so that threads and batches cannot show.
    Raises ModelError where the head cannot be loaded or gives no finite answer.
    """
    head = load_region(package, card).double()
    with torch.inference_mode():
        # copied: arrays that come out of a table may be read-only, which torch warns about
        fused = head(*(torch.tensor(part, dtype=torch.float64) for part in (statistics, auxiliary)))
    result: NDArray[np.float64] = fused.numpy()
    if not np.isfinite(result).all():
        raise ModelError(f"region head {package / REGION_FILE}: gives logits that are not finite; train it again")
    return result
