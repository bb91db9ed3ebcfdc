"""What a plan keeps of sampled predictors: the files they came from, and what a reader must know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts import file_sha256
from pipeline.models.card import REACH

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.config import Auxiliary
    from pipeline.models.card import RegionSpec


@dataclass(frozen=True)
class AuxiliarySource:
    """A file that predictors were sampled from, its `sha256` ("" for a folder), and the events without a value."""

    columns: tuple[str, ...]
    measure: str
    file: str
    bytes: int
    sha256: str
    missing: int


def describe_sources(specs: Sequence[Auxiliary], table: pd.DataFrame) -> tuple[AuxiliarySource, ...]:
    """Name the files behind a table of predictors [events, columns]."""
    return tuple(
        AuxiliarySource(
            columns=spec.columns,
            measure=spec.measure,
            file=spec.path.name,
            bytes=spec.path.stat().st_size,
            sha256=file_sha256(spec.path) if spec.path.is_file() else "",
            missing=int(table[list(spec.columns)].isna().any(axis=1).sum()),
        )
        for spec in specs
    )


def doubts(sources: Sequence[AuxiliarySource], table: pd.DataFrame, region: RegionSpec | None) -> list[str]:
    """Warnings: predictors that are missing, and those far from what the model's region head was trained on."""
    said = [
        f"auxiliary {source.columns[0]}: missing for {source.missing} of {len(table)} events"
        for source in sources
        if source.missing
    ]
    for column in region.auxiliary if region else ():
        beyond = int(((table[column.name] - column.mean).abs() > REACH * column.std).sum())
        if beyond:
            said.append(
                f"auxiliary {column.name}: {beyond} of {len(table)} events lie more than {REACH:g} standard deviations "
                "from the mean of the model's training, and are taken as that far"
            )
    return said
