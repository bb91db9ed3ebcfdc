"""Files as state: exists means whole. Digests that name what made a file, atomic commits, and the lock of a run.

Everything is written beside its place and renamed into it after an fsync, so that a reader (or the next run, after a
kill) sees a whole thing or none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import OutputError

_AFTER_BLOCKS = {
    "product", "training", "simulate", "cli.py", "cli_training.py", "demo.py", "assemble.py", "merge.py", "units.py",
    "drivers.py", "ledger.py", "graph.py", "request.py", "chips.py", "areas", "cli_product.py",
    "cli_flows.py", "cli_plan.py", "rollup.py", "cli_run.py", "cli_state.py", "stores", "store_address.py", "status.py",
    "coverage.py", "costs", "generalise.py", "eudr.py", "export.py", "changes.py", "tables.py",
}  # fmt: skip
"""Code that no plan and no checkpoint depends on: changing it publishes anew from the blocks that are there."""
HOLDER_FILE = "holder.json"
_SHORT = 0.5
"""Seconds to try for a lock: whoever asks how a run stands holds it for a moment."""


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


def versions() -> dict[str, str]:
    """Versions of everything that shapes a result."""
    names = ("clearcause", "torch", "torchgeo", "onnxruntime", "rasterio", "geopandas", "shapely", "pyproj", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


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
    # the same block may be written by a worker that was given up but lives, of another machine with the same process id
    beside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}")
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in beside.rglob("*"):
            _sync(path)
        _sync(beside)
        try:
            beside.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Put folder `new` in the place of `final` (on one file system); the old one goes last.

    Where the system can exchange two names (Linux), a reader sees the old or the new one at every moment. Elsewhere
    there is a moment without either; `restore_folder` mends it for a process that died just then.
    """
    for path in new.rglob("*"):
        _sync(path)
    old = _aside(final)
    if not final.exists():
        shutil.rmtree(old, ignore_errors=True)
        new.rename(final)
    elif _exchange(new, final):
        shutil.rmtree(new, ignore_errors=True)
    else:
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        new.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Put back a folder that was set aside by `replace_folder` in a process that died before the new one was there."""
    if not final.exists() and _aside(final).exists():
        _aside(final).rename(final)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def run_lock(work: Path, wait: bool = False) -> Iterator[None]:
    """Hold the run's folder for this process; it is released by the system if the process dies.

    Where another run holds it, `wait` waits for as long as that takes.

    Raises:
        OutputError: when another run holds it, or the folder cannot be made.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", timeout=-1 if wait else _SHORT)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"output.dir {work}: in use by another run; wait for it, or name another output.dir"
        ) from error
    except OSError as error:
        raise OutputError(
            f"output.dir {work}: cannot be written ({error.strerror}); name another output.dir"
        ) from error
    holder = work / HOLDER_FILE
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def run_holder(work: Path) -> tuple[bool, dict[str, Any]]:
    """Whether a process holds the run's folder, and what it said of itself: pid, host, since; empty where none did.

    A process that was killed leaves its words and no lock.
    """
    path = work / "lock"
    said = json.loads((work / HOLDER_FILE).read_bytes()) if (work / HOLDER_FILE).is_file() else {}
    if not path.is_file():
        return False, said
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, said
    return False, said


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
