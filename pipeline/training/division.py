"""Which events train, validate and test: `Split` of the configuration to rows of the event table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.training.datasets.tables import SPLITS
from pipeline.training.splits import block_folds, random_folds

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.training.params import Split

_FOLDS = 20
"""Shares are given in twentieths."""


@dataclass(frozen=True)
class Division:
    """Rows (int64) of the event table for each purpose, and the `name` of the split they come from."""

    name: str
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of `train`, `val` or `test`; raises InputError for another name."""
        if split not in SPLITS:
            raise InputError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        rows: NDArray[np.int64] = getattr(self, split)
        return rows


def divide(events: pd.DataFrame, split: Split) -> Division:
    """Divide an event table; events at fault stay with their part, to be counted there.

    `published` takes the table's own split; where that has no test events, they are missing here too. Raises
    InputError where there is nothing to train on or to validate by.
    """
    if split.kind == "published":
        name, parts = "published", [np.flatnonzero(events["split"] == part) for part in SPLITS]
    else:
        made = (
            random_folds(events, _FOLDS, split.seed)
            if split.kind == "random"
            else block_folds(events, split.km, _FOLDS, split.seed)
        )
        at = np.rint(np.cumsum((0.0, *split.shares)) * _FOLDS).astype(int)
        tests = [fold.test for fold in made.folds]
        parts = [np.sort(np.concatenate(tests[a:b])) for a, b in pairwise(at)]
        name = "random" if split.kind == "random" else f"{split.km:g} km blocks"
        name = f"{name}, seed {split.seed}"
    for part, rows in zip(("train", "val"), parts, strict=False):
        if not len(rows):
            raise InputError(f"split {name}: no {part} events; set split.kind to random or blocks")
    return Division(name, parts[0], parts[1], parts[2])
