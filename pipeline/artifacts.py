"""Files as state: exists means whole. Digests that name what made a file, atomic commits, and the lock of a run.

Everything is written beside its place and renamed into it after an fsync, so that a reader (or the next run, after a
kill) sees a whole thing or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import OutputError

_AFTER_BLOCKS = {
    "product", "training", "simulate", "cli.py", "cli_training.py", "demo.py", "assemble.py", "merge.py", "units.py",
    "drivers.py", "ledger.py", "graph.py", "request.py", "chips.py", "areas", "cli_product.py",
    "coverage.py", "generalise.py", "eudr.py", "export.py", "changes.py", "tables.py",
}  # fmt: skip
"""Code that no plan and no checkpoint depends on: changing it publishes anew from the blocks that are there."""


def digest(value: object) -> str:
    """SHA-256 of a JSON-able value; keys are sorted, paths and times become text."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp(path: Path) -> list[object]:
    """What changes when a local file changes: its name, size and modification time."""
    try:
        info = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), info.st_size, info.st_mtime_ns]


@cache
def code_digest(whole: bool = False) -> str:
    """SHA-256 over the sources that plans and blocks depend on, or over all: edited code meets no old checkpoint."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if whole or path.relative_to(root).parts[0] not in _AFTER_BLOCKS:
            total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to disk and rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_bytes(path, (json.dumps(value, indent=1, default=str, allow_nan=False) + "\n").encode())


@contextmanager
def committed_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside `final`; on success sync its files and rename it into place, else remove it.

    A folder already at `final` is kept and the new one dropped: both were made by the same digest.
    """
    beside = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in beside.rglob("*"):
            _sync(path)
        _sync(beside)
        if not final.exists():
            beside.rename(final)
            _sync(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Put folder `new` in the place of `final` (on one file system); the old one goes last."""
    for path in new.rglob("*"):
        _sync(path)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def run_lock(work: Path) -> Iterator[None]:
    """Hold the run's folder for this process; it is released by the system if the process dies.

    Raises:
        OutputError: when another run holds it, or the folder cannot be made.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"output.dir {work}: in use by another run; wait for it, or name another output.dir"
        ) from error
    except OSError as error:
        raise OutputError(
            f"output.dir {work}: cannot be written ({error.strerror}); name another output.dir"
        ) from error
    try:
        yield
    finally:
        lock.release()
