"""Our own format: labelled events and the imagery a run made of them. `write.py` writes it, this module reads it.

A folder holds `dataset.json` (see `DatasetRecord`), `events.gpkg` (layer `events`) and, for every image,
`images/<image>/composite.tif` and `<YYYY-MM-DD>_<scene id>.tif`: uint16 in Collection 2 coding (reflectance =
DN * 0.0000275 - 0.2, 0 = not observed), all looks of an image on one grid. Columns of the layer: event_id, image,
driver (class name, empty = not known), loss_year, split, fault (of its imagery, as written), and any number of
`aux_<name>`. Drivers and splits may be edited by hand, rows removed.
"""

from __future__ import annotations

import datetime
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio
import shapely
from pydantic import BaseModel, ConfigDict, ValidationError
from rasterio.errors import RasterioError

from pipeline.auxiliary.sample import LEAK_WORDS, LEAKS
from pipeline.catalog.scene import BANDS
from pipeline.errors import InputError
from pipeline.events import burn_events
from pipeline.grid import RunGrid, read_vector
from pipeline.labels import LabelScheme
from pipeline.plan import AUXILIARY_PREFIX
from pipeline.training.datasets.base import DriverDataset, Look, check_events
from pipeline.training.datasets.tables import SPLITS

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray

DATASET_FILE, EVENTS_FILE, LAYER = "dataset.json", "events.gpkg", "events"
SCALE, OFFSET = 0.0000275, -0.2
COLUMNS = ("event_id", "image", "driver", "loss_year", "split", "fault")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LookRecord(_Strict):
    """A look's file below its image's folder; `cloud` is the share of the image not clear, in percent."""

    file: str
    scene: str = ""
    date: datetime.date | None = None
    cloud: float | None = None


class ImageRecord(_Strict):
    """An image: its folder below `images/`, and its looks, the composite first."""

    name: str
    loss_year: int
    looks: tuple[LookRecord, ...]


class DatasetRecord(_Strict):
    """Contents of `dataset.json`: `resolution` in metres a pixel, `chip_m` in metres, `classes` as in a model card."""

    format: int
    name: str
    bands: tuple[str, ...]
    resolution: float
    chip_m: float
    classes: tuple[dict[str, Any], ...]
    licence: str
    simulated: bool
    images: tuple[ImageRecord, ...]


class EventsDataset(DriverDataset):
    """A folder of our own format: many events an image.

    Attributes:
        refused: auxiliary columns that are left out because they give the answer away, with the reason.

    Raises:
        InputError: naming the file and what is wrong with it. An event that cannot be used is a row with its fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, record = folder, read_record(folder)
        self.name, self.licence, self.simulated = record.name, record.licence, record.simulated
        self.bands, self.resolution, self.chip_m = record.bands, record.resolution, record.chip_m
        self.scheme = LabelScheme.from_list(list(record.classes))
        self._images = record.images
        self._grids = [_grid(folder / "images" / image.name / image.looks[0].file) for image in record.images]
        frame = _read_layer(folder / EVENTS_FILE)
        self._geometry = frame.geometry
        self.refused: dict[str, str] = {}
        self.auxiliary = self._predictors(frame)
        self.events = self._table(frame)
        check_events(self.events, self.scheme, str(folder / EVENTS_FILE))

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return len(self._images)

    def looks(self, image: int) -> tuple[Look, ...]:
        """Return the looks of an image, the composite first, then single scenes by date."""
        scenes = self._images[image].looks[1:]
        return Look("composite"), *(Look(Path(s.file).stem, s.date, s.cloud) for s in scenes)

    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [bands, H, W] surface reflectance, NaN = not observed; raises InputError naming the file."""
        record, grid = self._images[image], self._grids[image]
        path = self.folder / "images" / record.name / record.looks[look].file
        try:
            with rasterio.open(path, driver="GTiff") as file:
                numbers = file.read()
        except RasterioError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        expected = len(self.bands), grid.height, grid.width
        if numbers.shape != expected or numbers.dtype != np.uint16:
            raise InputError(f"{path}: {numbers.dtype} {numbers.shape}, expected uint16 {expected}")
        return from_numbers(numbers)

    def regions(self, image: int) -> NDArray[np.int32]:
        """Return int32 [H, W]: the number of the event each pixel belongs to, 0 = none."""
        return burn(self._geometry[self._rows[image]], self._grids[image])

    def _table(self, frame: GeoDataFrame) -> pd.DataFrame:
        """The event table; faults are those of the imagery as written, and those of the labels as they stand now."""
        index = {image.name: k for k, image in enumerate(self._images)}
        names = frame["image"].fillna("")
        unknown = sorted(set(names) - set(index) - {""})
        if unknown:
            raise InputError(f"{self.folder / EVENTS_FILE}: image {unknown[0]!r} is not in {DATASET_FILE}")
        image = np.array([index.get(name, -1) for name in names], np.int64)
        labels, faults = self._labels(frame)
        points = shapely.get_coordinates(shapely.point_on_surface(self._geometry.to_numpy()))
        events = pd.DataFrame(
            {
                "event_id": frame["event_id"].astype(str), "image": image, "number": 1, "label": labels,
                "title": frame["driver"].fillna(""), "latitude": points[:, 1], "longitude": points[:, 0],
                "loss_year": frame["loss_year"].astype(int), "split": frame["split"].fillna(""), "fault": faults,
            }
        ).reset_index(drop=True)  # fmt: skip
        self._rows = [np.flatnonzero(image == k) for k in range(len(self._images))]
        for k, rows in enumerate(self._rows):
            events.loc[rows, "number"] = np.arange(1, len(rows) + 1)
            seen = np.bincount(self.regions(k).ravel(), minlength=len(rows) + 1)[1:]
            lost = rows[(seen == 0) & (events.loc[rows, "fault"] == "").to_numpy()]
            events.loc[lost, "fault"] = "no pixel of its image is its own"
        return events

    def _labels(self, frame: GeoDataFrame) -> tuple[list[int], list[str]]:
        """Class index (0 where not known) and fault of each event."""
        names, labels, faults = self.scheme.names, [], []
        for event, driver, image, fault in zip(
            frame["event_id"], frame["driver"].fillna(""), frame["image"].fillna(""), frame["fault"].fillna(""),
            strict=True,
        ):  # fmt: skip
            name = str(driver).strip()
            if name and name not in names:
                raise InputError(
                    f"{self.folder / EVENTS_FILE}: event {event} has the driver {name!r}; known are {', '.join(names)}"
                )
            labels.append(names.index(name) if name else 0)
            faults.append(str(fault) or ("no driver" if not name else "" if image else "no image"))
        return labels, faults

    def _predictors(self, frame: GeoDataFrame) -> pd.DataFrame | None:
        columns = {}
        for column in (str(name) for name in frame.columns if str(name).startswith(AUXILIARY_PREFIX)):
            name = column.removeprefix(AUXILIARY_PREFIX)
            if leak := _leak(name):
                self.refused[name] = f"{leak!r} in its name says that it comes from the loss or its labels"
                continue
            try:
                columns[name] = frame[column].to_numpy(np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise InputError(f"{self.folder / EVENTS_FILE}: {column} must hold numbers: {error}") from error
        return pd.DataFrame(columns) if columns else None


def read_record(folder: Path) -> DatasetRecord:
    """Read `dataset.json`; raises InputError naming the file and the fault."""
    path = folder / DATASET_FILE
    try:
        record = DatasetRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{path}: {'; '.join(str(error).splitlines()[:3])}") from error
    if record.format != 1:
        raise InputError(f"{path}: format {record.format}; this program reads format 1")
    unknown = [band for band in record.bands if band not in BANDS]
    if unknown or not record.bands:
        raise InputError(f"{path}: unknown bands {unknown}; known are {list(BANDS)}")
    for image in record.images:
        parts = [image.name, *(look.file for look in image.looks)]
        if not image.looks or any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            raise InputError(f"{path}: image {image.name!r} needs looks, and names without folders")
    return record


def to_numbers(reflectance: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Reflectance (NaN = not observed) to Collection 2 numbers, 0 = not observed."""
    numbers = np.clip(np.rint((reflectance - np.float64(OFFSET)) / SCALE), 1, 65535)
    return np.where(np.isnan(numbers), 0, numbers).astype(np.uint16)


def from_numbers(numbers: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Collection 2 numbers to float32 reflectance, NaN = not observed."""
    reflectance = numbers.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    reflectance[numbers == 0] = np.nan
    return reflectance


def burn(geometry: Any, grid: RunGrid) -> NDArray[np.int32]:
    """Return int32 [H, W]: k + 1 where event k of `geometry` (EPSG:4326) lies, by the very code a run burns with."""
    import geopandas as gpd

    if not len(geometry):
        return np.zeros((grid.height, grid.width), np.int32)
    frame = gpd.GeoDataFrame(geometry=np.asarray(geometry), crs="EPSG:4326")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "labels.tif"
        burn_events(frame, grid, path)
        with rasterio.open(path) as raster:
            return np.asarray(raster.read(1), np.int32)


def _grid(path: Path) -> RunGrid:
    try:
        with rasterio.open(path, driver="GTiff") as file:
            if file.crs is None:
                raise InputError(f"{path}: has no CRS")
            affine = file.transform
            return RunGrid(file.crs.to_wkt(), affine.a, affine.c, affine.f, file.height, file.width, 2048)
    except RasterioError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _read_layer(path: Path) -> GeoDataFrame:
    frame = read_vector(path, LAYER, "events")
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise InputError(f"{path}: layer {LAYER} lacks the columns {', '.join(missing)}")
    wrong = sorted(set(frame["split"].fillna("")) - {*SPLITS, ""})
    if wrong:
        raise InputError(f"{path}: split {wrong[0]!r}; write {', '.join(SPLITS)} or nothing")
    empty = frame.geometry.isna() | frame.geometry.is_empty
    if empty.any():
        raise InputError(f"{path}: event {frame.loc[empty, 'event_id'].iloc[0]} has no geometry; remove the row")
    return frame.to_crs("EPSG:4326").reset_index(drop=True)


def _leak(name: str) -> str:
    """The word in a predictor's name that says it holds the answer, "" where there is none."""
    joined, words = re.sub(r"[^a-z0-9]", "", name.lower()), re.split(r"[^a-z]+", name.lower())
    found = [leak for leak in LEAKS if leak in joined] + [word for word in LEAK_WORDS if word in words]
    return found[0] if found else ""
