"""Plots are there, of a size to print, and show the classes in their colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS
from pipeline.training.judge import judge
from pipeline.training.plots import plot_all, plot_risk_coverage
from pipeline.training.results import About, Judgement


def result(model: str = "forest", sharp: float = 3.0) -> Judgement:
    random = np.random.default_rng(0)
    labels = random.choice(4, 300, p=[0.45, 0.3, 0.1, 0.15])
    z = sharp * np.eye(4)[labels] * (random.random((300, 1)) < 0.8) + random.gumbel(size=(300, 4))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    events = pd.DataFrame(
        {"event_id": [f"e{k}" for k in range(300)], "label": labels, "fault": "", "latitude": 0.0, "longitude": 0.0}
    )
    return judge(events, p, About(model, "made for this test", "random 5-fold", FOREST_LOSS_DRIVERS.names, True))


def test_three_plots_are_written(tmp_path: Path) -> None:
    paths = plot_all(result(), FOREST_LOSS_DRIVERS, tmp_path / "plots", "a-")
    assert [path.name for path in paths] == ["a-confusion.png", "a-reliability.png", "a-risk-coverage.png"]
    for path in paths:
        image = imread(path)
        assert min(image.shape[:2]) > 500
        # something is drawn, and paper stays white
        assert 0.5 < (image[..., :3] > 0.99).all(-1).mean() < 0.99


def test_classes_have_their_colours(tmp_path: Path) -> None:
    image = imread(plot_all(result(), FOREST_LOSS_DRIVERS, tmp_path)[0])[..., :3]
    for each in FOREST_LOSS_DRIVERS:
        colour = np.array([int(each.colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        # two swatches of some 12 x 12 pixels each
        assert (np.abs(image - colour).max(-1) < 0.01).sum() > 100


def test_the_same_result_draws_the_same_file(tmp_path: Path) -> None:
    one, two = (plot_all(result(), FOREST_LOSS_DRIVERS, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_several_models_share_a_risk_coverage_plot(tmp_path: Path) -> None:
    plot_risk_coverage([result("forest", 1.5), result("network", 4.0)], tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="no result"):
        plot_risk_coverage([], tmp_path / "none.png")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    from pipeline.labels import LabelScheme

    with pytest.raises(InputError, match="are not those of the result"):
        plot_all(result(), LabelScheme(FOREST_LOSS_DRIVERS.classes[::-1]), tmp_path)
