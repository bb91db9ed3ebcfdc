"""Results of judging as values, and their JSON: what forests, networks and finished products have in common."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.training.intervals import Figure


@dataclass(frozen=True)
class About:
    """What is judged: `model` on `dataset` under `split`; `classes` in the order of the probabilities' columns."""

    model: str
    dataset: str
    split: str
    classes: tuple[str, ...]
    simulated: bool = False


@dataclass(frozen=True)
class Invalid:
    """An event that could not be judged, and why."""

    event_id: str
    reason: str


@dataclass(frozen=True)
class Answers:
    """Of each judged event: id, class index `label`, probabilities `p`, and the `block` it is resampled with."""

    event_id: tuple[str, ...]
    label: tuple[int, ...]
    p: tuple[tuple[float, ...], ...]
    block: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; `n` of precision counts events predicted so, `n` of recall events that are so."""

    name: str
    precision: Figure
    recall: Figure
    f1: Figure


@dataclass(frozen=True)
class Bin:
    """Of events with confidence in (low, high]: how many, mean confidence, share right with Wilson's interval."""

    low: float
    high: float
    confidence: float
    right: Figure


@dataclass(frozen=True)
class RiskCoverage:
    """Share wrong (`risk`) among the most confident share `coverage` of events; `area` is the mean over all of them."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float


@dataclass(frozen=True)
class Judgement:
    """What a model's answers are worth. `confusion` counts events, rows reference, columns predicted."""

    about: About
    events: int
    judged: int
    invalid: tuple[Invalid, ...]
    block_km: float | None
    accuracy: Figure
    macro_f1: Figure
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    log_loss: float
    ece: float
    reliability: tuple[Bin, ...]
    risk_coverage: RiskCoverage
    answers: Answers

    def to_json(self) -> str:
        """Return the JSON text of all figures and answers."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str) -> Judgement:
        """Read what `to_json` wrote; raises InputError naming the field at fault."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise InputError(f"not a result of judging: {'; '.join(str(error).splitlines()[:3])}") from error


_ADAPTER = TypeAdapter(Judgement)
