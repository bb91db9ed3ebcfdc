"""Plots of a result: confusion matrix, reliability diagram, risk-coverage curve; PNG, readable in print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.labels import LabelScheme
    from pipeline.training.results import Judgement

DPI = 150
_INK = "#2166ac"
_GREY = "#8a8a8a"
_LINES = ("-", "--", "-.", ":")
_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e6a11f", "#7b4fa3", "#4d4d4d")
_WRAP = 22


def plot_all(result: Judgement, scheme: LabelScheme, folder: Path, stem: str = "") -> list[Path]:
    """Write the three plots of a result into a folder (`<stem>confusion.png`, ...); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{name}.png" for name in ("confusion", "reliability", "risk-coverage")]
    plot_confusion(result, scheme, paths[0])
    plot_reliability(result, paths[1])
    plot_risk_coverage([result], paths[2])
    return paths


def plot_confusion(result: Judgement, scheme: LabelScheme, path: Path) -> None:
    """Draw counts by reference (rows) and prediction (columns), shaded by the share of the row, classes in colour.

    Raises InputError where the scheme is not that of the result.
    """
    if scheme.names != result.about.classes:
        raise InputError(f"plot: the classes {scheme.names} are not those of the result, {result.about.classes}")
    counts = np.array(result.confusion)
    size = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.2 + 0.62 * size
    figure, axes = _figure(side + 0.6, side)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.25)
    for row in range(size):
        for column in range(size):
            if counts[row, column]:
                ink = "white" if shares[row, column] > 0.55 else "black"
                bold = "bold" if row == column else "normal"
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, weight=bold)
    titles = [_wrapped(each.title) for each in scheme]
    totals = [f"{title}\n(n = {n})" for title, n in zip(titles, counts.sum(1), strict=True)]
    axes.set_xticks(range(size), titles, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), totals)
    axes.tick_params(length=0, pad=13)
    axes.spines[:].set_visible(False)
    _swatches(figure, axes, scheme)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#cccccc", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("reference")
    axes.set_title(_title(result, f"accuracy {_interval(result)}"), fontsize=9, loc="left")
    _save(figure, path)


def _swatches(figure: Any, axes: Any, scheme: LabelScheme) -> None:
    """Set the colours of the map left of the rows and below the columns, beside names that print in black."""
    from matplotlib.transforms import ScaledTranslation

    left = axes.get_yaxis_transform() + ScaledTranslation(-8 / 72, 0, figure.dpi_scale_trans)
    below = axes.get_xaxis_transform() + ScaledTranslation(0, -8 / 72, figure.dpi_scale_trans)
    style = {"marker": "s", "markersize": 7, "clip_on": False, "markeredgecolor": "black", "markeredgewidth": 0.4}
    limits = axes.get_xlim(), axes.get_ylim()
    for k, each in enumerate(scheme):
        axes.plot(0, k, color=each.colour, transform=left, **style)
        axes.plot(k, 0, color=each.colour, transform=below, **style)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])


def plot_reliability(result: Judgement, path: Path) -> None:
    """Draw the share right against confidence with Wilson's intervals, and how many events each bin holds."""
    figure, (axes, below) = _stacked(4.6, 5.0)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="calibrated")
    x = np.array([each.confidence for each in result.reliability])
    y = np.array([each.right.value or 0.0 for each in result.reliability])
    low = np.array([each.right.low or 0.0 for each in result.reliability])
    high = np.array([each.right.high or 0.0 for each in result.reliability])
    axes.errorbar(
        x, y, yerr=[y - low, high - y], fmt="o", color=_INK, markersize=4, capsize=2, linewidth=1, label="events, 95 %"
    )
    axes.set_ylabel("share right")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(_title(result, f"calibration error {result.ece:.3f}"), fontsize=9, loc="left")
    edges = [each.low for each in result.reliability]
    widths = [each.high - each.low for each in result.reliability]
    below.bar(edges, [each.right.n for each in result.reliability], widths, align="edge", color=_INK, edgecolor="white")
    below.set_xlim(0, 1.02)
    below.set_xlabel("confidence")
    below.set_ylabel("events")
    _save(figure, path)


def plot_risk_coverage(results: Sequence[Judgement], path: Path) -> None:
    """Draw the share wrong among the most confident events against their share, one line a result."""
    if not results:
        raise InputError("plot: no result to draw")
    figure, axes = _figure(5.2, 3.8)
    top = 0.0
    for k, result in enumerate(results):
        curve = result.risk_coverage
        label = f"{result.about.model} (area {curve.area:.3f})"
        style = {"color": _COLOURS[k % len(_COLOURS)], "linestyle": _LINES[k % len(_LINES)]}
        axes.plot(curve.coverage, curve.risk, label=label, linewidth=1.6, **style)
        top = max(top, *curve.risk)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, min(1.0, top * 1.15 + 0.02))
    axes.set_xlabel("coverage: share of events answered, most confident first")
    axes.set_ylabel("risk: share of them wrong")
    axes.legend(frameon=False, loc="best")
    axes.set_title(_title(results[0], "", model=len(results) == 1), fontsize=9, loc="left")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # without pyplot: no global state, no display, safe in threads
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _stacked(width: float, height: float) -> tuple[Any, tuple[Any, Any]]:
    figure, axes = _figure(width, height)
    axes.remove()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for each in (upper, lower):
        each.spines[["top", "right"]].set_visible(False)
    return figure, (upper, lower)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


def _title(result: Judgement, tail: str, model: bool = True) -> str:
    about = result.about
    first = ", ".join(part for part in (about.model if model else "", about.dataset) if part)
    if about.simulated:
        first += " (simulated)"
    return f"{first}\n{about.split}, n = {result.judged}" + (f", {tail}" if tail else "")


def _interval(result: Judgement) -> str:
    figure = result.accuracy
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"


def _wrapped(title: str) -> str:
    from textwrap import fill

    return fill(title, _WRAP)
