"""Finished blocks in a store: a run that lost its machine goes on elsewhere from the blocks that are there.

A checkpoint's name is a digest of everything that made it, so one that is there is right for whoever computes that
name, and no lock is needed. Its files come first and `commit.json`, with their sizes and digests, last.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.artifacts import committed_folder, file_sha256
from pipeline.errors import OutputError
from pipeline.stores.objects import Kept, Store

CHECKPOINTS, COMMIT = "checkpoints/", "commit.json"
_AT_ONCE = 8


class CheckpointStore:
    """The checkpoints of an address."""

    def __init__(self, address: str) -> None:
        """Ask the store which checkpoints are whole; raises OutputError where it does not answer."""
        self._store = Store(address)
        ends = f"/{COMMIT}"
        self.names = {
            key.removeprefix(CHECKPOINTS).removesuffix(ends)
            for key in self._store.keys(CHECKPOINTS)
            if key.endswith(ends)
        }

    def push(self, folder: Path) -> None:
        """Copy a checkpoint to the store, unless it is there; raises OutputError."""
        if folder.name in self.names:
            return
        files = {path.name: path for path in sorted(folder.iterdir())}
        for name, path in files.items():
            self._store.put(f"{CHECKPOINTS}{folder.name}/{name}", path)
        tree = {name: vars(Kept(path.stat().st_size, file_sha256(path))) for name, path in files.items()}
        self._store.put(f"{CHECKPOINTS}{folder.name}/{COMMIT}", json.dumps({"files": tree}).encode())
        self.names.add(folder.name)

    def push_all(self, folders: Iterable[Path]) -> None:
        """Copy what the store has not yet."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self.push, [folder for folder in folders if folder.name not in self.names]))

    def pull(self, names: Collection[str], blocks: Path) -> int:
        """Bring those of the named checkpoints that the store has and this machine lacks; returns how many came.

        One that is damaged is as good as absent: it is computed again, and takes its place.
        """
        wanted = [name for name in names if name in self.names and not (blocks / name).is_dir()]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return sum(pool.map(lambda name: self._pull(name, blocks / name), wanted))

    def _pull(self, name: str, folder: Path) -> bool:
        below = f"{CHECKPOINTS}{name}/"
        try:
            tree = json.loads(self._store.get(below + COMMIT) or b"{}")
            kept = {str(file): Kept(int(one["bytes"]), str(one["sha256"])) for file, one in tree["files"].items()}
            if any("/" in file or file.startswith(".") for file in kept):
                raise ValueError("a name that is none of a checkpoint")
        except (ValueError, KeyError, TypeError, AttributeError):
            self.names.discard(name)
            return False
        try:
            with committed_folder(folder) as beside:
                for file, one in kept.items():
                    if self._store.fetch(below + file, beside / file) != one:
                        raise _DamagedError
        except _DamagedError:
            self.names.discard(name)
            return False
        return True


class _DamagedError(OutputError):
    """Raised inside `pull` alone."""
