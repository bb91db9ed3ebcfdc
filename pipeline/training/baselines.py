"""Baselines: what place, year, colour and predictors alone say about the driver, judged as every other model is.

Published driver labels were often drawn from maps of concessions, so that the nearest labelled neighbour knows the
answer; a network must beat that on land it has not seen.

Blocks within the tropics are, unless told otherwise, squares of km / 110.6 degrees, dealt largest first to five folds
(scikit-learn's GroupKFold): of all combinations of grid, origin, dealing and seed tried, the one that gives all
figures known of location-only 1-NN on Cam-ForestNet (random 5-fold .922/.885; 10, 25, 50, 100 km .787/.732, .749/.701,
.649/.523, .533/.344), to 0.001. Equal-area squares differ by up to .05, and so does the same grid dealt otherwise: the
report gives that spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.training import features as ft
from pipeline.training.datasets.tables import Level, read_labels
from pipeline.training.intervals import accuracy, confusion, macro_f1
from pipeline.training.judge import judge
from pipeline.training.results import About, Judgement
from pipeline.training.splits import BlockShape, Split, block_folds, chip_overlap, published, random_folds

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.training.datasets.base import DriverDataset
    from pipeline.training.features import Features

type Table = tuple[Features, Features]
"""Features to train on and features to predict from."""

CHIP_M = 4980.0
"""Side of ForestNet's chips, 332 pixels of 15 m: for label tables, which have no images to ask."""
TROPIC = 23.5
GRID = {"n_estimators": [10, 50, 100], "max_depth": [None, 1, 3, 5], "min_samples_leaf": [1, 2, 4]}
"""Searched for the forests, as the paper did."""
DEALINGS = 10
FEATURES: dict[str, tuple[str, ...]] = {
    "majority": ("majority",),
    "nearest": ("majority", "location 1-NN", "location 5-NN"),
    "location": ("majority", "location 1-NN", "location 5-NN", "location forest", "location + year forest"),
    "location+year": ("majority", "location + year forest"),
    "visible": ("majority", "visible forest"),
    "visible+aux": ("majority", "visible forest", "visible + aux forest"),
}


@dataclass(frozen=True)
class BaselineParams:
    """How baselines are split, trained and judged.

    `splits` of `random`, `published` and block sizes such as `25`; those that a data set cannot give are noted.
    `search` looks for the forests' settings by cross-validation as the paper did; without it 100 full trees.
    `block_shape` None: degrees within the tropics, equal-area beyond; `deal_seed` None deals blocks largest first.
    """

    splits: tuple[str, ...] = ("random", "published", "25", "50", "100", "200")
    folds: int = 5
    seed: int = 0
    block_shape: BlockShape | None = None
    deal_seed: int | None = None
    with_val: bool = False
    search: bool = False
    jobs: int = 1


@dataclass(frozen=True)
class BaselineReport:
    """`results`, one a split and model, and `notes`: overlaps, spreads, and splits that were not possible."""

    results: tuple[Judgement, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the table for people, with the notes below."""
        lines = [f"{'split':<34}{'model':<24}{'n':>6}{'invalid':>9}  {'accuracy':<20}macro-F1"]
        for result in self.results:
            parts = [f"{f.value:.3f} ({f.low:.3f}-{f.high:.3f})" for f in (result.accuracy, result.macro_f1)]
            lines.append(
                f"{result.about.split:<34}{result.about.model:<24}{result.judged:>6}{len(result.invalid):>9}  "
                f"{parts[0]:<20}{parts[1]}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def run_baseline(
    source: Path | DriverDataset,
    features: str = "location",
    params: BaselineParams | None = None,
    level: Level = "merged",
) -> BaselineReport:
    """Judge the baselines of some `features` (a key of FEATURES) on a folder of label tables, or on a data set.

    A folder is read for its tables only (`level` of their labels), which serves place and year. Forests on images
    train on composites and are judged on the scene of the year closest to the loss, as the paper did. Raises InputError
    for features that do not exist or that the source cannot give, and where no split is possible.
    """
    params = params or BaselineParams()
    if features not in FEATURES:
        raise InputError(f"features {features!r}: known are {', '.join(FEATURES)}")
    if isinstance(source, Path):
        if features.startswith("visible"):
            raise InputError(f"{source}: label tables have no images; features `{features}` need a data set")
        events, scheme = read_labels(source, level)
        name, chip_m, simulated = source.resolve().name, CHIP_M, False
    else:
        events, scheme = source.events, source.scheme
        name, chip_m, simulated = source.name, source.chip_m, source.simulated
    tables = _tables(FEATURES[features], source, events)
    results: list[Judgement] = []
    notes: list[str] = []
    for split, km in _possible(events, params, notes):
        notes += _overlap_notes(events, split, chip_m)
        for model, table in tables.items():
            p, reasons = predict(MODELS[model], table, events, split, (len(scheme), params))
            scope = split.scope
            about = About(model, name, split.name, scheme.names, simulated)
            own = events.iloc[scope].reset_index(drop=True)
            results.append(judge(own, p[scope], about, block_km=km, reasons=reasons[scope]))
        if km is not None and features == "location":
            notes.append(_spread(events, km, params))
    if not results:
        raise InputError(f"{name}: none of the splits {', '.join(params.splits)} is possible: {'; '.join(notes)}")
    return BaselineReport(tuple(results), tuple(notes))


def predict(
    make: Callable[[BaselineParams, NDArray[np.int64]], Any],
    table: Table,
    events: pd.DataFrame,
    split: Split,
    of: tuple[int, BaselineParams],
) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """Return probabilities [n, classes], NaN where not tested or not possible, and why not [n], over all folds.

    A class that training does not hold gets probability 0. `of` is the number of classes and the parameters.
    """
    classes, params = of
    training, testing = table
    labels = events["label"].to_numpy(np.int64)
    p = np.full((len(events), classes), np.nan)
    for fold in split.folds:
        train = fold.train[training.reasons[fold.train] == ""]
        test = fold.test[testing.reasons[fold.test] == ""]
        if not len(train):
            raise InputError(f"{split.name}: no event to train on has features")
        model = make(params, labels[train]).fit(training.values[train], labels[train])
        if len(test):
            p[test] = 0.0
            p[np.ix_(test, model.classes_)] = model.predict_proba(testing.values[test])
    return p, testing.reasons


def _majority(_params: BaselineParams, _labels: NDArray[np.int64]) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def _nearest(neighbours: int) -> Callable[[BaselineParams, NDArray[np.int64]], Any]:
    def make(params: BaselineParams, labels: NDArray[np.int64]) -> Any:
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(min(neighbours, len(labels)), n_jobs=params.jobs)

    return make


def _forest(params: BaselineParams, labels: NDArray[np.int64]) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

    if not params.search:
        return RandomForestClassifier(100, class_weight="balanced", random_state=params.seed, n_jobs=params.jobs)
    forest = RandomForestClassifier(class_weight="balanced", random_state=params.seed)
    # a class of one or two events cannot be in all three folds
    strata = StratifiedKFold if np.bincount(labels)[np.unique(labels)].min() >= 3 else KFold
    folds = strata(3, shuffle=True, random_state=params.seed)
    return GridSearchCV(forest, GRID, scoring="f1_macro", cv=folds, n_jobs=params.jobs)


MODELS: dict[str, Callable[[BaselineParams, NDArray[np.int64]], Any]] = {
    "majority": _majority,
    "location 1-NN": _nearest(1),
    "location 5-NN": _nearest(5),
    "location forest": _forest,
    "location + year forest": _forest,
    "visible forest": _forest,
    "visible + aux forest": _forest,
}


def _tables(models: tuple[str, ...], source: Path | DriverDataset, events: pd.DataFrame) -> dict[str, Table]:
    """The features of each model; images are read once for all of them."""
    out: dict[str, Table] = {}
    for model in models:
        if model.startswith("visible") and not isinstance(source, Path):
            colours = out.get("visible forest") or (ft.visible(source, "composite"), ft.visible(source, "closest_year"))
            train, test = colours
            if "aux" in model:
                train, test = ft.with_auxiliary(train, source), ft.with_auxiliary(test, source)
            out[model] = (train, test)
        else:
            one = ft.sphere(events) if model.endswith("-NN") else ft.place(events, year="year" in model)
            out[model] = (one, one)
    return out


def _possible(events: pd.DataFrame, params: BaselineParams, notes: list[str]) -> list[tuple[Split, float | None]]:
    """The splits that can be made, with the block size of their intervals; a note for each that cannot."""
    out: list[tuple[Split, float | None]] = []
    for kind in params.splits:
        try:
            if kind == "random":
                out.append((random_folds(events, params.folds, params.seed), None))
            elif kind == "published":
                out.append((published(events, params.with_val), None))
            else:
                km = _kilometres(kind)
                shape = params.block_shape or _shape(events)
                out.append((block_folds(events, km, params.folds, params.deal_seed, shape), km))
        except InputError as error:
            # these data cannot be split so: said in the notes, the other splits stand
            notes.append(f"no split `{kind}`: {error}")
    return out


def _kilometres(kind: str) -> float:
    try:
        return float(kind.removesuffix("km"))
    except ValueError as error:
        raise InputError(f"split {kind!r}: known are random, published, and block sizes in km such as 25") from error


def _shape(events: pd.DataFrame) -> BlockShape:
    return "degrees" if events["latitude"].abs().max() <= TROPIC else "equal-area"


def _overlap_notes(events: pd.DataFrame, split: Split, chip_m: float) -> list[str]:
    """What chips of test share with chips of training, over all folds."""
    found = [chip_overlap(events, fold.train, fold.test, chip_m) for fold in split.folds if len(fold.train)]
    tested, overlapping = sum(each.test for each in found), sum(each.overlapping for each in found)
    nearest = min(each.nearest_km_min for each in found)
    median = float(np.median([each.nearest_km_median for each in found]))
    warned = "warning: " if any(each.warning for each in found) else ""
    return [
        f"{warned}{split.name}: {overlapping} of {tested} test chips ({overlapping / tested:.0%}) of "
        f"{chip_m / 1000:.3g} km overlap a training chip; nearest training event {nearest:.2f} km, median {median:.2f}"
    ]


def _spread(events: pd.DataFrame, km: float, params: BaselineParams) -> str:
    """1-NN under other dealings of the same blocks: how much of the figure is the luck of the folds."""
    usable = events[events["fault"] == ""].reset_index(drop=True)
    points, labels = ft.sphere(usable), usable["label"].to_numpy(np.int64)
    classes = int(labels.max()) + 1
    shape = params.block_shape or _shape(events)
    pairs = []
    for seed in range(DEALINGS):
        split = block_folds(usable, km, params.folds, seed, shape)
        p, _ = predict(_nearest(1), (points, points), usable, split, (classes, params))
        matrix = confusion(labels, p.argmax(1), classes).astype(float)
        pairs.append((float(accuracy(matrix)), float(macro_f1(matrix))))
    low, high, middle = np.min(pairs, 0), np.max(pairs, 0), np.mean(pairs, 0)
    return (
        f"{km:g} km blocks dealt {DEALINGS} other ways: location 1-NN accuracy {low[0]:.3f}-{high[0]:.3f} "
        f"(mean {middle[0]:.3f}), macro-F1 {low[1]:.3f}-{high[1]:.3f} (mean {middle[1]:.3f})"
    )


def results_json(results: Sequence[Judgement]) -> str:
    """Return the JSON list of results."""
    return "[" + ",\n".join(result.to_json() for result in results) + "]"
