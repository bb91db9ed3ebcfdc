"""`RunConfig`: the configuration file of a run, parsed once. It composes the parameters that the stages own.

Unknown keys are refused with the nearest known one; paths are relative to the configuration file and become absolute
here. Secrets never live in a configuration: they come from the environment.
"""

from __future__ import annotations

import datetime
import difflib
import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError

EXECUTORS = ("local", "threads", "cuda", "slurm", "kubernetes")
_NAMED_SOURCES = ("planetary-computer", "earth-search", "usgs")
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
    """The run's pixel grid: CRS (`auto` or any PROJ knows), `resolution` in its units, `block` in pixels."""

    crs: str = "auto"
    resolution: float = Field(30.0, gt=0)
    block: int = Field(2048, ge=32)


class Tiling(Section):
    """How patches are laid: `grid` = one lattice over the run, `events` = centred on events; sizes in pixels."""

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
    engine: Literal["auto", "torch", "onnx"] = "auto"
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

    `chips` is the number of events shown before and after their loss: half the largest, half the least certain.
    `simplify_m` (metres) simplifies the borders between patches of an event, `min_patch_ha` (hectares) merges smaller
    patches into the neighbour with the longest shared border; 0 turns them off.
    """

    dir: Path
    crs: str = "EPSG:4326"
    uncertain_below: float = Field(0.5, ge=0, le=1)
    chips: int = Field(24, ge=0, le=500)
    simplify_m: float = Field(0.0, ge=0, le=10_000)
    min_patch_ha: float = Field(0.0, ge=0)


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


class RunConfig(Section):
    """One run. Every section belongs to a stage; see `configs/` for tested examples."""

    region: Region
    loss: Loss
    imagery: Imagery
    grid: GridSpec = GridSpec()
    model: Path
    tiling: Tiling = Tiling()
    compute: Compute = Compute()
    overlays: tuple[Overlay, ...] = ()
    auxiliary: tuple[Auxiliary, ...] = ()
    reference: Reference | None = None
    schedule: Schedule = Schedule()
    output: Output

    @field_validator("auxiliary")
    @classmethod
    def _distinct(cls, auxiliary: tuple[Auxiliary, ...]) -> tuple[Auxiliary, ...]:
        columns = [column for item in auxiliary for column in item.columns]
        twice = next((c for k, c in enumerate(columns) if c in columns[:k]), None)
        if twice is not None:
            raise ValueError(f"column {twice!r} is given twice; choose another name")
        return auxiliary

    @field_validator("overlays")
    @classmethod
    def _named_once(cls, overlays: tuple[Overlay, ...]) -> tuple[Overlay, ...]:
        names = [overlay.name for overlay in overlays]
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise ValueError(f"overlay {twice!r} is given twice; choose another name")
        return overlays

    @property
    def work(self) -> Path:
        """Folder of the run's state (plan, checkpoints, log), beside the product: the product holds itself only."""
        return self.output.dir.with_name(self.output.dir.name + ".work")


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that is written twice: the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raises a YAML error that names the repeated key."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for k, key in enumerate(keys) if key in keys[:k]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"key {twice!r} is written twice")
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply `KEY=VALUE` overrides (dotted keys, YAML values) and check it.

    Raises:
        ConfigError: one line for the first fault, naming the file, the key and the remedy.
    """
    return _absolute(validated(RunConfig, read_tree(path, overrides), str(path)), path.resolve().parent)


def read_tree(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a YAML file as plain values and apply `KEY=VALUE` overrides; raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"configuration {path}: no such file")
    if path.stat().st_size > 1_000_000:
        raise ConfigError(f"configuration {path}: larger than 1 MB, which no configuration is")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {path}: expected keys and values at the top")
    for override in overrides:
        _override(tree, override)
    return tree


def validated[T: Section](model: type[T], tree: dict[str, Any], name: str) -> T:
    """Check plain values against a section; raises ConfigError, which calls the configuration `name`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"configuration {name}: {_explain(error)}") from error


def parse_config(tree: dict[str, Any], base: Path, name: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Check a configuration given as plain values; relative paths start at `base`, errors call it `name`."""
    for override in overrides:
        _override(tree, override)
    return _absolute(validated(RunConfig, tree, name), base)


def _override(tree: dict[str, Any], text: str) -> None:
    """Set one dotted key from `KEY=VALUE`, in place."""
    key, sign, value = text.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"option -o {text!r}: write KEY=VALUE, as in -o tiling.mode=events")
    for part in parts[:-1]:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"option -o {text!r}: {part} is a value, not a section")
        tree = child
    try:
        tree[parts[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"option -o {text!r}: the value is not YAML") from error


def _explain(error: ValidationError) -> str:
    """Turn the first validation error into `key: what is wrong (what would be right)`."""
    first = error.errors()[0]
    keys = [
        str(part) for part in first["loc"] if isinstance(part, int) or part in _all_keys() or part is first["loc"][-1]
    ]
    where = ".".join(keys)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(first["loc"][-1]), _all_keys(), 1)
        return f"unknown key {where}" + (
            f"; did you mean {close[0]!r}?" if close else "; `clearcause schema` lists the keys"
        )
    if first["type"] == "missing":
        return f"key {where} is missing"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _all_keys() -> list[str]:
    return sorted({key for section in Section.__subclasses__() for key in section.model_fields})


def _absolute(config: RunConfig, base: Path) -> RunConfig:
    """Return the configuration with every path made absolute against `base`."""

    def fix(path: Path) -> Path:
        return (base / path.expanduser()).resolve()

    region, loss, imagery = config.region, config.loss, config.imagery
    aoi = fix(region.aoi) if isinstance(region.aoi, Path) else region.aoi
    units = tuple(unit.model_copy(update={"path": fix(unit.path)}) for unit in region.units)
    source = imagery.source
    if source not in _NAMED_SOURCES and "://" not in source:
        source = str(fix(Path(source)))
    update = {
        "region": region.model_copy(update={"aoi": aoi, "units": units}),
        "loss": loss if loss.source == "gfc" else loss.model_copy(update={"source": str(fix(Path(loss.source)))}),
        "imagery": imagery.model_copy(update={"source": source, "cache": fix(imagery.cache)}),
        "model": fix(config.model),
        "overlays": tuple(
            o.model_copy(
                update={"path": fix(o.path), "covers": fix(o.covers) if isinstance(o.covers, Path) else o.covers}
            )
            for o in config.overlays
        ),
        "auxiliary": tuple(a.model_copy(update={"path": fix(a.path)}) for a in config.auxiliary),
        "output": config.output.model_copy(update={"dir": fix(config.output.dir)}),
    }
    if config.reference is not None:
        update["reference"] = config.reference.model_copy(update={"path": fix(config.reference.path)})
    return config.model_copy(update=update)
