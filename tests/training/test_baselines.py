"""Baselines: they find what is there, do not find what is not, and lose no event."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from labelled_images import LabelledImages, labelled

from pipeline.errors import InputError
from pipeline.training import features as ft
from pipeline.training.baselines import BaselineParams, BaselineReport, results_json, run_baseline
from pipeline.training.datasets.base import Look
from pipeline.training.results import Judgement

PUBLISHED = BaselineParams(splits=("published",))


def result(report: BaselineReport, model: str, split: str = "published") -> Judgement:
    (found,) = [r for r in report.results if r.about.model == model and r.about.split.startswith(split)]
    return found


def write_tables(folder: Path, names: tuple[str, ...], n: int = 90) -> Path:
    """Label tables where the cause is the island: two of them, one driver each, with a few others."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for at, name in enumerate(names):
        island = random.integers(0, 2, n)
        titles = np.where(random.random(n) < 0.9, np.where(island, "Plantation", "Other"), "Grassland shrubland")
        rows = pd.DataFrame(
            {
                "label": titles,
                "merged_label": titles,
                "latitude": random.uniform(-1, 1, n),
                "longitude": 100 + 20 * island + random.uniform(0, 2, n),
                "year": random.integers(2001, 2016, n),
                "example_path": [f"examples/{at}_{k}" for k in range(n)],
            }
        )
        rows.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_place_is_found_in_label_tables_alone(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "labels", ("train", "val"))
    report = run_baseline(folder, "location", BaselineParams(splits=("random", "published", "25"), folds=3))
    assert len({r.about.split for r in report.results}) == 3
    assert len(report.results) == 15
    assert result(report, "location 1-NN").about.split.endswith("val")
    assert result(report, "location forest").accuracy.value > 0.75
    assert result(report, "majority").accuracy.value < 0.6
    assert not result(report, "majority").about.simulated
    assert "warning" in "".join(note for note in report.notes if "random" in note)
    lines = report.text().splitlines()
    assert len(lines) == 1 + 15 + len(report.notes)


def test_the_test_table_is_judged_where_it_is_there(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "labels", ("train", "val", "test"))
    report = run_baseline(folder, "nearest", PUBLISHED)
    assert {r.about.split for r in report.results} == {"published, train against test"}
    both = run_baseline(folder, "nearest", BaselineParams(splits=("published",), with_val=True))
    assert {r.about.split for r in both.results} == {"published, train + val against test"}


def test_splits_that_cannot_be_are_noted(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "labels", ("all",))
    report = run_baseline(folder, "majority", BaselineParams(splits=("random", "published", "9000")))
    assert {r.about.split for r in report.results} == {"random 5-fold"}
    assert sum(note.startswith("no split") for note in report.notes) == 2
    with pytest.raises(InputError, match="none of the splits published is possible"):
        run_baseline(folder, "majority", PUBLISHED)
    with pytest.raises(InputError, match="block sizes in km"):
        run_baseline(folder, "majority", BaselineParams(splits=("blocks",)))


def test_colour_is_found_and_place_is_not() -> None:
    dataset = labelled()
    report = run_baseline(dataset, "visible", PUBLISHED)
    seen = result(report, "visible forest")
    assert seen.accuracy.value > 0.9
    assert seen.about.simulated
    place = run_baseline(dataset, "location", PUBLISHED)
    assert result(place, "location forest").accuracy.value < 0.5


def test_forests_search_as_the_paper_did(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import baselines

    monkeypatch.setattr(baselines, "GRID", {"n_estimators": [10], "max_depth": [1, None], "min_samples_leaf": [1]})
    # colour in all three bands at once needs depth: a stump cannot tell four classes apart
    report = run_baseline(labelled(), "visible", BaselineParams(splits=("published",), search=True))
    assert result(report, "visible forest").accuracy.value > 0.85


def test_predictors_are_found_and_missing_ones_stay_missing() -> None:
    plain = labelled(skill=0)
    random = np.random.default_rng(1)
    road = plain.events["label"] * 1.0 + random.normal(0, 0.1, len(plain.events))
    road[random.random(len(road)) < 0.2] = np.nan
    dataset = LabelledImages(plain.events, plain._images, plain._masks, road=road.to_numpy(), soil=np.full(160, np.nan))
    report = run_baseline(dataset, "visible+aux", PUBLISHED)
    assert result(report, "visible + aux forest").accuracy.value > 0.7
    assert result(report, "visible forest").accuracy.value < 0.5
    table = ft.with_auxiliary(ft.visible(dataset), dataset)
    assert table.names[-2:] == ("road", "soil")
    assert np.isnan(table.values[:, -1]).all()
    assert np.isnan(table.values[:, -2]).sum() == road.isna().sum()


def test_no_event_is_lost() -> None:
    dataset = labelled()
    tests = np.flatnonzero(dataset.events["split"] == "test")
    dataset.events.loc[tests[0], "fault"] = "region outside the image"
    dataset.broken = {int(tests[1])}
    dataset._images[tests[2]][:, :, dataset._masks[tests[2]]] = np.nan
    found = result(run_baseline(dataset, "visible", PUBLISHED), "visible forest")
    assert found.events == len(tests) == found.judged + 3
    assert {gone.event_id: gone.reason for gone in found.invalid} == {
        f"e{tests[0]}": "region outside the image",
        f"e{tests[1]}": f"image-{tests[1]}.png: not an image",
        f"e{tests[2]}": "no observed pixel in the region",
    }


def test_same_seed_same_answers() -> None:
    dataset = labelled()
    one, two = (run_baseline(dataset, "visible", PUBLISHED) for _ in range(2))
    assert one == two
    other = run_baseline(dataset, "visible", BaselineParams(splits=("published",), seed=1))
    assert results_json(other.results) != results_json(one.results)


def test_statistics_by_hand() -> None:
    dataset = labelled(8)
    image = np.arange(24.0 * 24).reshape(24, 24).astype(np.float32)
    dataset._images[0, 0] = np.stack([image, image * 2, image * 3])
    dataset._masks[0] = False
    dataset._masks[0, 2:4, 5:7] = True  # 53, 54, 77, 78
    dataset._images[0, 0, :, 3, 6] = np.nan
    row = dict(zip(ft.visible(dataset).names, ft.visible(dataset).values[0], strict=True))
    assert (row["region blue min"], row["region blue max"]) == (53, 77)
    assert row["region red mean"] == pytest.approx(3 * (53 + 54 + 77) / 3)
    assert row["region green std"] == pytest.approx(2 * np.std([53, 54, 77]))
    assert (row["chip blue min"], row["chip blue max"]) == (0, 575)


def test_the_look_closest_to_the_loss_is_judged() -> None:
    def scene(year: int, cloud: float) -> Look:
        return Look(f"{year}", datetime.date(year, 5, 1), cloud)

    looks = (Look("composite"), scene(2018, 0), scene(2014, 9), scene(2014, 2), scene(2011, 0))
    assert ft.choose_look(looks, 2013) == 3
    assert ft.choose_look(looks, 2019) == 1
    assert ft.choose_look(looks[:1], 2013) == 0
    dataset = labelled(8)
    dataset._images[:, 1] += 10
    assert (ft.visible(dataset, "closest_year").values[:, 0] > ft.visible(dataset).values[:, 0] + 9).all()


def test_what_a_source_cannot_give_is_refused(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "labels", ("train", "val"))
    with pytest.raises(InputError, match="label tables have no images"):
        run_baseline(folder, "visible")
    with pytest.raises(InputError, match="known are majority"):
        run_baseline(folder, "place")
    with pytest.raises(InputError, match="no auxiliary predictors"):
        run_baseline(labelled(32), "visible+aux", PUBLISHED)
