"""The local cache of remote band files: a file is there, with its record, if and only if its bytes were verified.

A file is the archive's own, or one with some of its tiles (`sparse`), which is replaced when more of them are wanted.
`<cache>/ab/<sha256 of the address>.tif` beside `.json`, its record. Runs may share a cache: one downloads a file,
others wait for its lock. What a live run needs is pinned; of the rest the least recently used goes first when the cache
is over its size.

A file that the archive has replaced since is served as it was verified, until it is evicted: equal runs stay equal.
USGS gives a scene that it processes anew another name, and so another address.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from pipeline.artifacts import file_sha256, write_json
from pipeline.catalog.check import REMOTE

_STALE_PART_S = 7 * 86_400.0


@dataclass(frozen=True)
class CachedFile:
    """The record of a file: where from (unsigned), its bytes and SHA-256, and how they were verified.

    `tiles` are those of the archive's file that this one has, None for all of it; `of` is how many that has, `layout`
    a digest of its tables, `version` its ETag or time. `note` says why a file of which windows were wanted is whole.
    """

    href: str
    bytes: int
    sha256: str
    verified: str
    version: str | None = None
    tiles: tuple[int, ...] | None = None
    of: int | None = None
    layout: str | None = None
    note: str = ""


def cached_path(href: str, cache: Path) -> Path:
    """Where an asset lies on this machine: itself if it is local, else a name in the cache that no href can choose."""
    if not href.lower().startswith(REMOTE):
        return Path(href)
    name = hashlib.sha256(href.encode()).hexdigest()
    return cache / name[:2] / f"{name}.tif"


def find(href: str, cache: Path, check: bool = True) -> CachedFile | None:
    """Return the record of a file that is there and whole; with `check` its bytes are read and compared.

    A file that no longer is what its record says is as good as absent.
    """
    path = cached_path(href, cache)
    try:
        tree = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tree["tiles"] = None if tree.get("tiles") is None else tuple(tree["tiles"])
        record = CachedFile(**tree)
        if path.stat().st_size != record.bytes or (check and file_sha256(path) != record.sha256):
            return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    with suppress(OSError):
        # a shared cache may be read-only for this user; then somebody else keeps its order
        os.utime(path.with_suffix(".json"))
    return record


@contextmanager
def claimed(href: str, cache: Path) -> Iterator[Path]:
    """Hold a file of the cache for this process and give its path, until it is committed or given up."""
    path = cached_path(href, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        yield path


def commit(part: Path, record: CachedFile, cache: Path) -> None:
    """Put a verified part in its place: flushed, renamed, and then its record, without which it does not count."""
    path = cached_path(record.href, cache)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    path.with_suffix(".json").unlink(missing_ok=True)
    part.replace(path)
    write_json(path.with_suffix(".json"), asdict(record))


_holds: list[FileLock] = []


def hold(hrefs: Iterable[str], cache: Path) -> None:
    """Keep files from being evicted for the life of this process; a dead process holds nothing."""
    names = sorted(cached_path(href, cache).name for href in hrefs if href.lower().startswith(REMOTE))
    if not names:
        return
    folder = cache / "pins"
    folder.mkdir(parents=True, exist_ok=True)
    pin = folder / f"{uuid4().hex}.json"
    lock = FileLock(pin.with_suffix(".lock"))
    lock.acquire()
    _holds.append(lock)
    write_json(pin, names)


def release() -> None:
    """Give back what this process holds; the system does it too when the process ends, however it ends."""
    while _holds:
        _holds.pop().release()


def evict(cache: Path, most_bytes: int) -> int:
    """Remove the least recently used files until the cache holds `most_bytes` at most; returns the bytes removed.

    Pinned files stay, and so do downloads that may still go on; parts that nobody touched for a week go.
    """
    held = _held(cache)
    now, entries = time.time(), []
    for path in cache.glob("??/*.tif"):
        with suppress(OSError):
            info, record = path.stat(), path.with_suffix(".json")
            used = record.stat().st_mtime if record.exists() else info.st_mtime
            entries.append((used, info.st_size, path))
    for part in cache.glob("??/*.part*"):
        with suppress(OSError):
            if now - part.stat().st_mtime > _STALE_PART_S:
                part.unlink()
    total, removed = sum(size for _, size, _ in entries), 0
    for _, size, path in sorted(entries):
        if total - removed <= most_bytes:
            break
        if path.name in held:
            continue
        # the record goes first: a file without one is not served
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        removed += size
    return removed


def _held(cache: Path) -> set[str]:
    """Names that live runs have pinned; pins of dead ones are removed."""
    held: set[str] = set()
    for pin in (cache / "pins").glob("*.json"):
        lock = FileLock(pin.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with suppress(OSError, ValueError):
                held.update(json.loads(pin.read_text(encoding="utf-8")))
            continue
        with suppress(OSError):
            pin.unlink(missing_ok=True)
        lock.release()
        pin.with_suffix(".lock").unlink(missing_ok=True)
    return held
