"""The layers of `drivers.gpkg` as data: one source for the writer, the field descriptions and the inspector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.labels import LabelScheme

Kind = Literal["key", "text", "int", "float", "area", "share", "degree", "bool", "date", "datetime"]
"""`key` keeps the given type; `area` is hectares, `share` 0..1, `degree` WGS 84 degrees, all stored as doubles."""

STATUSES = {
    "classified": "Classified: the driver is given with enough confidence",
    "uncertain": "Uncertain: a driver is given, but below the confidence asked for",
    "no_imagery": "No imagery: no clear pixel inside the event",
    "failed": "Failed: the event could not be computed",
}
WITHOUT_DRIVER = ("no_imagery", "failed")
"""Statuses of events whose driver is not known; they are rows of `summary` under these names."""


@dataclass(frozen=True)
class Column:
    """One column: `domain` names a list of allowed values (see `domains`), if there is one."""

    name: str
    kind: Kind
    title: str
    description: str = ""
    domain: str | None = None


@dataclass(frozen=True)
class Layer:
    """One layer or table (`geometry` None); rows are ordered by `order`."""

    name: str
    title: str
    description: str
    geometry: Literal["MultiPolygon", "Polygon"] | None
    order: tuple[str, ...]
    columns: tuple[Column, ...]


def layers(scheme: LabelScheme) -> tuple[Layer, ...]:
    """Return every layer of the product for the classes of `scheme`, in the order they are written."""
    return (_events(scheme), _PATCHES, _units(scheme), _SCENES, _BLOCKS, _SUMMARY, _RUN)


def domains(scheme: LabelScheme) -> dict[str, dict[str, str]]:
    """Return the field domains: name to {value: title}."""
    classes = {item.name: item.title for item in scheme}
    missing = {name: STATUSES[name] for name in WITHOUT_DRIVER}
    return {"driver": classes, "driver_or_status": {**classes, **missing}, "status": STATUSES}


_EVENT_ID = Column("event_id", "key", "Event", "Identifier of the event: the same in every rerun of the same loss data")
_DRIVER = Column("driver", "text", "Driver", "Why the forest went; empty where it is not known", "driver")
_CODE = Column("driver_code", "int", "Driver code", "Code of the driver, as in drivers.tif")
_AREA = Column("area_ha", "area", "Area (ha)", "Geodesic area on WGS 84, hectares")
_UNIT_ID = Column("unit_id", "key", "Unit id", "Identifier of the administrative or other unit")
_UNIT_NAME = Column("unit_name", "text", "Unit", "Name of the unit")
_YEAR = Column("loss_year", "int", "Loss year", "Calendar year of the forest loss")


def _events(scheme: LabelScheme) -> Layer:
    probabilities = tuple(
        Column(f"p_{item.name}", "share", f"P({item.title})", "Calibrated probability, 0..1; empty without imagery")
        for item in scheme
    )
    columns = (
        _EVENT_ID,
        _YEAR,
        Column("status", "text", "Status", "classified, uncertain, no_imagery or failed", "status"),
        _DRIVER,
        _CODE,
        Column("confidence", "share", "Confidence", "Calibrated probability of the driver, 0..1: the largest p_*"),
        Column("uncertain", "bool", "Uncertain", "Confidence lies below the value asked for"),
        *probabilities,
        _AREA,
        Column("pixels", "int", "Pixels", "Number of pixels of the run's grid"),
        Column("clear_share", "share", "Clear share", "Share of the event's pixels seen clear at least once"),
        Column("first_image", "date", "First image", "Day of the earliest image used"),
        Column("last_image", "date", "Last image", "Day of the latest image used"),
        Column("image_count", "int", "Images", "Number of images used"),
        Column("years_after_loss", "float", "Years after loss", "Mean year of the images less the loss year"),
        _UNIT_ID,
        _UNIT_NAME,
        Column("lon", "degree", "Longitude", "Of a point inside the event, WGS 84 degrees"),
        Column("lat", "degree", "Latitude", "Of a point inside the event, WGS 84 degrees"),
        Column("model", "text", "Model", "Name and version of the model"),
    )
    text = "One row per connected patch of forest loss of one year, with its driver. Nothing planned is left out."
    return Layer("events", "Drivers of forest loss", text, "MultiPolygon", ("event_id",), columns)


def _units(scheme: LabelScheme) -> Layer:
    classes = tuple(Column(f"{item.name}_ha", "area", f"{item.title} (ha)", "Loss with this driver") for item in scheme)
    columns = (
        _UNIT_ID,
        _UNIT_NAME,
        Column("loss_ha", "area", "Loss (ha)", "All loss: the drivers plus no_imagery_ha plus failed_ha"),
        Column("dominant_driver", "text", "Main driver", "Driver with the largest area", "driver"),
        *classes,
        Column("uncertain_ha", "area", "Of which uncertain (ha)", "Part of the driver areas with status uncertain"),
        Column("no_imagery_ha", "area", "No imagery (ha)", "Loss that no clear image shows"),
        Column("failed_ha", "area", "Failed (ha)", "Loss that could not be computed"),
    )
    text = "Areas by administrative or other unit; the row for loss outside any unit has no geometry."
    return Layer("units", "Forest loss by unit", text, "MultiPolygon", ("unit_id",), columns)


_PATCHES = Layer(
    "patches",
    "Drivers inside events",
    "Connected pixels of one driver inside an event: where in the event which driver was seen.",
    "Polygon",
    ("event_id", "driver_code"),
    (
        _EVENT_ID,
        _DRIVER,
        _CODE,
        _AREA,
        Column("confidence", "share", "Confidence", "Mean probability of the driver over the patch, 0..1"),
    ),
)
_SCENES = Layer(
    "scenes",
    "Landsat scenes",
    "Every scene that was found, whether it was used, and why not.",
    "Polygon",
    ("scene_id",),
    (
        Column("scene_id", "key", "Scene", "Landsat product or STAC Item id"),
        Column("datetime", "datetime", "Acquired", "Acquisition time, UTC"),
        Column("cloud_cover", "float", "Cloud cover (%)", "Of the whole scene; empty where the catalog does not say"),
        Column("used", "bool", "Used", "At least one event was seen in it"),
        Column("reason", "text", "Reason", "Why it was not used"),
    ),
)
_BLOCKS = Layer(
    "blocks",
    "Blocks of work",
    "Squares of the run's grid: the unit of work, with what became of each.",
    "Polygon",
    ("block_id",),
    (
        Column("block_id", "key", "Block"),
        Column("status", "text", "Status", "What became of the block"),
        Column("reason", "text", "Reason", "Why it failed"),
        Column("events", "int", "Events", "Number of events that touch the block"),
        Column("seconds", "float", "Seconds", "Time it took"),
    ),
)
_NO_INTERVAL = "empty until the model card carries an error matrix"
_SUMMARY = Layer(
    "summary",
    "Areas by unit, year and driver",
    "Mapped areas, uncertain events included. Mapped areas carry the model's bias: see area_ha_low and area_ha_high.",
    None,
    ("unit_id", "loss_year", "driver"),
    (
        _UNIT_ID,
        _UNIT_NAME,
        _YEAR,
        Column("driver", "text", "Driver", "Driver, or no_imagery or failed where it is not known", "driver_or_status"),
        Column("events", "int", "Events", "Number of events"),
        _AREA,
        Column("area_ha_low", "area", "Area, low (ha)", f"Lower end of the 95 % interval; {_NO_INTERVAL}"),
        Column("area_ha_high", "area", "Area, high (ha)", f"Upper end of the 95 % interval; {_NO_INTERVAL}"),
    ),
)
_RUN = Layer(
    "run",
    "Run record",
    "Configuration, versions, model digest, inputs and counts of the run that made this file.",
    None,
    (),
    (Column("key", "text", "Key"), Column("value", "text", "Value")),
)
