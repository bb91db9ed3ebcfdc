"""The training core: crops of labelled images -> a network. Plain torch, one process, the same seed the same weights.

What lets an EfficientNet learn from random weights within a few thousand steps: small crops in large batches
first and crops of the patch size last, no stochastic depth, AdamW with warm-up and cosine decay, an
exponential average of the weights, and batch-norm statistics measured anew for the averaged weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from pipeline.errors import InputError
from pipeline.models.network import Network, build_network
from pipeline.training.crops import IGNORE, Crop, CropSampler, TrainingImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.labels import LabelScheme
    from pipeline.models.card import Part

_RESERVE = 0.93
"""Share of `minutes` for the steps; the rest is for batch-norm statistics and the last validation."""


@dataclass(frozen=True)
class NetworkParts:
    """The parts of the network to train, as they will stand in its card."""

    backbone: Part
    neck: Part
    head: Part


@dataclass(frozen=True)
class FitParams:
    """Parameters of `fit`.

    Attributes:
        steps: optimiser steps; the learning rate has run its course after them or after `minutes`.
        minutes: wall-clock limit of the whole call, to within its last validation. Where it binds, the outcome
            depends on the machine's speed.
        crop, batch: crop size in pixels and crops per step of the last stage.
        early_crop, early_batch, early_share: the same for the first share of the course.
        lr: highest learning rate, after `warmup` (share of the course).
        weight_decay: AdamW's, on weights of two or more dimensions only.
        event_weight: weight of the cross-entropy of events (on mean logits) beside that of pixels.
        label_smoothing: of both cross-entropies.
        average: decay of the exponential average of the weights.
        calibration_batches: crops x batch used to measure batch-norm statistics.
        validations: how often to validate, the end included, on at most `validation_events` events.
        seed, threads: random seed; torch threads (see training/environment.py before using more than one).
        report_every: steps between progress lines.
    """

    steps: int = 3000
    minutes: float = 35.0
    crop: int = 256
    batch: int = 6
    early_crop: int = 128
    early_batch: int = 16
    early_share: float = 0.7
    lr: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    event_weight: float = 0.5
    label_smoothing: float = 0.02
    average: float = 0.998
    calibration_batches: int = 40
    validations: int = 4
    validation_events: int = 200
    seed: int = 0
    threads: int = 2
    report_every: int = 50


@dataclass(frozen=True)
class Progress:
    """One line of the history: mean training `loss` since the last line; `accuracy` of validation events or None."""

    step: int
    seconds: float
    loss: float
    accuracy: float | None = None


@dataclass(frozen=True)
class FitResult:
    """The trained `network` (averaged weights, eval mode, CPU); `mean` and `std` of each band for its card."""

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: tuple[Progress, ...]
    steps: int
    seconds: float


def fit(
    images: Sequence[TrainingImage],
    validation: Sequence[TrainingImage],
    parts: NetworkParts,
    scheme: LabelScheme,
    params: FitParams,
    report: Callable[[str], None] = print,
) -> FitResult:
    """Train a network on labelled images; raises InputError where they hold no event or differ in bands.

    `validation` only measures: nothing is chosen by it. The global random state of torch is left as it was.
    """
    if not images or len({len(image.image) for image in images}) != 1:
        raise InputError("training images must be at least one, all with the same bands")
    threads = torch.get_num_threads()
    torch.set_num_threads(params.threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(params.seed)
            mean, std = band_statistics(images)
            network = build_network(parts.backbone, parts.neck, parts.head, len(mean), len(scheme))
            run = _Run(network, (mean, std), params, CropSampler(images, scheme, params.seed))
            if validation:
                run.held_out = CropSampler(validation, scheme, params.seed)
            return run.train(report)
    finally:
        torch.set_num_threads(threads)


def band_statistics(images: Sequence[TrainingImage]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band over the observed pixels (every third row and column)."""
    means, stds = [], []
    for band in range(len(images[0].image)):
        values = np.concatenate([image.image[band, ::3, ::3].ravel() for image in images]).astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size == 0 or values.std() == 0:
            raise InputError(f"training images: band {band} is empty or constant; check the bands and their scaling")
        means.append(round(float(values.mean()), 6))
        stds.append(round(float(values.std()), 6))
    return tuple(means), tuple(stds)


@dataclass
class _Run:
    """One training: the network and its average, the optimiser, the crops."""

    network: Network
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    params: FitParams
    crops: CropSampler
    held_out: CropSampler | None = None
    history: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = list(self.network.parameters())
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": self.params.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=self.params.lr)
        self._averaged = AveragedModel(self.network, avg_fn=self._average)
        self._mean, self._std = (torch.tensor(v).view(1, -1, 1, 1) for v in self.statistics)
        self._began = time.monotonic()

    def train(self, report: Callable[[str], None]) -> FitResult:
        """Run the course and return its result."""
        params, losses, step = self.params, [], 0
        checks = [(k + 1) / params.validations for k in range(params.validations - 1)]
        while (course := self._course(step)) < 1:
            losses.append(self._step(course))
            step += 1
            check = bool(checks) and course >= checks[0]
            if check or step % params.report_every == 0:
                checks = checks[1:] if check else checks
                self._tell(step, losses, self._validate() if check else None, report)
                losses = []
        accuracy = self._validate()
        self._tell(step, losses, accuracy, report)
        network = cast("Network", self._averaged.module).cpu().eval()
        return FitResult(network, *self.statistics, tuple(self.history), step, time.monotonic() - self._began)

    def _course(self, step: int) -> float:
        """Return how much of the course is done, 0..1, by steps or by the clock, whichever is further."""
        elapsed = time.monotonic() - self._began
        return max(step / self.params.steps, elapsed / (60 * self.params.minutes * _RESERVE))

    def _step(self, course: float) -> float:
        params = self.params
        early = course < params.early_share
        size, count = (params.early_crop, params.early_batch) if early else (params.crop, params.batch)
        for group in self._optimizer.param_groups:
            group["lr"] = params.lr * _rate(course, params.warmup)
        crops = [self.crops.draw(size) for _ in range(count)]
        self.network.train()
        loss = _loss(self.network(self._inputs(crops)), crops, params)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self._optimizer.step()
        self._averaged.update_parameters(self.network)
        return float(loss.detach())

    def _average(self, old: torch.Tensor, new: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        # the first steps count little: an average over them would hold on to the random start
        decay = min(self.params.average, (1 + float(count)) / (10 + float(count)))
        return torch.lerp(old, new.to(old.dtype), 1 - decay)

    def _inputs(self, crops: Sequence[Crop]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([crop.image for crop in crops]))
        inputs = torch.nan_to_num((stacked - self._mean) / self._std, nan=0.0, posinf=0.0, neginf=0.0)
        return inputs.to(self._device).contiguous(memory_format=torch.channels_last)

    def _calibration(self) -> Iterator[torch.Tensor]:
        for _ in range(self.params.calibration_batches):
            yield self._inputs([self.crops.draw(self.params.crop) for _ in range(self.params.batch)])

    def _validate(self) -> float | None:
        """Measure the average's batch-norm statistics, then the share of held-out events it names rightly."""
        update_bn(self._calibration(), self._averaged)
        if self.held_out is None:
            return None
        events, wanted = self.held_out.events, self.params.validation_events
        chosen = [events[k] for k in np.unique(np.linspace(0, len(events) - 1, min(wanted, len(events))).astype(int))]
        self._averaged.eval()
        right = 0
        with torch.inference_mode():
            for event in chosen:
                crop = self.held_out.centred(event, self.params.crop)
                inside = torch.from_numpy((crop.events == event.number) & (crop.target != IGNORE))
                logits = self._averaged(self._inputs([crop]))[0].cpu()
                right += bool(inside.any()) and int(logits[:, inside].mean(1).argmax()) == event.label
        return right / len(chosen)

    def _tell(self, step: int, losses: list[float], accuracy: float | None, report: Callable[[str], None]) -> None:
        line = Progress(step, time.monotonic() - self._began, float(np.mean(losses)) if losses else math.nan, accuracy)
        self.history.append(line)
        told = "" if accuracy is None else f"  validation events right {accuracy:.1%}"
        report(f"step {step}/{self.params.steps}  {line.seconds:.0f} s  loss {line.loss:.4f}{told}")


def _rate(course: float, warmup: float) -> float:
    """Return the share of the highest learning rate: linear warm-up, then a cosine down to a hundredth."""
    if course < warmup:
        return max(course / warmup, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (course - warmup) / (1 - warmup)))


def _loss(logits: torch.Tensor, crops: Sequence[Crop], params: FitParams) -> torch.Tensor:
    """Cross-entropy of labelled pixels, plus that of each event's mean logits over its labelled pixels."""
    target = torch.from_numpy(np.stack([crop.target for crop in crops])).to(logits.device)
    events = torch.from_numpy(np.stack([crop.events for crop in crops])).to(logits.device)
    labelled = target != IGNORE
    if not bool(labelled.any()):
        return logits.sum() * 0.0
    scores, labels = logits.permute(0, 2, 3, 1)[labelled].float(), target[labelled]
    smoothing = params.label_smoothing
    loss = functional.cross_entropy(scores, labels, label_smoothing=smoothing)
    # an event number is unique within its crop only
    number = events + (events.max() + 1) * torch.arange(len(crops), device=events.device).view(-1, 1, 1)
    number = torch.where(events > 0, number, -1)[labelled]
    inside = number >= 0
    if params.event_weight and bool(inside.any()):
        _, which = torch.unique(number[inside], return_inverse=True)
        count = int(which.max()) + 1
        sums = scores.new_zeros(count, scores.shape[1]).index_add(0, which, scores[inside])
        one_hot = functional.one_hot(labels[inside], scores.shape[1]).to(scores.dtype)
        votes = torch.zeros_like(sums).index_add(0, which, one_hot)
        means = sums / votes.sum(1, keepdim=True)
        loss = loss + params.event_weight * functional.cross_entropy(means, votes.argmax(1), label_smoothing=smoothing)
    return loss
