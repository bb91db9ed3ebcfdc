"""Areas of a run: `summary`, `estimates` and what the run record says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pipeline.areas.reference import match_events, read_answers
from pipeline.areas.sources import Source, card_source, sample_source
from pipeline.areas.tables import adjusted_summary, estimates_table
from pipeline.config import Reference
from pipeline.models.card import ModelCard
from pipeline.units import summary_table

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

NO_SOURCE = (
    "Areas are sums of mapped pixels and carry the model's errors: neither the model card (error_matrix) nor reference "
    "labels (`clearcause sample`, then the key `reference`) allow an estimate."
)


def estimate_areas(
    events: GeoDataFrame, card: ModelCard, reference: Reference | None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]:
    """Tables `summary` and `estimates` of events (with units), and the record of what they rest on.

    Reference labels of this region come before the model card's error matrix. Raises ConfigError for labels that
    cannot be used.
    """
    names = card.scheme.names
    source = choose_source(events, card, reference)
    summary = summary_table(events)
    if source is None:
        return summary, estimates_table(events, None, names), {"interval_source": None, "note": NO_SOURCE}
    return adjusted_summary(summary, events, source, names), estimates_table(events, source, names), source.record()


def choose_source(events: GeoDataFrame, card: ModelCard, reference: Reference | None) -> Source | None:
    """What this run's areas are adjusted by: reference labels if given, else the card's error matrix, else nothing."""
    if reference is None:
        return card_source(card)
    names = card.scheme.names
    answers = read_answers(reference.path, names, reference.layer, reference.column)
    return sample_source(match_events(answers, events, names), len(names))
