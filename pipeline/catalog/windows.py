"""Windows of a remote TIFF: its header and the tiles that are wanted by range requests, each one verified.

Deflate keeps a checksum in every tile, which is compared; tiles of other codecs are asked for once more when all have
come, and must be the same. So is the header, which has no checksum either: by it a file that was replaced meanwhile is
noticed. With a strong ETag every range asks for that version (If-Match); on a server that tells no version of a file
(neither ETag nor Last-Modified) everything is read twice, so that tiles of two versions never meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.catalog.faults import Changed
from pipeline.catalog.readers import Span, Tally
from pipeline.catalog.sparse import Layout, SparseWriter, local_layout, read_layout
from pipeline.tiles import inflate_one

HEAD = 1 << 15
"""Bytes asked for first: the tables of a scene's full resolution fit in, with those of its overviews as a rule."""
GAP = 1 << 16
"""Bytes between two tiles that are asked for and thrown away, rather than asking twice."""
_MOST = 1 << 24
"""Bytes of one request."""
_TRIES = 3
"""How often tiles that do not verify are asked for."""
Box = tuple[int, int, int, int]
"""Pixels of a file: first row and column, and those after the last."""
Reach = Callable[[Path], Mapping[str, Sequence[Box]]]
"""From a local TIFF (its header counts) to the pixels that each user of it will read."""
Ask = Callable[[int, int, str | None, Tally], Span]
"""(first, end, version, tally) to the bytes of a remote file, transient faults seen to."""


@dataclass(frozen=True)
class Haul:
    """Tiles that came together, and what that took."""

    tiles: frozenset[int]
    requests: int
    bytes: int


@dataclass
class Remote:
    """One version of a remote file, read by ranges; `tally` is what its header took."""

    ask: Ask
    version: str | None = None
    total: int | None = None
    tally: Tally = field(default_factory=Tally)
    _pieces: dict[int, bytes] = field(default_factory=dict)
    _used: dict[int, int] = field(default_factory=dict)

    def span(self, first: int, end: int, tally: Tally) -> bytes:
        """Bytes [first, end); raises Changed where the file is not what it was."""
        found = self.ask(first, end, self.version, tally)
        if self.total is not None and (found.total, found.version) != (self.total, self.version):
            raise Changed("it changed while it was read")
        self.total, self.version = found.total, found.version
        return found.content

    def at_hand(self, first: int, end: int) -> bytes | None:
        """Bytes [first, end) if they came with the header."""
        for at, content in self._pieces.items():
            if at <= first and end <= at + len(content):
                return content[first - at : end - at]
        return None

    def head(self, first: int, end: int) -> bytes:
        """Bytes [first, end) of the header."""
        content = self.at_hand(first, end)
        if content is None:
            self._pieces[first] = self.span(first, max(end, first + HEAD), self.tally)
            content = self._pieces[first][: end - first]
        at = max(at for at in self._pieces if at <= first)
        self._used[at] = max(self._used.get(at, 0), first + len(content) - at)
        return content

    def confirm_head(self) -> None:
        """Ask for what was used of the header once more; raises Changed where it is another one."""
        for first, size in self._used.items():
            if self.span(first, first + size, self.tally) != self._pieces[first][:size]:
                raise Changed("a second reading brought other bytes")


@dataclass(frozen=True)
class Fetched:
    """What a file of windows holds: its tiles of how many, of which version, and what it took to bring them.

    `wanted` names the tiles that each user reads.
    """

    layout: str
    tiles: tuple[int, ...]
    of: int
    version: str | None
    verified: str
    wanted: dict[str, frozenset[int]]
    hauls: tuple[Haul, ...]


@dataclass(frozen=True)
class Kept:
    """A local file with some tiles that is to have more: its path, tiles, and the layout and version of its source."""

    path: Path
    tiles: tuple[int, ...]
    layout: str
    version: str | None


def wanted_tiles(layout: Layout, boxes: Mapping[str, Iterable[Box]]) -> dict[str, frozenset[int]]:
    """The tiles that hold data in which the boxes of each user lie."""
    return {
        user: frozenset(k for box in group for k in layout.tiles_of(box) if layout.sizes[k])
        for user, group in boxes.items()
    }


def fetch_windows(remote: Remote, part: Path, reach: Reach, kept: Kept | None) -> Fetched:
    """Write a file with the wanted tiles, and those that `kept` has, to `part`.

    Raises:
        Unfit: the file is of a kind that only can be fetched whole.
        ValueError: it is damaged: a tile does not inflate, or tables lead out of it.
        Changed: it changed meanwhile.
    """
    remote.head(0, 16)
    assert remote.total is not None
    layout = read_layout(remote.head, remote.total)
    if max((a + n for a, n in zip(layout.offsets, layout.sizes, strict=True) if n), default=0) > remote.total:
        raise ValueError(f"truncated: it has {remote.total} bytes, and its tiles reach beyond them")
    digest = layout.digest()
    with SparseWriter(part, layout) as writer:
        wanted = wanted_tiles(layout, reach(part))
        missing = set[int]().union(*wanted.values())
        have: tuple[int, ...] = ()
        if kept is not None:
            if kept.layout == digest and kept.version is not None and kept.version == remote.version:
                have = kept.tiles
                _copy(kept, writer)
            else:
                # other runs may count on the tiles that the old file has
                missing |= {k for k in kept.tiles if k < len(layout.sizes) and layout.sizes[k]}
        groups = [_Group(tiles) for tiles in ranges(layout, missing - set(have), GAP)]
        for group in groups:
            _fetch(remote, layout, group, writer)
    summed = layout.codec == "deflate"
    if not summed or remote.version is None:
        for group in groups:
            _fetch_again(remote, layout, group)
    remote.confirm_head()
    told = "every tile's own checksum, header read twice" if summed else "read twice"
    head = Haul(frozenset(), remote.tally.requests, remote.tally.bytes)
    hauls = [head, *(Haul(frozenset(g.tiles), g.tally.requests, g.tally.bytes) for g in groups)]
    tiles = tuple(sorted(missing | set(have)))
    return Fetched(digest, tiles, len(layout.sizes), remote.version, told, wanted, tuple(hauls))


def ranges(layout: Layout, tiles: Iterable[int], gap: int) -> list[list[int]]:
    """Groups of tiles that one request brings each: neighbours in the file with at most `gap` bytes between them."""
    groups: list[list[int]] = []
    first = end = 0
    for tile in sorted(tiles, key=lambda k: layout.offsets[k]):
        start, stop = layout.offsets[tile], layout.offsets[tile] + layout.sizes[tile]
        if groups and start - end <= gap and stop - first <= _MOST:
            groups[-1].append(tile)
            end = max(end, stop)
        else:
            groups.append([tile])
            first, end = start, stop
    return groups


@dataclass
class _Group:
    """Tiles that lie together and come with one request: what that took, and a digest of what came."""

    tiles: list[int]
    tally: Tally = field(default_factory=Tally)
    digest: bytes = b""

    def place(self, layout: Layout) -> tuple[int, int]:
        """First byte and the one after the last."""
        return layout.offsets[self.tiles[0]], max(layout.offsets[k] + layout.sizes[k] for k in self.tiles)


def _fetch(remote: Remote, layout: Layout, group: _Group, writer: SparseWriter) -> None:
    """Bring tiles, and decode those that have a checksum; raises ValueError where one is damaged."""
    first, end = group.place(layout)
    for attempt in range(1, _TRIES + 1):
        kept = remote.at_hand(first, end) if attempt == 1 else None
        content = remote.span(first, end, group.tally) if kept is None else kept
        places = {k: layout.offsets[k] - first for k in group.tiles}
        pieces = {k: content[place : place + layout.sizes[k]] for k, place in places.items()}
        try:
            if layout.codec == "deflate":
                for tile, piece in pieces.items():
                    inflate_one(piece, layout.length, f"tile {tile % layout.across},{tile // layout.across}")
            break
        except ValueError:
            # the fault may have been the way, not the file
            if attempt == _TRIES:
                raise
    group.digest = hashlib.sha256(content).digest()
    for tile, piece in pieces.items():
        writer.add(tile, piece)


def _fetch_again(remote: Remote, layout: Layout, group: _Group) -> None:
    """Ask for tiles a second time; raises Changed where other bytes come."""
    content = remote.span(*group.place(layout), group.tally)
    if hashlib.sha256(content).digest() != group.digest:
        raise Changed("a second reading brought other bytes")


def _copy(kept: Kept, writer: SparseWriter) -> None:
    """Take over the tiles of an older file of the same version."""
    old = local_layout(kept.path)
    with kept.path.open("rb") as stream:
        for tile in kept.tiles:
            stream.seek(old.offsets[tile])
            writer.add(tile, stream.read(old.sizes[tile]))
