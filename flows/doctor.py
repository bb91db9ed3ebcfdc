"""`clearcause doctor`: is everything there that a run needs? Each check is one line in plain words."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import RunConfig
from pipeline.errors import ClearcauseError

if TYPE_CHECKING:
    import requests

    from pipeline.catalog.faults import FetchPolicy

_TIMEOUT = 10.0
_LITTLE_DISK, _LITTLE_MEMORY = 20e9, 4 * 2**30
_CAPPED = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
"""Versions from which Prefect's server breaks, or silently schedules nothing."""


@dataclass(frozen=True)
class Finding:
    """What one check found: fine, worth knowing, or in the way of a run."""

    check: str
    state: Literal["ok", "note", "fault"]
    text: str


def examine(config: RunConfig | None) -> Iterator[Finding]:
    """Yield the findings about this machine and, with a configuration, about what it names."""
    general: list[Callable[[], Iterator[Finding]]] = [_python, _machine, _gpu, _prefect]
    for check in general:
        yield from check()
    if config is not None:
        own = (_model, _inputs, _disk, _cluster, _archive)
        for look in own:
            yield from look(config)


def _python() -> Iterator[Finding]:
    names = ("torch", "torchgeo", "onnxruntime", "rasterio", "prefect", "distributed")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    state: Literal["ok", "fault"] = "ok" if sys.version_info >= (3, 12) else "fault"
    yield Finding("Python", state, f"{platform.python_version()}; {found}")
    for name, cap in _CAPPED.items():
        version = importlib.metadata.version(name)
        numbers = tuple(int(part) for part in version.split(".")[:2])
        if numbers >= cap:
            told = ".".join(map(str, cap))
            yield Finding(name, "fault", f"{version}: Prefect needs one below {told}; install from requirements.lock")


def _machine() -> Iterator[Finding]:
    from distributed.system import MEMORY_LIMIT

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} cores and {MEMORY_LIMIT / 2**30:.0f} GiB for this process; a worker needs about 2"
    yield Finding("machine", "ok" if MEMORY_LIMIT > _LITTLE_MEMORY else "note", text)


def _gpu() -> Iterator[Finding]:
    from pipeline.models.engines import gpu_names

    names = gpu_names()
    if names:
        yield Finding("GPU", "ok", ", ".join(names))
    else:
        yield Finding("GPU", "note", "none: the model runs on the CPU, some 0.3 megapixels a core and second")


def _prefect() -> Iterator[Finding]:
    import requests

    url = os.environ.get("PREFECT_API_URL")
    if not url:
        text = "PREFECT_API_URL is not set: each run brings its own (up to 40 s); `--no-prefect` needs none"
        yield Finding("Prefect", "note", text)
        return
    try:
        answer = requests.get(f"{url.rstrip('/')}/health", timeout=_TIMEOUT)
    except requests.RequestException as error:
        yield Finding("Prefect", "fault", f"no server answers at PREFECT_API_URL ({type(error).__name__}); start it")
        return
    state: Literal["ok", "fault"] = "ok" if answer.ok else "fault"
    yield Finding("Prefect", state, f"the server at PREFECT_API_URL answers {answer.status_code}")


def _model(config: RunConfig) -> Iterator[Finding]:
    from pipeline.models.package import verify_package

    try:
        card = verify_package(config.model)
    except ClearcauseError as error:
        yield Finding("model", "fault", str(error))
        return
    yield Finding("model", "ok", f"{card.name} {card.version}, digest as its card says")
    if card.simulated:
        yield Finding("model", "note", "trained on simulated scenes: its drivers are no findings about real land")


def _inputs(config: RunConfig) -> Iterator[Finding]:
    from pipeline.grid import read_region

    try:
        read_region(config.region.aoi)
    except ClearcauseError as error:
        yield Finding("region", "fault", str(error))
    files = {"loss.source": Path(config.loss.source)} if config.loss.source != "gfc" else {}
    files |= {f"region.units {k}": unit.path for k, unit in enumerate(config.region.units)}
    files |= {f"auxiliary {item.name}": item.path for item in config.auxiliary}
    files |= {f"overlays {item.name}": item.path for item in config.overlays}
    for key, path in files.items():
        if not path.exists():
            yield Finding(key, "note" if key.startswith("overlays") else "fault", f"{path}: no such file")
    yield Finding(
        "files", "ok", f"{sum(path.exists() for path in files.values())} of {len(files)} named files are there"
    )


def _disk(config: RunConfig) -> Iterator[Finding]:
    for key, folder in (("output.dir", config.output.dir), ("imagery.cache", config.imagery.cache)):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(there, os.W_OK):
            yield Finding(key, "fault", f"{folder}: cannot be written; name another folder")
            continue
        free = shutil.disk_usage(there).free
        yield Finding(key, "ok" if free > _LITTLE_DISK else "note", f"{folder}: {free / 1e9:.0f} GB free")


def _cluster(config: RunConfig) -> Iterator[Finding]:
    from flows.runtime import worker_count

    compute = config.compute
    if compute.executor in ("local", "threads"):
        yield Finding("Dask", "ok", f"compute.executor {compute.executor}: {worker_count(compute)} workers")
        return
    from distributed import Client

    try:
        with Client(compute.executor, timeout=f"{_TIMEOUT:g}s", set_as_default=False) as client:
            versions = client.get_versions(check=False)
            workers = versions["workers"]
    except OSError as error:
        yield Finding("Dask", "fault", f"no scheduler answers at {compute.executor} ({error})")
        return
    yield Finding("Dask", "ok" if workers else "fault", f"{compute.executor}: {len(workers)} workers")
    ours = versions["client"]["packages"]
    for name in ("distributed", "numpy"):
        others = {worker["packages"].get(name) for worker in workers.values()} - {ours.get(name)}
        if others:
            yield Finding("Dask", "fault", f"workers have {name} {', '.join(map(str, others))}, here {ours.get(name)}")


def _archive(config: RunConfig) -> Iterator[Finding]:
    from pipeline.catalog.open import KNOWN

    source = config.imagery.source
    url = KNOWN[source][0] if source in KNOWN else source
    if not url.lower().startswith(("http://", "https://")):
        there = Path(source).exists()
        yield Finding("imagery.source", "ok" if there else "fault", source if there else f"{source}: is not there")
    else:
        yield from _searchable(url, config)
    if config.loss.source == "gfc":
        yield _reachable("loss.archive", config.loss.archive, config.imagery.allow_hosts)
    if config.imagery.requester_pays and not os.environ.get("AWS_ACCESS_KEY_ID"):
        yield Finding("credentials", "note", "imagery.requester_pays is set and AWS_ACCESS_KEY_ID is not")
    if source == "planetary-computer" and not os.environ.get("PC_SDK_SUBSCRIPTION_KEY"):
        yield Finding("credentials", "note", "PC_SDK_SUBSCRIPTION_KEY is not set: tokens are shorter and rarer")


def _searchable(url: str, config: RunConfig) -> Iterator[Finding]:
    """Is there a STAC API at `url`, and may the files of its host be read?"""
    from urllib.parse import urlsplit

    from pipeline.catalog.faults import FetchFault, Permanent
    from pipeline.catalog.hosts import check_host

    try:
        check_host(url, config.imagery.allow_hosts)
    except Permanent as fault:
        # the configuration names this host as its source, so it is searched; its files are another matter
        yield Finding("imagery.source", "note", f"files there are not read: {fault.reason}")
    except FetchFault:
        # a name that is not known is told below
        pass
    yield _reachable("imagery.source", url, (*config.imagery.allow_hosts, urlsplit(url).hostname or ""), api=True)


def _reachable(key: str, url: str, allow_hosts: tuple[str, ...], api: bool = False) -> Finding:
    """Ask once; with `api` what answers must be a STAC API."""
    import requests

    from pipeline.catalog.faults import FetchFault, FetchPolicy
    from pipeline.catalog.hosts import ask, judging_session

    policy = FetchPolicy(attempts=1, deadline_s=_TIMEOUT, connect_s=_TIMEOUT, read_s=_TIMEOUT)
    try:
        with (
            judging_session(allow_hosts) as session,
            ask(session, requests.Request("GET", url), policy, allow_hosts) as answer,
        ):
            told = f"{url} answers {answer.status_code}"
            if api and answer.ok and not _is_stac(answer, policy):
                return Finding(key, "fault", f"{told}, but it is no STAC API; check the address")
    except FetchFault as fault:
        return Finding(key, "fault", f"{url}: {fault.reason}; check the address, the network and the proxy")
    # an archive of files may well answer 403 or 404 at its root to those who only read below it
    return Finding(key, "ok" if answer.ok or (answer.status_code < 500 and not api) else "fault", told)


def _is_stac(answer: requests.Response, policy: FetchPolicy) -> bool:
    from pipeline.catalog.api import MOST_BYTES
    from pipeline.catalog.hosts import chunks

    content = b""
    for chunk in chunks(answer, policy, decoded=True):
        content += chunk
        if len(content) > MOST_BYTES:
            return False
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and isinstance(tree.get("links"), list) and "conformsTo" in tree
