"""What the fetch stage brought and for whom, in `fetch.json` of a run's folder.

    {"inputs": digest of what the plan was made from, "read": "window" or "cache",
     "scenes": {scene: {band: {"verified": how, "bytes": n, "requests": n, "tiles": n, "of": n, "note": text}}},
     "blocks": {block: {"bytes": n, "requests": n, "tiles": n}}, "choice": ..., "pictures": ..., "total": ...}

`bytes` (of bodies) and `requests` are what went over the wire for this plan, retries and second readings included, also
in runs that were cut off; 0 where the cache had it all. `tiles` are those that are read, `of` those the file has; both
are null for a file that is whole, of which `note` says why where windows were wanted. A request is charged to the first
that needs one of its tiles: the choice of scenes, blocks in the order of the plan, pictures; all add up to `total`. It
all depends on what the cache held before: equal runs may differ in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import write_json
from pipeline.plan import Plan

if TYPE_CHECKING:
    from pipeline.catalog.fetch import Brought

FETCH_FILE = "fetch.json"
CHOICE, PICTURES = "choice", "pictures"
"""Users of files beside the blocks: the choice of scenes by their clouds, and the pictures of events."""
Windows = list[tuple[int, int, int, int]]
"""Row, column, height and width in pixels of the run's grid."""


@dataclass(frozen=True)
class Need:
    """What a scene is needed for: windows by user (blocks by id), and squares (row, column, side) for pictures."""

    windows: dict[str, Windows] = field(default_factory=dict)
    squares: frozenset[tuple[int, int, int]] = frozenset()

    def with_choice(self, look: Windows) -> Need:
        """The need with that of the choice of scenes, which comes first."""
        return replace(self, windows={CHOICE: look, **self.windows})

    @property
    def users(self) -> list[str]:
        """Who needs it, in the order in which they are charged."""
        return [*self.windows, PICTURES]


Needs = dict[str, Need]


def users_of(plan: Plan) -> Needs:
    """Who needs which scene of a plan, without windows."""
    found: dict[str, dict[str, Windows]] = {}
    for planned in plan.blocks:
        for scene in {s for ids in planned.scenes.values() for s in ids}:
            found.setdefault(scene, {})[planned.block.id] = []
    return {scene: Need(windows) for scene, windows in found.items()}


def read_fetch_log(work: Path) -> dict[str, Any]:
    """What stands in `fetch.json` of a run's folder; empty where nothing was remote."""
    path = work / FETCH_FILE
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


class FetchLog:
    """Adds up what is brought, in all threads; goes on from the log of an earlier stage of the same plan."""

    def __init__(self, work: Path, inputs: str, read: str) -> None:
        """Read the log of an earlier stage, if its plan was made from the same `inputs`."""
        self._path, self._lock = work / FETCH_FILE, Lock()
        kept = read_fetch_log(work)
        kept = kept if kept.get("inputs") == inputs else {}
        self._tree: dict[str, Any] = {
            "inputs": inputs, "read": read, "scenes": kept.get("scenes", {}), "blocks": kept.get("blocks", {}),
            CHOICE: kept.get(CHOICE) or _nothing(), PICTURES: kept.get(PICTURES) or _nothing(),
            "total": kept.get("total") or _nothing(),
        }  # fmt: skip
        self._tiles: dict[tuple[str, str], dict[str, frozenset[int]]] = {}

    def add(self, scene: str, band: str, brought: Brought, need: Need) -> None:
        """Add a file and what was brought of it now."""
        with self._lock:
            self._tiles[scene, band] = {**self._tiles.get((scene, band), {}), **(brought.wanted or {})}
            read = set[int]().union(*self._tiles[scene, band].values())
            record, whole = brought.record, brought.record.tiles is None
            entry = self._tree["scenes"].setdefault(scene, {}).setdefault(band, {"verified": "", **_nothing()})
            entry["verified"] = record.verified
            entry |= {"tiles": None if whole else len(read), "of": record.of, "note": record.note}
            for haul in brought.hauls:
                user = _charged(haul.tiles, brought.wanted or {}, need.users)
                for sums in (entry, self._of(user), self._tree["total"]):
                    sums["requests"] += haul.requests
                    sums["bytes"] += haul.bytes

    def save(self) -> None:
        """Write the log, where anything was remote."""
        with self._lock:
            if not self._tree["scenes"]:
                return
            counts: dict[str, int] = {}
            for wanted in self._tiles.values():
                for user, tiles in wanted.items():
                    counts[user] = counts.get(user, 0) + len(tiles)
            for user, count in counts.items():
                self._of(user)["tiles"] = count
            self._tree["total"]["tiles"] = sum(
                e["tiles"] or 0 for s in self._tree["scenes"].values() for e in s.values()
            )
            write_json(self._path, self._tree)

    def _of(self, user: str) -> dict[str, int]:
        sums: dict[str, int] = (
            self._tree[user] if user in (CHOICE, PICTURES) else self._tree["blocks"].setdefault(user, _nothing())
        )
        return sums


def _nothing() -> dict[str, int]:
    return {"bytes": 0, "requests": 0, "tiles": 0}


def _charged(tiles: frozenset[int], wanted: dict[str, frozenset[int]], users: Iterable[str]) -> str:
    """Who pays for tiles that came together: the first who needs one; the first of all for a header or a whole file."""
    return next((u for u in users if not tiles or not wanted or tiles & wanted.get(u, frozenset())), PICTURES)
