"""Where adjusted areas come from: the error matrix of a model card, or reference labels of a sample of this map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.areas.shares import Shares, shares_of_counts, shares_of_sample
from pipeline.areas.stratified import Design, Floats
from pipeline.models.card import ModelCard

MODEL_CARD, SAMPLE, SAMPLE_REGION = "model_card", "sample", "sample_region"
"""Values of `interval_source`; the last: the shares of the whole sample, applied to a part of the region."""


@dataclass(frozen=True)
class ReferenceSample:
    """Labelled units of a sample, brought to a map of K classes.

    Attributes:
        design: how they were drawn; unlabelled ones are left out of it.
        mapped: class index on the map [n], -1 where the map gives no driver.
        reference: class index as labelled [n].
        size: hectares of each unit [n]; ones where units are points, each standing for the same area.
        unit_id: unit of each [n].
        loss_year: loss year of each [n].
        drawn: units drawn or given.
        cannot_tell: units whose interpreter could not tell.
        remarks: what a reader of the estimates must know.
    """

    design: Design
    mapped: NDArray[np.int64]
    reference: NDArray[np.int64]
    size: Floats
    unit_id: NDArray[np.object_]
    loss_year: NDArray[np.int64]
    drawn: int
    cannot_tell: int
    remarks: tuple[str, ...] = ()

    def shares(self, classes: int, inside: NDArray[np.bool_] | None = None, by_area: bool = True) -> Shares:
        """Shares of mapped classes, of the units `inside` [n] or of all; by area or by number of units."""
        mapped = self.mapped if inside is None else np.where(inside, self.mapped, -1)
        return shares_of_sample(
            self.design, mapped, self.reference, self.size if by_area else np.ones(len(mapped)), classes
        )


@dataclass(frozen=True)
class Source:
    """What areas are adjusted by: shares, the `note` a reader must see with them, and the sample if there is one."""

    kind: Literal["model_card", "sample"]
    shares: Shares
    note: str
    sample: ReferenceSample | None = None

    def record(self) -> dict[str, object]:
        """What the run record says of it."""
        out: dict[str, object] = {
            "interval_source": self.kind,
            "reference_events": int(self.shares.reference_n.sum()),
            "note": self.note,
        }
        if self.sample is not None:
            out |= {"drawn": self.sample.drawn, "cannot_tell": self.sample.cannot_tell}
        return out


def card_source(card: ModelCard) -> Source | None:
    """The error matrix of a model card as a source; None where it carries none."""
    matrix = card.error_matrix
    if matrix is None:
        return None
    note = (
        f"Areas are adjusted by the error matrix of model {card.name} {card.version}, from {matrix.n} labelled events "
        f"({matrix.split}). That holds where the model is as accurate here as it was there, and no sample of this "
        "region has checked it."
    )
    if card.simulated:
        note += " Those events are simulated: the intervals show how this works and prove nothing about real land."
    return Source("model_card", shares_of_counts(np.array(matrix.counts, np.int64)), note)


def sample_source(sample: ReferenceSample, classes: int) -> Source:
    """A labelled sample of this map as a source."""
    note = (
        f"Areas are estimated from a reference sample of this region: {len(sample.reference)} of {sample.drawn} "
        f"labelled, {sample.cannot_tell} that the interpreter could not tell (left out, as if they were like the "
        "others of their stratum). Where a unit or year has too few of its own, those of the whole region are applied."
    )
    return Source("sample", sample.shares(classes), " ".join([note, *sample.remarks]), sample)
