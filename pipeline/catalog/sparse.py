"""A TIFF with some of its tiles: read where tiles lie in a file from its header, write a local file with those at hand.

The local file is a BigTIFF with the tags of the first directory, byte for byte, and the tiles at hand one after the
other. Every other tile lies beyond the end of the file by its own table, so that reading it is an error in every
program; a size of 0 would mean "no data" instead. Overviews are left out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.tiles import ABSENT

CODECS = {1: "none", 5: "lzw", 8: "deflate", 32946: "deflate", 50000: "zstd"}
"""Values of the TIFF tag Compression that are understood."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF field type -> bytes of a value."""
_WHOLE = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS = 322, 323, 324, 325
_POINTERS = (330, 34665, 34853)
"""Tags whose values are places in the file: SubIFDs, Exif and GPS directories."""
_MOST_TAGS, _MOST_TILES, _MOST_VALUE, _MOST_TILE = 200, 1_000_000, 1 << 24, 1 << 28
_MOST_OVERHEAD = 4096
Read = Callable[[int, int], bytes]
"""(first, end) to the bytes of a file."""


class Unfit(Exception):
    """This file cannot be read by tiles; the text says why."""


@dataclass(frozen=True)
class Tag:
    """A field of a TIFF directory: its type, number of values, and these as they stand in the file."""

    kind: int
    count: int
    raw: bytes


@dataclass(frozen=True)
class Layout:
    """Where the tiles of a TIFF's full resolution lie.

    Attributes:
        order: byte order, `<` or `>`.
        tags: those of the first directory, less the places of tiles.
        shape: rows and columns of pixels.
        tile: rows and columns of a tile.
        length: bytes of a tile once inflated.
        codec: none, lzw, deflate or zstd.
        offsets: first byte of each tile in row-major order; 0 with size 0 for one without data.
        sizes: bytes of each tile.
    """

    order: str
    tags: Mapping[int, Tag]
    shape: tuple[int, int]
    tile: tuple[int, int]
    length: int
    codec: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.shape[1] // self.tile[1])

    def digest(self) -> str:
        """SHA-256 of everything here: files with the same one have the same tables."""
        total = hashlib.sha256(repr((self.order, sorted(self.tags.items()))).encode())
        total.update(repr((self.offsets, self.sizes)).encode())
        return total.hexdigest()

    def tiles_of(self, box: tuple[int, int, int, int]) -> set[int]:
        """Tiles that pixels [row0, row1) x [col0, col1) lie in; those outside the picture do not count."""
        (height, width), (rows, columns) = self.shape, self.tile
        row0, col0, row1, col1 = max(box[0], 0), max(box[1], 0), min(box[2], height), min(box[3], width)
        if row0 >= row1 or col0 >= col1:
            return set()
        down, along = range(row0 // rows, -(-row1 // rows)), range(col0 // columns, -(-col1 // columns))
        return {row * self.across + column for row in down for column in along}


def read_layout(read: Read, total: int) -> Layout:
    """Read the layout of a file of `total` bytes.

    Raises:
        Unfit: it is sound, as far as is known, but not understood here: no TIFF with tiles of one plain band.
        ValueError: its tables lead out of the file.
    """
    order, big, at = _start(read(0, 16))
    tags = _directory(read, total, order, big, at)

    def number(tag: int) -> int:
        values = _numbers(tags.get(tag), order)
        if len(values) != 1:
            raise Unfit(f"its TIFF tag {tag} is not one number")
        return values[0]

    if _OFFSETS not in tags or _COUNTS not in tags:
        raise Unfit("it has strips, not tiles")
    if _SAMPLES in tags and number(_SAMPLES) != 1:
        raise Unfit("it has several bands")
    shape, tile = (number(_HEIGHT), number(_WIDTH)), (number(_TILE_HEIGHT), number(_TILE_WIDTH))
    codec = CODECS.get(number(_COMPRESSION) if _COMPRESSION in tags else 1)
    bits = number(_BITS) if _BITS in tags else 1
    if codec is None or bits % 8 or not bits or min(*shape, *tile) < 1:
        raise Unfit("its compression or its pixels are of a kind that is not understood")
    offsets, sizes = (_numbers(tags[tag], order) for tag in (_OFFSETS, _COUNTS))
    count = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
    length = tile[0] * tile[1] * bits // 8
    if len(offsets) != count or len(sizes) != count or count > _MOST_TILES or length > _MOST_TILE:
        raise Unfit("its table of tiles is not understood")
    if max(sizes) > 2 * length + _MOST_OVERHEAD:
        raise ValueError("a tile is larger than it can be: its tables are damaged")
    kept = {tag: value for tag, value in tags.items() if tag not in (_OFFSETS, _COUNTS, *_POINTERS)}
    return Layout(order, kept, shape, tile, length, codec, offsets, sizes)


def _start(head: bytes) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and the place of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        raise Unfit("it is no TIFF")
    version = struct.unpack_from(order + "H", head, 2)[0]
    if version == 42:
        return order, False, struct.unpack_from(order + "I", head, 4)[0]
    if version == 43 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
        return order, True, struct.unpack_from(order + "Q", head, 8)[0]
    raise Unfit("it is no TIFF")


def _directory(read: Read, total: int, order: str, big: bool, at: int) -> dict[int, Tag]:
    """The tags of a directory with their values."""

    def part(first: int, size: int) -> bytes:
        if first + size > total or size > _MOST_VALUE:
            raise ValueError("its tables lead out of the file: truncated, or damaged")
        return read(first, first + size)

    head, entry, inline = (8, 20, 8) if big else (2, 12, 4)
    count = int.from_bytes(part(at, head), "little" if order == "<" else "big")
    if not 0 < count <= _MOST_TAGS:
        raise Unfit("its directory is not understood")
    table, tags = part(at + head, count * entry), {}
    for k in range(count):
        tag, kind = struct.unpack_from(order + "HH", table, k * entry)
        number = struct.unpack_from(order + ("Q" if big else "I"), table, k * entry + 4)[0]
        size = _SIZES.get(kind, 0) * number
        if not size:
            raise Unfit(f"its TIFF tag {tag} is of a kind that is not understood")
        value = table[k * entry + entry - inline : (k + 1) * entry]
        if size > inline:
            value = part(struct.unpack(order + ("Q" if big else "I"), value)[0], size)
        tags[tag] = Tag(kind, number, value[:size])
    return tags


def _numbers(tag: Tag | None, order: str) -> tuple[int, ...]:
    if tag is None or tag.kind not in _WHOLE:
        return ()
    return struct.unpack(f"{order}{tag.count}{_WHOLE[tag.kind]}", tag.raw)


class SparseWriter:
    """Writes a file with some tiles of a layout: `add` them in any order; the tables are written by `close`."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Begin a new file that has no tile yet; it is a sound TIFF at once."""
        self.layout = layout
        self._places: dict[int, tuple[int, int]] = {}
        self._stream = path.open("w+b")
        head, self._tables = _header(layout)
        self._stream.write(head)
        self._write_tables()
        self._stream.seek(0, 2)

    def add(self, tile: int, content: bytes) -> None:
        """Append the bytes of a tile, compressed as they are in the archive."""
        self._places[tile] = self._stream.tell(), len(content)
        self._stream.write(content)

    def _write_tables(self) -> None:
        order, sizes = self.layout.order, self.layout.sizes
        # a tile without data in the archive has none here either
        places = [self._places.get(k, (ABSENT, size) if size else (0, 0)) for k, size in enumerate(sizes)]
        for at, column in zip(self._tables, zip(*places, strict=True), strict=True):
            self._stream.seek(at)
            self._stream.write(struct.pack(f"{order}{len(places)}Q", *column))
        self._stream.flush()

    def close(self) -> None:
        """Write the tables and close the file."""
        if not self._stream.closed:
            self._write_tables()
            self._stream.close()

    def __enter__(self) -> SparseWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the tables and close the file."""
        self.close()


def _header(layout: Layout) -> tuple[bytes, tuple[int, int]]:
    """Head of a BigTIFF with the tags of a layout, and the places of its two tables, which are still empty."""
    order, count = layout.order, len(layout.offsets)
    tags = {**layout.tags, _OFFSETS: Tag(16, count, bytes(8 * count)), _COUNTS: Tag(16, count, bytes(8 * count))}
    at = 16 + 8 + 20 * len(tags) + 8
    entries, values, places = b"", b"", {}
    for tag, field in sorted(tags.items()):
        entries += struct.pack(order + "HHQ", tag, field.kind, field.count)
        if len(field.raw) > 8:
            places[tag] = at + len(values)
            entries += struct.pack(order + "Q", places[tag])
            values += field.raw + bytes(-len(field.raw) % 8)
        else:
            places[tag] = 16 + 8 + len(entries)
            entries += field.raw.ljust(8, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags))
    return head + entries + bytes(8) + values, (places[_OFFSETS], places[_COUNTS])


def local_layout(path: Path) -> Layout:
    """The layout of a file that `SparseWriter` wrote; raises Unfit, ValueError or OSError where it is none."""
    with path.open("rb") as stream:

        def read(first: int, end: int) -> bytes:
            stream.seek(first)
            return stream.read(end - first)

        return read_layout(read, path.stat().st_size)
