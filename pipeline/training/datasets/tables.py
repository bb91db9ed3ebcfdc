"""Label tables as ForestNet and Cam-ForestNet publish them: train.csv, val.csv, test.csv (or all.csv)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.errors import InputError
from pipeline.labels import FOREST_LOSS_DRIVERS, DriverClass, LabelScheme

COLUMNS = ("label", "merged_label", "latitude", "longitude", "year", "example_path")
SPLITS = ("train", "val", "test")
Level = Literal["merged", "fine"]

_MERGED = {
    "Plantation": "plantation",
    "Smallholder agriculture": "smallholder_agriculture",
    "Grassland shrubland": "grassland_shrubland",
    "Other": "other",
}
"""ForestNet's merged titles, spelled as published, to class names. By name, never by order: orders differ."""

_COLOURS = (
    "#1b7837", "#e6a11f", "#b6d77a", "#7b4fa3", "#2166ac", "#d6604d", "#4d4d4d", "#80cdc1",
    "#dfc27d", "#c51b7d", "#8c510a", "#01665e", "#f4a582", "#92c5de", "#bababa", "#542788",
)  # fmt: skip


def read_labels(folder: Path, level: Level = "merged") -> tuple[pd.DataFrame, LabelScheme]:
    """Return (events, scheme) of a folder of label tables.

    The events have the columns of `base.EVENT_COLUMNS`, `image` -1 and `number` 1, plus `example_path` as published;
    `split` is the name of the table a row stands in, "" for all.csv. ForestNet's four merged classes become the
    project's own scheme; other titles become classes in alphabetical order. Raises InputError naming file and fault.
    """
    tables = [(split, folder / f"{split}.csv") for split in SPLITS if (folder / f"{split}.csv").is_file()]
    if not tables and (folder / "all.csv").is_file():
        tables = [("", folder / "all.csv")]
    if not tables:
        raise InputError(f"{folder}: no train.csv, val.csv, test.csv or all.csv there")
    rows = pd.concat([_read(path).assign(split=split) for split, path in tables], ignore_index=True)
    titles = rows["merged_label" if level == "merged" else "label"]
    scheme, index = _scheme(titles)
    events = pd.DataFrame(
        {
            "event_id": rows["example_path"].str.rsplit("/", n=1).str[-1],
            "image": -1,
            "number": 1,
            "label": titles.map(index).astype(int),
            "title": rows["label"],
            "latitude": rows["latitude"],
            "longitude": rows["longitude"],
            "loss_year": rows["year"],
            "split": rows["split"],
            "fault": "",
            "example_path": rows["example_path"],
        }
    )
    return events, scheme


def _read(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table: {error}") from error
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
    rows = rows[list(COLUMNS)]
    empty = rows.isna().any(axis=1)
    if empty.any():
        raise InputError(
            f"{path}: line {int(empty.to_numpy().argmax()) + 2} has an empty cell; fill it or remove the line"
        )
    try:
        rows = rows.astype({"latitude": float, "longitude": float, "year": int})
    except ValueError as error:
        raise InputError(f"{path}: latitude, longitude and year must be numbers: {error}") from error
    outside = ~(rows["latitude"].between(-90, 90) & rows["longitude"].between(-180, 180))
    if outside.any():
        raise InputError(f"{path}: line {int(outside.to_numpy().argmax()) + 2} has coordinates that are not degrees")
    return rows


def _scheme(titles: pd.Series) -> tuple[LabelScheme, dict[str, int]]:
    """The scheme of some titles, and title -> class index."""
    present = set(titles)
    if present <= set(_MERGED):
        names = FOREST_LOSS_DRIVERS.names
        return FOREST_LOSS_DRIVERS, {title: names.index(name) for title, name in _MERGED.items()}
    ordered = sorted(present)
    classes = (
        DriverClass(k + 1, _class_name(title), title, _COLOURS[k % len(_COLOURS)]) for k, title in enumerate(ordered)
    )
    return LabelScheme(tuple(classes)), {title: k for k, title in enumerate(ordered)}


def _class_name(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower()).strip("_")[:40]
