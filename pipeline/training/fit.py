"""One training: a configuration and a data set to a network (and region head), by Lightning.

What is kept is the exponential average of the weights at the validation with the best macro-F1. Checkpoints and logs
lie beside the package; the same command goes on from the last checkpoint where one of the same configuration is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from pipeline.errors import InputError
from pipeline.models.card import AuxiliaryColumn, RegionParams, Scaling
from pipeline.models.heads import build_head
from pipeline.models.network import Network, build_network
from pipeline.models.parameters import freeze
from pipeline.models.region import RegionHead
from pipeline.models.weights import starting_scaling
from pipeline.training.augment import Augment
from pipeline.training.data import DriverData, band_statistics
from pipeline.training.landcover import LandCover, LandCoverStream
from pipeline.training.module import MONITOR, DriverModule, Knowledge, moving_average

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.models.card import Part
    from pipeline.models.contracts import FeatureSpec
    from pipeline.training.crops import Images
    from pipeline.training.datasets.base import DriverDataset
    from pipeline.training.division import Division
    from pipeline.training.params import Fusion, TrainConfig

_log = logging.getLogger(__name__)
_NOTES = (".*does not have many workers.*", ".*Consider increasing the value of the `num_workers`.*",
          ".*exists and is not empty.*", ".*`isinstance\\(treespec, LeafSpec\\)`.*", ".*IterableDataset.*",
          ".*no `val_dataloader`.*")  # fmt: skip
"""Advice of Lightning that does not hold here: crops are cut in this process on purpose, checkpoints are resumed."""


@dataclass(frozen=True)
class Fitted:
    """A trained `network` and `region` head (eval mode, CPU), its input `scaling`, and how the course went."""

    network: Network
    region: RegionHead | None
    scaling: Scaling
    steps: int
    best: float
    ended: str


def fit(config: TrainConfig, dataset: DriverDataset, division: Division) -> Fitted:
    """Train as configured; raises InputError where the data set cannot serve.

    The global random state of torch is left as it was.
    """
    course = config.training
    if course.threads:
        torch.set_num_threads(course.threads)
    # what it says on its own (devices, tips) is not about this training
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with torch.random.fork_rng(), warnings.catch_warnings():
        for note in _NOTES:
            warnings.filterwarnings("ignore", message=note)
        torch.manual_seed(config.seed)
        data = DriverData(dataset, division, course, config.seed)
        parts = config.architecture
        scaling = _scaling(parts.backbone, data.images)
        network = build_network(parts.backbone, parts.neck, parts.head, dataset.bands, len(dataset.scheme))
        _quicken_statistics(network)
        if config.pretraining is not None:
            _pretrain(config, network, len(dataset.bands))
        if course.freeze != "none":
            freeze(network, "backbone" if course.freeze == "backbone" else {"stages": course.freeze})
        region = region_head(config.fusion, dataset, division.train)
        module = DriverModule(
            network, region, _knowledge(config, dataset, division, scaling), course, Augment(config.augment)
        )
        trainer, kept = _trainer(config)
        trainer.fit(module, data, ckpt_path=_resume(config))
        best = _restore(module, kept)
    ended = _ended(trainer, config)
    return Fitted(network.eval(), region.eval() if region else None, scaling, trainer.global_step, best, ended)


def _quicken_statistics(network: Network) -> None:
    """Let running statistics follow the last ten batches.

    At EfficientNet's hundred, a short training is judged by the statistics of its random start (seen: one class for
    everything after 225 steps).
    """
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum is not None:
            part.momentum = max(part.momentum, 0.1)


def _scaling(backbone: Part, images: Images) -> Scaling:
    """Scale the input as the starting weights were trained on, where that is known, else by the training images."""
    known = starting_scaling(backbone.settings.get("weights"), images.dataset.bands)
    if known is not None:
        return known
    mean, std = band_statistics(images)
    return Scaling(mean=mean, std=std)


def region_head(fusion: Fusion, dataset: DriverDataset, train: NDArray[np.int64]) -> RegionHead | None:
    """Build an untrained region head, its auxiliary columns scaled by the training events; None where fusion is off.

    Raises InputError for a predictor the data set lacks, or one without two different values in training.
    """
    if not fusion.enabled:
        return None
    frame = auxiliary_frame(fusion, dataset)
    columns = []
    for name in frame:
        values = frame[name].to_numpy(float)[train]
        values = values[np.isfinite(values)]
        if len(values) < 2 or not values.std() > 0:
            raise InputError(f"auxiliary {name}: no two different values among the training events; leave it out")
        columns.append(AuxiliaryColumn(name=str(name), mean=float(values.mean()), std=float(values.std())))
    params = RegionParams(
        statistics=fusion.statistics, auxiliary=tuple(columns), hidden=fusion.hidden, dropout=fusion.dropout
    )
    return RegionHead(params, len(dataset.scheme))


def auxiliary_frame(fusion: Fusion, dataset: DriverDataset) -> pd.DataFrame:
    """Return the predictors asked for, float64 by event row; raises InputError naming one that is not there."""
    given = dataset.auxiliary
    if given is None:
        if fusion.auxiliary:
            raise InputError(f"data set {dataset.name} has no auxiliary predictors; set fusion.auxiliary: []")
        return dataset.events[[]]
    known = [str(name) for name in given.columns]
    names = known if fusion.auxiliary == "all" else list(fusion.auxiliary)
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"fusion.auxiliary: {dataset.name} has no {', '.join(missing)}; it has {', '.join(known)}")
    return given[names]


def _knowledge(
    config: TrainConfig, dataset: DriverDataset, division: Division, scaling: Scaling
) -> Knowledge:  # fmt: skip
    labels = dataset.events["label"].to_numpy(np.int64)
    auxiliary = auxiliary_frame(config.fusion, dataset).to_numpy(np.float64) if config.fusion.enabled else None
    counts = np.bincount(labels[division.train], minlength=len(dataset.scheme)).astype(float)
    weights = np.ones(len(counts))
    if config.training.class_weights == "balanced":
        weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / max(1, (counts > 0).sum()), 0.0)
    return Knowledge(
        scaling,
        labels=torch.tensor(labels),
        auxiliary=torch.tensor(auxiliary if auxiliary is not None else np.zeros((len(labels), 0))),
        class_weights=torch.tensor(weights, dtype=torch.float32),
        seed=config.seed,
    )


# -------------------------------------------------------------------------------------------- trainer


def _digest(config: TrainConfig) -> str:
    """What makes a checkpoint one of this training: the whole configuration but where its results go."""
    text = config.model_dump_json(exclude={"output", "calibration", "patch"})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder(config: TrainConfig) -> Path:
    return config.work / _digest(config)


def _resume(config: TrainConfig) -> str | None:
    last = _folder(config) / "last.ckpt"
    if last.is_file():
        _log.warning("going on from %s; remove it to start anew", last)
        return str(last)
    return None


def _trainer(config: TrainConfig) -> tuple[lightning.Trainer, ModelCheckpoint]:
    course, folder = config.training, _folder(config)
    kept = ModelCheckpoint(folder, "best", monitor=MONITOR, mode="max", save_last=True, enable_version_counter=False)
    callbacks: list[Callback] = [EarlyStopping(MONITOR, patience=course.patience, mode="max"), kept]
    if course.average:
        callbacks.append(_Average(course.average))
    terminal = os.isatty(2)
    callbacks.append(TQDMProgressBar(refresh_rate=5) if terminal else _Lines())
    loggers: list[Any] = [CSVLogger(folder, name="log", version="")]
    if _has_tensorboard():
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    per_epoch = max(1, course.steps // course.validations)
    trainer = lightning.Trainer(
        accelerator=course.accelerator,
        devices=course.devices,
        precision=course.precision,
        max_epochs=course.validations,
        limit_train_batches=per_epoch,
        max_time=timedelta(minutes=course.minutes) if course.minutes else None,
        gradient_clip_val=5.0,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        callbacks=callbacks,
        logger=loggers,
    )
    return trainer, kept


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None


def _restore(module: DriverModule, kept: ModelCheckpoint) -> float:
    """Load the best state; returns its macro-F1."""
    if not kept.best_model_path:
        raise InputError("training ended before its first validation; give it more steps or more minutes")
    state = torch.load(kept.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    module.cpu().load_state_dict(state)
    return float(kept.best_model_score or 0.0)


def _ended(trainer: lightning.Trainer, config: TrainConfig) -> str:
    planned = max(1, config.training.steps // config.training.validations) * config.training.validations
    if trainer.global_step >= planned:
        return "the course was run to its end"
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    by_clock = any((timer.time_remaining() or 0) <= 0 for timer in timers)
    why = "the clock ended it" if by_clock else f"no better validation for {config.training.patience} rounds"
    return f"{why} at step {trainer.global_step} of {planned}"


class _Average(WeightAveraging):
    """Exponential average of weights and running statistics, warmed up."""

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True, avg_fn=moving_average(decay))


class _Lines(Callback):
    """A plain line for each validation, where there is no terminal for a progress bar."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Print the step and the figures of this validation."""
        told = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val_", "train_"))}
        figures = "  ".join(f"{key} {value:.3f}" for key, value in sorted(told.items()))
        print(f"step {trainer.global_step}  {figures}", flush=True)


# -------------------------------------------------------------------------------------------- pre-training


def _pretrain(config: TrainConfig, network: Network, bands: int) -> None:
    """Train backbone and neck on land cover, in place; the head made for it is thrown away."""
    told = config.pretraining
    assert told is not None
    cover = LandCover(told, bands)
    source: FeatureSpec = network.neck.out  # type: ignore[assignment]
    whole = Network(network.backbone, network.neck, build_head(config.architecture.head, source, len(cover.codes)))
    course = config.training.model_copy(
        update={"steps": told.steps, "lr": told.lr, "event_weight": 0.0, "label_smoothing": 0.0}
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    knowledge = Knowledge(cover.scaling(), nothing, torch.zeros(0, 0), torch.ones(len(cover.codes)), config.seed)
    module = DriverModule(whole, None, knowledge, course, Augment(config.augment))
    stream = LandCoverStream(cover, course.crop, (config.seed, 1))
    trainer = lightning.Trainer(
        accelerator=course.accelerator, devices=course.devices, precision=course.precision, max_steps=told.steps,
        gradient_clip_val=5.0, logger=CSVLogger(_folder(config), name="pretraining", version=""), log_every_n_steps=1,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=os.isatty(2), limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(stream, batch_size=course.batch, num_workers=course.workers))
    module.cpu()
