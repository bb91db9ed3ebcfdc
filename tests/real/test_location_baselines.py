"""Published label tables: what place alone says, against the figures known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.training.baselines import BaselineParams, BaselineReport, run_baseline
from pipeline.training.datasets.tables import read_labels
from pipeline.training.intervals import accuracy, confusion, macro_f1
from pipeline.training.splits import chip_overlap, published

pytestmark = pytest.mark.real

KNOWN = {
    "random 5-fold": (0.922, 0.885),
    "10 km": (0.787, 0.732),
    "25 km": (0.749, 0.701),
    "50 km": (0.649, 0.523),
    "100 km": (0.533, 0.344),
    "published": (0.910, 0.872),
}


@pytest.fixture(scope="module")
def cameroon(shared_data: Path) -> Path:
    return shared_data / "cameroon-driver-reference" / "labels-15-classes"


@pytest.fixture(scope="module")
def indonesia(shared_data: Path) -> Path:
    return shared_data / "forestnet-indonesia-labels"


def figures(report: BaselineReport, split: str, model: str) -> tuple[float, float]:
    """Accuracy and macro-F1 of the one result of a model under the split whose name starts so."""
    (found,) = [r for r in report.results if r.about.model == model and r.about.split.startswith(split)]
    assert found.accuracy.value is not None
    assert found.macro_f1.value is not None
    return found.accuracy.value, found.macro_f1.value


def test_cameroon_nearest_neighbour_gives_the_known_table(cameroon: Path) -> None:
    splits = ("random", "published", "10", "25", "50", "100")
    report = run_baseline(cameroon, "nearest", BaselineParams(splits=splits))
    for split, known in KNOWN.items():
        # random folds depend on the seed; blocks dealt largest first on nothing
        within = 0.01 if split == "random 5-fold" else 0.001
        assert figures(report, split, "location 1-NN") == pytest.approx(known, abs=within), split


def test_cameroon_chips_of_test_overlap_training(cameroon: Path) -> None:
    events, _ = read_labels(cameroon)
    fold = published(events).folds[0]
    found = chip_overlap(events, fold.train, fold.test, 4980)
    assert found.share == pytest.approx(0.86, abs=0.005)
    assert found.nearest_km_median == pytest.approx(0.48, abs=0.01)
    assert "overlap a training chip" in found.warning


def test_indonesia_train_against_val(indonesia: Path) -> None:
    report = run_baseline(indonesia, "nearest", BaselineParams(splits=("published", "25", "200")))
    majority, nearest = (figures(report, "published", name)[0] for name in ("majority", "location 1-NN"))
    # 218 of 473 events of val are plantations, the class training holds most of
    assert majority == pytest.approx(218 / 473)
    assert nearest > majority
    blocks = [figures(report, split, "location 1-NN")[1] for split in ("25 km", "200 km")]
    assert blocks[0] > blocks[1]
    assert not any("warning" in note for note in report.notes if "published" in note)


def test_indonesia_splits_are_5_km_apart(indonesia: Path) -> None:
    events, _ = read_labels(indonesia)
    fold = published(events).folds[0]
    found = chip_overlap(events, fold.train, fold.test, 4980)
    assert (found.overlapping, found.warning) == (0, "")
    assert found.nearest_km_min == pytest.approx(5.0, abs=0.01)


@pytest.mark.slow
def test_the_forest_knows_no_more_than_the_neighbour(cameroon: Path) -> None:
    report = run_baseline(cameroon, "location", BaselineParams(splits=("published", "50")))
    forest, nearest = (figures(report, "published", name) for name in ("location forest", "location 1-NN"))
    assert forest == pytest.approx(nearest, abs=0.04)
    assert figures(report, "50 km", "location forest")[0] < forest[0] - 0.15


def test_figures_of_the_table_are_those_of_scikit_learn(cameroon: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.neighbors import KNeighborsClassifier

    events, _ = read_labels(cameroon)
    places, labels = np.radians(events[["latitude", "longitude"]].to_numpy(float)), events["label"].to_numpy()
    fold = published(events).folds[0]
    model = KNeighborsClassifier(1, metric="haversine").fit(places[fold.train], labels[fold.train])
    predicted, truth = model.predict(places[fold.test]), labels[fold.test]
    matrix = confusion(truth, predicted, 15).astype(float)
    assert accuracy(matrix) == pytest.approx(accuracy_score(truth, predicted))
    assert macro_f1(matrix) == pytest.approx(f1_score(truth, predicted, average="macro"))
    report = run_baseline(cameroon, "nearest", BaselineParams(splits=("published",)))
    assert figures(report, "published", "location 1-NN") == pytest.approx(
        (float(accuracy(matrix)), float(macro_f1(matrix)))
    )
