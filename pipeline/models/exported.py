"""Graphs exported to ONNX, kept once per weights and code in the user's cache; torch is loaded only to make one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from pipeline.errors import ModelError
from pipeline.models.store import Package, load_package

CACHE_VARIABLE = "CLEARCAUSE_CACHE"
_REVISION = 3  # raise it when necks, heads or the export change what the same weights compute
_LOCK_SECONDS = 600.0


def cache_dir() -> Path:
    """Return the folder for exported graphs: $CLEARCAUSE_CACHE/engines, or that of the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("clearcause", appauthor=False)) / "engines"


def export_onnx(folder: Path) -> Path:
    """Return the package's ONNX graph [N, bands, size, size] -> [N, classes, size, size], exported if need be.

    The graph lies at <cache>/engines/<sha256 of the weights>-<digest of card and code>.onnx, with the agreement
    measured in a .json beside it, written last. Processes that want the same graph wait for the first one.
    Raises ModelError where torch cannot export the network or the graph disagrees with torch.
    """
    package = load_package(folder)
    path = _place(package)
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            if not _is_whole(path):
                from pipeline.models.export import export_graph

                export_graph(package, path)
    except (OSError, Timeout) as error:
        raise ModelError(f"cache {path.parent} cannot be used: {error}; set {CACHE_VARIABLE} to a folder") from error
    return path


def is_exported(folder: Path) -> bool:
    """Whether the graph of a package lies in the cache; one that is a graph itself is not exported."""
    package = load_package(folder)
    return not package.is_onnx and _is_whole(_place(package))


def _place(package: Package) -> Path:
    return cache_dir() / f"{package.card.sha256}-{_code(package)}.onnx"


def _is_whole(path: Path) -> bool:
    """Whether the graph is there, complete and as it was checked."""
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return bool(told["graph_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _code(package: Package) -> str:
    """Digest of what else decides the graph: parts, bands and patch size of the card, and the code's revision."""
    card = package.card
    parts = [part.model_dump() for part in (card.backbone, card.neck, card.head)]
    told = json.dumps([_REVISION, parts, len(card.bands), len(card.scheme), card.patch.size], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]
