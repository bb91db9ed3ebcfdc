"""Pickled polygons without trust: `forest_loss_region.pkl` may hold a Polygon or a MultiPolygon and nothing else.

A pickle is a program. Two gates stand before it: only the opcodes that such a file needs (no attribute, no import by
number, no object built by name), and, of the names it may ask for, stand-ins of ours that take a string of bytes and
do nothing with it. The bytes are well-known binary (OGC 06-103r4), which shapely parses afterwards. Nothing that a
file names is ever imported or called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import shapely

from pipeline.errors import InputError

_MOST_BYTES = 50_000_000
_TYPES = ("Polygon", "MultiPolygon")
_SHAPELY_1 = {("shapely.geometry.polygon", "Polygon"), ("shapely.geometry.multipolygon", "MultiPolygon")}
_SHAPELY_2 = {("shapely.io", "from_wkb"), ("shapely", "from_wkb"), ("shapely.lib", "from_wkb")}
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
"""What Polygon and MultiPolygon pickles of shapely 1.7 to 2.2 are written with, protocols 0 to 5."""
_PLACES = {"PUT", "BINPUT", "LONG_BINPUT"}
_MOST_PLACES = 1000


class _Wkb:
    """A geometry still to be parsed; `__setstate__` is how shapely 1 hands over the bytes."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, bytes):
            raise pickle.UnpicklingError("the geometry's state is not a string of bytes")
        self.data = state


class _Maker:
    """A callable without attributes: `BUILD` can change nothing about it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name is given a state")


class _OldGeometry(_Maker):
    """Stands for shapely 1's classes, which are called without arguments and get their bytes afterwards."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Wkb:
        if arguments:
            raise pickle.UnpicklingError("a geometry class is called with arguments")
        return _Wkb()


class _FromWkb(_Maker):
    """Stands for shapely 2's `from_wkb`."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Wkb:
        made = _Wkb()
        if len(arguments) != 1:
            raise pickle.UnpicklingError("from_wkb is called with something else than bytes")
        made.__setstate__(arguments[0])
        return made


class _Encode(_Maker):
    """Stands for `_codecs.encode`, by which protocols 0 to 2 write bytes as text; only latin1 is known."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> bytes:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
            raise pickle.UnpicklingError("bytes are encoded by something else than latin1")
        return arguments[0].encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in for a name; raises UnpicklingError for every other name."""
        if (module, name) in _SHAPELY_1:
            return _OldGeometry()
        if (module, name) in _SHAPELY_2:
            return _FromWkb()
        if (module, name) == ("_codecs", "encode"):
            return _Encode()
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_region(path: Path) -> shapely.Polygon | shapely.MultiPolygon:
    """Return the polygon of a pickle, in the file's own coordinates; shapely 1.7 to 2 wrote it, nothing in it runs.

    Raises:
        InputError: naming the file, for whatever is not one Polygon or MultiPolygon and nothing else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than {_MOST_BYTES} bytes, which no polygon of an event is")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return parse_region(content)
    except ValueError as error:
        raise InputError(f"{path}: not a pickled Polygon or MultiPolygon ({error}); nothing of it was run") from error


def parse_region(content: bytes) -> shapely.Polygon | shapely.MultiPolygon:
    """Return the polygon of a pickle's bytes, in its own coordinates; raises ValueError saying what else it holds."""
    _check_opcodes(content)
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    # what the pickle module raises for damaged bytes
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, _Wkb):
        raise ValueError(f"it is a {type(found).__name__}")
    try:
        geometry = shapely.from_wkb(found.data)
    except (shapely.errors.ShapelyError, TypeError) as error:
        raise ValueError(f"its well-known binary cannot be parsed: {error}") from error
    if geometry is None or geometry.geom_type not in _TYPES:
        raise ValueError(f"it is a {'nothing' if geometry is None else geometry.geom_type}")
    if not geometry.is_empty and not all(abs(v) < 1e12 for v in geometry.bounds):
        raise ValueError("its coordinates are not finite")
    flat = shapely.force_2d(geometry)
    assert isinstance(flat, shapely.Polygon | shapely.MultiPolygon)
    return flat


def _check_opcodes(content: bytes) -> None:
    """Look through the program without running it; raises ValueError at the first opcode no polygon needs."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _OPCODES:
                raise ValueError(f"it uses the opcode {opcode.name}")
            # unpickling allocates as many places as the largest number says
            if opcode.name in _PLACES and int(str(argument)) > _MOST_PLACES:
                raise ValueError("it numbers its parts beyond what a polygon has")
    except (OverflowError, IndexError, KeyError) as error:
        raise ValueError(str(error)) from error
