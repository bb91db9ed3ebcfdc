"""Tiles of a single-band GeoTIFF as bytes in its file, and their strict decoding: GDAL takes damaged ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio

ABSENT = 1 << 40
"""Offset, beyond the end of every file, of a tile that a file with some tiles only does not have."""


@dataclass(frozen=True)
class Tile:
    """A tile or strip: overview `level` (None: full resolution), its place, and `length` in bytes once inflated.

    `offset` is None where the file holds none of its bytes: a sparse tile, all nodata.
    """

    level: int | None
    row: int
    column: int
    offset: int | None
    size: int
    length: int

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"tile {self.column},{self.row} of level {self.level}"


def tiles(path: Path) -> list[Tile]:
    """Every tile of a local GeoTIFF, overviews too; raises RasterioError where it cannot be opened."""
    found = []
    with rasterio.open(path, driver="GTiff") as whole:
        for level in (None, *range(len(whole.overviews(1)))):
            options = {} if level is None else {"overview_level": level}
            with rasterio.open(path, driver="GTiff", **options) as dataset:
                height, width = dataset.shape
                rows, columns = dataset.block_shapes[0]
                pixel, tiled = np.dtype(dataset.dtypes[0]).itemsize, dataset.profile["tiled"]
            for row, column in np.ndindex(-(-height // rows), -(-width // columns)):
                offset, size = (
                    whole.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1, ovr=level)
                    for what in ("OFFSET", "SIZE")
                )
                there = offset is not None and size is not None and int(size) > 0
                # a last strip ends with the picture, a last tile is padded
                deep = rows if tiled else min(rows, height - row * rows)
                first, count = (int(offset), int(size)) if there else (None, 0)
                found.append(Tile(level, row, column, first, count, deep * columns * pixel))
    return found


def inflate(path: Path, wanted: Iterable[Tile]) -> None:
    """Inflate deflate tiles, whose checksums zlib compares and GDAL does not; absent ones are passed over.

    Raises:
        ValueError: a tile is damaged, cut off or of the wrong length; names it.
    """
    with path.open("rb") as stream:
        for tile in wanted:
            if tile.offset is None:
                continue
            stream.seek(tile.offset)
            inflate_one(stream.read(tile.size), tile.length, tile.name)


def inflate_one(content: bytes, length: int, name: str) -> None:
    """Inflate the deflated bytes of one tile, which come to `length`; raises ValueError as `inflate` does."""
    inflater = zlib.decompressobj()
    try:
        # never more than one byte too many: a small tile may be made to swell
        found = len(inflater.decompress(content, length + 1))
    except zlib.error as error:
        raise ValueError(f"{name} is damaged ({error})") from error
    if found < length and not inflater.eof:
        raise ValueError(f"{name} is damaged (cut off)")
    if found != length:
        raise ValueError(f"{name} has the wrong length")
    # the checksum stands behind the last byte
    if not inflater.eof:
        raise ValueError(f"{name} is damaged (without its checksum)")
