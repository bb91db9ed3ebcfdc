"""Small archives in the exact formats of ForestNet and Cam-ForestNet, with pixels a reader can compute.

Red, green, blue and the infrared bands of a pixel are functions of its row and column, and every auxiliary layer is a
ramp, so that an image that is turned, mirrored or mixed up shows.
"""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from PIL import Image

from pipeline.training.datasets.archive_auxiliary import NCEP

SIDE = 332
Naming = Literal["irvin", "tudelft", "supercon"]
HOLE = [(12, 22), (15, 22), (15, 27)]
POLYGON = shapely.Polygon([(10, 20), (60, 20), (60, 30), (20, 30), (20, 90), (10, 90)], [HOLE])
"""An L that looks different however it is turned or mirrored, with a hole; whole pixels but for the hole."""


@dataclass(frozen=True)
class Event:
    """One event to write: label as published, split, place, loss region (pixels; degrees for Cameroon), scenes."""

    label: str
    merged: str
    split: str
    latitude: float
    longitude: float
    region: Any = POLYGON
    year: int = 2014
    scenes: tuple[str, ...] = ()


SCENES = ("2016_05_01_cloud_12", "2015_03_09_cloud_0")
EVENTS = (
    Event("Oil palm plantation", "Plantation", "train", 1.5, 102.25, scenes=SCENES),
    Event("Small-scale agriculture", "Smallholder agriculture", "train", -1.25, 110.5),
    Event("Grassland shrubland", "Grassland shrubland", "val", -0.5, 114.5),
    Event("Fish pond", "Other", "test", 0.75, 117.125),
)  # fmt: skip


def visible(step: int = 0) -> np.ndarray:
    """Red = row, green = column, blue = their sum (plus `step`), uint8 [332, 332, 3]."""
    row, column = np.indices((SIDE, SIDE))
    return ((np.stack([row, column, row + column], axis=2) + step) % 256).astype(np.uint8)


def infrared(step: int = 0) -> np.ndarray:
    """Nir = 2 row, swir1 = 2 column, swir2 = row + 2 column (plus `step`), uint8 [332, 332, 3]."""
    row, column = np.indices((SIDE, SIDE))
    return ((np.stack([2 * row, 2 * column, row + 2 * column], axis=2) + step) % 256).astype(np.uint8)


def terrain() -> np.ndarray:
    """Altitude = row metres, aspect = 10 column and slope = row + column hundredths of a degree, [3, 332, 332]."""
    row, column = np.indices((SIDE, SIDE)).astype(np.float64)
    return np.stack([row, 10 * column, row + column])


def climate() -> np.ndarray:
    """Predictor k is 100 + k, [84]."""
    return 100.0 + np.arange(len(NCEP))


def write_auxiliary(folder: Path, naming: Naming, street: tuple[float, float], city: tuple[float, float]) -> None:
    """Write `auxiliary/`; street and city as (lat, lon). Forest gain is there too, as an array that would explode."""
    folder.mkdir(parents=True)
    places = {"street": street, "city": city}
    records = {f"closest_{k}": {"place_id": 1, "lat": str(lat), "lon": str(lon)} for k, (lat, lon) in places.items()}
    (folder / "peat.json").write_text(json.dumps({"peat": True}))
    gain = np.array([Explodes()], dtype=object)
    layers = dict(zip(("altitude", "aspect", "slope"), terrain(), strict=True))
    if naming == "tudelft":
        (folder / "osm.json").write_text(json.dumps(records))
        np.save(folder / "srtm.npy", terrain())
        np.save(folder / "ncep.npy", climate())
        np.save(folder / "gfc.npy", gain)
        return
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    for name, layer in layers.items():
        np.save(folder / f"{name}.npy", layer[None] if naming == "supercon" else layer)
    (folder / "ncep").mkdir()
    for name, value in zip(NCEP, climate(), strict=True):
        np.save(folder / "ncep" / f"{name}.npy", np.array(value))
    np.save(folder / "gain.npy", gain)


class Explodes:
    """Raises as soon as somebody unpickles it."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise AssertionError("forest gain was read")


def write_forestnet(folder: Path, events: Sequence[Event] = EVENTS, naming: Naming = "tudelft") -> Path:
    """Write an archive as Stanford publishes it."""
    rows = []
    for number, event in enumerate(events):
        path = f"examples/{event.latitude!r}_{event.longitude!r}"
        _write_event(folder / path, event, ("composite", *event.scenes), number)
        place = event.latitude, event.longitude
        near = (place[0], place[1] + 0.01), (place[0] - 0.1, place[1])
        write_auxiliary(folder / path / "auxiliary", naming, *near)
        rows.append((event, path))
    write_tables(folder, rows)
    return folder


def write_camforestnet(folder: Path, events: Sequence[Event]) -> Path:
    """Write an archive as Zenodo holds it: reversed names, regions in degrees, the year's own infrared name."""
    rows = []
    for number, event in enumerate(events):
        path = f"my_examples_landsat_final_detailed/{event.longitude!r}_{event.latitude!r}"
        _write_region(folder / path, event.region)
        images = _images(folder / path)
        stem = f"{event.year}_{event.longitude!r}_{event.latitude!r}"
        Image.fromarray(visible(number)).save(images / "visible" / f"{stem}.png")
        np.save(images / "infrared" / f"{event.year}_ir_0.npy", infrared(number))
        rows.append((event, path))
    write_tables(folder, rows)
    return folder


def write_tables(folder: Path, rows: Sequence[tuple[Event, str]]) -> None:
    """Write train.csv, val.csv and test.csv for the splits that occur."""
    for split in sorted({event.split for event, _ in rows}):
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["label", "merged_label", "latitude", "longitude", "year", "example_path"])
            table.writerows(
                [e.label, e.merged, repr(e.latitude), repr(e.longitude), e.year, path]
                for e, path in rows
                if e.split == split
            )


def _write_event(folder: Path, event: Event, stems: Sequence[str], number: int) -> None:
    _write_region(folder, event.region)
    images = _images(folder)
    for k, stem in enumerate(stems):
        Image.fromarray(visible(number + 10 * k)).save(images / "visible" / f"{stem}.png")
        np.save(images / "infrared" / f"{stem}.npy", infrared(number + 10 * k))


def _write_region(folder: Path, region: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "forest_loss_region.pkl").write_bytes(pickle.dumps(region))


def _images(folder: Path) -> Path:
    for kind in ("visible", "infrared"):
        (folder / "images" / kind).mkdir(parents=True)
    return folder / "images"
