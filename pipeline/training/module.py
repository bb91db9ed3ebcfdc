"""The network in training, as a Lightning module: crops in, cross-entropy of pixels and of events out.

Pixels outside labelled events carry no loss. An event's logits are the mean over its pixels, or what the region head
makes of their statistics and of auxiliary predictors; the module judges by whole events as a run does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning
import torch
import torch.nn.functional as functional

from pipeline.models.parameters import parameter_groups
from pipeline.models.region import region_features
from pipeline.training.datasets.base import IGNORE

if TYPE_CHECKING:
    from pipeline.models.card import Scaling
    from pipeline.models.network import Network
    from pipeline.models.region import RegionHead
    from pipeline.training.augment import Augment
    from pipeline.training.params import Course

MONITOR = "val_macro_f1"


@dataclass(frozen=True)
class Knowledge:
    """What the module knows beside the pixels.

    Attributes:
        scaling: how reflectance becomes input.
        labels: int64 [rows], class index of each event of the table.
        auxiliary: float64 [rows, columns], NaN = missing; no columns without late fusion.
        class_weights: float32 [classes].
        seed: of augmentation and drop-out.
    """

    scaling: Scaling
    labels: torch.Tensor
    auxiliary: torch.Tensor
    class_weights: torch.Tensor
    seed: int = 0


class DriverModule(lightning.LightningModule):
    """Trains `network` (and the `region` head on top, if any) on batches of crops; see `Course` for the parameters."""

    def __init__(
        self, network: Network, region: RegionHead | None, knowledge: Knowledge, course: Course, augment: Augment
    ) -> None:
        super().__init__()
        self.network, self.region, self.augment = network, region, augment
        self.course, self.seed = course, knowledge.seed
        scaling = knowledge.scaling
        self.clip = scaling.clip
        self.register_buffer("mean", torch.tensor(scaling.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(scaling.std).view(1, -1, 1, 1), persistent=False)
        for name in ("labels", "auxiliary", "class_weights"):
            self.register_buffer(f"known_{name}", getattr(knowledge, name), persistent=False)
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reflectance [N, bands, H, W], NaN = not observed -> logits [N, classes, H, W]."""
        if self.clip is not None:
            images = images.clamp(*self.clip)
        inputs = (images - self.mean) / self.std  # type: ignore[operator]
        inputs = torch.nan_to_num(inputs, nan=0.0, posinf=0.0, neginf=0.0)
        logits: torch.Tensor = self.network(inputs.contiguous(memory_format=torch.channels_last))
        return logits

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:  # noqa: ARG002
        """Draw augmentation and drop-out anew from (seed, step, device): a resumed course goes on as it would have."""
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 1009 + self.global_rank)

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch of crops."""
        batch = self.augment(batch)
        loss = self._loss(self(batch["image"]), batch["target"], batch["events"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of labelled pixels, plus that of the events they belong to."""
        labelled = target != IGNORE
        if not bool(labelled.any()):
            return logits.sum() * 0.0
        scores, labels = logits.permute(0, 2, 3, 1)[labelled].float(), target[labelled]
        loss = self._cross_entropy(scores, labels)
        inside = (events > 0)[labelled]
        if self.course.event_weight and bool(inside.any()):
            # the same event may stand in two crops of a batch
            sample = torch.arange(len(events), device=events.device).view(-1, 1, 1).expand_as(events)
            keys = torch.stack([sample[labelled], events[labelled]], dim=1)[inside]
            found, index = torch.unique(keys, dim=0, return_inverse=True)
            rows = found[:, 1] - 1
            event_logits = self.event_logits(scores[inside], index, rows)
            loss = loss + self.course.event_weight * self._cross_entropy(event_logits, self.known_labels[rows])  # type: ignore[index]
        return loss

    def event_logits(self, scores: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Pixel logits [n, classes] and the event int64 [n] (0..) of each, with table `rows` -> [events, classes]."""
        features = region_features(scores, index, len(rows))
        if self.region is None:
            return features[:, : scores.shape[1]]
        auxiliary = self.known_auxiliary[rows]  # type: ignore[index]
        fused: torch.Tensor = self.region(features, auxiliary if auxiliary.shape[1] else None)
        return fused

    def _cross_entropy(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self.course.label_smoothing
        return functional.cross_entropy(scores, labels, self.known_class_weights, label_smoothing=smoothing)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------ judging

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> None:  # noqa: ARG002
        """Keep the logits of the events' pixels until all windows were seen."""
        events = batch["events"]
        inside = events > 0
        scores = self(batch["image"]).permute(0, 2, 3, 1)[inside].float()
        self._seen.append((events[inside] - 1, scores))

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and macro-F1 over events, and their cross-entropy."""
        rows, scores = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        if self.trainer.world_size > 1:
            rows, scores = self._gathered(rows), self._gathered(scores)
        found, index = torch.unique(rows, return_inverse=True)
        logits, labels = self.event_logits(scores, index, found), self.known_labels[found]  # type: ignore[index]
        best = logits.argmax(dim=1)
        self.log("val_loss", functional.cross_entropy(logits, labels), rank_zero_only=True)
        self.log("val_accuracy", (best == labels).float().mean(), rank_zero_only=True)
        self.log(MONITOR, macro_f1(best, labels, logits.shape[1]), prog_bar=True)

    def _gathered(self, own: torch.Tensor) -> torch.Tensor:
        """Join a tensor of a different length on each device."""
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, own.cpu())
        return torch.cat(parts).to(own.device)

    def configure_optimizers(self) -> Any:
        """AdamW with a rate for each stage of the backbone; linear warm-up, then a cosine down to a hundredth."""
        course = self.course
        groups = parameter_groups(self.network, course.lr, course.weight_decay, course.layer_decay)
        if self.region is not None:
            groups.append({"params": list(self.region.parameters()), "lr": course.lr, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=course.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step / course.steps, course.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate(done: float, warmup: float) -> float:
    """Return the share of the highest learning rate when the share `done` of the course is behind."""
    if done < warmup:
        return max(done / warmup, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def macro_f1(best: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean F1 over the classes that occur among int64 `best` [n] or `labels` [n]."""
    scores = []
    for k in range(classes):
        right = ((best == k) & (labels == k)).sum()
        either = (best == k).sum() + (labels == k).sum()
        if either:
            scores.append(2 * right / either)
    return torch.stack(scores).float().mean()


def moving_average(decay: float) -> Any:
    """Return the update of an exponential average whose first steps count little: it must let go of a random start."""

    def update(old: torch.Tensor, new: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        if not old.is_floating_point():
            return new
        slow = min(decay, (1 + float(count)) / (10 + float(count)))
        return torch.lerp(old, new.to(old.dtype), 1 - slow)

    return update
