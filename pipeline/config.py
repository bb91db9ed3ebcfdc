"""`RunConfig`: the configuration file of a run, parsed once. It composes the parameters that the stages own.

Unknown keys are refused with the nearest known one; paths are relative to the configuration file and become absolute
here. Secrets never live in a configuration: they come from the environment.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator

from pipeline.config_sections import (
    EXECUTORS,
    RESERVED,
    Auxiliary,
    Compute,
    GridSpec,
    Imagery,
    ImageWindow,
    Loss,
    Output,
    Overlay,
    Reference,
    Region,
    Schedule,
    Section,
    Tiling,
    UnitLayer,
)
from pipeline.errors import ConfigError

__all__ = [
    "EXECUTORS", "RESERVED", "Auxiliary", "Compute", "GridSpec", "ImageWindow", "Imagery", "Loss", "Output", "Overlay",
    "Reference", "Region", "RunConfig", "Schedule", "Section", "Tiling", "UnitLayer", "load_config", "parse_config",
    "read_tree", "validated",
]  # fmt: skip

_NAMED_SOURCES = ("planetary-computer", "earth-search", "usgs")


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
