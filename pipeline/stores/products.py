"""A product in a store: published so that no reader sees half of one, and brought back whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import committed_folder, digest, file_sha256
from pipeline.errors import OutputError, ProductError
from pipeline.store_address import local_part, store_address
from pipeline.stores.objects import Kept, Store

POINTER = "current.json"
VERSIONS = "versions/"
_FORMAT = 1
_TRIES = 3


def check_store(address: str) -> None:
    """Refuse a store that cannot be written to, before anything is computed.

    Raises:
        OutputError: the bucket is not there, refuses, or does not answer.
    """
    store, probe = Store(address), ".writable"
    store.put(probe, b"1")
    store.remove([probe])


def publish(address: str, product: Path) -> str:
    """Copy a whole product to a store and make it the current one; returns its version.

    Every object is read back and compared before the pointer is replaced. Versions before the one that was current
    until now are removed: whoever reads that one may finish.

    Raises:
        OutputError: the store failed; what was current stays so.
        ProductError: what was read back differs.
    """
    store = Store(address)
    files = {path.name: Kept(path.stat().st_size, file_sha256(path)) for path in sorted(product.iterdir())}
    version = digest({name: kept.sha256 for name, kept in files.items()})[:20]
    before = read_pointer(store)
    if before is None or before["version"] != version:
        for name, kept in files.items():
            _copy(store, f"{VERSIONS}{version}/{name}", product / name, kept)
        tree = {
            "format": _FORMAT, "version": version, "folder": f"{VERSIONS}{version}",
            "files": {name: vars(kept) for name, kept in files.items()},
        }  # fmt: skip
        since = store.written(POINTER)
        store.put(POINTER, (json.dumps(tree, indent=1) + "\n").encode())
        _sweep(store, {version, before["version"] if before else version}, since)
    return version


def _copy(store: Store, key: str, path: Path, kept: Kept) -> None:
    """Put a file and read it back."""
    for _ in range(_TRIES):
        store.put(key, path)
        if store.look(key) == kept:
            return
    raise ProductError(f"{store.address}/{key}: what was read back differs from what was written; check the store")


def _sweep(store: Store, kept: set[str], since: Any) -> None:
    """Remove versions that are older than the pointer was; what somebody else is writing now is younger."""
    if since is None:
        return
    found: dict[str, list[tuple[str, Any]]] = {}
    for key, when in store.keys(VERSIONS).items():
        found.setdefault(key.removeprefix(VERSIONS).partition("/")[0], []).append((key, when))
    for version, objects in found.items():
        if version not in kept and all(when < since for _, when in objects):
            store.remove([key for key, _ in objects])


def read_pointer(store: Store) -> dict[str, Any] | None:
    """What is current in a store, None where nothing was published.

    Raises:
        OutputError: the store fails, or the object is none of ours.
    """
    content = store.get(POINTER)
    if content is None:
        return None
    try:
        tree = json.loads(content)
        if tree["format"] != _FORMAT:
            raise ValueError("another format")
        files = {str(name): Kept(int(kept["bytes"]), str(kept["sha256"])) for name, kept in tree["files"].items()}
        plain = all(name and "/" not in name and not name.startswith(".") for name in (*files, str(tree["version"])))
        if not plain:
            raise ValueError("names that are none of a product")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{store.address}/{POINTER}: is no pointer of this version of Clearcause; name another prefix"
        ) from error
    return {"version": str(tree["version"]), "files": files}


def read_record(address: str) -> dict[str, Any] | None:
    """The run record of the product that is current in a store, None where nothing was published."""
    store = Store(address)
    for _ in range(_TRIES):
        pointer = read_pointer(store)
        if pointer is None:
            return None
        content = store.get(f"{VERSIONS}{pointer['version']}/run.json")
        # a version that went meanwhile was replaced twice: the pointer names another one now
        if content is not None:
            return dict(json.loads(content))
    raise ProductError(f"{address}: the product that {POINTER} names is not there; publish it again")


def at_hand(product: Path) -> Path:
    """A product's folder on this machine: the named one, or a copy of what is current at an address.

    Copies lie by version in the user's cache folder, so one is brought once; the last two stay.

    Raises:
        OutputError: nothing was published there, or the store failed.
        ProductError: a file is not what it should be.
    """
    address = store_address(product)
    if not address:
        return product
    store = Store(address)
    for last in (False,) * (_TRIES - 1) + (True,):
        pointer = read_pointer(store)
        if pointer is None:
            raise OutputError(f"{address}: no product was published there; name another address, or run it first")
        folder = local_part(address).with_name("versions") / str(pointer["version"])
        try:
            if not folder.is_dir():
                _bring(store, pointer, folder)
            return folder
        except (OutputError, ProductError):
            # replaced twice while it was read: what the pointer names now is there
            if last or read_pointer(store) == pointer:
                raise
    raise AssertionError("the last try returns or raises")


def beside(product: Path, suffix: str) -> Path:
    """A folder for what is made of a product: beside it, or in the working folder where it is an address."""
    address = store_address(product)
    place = Path.cwd() / address.rpartition("/")[2] if address else product.resolve()
    return place.with_name(place.name + suffix)


def _bring(store: Store, pointer: dict[str, Any], folder: Path) -> None:
    with committed_folder(folder) as beside:
        for name, kept in pointer["files"].items():
            key = f"{VERSIONS}{pointer['version']}/{name}"
            if store.fetch(key, beside / name) != kept:
                raise ProductError(f"{store.address}/{key}: is not what {POINTER} says; publish the product again")
    copies = sorted((path for path in folder.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in copies[:-2]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
