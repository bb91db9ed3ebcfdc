"""`clearcause evaluate`: a model package against labelled events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from pipeline.artifacts import write_bytes
from pipeline.errors import InputError, OutputError
from pipeline.models.card import read_card
from pipeline.training.answers import LookChoice, answer
from pipeline.training.datasets.open import open_dataset
from pipeline.training.datasets.tables import SPLITS, Level
from pipeline.training.datasets.views import at_resolution
from pipeline.training.judge import judge
from pipeline.training.plots import plot_all
from pipeline.training.results import About, Judgement

if TYPE_CHECKING:
    from pipeline.labels import LabelScheme


@dataclass(frozen=True)
class EvaluateParams:
    """What to judge on and how.

    Attributes:
        split: train, val, test or all.
        look: which rendering of an image.
        level: of the classes.
        resolution: metres a pixel; None = the data set's own.
        block_km: intervals resample blocks of land this wide instead of events.
        out: folder for judgement.json and the plots.
    """

    split: str = "test"
    look: str = "composite"
    level: str = "merged"
    resolution: float | None = None
    block_km: float | None = None
    out: Path | None = None


def evaluate(model: Path, folder: Path, params: EvaluateParams) -> Judgement:
    """Judge a package on a data set folder; writes judgement.json and three plots where `params.out` says so.

    Raises InputError where the data set has no such split, or does not fit the model.
    """
    for key, value, known in (
        ("--split", params.split, (*SPLITS, "all")),
        ("--look", params.look, get_args(LookChoice)),
        ("--level", params.level, get_args(Level)),
    ):
        if value not in known:
            raise InputError(f"{key} {value!r}: must be one of {', '.join(known)}")
    card = read_card(model)
    dataset = at_resolution(open_dataset(folder, level=params.level), params.resolution)  # type: ignore[arg-type]
    rows = np.flatnonzero((dataset.events["split"] == params.split) | (params.split == "all"))
    if not len(rows):
        raise InputError(f"data set {dataset.name}: no events of split {params.split!r}; try --split val or all")
    answers = answer(model, dataset, rows, params.look)  # type: ignore[arg-type]
    about = About(
        f"{card.name} {card.version}", dataset.name, f"{params.split}, {params.look}", dataset.scheme.names,
        dataset.simulated or card.simulated,
    )  # fmt: skip
    events = dataset.events.iloc[rows].reset_index(drop=True)
    result = judge(events, answers.probabilities(card.calibration), about, params.block_km, answers.reasons)
    if params.out is not None:
        write_judgement(params.out, result, dataset.scheme)
    return result


def write_judgement(folder: Path, result: Judgement, scheme: LabelScheme) -> None:
    """Write judgement.json, confusion.png, reliability.png and risk-coverage.png; raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "judgement.json", result.to_json().encode())
        plot_all(result, scheme, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
