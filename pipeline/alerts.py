"""Loss rasters by coding: the loss year of each pixel, and its day where the coding tells one.

| `loss.coding` | a pixel holds | confidence |
|---|---|---|
| `hansen` | the loss year, k = 2000 + k, 0 = none (Hansen et al. 2013, Global Forest Change `lossyear`) | none |
| `integrated` | a digit, then four digits: days since 2014-12-31; 0 = none | digit 2 low, 3 high, 4 highest |
| `radd` | band Date: YYDDD, year and day of the year; band Alert: the confidence | 2 low, 3 high |
| `glad` | band alertDate: day of the year named by the band or the file; band alert (once conf) | 2 low, 3 high |

`integrated` is the layout of every alert raster that Global Forest Watch hands out: integrated alerts, and RADD, GLAD-L
and GLAD-S2 alone. Its metadata gives 20001 = low, 2015-01-01; 30055 = high, 2015-02-24; 41847 = highest, 2020-01-21.
`radd` is Wageningen University's own (Reiche et al. 2021, doi:10.1088/1748-9326/abd0a8; Earth Engine asset
projects/radar-wur/raddalert/v1, whose catalog gives 22121 = day 121 of 2022). `glad` is the University of Maryland's
(Hansen et al. 2016, doi:10.1088/1748-9326/11/3/034008): a pair of files a year and tile, alert23_060W_10S_050W_00N.tif
and alertDate23_..., or bands conf23 and alertDate23 of one file as Earth Engine exports them. Where several years of
one pixel have an alert, the earliest counts.

A day is that of the first image which showed the loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from pipeline.errors import LossError

HANSEN, INTEGRATED, RADD, GLAD = "hansen", "integrated", "radd", "glad"
CONFIDENCES = {"low": 2, "high": 3, "highest": 4}
EPOCH = np.datetime64("1970-01-01", "D")
"""Days are counted from here; 0 = no day."""
_SINCE = (np.datetime64("2014-12-31", "D") - EPOCH).astype(int)
LAST_DAY = int((np.datetime64("2100-01-01", "D") - EPOCH).astype(int))
_YEARS = (EPOCH + np.arange(LAST_DAY)).astype("datetime64[Y]").astype(np.int16) + 1970
_STARTS = (np.arange(2000, 2101).astype(str).astype("datetime64[Y]").astype("datetime64[D]") - EPOCH).astype(np.int32)
"""First day of each year from 2000."""
_FIRST_RADAR = 2015
_DATE_BAND = re.compile(r"alertdate_?(?:20)?(\d\d)(?!\d)", re.IGNORECASE)
_SURE_BAND = re.compile(r"(?:conf|alert)_?(?:20)?(\d\d)(?!\d)", re.IGNORECASE)


def year_of(days: np.ndarray) -> np.ndarray:
    """Calendar year (int16) of days since 1970-01-01; 1970 where there is none."""
    return np.asarray(_YEARS[days])


def decode_integrated(values: np.ndarray, least: int = 2) -> np.ndarray:
    """Days since 1970-01-01 (int32, 0 = none) of alerts in the layout of Global Forest Watch.

    Args:
        values: integers: confidence * 10000 + days since 2014-12-31, 0 = none.
        least: smallest confidence that counts, 2 to 4.

    Raises:
        ValueError: naming a value that this layout does not have.
    """
    sure, days = np.divmod(values.astype(np.int64), 10_000)
    wrong = (values != 0) & ((sure < 2) | (sure > 4) | (days == 0))
    _refuse(values, wrong, "confidence 2 to 4 and four digits of days since 2014-12-31")
    return np.asarray(np.where((values != 0) & (sure >= least), days + _SINCE, 0).astype(np.int32))


def decode_radd(dates: np.ndarray, alerts: np.ndarray | None = None, least: int = 2) -> np.ndarray:
    """Days since 1970-01-01 (int32, 0 = none) of RADD alerts.

    Args:
        dates: integers YYDDD, 0 = none.
        alerts: confidence 2 or 3 by pixel, 0 = none; None where only the days are known.
        least: smallest confidence that counts.

    Raises:
        ValueError: naming a value that is no date of this layout, or no confidence.
    """
    year, day = np.divmod(dates.astype(np.int64), 1000)
    year = year + 2000
    known = (year >= _FIRST_RADAR) & (year < 2100)
    wrong = (dates != 0) & ~(known & (day >= 1) & (day <= _length(np.where(known, year, 2001))))
    _refuse(dates, wrong, "YYDDD, the year and the day of the year")
    days = np.where(dates != 0, _day(np.where(known, year, 2001), day), 0)
    return _confident(days, alerts, least)


def decode_glad(dates: np.ndarray, year: int, alerts: np.ndarray | None = None, least: int = 2) -> np.ndarray:
    """Days since 1970-01-01 (int32, 0 = none) of GLAD-L alerts of one year.

    Args:
        dates: day of the year, 1 to 365 or 366, 0 = none.
        year: calendar year.
        alerts: confidence 2 (probable) or 3 (confirmed) by pixel, 0 = none; None where only the days are known.
        least: smallest confidence that counts.

    Raises:
        ValueError: naming a value that is no day of that year, or no confidence.
    """
    length = int(_length(np.int64(year)))
    _refuse(dates, (dates < 0) | (dates > length), f"days of the year {year}, 1 to {length}")
    return _confident(np.where(dates != 0, _day(np.int64(year), dates.astype(np.int64)), 0), alerts, least)


def _length(year: Any) -> Any:
    return _STARTS[year + 1 - 2000] - _STARTS[year - 2000]


def _day(year: Any, day: np.ndarray) -> np.ndarray:
    return np.asarray(_STARTS[year - 2000] + day - 1)


def _confident(days: np.ndarray, alerts: np.ndarray | None, least: int) -> np.ndarray:
    if alerts is not None:
        _refuse(alerts, ~np.isin(alerts, (0, 2, 3)), "confidence 0, 2 or 3")
        _refuse(alerts, (alerts != 0) & (days == 0), "a day for every alert")
        days = np.where(alerts >= least, days, 0)
    return np.asarray(days.astype(np.int32))


def _refuse(values: np.ndarray, wrong: np.ndarray, expected: str) -> None:
    if wrong.any():
        raise ValueError(f"holds {int(values[wrong].flat[0])}, but this coding has {expected}")


def loss_files(source: Path, coding: str) -> list[Path]:
    """The files that a loss source consists of: the one that is named, and the other one of a GLAD pair beside it."""
    pair = _pair(source) if coding == GLAD else None
    return [source] if pair is None else [path for path in pair if path.is_file()]


def _pair(path: Path) -> tuple[Path, ...] | None:
    """(alertDate file, alert file, conf file) by the name of one of them; None where the name tells nothing."""
    found = re.search(r"(?<![A-Za-z])(?:alertDate|alert|conf)(?=_?(?:20)?\d\d(?!\d))", path.name)
    if found is None:
        return None
    names = [path.name[: found.start()] + part + path.name[found.end() :] for part in ("alertDate", "alert", "conf")]
    return tuple(path.with_name(name) for name in names)


@dataclass(frozen=True)
class _Layer:
    """Where one year of alerts lies: a file and band of days, and of confidence if there is one; `year` for GLAD."""

    days: tuple[Any, int]
    sure: tuple[Any, int] | None
    year: int = 0


class LossRaster:
    """A loss raster of any coding, read window by window; close it with a with statement.

    Attributes:
        source: the open rasterio dataset that gives grid and CRS.
        dated: whether pixels have a day.
        years: the years it can hold, where its name says so.

    Raises:
        LossError: from opening or reading, when the file is not of the coding.
        RasterioError: when it cannot be read.
    """

    def __init__(self, path: Path, coding: str = HANSEN, least: int = 2, years: tuple[int, ...] = ()) -> None:
        """Open the files; `least` is the smallest confidence that counts, `years` those that are asked for."""
        self.path, self.coding, self.least, self.dated = path, coding, least, coding != HANSEN
        self._open: list[Any] = []
        try:
            self.source = self._file(_pair(path)[0] if coding == GLAD and _named_alert(path) else path)  # type: ignore[index]
            self._layers = self._find_layers(years)
        except BaseException:
            self.close()
            raise
        self.years = tuple(layer.year for layer in self._layers if layer.year)

    def _file(self, path: Path) -> Any:
        if not path.is_file():
            raise LossError(f"loss.source {self.path}: needs {path.name} beside it, which holds the days of its alerts")
        file = rasterio.open(path, driver="GTiff")
        self._open.append(file)
        if file.crs is None:
            raise LossError(f"loss.source {path}: has no CRS; assign one (gdal_edit.py -a_srs) and run again")
        if any(np.dtype(kind).kind not in "ui" for kind in file.dtypes):
            raise LossError(f"loss.source {path}: needs one band of integers for each layer, has {file.dtypes}")
        return file

    def _find_layers(self, years: tuple[int, ...]) -> list[_Layer]:
        count = self.source.count
        if self.coding == GLAD:
            return self._glad_layers(years)
        most = 2 if self.coding == RADD else 1
        if count > most:
            raise LossError(f"loss.source {self.path}: has {count} bands, {self.coding} rasters have at most {most}")
        if count == 1:
            self._unsure(self.coding == RADD)
            return [_Layer((self.source, 1), None)]
        names = [str(name or "").lower() for name in self.source.descriptions]
        first = 2 if names[0].startswith("date") else 1
        return [_Layer((self.source, 3 - first), (self.source, first))]

    def _glad_layers(self, years: tuple[int, ...]) -> list[_Layer]:
        """Pairs of bands by their names, or one pair of files; earlier years first."""
        names = [str(name or "") for name in self.source.descriptions]
        days = {2000 + int(m[1]): k + 1 for k, name in enumerate(names) if (m := _DATE_BAND.fullmatch(name))}
        sure = {2000 + int(m[1]): k + 1 for k, name in enumerate(names) if (m := _SURE_BAND.fullmatch(name))}
        if days:
            self._unsure(not set(days) <= set(sure))
            source = self.source
            return [_Layer((source, days[y]), (source, sure[y]) if y in sure else None, y) for y in sorted(days)]
        if self.source.count > 1:
            raise LossError(f"loss.source {self.path}: name its bands alertDate23, conf23 and so on; it has {names}")
        pair = _pair(Path(self.source.name))
        told = _DATE_BAND.search(Path(self.source.name).name)
        if told is None and len(years) != 1:
            raise LossError(
                f"loss.source {self.path}: nothing says of which year its days are; call it alertDate23... "
                "(for 2023), or name one year in loss.years"
            )
        other = next((path for path in pair[1:] if path.is_file()), None) if pair else None
        self._unsure(other is None)
        year = 2000 + int(told[1]) if told else years[0]
        return [_Layer((self.source, 1), (self._same_grid(other), 1) if other else None, year)]

    def _same_grid(self, path: Path) -> Any:
        file = self._file(path)
        if file.shape != self.source.shape or not file.transform.almost_equals(self.source.transform, 1e-9):
            raise LossError(f"loss.source {path}: lies on another grid than {self.source.name}; download both again")
        return file

    def _unsure(self, unsure: bool) -> None:
        if unsure and self.least > min(CONFIDENCES.values()):
            raise LossError(
                f"loss.source {self.path}: holds days without a confidence; set loss.min_confidence to low, "
                "or give a file with both"
            )

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        """Loss year (int16, 0 = none) and day (int32 since 1970-01-01, 0 = none; None without days) over a window."""
        if self.coding == HANSEN:
            values = self._values((self.source, 1), window)
            if values.max(initial=0) > 255:
                raise LossError(
                    f"loss.source {self.path}: holds {values.max()}; Hansen coding is 0 = none, k = lost in 2000 + k; "
                    "alerts need loss.coding"
                )
            return np.where(values > 0, values.astype(np.int16) + 2000, 0).astype(np.int16), None
        days = np.zeros((int(window.height), int(window.width)), np.int32)
        for layer in self._layers:
            days = np.where(days > 0, days, self._decode(layer, window))
        return np.where(days > 0, year_of(days), 0).astype(np.int16), days

    def _decode(self, layer: _Layer, window: Window) -> np.ndarray:
        values = self._values(layer.days, window)
        sure = self._values(layer.sure, window) if layer.sure else None
        try:
            if self.coding == INTEGRATED:
                return decode_integrated(values, self.least)
            if self.coding == RADD:
                return decode_radd(values, sure, self.least)
            if np.dtype(self.source.dtypes[0]).itemsize == 1:
                raise ValueError("has one byte a pixel, too small for days of a year")
            return decode_glad(values, layer.year, sure, self.least)
        except ValueError as error:
            raise LossError(
                f"loss.source {self.path}: {error}; this is not loss.coding {self.coding}, name the right one"
            ) from None

    def _values(self, where: tuple[Any, int], window: Window) -> np.ndarray:
        file, band = where
        values = file.read(band, window=window)
        nodata = file.nodatavals[band - 1]
        if nodata:
            values[values == nodata] = 0
        return np.asarray(values)

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            file.close()

    def __enter__(self) -> LossRaster:
        """Return the open raster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()


def _named_alert(path: Path) -> bool:
    """Whether a GLAD file is named as the one of confidence."""
    return _pair(path) is not None and _DATE_BAND.search(path.name) is None


def day_number(day: date) -> int:
    """Days of a date since 1970-01-01."""
    return (day - date(1970, 1, 1)).days
