"""Remote band files to local ones in a cache: whole or their windows, verified or absent, shared by concurrent runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.catalog import cache as store
from pipeline.catalog.cache import CachedFile, cached_path
from pipeline.catalog.check import REMOTE
from pipeline.catalog.faults import Changed, Expired, FetchFault, FetchPolicy, NoRanges, Permanent, Transient, persist
from pipeline.catalog.readers import TIFF_MAGIC, Body, HttpReader, Reader, S3Reader, Span, Tally
from pipeline.catalog.scene import Asset, Scene
from pipeline.catalog.sparse import Unfit, local_layout
from pipeline.catalog.verify import Digest, confirm, of_file, of_multihash
from pipeline.catalog.windows import Haul, Kept, Reach, Remote, fetch_windows, wanted_tiles
from pipeline.errors import SceneError

_BEGINNINGS = 3
"""How often windows of a file that changes meanwhile are begun before it is fetched whole."""
Sign = Callable[[str, bool], str]
"""Address to signed address, at the moment it is read; True brings a new signature, which is used from then on."""


def unsigned(href: str, anew: bool = False) -> str:
    """Sign nothing."""
    del anew
    return href


@dataclass(frozen=True)
class Brought:
    """A file at hand: its record, the tiles each user of it reads (None: it is whole), and what came for it now."""

    record: CachedFile
    wanted: dict[str, frozenset[int]] | None = None
    hauls: tuple[Haul, ...] = ()


@dataclass(frozen=True)
class Fetcher:
    """How files come: where they are cached, which private hosts are allowed, how hrefs are signed, the limits.

    `requester_pays` agrees to pay for S3 buckets whose readers pay.
    """

    cache: Path
    allow_hosts: tuple[str, ...] = ()
    sign: Sign = unsigned
    requester_pays: bool = False
    policy: FetchPolicy = field(default_factory=FetchPolicy)
    _readers: dict[str, Reader] = field(default_factory=dict, repr=False)

    def scene(self, scene: Scene, bands: tuple[str, ...]) -> dict[str, CachedFile]:
        """Bring the wanted assets of a scene whole into the cache: band -> record, for remote ones.

        Raises:
            SceneError: an asset cannot be had whole; nothing half-written is served.
        """
        found = {band: self.band(scene, band) for band in bands}
        return {band: brought.record for band, brought in found.items() if brought is not None}

    def band(self, scene: Scene, band: str, reach: Reach | None = None) -> Brought | None:
        """Bring one band of a scene, or the windows of it that `reach` names; None where it is not remote.

        Raises:
            SceneError: it cannot be had.
        """
        asset = scene.assets.get(band)
        if asset is None or not asset.href.lower().startswith(REMOTE):
            return None
        name = asset.href.rsplit("/", 1)[-1]
        try:
            return self.bring(asset, reach)
        except FetchFault as fault:
            raise SceneError(scene.id, f"{name}: {fault.reason}") from None
        except OSError as error:
            raise SceneError(scene.id, f"{name}: imagery.cache cannot be written ({error.strerror})") from error

    def asset(self, asset: Asset) -> CachedFile:
        """Return the record of one whole asset, fetched where it is not in the cache; raises FetchFault."""
        return self.bring(asset).record

    def bring(self, asset: Asset, reach: Reach | None = None) -> Brought:
        """Bring one asset, or windows of it: nothing comes that is in the cache and verifies; raises FetchFault."""
        with store.claimed(asset.href, self.cache) as path:
            known = store.find(asset.href, self.cache)
            if known is not None and known.tiles is None:
                return Brought(known)
            if reach is None:
                return self._whole(asset, path.with_suffix(".part"), "")
            if known is not None:
                wanted = wanted_tiles(local_layout(path), reach(path))
                if set(known.tiles or ()).issuperset(tile for tiles in wanted.values() for tile in tiles):
                    return Brought(known, wanted)
            return self._windows(asset, path, reach, known)

    # ------------------------------------------------------------------------------------------ windows

    def _windows(self, asset: Asset, path: Path, reach: Reach, known: CachedFile | None) -> Brought:
        part = path.with_suffix(".part-windows")
        kept = Kept(path, known.tiles or (), str(known.layout), known.version) if known is not None else None
        note, spent = "", Tally()
        try:
            for attempt in range(_BEGINNINGS):
                remote = Remote(self._ask(asset.href, spent))
                try:
                    got = fetch_windows(remote, part, reach, kept)
                except (Unfit, NoRanges) as error:
                    note = f"whole: {error}"
                    break
                except Changed as fault:
                    note = f"whole: {fault.reason}"
                except ValueError as error:
                    # the fault may have been the way, not the file
                    if attempt:
                        raise Permanent(str(error)) from None
                else:
                    size = part.stat().st_size
                    record = CachedFile(
                        asset.href, size, of_file(part), got.verified, got.version, got.tiles, got.of, got.layout
                    )
                    store.commit(part, record, self.cache)
                    return Brought(record, got.wanted, (*_rest(spent, got.hauls), *got.hauls))
        finally:
            part.unlink(missing_ok=True)
        whole = self._whole(asset, path.with_suffix(".part"), note)
        return replace(whole, hauls=(Haul(frozenset(), spent.requests, spent.bytes), *whole.hauls))

    def _ask(self, href: str, spent: Tally) -> Callable[[int, int, str | None, Tally], Span]:
        """Read stretches of a file with patience; everything that takes is added to `spent` too."""

        def once(first: int, end: int, version: str | None, tally: Tally) -> Span:
            reader = self._reader(href)
            try:
                found = reader.span(href, first, end, version, tally)
            except Expired:
                self.sign(href, True)
                try:
                    found = reader.span(href, first, end, version, tally)
                except Expired as fault:
                    raise Permanent(fault.reason) from None
            if found.total > self.policy.most_bytes:
                raise Permanent(f"larger than {self.policy.most_bytes} bytes")
            return found

        def ask(first: int, end: int, version: str | None, tally: Tally) -> Span:
            own = Tally()
            try:
                return persist(lambda: once(first, end, version, own), self.policy)
            finally:
                tally.add(own)
                spent.add(own)

        return ask

    # ------------------------------------------------------------------------------------------ whole files

    def _whole(self, asset: Asset, part: Path, note: str) -> Brought:
        tally = Tally()
        for last in (False, True):
            try:
                version, told = persist(lambda: self._attempt(asset.href, part, tally), self.policy)
                how = self._confirm(asset, part, told, tally)
            except (ValueError, Changed) as error:
                _drop(part)
                # the fault may have been the way, not the file: once more from its first byte
                if last:
                    raise Permanent(str(error)) from None
                continue
            record = CachedFile(asset.href, part.stat().st_size, of_file(part), how, version, note=note)
            store.commit(part, record, self.cache)
            _drop(part)
            return Brought(record, None, (Haul(frozenset(), tally.requests, tally.bytes),))
        raise AssertionError("unreachable")

    def _attempt(self, href: str, part: Path, tally: Tally) -> tuple[str | None, Digest | None]:
        """Download once, going on from what an earlier attempt left: (version, digest the server told).

        Raises ValueError where what came is no TIFF: a page of an intermediary, for which one more try is worth while.
        """
        try:
            return self._download(href, part, tally)
        except Expired:
            self.sign(href, True)
            try:
                return self._download(href, part, tally)
            except Expired as fault:
                raise Permanent(fault.reason) from None

    def _download(self, href: str, part: Path, tally: Tally) -> tuple[str | None, Digest | None]:
        start, version = _left(part)
        with self._reader(href).open(href, start, version, tally) as body:
            if body.total is not None and body.total > self.policy.most_bytes:
                raise Permanent(f"larger than {self.policy.most_bytes} bytes")
            size = self._write(body, part)
        if size == 0:
            raise ValueError("what the server sends is no TIFF but nothing at all")
        if body.total is not None and size != body.total:
            raise Transient(f"cut off: {size} of {body.total} bytes came")
        return body.version, body.digest

    def _write(self, body: Body, part: Path) -> int:
        """Append to the part, or begin it anew; returns its size."""
        size = body.start
        if not size:
            _drop(part)
            if body.version:
                write_json(_note(part), {"version": body.version})
        with part.open("ab") as stream:
            stream.truncate(size)
            head = b"" if size == 0 else TIFF_MAGIC[0]
            for chunk in body.chunks:
                # a first piece may be a single byte
                head = head + chunk[: 4 - len(head)] if len(head) < 4 else head
                if not any(magic.startswith(head) for magic in TIFF_MAGIC):
                    raise ValueError("what the server sends is no TIFF")
                size += len(chunk)
                if size > self.policy.most_bytes:
                    raise Permanent(f"larger than {self.policy.most_bytes} bytes")
                stream.write(chunk)
        return size

    def _confirm(self, asset: Asset, part: Path, told: Digest | None, tally: Tally) -> str:
        ask = self._ask(asset.href, Tally())

        def again(first: int, end: int, size: int) -> bytes:
            found = ask(first, end, None, tally)
            if found.total != size:
                raise ValueError(f"it is of {found.total} bytes, and {size} came")
            return found.content

        return confirm(part, of_multihash(asset.checksum) or told, again)

    def _reader(self, href: str) -> Reader:
        kind = "s3" if href.lower().startswith("s3://") else "http"
        if kind not in self._readers:
            self._readers[kind] = (
                S3Reader(self.policy, self.requester_pays)
                if kind == "s3"
                else HttpReader(self.policy, self.allow_hosts, self.sign)
            )
        return self._readers[kind]


def localised(scene: Scene, cache: Path) -> Scene:
    """The scene with its assets as local files."""
    assets = {band: replace(asset, href=str(cached_path(asset.href, cache))) for band, asset in scene.assets.items()}
    return replace(scene, assets=assets)


def _rest(spent: Tally, hauls: tuple[Haul, ...]) -> tuple[Haul, ...]:
    """What earlier, failed beginnings took, as a haul of no tile."""
    requests, brought = (sum(getattr(haul, name) for haul in hauls) for name in ("requests", "bytes"))
    return (Haul(frozenset(), spent.requests - requests, spent.bytes - brought),) if spent.requests > requests else ()


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _left(part: Path) -> tuple[int, str | None]:
    """Where to go on from what an earlier attempt left, and its version; without a version from the beginning.

    The last byte is asked for again: of a part that is whole already there is none to ask for, which servers refuse.
    """
    try:
        version = json.loads(_note(part).read_text(encoding="utf-8"))["version"]
        return max(part.stat().st_size - 1, 0), str(version)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None


def _drop(part: Path) -> None:
    for path in (part, _note(part)):
        with suppress(OSError):
            path.unlink(missing_ok=True)
