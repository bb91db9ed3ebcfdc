"""The layers of `drivers.gpkg` as data: one source for the writer, the field descriptions and the inspector."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
INTERVAL_SOURCES = {
    "model_card": "Error matrix of the model card: holds where the model is as accurate here as on its test data",
    "sample": "Reference labels of this very place",
    "sample_region": "Reference labels of the whole region, applied to this part of it",
}
REFERENCE_FLAGS = {
    "few": "Few reference events of this driver: the interval itself is uncertain",
    "none": "No reference event to go by: no interval is given",
    "no_disagreement": "No error was met among the reference events: no interval can be computed",
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
    geometry: Literal["MultiPolygon", "Polygon", "Point"] | None
    order: tuple[str, ...]
    columns: tuple[Column, ...]


def layers(scheme: LabelScheme) -> tuple[Layer, ...]:
    """Return every layer of the product for the classes of `scheme`, in the order they are written."""
    return (_events(scheme), _PATCHES, _units(scheme), _SCENES, _BLOCKS, _SUMMARY, _ESTIMATES, _RUN)


def domains(scheme: LabelScheme) -> dict[str, dict[str, str]]:
    """Return the field domains: name to {value: title}."""
    classes = {item.name: item.title for item in scheme}
    missing = {name: STATUSES[name] for name in WITHOUT_DRIVER}
    return {
        "driver": classes,
        "driver_or_status": {**classes, **missing},
        "status": STATUSES,
        "interval_source": INTERVAL_SOURCES,
        "reference_flag": REFERENCE_FLAGS,
        "scope": {"region": "The region", "unit": "One unit"},
    }


def stored_columns(layer: Layer, names: Iterable[str], run: Mapping[str, object] | None = None) -> tuple[Column, ...]:
    """Return the columns of a stored layer: the contract's, then those among `names` that the configuration added.

    Overlays are described by what the run record says of them: title, date and source.
    """
    known = {column.name for column in layer.columns}
    added = [str(name) for name in names if name not in known and name != "geometry"]
    overlays = (run or {}).get("overlays")
    told = {row["name"]: row for row in overlays} if isinstance(overlays, list) else {}
    return (*layer.columns, *(_overlay(name, told[name]) if name in told else extra_column(name) for name in added))


def _overlay(name: str, told: Mapping[str, object]) -> Column:
    """Describe the share in an overlay."""
    about = ", ".join(str(told[key]) for key in ("source", "date", "file") if told.get(key))
    missing = f" Not available: {told['reason']}." if told.get("reason") else ""
    text = f"Share of the event's area inside, 0..1; empty = not known. {about}.{missing}"
    return Column(name, "share", f"Share in {told['title']}", text)


def extra_column(name: str) -> Column:
    """Describe a column of `events` that the configuration added: a predictor, a further list of units, an overlay."""
    if name.startswith("aux_"):
        plain = name.removeprefix("aux_").replace("_", " ")
        text = f"Auxiliary predictor '{name.removeprefix('aux_')}' as the model was given it; NULL = missing"
        return Column(name, "key", f"Predictor {plain}", text)
    further = re.fullmatch(r"unit(\d+)_(id|name)", name)
    if further:
        title, what = ("Unit id", "Identifier") if further[2] == "id" else ("Unit", "Name")
        return Column(name, "key", f"{title}, list {further[1]}", f"{what} in list {further[1]} of the units")
    if name == "overlays_missing":
        return Column(name, "text", "Overlays missing", "Overlays that say nothing about the event; empty = none")
    plain = name.replace("_", " ")
    return Column(name, "key", f"Share in {plain}", f"Share of the event's area that lies in '{name}', 0..1")


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
        Column("loss_date", "date", "Loss date", "First day of the loss, of alerts and dated polygons; else empty"),
        Column("loss_date_last", "date", "Last loss date", "Last day of the loss; images from before it do not serve"),
        Column("status", "text", "Status", "classified, uncertain, no_imagery or failed", "status"),
        _DRIVER,
        _CODE,
        Column("confidence", "share", "Confidence", "Calibrated probability of the driver, 0..1: the largest p_*"),
        Column("uncertain", "bool", "Uncertain", "Confidence lies below the value asked for"),
        *probabilities,
        _AREA,
        Column("pixels", "int", "Pixels", "Number of pixels of the run's grid"),
        Column("clear_share", "share", "Clear share", "Share of the event's pixels seen clear at least once"),
        Column("awaiting", "bool", "Awaiting", "No image shows it clear yet; a rerun looks for later ones"),
        Column("first_image", "date", "First image", "Day of the earliest image used"),
        Column("last_image", "date", "Last image", "Day of the latest image used"),
        Column("image_count", "int", "Images", "Number of images used"),
        Column("years_after_loss", "float", "Years after loss", "Mean year of the images less the loss year"),
        _UNIT_ID,
        _UNIT_NAME,
        Column("lon", "degree", "Longitude", "Of a point inside the event, WGS 84 degrees"),
        Column("lat", "degree", "Latitude", "Of a point inside the event, WGS 84 degrees"),
        Column("model", "text", "Model", "Name and version of the model"),
        Column(
            "eudr_after_cutoff",
            "bool",
            "Lost after 2020",
            "Loss year is after 31 December 2020, the cut-off of the "
            "EU Deforestation Regulation; a help for due diligence, no finding",
        ),
        Column(
            "eudr_conversion",
            "bool",
            "Conversion to agriculture",
            "Whether the driver is conversion to agriculture; "
            "empty = not known. Plantations of timber count here, which the Regulation treats as degradation",
        ),
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
_LOW = "Lower end of the 95 % interval; empty where nothing allows one"
_HIGH = "Upper end of the 95 % interval; empty where nothing allows one"
_ADJUSTED = (
    "Area adjusted for the map's errors; over the drivers of a unit and year they add up to what is mapped there. "
    "From a model card it holds where the model is as accurate here as it was on its test data"
)
_SOURCE = Column(
    "interval_source", "text", "Interval from", "What the adjusted area and its interval rest on", "interval_source"
)
_REFERENCE_N = Column("reference_n", "int", "Reference events", "Labelled events of this driver behind the figures")
_FLAG = Column(
    "reference_flag", "text", "Reference flag", "Why the figures deserve doubt; empty = no reason", "reference_flag"
)
_SUMMARY = Layer(
    "summary",
    "Areas by unit, year and driver",
    "Mapped areas, uncertain events included, and areas adjusted for the map's errors. A mapped area is a sum of "
    "pixels, not an estimate: quote area_ha_adjusted with its interval, where there is one.",
    None,
    ("unit_id", "loss_year", "driver"),
    (
        _UNIT_ID,
        _UNIT_NAME,
        _YEAR,
        Column("driver", "text", "Driver", "Driver, or no_imagery or failed where it is not known", "driver_or_status"),
        Column("events", "int", "Events", "Number of events mapped so"),
        Column("area_ha", "area", "Mapped area (ha)", "Sum of the geodesic areas of the events, hectares"),
        Column("area_ha_adjusted", "area", "Adjusted area (ha)", _ADJUSTED),
        Column("area_ha_low", "area", "Adjusted area, low (ha)", _LOW),
        Column("area_ha_high", "area", "Adjusted area, high (ha)", _HIGH),
        _SOURCE,
        _REFERENCE_N,
        _FLAG,
    ),
)
_ESTIMATES = Layer(
    "estimates",
    "Estimated areas and accuracy",
    "Areas adjusted for the map's errors with 95 % intervals: the region, the region by year, each unit over all "
    "years. Each row is estimated for itself; intervals do not add up. Empty where neither the model card nor "
    "reference labels allow an estimate. Olofsson et al. 2014, Stehman 2014.",
    None,
    ("scope", "unit_id", "loss_year", "driver"),
    (
        Column("scope", "text", "Scope", "region, or unit", "scope"),
        Column("unit_id", "text", "Unit id", "Identifier of the unit; empty for the region"),
        Column("unit_name", "text", "Unit", "Name of the unit; empty for the region"),
        Column("loss_year", "text", "Loss year", "Calendar year of the forest loss, or all"),
        Column("driver", "text", "Driver", "Driver, or no_imagery or failed where it is not known", "driver_or_status"),
        Column("events", "int", "Events", "Number of events mapped so"),
        Column("mapped_ha", "area", "Mapped area (ha)", "Sum of the geodesic areas of the events, hectares"),
        Column("adjusted_ha", "area", "Adjusted area (ha)", _ADJUSTED),
        Column("low_ha", "area", "Low (ha)", _LOW),
        Column("high_ha", "area", "High (ha)", _HIGH),
        Column("se_ha", "area", "Standard error (ha)", "Of the adjusted area"),
        Column("users_accuracy", "share", "User's accuracy", "Share of what is mapped so that is so, by area"),
        Column("users_accuracy_se", "share", "User's accuracy, SE", "Its standard error"),
        Column("producers_accuracy", "share", "Producer's accuracy", "Share of what is so that is mapped so, by area"),
        Column("producers_accuracy_se", "share", "Producer's accuracy, SE", "Its standard error"),
        _SOURCE,
        _REFERENCE_N,
        _FLAG,
        Column("note", "text", "Note", "What the estimate rests on and when it holds"),
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
