"""Does something that should say little give the label away? Year, outline, painted pixels, predictors, gaps.

Each suspect alone is given to a small forest, cross-validated. Its *skill* is the balanced accuracy on the scale from
guessing (0) to knowing (1). Thresholds are on the lower end of a 95 % interval of the skill:

- 0.10 for the loss year, painted values, gaps and the event's number, which have no business with the cause: beyond
  it the gain is as large as most differences reported between models (0.02 to 0.10).
- 0.50 for the outline and a single auxiliary predictor. Plantations *are* larger than fields and mines lie near roads,
  so skill is expected; what alone knows more than half of all there is to know is more likely the label in disguise,
  such as the concession map that the labels were drawn from.

Place is measured too but warned about by the splits and baselines: it is no fault of the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training import features as ft
from pipeline.training.intervals import Bootstrap, confusion, percentile_interval, resampled
from pipeline.training.suspects import NEARLY_THE_LABEL, NO_BUSINESS, Suspect, image_suspects

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.training.datasets.base import DriverDataset

_FOLDS = 5
_DRAWS = 500
LEAST = 40
"""Events below which skill cannot be told from chance with five folds."""


@dataclass(frozen=True)
class Finding:
    """What one suspect knows: `skill` 0 guessing .. 1 knowing, its interval, the threshold, and whether it `leaks`."""

    suspect: str
    skill: float
    low: float
    high: float
    threshold: float
    warning: str

    @property
    def leaks(self) -> bool:
        """Whether the skill is surely above the threshold."""
        return bool(self.warning)


@dataclass(frozen=True)
class LeakReport:
    """Findings of a data set of `events` usable events, most skilful first; `location` is the skill of place."""

    dataset: str
    events: int
    location: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The texts of those that leak."""
        return tuple(finding.warning for finding in self.findings if finding.leaks)

    def text(self) -> str:
        """Return the findings as a table, warnings first."""
        head = f"{self.dataset}: {self.events} events; skill 0 = guessing, 1 = knowing; place alone {self.location:.2f}"
        rows = [
            f"{f.suspect:<40} {f.skill:5.2f} ({f.low:5.2f} to {f.high:5.2f}), warned about above {f.threshold:.2f}"
            for f in self.findings
        ]
        return "\n".join([head, *(f"warning: {text}" for text in self.warnings), *rows, *self.notes])


def find_leaks(dataset: DriverDataset, seed: int = 0, images: bool = True) -> LeakReport:
    """Give each suspect of a data set to a small forest; raises InputError where there are too few events to tell.

    `images` False leaves outlines and pixels unread. Files that cannot be read make events missing here, not an error:
    they are faults for training to list.
    """
    suspects = table_suspects(dataset.events, dataset.auxiliary)
    if images:
        suspects += image_suspects(dataset)
    return _judge(dataset.events, suspects, len(dataset.scheme), dataset.name, seed)


def find_table_leaks(events: pd.DataFrame, classes: int, name: str, seed: int = 0) -> LeakReport:
    """As `find_leaks`, for a label table alone: the year and the place are all there is."""
    return _judge(events, table_suspects(events, None), classes, name, seed)


def table_suspects(events: pd.DataFrame, auxiliary: pd.DataFrame | None) -> list[Suspect]:
    """What the table and the predictors may give away: year, number, each predictor, and which are missing."""
    suspects = [
        Suspect("loss year", events[["loss_year"]].to_numpy(float), NO_BUSINESS),
        # events of an image numbered class by class
        Suspect("number in the image", events[["number"]].to_numpy(float), NO_BUSINESS),
    ]
    if auxiliary is not None:
        for column in auxiliary.columns:
            values = auxiliary[[column]].to_numpy(float)
            suspects.append(Suspect(f"predictor {column}", values, NEARLY_THE_LABEL))
        missing = auxiliary.isna().to_numpy()
        suspects.append(Suspect("which predictors are missing", missing.astype(float), NO_BUSINESS))
    return suspects


def skill(
    values: NDArray[np.float64], labels: NDArray[np.int64], classes: int, seed: int
) -> tuple[float, float, float]:
    """Return (skill, low, high) of values [n, f] for class indices labels [n]: cross-validated, chance at 0.

    Balanced accuracy A over the K classes present, as (A - 1/K) / (1 - 1/K); so a common class helps nobody.
    """
    if ((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all():
        # one value for all cannot know anything
        return 0.0, 0.0, 0.0
    predicted = _cross_predicted(values, labels, seed)
    groups = np.arange(len(labels))
    draws = _skill_of(resampled(labels, [predicted], groups, classes, Bootstrap(_DRAWS, seed))[0])
    low, high = percentile_interval(draws)
    whole = _skill_of(confusion(labels, predicted, classes).astype(float)[None])[0]
    return float(whole), low or 0.0, high or 0.0


def _cross_predicted(values: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    forest = RandomForestClassifier(
        20, max_depth=6, min_samples_leaf=2, class_weight="balanced", random_state=seed, n_jobs=1
    )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(forest, values, labels, cv=folds), np.int64)


def _skill_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    total = matrix.sum(-1)
    recall = np.where(total > 0, np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(total, 1), np.nan)
    chance = 1 / np.maximum((total > 0).sum(-1), 2)
    return np.asarray((np.nanmean(recall, -1) - chance) / (1 - chance))


def _judge(events: pd.DataFrame, suspects: list[Suspect], classes: int, name: str, seed: int) -> LeakReport:
    usable = (events["fault"] == "").to_numpy().copy()
    labels = events["label"].to_numpy(np.int64)
    counts = np.bincount(labels[usable], minlength=classes)
    # a class that not every fold can hold tells nothing either way
    usable = usable & (counts >= _FOLDS)[labels]
    left_out = [int(k) for k in np.flatnonzero((counts > 0) & (counts < _FOLDS))]
    labels = labels[usable]
    if len(labels) < LEAST or len(np.unique(labels)) < 2:
        raise InputError(
            f"{name}: {len(labels)} usable events are too few to look for leaks; needs {LEAST} of 2 classes"
        )
    location = skill(ft.place(events).values[usable], labels, classes, seed)[0]
    findings = []
    for suspect in suspects:
        value, low, high = skill(suspect.values[usable], labels, classes, seed)
        warning = _warning(suspect, value, low, location) if low > suspect.threshold else ""
        findings.append(Finding(suspect.name, value, low, high, suspect.threshold, warning))
    findings.sort(key=lambda f: -f.skill)
    notes = (f"classes of fewer than {_FOLDS} events left out: {left_out}",) if left_out else ()
    return LeakReport(name, len(labels), location, tuple(findings), notes)


def _warning(suspect: Suspect, value: float, low: float, location: float) -> str:
    return (
        f"{suspect.name} alone gives the label away: skill {value:.2f} (at least {low:.2f}; place alone "
        f"{location:.2f}). A model that sees it scores for the wrong reason; keep it from the model, or find out where "
        "the archive took it from"
    )
