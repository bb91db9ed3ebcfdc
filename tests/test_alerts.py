"""Alerts and dated polygons as loss: whatever the coding, the same days give the same events."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.transform import from_origin
from shapely import Point, box

from pipeline import loss
from pipeline.alerts import LossRaster, day_number, decode_glad, decode_integrated, decode_radd, loss_files, year_of
from pipeline.config import Loss
from pipeline.errors import LossError
from pipeline.loss import LossParams, read_loss

STEP = 0.001
WHOLE = box(9, -1, 12, 2)
DAYS = [
    date(y, m, d) for y in (2019, 2020, 2021, 2024) for m, d in ((1, 1), (2, 28), (3, 1), (6, 30), (12, 30), (12, 31))
] + [date(2020, 2, 29), date(2024, 2, 29)]
YEARS = (2019, 2020, 2021, 2024)


def one(decode, value, *more):
    """The day that a single value means."""
    found = int(decode(np.array([value], np.int32), *more)[0])
    return date(1970, 1, 1) + timedelta(days=found) if found else None


# ---------------------------------------------------------------------------------------------- one pixel


@pytest.mark.parametrize(
    ("value", "day"),
    [
        # the examples in the metadata of Global Forest Watch
        (20001, date(2015, 1, 1)), (30055, date(2015, 2, 24)), (21847, date(2020, 1, 21)), (41847, date(2020, 1, 21)),
        (21886, date(2020, 2, 29)), (22192, date(2020, 12, 31)), (22193, date(2021, 1, 1)), (0, None),
    ],
)  # fmt: skip
def test_integrated_alerts(value, day):
    assert one(decode_integrated, value) == day


@pytest.mark.parametrize(
    ("value", "day"),
    [
        # the example in the catalog of Earth Engine: day 121 of 2022
        (22121, date(2022, 5, 1)), (20060, date(2020, 2, 29)), (21060, date(2021, 3, 1)), (20366, date(2020, 12, 31)),
        (21001, date(2021, 1, 1)), (21365, date(2021, 12, 31)), (0, None),
    ],
)  # fmt: skip
def test_radd_alerts(value, day):
    assert one(decode_radd, value) == day


@pytest.mark.parametrize(
    ("value", "year", "day"),
    [
        (1, 2023, date(2023, 1, 1)), (60, 2023, date(2023, 3, 1)), (60, 2024, date(2024, 2, 29)),
        (365, 2023, date(2023, 12, 31)), (366, 2024, date(2024, 12, 31)), (0, 2024, None),
    ],
)  # fmt: skip
def test_glad_alerts(value, year, day):
    assert one(decode_glad, value, year) == day


@pytest.mark.parametrize(
    ("decode", "value", "more"),
    [
        (decode_integrated, 21, ()), (decode_integrated, 10_000, ()), (decode_integrated, 19_365, ()),
        (decode_integrated, 20_000, ()), (decode_integrated, 50_001, ()),
        (decode_radd, 21, ()), (decode_radd, 365, ()), (decode_radd, 21_366, ()), (decode_radd, 20_367, ()),
        (decode_radd, 21_000, ()), (decode_radd, 21_847, ()), (decode_radd, 41_847, ()),
        (decode_glad, 366, (2023,)), (decode_glad, 367, (2024,)), (decode_glad, 20_001, (2024,)),
    ],
)  # fmt: skip
def test_values_that_a_coding_does_not_have(decode, value, more):
    with pytest.raises(ValueError, match=f"holds {value}, but this coding has"):
        one(decode, value, *more)


def test_confidence():
    values = np.array([20001, 30001, 40001, 0], np.int32)
    for least, count in ((2, 3), (3, 2), (4, 1)):
        assert (decode_integrated(values, least) > 0).sum() == count
    dates, sure = np.array([22001, 22001, 22001, 0]), np.array([2, 3, 0, 0])
    assert (decode_radd(dates, sure, 2) > 0).tolist() == [True, True, False, False]
    assert (decode_radd(dates, sure, 3) > 0).tolist() == [False, True, False, False]
    assert (decode_glad(dates - 22000 * (dates > 0), 2022, sure, 3) > 0).tolist() == [False, True, False, False]
    for wrong, said in (([1, 2], "holds 1"), ([4, 0], "holds 4"), ([0, 2], "a day for every alert")):
        with pytest.raises(ValueError, match=said):
            decode_radd(np.array([22001, 0]), np.array(wrong))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dates(date(2015, 1, 1), date(2041, 12, 31)), min_size=1, max_size=20), st.integers(2, 4))
def test_every_day_survives_its_coding(days, sure):
    expected = [day_number(day) for day in days]
    since = date(2014, 12, 31)
    integrated = np.array([sure * 10_000 + (day - since).days for day in days])
    assert decode_integrated(integrated).tolist() == expected
    assert decode_radd(np.array([int(f"{day:%y%j}") for day in days])).tolist() == expected
    for day, number in zip(days, expected, strict=True):
        assert decode_glad(np.array([int(f"{day:%j}")]), day.year).tolist() == [number]
    assert year_of(np.array(expected)).tolist() == [day.year for day in days]


# ---------------------------------------------------------------------------------------------- the same events

fields = arrays.arrays(
    np.int16, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.integers(-25, len(DAYS) - 1), fill=None
)


def write(folder, name, *bands, names=(), **how):
    path = Path(folder) / name
    profile = {"driver": "GTiff", "count": len(bands), "height": bands[0].shape[0], "width": bands[0].shape[1]}
    profile |= {"crs": "EPSG:4326", "transform": from_origin(10, 1, STEP, STEP)} | how
    with rasterio.open(path, "w", dtype=bands[0].dtype, **profile) as raster:
        for k, band in enumerate(bands, 1):
            raster.write(band, k)
            if names:
                raster.set_band_description(k, names[k - 1])
    return path


def encoded(field, function):
    """A field of indices into DAYS (negative = no loss) in a coding."""
    return np.array([[function(DAYS[k]) if k >= 0 else 0 for k in row] for row in field]).reshape(field.shape)


def hansen(day):
    return day.year - 2000


def integrated(day):
    return 30_000 + (day - date(2014, 12, 31)).days


def radd(day):
    return int(f"{day:%y%j}")


def events_of(path, coding, confidence=2, years=YEARS):
    params = LossParams(years, 0, coding=coding, confidence=confidence)
    return read_loss(str(path), WHOLE, params, Path(path).parent).events


def assert_same_events(found, expected):
    assert list(found["event_id"]) == list(expected["event_id"])
    assert list(found["loss_year"]) == list(expected["loss_year"])
    assert list(found["area_ha"]) == list(expected["area_ha"])
    assert found.geometry.to_wkb().tolist() == expected.geometry.to_wkb().tolist()


def assert_days(events, field):
    """First and last day of each event are those of the pixels inside it."""
    rows, cols = np.nonzero(field >= 0)
    for event in events.itertuples():
        inside = [
            day_number(DAYS[field[r, c]])
            for r, c in zip(rows, cols, strict=True)
            if event.geometry.contains(Point(10 + (c + 0.5) * STEP, 1 - (r + 0.5) * STEP))
        ]
        assert (event.first_day, event.last_day) == (min(inside), max(inside))


@settings(max_examples=40, deadline=None)
@given(fields, st.sampled_from([4096, 1, 3]))
def test_the_same_days_give_the_same_events_in_every_coding(field, strip):
    field[0, 0] = len(DAYS) - 1  # so that Hansen's raster reaches the last year
    glad_years = {
        year: np.where([[k >= 0 and DAYS[k].year == year for k in row] for row in field], 1, 0) for year in YEARS
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        expected = events_of(write(folder, "hansen.tif", encoded(field, hansen).astype(np.uint8)), "hansen")
        assert (expected[["first_day", "last_day"]] == 0).all(axis=None)
        patch.setattr(loss, "_STRIP", strip)
        one_band = encoded(field, integrated).astype(np.uint16)
        dates = encoded(field, radd).astype(np.int32)
        days = encoded(field, lambda day: int(f"{day:%j}")).astype(np.uint16)
        bands = [
            part for on in glad_years.values() for part in ((3 * on).astype(np.uint16), days * on.astype(np.uint16))
        ]
        names = [name for year in YEARS for name in (f"conf{year % 100}", f"alertDate{year % 100}")]
        for coding, path in (
            ("integrated", write(folder, "gfw.tif", one_band)),
            ("radd", write(folder, "radd.tif", dates)),
            ("radd", write(folder, "both.tif", np.where(dates > 0, 3, 0).astype(np.int32), dates)),
            ("glad", write(folder, "glad.tif", *bands, names=names)),
        ):
            found = events_of(path, coding)
            assert_same_events(found, expected)
            assert_days(found, field)


def test_a_pair_of_glad_files_by_either_name(tmp_path):
    days = np.array([[60, 61, 0, 0], [0, 0, 0, 365]], np.uint16)
    sure = np.array([[2, 3, 0, 0], [0, 0, 0, 3]], np.uint8)
    date_file = write(tmp_path, "alertDate23_060W_10S_050W_00N.tif", days)
    with pytest.raises(LossError, match=r"alertDate23_060W.*without a confidence.*min_confidence to low"):
        events_of(date_file, "glad", 3, (2023,))
    alert_file = write(tmp_path, "alert23_060W_10S_050W_00N.tif", sure)
    assert loss_files(alert_file, "glad") == loss_files(date_file, "glad") == [date_file, alert_file]
    for path in (date_file, alert_file):
        events = events_of(path, "glad", 2, (2023,))
        assert set(events["last_day"]) == {day_number(date(2023, 12, 31)), day_number(date(2023, 3, 2))}
        assert day_number(date(2023, 3, 1)) in set(events["first_day"])
        assert day_number(date(2023, 3, 1)) not in set(events_of(path, "glad", 3, (2023,))["first_day"])
    date_file.unlink()
    with pytest.raises(LossError, match=r"needs alertDate23_060W_10S_050W_00N\.tif beside it"):
        events_of(alert_file, "glad", 2, (2023,))


def test_the_earliest_of_several_years_counts(tmp_path):
    both = np.array([[3, 3]], np.uint16)
    bands = both, np.array([[10, 20]], np.uint16), np.array([[3, 0]], np.uint16), np.array([[30, 0]], np.uint16)
    path = write(tmp_path, "export.tif", *bands, names=("conf24", "alertDate24", "conf23", "alertDate23"))
    assert events_of(path, "glad", 2, (2023,))["last_day"].tolist() == [day_number(date(2023, 1, 30))]
    assert events_of(path, "glad", 2, (2024,))["last_day"].tolist() == [day_number(date(2024, 1, 20))]
    with pytest.raises(LossError, match=r"loss\.years \[2022\].*holds alerts of 2023, 2024"):
        events_of(path, "glad", 2, (2022,))


def test_the_year_of_a_glad_file_without_a_name_is_the_one_asked_for(tmp_path):
    path = write(tmp_path, "days.tif", np.array([[60, 0]], np.uint16))
    assert events_of(path, "glad", 2, (2024,))["last_day"].tolist() == [day_number(date(2024, 2, 29))]
    with pytest.raises(LossError, match="nothing says of which year"):
        events_of(path, "glad", 2, (2023, 2024))


def test_declared_nodata_is_no_alert(tmp_path):
    path = write(tmp_path, "gfw.tif", np.array([[65535, 21847]], np.uint16), nodata=65535)
    assert len(events_of(path, "integrated", 2, (2020,))) == 1


@pytest.mark.parametrize(
    ("coding", "values", "said"),
    [
        ("integrated", np.array([[21, 22]], np.uint8), "holds 21, but this coding has confidence 2 to 4"),
        ("integrated", np.array([[365, 12]], np.uint16), "holds 365"),
        ("radd", np.array([[21847, 0]], np.uint16), "holds 21847, but this coding has YYDDD"),
        ("radd", np.array([[21, 22]], np.uint8), "holds 21"),
        ("glad", np.array([[21001, 0]], np.uint16), "holds 21001, but this coding has days of the year 2021"),
        ("glad", np.array([[21, 0]], np.uint8), "one byte a pixel"),
        ("hansen", np.array([[21847, 0]], np.uint16), "holds 21847; Hansen coding.*name the loss.coding"),
        ("integrated", np.array([[21.0]], np.float32), "needs one band of integers"),
    ],
)
def test_a_wrong_coding_is_refused_in_one_line_that_names_the_file(tmp_path, coding, values, said):
    path = write(tmp_path, "loss.tif", values)
    with pytest.raises(LossError, match=said) as error:
        events_of(path, coding, 2, (2021,))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bands_that_no_coding_has(tmp_path):
    values = np.array([[21847]], np.uint16)
    with pytest.raises(LossError, match="has 2 bands, integrated rasters have at most 1"):
        events_of(write(tmp_path, "a.tif", values, values), "integrated", 2, (2020,))
    with pytest.raises(LossError, match="name its bands alertDate23"):
        events_of(write(tmp_path, "b.tif", values, values), "glad", 2, (2020,))
    with pytest.raises(LossError, match=r"alerts begin in 2015"):
        events_of(write(tmp_path, "c.tif", values), "integrated", 2, (2014,))
    write(tmp_path, "alert23_x.tif", np.zeros((2, 2), np.uint8))
    with pytest.raises(LossError, match=r"alert23_x\.tif: lies on another grid"):
        events_of(write(tmp_path, "alertDate23_x.tif", np.zeros((1, 1), np.uint16)), "glad", 2, (2023,))


def test_files_are_closed(tmp_path):
    path = write(tmp_path, "loss.tif", np.array([[21847]], np.uint16))
    with LossRaster(path, "integrated") as raster:
        source = raster.source
    assert source.closed


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"min_confidence": "high"}, "min_confidence is of alerts"),
        ({"coding": "radd", "source": "gfc"}, "does not go with source gfc"),
        ({"coding": "glad", "min_confidence": "highest"}, "highest is of coding integrated only"),
        ({"year_column": "a", "date_column": "b"}, "keep one"),
    ],
)
def test_keys_that_do_not_go_together(keys, said):
    with pytest.raises(ValueError, match=said):
        Loss(**{"source": "x.tif", "years": (2021,), **keys})


# ---------------------------------------------------------------------------------------------- polygons


def square(col, row, size=1.0):
    return box(10 + col * STEP, 1 + row * STEP, 10 + (col + size) * STEP, 1 + (row + size) * STEP)


def polygons(folder, values, shapes=None, column="date", name="loss.gpkg"):
    path = Path(folder) / name
    shapes = [square(2 * k, 0) for k in range(len(values))] if shapes is None else shapes
    gpd.GeoDataFrame({column: values}, geometry=shapes, crs="EPSG:4326").to_file(path)
    return path


def dated(path, years=(2020, 2021), **keys):
    events = read_loss(str(path), WHOLE, LossParams(years, 0, **keys), Path(path).parent).events
    assert (events["first_day"] <= events["last_day"]).all()
    return [(e.loss_year, e.last_day) for e in events.sort_values("last_day").itertuples()]


EXPECTED = [
    (2020, day_number(date(2020, 2, 29))),
    (2020, day_number(date(2020, 12, 31))),
    (2021, day_number(date(2021, 1, 1))),
]


@pytest.mark.parametrize(
    "values",
    [
        ["2020-12-31", "2021-01-01", "2020-02-29"],
        ["2020-12-31T23:59:59Z", "2021-01-01T00:00:00Z", "2020-02-29T12:00:00.5Z"],
        [date(2020, 12, 31), date(2021, 1, 1), date(2020, 2, 29)],
        [datetime(2020, 12, 31, 23, 59), datetime(2021, 1, 1), datetime(2020, 2, 29, 1)],
        [datetime(*d, tzinfo=UTC) for d in ((2020, 12, 31, 23, 59), (2021, 1, 1), (2020, 2, 29))],
        # the day in UTC
        ["2021-01-01T06:59:59+07:00", "2021-01-01T07:00:00+07:00", "2020-03-01T01:00:00+07:00"],
    ],
    ids=["texts", "times", "dates", "datetimes", "UTC", "zone"],
)  # fmt: skip
def test_polygons_with_a_date(tmp_path, values):
    assert dated(polygons(tmp_path, values)) == EXPECTED


@pytest.mark.parametrize("column", ["date", "Alert_Date", "detected", "view_date", "loss_date"])
def test_date_columns_by_their_usual_names(tmp_path, column):
    assert len(dated(polygons(tmp_path, ["2020-12-31", "2021-01-01", None], column=column))) == 2


def test_a_named_date_column(tmp_path):
    path = polygons(tmp_path, ["2020-12-31", "2021-01-01", "2020-02-29"], column="tanggal", name="loss.geojson")
    assert dated(path, date_column="tanggal") == EXPECTED
    with pytest.raises(LossError, match=r"needs a year column.* or a date column .*found tanggal"):
        dated(path)


def test_a_year_column_goes_before_a_date_column_unless_that_is_named(tmp_path):
    path = Path(tmp_path) / "prodes.gpkg"
    table = {"year": [2021], "image_date": ["2020-08-15"]}
    gpd.GeoDataFrame(table, geometry=[square(0, 0)], crs="EPSG:4326").to_file(path)
    assert dated(path) == [(2021, 0)]
    assert dated(path, date_column="image_date") == [(2020, day_number(date(2020, 8, 15)))]


def test_joined_polygons_keep_their_first_and_last_day(tmp_path):
    shapes = [square(0, 0), square(0.5, 0.5), square(5, 0), square(0.7, 0.2)]
    path = polygons(tmp_path, ["2020-05-01", "2020-03-01", "2020-07-01", "2021-01-01"], shapes)
    events = read_loss(str(path), WHOLE, LossParams((2020, 2021), 0), tmp_path).events
    spans = {(e.loss_year, e.first_day, e.last_day) for e in events.itertuples()}
    day = {
        text: day_number(date.fromisoformat(text)) for text in ("2020-03-01", "2020-05-01", "2020-07-01", "2021-01-01")
    }
    assert spans == {
        (2020, day["2020-03-01"], day["2020-05-01"]),
        (2020, day["2020-07-01"], day["2020-07-01"]),
        (2021, day["2021-01-01"], day["2021-01-01"]),
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(DAYS), min_size=1, max_size=8))
def test_dated_polygons_are_those_of_their_years(days):
    with tempfile.TemporaryDirectory() as folder:
        shapes = [square(0.7 * k, 0.3 * (k % 2)) for k in range(len(days))]
        by_year = polygons(folder, [day.year for day in days], shapes, "year", "years.gpkg")
        by_date = polygons(folder, [day.isoformat() for day in days], shapes)
        years = tuple(sorted({day.year for day in days}))
        expected, found = (
            read_loss(str(path), WHOLE, LossParams(years, 0), Path(folder)).events for path in (by_year, by_date)
        )
    assert_same_events(found, expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["2020-12-31", "soon"], "column date must hold dates as in 2023-06-30"),
        ([20201231, 20210101], "column date holds numbers"),
        (["1950-01-01", "2020-01-01"], "outside 1970 to 2099"),
        (["2018-01-01"], r"none in .*which holds \[2018\]"),
    ],
)
def test_dates_that_cannot_serve(tmp_path, values, said):
    path = polygons(tmp_path, values)
    with pytest.raises(LossError, match=said) as error:
        dated(path)
    assert str(path) in str(error.value)
