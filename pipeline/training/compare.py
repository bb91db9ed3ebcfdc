"""The table that compares models: one row a model, its seeds together, each against the row above.

A row's figure is the mean over its seeds. Intervals resample events (or blocks of land) and seeds at once; differences
do so with the same events on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.differences import paired
from pipeline.training.intervals import METRICS, Bootstrap, Figure, confusion, percentile_interval, resampled
from pipeline.training.results import Judgement

if TYPE_CHECKING:
    from numpy.typing import NDArray

TITLES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
FEW_SEEDS = 5
"""Below this many seeds resampling them says little of what another seed would give: the table says so."""


@dataclass(frozen=True)
class Scores:
    """A metric of a row: `mean` over seeds with its interval, `sd` over seeds (None for one), and each seed's value."""

    mean: Figure
    sd: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A model of the table; `above` is its metric less that of the row above, None in the first row."""

    model: str
    invalid: int
    scores: dict[str, Scores]
    above: dict[str, Figure] | None
    reference: dict[str, Figure] | None
    words: str


@dataclass(frozen=True)
class Comparison:
    """Rows in the order given, over `n` events that all of them answered, of `events` asked about."""

    dataset: str
    split: str
    simulated: bool
    events: int
    n: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def markdown(self) -> str:
        """Return the table in Markdown, the notes below it."""
        cells = _cells(self.rows)
        lines = [f"| {' | '.join(row)} |" for row in cells]
        lines.insert(1, "|" + "---|" * len(cells[0]))
        return "\n".join([self.title(), "", *lines, "", *(f"- {line}" for line in self.lines())])

    def text(self) -> str:
        """Return the table for a terminal, the notes below it."""
        cells = _cells(self.rows)
        widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([self.title(), *lines, *self.lines()])

    def title(self) -> str:
        """Return what was compared, in words."""
        made = "simulated data, " if self.simulated else ""
        return f"{self.dataset} ({made}{self.split}): {self.n} of {self.events} events, answered by all; 95 % intervals"

    def lines(self) -> list[str]:
        """Return each row's difference in words, and the notes."""
        return [*(row.words for row in self.rows if row.words), *self.notes]


def compare(
    results: Sequence[Judgement], reference: str | None = None, bootstrap: Bootstrap | None = None
) -> Comparison:
    """Compare results, one a model and seed; results of one model name are its seeds, rows stand in order of mention.

    With `reference`, the name of a model, each row is set against that one too. Raises InputError where results were
    not judged on the same events under the same split, or where no such reference is there.
    """
    if not results:
        raise InputError("nothing to compare: give results of judging")
    _same([(r.about.dataset, r.about.split, r.about.simulated) for r in results])
    seeds = {
        name: [k for k, r in enumerate(results) if r.about.model == name]
        for name in dict.fromkeys(result.about.model for result in results)
    }
    if reference is not None and reference not in seeds:
        raise InputError(f"no result of {reference} to set others against; there are {', '.join(seeds)}")
    measured = _measure(results, seeds, bootstrap or Bootstrap())
    rows = []
    for name, above in zip(seeds, [None, *seeds], strict=False):
        step = measured.less(name, above)
        lead = measured.less(name, reference) if reference != above else None
        words = " ".join(filter(None, (_words(name, above, step), _words(name, reference, lead))))
        invalid = sum(len(results[k].invalid) for k in seeds[name])
        rows.append(Row(name, invalid, measured.scores(name), step, measured.less(name, reference), words))
    about = results[0].about
    notes = _notes(seeds, results)
    return Comparison(about.dataset, about.split, about.simulated, results[0].events, measured.n, tuple(rows), notes)


@dataclass(frozen=True)
class _Measured:
    """Of each metric and model: `values` [seeds], and `draws` [draws] of their mean; over `n` events."""

    values: dict[str, dict[str, NDArray[np.float64]]]
    draws: dict[str, dict[str, NDArray[np.float64]]]
    n: int
    method: str

    def scores(self, name: str) -> dict[str, Scores]:
        out = {}
        for metric in METRICS:
            own = self.values[metric][name]
            mean = Figure(float(own.mean()), *percentile_interval(self.draws[metric][name]), self.n, self.method)
            out[metric] = Scores(mean, float(own.std(ddof=1)) if len(own) > 1 else None, tuple(own.tolist()))
        return out

    def less(self, name: str, other: str | None) -> dict[str, Figure] | None:
        if other is None or other == name:
            return None
        out = {}
        for metric in METRICS:
            values, draws = self.values[metric], self.draws[metric]
            gap = float(values[name].mean() - values[other].mean())
            interval = percentile_interval(draws[name] - draws[other])
            out[metric] = Figure(gap, *interval, self.n, f"paired {self.method}")
        return out


def _measure(results: Sequence[Judgement], seeds: dict[str, list[int]], plan: Bootstrap) -> _Measured:
    labels, predictions, groups = paired(results)
    classes = len(results[0].about.classes)
    drawn = resampled(labels, predictions, groups, classes, plan)
    whole = np.stack([confusion(labels, own, classes) for own in predictions]).astype(np.float64)
    unit = "events" if results[0].answers.block is None else "blocks"
    return _Measured(
        {m: {name: METRICS[m](whole)[own] for name, own in seeds.items()} for m in METRICS},
        {m: _mean_draws(METRICS[m](drawn), seeds, plan.seed) for m in METRICS},
        len(labels),
        f"bootstrap over {unit} and seeds",
    )


def _mean_draws(draws: NDArray[np.float64], seeds: dict[str, list[int]], seed: int) -> dict[str, NDArray[np.float64]]:
    """A metric [models, draws] -> of each name [draws]: the mean over its seeds, these resampled in every draw."""
    random = np.random.default_rng(seed + 1)
    out = {}
    for name, own in seeds.items():
        picked = random.integers(0, len(own), (draws.shape[1], len(own)))
        out[name] = np.take_along_axis(draws[own].T, picked, axis=1).mean(axis=1)
    return out


def _words(name: str, other: str | None, step: dict[str, Figure] | None) -> str:
    """What may be said of a row against another."""
    if step is None or other is None:
        return ""
    parts = []
    for metric, figure in step.items():
        low, high = figure.low or 0.0, figure.high or 0.0
        gap = f"{TITLES[metric]} {figure.value:+.3f} ({low:+.3f} to {high:+.3f})"
        if low <= 0 <= high:
            parts.append(f"{gap}, within noise")
        else:
            parts.append(f"{gap}, {'better' if low > 0 else 'worse'}")
    return f"{name} against {other}: {'; '.join(parts)}."


def _notes(seeds: dict[str, list[int]], results: Sequence[Judgement]) -> tuple[str, ...]:
    notes = []
    few = [f"{name} ({len(own)})" for name, own in seeds.items() if len(own) < FEW_SEEDS]
    if few:
        notes.append(f"few seeds, so that what another seed would give is known badly: {', '.join(few)}")
    if results[0].answers.block is None:
        notes.append("intervals take events as independent; neighbours are not: judge with a block size for wider ones")
    return tuple(notes)


def _same(sources: Sequence[tuple[str, str, bool]]) -> None:
    apart = sorted({f"{dataset}, {split}, simulated {simulated}" for dataset, split, simulated in sources})
    if len(apart) > 1:
        raise InputError(f"results of different data or splits cannot be compared: {' | '.join(apart)}")


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    head = ["model", "seeds", "invalid"]
    head += [part for title in TITLES.values() for part in (title, "sd", "less row above")]
    return [head, *([row.model, *_counts(row), *_figures(row)] for row in rows)]


def _counts(row: Row) -> list[str]:
    return [str(len(row.scores["accuracy"].seeds)), str(row.invalid)]


def _figures(row: Row) -> list[str]:
    out = []
    for metric in TITLES:
        scores = row.scores[metric]
        out.append(f"{scores.mean.value:.3f} ({scores.mean.low:.3f}-{scores.mean.high:.3f})")
        out.append("" if scores.sd is None else f"{scores.sd:.3f}")
        step = row.above[metric] if row.above else None
        out.append("" if step is None else f"{step.value:+.3f} ({step.low:+.3f} to {step.high:+.3f})")
    return out
