"""Are these the bytes that the archive holds? By checksum where one is known, else by strict decoding and rereading.

GDAL accepts damaged tiles without an error, so a file that merely opens proves nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rasterio.errors import RasterioError

from pipeline.catalog.check import open_header
from pipeline.tiles import inflate, tiles

_MULTIHASH = {"11": ("sha1", 20), "12": ("sha256", 32), "13": ("sha512", 64), "d50110": ("md5", 16)}
"""Multihash prefixes (code) -> algorithm and length in bytes (github.com/multiformats/multicodec, table)."""
_CHUNK = 1 << 20
_GAP = 64
"""Bytes between two tiles up to which nothing is in the gap but the leader and trailer that COG writers put there."""


@dataclass(frozen=True)
class Digest:
    """A digest in hexadecimal, and where it was told."""

    algorithm: str
    value: str
    source: str


def of_multihash(text: object) -> Digest | None:
    """Read STAC's `file:checksum` (a hexadecimal multihash); None where it is none, or its algorithm is not known."""
    if not isinstance(text, str):
        return None
    lowered = text.lower()
    for code, (algorithm, size) in _MULTIHASH.items():
        prefix = code if code == "d50110" else f"{code}{size:02x}"
        if re.fullmatch(f"{prefix}[0-9a-f]{{{2 * size}}}", lowered):
            return Digest(algorithm, lowered.removeprefix(prefix), "file:checksum")
    return None


def of_headers(headers: Mapping[str, str]) -> Digest | None:
    """Return the digest of the whole object that an answer's headers tell: S3's SHA-256, or an MD5 (Azure, S3)."""
    lowered = {name.lower(): value for name, value in headers.items()}
    for name, algorithm, size in (
        ("x-amz-checksum-sha256", "sha256", 32),
        ("x-ms-blob-content-md5", "md5", 16),
        # of a partial answer this header is that of the part; callers ask for headers of whole ones only
        ("content-md5", "md5", 16),
    ):
        try:
            raw = base64.b64decode(lowered.get(name, ""), validate=True)
        except binascii.Error:
            continue
        if len(raw) == size:
            return Digest(algorithm, raw.hex(), name)
    return None


def of_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def agrees(path: Path, digest: Digest) -> bool:
    """Whether a file has a digest."""
    return of_file(path, digest.algorithm) == digest.value


def decode_strictly(path: Path) -> bool:
    """Inflate every tile and check its checksum; False where the codec has none (LZW, ZSTD as GDAL writes it, raw).

    Raises:
        ValueError: a tile is damaged or cut off, or the file is no TIFF.
    """
    try:
        with open_header(path) as dataset:
            codec = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "")
        if codec == "DEFLATE":
            inflate(path, tiles(path))
    except RasterioError as error:
        raise ValueError(f"not a TIFF, or damaged ({' '.join(str(error).split())[:120]})") from error
    return bool(codec == "DEFLATE")


def outside_tiles(path: Path) -> list[tuple[int, int]]:
    """Return (first, end) of the stretches of a TIFF that no tile covers: its header and tables."""
    stretches, at = [], 0
    for offset, size in sorted((tile.offset, tile.size) for tile in tiles(path) if tile.offset is not None):
        if offset - at > _GAP or at == 0:
            stretches.append((at, offset))
        at = max(at, offset + size)
    end = path.stat().st_size
    return [*stretches, *([(at, end)] if end - at > _GAP else [])]


def confirm(path: Path, known: Digest | None, read_again: Callable[[int, int, int], bytes]) -> str:
    """Return how the bytes of a file were verified; see the module.

    Args:
        path: the file.
        known: its digest, where the archive tells one.
        read_again: (first, end, size) reads bytes [first, end) of the archive's file once more, and raises ValueError
            where that is not of `size` bytes.

    Raises:
        ValueError: they are not what the archive holds.
    """
    if known is not None:
        if not agrees(path, known):
            raise ValueError(f"its bytes differ from the archive's {known.algorithm} ({known.source})")
        return f"{known.algorithm} ({known.source})"
    size = path.stat().st_size
    if decode_strictly(path):
        stretches, told = outside_tiles(path), "every tile's own checksum, header read twice"
    else:
        stretches, told = [(0, size)], "read twice"
    with path.open("rb") as stream:
        for first, end in stretches:
            for start in range(first, end, 16 * _CHUNK):
                stop = min(start + 16 * _CHUNK, end)
                stream.seek(start)
                if read_again(start, stop, size) != stream.read(stop - start):
                    raise ValueError("a second reading brought other bytes")
    return told
