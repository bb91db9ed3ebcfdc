"""ForestNet (Irvin et al. 2020, CC BY 4.0) exactly as its archive is published.

Images are Landsat 8 top-of-atmosphere reflectance at 15 m (visible bands pan-sharpened), *stretched for display* to
8 bits: values 0..1 here are shades of grey, not reflectance, and a model trained on them must not be given any other.
Nothing in the archive marks a pixel as not observed, so no value is NaN.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio.features
import shapely
from affine import Affine
from PIL import Image, ImageEnhance, UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.training.datasets.archive_auxiliary import REFUSED, UNITS, read_auxiliary
from pipeline.training.datasets.base import DriverDataset, Look, check_events
from pipeline.training.datasets.shapes import read_region
from pipeline.training.datasets.tables import Level, read_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 332
RESOLUTION = 15.0
SIMULATED_FILE = "SIMULATED.txt"
"""Stands in an archive of this format that was simulated; its first line says how."""
_SCENE = re.compile(r"(\d{4})_(\d{2})_(\d{2})_cloud_(\d+)\.png")


@dataclass(frozen=True)
class LookFiles:
    """One look and its two files: visible (png, red green blue) and infrared (npy, nir swir1 swir2)."""

    look: Look
    visible: Path
    infrared: Path


class ForestNet(DriverDataset):
    """ForestNet's archive: one event an image, 332 x 332 pixels of 15 m, the composite first, then single scenes.

    Attributes:
        brightness: factor on the visible bands before scaling, cut off at white. The published code applies 1.5 on
            every load; the default is none.
        refused: predictors that are never read, by name, with the reason.
        incomplete: scenes left out because one of their two files is missing.
        unreadable: auxiliary files that are there but cannot be read; known once `auxiliary` was asked for.
        units: predictor to unit.

    Raises:
        InputError: for label tables that cannot be read. An event that cannot be used is a row with its fault.
    """

    name = "ForestNet"
    bands = ("blue", "green", "red", "nir08", "swir16", "swir22")
    resolution = RESOLUTION
    chip_m = SIDE * RESOLUTION
    licence = "CC BY 4.0"
    units = UNITS

    def __init__(self, folder: Path, level: Level = "merged", brightness: float | None = None) -> None:
        if brightness is not None and not 0 < brightness < 100:
            raise InputError(f"{folder}: brightness {brightness} must be a factor above 0")
        self.folder, self.brightness, self.refused = folder, brightness, dict(REFUSED)
        self.simulated = (folder / SIMULATED_FILE).is_file()
        if self.simulated:
            self.name, self.licence = f"simulated archive in the format of {self.name}", "Apache-2.0, simulated"
        events, self.scheme = read_labels(folder, level)
        self.incomplete: list[Path] = []
        self.unreadable: list[Path] = []
        self._files: list[tuple[LookFiles, ...]] = []
        self._rows: list[int] = []
        self.events = events
        faults, images = zip(*(self._inspect(row) for row in range(len(events))), strict=True)
        self.events = events.assign(fault=list(faults), image=list(images))
        check_events(self.events, self.scheme, str(folder))

    @property
    def images(self) -> int:
        """Return how many events have an image."""
        return len(self._files)

    def looks(self, image: int) -> tuple[Look, ...]:
        """Return the looks of an image, the composite first, then single scenes by date."""
        return tuple(files.look for files in self._files[image])

    def read(self, image: int, look: int = 0) -> NDArray[np.float32]:
        """Return float32 [6, 332, 332], 0..1, stretched top-of-atmosphere reflectance.

        Raises:
            InputError: naming the file that is missing, damaged or of another shape.
        """
        files = self._files[image][look]
        visible, infrared = self._visible(files.visible), _infrared(files.infrared)
        # published as red, green, blue; ours go by wavelength
        stacked = np.concatenate([visible[:, :, ::-1], infrared], axis=2).transpose(2, 0, 1)
        return np.ascontiguousarray(stacked / np.float32(255), np.float32)

    def regions(self, image: int) -> NDArray[np.int32]:
        """Return int32 [332, 332]: 1 where the pixel's centre lies in the event's region, 0 elsewhere."""
        row = self._rows[image]
        if self.events.at[row, "fault"]:
            return np.zeros((SIDE, SIDE), np.int32)
        return burn(self._region(row)).astype(np.int32)

    @cached_property
    def auxiliary(self) -> pd.DataFrame:  # type: ignore[override]
        """Return float64 [events, predictors], NaN = missing; see `units`. Read on first use: the files are large."""
        rows, image_of = [], {row: image for image, row in enumerate(self._rows)}
        for row in range(len(self.events)):
            image = image_of.get(row)
            region = np.zeros((SIDE, SIDE), bool) if image is None else self.regions(image) > 0
            found = read_auxiliary(self._event_folder(row) / "auxiliary", region, self._place(row))
            rows.append(found.values)
            self.unreadable += found.unreadable
        return pd.DataFrame(rows, columns=list(UNITS), dtype=np.float64)

    def _place(self, row: int) -> tuple[float, float]:
        """Latitude and longitude of an event as labelled."""
        latitude, longitude = self.events.loc[row, ["latitude", "longitude"]].to_numpy(np.float64)
        return float(latitude), float(longitude)

    def _event_folder(self, row: int) -> Path:
        path = (self.folder / str(self.events.at[row, "example_path"])).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.folder}: example_path of row {row} leads out of the archive: {path}")
        return path

    def _inspect(self, row: int) -> tuple[str, int]:
        """The fault of an event ("" where none) and the index of its image (-1 where none); keeps the image's files."""
        folder = self._event_folder(row)
        looks = self._look_files(folder / "images")
        if not looks or looks[0].look.name != "composite":
            return "no image: composite missing", -1
        if (shape := _shape(looks[0])) != (SIDE, SIDE):
            return f"composite: {'unreadable' if shape is None else f'shape {shape}, expected {SIDE} x {SIDE}'}", -1
        self._files.append(looks)
        self._rows.append(row)
        return self._region_fault(row), len(self._files) - 1

    def _region_fault(self, row: int) -> str:
        try:
            shape = self._region(row)
        except InputError as error:
            return str(error)
        if shape.is_empty:
            return "the loss region is empty"
        return "" if burn(shape).any() else "the loss region lies outside the image"

    def _region(self, row: int) -> Any:
        """The event's region in pixels of its image: x to the right, y down, from the upper left corner."""
        return read_region(self._event_folder(row) / "forest_loss_region.pkl")

    def _look_files(self, images: Path) -> tuple[LookFiles, ...]:
        """The composite and the single scenes of an event, by date, that have both files."""
        infrared = images / "infrared"
        found = [
            LookFiles(Look("composite"), path, infrared / "composite.npy")
            for path in (images / "visible" / "composite.png",)
            if path.is_file()
        ]
        for path in sorted((images / "visible").glob("*.png")):
            if told := _SCENE.fullmatch(path.name):
                look = Look(path.stem, _day(told), float(told[4]))
                found.append(LookFiles(look, path, infrared / f"{path.stem}.npy"))
        self.incomplete += [files.visible for files in found if not files.infrared.is_file()]
        return tuple(files for files in found if files.infrared.is_file())

    def _visible(self, path: Path) -> NDArray[np.float32]:
        """Red, green, blue as float32 [332, 332, 3], 0..255."""
        try:
            with Image.open(path, formats=["PNG"]) as file:
                _check_shape(path, (file.height, file.width))
                picture = file.convert("RGB")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable PNG ({error})") from error
        if self.brightness is not None:
            picture = ImageEnhance.Brightness(picture).enhance(self.brightness)
        return np.asarray(picture, np.float32)


def burn(shape: Any) -> NDArray[np.uint8]:
    """Return uint8 [332, 332]: 1 where a pixel's centre lies in a shape given in pixels, x right, y down.

    A shape too small for any pixel centre takes the pixel under a point on its surface, as in a run.
    """
    if shape.is_empty:
        return np.zeros((SIDE, SIDE), np.uint8)
    burned = rasterio.features.rasterize([(shape, 1)], (SIDE, SIDE), transform=Affine.identity(), dtype="uint8")
    if not burned.any():
        point = shapely.point_on_surface(shape)
        row, column = int(np.floor(point.y)), int(np.floor(point.x))
        if 0 <= row < SIDE and 0 <= column < SIDE:
            burned[row, column] = 1
    return np.asarray(burned, np.uint8)


def _day(told: re.Match[str]) -> datetime.date | None:
    try:
        return datetime.date(int(told[1]), int(told[2]), int(told[3]))
    except ValueError:
        return None


def _infrared(path: Path) -> NDArray[np.float32]:
    """Near infrared and two shortwave infrared bands as float32 [332, 332, 3], 0..255."""
    try:
        values = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable array ({error})") from error
    _check_shape(path, values.shape[:2])
    if values.shape != (SIDE, SIDE, 3):
        raise InputError(f"{path}: shape {values.shape}, expected {(SIDE, SIDE, 3)}")
    # written so that NaN fails too
    if not (values.min() >= 0 and values.max() <= 255):
        raise InputError(f"{path}: values {values.min():g} to {values.max():g} are not of 8 bits")
    return np.asarray(values, np.float32)


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if shape != (SIDE, SIDE):
        raise InputError(f"{path}: {shape} pixels, expected {(SIDE, SIDE)}")


def _shape(files: LookFiles) -> tuple[int, ...] | None:
    """Rows and columns of a look as both headers say; the one that is wrong where they differ; None if unreadable."""
    try:
        with Image.open(files.visible, formats=["PNG"]) as file:
            shape: tuple[int, ...] = file.height, file.width
        infrared = np.load(files.infrared, mmap_mode="r", allow_pickle=False).shape
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    good = shape == (SIDE, SIDE)
    return shape if not good or infrared == (SIDE, SIDE, 3) else infrared
