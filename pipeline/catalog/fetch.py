"""Remote band files to local ones: whole assets in a cache, verified or absent, shared by concurrent runs."""

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
from pipeline.catalog.faults import Expired, FetchFault, FetchPolicy, Permanent, Transient, persist
from pipeline.catalog.readers import Body, HttpReader, Reader, S3Reader
from pipeline.catalog.scene import Asset, Scene
from pipeline.catalog.verify import Digest, confirm, of_file, of_multihash
from pipeline.errors import SceneError

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Sign = Callable[[str, bool], str]
"""Address to signed address, at the moment it is read; True asks for a new signature."""


def unsigned(href: str, anew: bool = False) -> str:
    """Sign nothing."""
    del anew
    return href


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
        """Bring the wanted assets of a scene into the cache: band -> record, for remote ones.

        Raises:
            SceneError: an asset cannot be had whole; nothing half-written is served.
        """
        found = {}
        for band in bands:
            asset = scene.assets.get(band)
            if asset is not None and asset.href.lower().startswith(REMOTE):
                try:
                    found[band] = self.asset(asset)
                except FetchFault as fault:
                    raise SceneError(scene.id, f"{asset.href.rsplit('/', 1)[-1]}: {fault.reason}") from None
                except OSError as error:
                    raise SceneError(
                        scene.id, f"{asset.href.rsplit('/', 1)[-1]}: imagery.cache cannot be written ({error.strerror})"
                    ) from error
        return found

    def asset(self, asset: Asset) -> CachedFile:
        """Return the record of one asset, fetched where it is not in the cache, or not whole; raises FetchFault."""
        with store.claimed(asset.href, self.cache) as path:
            known = store.find(asset.href, self.cache)
            if known is not None:
                return known
            part = path.with_suffix(".part")
            for last in (False, True):
                try:
                    version, told = persist(lambda: self._attempt(asset.href, part), self.policy)
                    how = persist(lambda told=told: self._confirm(asset, part, told), self.policy)  # type: ignore[misc]
                except ValueError as error:
                    _drop(part)
                    # the fault may have been the way, not the file: once more from its first byte
                    if last:
                        raise Permanent(str(error)) from None
                    continue
                record = CachedFile(asset.href, part.stat().st_size, of_file(part), how, version)
                store.commit(part, record, self.cache)
                _drop(part)
                return record
        raise AssertionError("unreachable")

    def _attempt(self, href: str, part: Path) -> tuple[str | None, Digest | None]:
        """Download once, going on from what an earlier attempt left: (version, digest the server told).

        Raises ValueError where what came is no TIFF: a page of an intermediary, for which one more try is worth while.
        """
        try:
            return self._download(href, self.sign(href, False), part)
        except Expired:
            try:
                return self._download(href, self.sign(href, True), part)
            except Expired as fault:
                raise Permanent(fault.reason) from None

    def _download(self, href: str, signed: str, part: Path) -> tuple[str | None, Digest | None]:
        start, version = _left(part)
        with self._reader(href).open(signed, start, version) as body:
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
            head = b"" if size == 0 else _TIFF_MAGIC[0]
            for chunk in body.chunks:
                # a first piece may be a single byte
                head = head + chunk[: 4 - len(head)] if len(head) < 4 else head
                if not any(magic.startswith(head) for magic in _TIFF_MAGIC):
                    raise ValueError("what the server sends is no TIFF")
                size += len(chunk)
                if size > self.policy.most_bytes:
                    raise Permanent(f"larger than {self.policy.most_bytes} bytes")
                stream.write(chunk)
        return size

    def _confirm(self, asset: Asset, part: Path, told: Digest | None) -> str:
        def again(first: int, end: int, size: int) -> bytes:
            reader = self._reader(asset.href)
            try:
                return reader.part(self.sign(asset.href, False), first, end, size)
            except Expired:
                return reader.part(self.sign(asset.href, True), first, end, size)

        return confirm(part, of_multihash(asset.checksum) or told, again)

    def _reader(self, href: str) -> Reader:
        kind = "s3" if href.lower().startswith("s3://") else "http"
        if kind not in self._readers:
            self._readers[kind] = (
                S3Reader(self.policy, self.requester_pays)
                if kind == "s3"
                else HttpReader(self.policy, self.allow_hosts)
            )
        return self._readers[kind]


def localised(scene: Scene, cache: Path) -> Scene:
    """The scene with its assets as local files."""
    assets = {band: replace(asset, href=str(cached_path(asset.href, cache))) for band, asset in scene.assets.items()}
    return replace(scene, assets=assets)


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
