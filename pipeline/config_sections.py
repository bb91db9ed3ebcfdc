"""The sections of a configuration: what each stage may be told, checked once. `pipeline.config` composes them."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipeline.store_address import PATTERN, local_part, store_address

EXECUTORS = ("local", "threads", "cuda", "slurm", "kubernetes")
RESERVED = frozenset({
    "event_id", "loss_year", "loss_date", "loss_date_last", "status", "driver", "driver_code", "confidence",
    "uncertain", "area_ha", "pixels", "clear_share", "awaiting", "first_image", "last_image", "image_count",
    "years_after_loss", "lon", "lat", "model",
    "eudr_after_cutoff", "eudr_conversion", "overlays_missing", "geometry", "geom", "fid",
})  # fmt: skip
"""Columns of events, which no overlay may be called."""


class Section(BaseModel):
    """A section of the configuration: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: object) -> object:
    """Let one mapping stand for a list of one."""
    return [value] if isinstance(value, dict) else value


class UnitLayer(Section):
    """A polygon layer to aggregate by: file, and the columns that hold the identifier and the name."""

    path: Path
    id: str = "id"
    name: str = "name"
    layer: str | None = None


class Region(Section):
    """The area asked for: `aoi` is a vector file or [west, south, east, north] in degrees (EPSG:4326)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    aoi: Path | tuple[float, float, float, float]
    units: Annotated[
        tuple[UnitLayer, ...], BeforeValidator(_listed, json_schema_input_type=UnitLayer | tuple[UnitLayer, ...])
    ] = ()


def _without_secrets(address: str) -> str:
    """Refuse an address with credentials or a query: it would stand in the product's record."""
    if "://" in address and ("?" in address or "@" in address):
        raise ValueError(
            "an address here holds no credentials and no query; secrets come from the environment (.netrc)"
        )
    return address


class Loss(Section):
    """Where and when forest was lost: a raster of loss years or alerts, polygons with a year or a date, or `gfc`.

    `coding` says what a raster's pixels hold: `hansen` years, or days of alerts as Global Forest Watch (`integrated`),
    Wageningen (`radd`) or Maryland (`glad`) writes them (see `pipeline.alerts`); of alerts those of at least
    `min_confidence` count. Columns of polygons are found by usual names, or named in `year_column` or `date_column`.
    Where days are known, images from before the last day of an event's loss do not serve it.
    `gfc` is Hansen's Global Forest Change of a `version`, fetched by tile from `archive` into imagery.cache.
    """

    source: str
    version: str = Field("GFC-2025-v1.13", pattern=r"^GFC-\d{4}-v\d+\.\d+$")
    archive: str = Field("https://storage.googleapis.com/earthenginepartners-hansen", pattern=r"^https?://")
    years: tuple[int, ...] = Field(min_length=1)
    min_area_ha: float = Field(0.5, ge=0)
    coding: Literal["hansen", "integrated", "radd", "glad"] = "hansen"
    min_confidence: Literal["low", "high", "highest"] = "low"
    year_column: str | None = None
    date_column: str | None = None
    layer: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Loss:
        if self.coding == "hansen" and self.min_confidence != "low":
            raise ValueError("min_confidence is of alerts; name their coding: integrated, radd or glad")
        if self.coding != "hansen" and self.source == "gfc":
            raise ValueError(f"coding {self.coding} does not go with source gfc, which holds Hansen's years")
        if self.min_confidence == "highest" and self.coding != "integrated":
            raise ValueError("min_confidence highest is of coding integrated only; radd and glad know low and high")
        if self.year_column and self.date_column:
            raise ValueError("year_column and date_column are both named; keep one")
        return self

    @field_validator("archive")
    @classmethod
    def _plain(cls, address: str) -> str:
        return _without_secrets(address)

    @field_validator("years")
    @classmethod
    def _ordered(cls, years: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(years)) < len(years):
            raise ValueError("a year is named twice")
        return tuple(sorted(years))


class ImageWindow(Section):
    """Image years relative to the loss year, both included."""

    first_year: int = 0
    last_year: int = 4

    @model_validator(mode="after")
    def _ordered(self) -> ImageWindow:
        if self.first_year > self.last_year:
            raise ValueError(f"first_year {self.first_year} is after last_year {self.last_year}")
        return self


class Imagery(Section):
    """Where scenes come from and which may serve.

    Of a WRS path/row and loss year scenes are taken, clearest over the loss first, until every loss pixel has
    `enough_clear` clear observations, the scenes run out, or `max_scenes` are taken. A scene that brings a missing
    observation to no more than a share `least_gain` of the loss pixels is left, unless one of them has none at all.

    Scenes of the `before_years` years before a loss year serve pictures for people only, never the model; 0 = none.
    Remote files are kept in `cache`, the least recently used go first beyond `cache_gb`. `requester_pays` agrees to pay
    for S3 buckets whose readers pay; `allow_hosts` names private hosts that may be read. `read` says what comes of a
    remote file: the `window`s that the run needs, or the whole file (`cache`); results do not depend on it.
    """

    source: str
    collections: tuple[str, ...] = ("landsat-c2-l2",)
    window: ImageWindow = ImageWindow()
    max_cloud: float = Field(60.0, ge=0, le=100)
    max_scenes: int = Field(12, ge=1)
    enough_clear: int = Field(5, ge=1, le=99)
    least_gain: float = Field(0.01, ge=0, lt=1)
    before_years: int = Field(3, ge=0, le=20)
    read: Literal["window", "cache"] = "window"
    cache: Path = Path("cache")
    cache_gb: float = Field(200.0, gt=0)
    allow_hosts: tuple[str, ...] = ()
    requester_pays: bool = False

    @field_validator("source")
    @classmethod
    def _plain(cls, source: str) -> str:
        return _without_secrets(source)


class GridSpec(Section):
    """The run's pixel grid: CRS (`auto` or any PROJ knows), `resolution` in its units, `block` in pixels.

    A block's side is made up to whole steps of the tiling (patch less overlap), so that no patch belongs to two blocks.
    """

    crs: str = "auto"
    resolution: float = Field(30.0, gt=0)
    block: int = Field(2048, ge=32)


class Tiling(Section):
    """How patches are laid: `grid` = one lattice over the run, `events` = centred on events; sizes in pixels.

    Neighbouring patches share `overlap`: half of it at least lies between a pixel and the edge of what the model sees.
    """

    mode: Literal["grid", "events"] = "grid"
    patch: int = Field(256, ge=32, le=1024, multiple_of=32)
    overlap: int = Field(64, ge=0)

    @model_validator(mode="after")
    def _stride(self) -> Tiling:
        if self.overlap > self.patch // 2:
            raise ValueError(f"overlap {self.overlap} must not exceed half the patch ({self.patch // 2})")
        return self

    @property
    def stride(self) -> int:
        """Distance of neighbouring patches in pixels."""
        return self.patch - self.overlap


class Compute(Section):
    """Who computes, and with what.

    `executor` is one of `local` (Dask processes of this machine) · `threads` (this process) · `cuda` (a process for
    each GPU of this machine) · `slurm` (jobs) · `kubernetes` (pods) · the address of a Dask scheduler, tcp:// or
    tls://. `workers` is how many of them; with an address, how many blocks at once. What a site decides (queues,
    images, certificates) stands in Dask's own files: jobqueue.yaml, kubernetes.yaml, distributed.yaml.
    """

    executor: str = "local"
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=512)] = "auto"
    engine: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    @field_validator("executor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in EXECUTORS or re.match(r"^(tcp|tls|ws|wss|ucx|inproc)://", value):
            return value
        raise ValueError(f"{value!r} is none of {', '.join(EXECUTORS)}, nor a scheduler address like tcp://host:8786")


class Overlay(Section):
    """A layer whose share inside each event becomes the column `name` (0..1), NULL where it says nothing.

    A raster counts on cells whose value is one of `classes` (without `classes`: that are not 0); a polygon layer on all
    polygons, or on those whose `column` is one of `classes`. `covers` (a vector file, or [west, south, east, north] in
    degrees) says where the layer speaks at all; a raster that declares no other limits speaks wherever it has data.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")
    path: Path
    layer: str | None = None
    column: str | None = None
    classes: tuple[int | str, ...] = ()
    band: int = Field(1, ge=1)
    covers: Path | tuple[float, float, float, float] | None = None
    nodata_is_outside: bool = False
    title: str = ""
    date: str = ""
    source: str = ""

    @field_validator("date", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """YAML reads 2021 as a number and 2021-06-30 as a date."""
        return str(value) if isinstance(value, int | datetime.date) else value

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in RESERVED or name.startswith(("p_", "aux_", "unit")):
            raise ValueError(f"{name!r} is a column of the product already; choose another name")
        return name

    @model_validator(mode="after")
    def _column_needs_classes(self) -> Overlay:
        if self.column and not self.classes:
            raise ValueError(f"overlay {self.name}: column {self.column!r} is named, but no classes of it that count")
        return self


class Auxiliary(Section):
    """A predictor sampled for every event from a raster or a vector layer, NaN where the data say nothing.

    `mean` of a raster's cells · `slope` in degrees and `aspect` (two columns, <name>_sin and <name>_cos) of an
    elevation raster in metres · `distance` in km to the nearest feature of a vector layer · `share` 0..1 of the event
    inside a layer's polygons, or on a raster's cells that are not 0.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    path: Path
    measure: Literal["mean", "slope", "aspect", "distance", "share"]
    band: int = Field(1, ge=1)
    layer: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it gives."""
        return (f"{self.name}_sin", f"{self.name}_cos") if self.measure == "aspect" else (self.name,)


class Reference(Section):
    """Labels by which areas are estimated: a filled-in sample (`clearcause sample`), or points with a driver `column`.

    A file with the column event_id is a sample of events, any other one of points scattered evenly over the loss.
    """

    path: Path
    layer: str | None = None
    column: str = "reference_driver"


class Output(Section):
    """Where the product goes, the CRS of its vectors, and the confidence below which an event is `uncertain`.

    `dir` is a folder or an address s3://bucket/prefix. An address is taken for `store`, where the product is published
    and finished blocks are kept; its local part then lies in the user's cache folder. Whoever wants both places names
    both keys. Credentials come from the environment (AWS_...).
    `chips` is the number of events shown before and after their loss: half the largest, half the least certain.
    `simplify_m` (metres) simplifies the borders between patches of an event, `min_patch_ha` (hectares) merges smaller
    patches into the neighbour with the longest shared border; 0 turns them off.
    """

    dir: Path
    store: str = Field("", pattern=rf"^$|{PATTERN}")
    crs: str = "EPSG:4326"
    uncertain_below: float = Field(0.5, ge=0, le=1)
    chips: int = Field(24, ge=0, le=500)
    simplify_m: float = Field(0.0, ge=0, le=10_000)
    min_patch_ha: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _in_a_store(cls, tree: Any) -> Any:
        address = store_address(tree["dir"]) if isinstance(tree, dict) and isinstance(tree.get("dir"), str) else ""
        if not address:
            return tree
        if tree.get("store"):
            raise ValueError("dir and store both name a store; keep one")
        return {**tree, "dir": local_part(address), "store": address}

    def beside(self, variant: str) -> Output:
        """The same with its product beside the regular one, in the store too."""
        store, folder = f"{self.store}-{variant}", self.dir.with_name(f"{self.dir.name}-{variant}")
        if not self.store:
            return self.model_copy(update={"dir": folder})
        folder = local_part(store) if self.dir == local_part(self.store) else folder
        return self.model_copy(update={"dir": folder, "store": store})


class Schedule(Section):
    """When the region runs by itself (`clearcause serve`): a `cron` of five fields in a `timezone` (IANA name).

    `overlap` says what a run does that meets another one of its region: `wait` for it, or end as skipped. `tags` are
    Prefect's. Without a `cron` the region runs on demand only.
    """

    cron: str | None = None
    timezone: str | None = None
    overlap: Literal["wait", "skip"] = "wait"
    tags: tuple[str, ...] = ()

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str | None) -> str | None:
        if cron is not None and not re.fullmatch(r"[\w*,/#-]+( [\w*,/#-]+){4}", cron):
            raise ValueError(f"{cron!r} is no cron of five fields, as in '0 4 1 * *' (04:00 on the first of a month)")
        return cron

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"{name!r} is no time zone; write one as in Asia/Jakarta, or UTC")
        return name

    @model_validator(mode="after")
    def _zone_of_cron(self) -> Schedule:
        if self.cron is not None and self.timezone is None:
            raise ValueError("cron needs a timezone, as in Asia/Jakarta, or UTC")
        return self
