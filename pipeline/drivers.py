"""Logits to drivers: one class, calibrated probabilities and a status for each event."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.labels import LabelScheme
from pipeline.models.calibration import calibrated
from pipeline.models.card import Calibration

CLASSIFIED, UNCERTAIN, NO_IMAGERY, FAILED = "classified", "uncertain", "no_imagery", "failed"
AWAITING = "awaiting"
"""Column of events: no image shows it clear yet, a later one may (see `pipeline.late`)."""


@dataclass(frozen=True)
class Drivers:
    """Answers by event: status [n], p float64 [n, classes] (NaN where none), index of the class [n] (-1 where none)."""

    status: np.ndarray
    probabilities: np.ndarray
    best: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """Largest probability of each event, NaN where there is none."""
        found = self.best >= 0
        out = np.full(len(self.best), np.nan)
        out[found] = self.probabilities[found, self.best[found]]
        return out


@dataclass(frozen=True)
class DriverParams:
    """The model's calibration, and the confidence below which an event is `uncertain`."""

    calibration: Calibration = field(default_factory=Calibration)
    uncertain_below: float = 0.5


def decide(
    logits: np.ndarray, clear: np.ndarray, failed: np.ndarray, scheme: LabelScheme, params: DriverParams
) -> Drivers:
    """Turn the logits of events into drivers, calibrated (`calibration.calibrated`).

    Args:
        logits: float64 [n, classes], means over the clear pixels (`LogitSums.mean`), or what a region head made of
            them; rows of events without clear pixels are not read.
        clear: int64 [n], clear pixels.
        failed: bool [n], some block of the event could not be computed.
        scheme: classes in the order of the logits.
        params: calibration and threshold.
    """
    seen = (clear > 0) & ~failed
    p = np.full((len(clear), len(scheme)), np.nan)
    # nine digits are far below what a model knows and make equal answers equal in print
    p[seen] = np.round(calibrated(logits[seen], params.calibration), 9) if seen.any() else p[seen]
    best = np.where(seen, np.nan_to_num(p, nan=-1.0).argmax(axis=1), -1)
    confidence = np.where(seen, np.nan_to_num(p, nan=-1.0).max(axis=1), np.nan)
    status = np.where(failed, FAILED, np.where(~seen, NO_IMAGERY, CLASSIFIED)).astype(object)
    status[seen & (confidence < params.uncertain_below)] = UNCERTAIN
    return Drivers(status, p, best)
