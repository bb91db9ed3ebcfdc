"""`clearcause train`: configuration to a calibrated, judged model package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import write_bytes
from pipeline.errors import InputError
from pipeline.models.card import Calibration, ModelCard, RegionSpec
from pipeline.models.package import save_package
from pipeline.models.region import write_region
from pipeline.training.answers import answer
from pipeline.training.calibrate import LEAST_FOR_AUTO, fit_calibration
from pipeline.training.data import open_source
from pipeline.training.division import Division, divide
from pipeline.training.fit import Fitted, fit
from pipeline.training.judge import error_matrix, judge
from pipeline.training.leaks import find_leaks
from pipeline.training.results import About, Judgement
from pipeline.training.splits import chip_overlap

if TYPE_CHECKING:
    from pipeline.training.datasets.base import DriverDataset
    from pipeline.training.params import TrainConfig

SIMULATED = (
    "Trained on simulated scenes. It shows that the method works and proves nothing about the real world: do not quote "
    "drivers it gives for real imagery."
)


@dataclass(frozen=True)
class Trained:
    """A written package: its `folder`, `card`, the `judgement` on the test (else validation) events, and `warnings`."""

    folder: Path
    card: ModelCard
    judgement: Judgement
    warnings: tuple[str, ...]


def train(config: TrainConfig) -> Trained:
    """Open the data set that a configuration names and `train_on` it."""
    return train_on(config, open_source(config.dataset))


def train_on(config: TrainConfig, dataset: DriverDataset) -> Trained:
    """Train, calibrate on validation events, judge on test (else validation) events, and write the package.

    Raises InputError or ModelError where data or parts cannot serve; the package is written only at the end.
    """
    division = divide(dataset.events, config.split)
    _check_calibration(config, dataset, division)
    warnings = [*(_leaks(dataset, config.seed) if config.dataset.search_leaks else ()), *_overlap(dataset, division)]
    for line in warnings:
        print(f"warning: {line}", flush=True)
    fitted = fit(config, dataset, division)
    fields = _fields(config, dataset, division, fitted)
    draft = config.work / "draft"
    _save(draft, fitted, fields, config.output.half)
    calibration = _calibrate(config, draft, dataset, division)
    judged = division.test if len(division.test) else division.val
    name = f"{division.name}, train against {'test' if len(division.test) else 'val'}"
    about = About(config.output.name, dataset.name, name, dataset.scheme.names, dataset.simulated)
    answers = answer(draft, dataset, judged)
    events = dataset.events.iloc[judged]
    result = judge(events, answers.probabilities(calibration), about, reasons=answers.reasons)
    fields |= {
        "calibration": calibration.model_copy(update={"ece": result.ece, "split": name}).model_dump(),
        "scores": _scores(result, name),
        "error_matrix": error_matrix(result).model_dump(),
    }
    card = _save(config.output.package, fitted, fields, config.output.half)
    write_bytes(config.output.package / "judgement.json", result.to_json().encode())
    return Trained(config.output.package, card, result, tuple(warnings))


def _check_calibration(config: TrainConfig, dataset: DriverDataset, division: Division) -> None:
    """Refuse before training what would be refused after it."""
    usable = int((dataset.events["fault"].to_numpy()[division.val] == "").sum())
    if config.calibration == "auto" and usable < LEAST_FOR_AUTO:
        raise InputError(
            f"calibration auto: {usable} usable validation events are too few to choose a method by (it takes "
            f"{LEAST_FOR_AUTO}); set calibration: temperature"
        )


def _leaks(dataset: DriverDataset, seed: int) -> tuple[str, ...]:
    try:
        return find_leaks(dataset, seed).warnings
    except InputError as error:
        return (f"leaks were not looked for: {error}",)


def _overlap(dataset: DriverDataset, division: Division) -> list[str]:
    judged = division.test if len(division.test) else division.val
    found = chip_overlap(dataset.events, division.train, judged, dataset.chip_m)
    return [found.warning] if found.warning else []


def _calibrate(config: TrainConfig, package: Path, dataset: DriverDataset, division: Division) -> Calibration:
    """Fit the calibration on validation events, never on test events."""
    if config.calibration == "none":
        return Calibration()
    answers = answer(package, dataset, division.val)
    known = np.isfinite(answers.logits).all(axis=1)
    labels = dataset.events["label"].to_numpy(np.int64)[division.val][known]
    return fit_calibration(answers.logits[known], labels, "val", config.calibration)


def _fields(config: TrainConfig, dataset: DriverDataset, division: Division, fitted: Fitted) -> dict[str, Any]:
    """The model card of an uncalibrated, unjudged network, less the digest of the weights."""
    parts = config.architecture
    told = [config.output.description, SIMULATED if dataset.simulated else ""]
    usable = (dataset.events["fault"] == "").to_numpy()
    data = (
        f"{dataset.name}, split {division.name}: {int(usable[division.train].sum())} training and "
        f"{int(usable[division.val].sum())} validation events; seed {config.seed}; {fitted.ended}; validation "
        f"macro-F1 {fitted.best:.3f}"
    )
    return {
        "name": config.output.name,
        "version": config.output.version,
        "architecture": f"{parts.neck.name} on {parts.backbone.name}, {len(dataset.bands)} bands, logits a pixel"
        + (", late fusion by event" if fitted.region else ""),
        "backbone": parts.backbone.model_dump(),
        "neck": parts.neck.model_dump(),
        "head": parts.head.model_dump(),
        "bands": dataset.bands,
        "scaling": fitted.scaling.model_dump(),
        "patch": {"size": config.patch.size, "stride": config.patch.stride, "resolution": dataset.resolution},
        "labels": dataset.scheme.to_list(),
        "training_data": data,
        "simulated": dataset.simulated,
        "licence": dataset.licence,
        "description": " ".join(text for text in told if text),
    }


def _save(folder: Path, fitted: Fitted, fields: dict[str, Any], half: bool) -> ModelCard:
    region: RegionSpec | None = write_region(folder, fitted.region) if fitted.region else None
    return save_package(
        folder, fitted.network, {**fields, "region": region.model_dump() if region else None}, half=half
    )


def _scores(result: Judgement, split: str) -> list[dict[str, Any]]:
    figures = [("accuracy", result.accuracy), ("macro-F1", result.macro_f1)]
    figures += [(f"recall {one.name}", one.recall) for one in result.per_class]
    figures += [(f"precision {one.name}", one.precision) for one in result.per_class]
    return [
        {"name": name, "value": f.value, "low": f.low, "high": f.high, "n": f.n, "split": split}
        for name, f in figures
        if f.value is not None and f.low is not None and f.high is not None
    ]
