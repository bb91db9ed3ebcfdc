"""What runs on a worker besides blocks: the check that it is fit for this run, and the guard of a single try."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClearcauseError, InputError, ModelError

if TYPE_CHECKING:
    from pipeline.blocks import BlockRecord, BlockTask
    from pipeline.config import RunConfig
    from pipeline.models.engines import Engine, Precision

TOKEN_FILE = "seen-by-workers"
_LEAST_MEMORY = 2**30
_LEAST_DISK = 100e6


class TriedBefore(Exception):
    """Raised for a try that was begun elsewhere and never ended: the scheduler repeats it unasked."""


@dataclass(frozen=True)
class Needs:
    """What a worker must have: the run's folder (with a token in it), other paths, the model, versions and the code.

    `engine` and `precision` are those that the model will be opened with.
    """

    work: Path
    token: str
    paths: tuple[Path, ...]
    model: Path
    model_sha256: str
    engine: Engine
    precision: Precision
    versions: dict[str, str]
    code: str


def needs_of(config: RunConfig, token: str, paths: tuple[Path, ...]) -> Needs:
    """What this process has and every worker must have too; writes the token."""
    from pipeline.artifacts import code_digest, write_bytes

    work, model, compute = config.work, config.model, config.compute
    write_bytes(work / TOKEN_FILE, token.encode())
    digest = _model_digest(model)
    return Needs(work, token, paths, model, digest, compute.engine, compute.precision, here(), code_digest())


def here() -> dict[str, str]:
    """Versions of this process that a result or a message between processes depends on."""
    from pipeline.artifacts import versions

    return {**versions(), **{name: importlib.metadata.version(name) for name in ("dask", "distributed")}}


def fault(needs: Needs, memory: float) -> str:
    """Why this process cannot serve a run, with the remedy, or nothing; `memory` is bytes for each of its threads."""
    from pipeline.artifacts import code_digest

    own = here()
    for name, version in needs.versions.items():
        if own.get(name) != version:
            return f"has {name} {own.get(name)}, the run has {version}: install the same there"
    if code_digest() != needs.code:
        return f"has other code of clearcause {own['clearcause']}: install the same commit there"
    try:
        seen = (needs.work / TOKEN_FILE).read_text()
    except OSError:
        seen = ""
    if seen != needs.token:
        return f"does not see the run's folder {needs.work}: mount the same storage there under the same path"
    if missing := next((path for path in needs.paths if not path.exists()), None):
        return f"does not see {missing}: mount the same storage there under the same path"
    probe = needs.work / f".probe-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_bytes(b"1")
        probe.unlink()
    except OSError as error:
        return f"cannot write to {needs.work} ({error.strerror}): mount it writable there, as the same user"
    try:
        found = _model_digest(needs.model)
    except InputError as error:
        return f"cannot use the model: {error}"
    if found != needs.model_sha256:
        return f"has another model in {needs.model}: copy the run's there"
    if memory < _LEAST_MEMORY:
        return f"has {memory / 2**20:.0f} MiB a thread: give it 1 GiB at least (--memory-limit, or fewer --nthreads)"
    if (free := shutil.disk_usage(needs.work).free) < _LEAST_DISK:
        return f"has {free / 1e6:.0f} MB free in {needs.work}: make room"
    return ""


def _model_digest(folder: Path) -> str:
    from pipeline.models.store import load_package

    return load_package(folder).card.sha256


async def examine(needs: Needs, dask_worker: Any) -> str:
    """Why the worker that runs this is not fit, or nothing; one that is fit has loaded what its first block needs."""
    # 0 or None: the worker has no limit of its own
    memory = (dask_worker.memory_manager.memory_limit or float("inf")) / dask_worker.state.nthreads
    # in a thread: the worker must answer its scheduler while libraries load
    said = await asyncio.to_thread(fault, needs, memory)
    return said or await asyncio.to_thread(_load, needs)


def _load(needs: Needs) -> str:
    from pipeline.blocks import load_libraries
    from pipeline.models.engines import open_ahead

    load_libraries()
    try:
        open_ahead(needs.model, needs.engine, needs.precision)
    except ModelError as error:
        return f"cannot use the model: {error}"
    return ""


def try_once(compute: Callable[[BlockTask], BlockRecord], task: BlockTask, mark: Path) -> BlockRecord:
    """Compute a block unless the scheduler has had this very try begun before: what kills workers is not repeated.

    Raises:
        TriedBefore: the try was begun and its worker died, or was cut off; the ledger decides what is next.
    """
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        raise TriedBefore(f"block {task.block}: this try was begun before") from None
    except OSError as error:
        raise ClearcauseError(f"{mark.parent}: cannot be written ({error.strerror})") from error
    return compute(task)
