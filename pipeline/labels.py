"""Label schemes: the classes a driver can be, their codes, titles and colours. One owner of that fact.

Codes are uint8 raster values; `NO_DATA` (255) is never a class, and neither is 0, so an empty canvas
cannot be mistaken for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pipeline.errors import ModelError

NO_DATA = 255
AGRICULTURE = {"plantation": True, "smallholder_agriculture": True, "grassland_shrubland": False, "other": None}
"""Whether a driver is conversion to agriculture, where a class does not say so itself; None = cannot be said.

`plantation` is oil palm, timber and other plantations in one; only the agricultural ones are meant by the EU's law.
"""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class DriverClass:
    """One class: raster `code` 1..254, column-safe `name`, `title` for people, `colour` #rrggbb, `parent` class.

    `agriculture` says whether it is conversion to agriculture; without it `AGRICULTURE` is asked by name and parent.
    """

    code: int
    name: str
    title: str
    colour: str
    parent: str | None = None
    agriculture: bool | None = None


@dataclass(frozen=True)
class LabelScheme:
    """The classes of a model in the order of its outputs (output channel k is `classes[k]`)."""

    classes: tuple[DriverClass, ...]

    def __post_init__(self) -> None:
        """Refuse a scheme whose codes or names could be confused; raises ModelError."""
        codes, names = [c.code for c in self.classes], [c.name for c in self.classes]
        if not self.classes or len(set(codes)) < len(codes) or len(set(names)) < len(names):
            raise ModelError(f"label scheme: codes {codes} and names {names} must be present and distinct")
        for item in self.classes:
            if not 1 <= item.code <= 254 or not _NAME.fullmatch(item.name) or not _COLOUR.fullmatch(item.colour):
                raise ModelError(
                    f"label scheme: class {item.name!r} needs a code in 1..254, a lower-case name and a colour #rrggbb"
                )

    def __iter__(self) -> Iterator[DriverClass]:
        """Iterate over the classes in output order."""
        return iter(self.classes)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in output order."""
        return tuple(c.name for c in self.classes)

    @property
    def codes(self) -> tuple[int, ...]:
        """Raster codes in output order."""
        return tuple(c.code for c in self.classes)

    @property
    def agriculture(self) -> dict[str, bool | None]:
        """Class name to whether it is conversion to agriculture, None = not known."""
        return {
            c.name: AGRICULTURE.get(c.name, AGRICULTURE.get(c.parent or "")) if c.agriculture is None else c.agriculture
            for c in self.classes
        }

    def to_list(self) -> list[dict[str, object]]:
        """Return the JSON form stored in a model card; what a class does not say of agriculture is left out."""
        return [{k: v for k, v in asdict(c).items() if k != "agriculture" or v is not None} for c in self.classes]

    @classmethod
    def from_list(cls, rows: list[dict[str, object]]) -> LabelScheme:
        """Read the JSON form of a model card; raises ModelError on unknown or missing keys."""
        try:
            return cls(tuple(DriverClass(**row) for row in rows))  # type: ignore[arg-type]
        except TypeError as error:
            raise ModelError(f"label scheme of the model card: {error}") from error


FOREST_LOSS_DRIVERS = LabelScheme(
    (
        DriverClass(1, "plantation", "Plantation", "#1b7837"),
        DriverClass(2, "smallholder_agriculture", "Smallholder agriculture", "#e6a11f"),
        DriverClass(3, "grassland_shrubland", "Grassland and shrubland", "#b6d77a"),
        DriverClass(4, "other", "Other (mining, logging, ponds, ...)", "#7b4fa3"),
    )
)
"""ForestNet's four merged classes (Irvin et al. 2020)."""
