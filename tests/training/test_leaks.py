"""Leaks: what is planted is found and named, a clean archive is let through, and real predictors may know something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_images import LabelledImages, labelled

from pipeline.errors import InputError
from pipeline.training.datasets.tables import read_labels
from pipeline.training.leaks import LeakReport, find_leaks, find_table_leaks, skill
from pipeline.training.suspects import painted


def leaking(report: LeakReport) -> set[str]:
    return {finding.suspect for finding in report.findings if finding.leaks}


def with_predictors(dataset: LabelledImages, **columns: np.ndarray) -> LabelledImages:
    return LabelledImages(dataset.events, dataset._images, dataset._masks, **columns)


@pytest.mark.parametrize("seed", range(2))
def test_a_clean_archive_is_let_through(seed: int) -> None:
    dataset = labelled(seed=seed)
    random = np.random.default_rng(seed)
    # colours of the classes differ, as they should; a predictor that knows a little is no leak
    road = dataset.events["label"] + random.normal(0, 1.5, len(dataset.events))
    gone = np.where(random.random(len(road)) < 0.2, np.nan, 1.0)
    report = find_leaks(
        with_predictors(dataset, road=road.to_numpy() * gone, noise=random.normal(size=len(road))), seed
    )
    assert report.warnings == ()
    assert {f.suspect for f in report.findings} >= {"loss year", "outline of the mask", "predictor road"}
    assert report.events == 160


def test_a_year_that_carries_the_label() -> None:
    dataset = labelled()
    # as in ForestNet: some classes do not occur before 2012
    early = np.random.default_rng(0).integers(2001, 2012, 160)
    dataset.events["loss_year"] = np.where(dataset.events["label"] < 2, early, dataset.events["loss_year"])
    report = find_leaks(dataset)
    assert leaking(report) == {"loss year"}
    assert report.findings[0].suspect == "loss year"
    assert report.warnings[0].startswith("loss year alone gives the label away")
    assert "warning: loss year" in report.text()


def test_an_outline_that_carries_the_label() -> None:
    dataset = labelled()
    for mask, label in zip(dataset._masks, dataset.events["label"], strict=True):
        mask[:] = False
        mask[4 : 8 + 4 * label, 5:9] = True
    assert leaking(find_leaks(dataset)) == {"outline of the mask"}


@pytest.mark.parametrize("inside", [True, False])
def test_the_label_painted_into_the_image(inside: bool) -> None:
    dataset = labelled()
    for image, mask, label in zip(dataset._images, dataset._masks, dataset.events["label"], strict=True):
        image[:, 0, mask if inside else ~mask] = (label + 1) / 255
    assert leaking(find_leaks(dataset)) == {f"values painted {'inside' if inside else 'outside'} the mask"}


def test_a_mask_painted_in_one_value_for_all_is_no_label() -> None:
    dataset = labelled()
    for image, mask in zip(dataset._images, dataset._masks, strict=True):
        image[:, 0, mask] = 1.0
    assert leaking(find_leaks(dataset)) == set()


def test_a_predictor_that_is_the_label() -> None:
    dataset, random = labelled(), np.random.default_rng(0)
    concession = dataset.events["label"].to_numpy() + random.normal(0, 0.1, 160)
    report = find_leaks(with_predictors(dataset, slope=random.normal(size=160), concession=concession))
    assert leaking(report) == {"predictor concession"}
    assert next(f for f in report.findings if f.suspect == "predictor concession").skill > 0.9


def test_gaps_that_carry_the_label() -> None:
    dataset, random = labelled(), np.random.default_rng(0)
    mines = dataset.events["label"] == 3
    gappy = np.where(mines & (random.random(160) < 0.8), np.nan, random.normal(size=160))
    assert "which predictors are missing" in leaking(find_leaks(with_predictors(dataset, peat=gappy)))
    plain = labelled()
    plain._images[np.flatnonzero(mines), 0, 1] = np.nan
    assert leaking(find_leaks(plain)) == {"gaps and number of looks"}


def test_files_that_cannot_be_read_are_no_error() -> None:
    dataset = labelled()
    dataset.broken = {3, 4}
    dataset.events.loc[5, "fault"] = "no region"
    report = find_leaks(dataset)
    assert report.events == 159
    assert report.warnings == ()


def test_skill_by_its_ends() -> None:
    labels = np.arange(100) % 4
    assert skill(labels[:, None].astype(float), labels, 4, 0)[0] == 1
    assert skill(np.ones((100, 1)), labels, 4, 0) == (0, 0, 0)
    assert skill(np.full((100, 2), np.nan), labels, 4, 0) == (0, 0, 0)
    # nine of ten in one class: always guessing it is no skill
    noise, rare = np.random.default_rng(0).normal(size=(1000, 1)), np.arange(1000) % 10 // 9
    assert abs(skill(noise, rare, 2, 0)[0]) < 0.15


def test_painted_by_hand() -> None:
    natural = np.linspace(0, 1, 100)
    stamped = np.where(np.arange(100) < 30, 0.5, natural)
    found = painted(np.stack([natural, stamped]).astype(np.float32))
    assert np.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([0.5, 0, 0.3])
    # a few pixels of one value in a small event are no paint
    assert np.isnan(painted(np.full((1, 15), 0.5, np.float32))[0])
    assert painted(np.full((1, 16), 0.5, np.float32))[0] == 0.5


@pytest.mark.parametrize("spread", [0.7, 1.5, 4.0])
def test_an_even_dark_surface_of_eight_bits_is_no_paint(spread: float) -> None:
    random = np.random.default_rng(0)
    levels = np.round(random.normal(12, spread, (1, 2000))) / 255
    assert np.isnan(painted(levels.astype(np.float32))[0])


def test_too_few_events_are_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        find_leaks(labelled(32))
    few = labelled(64)
    few.events["label"] = [3] + [0, 1] * 31 + [0]
    assert "left out: [3]" in find_leaks(few, images=False).notes[0]


@pytest.mark.real
def test_the_year_of_the_real_labels_is_warned_about(shared_data: Path) -> None:
    events, scheme = read_labels(shared_data / "forestnet-indonesia-labels")
    report = find_table_leaks(events, len(scheme), "ForestNet")
    # grassland, logging and secondary forest never before 2012: the interpreters could not have seen them
    assert leaking(report) == {"loss year"}
    assert report.location > 0.2
